// Pillow's resize with antialiasing (Resample.c of its version 13), bit for bit: bilinear, two passes, 8 bits between
// them, weights in fixed point. A canvas would resize otherwise, and the model would see other pixels than it was trained
// on.

const PRECISION = 22; // bits after the point: 32 − 8 of the pixel − 2
const BORDER = 128; // grey, of the crop "border"

/**
 * The square that the model sees: `fit` of gkd_core/data/images.py.
 *
 * @param {{data: Uint8Array, width: number, height: number}} image `channels` bytes a pixel, row by row.
 * @param {number} side of the square, in pixels.
 * @param {number} channels 1 or 3.
 * @param {string} crop "center": the centre square; "squash": all of it, out of proportion; "border": all of it between
 *   grey borders.
 * @returns {Uint8Array} side × side × channels.
 */
export function fit(image, side, channels, crop) {
  const { data, width, height } = image;
  if (width === side && height === side) return data;
  if (crop === "squash") return resize(image, channels, side, side, [0, 0, width, height]);
  if (crop === "border") return bordered(image, side, channels);
  const square = Math.min(width, height);
  const [left, top] = [(width - square) * 0.5, (height - square) * 0.5];
  return resize(image, channels, side, side, [left, top, left + square, top + square]);
}

function bordered(image, side, channels) {
  const { width, height } = image;
  const [wide, high] = [
    width >= height ? side : halfToEven((width / height) * side),
    width <= height ? side : halfToEven((height / width) * side),
  ];
  const result = new Uint8Array(side * side * channels).fill(BORDER);
  if (!wide || !high) return result;
  const inner = resize(image, channels, wide, high, [0, 0, width, height]);
  const [left, top] = [halfToEven((side - wide) * 0.5), halfToEven((side - high) * 0.5)];
  for (let row = 0; row < high; row++) {
    const line = inner.subarray(row * wide * channels, (row + 1) * wide * channels);
    result.set(line, ((top + row) * side + left) * channels);
  }
  return result;
}

/** Python's `round`. */
function halfToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

/** Of `image` the box [left, top, right, bottom], resized; the box is in floats of 32 bits, as Pillow has it. */
export function resize(image, channels, wide, high, box) {
  const { width, height } = image;
  const [left, top, right, bottom] = box.map(Math.fround);
  const across = width === wide && !left && right === wide ? null : windows(width, left, right, wide);
  const down = height === high && !top && bottom === high ? null : windows(height, top, bottom, high);
  const { data } = image;
  if (!across && !down) return data.slice();
  if (!across) return columns(data, width, down, channels, 0);
  if (!down) return rows(data, width, 0, height, across, channels);
  if (height > high && height - high > 2 * (width - wide)) { // as Pillow does from version 13 on
    return rows(columns(data, width, down, channels, 0), width, 0, high, across, channels);
  }
  const [first, last] = [down[0].from, down.at(-1).from + down.at(-1).weights.length]; // rows that are needed
  return columns(rows(data, width, first, last, across, channels), wide, down, channels, first);
}

/** For each pixel of the result which pixels it is made from, and their weights. */
function windows(size, start, end, length) {
  const scale = Math.fround(end - start) / length;
  const reach = Math.max(scale, 1); // the triangle's half width
  return Array.from({ length }, (_, place) => {
    const centre = start + (place + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - reach + 0.5));
    const count = Math.min(size, Math.trunc(centre + reach + 0.5)) - from;
    const shares = new Float64Array(count);
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const distance = Math.abs((i + from - centre + 0.5) * (1 / reach));
      shares[i] = distance < 1 ? 1 - distance : 0;
      sum += shares[i];
    }
    return { from, weights: Int32Array.from(shares, (share) => 0.5 + (sum ? share / sum : share) * (1 << PRECISION)) };
  });
}

const HALF = 1 << (PRECISION - 1);
const clipped = (sum) => Math.min(255, Math.max(0, sum >> PRECISION));

function rows(data, width, first, last, across, channels) {
  const result = new Uint8Array((last - first) * across.length * channels);
  let to = 0;
  for (let row = first; row < last; row++) {
    for (const { from, weights } of across) {
      const start = (row * width + from) * channels;
      for (let channel = 0; channel < channels; channel++) {
        let sum = HALF;
        for (let i = 0, at = start + channel; i < weights.length; i++, at += channels) sum += data[at] * weights[i];
        result[to++] = clipped(sum);
      }
    }
  }
  return result;
}

/** `data` begins with the picture's row `first`. */
function columns(data, width, down, channels, first) {
  const line = width * channels;
  const result = new Uint8Array(down.length * line);
  let to = 0;
  for (const { from, weights } of down) {
    const start = (from - first) * line;
    for (let column = 0; column < line; column++) {
      let sum = HALF;
      for (let i = 0, at = start + column; i < weights.length; i++, at += line) sum += data[at] * weights[i];
      result[to++] = clipped(sum);
    }
  }
  return result;
}
