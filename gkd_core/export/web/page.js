// A picture is read and answered here, in the browser: nothing is sent anywhere.

import { openModel } from "./model.js";
import { readPicture } from "./picture.js";
import { at, introduce, onPicture, preview, say, tell } from "./view.js";

const SHOWN = 10; // classes

let turn = 0; // only the latest picture's answer is shown

async function fetched(name) {
  const reply = await fetch(name);
  if (!reply.ok) throw new Error(`${name} is missing beside this page (${reply.status}).`);
  return reply;
}

async function load() {
  const facts = await (await fetched("facts.json")).json();
  introduce(facts.classes, facts.lineage);
  at("rule").textContent = facts.rule; // of a model that decides
  const [model, runtime, jpeg] = await Promise.all(
    [facts.file, "ort.wasm", "jpeg.wasm"].map(async (name) => (await fetched(name)).arrayBuffer()),
  );
  const library = await WebAssembly.compile(jpeg);
  const ask = await openModel(facts, model, runtime);
  await ask(new Uint8Array(facts.side ** 2 * facts.channels)); // the first answer takes longer than any other
  return { facts, library, ask };
}

async function classify(file) {
  const mine = ++turn;
  preview(file);
  at("result").hidden = true;
  say("Looking …");
  try {
    const { facts, library, ask } = await loaded;
    const start = performance.now();
    const pixels = await readPicture(file, facts, library);
    const read = performance.now();
    const answer = await ask(pixels);
    const end = performance.now();
    if (mine !== turn) return;
    tell(...named(answer, facts.classes));
    at("time").textContent =
      `On this device: picture read in ${(read - start).toFixed(1)} ms, answered in ${(end - read).toFixed(1)} ms.`;
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

/** The likeliest classes, and the decision as `tell` takes it. */
function named({ probabilities, decision }, classes) {
  const rows = classes.map((name, number) => ({ class: name, probability: probabilities[number] }));
  rows.sort((a, b) => b.probability - a.probability);
  return [rows.slice(0, SHOWN), decision === undefined ? undefined : classes[decision] ?? null];
}

// The camera: a picture is taken as a PNG file, and goes the way of any other.

async function openCamera() {
  try {
    at("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await at("video").play();
    cameraIsOpen(true);
    turn += 1; // what is still being looked at shows no answer any more
    at("result").hidden = true; // it was another picture's
    say("");
    at("shoot").focus();
  } catch (error) {
    say(`The camera does not open: ${error.message}`, true);
  }
}

function closeCamera() {
  for (const track of at("video").srcObject?.getTracks() ?? []) track.stop();
  at("video").srcObject = null;
  cameraIsOpen(false);
  at("open").focus();
}

function cameraIsOpen(open) {
  for (const id of ["video", "shoot", "close"]) at(id).hidden = !open;
  for (const id of ["drop", "open", "private"]) at(id).hidden = open;
}

function shoot() {
  const video = at("video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob((blob) => classify(new File([blob], "of the camera", { type: "image/png" })), "image/png");
}

say("Loading the model …");
const loaded = load();
loaded.then(() => { if (!turn) say(""); }, (error) => say(error.message, true));
onPicture(classify);
if (navigator.mediaDevices?.getUserMedia) at("open").disabled = false;
else at("private").textContent += " The camera needs https or localhost.";
at("open").addEventListener("click", openCamera);
at("shoot").addEventListener("click", shoot);
at("close").addEventListener("click", closeCamera);
