// What the page computes by itself: pure functions of numbers, without a document.

const WORD = 2 ** 32;

/** A bijection of 32-bit words (torchmae/hashing.py). */
function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad) >>> 0;
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97) >>> 0;
  return (x ^ (x >>> 15)) >>> 0;
}

/** A 32-bit word from integers in [0, 2**53); their order matters. */
export function hash32(...keys) {
  let word = 0x1b873593;
  for (const key of keys) {
    const high = Math.floor(key / WORD);
    word = mix((word ^ (key % WORD) ^ Math.imul(high, 0x5bd1e995)) >>> 0);
  }
  return word;
}

const MASK = 2;
const BLOCK = 3; // streams of torchmae/hashing.py
const BLOCKS = 32;

/** The order of the numbers 0..n-1 by their scores, which all differ. */
function order(scores) {
  return Array.from(scores.keys()).sort((a, b) => scores[a] - scores[b]);
}

function ranks(scores) {
  const found = new Array(scores.length);
  order(scores).forEach((place, rank) => (found[place] = rank));
  return found;
}

/** Orders of patches, the visible first (torchmae/models/masking.py). */
const MASKINGS = {
  random: (noise) => order(noise),
  grid(noise, [, columns]) {
    const rank = ranks(noise);
    const scores = noise.map((_, place) => {
      const row = Math.floor(place / columns) % 2;
      const column = (place % columns) % 2;
      return (3 * row + 2 * column - 4 * row * column) * noise.length + rank[place];
    });
    return order(scores);
  },
  block(noise, [rows, columns], shapes) {
    const blocks = Array.from({ length: BLOCKS }, (_, i) => {
      const draw = (purpose) => hash32(BLOCK, noise[0], i, purpose);
      const [height, width] = shapes[draw(0) % shapes.length];
      return [draw(1) % (rows - height + 1), draw(2) % (columns - width + 1), height, width];
    });
    const count = noise.length;
    const rank = ranks(noise);
    const scores = noise.map((_, place) => {
      const row = Math.floor(place / columns);
      const column = place % columns;
      let first = blocks.findIndex(
        ([top, left, height, width]) =>
          row >= top && row < top + height && column >= left && column < left + width,
      );
      if (first < 0) first = BLOCKS;
      return (BLOCKS - first) * count + (first < BLOCKS ? count - 1 - place : rank[place]);
    });
    return order(scores);
  },
};

/** The hidden patches that a masking draws for a seed, as `mae reconstruct --seed` does. */
export function sampleMask(name, grid, ratio, seed, shapes) {
  const count = grid[0] * grid[1];
  const noise = Array.from({ length: count }, (_, place) => {
    return hash32(seed, MASK, 0, 0, place) * count + place;
  });
  const visible = Math.trunc(count * (1 - ratio));
  if (visible < 1 || visible >= count) {
    throw new Error(`a mask ratio of ${ratio} leaves ${visible} of ${count} patches visible`);
  }
  return MASKINGS[name](noise, grid, shapes)
    .slice(visible)
    .sort((a, b) => a - b);
}

/** The largest centered window of an image with the aspect of `size`, its sides times `share`. */
export function centerWindow(height, width, size, share) {
  const ratio = Math.min(height / size[0], width / size[1]) * share;
  const [h, w] = [height, width].map((side, i) =>
    Math.max(1, Math.min(side, roundHalfEven(ratio * size[i]))),
  );
  return { top: Math.floor((height - h) / 2), left: Math.floor((width - w) / 2), height: h, width: w };
}

function roundHalfEven(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

/** Bicubic weights with antialiasing (Pillow's): for each output pixel its first input and weights. */
function taps(from, to) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const cubic = (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  };
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * wide + 0.5));
    const last = Math.min(from, Math.trunc(center + 2 * wide + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(cubic((j - center + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Pixels [height, width, channels] resized to [H, W, channels]. */
export function resize(pixels, height, width, channels, [tall, wide]) {
  const pass = (input, rows, table, read) => {
    const output = new Uint8ClampedArray(rows * table.length * channels);
    for (let row = 0; row < rows; row++) {
      table.forEach(({ first, weights }, i) => {
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let j = 0; j < weights.length; j++) sum += weights[j] * input[read(row, first + j) + c];
          output[(row * table.length + i) * channels + c] = sum;
        }
      });
    }
    return output; // of the second pass [W, H, channels]
  };
  const across = taps(width, wide);
  const down = taps(height, tall);
  const narrow = pass(pixels, height, across, (row, j) => (row * width + j) * channels);
  const turned = pass(narrow, wide, down, (row, j) => (j * wide + row) * channels);
  const output = new Uint8ClampedArray(tall * wide * channels);
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) {
      for (let c = 0; c < channels; c++) {
        output[(y * wide + x) * channels + c] = turned[(x * tall + y) * channels + c];
      }
    }
  }
  return output;
}

/** Where a patch lies. */
export function patchBox(place, [, columns], [p, q]) {
  return { top: Math.floor(place / columns) * p, left: (place % columns) * q, height: p, width: q };
}

// From no error to 100 of 255 and more, as in the sheets of mae reconstruct.
const REDS = [
  [255, 245, 240],
  [252, 187, 161],
  [251, 106, 74],
  [203, 24, 29],
  [103, 0, 13],
];
const MOST_ERROR = 100;

// matplotlib's viridis, as in the sheets of mae look.
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/** The color of a level, 0 to 1. */
function colorAt(stops, level) {
  const place = level * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((value, c) => value + (place - low) * (stops[low + 1][c] - value));
}

/** Mean absolute differences of the channels as colors, and their mean over some patches. */
export function errorMap(truth, made, channels, size, isHidden) {
  const [height, width] = size;
  const colors = new Uint8ClampedArray(height * width * 3).fill(255);
  let sum = 0;
  let count = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      let difference = 0;
      for (let c = 0; c < channels; c++) {
        difference += Math.abs(truth[at * channels + c] - made[at * channels + c]) / channels;
      }
      if (isHidden(y, x)) {
        sum += difference;
        count += 1;
      }
      if (difference > 0) {
        colors.set(colorAt(REDS, Math.min(difference, MOST_ERROR) / MOST_ERROR), at * 3);
      }
    }
  }
  return { colors, mean: count ? sum / count : 0 };
}

/** The three largest principal components of tokens [count, width], each as 0..255. */
export function principalColors(tokens, count, width) {
  const centered = Float64Array.from(tokens);
  for (let d = 0; d < width; d++) {
    let mean = 0;
    for (let i = 0; i < count; i++) mean += centered[i * width + d] / count;
    for (let i = 0; i < count; i++) centered[i * width + d] -= mean;
  }
  const colors = new Uint8ClampedArray(count * 3);
  const found = [];
  for (let c = 0; c < 3; c++) {
    // Power iteration, at right angles to those found; it starts from hashed numbers.
    let axis = Float64Array.from({ length: width }, (_, d) => hash32(c, d) / WORD - 0.5);
    let along = new Float64Array(count);
    for (let round = 0; round < 40; round++) {
      for (const other of found) {
        let product = 0;
        for (let d = 0; d < width; d++) product += axis[d] * other[d];
        for (let d = 0; d < width; d++) axis[d] -= product * other[d];
      }
      const norm = Math.hypot(...axis) || 1;
      for (let d = 0; d < width; d++) axis[d] /= norm;
      for (let i = 0; i < count; i++) {
        let product = 0;
        for (let d = 0; d < width; d++) product += centered[i * width + d] * axis[d];
        along[i] = product;
      }
      if (round === 39) break;
      const next = new Float64Array(width);
      for (let i = 0; i < count; i++) {
        for (let d = 0; d < width; d++) next[d] += along[i] * centered[i * width + d];
      }
      axis = next;
    }
    found.push(axis);
    // The sign of a component means nothing: its longer tail is bright. Outliers are cut off.
    const skew = along.reduce((sum, value) => sum + value ** 3, 0);
    const sorted = Float64Array.from(along).sort();
    const at = (share) => sorted[Math.round(share * (count - 1))];
    const [low, high] = [at(0.01), at(0.99)];
    for (let i = 0; i < count; i++) {
      const level = high > low ? (along[i] - low) / (high - low) : 0.5;
      colors[i * 3 + c] = 255 * (skew < 0 ? 1 - level : level);
    }
  }
  return colors;
}

/** The cosine of each of the tokens [count, width] to one of them, and colors from the lowest on. */
export function similarity(tokens, count, width, place) {
  const product = (i, j) => {
    let sum = 0;
    for (let d = 0; d < width; d++) sum += tokens[i * width + d] * tokens[j * width + d];
    return sum;
  };
  const own = product(place, place);
  const cosines = Array.from({ length: count }, (_, i) => {
    return product(i, place) / (Math.sqrt(product(i, i) * own) || 1);
  });
  const low = cosines.reduce((least, value) => Math.min(least, value), 1);
  const colors = new Uint8ClampedArray(count * 3);
  cosines.forEach((value, i) => {
    const level = low < 1 ? Math.min(1, (value - low) / (1 - low)) : 1;
    colors.set(colorAt(VIRIDIS, level), i * 3);
  });
  return { cosines, colors };
}
