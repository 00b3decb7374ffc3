/** What LiteRT.js is told before it loads its WebAssembly for a CPU. */

/**
 * LiteRT.js asks for a GPU although the model runs in WebAssembly, which would wake one and warn where there is none;
 * and it writes all its notes to stderr, which a console shows as errors.
 *
 * @param {object} module options of its WebAssembly
 */
export function prepare(module = {}) {
  const global = /** @type {any} */ (globalThis);
  const noDevice = { limits: {}, features: new Set(), requestDevice: async () => null };
  Object.defineProperty(global.navigator, "gpu", {
    value: { requestAdapter: async () => noDevice },
    configurable: true,
  });
  const printErr = (/** @type {string} */ line) =>
    line.startsWith("ERROR") ? console.error(line) : console.debug(line);
  global.Module = { printErr, ...module };
}
