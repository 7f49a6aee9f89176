"use strict";
// The network of a page, in a worker: unpacking, resizing as Pillow does, ONNX Runtime Web.
// The gate runs the same text in Node.

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
const ONE = 1 << 22;  // Pillow's fixed point

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

async function unpacked(blob) {
  const text = new Uint8Array(await blob.arrayBuffer());
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

// For each of `to` pixels the first pixel of `from` that it is made of, and the shares of these.
function taps(from, to, filter) {
  const scale = from / to, found = [];
  if (filter === "nearest") {
    let at = scale / 2;
    for (let i = 0; i < to; i++, at += scale) found.push({ first: Math.floor(at), shares: [1] });
    return found;
  }
  const [reach, weight] = FILTERS[filter], wide = Math.max(scale, 1);
  for (let i = 0; i < to; i++) {
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
  const columns = taps(width, w, rule.interpolation).slice(across.first, across.end).map(fixed);
  const rows = taps(height, h, rule.interpolation).slice(down.first, down.end).map(fixed);
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

let ort, session, rule;

async function open(parts, preprocessing, address) {
  const names = ["script", "wasm", "model"];
  const [script, wasm, model] = await Promise.all(names.map((name) => unpacked(parts[name])));
  ort = await import(address(script));
  ort.env.wasm.numThreads = 1;  // more need a server that isolates the page
  ort.env.wasm.wasmBinary = wasm;
  rule = preprocessing;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

async function classify(picture) {
  const { pixels, channels, crop } = prepared(picture, rule);
  const x = new ort.Tensor("uint8", pixels, [1, rule.size, rule.size, channels]);
  const { logits, maps } = await session.run({ pixels: x });
  return { logits: logits.data, maps: maps.data, shape: maps.dims.slice(2), crop };
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
const JOBS = { open: (parts, preprocessing) => open(parts, preprocessing, blobAddress), classify, enlarge };

self.onmessage = async ({ data: { id, job, values } }) => {
  try {
    self.postMessage({ id, value: await JOBS[job](...values) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
