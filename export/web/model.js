/**
 * The exported model under LiteRT.js: start, step and finish, in a page's worker and in Node alike.
 *
 * @typedef {{num_steps: number, image_shape: number[], num_classes: number | null}} Facts  of the file beside the model
 * @typedef {{seed: number, label: number | null}} Wish  what to draw; `label` is null where the model has no classes
 */

const INT32 = { min: -(2 ** 31), max: 2 ** 31 - 1 };

/** @param {string} text @returns {number | null} the seed that `text` writes out, or null if that is not an int32 */
export function parseSeed(text) {
  const seed = /^\s*[-+]?\d+\s*$/.test(text) ? Number(text) : NaN;
  return seed >= INT32.min && seed <= INT32.max ? seed + 0 : null;
}

/** The class of a seed for which none was chosen; the same in Python, where % never gives a negative number. */
export function defaultLabel(seed, numClasses) {
  return numClasses ? ((seed % numClasses) + numClasses) % numClasses : null;
}

/** @param {string} name of a file beside the page @returns {Promise<Response>} which is not an error page */
export async function fetchFile(name) {
  const response = await fetch(name, { cache: "no-cache" }).catch((error) => ({ ok: false, error }));
  if (response.ok) return response;
  const reason = response.error ? response.error.message : `the server answered ${response.status}`;
  throw new Error(`${name} could not be fetched: ${reason}.`);
}

export class Model {
  /**
   * @param {typeof import("@litertjs/core")} litert with its WebAssembly loaded
   * @param {Uint8Array} bytes of the .tflite file
   * @param {Facts} facts
   * @param {number} numThreads
   */
  static async load(litert, bytes, facts, numThreads) {
    const compiled = await litert.loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads } });
    const missing = ["start", "step", "finish"].filter((name) => !(name in compiled.signatures));
    if (missing.length) {
      const found = Object.keys(compiled.signatures).join(", ");
      throw new Error(`The model must have the signatures start, step and finish. Found: ${found}.`);
    }
    return new Model(litert, compiled, facts);
  }

  constructor(litert, compiled, facts) {
    this.litert = litert;
    this.compiled = compiled;
    this.facts = facts;
  }

  /** The sampler's state before the first step. Tensors live in WebAssembly's memory: whoever gets one deletes it. */
  async start(seed) {
    return this.#call("start", { seed });
  }

  /** The state after step `index`; deletes `x`. */
  async step(x, index, { seed, label }) {
    try {
      return await this.#call("step", { x, index, seed, label });
    } finally {
      x.delete();
    }
  }

  /** @returns {Promise<Int32Array>} the picture that the state `x` stands for, (H, W, C), 0..255 */
  async finish(x) {
    return read(await this.#call("finish", { x }));
  }

  /** The whole picture in one call: the same pixels as start, every step and finish. */
  async generate({ seed, label }) {
    return read(await this.#call("generate", { seed, label }));
  }

  /** Run a signature with those of `values` that it takes; numbers become int32 [1]. It has one output. */
  async #call(name, values) {
    const made = [];
    const inputs = this.compiled.signatures[name].getInputDetails().map((input) => {
      const value = values[input.name];
      if (typeof value !== "number") return value;
      made.push(new this.litert.Tensor(Int32Array.of(value), [1]));
      return made.at(-1);
    });
    try {
      return (await this.compiled.run(name, inputs))[0];
    } finally {
      for (const tensor of made) tensor.delete();
    }
  }
}

/** A copy of a tensor's values; deletes the tensor. */
export function read(tensor) {
  try {
    return tensor.toTypedArray().slice();
  } finally {
    tensor.delete();
  }
}
