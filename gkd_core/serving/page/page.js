import { at, introduce, onPicture, preview, say, tell } from "./view.js";

// A picture is sent as it is, unless it is very large: the server decodes and resizes it exactly as `gkd predict` does.
const LARGEST = 1 << 24; // bytes; larger files are made smaller here before they are sent
const SIDE = 2048; // pixels, of such a smaller picture
const SHOWN = 10; // classes

const model = document.body.dataset.model;
let token = "";
let last = null; // the picture to send again once there is a token
let turn = 0; // only the latest picture's answer is shown

async function ask(path, options = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const reply = await fetch(path, { ...options, headers });
  const content = await reply.json();
  at("access").hidden = reply.status !== 401;
  if (!reply.ok) throw new Error(content.error);
  return content;
}

async function meet() {
  const known = await ask(`v2/models/${encodeURIComponent(model)}`);
  const facts = known.parameters;
  introduce(facts.classes, [`version ${known.versions[0]}`, facts.network, facts.method && `distilled by ${facts.method}`,
    facts.precision, `model ${facts.model_sha256.slice(0, 12)}`, facts.data_sha256 && `data ${facts.data_sha256.slice(0, 12)}`]);
}

async function smaller(file) {
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.min(picture.width, picture.height));
  const canvas = new OffscreenCanvas(Math.ceil(picture.width * scale), Math.ceil(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

async function classify(file) {
  const mine = ++turn;
  last = file;
  preview(file);
  at("result").hidden = true;
  say("Looking …");
  try {
    const body = file.size > LARGEST ? await smaller(file) : file;
    const answer = await ask(`classify?top=${SHOWN}`, { method: "POST", body });
    if (mine !== turn) return;
    tell(answer.predictions, answer.decision);
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

onPicture(classify);
at("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = at("token").value;
  say("");
  try {
    await meet();
    if (last) await classify(last);
  } catch (error) {
    say(error.message, true);
  }
});
meet().catch((error) => say(error.message, true));
