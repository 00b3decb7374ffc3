/**
 * The side file of a model, and the arguments that it gives a meaning to.
 *
 * @typedef {import("./index.js").Facts} Facts
 */

const DESCRIPTION_VERSION = 3; // other versions give other meanings to the words of the side file
const INT32 = { min: -(2 ** 31), max: 2 ** 31 - 1 };
const MOST_CHANNELS = 4; // grey, grey and alpha, RGB, RGBA
const LARGEST = 1e30; // of a coefficient: what float32 holds, with room for products
const RUNTIME = [2, 21, 0]; // what LiteRT.js 2.5.3 counts as among the versions of TensorFlow Lite
const OF_MEMORY = ["from_memory", "memory_from_x0", "memory_from_xt", "memory_from_memory"];
const OF_LEARNED_VARIANCE = ["log_variance_low", "log_variance_high"];

/** @returns {Facts} what was found in a side file, if it is one that this module reads */
export function checkFacts(found) {
  if (typeof found !== "object" || found === null || Array.isArray(found)) {
    throw new Error(`The model's side file must be an object of JSON. Received: ${inWords(found)}.`);
  }
  const version = found.description_version;
  if (version !== DESCRIPTION_VERSION) {
    const received = version === undefined ? "none, as in older exports" : inWords(version);
    const expected = `The model's side file must have description_version ${DESCRIPTION_VERSION}.`;
    throw new Error(`${expected} Received: ${received}.`);
  }
  for (const name of ["network_calls", "state_channels", "batch_size", "bytes"]) check(found, name, COUNT, isCount);
  const isShape = (of) => isList(of, 3) && of.every(isCount);
  const [, , channels] = check(found, "image_shape", "three whole numbers of at least 1", isShape);
  check(found, "num_classes", `null or ${COUNT}`, (of) => of === null || isCount(of));
  for (const name of ["file", "precision", "sha256"]) check(found, name, "a text", isText);
  checkVersion(found);
  checkSteps(found, checkSchedule(found));
  checkSampler(found);
  checkOthers(found);
  if (channels > MOST_CHANNELS) {
    throw new Error(`A picture must have 1 to ${MOST_CHANNELS} channels. Received: ${channels}.`);
  }
  if (found.batch_size !== 1) throw new Error(`The model's batch_size must be 1. Received: ${found.batch_size}.`);
  return found;
}

const COUNT = "a whole number of at least 1";
const isWhole = (/** @type {any} */ value, least = INT32.min) =>
  Number.isInteger(value) && value >= least && value <= INT32.max;
const isCount = (/** @type {any} */ value) => isWhole(value, 1);
const isText = (/** @type {any} */ value) => typeof value === "string";
const isNumber = (/** @type {any} */ value, least = -LARGEST, most = LARGEST) =>
  typeof value === "number" && value >= least && value <= most;
const isList = (/** @type {any} */ value, length = value?.length) => Array.isArray(value) && value.length === length;
const isGiven = (/** @type {any} */ value) => value !== undefined && value !== null;

/** What stands in place of an entry, in a few words. */
function inWords(value) {
  if (value === undefined) return "none";
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return typeof value === "object" && value !== null ? "an object" : JSON.stringify(value).slice(0, 40);
}

/** @returns {any} the entry of a side file, such as `sampler.name` or `steps.t.0`, if it is as expected */
function check(found, name, expected, isRight) {
  const value = name.split(".").reduce((of, key) => of?.[key], found);
  if (isRight(value)) return value;
  throw new Error(`The model's side file must have ${name}, ${expected}. Received: ${inWords(value)}.`);
}

function checkNumbers(found, name, length) {
  const list = check(found, name, `a list of ${length}`, (of) => isList(of, length));
  for (const i of list.keys()) check(found, `${name}.${i}`, "a number of float32", (of) => isNumber(of));
  return list;
}

/** The file must not need a newer TensorFlow Lite than LiteRT.js has. */
function checkVersion(found) {
  const isVersion = (of) => isText(of) && /^\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(of);
  const needed = check(found, "min_runtime_version", 'a version such as "2.13.0"', isVersion);
  const numbers = needed.split(".").map(Number);
  const at = numbers.findIndex((number, i) => number !== RUNTIME[i]);
  if (at < 0 || numbers[at] < RUNTIME[at]) return;
  throw new Error(`The model needs TensorFlow Lite ${needed} or newer. Received: LiteRT.js, of ${RUNTIME.join(".")}.`);
}

/** @returns {number[]} the timesteps at which alpha_bar is known, which falls */
function checkSchedule(found) {
  const alphaBars = check(found, "schedule.alpha_bars", "a list of numbers", (of) => isList(of) && of.length > 0);
  let before = 1;
  for (const i of alphaBars.keys()) {
    const expected = `at least 0 and less than ${before}`;
    before = check(found, `schedule.alpha_bars.${i}`, expected, (of) => isNumber(of, 0) && of < before);
  }
  if (!isGiven(found.schedule.timesteps)) return [...alphaBars.keys()];
  const timesteps = checkNumbers(found, "schedule.timesteps", alphaBars.length);
  for (const i of timesteps.keys()) {
    const least = i ? timesteps[i - 1] + 1 : 0;
    check(found, `schedule.timesteps.${i}`, `a whole number of at least ${least}`, (of) => isWhole(of, least));
  }
  return timesteps;
}

/** The rows of a walk are columns of as many numbers as there are calls, at timesteps of the schedule. */
function checkSteps(found, timesteps) {
  const columns = ["t", "from_x0", "from_xt", "noise_std"];
  for (const group of [OF_MEMORY, OF_LEARNED_VARIANCE]) {
    if (group.some((name) => isGiven(found.steps?.[name]))) columns.push(...group);
  }
  for (const name of columns) checkNumbers(found, `steps.${name}`, found.network_calls);
  const known = new Set(timesteps);
  for (let i = 0; i < found.network_calls; i++) {
    check(found, `steps.t.${i}`, "a timestep of the schedule", (of) => known.has(of));
  }
}

/** What the ways to a picture need to know of the sampler. */
function checkSampler(found) {
  const name = check(found, "sampler.name", "a text", isText);
  check(found, "sampler.num_steps", COUNT, isCount);
  check(found, "sampler.clip", 'true, false or "dynamic"', (of) => [true, false, "dynamic"].includes(of));
  if (name === "ddim") check(found, "sampler.eta", "a number in [0, 1]", (of) => isNumber(of, 0, 1));
  if (name !== "ancestral") return;
  const names = ["small", "large", "learned"];
  const expected = '"small", "large", "learned" or a list of numbers';
  const variance = check(found, "sampler.variance", expected, (of) => names.includes(of) || isList(of));
  if (isList(variance)) checkNumbers(found, "sampler.variance", variance.length);
}

/** What a side file may lack: names of classes, noise to compare with. */
function checkOthers(found) {
  if (isGiven(found.class_names)) {
    const count = found.num_classes ?? 0;
    check(found, "class_names", `null or ${count} texts`, (of) => isList(of, count) && of.every(isText));
  }
  if (!isGiven(found.vectors)) return;
  const vectors = check(found, "vectors", "a list", (of) => isList(of));
  if (!vectors.length) return;
  check(found, "vectors.0.seed", "a whole number of 32 bits", (of) => isWhole(of));
  check(found, "vectors.0.noise_sha256", "a text", isText);
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
