/**
 * A sampler as rows of coefficients, one for each call of the network, with the names of the side file:
 *
 *   x'      = from_x0 x0 + from_xt x + from_memory m + std z,   z = standard normal noise
 *   m'      = memory_from_x0 x0 + memory_from_xt x + memory_from_memory m
 *   std     = noise_std, times exp(log_variance / 2) where the network learned a variance
 *
 * `at` is the row's place in the schedule, `alpha_bar` its share of signal.
 */
import { whole } from "./description.js";

const ONE_ROW_A_STEP = ["ancestral", "ddim"]; // without a memory: what editing and another number of steps need
const JUMP_LENGTH = 10; // Lugmayr et al. 2022, section 5.1
const RESAMPLINGS = 5;
const MOST_RESAMPLINGS = 1000;

/** @typedef {import("./index.js").Facts} Facts */
/** @typedef {{[column: string]: number}} Row */

/** @returns {string | null} why pictures cannot be edited, nor drawn in other steps; null if they can */
export function whyNotEdit(/** @type {Facts} */ facts, /** @type {string[]} */ signatures) {
  const { name } = facts.sampler;
  if (!["denoise", "noise"].every((signature) => signatures.includes(signature))) {
    return `Editing needs the signatures denoise and noise. Received: ${signatures.join(", ")}`;
  }
  return ONE_ROW_A_STEP.includes(name) ? null : `Editing needs the sampler ancestral or ddim. Received: ${name}`;
}

/** @returns {string | null} why the number of steps cannot be chosen; null if it can */
export function whyNotSteps(/** @type {Facts} */ facts, /** @type {string[]} */ signatures) {
  const { name, spacing, variance } = facts.sampler;
  const why = whyNotEdit(facts, signatures);
  if (why) return why.replace("Editing", "Another number of steps");
  if (spacing !== "trailing") return `Another number of steps needs the spacing trailing. Received: ${spacing}`;
  if (name !== "ancestral" || variance === "small" || variance === "large") return null;
  return `Another number of steps needs the variance small or large. Received: ${JSON.stringify(variance)}`;
}

/** The rows of the file's own sampler. */
export function ownRows(/** @type {Facts} */ { steps, schedule }) {
  const { clip, ...columns } = steps;
  return steps.t.map((t, index) => {
    const at = schedule.timesteps ? schedule.timesteps.indexOf(t) : t;
    const row = Object.entries(columns).map(([name, column]) => [name, column?.[index]]);
    return { ...Object.fromEntries(row), at, alpha_bar: schedule.alpha_bars[at] };
  });
}

/** The rows of the file's sampler in another number of steps, evenly spaced and counted from the end. */
export function otherRows(/** @type {Facts} */ { sampler, schedule }, count) {
  const { alpha_bars: alphaBars, timesteps } = schedule;
  whole("steps", count, 1, alphaBars.length);
  let before = -1;
  const rows = Array.from({ length: count }, (_, index) => {
    const at = Math.max(roundHalfToEven((index + 1) * (alphaBars.length / count)) - 1, before + 1);
    const coefficients = stepBetween(sampler, alphaBars[at], index ? alphaBars[before] : 1, index === 0);
    before = at;
    return { ...coefficients, at, t: timesteps?.[at] ?? at, alpha_bar: alphaBars[at] };
  });
  return rows.reverse();
}

/** The coefficients of the step from alpha_bar a to b, where more signal is. */
function stepBetween(/** @type {Facts["sampler"]} */ { name, eta = 0, variance }, a, b, isLast) {
  const beta = 1 - a / b;
  const posterior = (beta * (1 - b)) / (1 - a);
  const mixed = (name === "ddim" ? eta : 1) * Math.sqrt(posterior);
  const fromXt = Math.sqrt(Math.max(1 - b - mixed ** 2, 0) / (1 - a));
  const std = name === "ddim" ? mixed : Math.sqrt(variance === "large" ? beta : posterior);
  return { from_x0: Math.sqrt(b) - fromXt * Math.sqrt(a), from_xt: fromXt, noise_std: isLast ? 0 : std };
}

/** The last rows, from the level of noise that is nearest to `strength`; none for a strength near 0. */
export function lastRows(/** @type {Row[]} */ rows, strength, length) {
  if (!(strength >= 0 && strength <= 1)) throw new RangeError(`strength must lie in 0 .. 1. Received: ${strength}`);
  const levels = [0, ...rows.map(({ at }) => at + 1).reverse()];
  const distances = levels.map((level) => Math.abs(level - strength * length));
  return rows.slice(rows.length - distances.indexOf(Math.min(...distances)));
}

/**
 * RePaint's order of steps (Lugmayr et al. 2022, algorithm 1): the row to take at each call, and how many levels of
 * noise are added again after it.
 *
 * @param {number} count of rows
 * @param {{jumpLength?: number, resamplings?: number}} options
 * @returns {{row: number, climb: number}[]}
 */
export function resampled(count, { jumpLength, resamplings = RESAMPLINGS }) {
  whole("resamplings", resamplings, 1, MOST_RESAMPLINGS);
  jumpLength ??= Math.min(JUMP_LENGTH, Math.max(count - 1, 1));
  whole("jumpLength", jumpLength, 1, resamplings > 1 && count > 1 ? count - 1 : Infinity);
  const left = new Map();
  for (let level = 1; level <= count - jumpLength; level += jumpLength) left.set(level, resamplings - 1);
  const order = [];
  for (let level = count; level > 0; ) {
    const row = count - level;
    level -= 1;
    const climb = left.get(level) > 0 ? jumpLength : 0;
    if (climb) left.set(level, left.get(level) - 1);
    order.push({ row, climb });
    level += climb;
  }
  return order;
}

function roundHalfToEven(value) {
  const floor = Math.floor(value);
  const isUp = value - floor > 0.5 || (value - floor === 0.5 && floor % 2 === 1);
  return isUp ? floor + 1 : floor;
}
