/**
 * The exported model under LiteRT.js: start, step and finish, in a page's worker and in Node alike.
 *
 * @typedef {object} Facts  of the file beside the model, as far as the page needs them
 * @property {number} description_version
 * @property {number} network_calls how often `step` is called for a picture
 * @property {{name: string, num_steps: number}} sampler some call the network more than once a step
 * @property {number[]} image_shape
 * @property {number | null} num_classes
 *
 * @typedef {{seed: number, label: number | null}} Wish  what to draw; `label` is null where the model has no classes
 */

const DESCRIPTION_VERSION = 3; // other versions give other meanings to the words of model.json
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

/** @param {any} found in model.json @returns {Facts} the same, if it is what the page knows how to read */
export function checkFacts(found) {
  const version = found?.description_version;
  if (found && version !== DESCRIPTION_VERSION) {
    const received = version === undefined ? "none, as in older exports" : JSON.stringify(version).slice(0, 40);
    const expected = `model.json must have description_version ${DESCRIPTION_VERSION}, the one that this page reads.`;
    throw new Error(`${expected} Received: ${received}.`);
  }
  const [height, width, channels] = found?.image_shape ?? [];
  const counted = found?.network_calls > 0 && found.sampler?.num_steps > 0;
  if (!(counted && height > 0 && width > 0 && [1, 3].includes(channels))) {
    throw new Error(
      "model.json must hold the network_calls, the sampler with its num_steps and the image_shape " +
        "[height, width, 1 or 3] of the model.",
    );
  }
  return found;
}

/** @returns {string} for example "1 step" or "50 steps" */
export function count(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
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

  /** The state after call `index` of the network; deletes `x`. */
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

  /** The whole picture in one call: the same pixels as start, every call of step and finish. */
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
