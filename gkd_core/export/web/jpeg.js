// JPEG by libjpeg-turbo (jpeg.wasm), the library that Pillow decodes with: the same bits in every browser, and large
// photos at a half, a quarter or an eighth of their size, as gkd_core/data/images.py has Pillow do it.

const RGB = 0; // libjpeg-turbo's TJPF_RGB
const SCALES = [8, 4, 2, 1];

export const isJpeg = (bytes) => bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;

/**
 * @param {WebAssembly.Module} library jpeg.wasm, compiled.
 * @param {Uint8Array} bytes of the file.
 * @param {number} side a scale is taken at which both sides stay twice as long.
 * @param {number} most pixels that are decoded.
 * @returns {{data: Uint8Array, width: number, height: number}} RGB, not yet turned.
 * @throws {Error} it cannot be decoded here: damaged, CMYK, or too large.
 */
export function decodeJpeg(library, bytes, side, most) {
  const nothing = () => 0;
  const wasi = ["proc_exit", "environ_sizes_get", "environ_get", "fd_close", "fd_seek", "fd_write"];
  const turbo = new WebAssembly.Instance(library, { // one a picture: its memory goes with it, and whatever went wrong
    env: { setjmp: nothing, longjmp() { throw new Error("libjpeg-turbo cannot decode it"); } },
    wasi_snapshot_preview1: Object.fromEntries(wasi.map((name) => [name, nothing])),
  }).exports;
  const memory = (length) => {
    const place = turbo.malloc(length);
    if (!place) throw new Error("it is too large");
    return place;
  };
  const file = memory(bytes.length);
  new Uint8Array(turbo.memory.buffer, file, bytes.length).set(bytes);
  const decoder = turbo.tjInitDecompress();
  const header = memory(16);
  const status = turbo.tjDecompressHeader3(decoder, file, bytes.length, header, header + 4, header + 8, header + 12);
  if (status) throw new Error("its header is damaged");
  const [full, tall] = new Int32Array(turbo.memory.buffer, header, 2);
  const ratio = Math.min(Math.floor(full / (2 * side)), Math.floor(tall / (2 * side)));
  const scale = SCALES.find((value) => ratio >= value) ?? 1;
  const [width, height] = [Math.ceil(full / scale), Math.ceil(tall / scale)];
  if (width * height > most) throw new Error("it is too large");
  const pixels = memory(width * height * 3);
  if (turbo.tjDecompress2(decoder, file, bytes.length, pixels, width, width * 3, height, RGB, 0)) {
    throw new Error("its data is damaged");
  }
  return { data: new Uint8Array(turbo.memory.buffer, pixels, width * height * 3), width, height };
}

/** How a JPEG is to be turned, 1 to 8: EXIF's field, else XMP's; 1 where neither is there. */
export function orientation(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, Math.min(to, bytes.length)));
  let xmp = 0;
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    const end = at + 2 + view.getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && end <= bytes.length) {
      if (text(at + 4, at + 10) === "Exif\0\0") {
        const found = exif(new DataView(bytes.buffer, bytes.byteOffset + at + 10, end - at - 10));
        if (found !== null) return found;
      } else if (text(at + 4, at + 33) === "http://ns.adobe.com/xap/1.0/\0") {
        const said = new TextDecoder().decode(bytes.subarray(at + 33, end)).match(/tiff:Orientation(?:="|>)([0-9])/);
        if (said) xmp = Number(said[1]);
      }
    }
    at = end;
  }
  return xmp || 1;
}

function exif(tiff) {
  try {
    const little = tiff.getUint16(0) === 0x4949;
    const directory = tiff.getUint32(4, little);
    for (let i = 0; i < tiff.getUint16(directory, little); i++) {
      const entry = directory + 2 + 12 * i;
      if (tiff.getUint16(entry, little) !== 0x0112) continue;
      const long = tiff.getUint16(entry + 2, little) === 4;
      return long ? tiff.getUint32(entry + 8, little) : tiff.getUint16(entry + 8, little);
    }
  } catch {} // it points outside itself
  return null;
}

/** The picture upright, by the number that `orientation` gives. */
export function turned(image, how) {
  if (!(how >= 2 && how <= 8)) return image;
  const { data, width, height } = image;
  const [wide, high] = how >= 5 ? [height, width] : [width, height];
  const mirrored = [2, 3, 7, 8].includes(how); // along the file's rows
  const upsideDown = [3, 4, 6, 7].includes(how);
  const result = new Uint8Array(data.length);
  for (let y = 0, to = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const [across, down] = how >= 5 ? [y, x] : [x, y];
      const column = mirrored ? width - 1 - across : across;
      const row = upsideDown ? height - 1 - down : down;
      const from = (row * width + column) * 3;
      result[to++] = data[from];
      result[to++] = data[from + 1];
      result[to++] = data[from + 2];
    }
  }
  return { data: result, width: wide, height: high };
}
