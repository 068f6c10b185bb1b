// The back end of `mae export --to page`: the model runs in the browser, by ONNX Runtime Web.

import { centerWindow, patchBox, resize, sampleMask } from "./compute.js";
import * as ort from "./ort.wasm.bundle.min.mjs";

const MOST_PIXELS = 100e6;
const MOST_SIDE = 4096; // of the canvas that an image is drawn on; larger ones are shrunk there

/** An image file as pixels: laid over white, turned as it says, cut and resized as in training. */
async function decode(file, about) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("not an image, or not of a format that this browser reads");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    throw new Error(`${Math.round((width * height) / 1e6)} megapixels, more than the limit of 100`);
  }
  const scale = Math.min(1, MOST_SIDE / Math.max(width, height));
  const [w, h] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = new OffscreenCanvas(w, h);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, w, h);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, w, h);
  bitmap.close();
  const crop = centerWindow(h, w, about.size, about.crop);
  const { data } = pen.getImageData(crop.left, crop.top, crop.width, crop.height);
  const count = crop.width * crop.height;
  const pixels = new Uint8ClampedArray(count * about.channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (about.channels === 1) pixels[i] = 0.299 * r + 0.587 * g + 0.114 * b;
    else pixels.set([r, g, b], 3 * i);
  }
  return { pixels: resize(pixels, crop.height, crop.width, about.channels, about.size), width, height };
}

function ids(numbers) {
  return new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
}

/** [H, W, C] to [1, C, H, W]. */
function planes(pixels, channels, [height, width]) {
  const values = new Uint8Array(pixels.length);
  const count = height * width;
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < channels; c++) values[c * count + i] = pixels[i * channels + c];
  }
  return new ort.Tensor("uint8", values, [1, channels, height, width]);
}

/** [1, C, H, W] of 0..1 to pixels [H, W, C]. */
function interleaved(values, channels) {
  const count = values.length / channels;
  const pixels = new Uint8ClampedArray(values.length);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < channels; c++) pixels[i * channels + c] = 255 * values[c * count + i];
  }
  return pixels;
}

/** What the page runs on; `server.js` has the same functions. */
export async function open(say) {
  const about = await (await fetch("about.json")).json();
  ort.env.wasm.numThreads = 1; // more need headers that plain static servers do not send
  const machineCode = new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href;
  ort.env.wasm.wasmPaths = { wasm: machineCode };
  say(`Loading the model (${Math.round(about.bytes / 1e6)} MB) ...`);
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const all = Array.from({ length: about.patches }, (_, place) => place);

  async function run(pixels, keep, hide) {
    const began = performance.now();
    const images = planes(pixels, about.channels, about.size);
    const found = await session.run({ images, keep: ids(keep), hide: ids(hide) });
    return { found, ms: Math.round(performance.now() - began) };
  }

  return {
    about,
    where: "Images stay in this browser: the model runs in it.",

    /** An image file: its pixels as the model gets them, and what does not depend on a mask. */
    async image(file) {
      const image = await decode(file, about);
      // The encoder sees all patches; what the decoder makes of the first one again is not used.
      const { found, ms } = await run(image.pixels, all, [0]);
      return { ...image, tokens: found.tokens.data, ms };
    },

    /** The hidden patches of a mask. */
    async mask(masking, ratio, seed) {
      return sampleMask(masking, about.grid, ratio, seed, about.blocks);
    },

    /** What the encoder sees, and what the model makes of it. */
    async reconstruct(pixels, hidden, trueStatistics) {
      const gone = new Set(hidden);
      const keep = all.filter((place) => !gone.has(place));
      const { found, ms } = await run(pixels, keep, hidden);
      const name = trueStatistics ? "with_true_statistics" : "reconstruction";
      const seen = Uint8ClampedArray.from(pixels);
      const width = about.size[1] * about.channels;
      for (const place of hidden) {
        const box = patchBox(place, about.grid, about.patch);
        for (let y = box.top; y < box.top + box.height; y++) {
          const first = y * width + box.left * about.channels;
          seen.fill(128, first, first + box.width * about.channels);
        }
      }
      return { seen, reconstruction: interleaved(found[name].data, about.channels), ms };
    },
  };
}
