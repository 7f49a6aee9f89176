// Runs the worker of a page on pictures, for the gate:  node page_client.mjs PAGE FOLDER
// PAGE is a file, or a folder with index.html. FOLDER holds sizes.json and pixels.bin (RGBA); logits.bin, embedding.bin and maps.bin
// are written beside them.

import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [, , page, folder] = process.argv;

try {
  const whole = statSync(page).isFile();
  const html = readFileSync(whole ? page : join(page, "index.html"), "utf8");
  const part = (name) => {
    const start = html.indexOf(">", html.indexOf(`<script id="${name}"`)) + 1;
    return html.slice(start, html.indexOf("</script>", start));
  };
  const worker = new Function("self", `${part("worker")}\nreturn { open, classify };`)({});
  const files = JSON.parse(part("parts"));
  const content = (name) => whole ? part(name) : readFileSync(join(page, files[name]));
  const parts = { packed: whole };
  for (const name in files) parts[name] = new Blob([content(name)]);
  const address = (script) => `data:text/javascript;base64,${Buffer.from(script).toString("base64")}`;
  await worker.open(parts, JSON.parse(part("resnext")).card.preprocessing, address);
  const pixels = readFileSync(join(folder, "pixels.bin"));
  const found = { logits: [], embedding: [], maps: [] };
  let start = 0, shape;
  for (const [width, height] of JSON.parse(readFileSync(join(folder, "sizes.json"), "utf8"))) {
    const data = pixels.subarray(start, start += 4 * width * height);
    const answer = await worker.classify({ width, height, data });
    for (const [name, values] of Object.entries(found)) {
      values.push(Buffer.from(Float32Array.from(answer[name]).buffer));
    }
    shape = answer.shape;
  }
  for (const [name, values] of Object.entries(found)) {
    writeFileSync(join(folder, `${name}.bin`), Buffer.concat(values));
  }
  console.log(JSON.stringify(shape));
} catch (error) {
  console.error(String(error?.message ?? error));
  process.exit(1);
}
