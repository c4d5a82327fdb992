// Asks the exported file beside this page: it runs in a worker of this browser, and no image leaves the machine.
const TOP = 5;
const WITHIN = 1e-3; // of a probability, between this browser and the model
const WINDOWS = [3, 8]; // the fewest and the most of a map, on a side
const LOOK_MS = 3000; // for a map, about
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let about = null;
let given = null; // the image that the worker has
let turn = Promise.resolve();

worker.addEventListener("message", ({ data }) => {
  const { done, failed } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) failed(new Error(data.error));
  else done(data);
});
worker.addEventListener("error", (event) => {
  for (const { failed } of waiting.values()) failed(new Error(event.message || "worker.js cannot be loaded"));
  waiting.clear();
});

let asked = 0;
function call(values) {
  return new Promise((done, failed) => {
    waiting.set(++asked, { done, failed });
    worker.postMessage({ id: asked, ...values });
  });
}

function sides(size) {
  const [height, width] = size.split("x").map(Number);
  return [height, width || height];
}

// What the model itself said of one small picture, asked here: another engine, another processor, the same answers.
async function check() {
  let apart = 0;
  for (const { pixels, height, width, size, probabilities } of about.check) {
    const data = Uint8Array.from(atob(pixels), (each) => each.charCodeAt(0));
    const made = await call({ picture: { data, height, width }, size: sides(size) });
    probabilities.forEach((share, k) => (apart = Math.max(apart, Math.abs(share - made.probabilities[k]))));
  }
  if (!(apart <= WITHIN)) throw new Error(`this browser answers otherwise than the model: ${apart.toPrecision(1)} off`);
  return `Answers here are the model's: asked at ${about.check.map((each) => `${each.size} px`).join(" and ")}, ` +
    `probabilities are within ${apart.toPrecision(1)}. Images stay in this browser.`;
}

export async function describe() {
  const response = await fetch("about.json");
  if (!response.ok) throw new Error(`about.json cannot be read: ${response.statusText || response.status}`);
  about = await response.json();
  await call({ file: about.file, channels: about.channels, mean: about.mean });
  return { ...about, classes: about.names.length, engine: "onnxruntime-web in this browser", note: await check() };
}

// One after another: the worker has one engine.
function inTurn(work) {
  const mine = turn.then(work);
  turn = mine.catch(() => {});
  return mine;
}

export function ask(image, size, _token, signal) {
  return inTurn(async () => {
    signal.throwIfAborted();
    const wanted = size === "auto" ? about.usual : size;
    const news = image === given ? {} : { image };
    given = null;
    const { probabilities, read, compute } = await call({ ...news, size: sides(wanted) });
    given = image;
    signal.throwIfAborted();
    const labels = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
    return {
      predictions: labels
        .slice(0, TOP)
        .map((label) => ({ label, name: about.names[label], probability: probabilities[label] })),
      size: wanted,
      reason: size === "auto" ? "usual" : "asked",
      milliseconds: { read, compute },
    };
  });
}

// By how much the likeliest class falls where a window is covered: of any model, and from the answers alone.
export function look(_image, answer, _token, signal) {
  const [best] = answer.predictions;
  const across = Math.floor(Math.sqrt(LOOK_MS / answer.milliseconds.compute));
  const windows = Math.max(WINDOWS[0], Math.min(WINDOWS[1], across));
  return inTurn(async () => {
    const values = [];
    for (let row = 0; row < windows; row++) {
      signal.throwIfAborted();
      const { shares } = await call({ cover: { row, windows, label: best.label }, size: sides(answer.size) });
      values.push(shares.map((share) => Math.max(0, Math.log(best.probability / share))));
    }
    signal.throwIfAborted();
    const { blob } = await call({ paint: values });
    return { what: `By how much ${best.name} falls where a window is covered`, values, picture: URL.createObjectURL(blob) };
  });
}
