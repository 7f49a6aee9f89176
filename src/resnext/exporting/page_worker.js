"use strict";
// The network of a page, in a worker: unpacking, resizing as Pillow does, ONNX Runtime Web.
// The gate runs the same text in Node.

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
const ONE = 1 << 22;  // Pillow's fixed point
const SIMILAR = 3;  // pictures of a class that are shown

const FILTERS = {  // by the distance in pixels, and the distance from which they are 0
  bilinear: [1, (x) => Math.max(1 - Math.abs(x), 0)],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0;
  }],
  lanczos: [3, (x) => Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0],
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

const plain = async (blob) => new Uint8Array(await blob.arrayBuffer());

async function unpacked(blob) {
  const text = await plain(blob);
  const values = new Uint8Array(128);
  for (let i = 0; i < 85; i++) values[DIGITS.charCodeAt(i)] = i;
  const groups = Math.ceil(text.length / 5);
  const bytes = new Uint8Array(4 * groups);
  for (let i = 0; i < groups; i++) {
    let value = 0;
    for (let j = 5 * i; j < 5 * i + 5; j++) value = 85 * value + (j < text.length ? values[text[j]] : 84);
    for (let j = 3; j >= 0; j--) {
      bytes[4 * i + j] = value % 256;
      value = Math.floor(value / 256);
    }
  }
  const packed = new Blob([bytes.subarray(0, Math.floor(4 * text.length / 5))]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// For each of `to` pixels, from `start` to `stop`, the first pixel of `from` that it is made of, and the shares of these.
function taps(from, to, filter, start = 0, stop = to) {
  const scale = from / to, found = [];
  if (filter === "nearest") {
    let at = scale / 2;
    for (let i = 0; i < stop; i++, at += scale) if (i >= start) found.push({ first: Math.floor(at), shares: [1] });
    return found;
  }
  const [reach, weight] = FILTERS[filter], wide = Math.max(scale, 1);
  for (let i = start; i < stop; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach * wide + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach * wide + 0.5), from);
    const shares = [];
    let sum = 0;
    for (let j = first; j < end; j++) {
      shares.push(weight((j - centre + 0.5) * (1 / wide)));
      sum += shares[j - first];
    }
    found.push({ first, shares: shares.map((share) => share / sum) });
  }
  return found;
}

function fixed({ first, shares }) {
  return { first, shares: shares.map((share) => Math.trunc(share * ONE + (share < 0 ? -0.5 : 0.5))) };
}

const level = (sum) => Math.min(Math.max(sum >> 22, 0), 255);

// A window of the resized picture; `data` has `step` values for a pixel, of which `channels` count.
function resized(data, step, channels, width, columns, rows) {
  const top = Math.min(...rows.map((row) => row.first));
  const bottom = Math.max(...rows.map((row) => row.first + row.shares.length));
  const wide = columns.length * channels;
  const between = new Uint8Array((bottom - top) * wide);
  for (let y = top; y < bottom; y++) {
    columns.forEach(({ first, shares }, x) => {
      for (let c = 0; c < channels; c++) {
        let sum = ONE / 2, at = (y * width + first) * step + c;
        for (let j = 0; j < shares.length; j++, at += step) sum += data[at] * shares[j];
        between[(y - top) * wide + x * channels + c] = level(sum);
      }
    });
  }
  const result = new Uint8Array(rows.length * wide);
  rows.forEach(({ first, shares }, y) => {
    for (let x = 0; x < wide; x++) {
      let sum = ONE / 2, at = (first - top) * wide + x;
      for (let j = 0; j < shares.length; j++, at += wide) sum += between[at] * shares[j];
      result[y * wide + x] = level(sum);
    }
  });
  return result;
}

const halfToEven = (x) => x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);

// Where the network looks along one axis of the resized picture, which has `length` pixels.
function span(length, size) {
  const start = halfToEven((Math.max(length, size) - size) / 2);
  const padding = Math.floor(Math.max(size - length, 0) / 2);
  const first = Math.max(start - padding, 0);
  return { first, end: Math.min(first + size, length), padding };
}

// Pixels as the network takes them, and the part of the picture that they show, in fractions.
function prepared({ width, height, data }, rule) {
  const { size, resize } = rule;
  const long = Math.floor(resize * Math.max(width, height) / Math.min(width, height));
  const [w, h] = width <= height ? [resize, long] : [long, resize];
  let step = 4, channels = 3;
  if (rule.colour === "L") {
    const grey = new Uint8Array(width * height);
    for (let i = 0; i < grey.length; i++) {
      grey[i] = (19595 * data[4 * i] + 38470 * data[4 * i + 1] + 7471 * data[4 * i + 2] + 32768) >> 16;
    }
    data = grey;
    step = channels = 1;
  }
  const across = span(w, size), down = span(h, size);
  const columns = taps(width, w, rule.interpolation, across.first, across.end).map(fixed);
  const rows = taps(height, h, rule.interpolation, down.first, down.end).map(fixed);
  const part = resized(data, step, channels, width, columns, rows);
  const pixels = new Uint8Array(size * size * channels);
  const line = columns.length * channels;
  for (let y = 0; y < rows.length; y++) {
    const start = ((y + down.padding) * size + across.padding) * channels;
    pixels.set(part.subarray(y * line, (y + 1) * line), start);
  }
  if (rule.colour === "BGR") {
    for (let i = 0; i < pixels.length; i += 3) [pixels[i], pixels[i + 2]] = [pixels[i + 2], pixels[i]];
  }
  const left = (across.first - across.padding) / w, top = (down.first - down.padding) / h;
  return { pixels, channels, crop: [left, top, left + size / w, top + size / h] };
}

// The index: embeddings of training images, their classes, and small pictures of some of them.
function indexFrom(bytes) {
  if (!bytes.length) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 4 + view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)));
  const { width, targets, ends } = header;
  const singles = Float32Array.from({ length: 1 << 16 }, (_, half) => {
    const exponent = half >> 10 & 31, fraction = half & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return half >> 15 ? -size : size;
  });
  const vectors = new Float32Array(width * targets.length);
  for (let i = 0; i < vectors.length; i++) vectors[i] = singles[view.getUint16(start + 2 * i, true)];
  const lengths = targets.map((_, row) => length(vectors.subarray(row * width, (row + 1) * width)));
  const pictures = bytes.subarray(start + 2 * vectors.length);
  const thumbnail = (row) => pictures.slice(row ? ends[row - 1] : 0, ends[row]);
  const shown = [...targets.keys()].filter((row) => ends[row] > (row ? ends[row - 1] : 0));
  return { ...header, vectors, lengths, thumbnail, shown };
}

const length = (vector) => Math.max(Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0)), 1e-30);

// High if the network expects no class.
function energy(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b));
  return -top - Math.log(logits.reduce((sum, x) => sum + Math.exp(x - top), 0));
}

// How unlike the training images a picture is, and its nearest of the two most likely classes.
function compared(embedding, logits) {
  const { width, vectors, lengths, targets, threshold, weight, rank, shown } = index, own = length(embedding);
  const products = targets.map((_, row) => {
    let sum = 0;
    for (let i = 0, at = row * width; i < width; i++, at++) sum += vectors[at] * embedding[i];
    return sum / own;
  });
  const sorted = [...products].sort((a, b) => b - a);
  const unknown = threshold === null ? null : 1 - sorted[rank - 1] + weight * energy(logits);
  const distance = (row) => Math.max(1 - products[row] / lengths[row], 0);
  const nearest = (rows) => rows.map((row) => ({ row, target: targets[row], distance: distance(row) }))
    .sort((a, b) => a.distance - b.distance).slice(0, SIMILAR);
  const likely = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, 2);
  const groups = targets.every((target) => target < 0) ? [shown]
    : likely.map((label) => shown.filter((row) => targets[row] === label));
  return { unknown, similar: groups.map(nearest) };
}

let ort, session, rule, index;

// The parts are blobs: packed ones of a page that is one file, else the files of a folder.
async function open({ packed, script, wasm, model, index: known }, preprocessing, address) {
  const content = packed ? unpacked : plain;
  [script, wasm, model, known] = await Promise.all([script, wasm, model, known].map(content));
  ort = await import(address(script));
  ort.env.wasm.numThreads = 1;  // more need a server that isolates the page
  ort.env.wasm.wasmBinary = wasm;
  rule = preprocessing;
  index = indexFrom(known);
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return index && { images: index.images, shown: index.shown.length, threshold: index.threshold };
}

async function classify(picture) {
  const { pixels, channels, crop } = prepared(picture, rule);
  const x = new ort.Tensor("uint8", pixels, [1, rule.size, rule.size, channels]);
  const { logits, embedding, maps } = await session.run({ pixels: x });
  const found = { logits: logits.data, embedding: embedding.data, maps: maps.data };
  const likeness = index ? compared(embedding.data, logits.data) : { unknown: null, similar: [] };
  return { ...found, shape: maps.dims.slice(2), crop, ...likeness };
}

// A map at another size; the strongest value becomes 1 or -1.
function enlarge(values, [h, w], width, height) {
  const strongest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  const columns = taps(w, width, "bicubic"), rows = taps(h, height, "bicubic");
  const result = new Float32Array(width * height);
  const line = new Float32Array(w);
  rows.forEach((row, y) => {
    line.fill(0);
    row.shares.forEach((share, j) => {
      for (let x = 0; x < w; x++) line[x] += share * values[(row.first + j) * w + x] / strongest;
    });
    columns.forEach(({ first, shares }, x) => {
      let sum = 0;
      for (let j = 0; j < shares.length; j++) sum += shares[j] * line[first + j];
      result[y * width + x] = Math.min(Math.max(sum, -1), 1);
    });
  });
  return result;
}

const blobAddress = (script) => URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
const JOBS = { open: (parts, preprocessing) => open(parts, preprocessing, blobAddress), classify, enlarge, thumbnail: (row) => index.thumbnail(row) };

self.onmessage = async ({ data: { id, job, values } }) => {
  try {
    self.postMessage({ id, value: await JOBS[job](...values) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
