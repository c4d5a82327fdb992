// Images -> pixels -> probabilities, away from the page, so that it stays alive meanwhile. WebAssembly on one thread.
import * as ort from "./ort.wasm.bundle.min.mjs";

const LARGE = 2 ** 25; // pixels, beyond which an image is read at a whole fraction
const ROOM = 4; // times the longest side that the model sees: the least short side of a fraction
const SIDE = 336; // pixels of a map's longer side
const [LEAST, MOST] = [0.15, 0.75]; // how much of a map's color covers the picture
const INFERNO = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
let session = null;
let channels = 3;
let mean = [0, 0, 0]; // of each channel, 0 to 255
let whole = null; // the last picture that was given
let basis = null; // the same for a map, perhaps smaller

async function open(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file} cannot be read: ${response.statusText || response.status}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

// As `anyres` decodes: upright by EXIF, color profiles left alone, alpha laid on white.
async function decode(image) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error("The image cannot be read: give a JPEG, PNG, WebP or another picture that this browser shows");
  }
  const { width, height } = bitmap;
  const paper = new OffscreenCanvas(width, height).getContext("2d", { alpha: false, willReadFrequently: true });
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, width, height);
  paper.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: inChannels(paper.getImageData(0, 0, width, height).data), width, height };
}

function inChannels(rgba) {
  const made = new Uint8Array((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += channels) {
    if (channels === 1) made[to] = (19595 * rgba[from] + 38470 * rgba[from + 1] + 7471 * rgba[from + 2] + 32768) >> 16;
    else for (let c = 0; c < 3; c++) made[to + c] = rgba[from + c];
  }
  return made;
}

// Means of squares of `factor` x `factor` pixels; those at the right and lower edge are of what is left.
function reduced({ data, width, height }, factor) {
  const [w, h] = [Math.ceil(width / factor), Math.ceil(height / factor)];
  const made = new Uint8Array(w * h * channels);
  for (let y = 0, to = 0; y < h; y++) {
    const bottom = Math.min((y + 1) * factor, height);
    for (let x = 0; x < w; x++) {
      const right = Math.min((x + 1) * factor, width);
      for (let c = 0; c < channels; c++, to++) {
        let sum = 0;
        for (let row = y * factor; row < bottom; row++)
          for (let column = x * factor; column < right; column++) sum += data[(row * width + column) * channels + c];
        made[to] = Math.floor(sum / ((bottom - y * factor) * (right - x * factor)) + 0.5);
      }
    }
  }
  return { data: made, width: w, height: h };
}

function fitting(picture, size) {
  const { width, height } = picture;
  if (width * height <= LARGE) return picture;
  const factor = Math.floor(Math.min(width, height) / (ROOM * Math.max(...size)));
  return factor < 2 ? picture : reduced(picture, factor);
}

async function answer({ image, picture, size }) {
  const start = performance.now();
  if (image) whole = await decode(image);
  const { data, width, height } = picture ?? fitting(whole, size);
  const ready = performance.now();
  const given = {
    image: new ort.Tensor("uint8", data, [1, height, width, channels]),
    size: new ort.Tensor("int64", BigInt64Array.from(size, BigInt), [2]),
  };
  const { probabilities } = await session.run(given);
  const compute = performance.now() - ready;
  if (!probabilities.data.every(Number.isFinite)) throw new Error("The model answers with numbers that are not finite");
  return { probabilities: probabilities.data, read: ready - start, compute };
}

// A class's share where one window after another of a row is of the mean color.
async function covered({ cover: { row, windows, label }, size }) {
  if (row === 0) {
    const factor = Math.floor(Math.min(whole.width, whole.height) / Math.max(...size));
    basis = factor < 2 ? whole : reduced(whole, factor);
  }
  const { data, width, height } = basis;
  const [top, bottom] = [row, row + 1].map((edge) => Math.round((edge * height) / windows));
  const shares = [];
  for (let column = 0; column < windows; column++) {
    const [left, right] = [column, column + 1].map((edge) => Math.round((edge * width) / windows));
    const made = data.slice();
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) made.set(mean, (y * width + x) * channels);
    const { probabilities } = await answer({ picture: { data: made, width, height }, size });
    shares.push(Math.max(probabilities[label], Number.MIN_VALUE));
  }
  return { shares };
}

// The picture in gray with the map over it, as `anyres look` draws it.
async function painted(values) {
  const scale = Math.min(1, SIDE / Math.max(whole.width, whole.height));
  const [width, height] = [whole.width, whole.height].map((side) => Math.max(1, Math.round(scale * side)));
  const paper = new OffscreenCanvas(width, height);
  const drawn = paper.getContext("2d");
  const pixels = drawn.createImageData(width, height);
  const most = Math.max(...values.flat()) || 1;
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      const from = (Math.floor((y * whole.height) / height) * whole.width + Math.floor((x * whole.width) / width)) * channels;
      const [r, g, b] = channels === 1 ? Array(3).fill(whole.data[from]) : whole.data.subarray(from, from + 3);
      const gray = 0.299 * r + 0.587 * g + 0.114 * b;
      const row = values[Math.floor((y * values.length) / height)];
      const heat = row[Math.floor((x * row.length) / width)] / most;
      const share = LEAST + (MOST - LEAST) * heat;
      const at = heat * (INFERNO.length - 1);
      const [below, above] = [INFERNO[Math.floor(at)], INFERNO[Math.ceil(at)]];
      for (let c = 0; c < 3; c++)
        pixels.data[to + c] = (1 - share) * gray + share * (below[c] + (at % 1) * (above[c] - below[c]));
      pixels.data[to + 3] = 255;
    }
  }
  drawn.putImageData(pixels, 0, 0);
  return { blob: await paper.convertToBlob({ type: "image/jpeg", quality: 0.86 }) };
}

async function work({ file, ...given }) {
  if (given.cover) return covered(given);
  if (given.paint) return painted(given.paint);
  if (!file) return answer(given);
  channels = given.channels;
  mean = given.mean.map((share) => Math.round(255 * share));
  await open(file);
  return {};
}

self.addEventListener("message", async ({ data: { id, ...given } }) => {
  try {
    self.postMessage({ id, ...(await work(given)) });
  } catch (error) {
    self.postMessage({ id, error: error?.message || String(error) });
  }
});
