/**
 * Ways from noise to a picture. Each is {calls, stride, begin, next, picture}: how often the network is called, how
 * often `next` calls it, the first state, the next one, and the pixels that a state stands for.
 *
 * `run` calls a signature of the model with values by name, and returns its outputs by name.
 *
 * @typedef {import("./index.js").Facts} Facts
 * @typedef {import("./tables.js").Row} Row
 * @typedef {(name: string, values: Record<string, any>) => Promise<Record<string, any>>} Run
 * @typedef {{seed: number, label: number | null}} Wish
 */
import { toPixels } from "./description.js";

export const STREAM = { initial: 0, step: 1, known: 2, back: 3 }; // of the signature `noise`
const DYNAMIC_QUANTILE = 0.995; // Saharia et al. 2022, section 2.3
const FAR_NATS = 20; // how far a learned log-variance may leave its range

/** By start, step and finish: coefficients and noise are in the file. A step of a file for GPUs is given its noise. */
export function stepWalk(/** @type {Run} */ run, /** @type {Facts} */ facts, /** @type {Wish} */ wish, needsNoise) {
  return {
    calls: facts.network_calls,
    stride: 1,
    begin: async () => (await run("start", wish)).x,
    next: async (x, index) => {
      const drawn = needsNoise ? await run("noise", { ...wish, stream: STREAM.step, index }) : {};
      return (await run("step", { ...wish, ...drawn, x, index })).x;
    },
    picture: async (x) => Uint8ClampedArray.from((await run("finish", { x })).image),
  };
}

/** By generate, which calls the network all its times without a word. */
export function wholeWalk(/** @type {Run} */ run, /** @type {Facts} */ facts, /** @type {Wish} */ wish, needsNoise) {
  return {
    calls: facts.network_calls,
    stride: facts.network_calls,
    begin: async () => (needsNoise ? await run("start", wish) : {}),
    next: async (state) => run("generate", { ...wish, ...state }),
    picture: async ({ image }) => image && Uint8ClampedArray.from(image),
  };
}

/**
 * By denoise and noise, with the rows of a table.
 *
 * @param {Run} run
 * @param {Facts} facts
 * @param {Wish} wish
 * @param {Row[]} rows
 * @param {{x?: Float32Array, edit?: (x: Float32Array, call: number) => Promise<Float32Array>}} options `x` = where to
 *   begin, pure noise if it is not given; `edit` is done after every call
 */
export function tableWalk(run, facts, { seed, label }, rows, { x: begin, edit } = {}) {
  return {
    calls: rows.length,
    stride: 1,
    async begin() {
      const x = begin ?? (await run("noise", { seed, stream: STREAM.initial, index: 0 })).noise;
      return { x, memory: x };
    },
    async next(state, call) {
      const row = rows[call];
      const { x0, fraction } = await run("denoise", { x: state.x, t: row.t, label });
      clip(x0, facts.sampler.clip);
      const drawn = row.noise_std ? (await run("noise", { seed, stream: STREAM.step, index: call })).noise : null;
      const next = stepped(row, { ...state, x0, fraction, drawn });
      return edit ? { ...next, x: await edit(next.x, call) } : next;
    },
    picture: async ({ x }) => toPixels(x),
  };
}

/** The state after a row of a table. */
function stepped(row, { x, memory, x0, fraction, drawn }) {
  const next = new Float32Array(x.length);
  const kept = row.from_memory === undefined ? null : new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) {
    next[i] = row.from_x0 * x0[i] + row.from_xt * x[i];
    if (drawn) next[i] += row.noise_std * spread(row, fraction?.[i]) * drawn[i];
    if (!kept) continue;
    next[i] += row.from_memory * memory[i];
    kept[i] = row.memory_from_x0 * x0[i] + row.memory_from_xt * x[i] + row.memory_from_memory * memory[i];
  }
  return { x: next, memory: kept ?? memory };
}

/** The standard deviation that a network learned, from the `fraction` of the way between two log-variances. */
function spread({ log_variance_low: low, log_variance_high: high }, fraction) {
  if (low === undefined) return 1;
  const between = low + ((fraction + 1) / 2) * (high - low);
  return Math.exp(0.5 * Math.min(Math.max(between, low - FAR_NATS), high + FAR_NATS));
}

/** Clip a predicted picture to -1 .. 1; "dynamic" = to its own quantile if that is above 1, and divide by it. */
function clip(x0, how) {
  if (how === false) return;
  let limit = 1;
  if (how === "dynamic") {
    const sizes = x0.map(Math.abs).sort();
    limit = Math.max(sizes[Math.ceil(DYNAMIC_QUANTILE * (x0.length - 1))], 1);
  }
  for (let i = 0; i < x0.length; i++) x0[i] = Math.min(Math.max(x0[i], -limit), limit) / limit;
}
