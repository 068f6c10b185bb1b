// The page: an image, a mask on its patches, and what the model makes of them.

import { open } from "./backend.js";
import { errorMap, patchBox, principalColors, similarity } from "./compute.js";

const $ = (id) => document.getElementById(id);
const GRAY = "rgb(128 128 128)";

let backend;
let about;
let image = null; // of the back end
let hidden = new Set(); // numbers of patches
let cursor = 0; // the patch that keys are about
let compared = null; // the patch whose token all others are compared with
let made = null; // of the mask that is shown
let loads = 0; // images asked for: an answer to an older one is dropped
let wanted = 0; // reconstructions asked for
let running = false;

function say(text) {
  $("status").textContent = text;
}

function fail(error) {
  say("");
  $("error").textContent = error.message;
}

/** Draws pixels [H, W, C] on a canvas of their size. */
function draw(canvas, pixels, height, width) {
  const channels = pixels.length / (height * width);
  const data = new Uint8ClampedArray(4 * height * width).fill(255);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) data[4 * i + c] = pixels[channels * i + (channels < 3 ? 0 : c)];
  }
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle("small", Math.max(height, width) <= 128);
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

/** What the model sees, enlarged so that the lines between patches are thin. */
function drawMask() {
  const [height, width] = about.size;
  const base = document.createElement("canvas");
  draw(base, made?.seen ?? image.pixels, height, width);
  const canvas = $("mask");
  const scale = Math.max(1, Math.ceil(700 / width));
  if (canvas.width !== width * scale || canvas.height !== height * scale) {
    canvas.width = width * scale;
    canvas.height = height * scale;
  }
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.drawImage(base, 0, 0);
  pen.fillStyle = GRAY;
  for (const place of hidden) {
    const box = patchBox(place, about.grid, about.patch);
    pen.fillRect(box.left, box.top, box.width, box.height);
  }
  pen.strokeStyle = "rgb(255 255 255 / 35%)";
  pen.lineWidth = 1 / scale;
  for (let y = 0; y <= height; y += about.patch[0]) line(pen, 0, y, width, y);
  for (let x = 0; x <= width; x += about.patch[1]) line(pen, x, 0, x, height);
  if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
    frame(pen, patchBox(cursor, about.grid, about.patch), scale);
  }
  const share = Math.round((100 * hidden.size) / about.patches);
  $("counts").textContent = `${hidden.size} of ${about.patches} patches are hidden (${share} %).`;
  canvas.setAttribute("aria-label", `Mask on the image: ${$("counts").textContent}`);
}

/** A frame of two colors, which can be seen on anything. */
function frame(pen, box, scale) {
  for (const [color, wide] of [["black", 5], ["white", 2]]) {
    pen.strokeStyle = color;
    pen.lineWidth = wide / scale;
    pen.strokeRect(box.left, box.top, box.width, box.height);
  }
}

function where(place) {
  const columns = about.grid[1];
  return `row ${Math.floor(place / columns) + 1}, column ${(place % columns) + 1}`;
}

/** The tokens as colors: their components, or how like they are to that of one patch. */
function drawTokens() {
  const [rows, columns] = about.grid;
  const base = document.createElement("canvas");
  let note =
    "Three principal components of the last tokens as red, green and blue; nothing is hidden here. " +
    "Alike colors: alike to the model.";
  if (compared === null) draw(base, image.components, rows, columns);
  else {
    const { cosines, colors } = similarity(image.tokens, about.patches, about.width, compared);
    draw(base, colors, rows, columns);
    const least = cosines.reduce((low, value) => Math.min(low, value), 1);
    note =
      `Cosine of each token to that of ${where(compared)}: ${least.toFixed(2)} (dark) to 1 (yellow).`;
  }
  const canvas = $("tokens");
  const scale = Math.max(1, Math.ceil(700 / columns));
  canvas.width = columns * scale;
  canvas.height = rows * scale;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.scale(scale, scale);
  pen.drawImage(base, 0, 0);
  if (compared !== null) frame(pen, patchBox(compared, about.grid, [1, 1]), scale);
  $("tokens-note").textContent = note;
  canvas.setAttribute("aria-label", `Tokens. ${note}`);
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

function trueStatistics() {
  return about.statistics && document.querySelector("[name=statistics]:checked").value === "true";
}

/** Asks for the reconstruction of the mask that is shown; while one is made, for the newest one. */
async function reconstruct() {
  drawMask();
  wanted += 1;
  if (running) return;
  running = true;
  try {
    let done = 0;
    while (done !== wanted) {
      done = wanted;
      const possible = hidden.size < about.patches && (hidden.size > 0 || about.noise > 0);
      if (!possible) {
        made = null;
        clearMade();
        say(hidden.size ? "Show the model at least one patch." : "Hide at least one patch.");
        continue;
      }
      const asked = { image, hidden: [...hidden].sort((a, b) => a - b), leaks: trueStatistics() };
      const began = performance.now();
      const answer = await backend.reconstruct(image.pixels, asked.hidden, asked.leaks);
      if (asked.image !== image) continue;
      made = { ...answer, ...asked };
      $("error").textContent = "";
      say(`Reconstructed in ${Math.round(performance.now() - began)} ms (the model: ${answer.ms} ms).`);
      drawMade();
    }
  } catch (error) {
    made = null;
    clearMade();
    fail(error);
  } finally {
    running = false;
  }
}

function clearMade() {
  for (const id of ["made", "errors"]) draw($(id), new Uint8Array(3).fill(128), 1, 1);
  for (const id of ["made-note", "error-note"]) $(id).textContent = "";
}

function drawMade() {
  const [height, width] = about.size;
  const [p, q] = about.patch;
  const gone = new Set(made.hidden);
  const isHidden = (y, x) => gone.has(Math.floor(y / p) * about.grid[1] + Math.floor(x / q));
  draw($("made"), made.reconstruction, height, width);
  const truth = made.image.pixels;
  const judged = gone.size ? isHidden : () => true;
  const { colors, mean } = errorMap(truth, made.reconstruction, about.channels, about.size, judged);
  draw($("errors"), colors, height, width);
  let note = "Pixels as predicted; visible patches as they are.";
  if (about.statistics) {
    note = made.leaks
      ? "LEAKS: brightness and contrast of each hidden patch are the true ones, which the model does not know."
      : "All predicted from the visible patches, brightness and contrast too.";
  }
  $("made-note").textContent = note;
  const leaks = made.leaks ? ", too small because of the leak" : "";
  $("error-note").textContent =
    `Mean over ${gone.size ? "hidden" : "all"} pixels: ${mean.toFixed(1)} of 255${leaks}. ` +
    "White: none; dark red: 100 and more.";
  $("made").setAttribute("aria-label", `Reconstruction. ${note}`);
  $("errors").setAttribute("aria-label", `Error map. ${$("error-note").textContent}`);
  if (about.noise) drawMask();
}

async function sample() {
  const share = Number($("ratio").value) / 100;
  $("share").textContent = `${$("ratio").value} %`;
  if (!image) return;
  try {
    const drawn = await backend.mask($("kind").value, share, Number($("seed").value));
    hidden = new Set(drawn);
    made = null;
    await reconstruct();
  } catch (error) {
    fail(error);
  }
}

async function load(file) {
  loads += 1;
  const mine = loads;
  $("error").textContent = "";
  say(`Reading ${file.name || "the image"} ...`);
  try {
    const answer = await backend.image(file);
    if (mine !== loads) return;
    image = answer;
    image.components = principalColors(image.tokens, about.patches, about.width);
    compared = null;
    made = null;
    show();
    say(`Read in ${answer.ms} ms.`);
    if (about.pictures) {
      // An autoencoder of noise need not hide anything.
      if (hidden.size || !about.mask_ratio) await reconstruct();
      else await sample();
    }
  } catch (error) {
    if (mine === loads) fail(error);
  }
}

/** All that does not depend on a mask. */
function show() {
  const [height, width] = about.size;
  $("pictures").hidden = false;
  draw($("original"), image.pixels, height, width);
  const gets = image.found ? "tokens are of" : "the model gets";
  $("original-note").textContent =
    `${image.width} x ${image.height} pixels; ${gets} its middle, resized to ${width} x ${height}.`;
  drawTokens();
  if (image.classes) {
    $("classes").replaceChildren(...image.classes.map(classRow));
    $("classes-section").hidden = false;
  }
  if (image.found) {
    $("found").src = image.found.picture;
    const what = about.kind === "detector" ? "Objects" : "Classes of pixels";
    $("found").alt = `${what} on the image, listed below`;
    $("found-title").textContent = what;
    const items = image.found.legend.map((one) => {
      const swatch = element("span", "");
      swatch.className = "swatch";
      swatch.style.backgroundColor = one.color;
      const item = element("li", ` ${one.name}: ${one.says}`);
      item.prepend(swatch);
      return item;
    });
    if (!items.length) items.push(element("li", "Nothing was found."));
    $("legend").replaceChildren(...items);
    $("found-figure").hidden = false;
  }
  if (image.neighbors) {
    $("neighbors").replaceChildren(...image.neighbors.map(neighborTile));
    $("neighbors-section").hidden = false;
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function classRow({ name, probability }) {
  const meter = element("meter", "");
  meter.value = probability;
  meter.setAttribute("aria-label", `probability of ${name}`);
  const bar = element("td", "");
  bar.append(meter);
  const row = element("tr", "");
  row.append(element("td", name), element("td", `${(100 * probability).toFixed(1)} %`), bar);
  return row;
}

function neighborTile({ name, similarity, picture }) {
  const tile = element("figure", "");
  if (picture) {
    const shown = element("img", "");
    shown.src = picture;
    shown.alt = name;
    tile.append(shown);
  }
  const caption = element("figcaption", "");
  caption.append(element("span", `${name}, ${similarity.toFixed(3)}`));
  tile.append(caption);
  return tile;
}

/** The patch at a pointer, on a canvas that shows all of them; null beside it. */
function patchAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const [rows, columns] = about.grid;
  const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
  const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
  const inside = row >= 0 && row < rows && column >= 0 && column < columns;
  return inside ? row * columns + column : null;
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** The patch that a key of an arrow leads to; null for another key. */
function moved(place, key) {
  if (!STEPS[key]) return null;
  const [rows, columns] = about.grid;
  const [down, across] = STEPS[key];
  const row = Math.min(rows - 1, Math.max(0, Math.floor(place / columns) + down));
  const column = Math.min(columns - 1, Math.max(0, (place % columns) + across));
  return row * columns + column;
}

/** Choosing the patch that all others are compared with. */
function comparable(canvas) {
  const choose = (place) => {
    compared = place;
    drawTokens();
    $("place").textContent = $("tokens-note").textContent;
  };
  canvas.addEventListener("click", (event) => {
    const place = patchAt(canvas, event);
    if (place !== null) choose(place === compared ? null : place);
  });
  canvas.addEventListener("keydown", (event) => {
    const next = moved(compared ?? 0, event.key);
    if (next !== null) choose(compared === null ? 0 : next);
    else if (event.key === "Escape") choose(null);
    else return;
    event.preventDefault();
  });
}

/** Painting: the first patch decides whether patches are hidden or shown until the button is up. */
function paintable(canvas) {
  let hides = null;
  const paint = (place) => {
    if (place === null || hidden.has(place) === hides) return;
    cursor = place;
    if (hides) hidden.add(place);
    else hidden.delete(place);
    reconstruct();
  };
  canvas.addEventListener("pointerdown", (event) => {
    const place = patchAt(canvas, event);
    if (place === null || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    hides = !hidden.has(place);
    paint(place);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (hides !== null) paint(patchAt(canvas, event));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => (hides = null));
  }
  canvas.addEventListener("keydown", (event) => {
    const next = moved(cursor, event.key);
    if (next !== null) {
      cursor = next;
      drawMask();
    } else if (event.key === " " || event.key === "Enter") {
      hides = !hidden.has(cursor);
      paint(cursor);
      hides = null;
    } else return;
    event.preventDefault();
    const state = hidden.has(cursor) ? "hidden" : "visible";
    $("place").textContent = `${where(cursor)}: ${state}`;
  });
  for (const change of ["focus", "blur"]) canvas.addEventListener(change, () => image && drawMask());
}

function dropTarget() {
  const zone = $("drop");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  addEventListener("dragleave", () => zone.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) load(file);
    else fail(new Error("drop an image file; of pages, save the image first"));
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) load(file);
  });
  $("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) load(file);
    event.target.value = ""; // the same file may be chosen again
  });
}

const KINDS = {
  mae: "a masked autoencoder",
  encoder: "an encoder",
  classifier: "a classifier",
  segmenter: "a segmenter",
  detector: "a detector",
};

async function start() {
  backend = await open(say);
  about = backend.about;
  document.title = `${about.run} - mae`;
  $("run").textContent = about.run;
  const step = about.step ? `, step ${about.step.toLocaleString("en")}` : "";
  $("about").textContent =
    `${KINDS[about.kind]}${step}; images of ${about.size[1]} x ${about.size[0]} pixels in ` +
    `${about.patches} patches` + (about.noise ? `; noise of std ${about.noise} on what it sees` : "");
  $("where").textContent += ` ${backend.where}`;
  $("version").textContent = `torchmae ${about.version}`;
  $("masking").hidden = !about.pictures;
  $("statistics").hidden = !about.statistics;
  for (const id of ["mask-figure", "made-figure", "error-figure", "invented"]) $(id).hidden = !about.pictures;
  $("ratio").value = Math.round(100 * about.mask_ratio);
  $("share").textContent = `${$("ratio").value} %`;
  $("kind").replaceChildren(...about.maskings.map((name) => new Option(name, name)));
  $("kind").value = about.masking;
  for (const id of ["ratio", "kind", "seed"]) $(id).addEventListener("input", sample);
  $("masking").addEventListener("submit", (event) => event.preventDefault());
  $("another").addEventListener("click", () => {
    $("seed").value = Number($("seed").value) + 1;
    sample();
  });
  $("invert").addEventListener("click", () => {
    if (!image) return;
    const places = Array.from({ length: about.patches }, (_, place) => place);
    hidden = new Set(places.filter((place) => !hidden.has(place)));
    reconstruct();
  });
  $("statistics").addEventListener("change", () => image && reconstruct());
  paintable($("mask"));
  comparable($("tokens"));
  dropTarget();
  say("Choose an image to begin.");
}

start().catch(fail);
