/**
 * Runs signatures with LiteRT.js in Chromium on its software GPU: `node litert_gpu.mjs CHROMIUM MODEL.tflite CALLS.json`.
 *
 * CALLS holds [name, {input: {dtype, shape, values}}] each. Prints one JSON object: {adapter: null} without an adapter,
 * else {adapter, fully: whether no operator is left to the CPU, complaints, outputs: one object of arrays a call}.
 *
 * Where CALLS holds {facts, seed, lose} the module export/web/generate paints that seed, after its GPU was lost if `lose`,
 * and the object is {adapter, accelerator, whyNotGpu, picture}.
 */
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "../../export/web/node_modules/playwright-core/index.mjs";

const WEB = fileURLToPath(new URL("../../export/web/", import.meta.url));
const MODULES = `${WEB}node_modules/`;
const PAGE = `<link rel="icon" href="data:,"><script type="importmap">{"imports": {
  "@litertjs/core": "/modules/@litertjs/core/dist/index.js",
  "@litertjs/wasm-utils": "/modules/@litertjs/wasm-utils/dist/index.js"}}</script>`;
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm" };

const [executablePath, modelFile, callsFile] = process.argv.slice(2);
const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  response.setHeader("Content-Type", TYPES[path.extname(pathname)] ?? (pathname === "/" ? "text/html" : "text/plain"));
  if (pathname === "/") response.end(PAGE);
  else if (pathname.startsWith("/generate/")) response.end(readFileSync(WEB + pathname));
  else response.end(readFileSync(pathname === "/model" ? modelFile : MODULES + pathname.slice("/modules/".length)));
}).listen(0);

const flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const browser = await chromium.launch({ executablePath, args: flags });
const page = await browser.newPage();
const complaints = [];
page.on("console", (message) => {
  if (/will run on the CPU|not supported|not fully compiled/i.test(message.text())) complaints.push(message.text());
});
await page.goto(`http://localhost:${server.address().port}/`);
const answer = await page.evaluate(async (calls) => {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return { adapter: null };
  const litert = await import("@litertjs/core");
  await litert.loadLiteRt("/modules/@litertjs/core/wasm/");
  if (calls.facts) {
    const { load } = await import("/generate/index.js");
    const bytes = new Uint8Array(await (await fetch("/model")).arrayBuffer());
    const painter = await load({ litert, bytes, facts: calls.facts, accelerator: "webgpu" });
    if (calls.lose) litert.getWebGpuDevice().destroy();
    const picture = [...(await painter.generate({ seed: calls.seed }))];
    return { adapter, accelerator: painter.accelerator, whyNotGpu: painter.whyNotGpu, picture };
  }
  const model = await litert.loadAndCompile("/model", { accelerator: "webgpu", gpuOptions: { precision: "fp32" } });
  const outputs = [];
  for (const [name, inputs] of calls) {
    const tensors = {};
    for (const [input, { dtype, shape, values }] of Object.entries(inputs)) {
      const array = dtype === "int32" ? Int32Array.from(values) : Float32Array.from(values);
      tensors[input] = new litert.Tensor(array, shape);
    }
    const found = {};
    for (const [output, tensor] of Object.entries(await model.run(name, tensors))) found[output] = [...(await tensor.data())];
    outputs.push(found);
  }
  return { adapter: adapter.info.architecture, fully: model.isFullyAccelerated, outputs };
}, JSON.parse(readFileSync(callsFile, "utf8")));
await browser.close();
server.close();
process.stdout.write(JSON.stringify({ ...answer, complaints }));
