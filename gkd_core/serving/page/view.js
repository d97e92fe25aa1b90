// What the server's page and a bundle's page (gkd_core/export/web) have in common: the drop zone, the bars, the words.

const TINY = 128; // pixels; smaller pictures are shown with visible pixels

export const at = (id) => document.getElementById(id);

/** The status line: what goes on, or what is wrong. */
export function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

/** What the model is for, and where it comes from. */
export function introduce(names, lineage) {
  const some = names.slice(0, 12).join(", ") + (names.length > 12 ? ", …" : "");
  at("about").textContent = `Tells ${names.length} classes apart: ${some}.`;
  at("lineage").textContent = lineage.filter(Boolean).join(" · ");
}

/** The picture in the drop zone. */
export function preview(file) {
  const image = at("preview");
  if (image.src) URL.revokeObjectURL(image.src);
  image.classList.remove("tiny");
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < TINY);
  image.onerror = () => { image.hidden = true; };
  image.src = URL.createObjectURL(file);
  image.alt = `The picture ${file.name}`;
  image.hidden = false;
  at("invitation").textContent = "Drop another, or choose one";
}

/**
 * The answer: a sentence, and a bar for each {class, probability}.
 *
 * @param {object[]} predictions the likeliest first.
 * @param {string|null|undefined} decision the class, null for none of these, undefined of a model that does not decide.
 */
export function tell(predictions, decision) {
  const [likeliest] = predictions;
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
  at("result").classList.toggle("unsure", decision === null);
  say(decision === null
    ? `None of these; the likeliest would be ${likeliest.class}`
    : `It looks like: ${decision ?? likeliest.class}`);
}

/** Calls `take` with each file that is chosen or dropped. */
export function onPicture(take) {
  at("file").addEventListener("change", (event) => {
    if (event.target.files.length) take(event.target.files[0]);
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
    if (file) take(file); else say("That was no file.", true);
  });
}
