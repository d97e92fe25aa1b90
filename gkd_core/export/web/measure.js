// How long an answer takes without a browser: `node measure.js [PHOTO.jpg …]`, one line of JSON. V8 is also Chromium's.

import { readFile } from "node:fs/promises";
import { cpus } from "node:os";
import { openModel } from "./model.js";
import { readJpeg } from "./picture.js";

// V8 compiles the runtime again, to faster code, while it runs: hence the long warm-up.
const WARM_UP = { runs: 20, least_ms: 1000, most_ms: 20000 };
const MEASURED = { runs: 30, least_ms: 1000, most_ms: 20000 };
const read = (name) => readFile(new URL(name, import.meta.url));
const now = () => performance.now();

/** What each answer took, in ms, the shortest first: so many at least, unless that takes too long (then five at least). */
async function times(ask, pixels, { runs, least_ms, most_ms }) {
  const taken = [];
  const start = now();
  for (let passed = 0; taken.length < 5 || (passed < most_ms && (taken.length < runs || passed < least_ms)); ) {
    const before = now();
    await ask(pixels);
    taken.push(now() - before);
    passed = now() - start;
  }
  return taken.sort((a, b) => a - b);
}

async function measure(files) {
  const start = now();
  const facts = JSON.parse(await read("facts.json"));
  const library = await WebAssembly.compile(await read("jpeg.wasm"));
  const ask = await openModel(facts, await read(facts.file), await read("ort.wasm"));
  const load_ms = now() - start;

  // Each value of 0 to 255, in no order that a network was made for.
  const pixels = Uint8Array.from({ length: facts.side ** 2 * facts.channels }, (_, i) => (i * 89 + (i >> 8) * 57) & 255);
  await times(ask, pixels, WARM_UP);
  const taken = await times(ask, pixels, MEASURED);

  const photos = [];
  for (const file of files) {
    const bytes = new Uint8Array(await readFile(file));
    const before = now();
    const seen = readJpeg(bytes, facts, library);
    photos.push({ file, picture_ms: now() - before, ...(await ask(seen)) });
  }
  return {
    load_ms,
    median_ms: taken[Math.floor(taken.length / 2)],
    p95_ms: taken[Math.ceil(0.95 * taken.length) - 1],
    runs: taken.length,
    asked: await ask(pixels),
    photos,
    node: process.version,
    processor: cpus()[0]?.model ?? "",
  };
}

measure(process.argv.slice(2)).then(
  (result) => console.log(JSON.stringify(result)),
  (error) => {
    console.error(String(error.message ?? error).split("\n")[0]);
    process.exitCode = 1;
  },
);
