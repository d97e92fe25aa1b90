// How long an answer takes without a browser: `node measure.js [PHOTO.jpg …]`, one line of JSON. V8 is also Chromium's.

import { readFile } from "node:fs/promises";
import { cpus } from "node:os";
import { openModel } from "./model.js";
import { readJpeg } from "./picture.js";

const WARM_UP = 3;
const RUNS = 30;
const read = (name) => readFile(new URL(name, import.meta.url));
const now = () => performance.now();

async function measure(files) {
  const start = now();
  const facts = JSON.parse(await read("facts.json"));
  const library = await WebAssembly.compile(await read("jpeg.wasm"));
  const ask = await openModel(facts, await read(facts.file), await read("ort.wasm"));
  const load_ms = now() - start;

  // Each value of 0 to 255, in no order that a network was made for.
  const pixels = Uint8Array.from({ length: facts.side ** 2 * facts.channels }, (_, i) => (i * 89 + (i >> 8) * 57) & 255);
  const times = [];
  let asked;
  for (let run = 0; run < WARM_UP + RUNS; run++) {
    const before = now();
    asked = await ask(pixels);
    if (run >= WARM_UP) times.push(now() - before);
  }
  times.sort((a, b) => a - b);

  const photos = [];
  for (const file of files) {
    const bytes = new Uint8Array(await readFile(file));
    const before = now();
    const seen = readJpeg(bytes, facts, library);
    photos.push({ file, picture_ms: now() - before, ...(await ask(seen)) });
  }
  return {
    load_ms, median_ms: times[RUNS / 2], p95_ms: times[Math.ceil(0.95 * RUNS) - 1], runs: RUNS, asked, photos,
    node: process.version, processor: cpus()[0]?.model ?? "",
  };
}

measure(process.argv.slice(2)).then(
  (result) => console.log(JSON.stringify(result)),
  (error) => {
    console.error(String(error.message ?? error).split("\n")[0]);
    process.exitCode = 1;
  },
);
