/**
 * Runs a model with LiteRT.js in Node: `node litert_node.mjs MODEL.tflite FACTS.json SEED,SEED,...`.
 *
 * Prints one JSON object: for each seed the noise, the picture after each call of `step` and that of `generate`, in
 * base64 of little-endian float32 and int32.
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { checkFacts, defaultLabel, Model, read } from "../../export/web/model.js";

const PACKAGE = fileURLToPath(new URL("../../export/web/node_modules/@litertjs/core/", import.meta.url));

// LiteRT.js loads its WebAssembly as a worker does; its loader is a classic script, which Node would take for a module.
globalThis.self = globalThis;
globalThis.navigator ??= { hardwareConcurrency: 1 };
globalThis.importScripts = (file) => {
  const script = `${readFileSync(file, "utf8")}; return ModuleFactory`;
  const load = new Function("require", "__dirname", "__filename", script);
  globalThis.ModuleFactory = load(createRequire(file), path.dirname(file), file);
};

const base64 = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

const [modelFile, factsFile, seeds] = process.argv.slice(2);
const facts = checkFacts(JSON.parse(readFileSync(factsFile, "utf8")));
const litert = await import(path.join(PACKAGE, "dist/index.js"));
await litert.loadLiteRt(path.join(PACKAGE, "wasm/"));
const model = await Model.load(litert, new Uint8Array(readFileSync(modelFile)), facts, 1);

const results = {};
for (const seed of seeds.split(",").map(Number)) {
  const wish = { seed, label: defaultLabel(seed, facts.num_classes) };
  const noise = read(await model.start(seed));
  const pictures = [];
  let x = await model.start(seed);
  for (let index = 0; index < facts.network_calls; index++) {
    x = await model.step(x, index, wish);
    pictures.push(base64(await model.finish(x)));
  }
  x.delete();
  results[seed] = { noise: base64(noise), pictures, generated: base64(await model.generate(wish)) };
}
process.stdout.write(JSON.stringify(results));
