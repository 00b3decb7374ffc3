/**
 * Generates pictures with LiteRT.js from a .tflite file that kddpm exported and its side file. It touches no page: it
 * runs in a browser's window, in its workers and in Node.
 */
import { checkFacts, checkMask, checkWish, toFloats, toPixels } from "./description.js";
import { errors } from "./litert.js";
import { lastRows, otherRows, ownRows, resampled, whyNotEdit, whyNotSteps } from "./tables.js";
import { STREAM, stepWalk, tableWalk, wholeWalk } from "./walks.js";

export { checkFacts, defaultLabel, parseSeed } from "./description.js";

/** @typedef {import("./index.js").Options} Options */

const NETWORKS = ["generate", "step", "denoise"]; // the signatures that call it
const ON_CPU = ["start", "noise"]; // their integers are nothing for a GPU
const GPU_ERROR = { float32: 0.01, float16: 0.01, int8: 0.2 }; // on the mean, of what is of the order of 1

/** @param {import("./index.js").Load} options */
export async function load({ litert, bytes, facts, threads = 1, accelerator = "wasm" }) {
  checkFacts(facts);
  await checkBytes(bytes, facts);
  const compiled = await compile(litert, bytes, threads);
  const model = new Model(litert, compiled, facts);
  await model.checkNoise();
  if (accelerator === "webgpu") await model.useGpu(bytes);
  return model;
}

export class Model {
  #litert;
  #compiled;
  /** @type {import("@litertjs/core").CompiledModel | null} */
  #onGpu = null;
  #names;

  /**
   * @param {typeof import("@litertjs/core")} litert
   * @param {import("@litertjs/core").CompiledModel} compiled
   * @param {import("./index.js").Facts} facts
   */
  constructor(litert, compiled, facts) {
    this.#litert = litert;
    this.#compiled = compiled;
    this.#names = Object.keys(compiled.signatures);
    this.facts = facts;
    this.#checkShapes();
    this.whyNotEdit = whyNotEdit(facts, this.#names);
    this.whyNotSteps = whyNotSteps(facts, this.#names);
    this.whyNotGpu = null;
  }

  /** Check that inputs have the shapes and classes of the side file. */
  #checkShapes() {
    const [height, width, channels] = this.facts.image_shape;
    for (const name of this.#names) {
      const inputs = this.#shapes(name);
      const x = [height, width, name === "denoise" ? channels : this.facts.state_channels];
      const expected = { seed: [1], label: [1], t: [1], x: [1, ...x], noise: [1, height, width, channels] };
      const areSame = Object.entries(expected).every(([input, shape]) => {
        const found = inputs[input] ?? shape;
        return found.length === shape.length && found.every((size, i) => size === shape[i]);
      });
      const isLabelled = NETWORKS.includes(name) && this.facts.num_classes !== null;
      if (areSame && "label" in inputs === isLabelled) continue;
      throw new Error("The model's side file must describe the model. Received: other batches, shapes or classes.");
    }
  }

  /** The shapes of a signature's inputs, by name. */
  #shapes(/** @type {string} */ name) {
    const inputs = this.#compiled.signatures[name].getInputDetails();
    return Object.fromEntries(inputs.map(({ name: input, shape }) => [input, Array.from(shape)]));
  }

  /** What runs the network. */
  get accelerator() {
    return this.#onGpu ? "webgpu" : "wasm";
  }

  /** Let a GPU run the network, if it gives what the CPU gives; else `whyNotGpu` says why not. */
  async useGpu(/** @type {Uint8Array} */ bytes) {
    this.whyNotGpu = null;
    try {
      if (this.facts.target !== "gpu" && this.#names.some((name) => ["step", "generate"].includes(name))) {
        throw new Error("the model must be exported with --target=gpu");
      }
      const gpuOptions = { precision: /** @type {const} */ ("fp32") };
      const compiled = await this.#litert.loadAndCompile(bytes, { accelerator: "webgpu", gpuOptions });
      if (compiled.options.accelerator !== "webgpu") throw new Error("it does not take all operators of the model");
      await this.#compare(compiled);
      this.#onGpu = compiled;
    } catch (error) {
      this.#leaveGpu(error);
    }
  }

  /** Let the CPU run the network. */
  useCpu() {
    this.#onGpu?.delete();
    this.#onGpu = null;
    this.whyNotGpu = null;
  }

  /** Compare a call of the network with the CPU's. */
  async #compare(compiled) {
    const { image_shape: shape, state_channels: channels, num_classes: classes, steps, precision } = this.facts;
    const name = ["denoise", "step", "generate"].find((signature) => this.#names.includes(signature));
    const size = shape[0] * shape[1] * (name === "denoise" ? shape[2] : channels);
    const wave = Float32Array.from({ length: size }, (_, i) => Math.sin(i)); // any picture will do
    const index = Math.floor(steps.t.length / 2); // where both noise and picture are plain to see
    const values = { x: wave, noise: wave, t: steps.t[index], index, label: classes ? 0 : null };
    const expected = await this.#call(this.#compiled, name, values);
    const found = await this.#call(compiled, name, values);
    for (const [output, value] of Object.entries(expected)) {
      const error = value.reduce((sum, one, i) => sum + Math.abs(one - found[output][i]), 0) / value.length;
      const most = GPU_ERROR[precision] * (output === "image" ? 255 : 1);
      if (!(error <= most)) throw new Error(`its ${output} is off by ${error.toPrecision(2)} from the CPU's`);
    }
  }

  #leaveGpu(/** @type {any} */ error) {
    this.#onGpu = null;
    this.whyNotGpu = `The GPU was left for the CPU: ${firstLine(error)}`;
  }

  /** @param {Options} wish */
  async generate({ steps, onStep, signal, ...wish }) {
    return follow(this.#walk(checkWish(this.facts, wish), steps), { onStep, signal });
  }

  /** @param {Options & {picture: Uint8Array | Uint8ClampedArray, strength: number}} wish */
  async variations({ picture, strength, steps, onStep, signal, ...wish }) {
    const { seed, label } = checkWish(this.facts, wish);
    if (this.whyNotEdit) throw new Error(this.whyNotEdit);
    const x0 = toFloats(this.facts, picture);
    const length = this.facts.schedule.alpha_bars.length;
    const rows = lastRows(this.#rows(steps), strength, length);
    let x = x0;
    if (rows.length) {
      const { noise } = await this.#run("noise", { seed, stream: STREAM.initial, index: 0 });
      x = rows[0].at < length - 1 ? noised(x0, rows[0].alpha_bar, noise) : noise;
    }
    return follow(tableWalk(this.#run, this.facts, { seed, label }, rows, { x }), { onStep, signal });
  }

  /** @param {Options & import("./index.js").Inpainting} wish */
  async inpaint({ picture, mask, jumpLength, resamplings, steps, onStep, signal, ...wish }) {
    const { seed, label } = checkWish(this.facts, wish);
    if (this.whyNotEdit) throw new Error(this.whyNotEdit);
    const x0 = toFloats(this.facts, picture);
    const known = checkMask(this.facts, mask);
    const rows = this.#rows(steps);
    const order = resampled(rows.length, { jumpLength, resamplings });
    const alphaBars = [...rows.map((row) => row.alpha_bar), 1]; // of the levels, from noise to data
    const channels = this.facts.image_shape[2];
    const draw = async (stream, index) => (await this.#run("noise", { seed, stream, index })).noise;
    const edit = async (x, call) => {
      const { row, climb } = order[call];
      const reached = alphaBars[row + 1];
      const kept = noised(x0, reached, await draw(STREAM.known, call));
      const repainted = x.map((value, i) => (known[Math.floor(i / channels)] ? kept[i] : value));
      if (!climb) return repainted;
      return noised(repainted, alphaBars[row + 1 - climb] / reached, await draw(STREAM.back, call));
    };
    const taken = order.map(({ row }) => rows[row]);
    return follow(tableWalk(this.#run, this.facts, { seed, label }, taken, { edit }), { onStep, signal });
  }

  /** Compare the noise of the side file's first vector, so that no wrong picture is drawn in silence. */
  async checkNoise() {
    const [vector] = this.facts.vectors ?? [];
    const name = ["noise", "start"].find((signature) => this.#names.includes(signature));
    if (!vector || !name || !globalThis.crypto?.subtle) return;
    const drawn = await this.#run(name, { seed: vector.seed, stream: STREAM.initial, index: 0 });
    const [height, width, channels] = this.facts.image_shape;
    const stride = (drawn.noise ?? drawn.x).length / (height * width); // a state may hold more than the picture
    const noise = (drawn.noise ?? drawn.x).filter((_, i) => i % stride < channels);
    if ((await sha256(noise)) !== vector.noise_sha256) {
      throw new Error(`The noise of seed ${vector.seed} must have the bits of the side file. Received: other bits.`);
    }
  }

  /** The walk of the file's own sampler, or of the same in another number of steps. */
  #walk(wish, steps) {
    const has = (...names) => names.every((name) => this.#names.includes(name));
    const isOwn = steps === undefined || steps === this.facts.sampler.num_steps;
    if (isOwn && has("start", "step", "finish")) {
      return stepWalk(this.#run, this.facts, wish, "noise" in this.#shapes("step"));
    }
    if (!isOwn || has("denoise", "noise")) return tableWalk(this.#run, this.facts, wish, this.#rows(steps));
    if (has("generate")) return wholeWalk(this.#run, this.facts, wish, "x" in this.#shapes("generate"));
    throw new Error(
      "The model must have the signatures start, step and finish, or denoise and noise, or generate. " +
        `Received: ${this.#names.join(", ")}`,
    );
  }

  #rows(steps) {
    if (steps === undefined || steps === this.facts.sampler.num_steps) return ownRows(this.facts);
    if (this.whyNotSteps) throw new Error(this.whyNotSteps);
    return otherRows(this.facts, steps);
  }

  /**
   * Call a signature with those of `values` that it takes; numbers become int32 [1].
   *
   * @type {import("./walks.js").Run}
   */
  #run = async (name, values) => {
    if (this.#onGpu && !ON_CPU.includes(name)) {
      try {
        return await this.#call(this.#onGpu, name, values);
      } catch (error) {
        this.#leaveGpu(error); // a GPU may be lost at any time
      }
    }
    return this.#call(this.#compiled, name, values);
  };

  async #call(compiled, name, values) {
    /** @type {Record<string, import("@litertjs/core").Tensor>} */
    const inputs = {};
    try {
      for (const { name: input, shape } of compiled.signatures[name].getInputDetails()) {
        const value = values[input];
        const isNumber = typeof value === "number";
        inputs[input] = new this.#litert.Tensor(isNumber ? Int32Array.of(value) : value, isNumber ? [1] : shape);
      }
      /** @type {Record<string, any>} */
      const outputs = {};
      const before = errors.length;
      const made = Object.entries(await compiled.run(name, inputs));
      if (errors.length > before) throw cannotRun(errors[before]);
      for (const [output, tensor] of made) {
        outputs[output] = (await tensor.data()).slice(); // the tensor's own memory is WebAssembly's
        tensor.delete();
      }
      return outputs;
    } finally {
      for (const tensor of Object.values(inputs)) tensor.delete();
    }
  }
}

/** Go all the way of a walk, and return its picture. */
async function follow(walk, { onStep, signal }) {
  signal?.throwIfAborted();
  let state = await walk.begin();
  for (let calls = 0; ; calls += walk.stride) {
    const now = state;
    await onStep?.({ calls, of: walk.calls, picture: () => walk.picture(now) });
    signal?.throwIfAborted();
    if (calls === walk.calls) return walk.picture(state);
    state = await walk.next(state, calls);
  }
}

/** x_t of x_0: values with this share of signal, and the rest of noise. */
function noised(x0, alphaBar, noise) {
  const [signal, spread] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
  return x0.map((value, i) => signal * value + spread * noise[i]);
}

async function compile(litert, bytes, threads) {
  try {
    return await litert.loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads: threads } });
  } catch (/** @type {any} */ error) {
    throw cannotRun(error);
  }
}

const cannotRun = (/** @type {any} */ error) => new Error(`The model cannot be run by LiteRT.js: ${firstLine(error)}`);

const firstLine = (/** @type {any} */ error) => String(error?.message ?? error).split("\n")[0];

/** Check that the side file describes these bytes. */
async function checkBytes(bytes, { bytes: length, sha256: expected }) {
  // Browsers offer crypto.subtle on https and localhost only; elsewhere the length has to do.
  if (bytes.length !== length || (globalThis.crypto?.subtle && (await sha256(bytes)) !== expected)) {
    throw new Error("The model is not the file that its side file describes: its length or sha256 differs.");
  }
}

async function sha256(/** @type {ArrayBufferView} */ values) {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
