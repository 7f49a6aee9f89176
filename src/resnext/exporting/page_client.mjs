// Runs the worker of a page on pictures, for the gate:  node page_client.mjs PAGE FOLDER
// FOLDER holds sizes.json and pixels.bin (RGBA); logits.bin and maps.bin are written beside them.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [, , page, folder] = process.argv;

try {
  const html = readFileSync(page, "utf8");
  const part = (name) => {
    const start = html.indexOf(">", html.indexOf(`<script id="${name}"`)) + 1;
    return html.slice(start, html.indexOf("</script>", start));
  };
  const worker = new Function("self", `${part("worker")}\nreturn { open, classify };`)({});
  const parts = Object.fromEntries(["script", "wasm", "model"].map((name) => [name, new Blob([part(name)])]));
  const address = (script) => `data:text/javascript;base64,${Buffer.from(script).toString("base64")}`;
  await worker.open(parts, JSON.parse(part("resnext")).card.preprocessing, address);
  const pixels = readFileSync(join(folder, "pixels.bin"));
  const logits = [], maps = [];
  let start = 0, shape;
  for (const [width, height] of JSON.parse(readFileSync(join(folder, "sizes.json"), "utf8"))) {
    const data = pixels.subarray(start, start += 4 * width * height);
    const answer = await worker.classify({ width, height, data });
    logits.push(Buffer.from(Float32Array.from(answer.logits).buffer));
    maps.push(Buffer.from(Float32Array.from(answer.maps).buffer));
    shape = answer.shape;
  }
  writeFileSync(join(folder, "logits.bin"), Buffer.concat(logits));
  writeFileSync(join(folder, "maps.bin"), Buffer.concat(maps));
  console.log(JSON.stringify(shape));
} catch (error) {
  console.error(String(error?.message ?? error));
  process.exit(1);
}
