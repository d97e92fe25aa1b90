"use strict";

// A picture is sent as it is: the server decodes and resizes it exactly as `gkd predict` does.
const LARGEST = 1 << 24; // bytes; larger files are made smaller here before they are sent
const SIDE = 2048; // pixels, of such a smaller picture
const SHOWN = 10; // classes

const at = (id) => document.getElementById(id);
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

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function introduce() {
  const known = await ask(`v2/models/${encodeURIComponent(model)}`);
  const facts = known.parameters;
  const names = facts.classes;
  const some = names.slice(0, 12).join(", ") + (names.length > 12 ? ", …" : "");
  at("about").textContent = `Tells ${names.length} classes apart: ${some}.`;
  const parts = [`version ${known.versions[0]}`, facts.network, facts.method && `distilled by ${facts.method}`,
    facts.precision, `model ${facts.model_sha256.slice(0, 12)}`, facts.data_sha256 && `data ${facts.data_sha256.slice(0, 12)}`];
  at("lineage").textContent = parts.filter(Boolean).join(" · ");
}

async function smaller(file) {
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.min(picture.width, picture.height));
  const canvas = new OffscreenCanvas(Math.ceil(picture.width * scale), Math.ceil(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

function preview(file) {
  const image = at("preview");
  if (image.src) URL.revokeObjectURL(image.src);
  image.classList.remove("tiny");
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 128);
  image.onerror = () => { image.hidden = true; };
  image.src = URL.createObjectURL(file);
  image.alt = `The picture ${file.name}`;
  image.hidden = false;
  at("invitation").textContent = "Drop another, or choose one";
}

function show(predictions) {
  at("bars").replaceChildren(...predictions.map((row) => {
    const share = `${(100 * row.probability).toFixed(1)} %`;
    const [item, name, bar, value] = ["li", "span", "progress", "span"].map((tag) => document.createElement(tag));
    name.className = "name";
    name.textContent = row.class;
    bar.max = 1;
    bar.value = row.probability;
    bar.setAttribute("aria-label", `${row.class}: ${share}`);
    value.className = "share";
    value.textContent = share;
    item.append(name, bar, value);
    return item;
  }));
  at("result").hidden = false;
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
    show(answer.predictions);
    const [likeliest] = answer.predictions;
    at("result").classList.toggle("unsure", answer.decision === null);
    say(answer.decision === null
      ? `None of these; the likeliest would be ${likeliest.class}`
      : `It looks like: ${likeliest.class}`);
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

at("file").addEventListener("change", (event) => {
  if (event.target.files.length) classify(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
for (const name of ["dragenter", "dragover"]) {
  window.addEventListener(name, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
window.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) classify(file); else say("That was no file.", true);
});
at("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = at("token").value;
  say("");
  try {
    await introduce();
    if (last) await classify(last);
  } catch (error) {
    say(error.message, true);
  }
});
introduce().catch((error) => say(error.message, true));
