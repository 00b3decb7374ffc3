/**
 * The side file of a model, and the arguments that it gives a meaning to.
 *
 * @typedef {import("./index.js").Facts} Facts
 */

const DESCRIPTION_VERSION = 3; // other versions give other meanings to the words of the side file
const INT32 = { min: -(2 ** 31), max: 2 ** 31 - 1 };
const MOST_CHANNELS = 4; // grey, grey and alpha, RGB, RGBA

/** @returns {Facts} what was found in a side file, if it is one that this module reads */
export function checkFacts(found) {
  const version = found?.description_version;
  if (found && version !== DESCRIPTION_VERSION) {
    const received = version === undefined ? "none, as in older exports" : JSON.stringify(version).slice(0, 40);
    const expected = `The model's side file must have description_version ${DESCRIPTION_VERSION}.`;
    throw new Error(`${expected} Received: ${received}.`);
  }
  const [height, width, channels] = found?.image_shape ?? [];
  const counts = [found?.network_calls, found?.sampler?.num_steps, height, width];
  if (!(counts.every(isCount) && areSteps(found.steps, found.network_calls) && isSchedule(found.schedule))) {
    throw new Error(
      "The model's side file must hold network_calls, sampler, steps, schedule and the image_shape of its pictures.",
    );
  }
  if (!(channels >= 1 && channels <= MOST_CHANNELS)) {
    throw new Error(`A picture must have 1 to ${MOST_CHANNELS} channels. Received: ${channels}.`);
  }
  if (found.batch_size !== 1) throw new Error(`The model's batch_size must be 1. Received: ${found.batch_size}.`);
  return found;
}

const isCount = (/** @type {any} */ value) => Number.isInteger(value) && value > 0;

/** Whether these are the rows of a walk: columns of as many finite numbers as there are calls. */
function areSteps(steps, calls) {
  const columns = Object.values(steps ?? {}).filter(Array.isArray);
  const needed = ["t", "from_x0", "from_xt", "noise_std"].every((name) => Array.isArray(steps?.[name]));
  return needed && columns.every((column) => column.length === calls && column.every(Number.isFinite));
}

/** Whether alpha_bar falls from less than 1 to 0 or more. */
function isSchedule(schedule) {
  const alphaBars = schedule?.alpha_bars;
  if (!Array.isArray(alphaBars) || !alphaBars.length) return false;
  return alphaBars.every((value, i) => Number.isFinite(value) && value >= 0 && value < (i ? alphaBars[i - 1] : 1));
}

/** @returns {number | null} the seed that `text` writes out, or null if that is not an int32 */
export function parseSeed(/** @type {string} */ text) {
  const seed = /^\s*[-+]?\d+\s*$/.test(text) ? Number(text) : NaN;
  return seed >= INT32.min && seed <= INT32.max ? seed + 0 : null;
}

/**
 * The class of a seed for which none was chosen; the same in Python, where % never gives a negative number.
 *
 * @param {number} seed
 * @param {number | null} numClasses null = the model has none
 */
export function defaultLabel(seed, numClasses) {
  return numClasses ? ((seed % numClasses) + numClasses) % numClasses : null;
}

/**
 * Seed and label of a picture, checked.
 *
 * @param {Facts} facts
 * @param {{seed: number, label?: number | null}} wish
 */
export function checkWish({ num_classes: classes }, { seed, label }) {
  whole("seed", seed, INT32.min, INT32.max);
  if (label === undefined || label === null) return { seed, label: defaultLabel(seed, classes) };
  if (!classes) throw new RangeError(`label belongs to a model with classes, and this one has none. Received: ${label}`);
  return { seed, label: whole("label", label, 0, classes - 1) };
}

/** The values (H W C) of a picture in -1 .. 1, as the network sees them. */
export function toFloats(/** @type {Facts} */ { image_shape: shape }, picture) {
  return Float32Array.from(checkArray("picture", picture, shape), (value) => {
    if (!(value >= 0 && value <= 255)) throw new RangeError(`picture must have values in 0 .. 255. Received: ${value}`);
    return value / 127.5 - 1;
  });
}

/** The pixels of values in -1 .. 1. A clamped array rounds halves to even, as Keras does, and makes NaN 0. */
export function toPixels(/** @type {Float32Array} */ x) {
  return Uint8ClampedArray.from(x, (value) => Math.fround(Math.fround(value + 1) * 127.5));
}

/** Which pixels (H W) a mask keeps: 1 or 255 = known, 0 = to paint anew. */
export function checkMask(/** @type {Facts} */ { image_shape: [height, width] }, mask) {
  return Array.from(checkArray("mask", mask, [height, width]), (value) => {
    if (![0, 1, 255].includes(value)) {
      throw new RangeError(`mask must have the values 0 (paint anew) and 1 or 255 (keep). Received: ${value}`);
    }
    return value > 0;
  });
}

/** @returns {Uint8Array} `values`, if it is a typed array of this shape */
function checkArray(name, values, shape) {
  const size = shape.reduce((a, b) => a * b);
  if (ArrayBuffer.isView(values) && /** @type {any} */ (values).length === size) return /** @type {any} */ (values);
  const received = values?.length === undefined ? values : `${values.length} values`;
  throw new RangeError(`${name} must be a typed array of ${shape.join(" x ")} values. Received: ${received}`);
}

/**
 * @param {string} name
 * @param {number} value
 * @param {number} least
 * @param {number} most
 * @returns {number} `value`, if it is a whole number from `least` to `most`
 */
export function whole(name, value, least, most) {
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  const range = most === Infinity ? `of at least ${least}` : `in ${least} .. ${most}`;
  throw new RangeError(`${name} must be a whole number ${range}. Received: ${value}`);
}
