// The model in onnxruntime's WebAssembly, on one thread: more need headers that few static servers send.

import * as ort from "./ort.js";

/**
 * @param {object} facts facts.json.
 * @param {ArrayBuffer} content of the model's file.
 * @param {ArrayBuffer} runtime ort.wasm.
 * @returns {Promise<function(Uint8Array): Promise<object>>} from one image's pixels to what `answer` gives.
 */
export async function openModel(facts, content, runtime) {
  ort.env.wasm.wasmBinary = runtime;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(new Uint8Array(content), { executionProviders: ["wasm"] });
  return async (pixels) => {
    const outputs = await session.run({ [facts.input_name]: asInput(pixels, facts) });
    return answer(outputs, facts);
  };
}

/** uint8 [1, H, W, C] as it is, or float32 [1, C, H, W] in [0, 1]. */
function asInput(pixels, { input, side, channels }) {
  if (input === "uint8_nhwc") return new ort.Tensor("uint8", pixels, [1, side, side, channels]);
  const plane = side * side;
  const values = new Float32Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) values[(i % channels) * plane + Math.floor(i / channels)] = pixels[i] / 255;
  return new ort.Tensor("float32", values, [1, channels, side, side]);
}

/**
 * Logits; probabilities, which the model gives itself where it was calibrated; and, where it decides, the number of the
 * class, −1 for none of these.
 */
function answer(outputs, facts) {
  const logits = Array.from(outputs[facts.output].data);
  const probabilities = outputs.probabilities ? Array.from(outputs.probabilities.data) : softmax(logits);
  return { logits, probabilities, decision: outputs.decision && Number(outputs.decision.data[0]) };
}

function softmax(logits) {
  const highest = Math.max(...logits);
  const exponentials = logits.map((value) => Math.exp(value - highest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}
