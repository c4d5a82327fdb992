// One image, asked at every size: one after the other, so that the times are those of an idle model.
// model.js answers: server.js asks the server that sent this page, browser.js runs an exported file right here.
import { ask, describe, look } from "./model.js";

const at = (id) => document.getElementById(id);
const CARDS = 7;
const SOON_MS = 150;
const state = { about: null, image: null, token: "", asking: null, later: 0, shown: new Map() };
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const time = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

function bar(element, share) {
  element.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
}

function text(tag, name, content) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = content;
  return made;
}

const WHY = {
  usual: "the best size, as nothing stands against it",
  asked: "the size you asked for",
  deadline: "the best size within the deadline",
  load: "the best size that keeps up with the load",
  cascade: "small first, larger where unsure",
};

function show(answer) {
  const [first] = answer.predictions;
  at("said").textContent = `${first.name}, ${percent(first.probability)}`;
  const spent = answer.milliseconds;
  at("how").textContent =
    `at ${answer.size} px (${WHY[answer.reason]}): ${time(spent.compute)} of the model, ${time(spent.read)} to read the image`;
  at("answer").dataset.size = answer.size;
  if (answer.reason !== "asked") {
    at("dial").value = answer.size.split("x")[0];
    at("side").textContent = `${answer.size} px`;
  }
  at("guesses").replaceChildren(
    ...answer.predictions.map((guess) => {
      const row = document.createElement("li");
      row.dataset.label = guess.label;
      row.dataset.probability = guess.probability;
      row.append(text("span", "", guess.name), text("span", "", percent(guess.probability)));
      bar(row, guess.probability);
      return row;
    }),
  );
}

function sides() {
  const all = state.about.sizes.map((each) => each.size);
  if (all.length <= CARDS) return all;
  return [...new Set(Array.from({ length: CARDS }, (_, i) => all[Math.round((i * (all.length - 1)) / (CARDS - 1))]))];
}

function area(size) {
  const [height, width] = size.split("x").map(Number);
  return height * (width || height);
}

function card(size) {
  let made = state.shown.get(size);
  if (made) return made;
  made = text("li", "card", "");
  made.dataset.size = size;
  made.append(text("h3", "", `${size} px`));
  for (const name of ["name", "share", "ms"]) made.append(text("p", name, ""));
  const known = state.about.sizes.find((each) => each.size === size);
  if (known && known.quality !== null) {
    const value = state.about.unit === "%" ? percent(known.quality) : `${known.quality.toPrecision(3)} ${state.about.unit}`;
    made.append(text("p", "quality", `${state.about.metric} ${value}`));
  }
  state.shown.set(size, made);
  const all = [...state.shown.keys()].sort((a, b) => area(a) - area(b));
  at("sizes").replaceChildren(...all.map((each) => state.shown.get(each)));
  return made;
}

function fill(size, answer) {
  const made = card(size);
  const [first] = answer.predictions;
  made.dataset.probability = first.probability;
  made.dataset.label = first.label;
  made.querySelector(".name").textContent = first.name;
  const share = made.querySelector(".share");
  share.textContent = percent(first.probability);
  bar(share, first.probability);
  made.querySelector(".ms").textContent = `${time(answer.milliseconds.compute)} of the model`;
}

function mark(size) {
  for (const [each, made] of state.shown) made.classList.toggle("best", each === size);
}

function place(values) {
  const [rows, columns] = [values.length, values[0].length];
  const all = values.flat();
  const best = all.indexOf(Math.max(...all));
  const of = (at, count, names) => names[Math.min(2, Math.floor((3 * (at + 0.5)) / count))];
  const row = of(Math.floor(best / columns), rows, ["top", "middle", "bottom"]);
  const column = of(best % columns, columns, ["left", "center", "right"]);
  return `brightest at the ${row} ${column} (${rows} x ${columns} positions)`;
}

async function showMap(answer, signal) {
  if (state.about.map === null) return;
  at("map").hidden = false;
  at("heat").hidden = true;
  at("seen").textContent = "Looking ...";
  try {
    const { what, values, picture } = await look(state.image, answer, state.token, signal);
    const said = `${what}, at ${answer.size} px; ${place(values)}`;
    URL.revokeObjectURL(at("heat").src);
    at("heat").src = picture;
    at("heat").alt = said;
    at("heat").hidden = false;
    at("seen").textContent = said;
    at("map").dataset.size = answer.size;
  } catch (error) {
    if (error.name !== "AbortError") at("seen").textContent = `No map: ${error.message}`;
  }
}

async function answer(sizes) {
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  at("answer").setAttribute("aria-busy", "true");
  at("trouble").textContent = "";
  try {
    let first = null;
    for (const size of sizes) {
      const found = await ask(state.image, size, state.token, asking.signal);
      fill(found.size, found);
      if (!first) {
        show(found);
        mark(found.size);
        first = found;
      }
    }
    at("answer").dataset.done = String(Number(at("answer").dataset.done ?? 0) + 1);
    await showMap(first, asking.signal);
  } catch (error) {
    tell(error);
  } finally {
    if (state.asking === asking) at("answer").setAttribute("aria-busy", "false");
  }
}

function everySize(first) {
  answer([...new Set([first, ...sides()])]);
}

function take(file) {
  if (!file) return;
  state.image = file;
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  at("hint").hidden = true;
  at("dial").disabled = at("auto").disabled = false;
  everySize(at("dial").value);
}

function turn() {
  at("side").textContent = `${at("dial").value} px`;
  clearTimeout(state.later);
  state.later = setTimeout(() => {
    if (!state.image) return;
    const left = sides().filter((size) => !state.shown.get(size)?.dataset.probability);
    answer([at("dial").value, ...left]);
  }, SOON_MS);
}

async function begin() {
  const about = (state.about = await describe(state.token));
  at("about").textContent = `${about.model}, ${about.classes} classes, run by ${about.engine}`;
  at("note").textContent = about.note ?? "";
  const dial = at("dial");
  dial.min = Math.max(32, about.least_side);
  dial.max = about.most_side;
  dial.value = about.usual.split("x")[0];
  at("side").textContent = `${dial.value} px`;
  at("curve").textContent = about.metric
    ? `${about.metric} is of the run's held-out images; a framed size is the one shown above.`
    : "This run has no measured curve yet: `anyres curve` measures how good each size is.";
  state.shown.clear();
  sides().forEach(card);
}

function tell(error) {
  if (error.name === "AbortError") return;
  if (error.locked) at("access").hidden = false;
  at("trouble").textContent = error.message;
}

at("file").addEventListener("change", (event) => take(event.target.files[0]));
at("dial").addEventListener("input", turn);
at("auto").addEventListener("click", () => answer(["auto"]));
at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = at("token").value.trim();
  at("access").hidden = true;
  at("trouble").textContent = "";
  begin().catch(tell);
});
const drop = at("drop");
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.remove("over");
  });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
begin().catch(tell);
