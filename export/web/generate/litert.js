/** What LiteRT.js is told before it loads its WebAssembly for a CPU. */

/**
 * Lines of what went wrong: a call that fails in LiteRT.js writes them and returns as if nothing had been.
 *
 * @type {string[]}
 */
export const errors = [];

/**
 * LiteRT.js asks for a GPU although the model runs in WebAssembly, which would wake one and warn where there is none;
 * and it writes all its notes to stderr, which a console shows as errors.
 *
 * @param {object} module options of its WebAssembly
 * @param {(line: string) => void} note what to do with its notes
 */
export function prepare(module = {}, note = console.debug) {
  const global = /** @type {any} */ (globalThis);
  const noDevice = { limits: {}, features: new Set(), requestDevice: async () => null };
  Object.defineProperty(global.navigator, "gpu", {
    value: { requestAdapter: async () => noDevice },
    configurable: true,
  });
  const printErr = (/** @type {string} */ line) => (line.startsWith("ERROR") ? errors.push(line) : note(line));
  global.Module = { printErr, ...module };
}
