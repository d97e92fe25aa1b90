// From a file's bytes to the pixels that the model takes, by the rules of gkd_core/data/images.py.

import { decodeJpeg, isJpeg, orientation, turned } from "./jpeg.js";
import { fit } from "./resample.js";

const MOST = 1 << 26; // pixels that are decoded

/**
 * @param {Blob} blob a picture's file.
 * @param {{side: number, channels: number, crop: string}} form what the model takes.
 * @param {WebAssembly.Module} library jpeg.wasm, compiled.
 * @returns {Promise<Uint8Array>} side × side × channels.
 * @throws {Error} it cannot be read; the message says why.
 */
export async function readPicture(blob, form, library) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (isJpeg(bytes)) {
    try {
      return readJpeg(bytes, form, library);
    } catch {} // CMYK, damaged: the browser may know
  }
  return squared(await decodedByBrowser(blob), form);
}

/** The same of a JPEG alone; needs no browser. */
export function readJpeg(bytes, form, library) {
  return squared(turned(decodeJpeg(library, bytes, form.side, MOST), orientation(bytes)), form);
}

function squared(rgb, { side, channels, crop }) {
  return fit(channels === 3 ? rgb : { ...rgb, data: grey(rgb.data) }, side, channels, crop);
}

async function decodedByBrowser(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("This browser cannot read that as a picture.");
  }
  const { width, height } = bitmap;
  if (width * height > MOST) throw new Error(`That picture is ${width} × ${height} pixels large: make it smaller.`);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`This browser has no memory for ${width} × ${height} pixels: make the picture smaller.`);
  context.fillStyle = "#fff"; // transparency is laid over white
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { data, width, height };
}

/** ITU-R BT.601, in Pillow's integers. */
function grey(rgb) {
  const result = new Uint8Array(rgb.length / 3);
  for (let to = 0, from = 0; to < result.length; to++, from += 3) {
    result[to] = (rgb[from] * 19595 + rgb[from + 1] * 38470 + rgb[from + 2] * 7471 + 0x8000) >> 16;
  }
  return result;
}
