/** LiteRT.js in Node, which it was not made for: it loads its WebAssembly as a browser's worker does. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { prepare } from "./litert.js";

const PACKAGE = path.dirname(path.dirname(fileURLToPath(import.meta.resolve("@litertjs/core"))));

/** @returns {Promise<typeof import("@litertjs/core")>} LiteRT.js with its WebAssembly loaded */
export async function loadLiteRt() {
  const global = /** @type {any} */ (globalThis);
  global.self ??= global;
  global.navigator ??= { hardwareConcurrency: 1 };
  // The loader is a classic script, which Node would take for a module.
  global.importScripts = (/** @type {string} */ file) => {
    const script = `${readFileSync(file, "utf8")}; return ModuleFactory`;
    const make = new Function("require", "__dirname", "__filename", script);
    global.ModuleFactory = make(createRequire(file), path.dirname(file), file);
  };
  prepare({}, () => {});
  const litert = await import("@litertjs/core");
  await litert.loadLiteRt(path.join(PACKAGE, "wasm/"));
  return litert;
}
