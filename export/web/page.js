/** The page: what the visitor asks for goes to the worker, what it draws goes onto canvases and into the address. */
import { readAddress, writeAddress } from "./address.js";
import { offerEditing } from "./editing.js";
import { fetchFile } from "./files.js";
import { checkFacts, defaultLabel, parseSeed } from "./generate/index.js";
import { keepOffline } from "./offline.js";
import { fit, paint, savePng } from "./pictures.js";

const LARGEST_SEED = 2 ** 31 - 1;
const SLOW_MS = 3000; // for a picture in slow motion
const FILE_PIXELS = 1024; // the longer side of a saved picture
const SAMPLERS = {
  ancestral: "ancestral sampling",
  ddim: "DDIM",
  dpm_solver: "DPM-Solver++",
  heun: "Heun's method",
  predictor_corrector: "predictor-corrector sampling",
};

const $ = (id) => document.getElementById(id);
const form = $("form");
const canvas = $("canvas");

let facts;
let files; // beside this one, {name: bytes}
let worker;
const runs = { by: "", whyNotGpu: "", offline: "" }; // the model, in words
let editing = null;
let request = 0;
/** @type {import("./address.js").View} */
let view;
let [done, all] = [0, 1];
let cells = [];
let images = []; // of the cells
let shown = null; // the large picture
let origin = null; // what `Vary` begins with: what was shown before it
/** What the last request did to a picture: nothing, or variations() or inpaint() with these. */
let edit = {};

/** Something that ends it: no model, no browser for it. */
function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("status").textContent = "";
  $("loading").hidden = true;
  $("generate").disabled = true;
  idle();
}

const fetchJson = async (name) => (await fetchFile(name)).json().catch(() => null);

async function begin() {
  if (typeof WebAssembly !== "object") {
    throw new Error("This browser has no WebAssembly, which the model needs. Any browser of the last years has it.");
  }
  facts = checkFacts(await fetchJson("model.json"));
  files = await fetchJson("files.json");
  offerClasses();
  canvas.parentElement.classList.toggle("see-through", facts.image_shape[2] % 2 === 0);
  fitCanvas();
  describe();
  $("loading").textContent = "Loading …";
  worker = new Worker(new URL("worker.js", import.meta.url));
  worker.onmessage = ({ data }) => hear(data);
  worker.onerror = () => fail("The worker that draws could not be loaded: worker.js is missing or cannot be read.");
  worker.postMessage({ load: { facts, sizes: files } });
}

/** The model is there: draw, then see that it will be there without a network. */
async function ready({ by, hasGpu, files: runtime, whyNotEdit, whyNotSteps }) {
  runs.by = by;
  describe();
  $("gpu").parentElement.hidden = !hasGpu;
  $("gpu").addEventListener("change", askForGpu);
  $("loading").hidden = true;
  $("generate").disabled = false;
  offerSteps(whyNotSteps);
  if (!whyNotEdit) editing = offerEditing(facts.image_shape, { take: takePhoto, vary, repaint, complain });
  $("editing").hidden = !editing && $("steps-field").hidden;
  follow();
  const needed = Object.keys(files).filter((name) => !name.startsWith("litert/wasm/"));
  if (await keepOffline([...needed, ...runtime]).catch(() => false)) runs.offline = "works offline";
  describe();
}

function askForGpu() {
  $("gpu").disabled = true;
  worker.postMessage({ gpu: $("gpu").checked });
}

/** What runs the network now: not always what was asked for. */
function runsBy({ by, whyNotGpu }) {
  Object.assign(runs, { by, whyNotGpu });
  describe();
  $("gpu").disabled = false;
  $("gpu").checked = by === "WebGPU";
}

function offerSteps(whyNot) {
  $("steps-field").hidden = Boolean(whyNot);
  const most = facts.schedule.alpha_bars.length;
  $("steps").max = String(most);
  $("steps").placeholder = String(facts.sampler.num_steps);
  $("steps-hint").textContent = `1 to ${most}: fewer are faster, more are finer. Empty: ${facts.sampler.num_steps}.`;
}

/** A row of buttons, one a class; the first leaves the class to the seed. */
function offerClasses() {
  if (!facts.num_classes) return;
  const names = facts.class_names ?? Array.from({ length: facts.num_classes }, (_, label) => String(label));
  const choices = ["By seed", ...names].map((name, index) => {
    const choice = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "label" });
    input.value = index ? String(index - 1) : "";
    input.checked = index === 0;
    choice.append(input, Object.assign(document.createElement("span"), { textContent: name }));
    return choice;
  });
  $("labels").querySelector(".choices").replaceChildren(...choices);
  $("labels").hidden = false;
}

/** The facts in a line. */
function describe() {
  const [height, width, channels] = facts.image_shape;
  const calls = facts.network_calls;
  const { name, num_steps: steps } = facts.sampler;
  const colours = ["grey", "grey and alpha", "colour", "colour and alpha"][channels - 1];
  const isGuided = facts.num_classes && ![0, 1].includes(facts.guidance_scale);
  const parts = [
    `${width} × ${height} pixels, ${colours}`,
    `${count(steps, "step")} of ${SAMPLERS[name] ?? name}` + (oneCallAStep() ? "" : `, ${calls} network calls`),
    isGuided && `guidance ${facts.guidance_scale}, for which each call asks the network twice`,
    facts.precision,
    facts.bytes && megabytes(facts.bytes),
    ...Object.values(runs),
  ];
  $("facts").textContent = parts.filter(Boolean).join(" · ");
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** For example "1 step" or "50 steps". */
const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

/** Whether a step is one call of the network, so that the counter, which counts calls, may say "step". */
function oneCallAStep() {
  return facts.network_calls === facts.sampler.num_steps;
}

function hear(message) {
  if ("ready" in message) {
    ready(message.ready);
  } else if ("by" in message) {
    runsBy(message);
  } else if ("loaded" in message) {
    $("progress").value = message.loaded / message.total;
    $("loading").textContent = `Loading ${(message.loaded / 1e6).toFixed(1)} of ${megabytes(message.total)}`;
  } else if ("failed" in message) {
    fail(message.failed);
  } else if (message.id === request) {
    if (message.done) finish();
    else show(message);
  }
}

/** Draw what the address asks for; without a word in it, what the form says. */
function follow() {
  const asked = readAddress(location.hash);
  if (asked.seed !== null) $("seed").value = asked.seed;
  if (asked.steps !== null && $("steps-field").hidden) {
    return complain(`The link asks for steps=${asked.steps}, but this model has its own number alone.`);
  }
  $("steps").value = asked.steps ?? "";
  if (asked.steps && !$("steps").value) return complain(`The link asks for steps=${asked.steps}, which is no number.`, $("steps"));
  const wanted = { label: asked.label ?? "", grid: asked.grid ?? "0" };
  for (const [name, value] of Object.entries(wanted)) {
    const choices = [...form.querySelectorAll(`input[name="${name}"]`)];
    const choice = choices.find((input) => input.value === value);
    if (choice) choice.checked = true;
    else if (choices.length || value) return complain(`The link asks for ${name}=${value}, which is none of these.`);
  }
  draw({}, asked.first);
}

function complain(message, input = $("seed")) {
  stop();
  $("status").textContent = "";
  $("seed-error").textContent = message;
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

function stop() {
  request += 1;
  worker.postMessage({ draw: null });
  idle();
}

/**
 * Draw what the form says, in place of whatever is being drawn.
 *
 * @param {{picture?: Uint8ClampedArray, strength?: number, mask?: Uint8Array}} how what to change, nothing = generate
 * @param {string | null} firstText the seed at which the grid begins
 */
function draw(how = {}, firstText = null) {
  const seed = parseSeed($("seed").value);
  const first = firstText === null ? seed : parseSeed(firstText);
  const grid = Number(form.elements.grid.value);
  if (seed === null || first === null) {
    return complain(`A seed is a whole number from -2147483648 to ${LARGEST_SEED}.`);
  }
  if (grid && first + grid - 1 > LARGEST_SEED) {
    const last = LARGEST_SEED - grid + 1;
    return complain(`The seeds of ${grid} pictures would pass ${LARGEST_SEED}: begin at ${last} or less.`);
  }
  if (!$("steps").validity.valid) {
    return complain(`Steps must be a whole number from 1 to ${$("steps").max}.`, $("steps"));
  }
  edit = how;
  const chosen = form.elements.label?.value ?? "";
  const steps = Number($("steps").value) || undefined;
  view = { seed, label: chosen === "" ? null : Number(chosen), grid, first, steps };
  $("seed").value = String(seed);
  $("seed-error").textContent = "";
  for (const input of [$("seed"), $("steps")]) input.removeAttribute("aria-invalid");
  if (!edit.picture) history.replaceState(null, "", writeAddress(view)); // a link draws from noise
  layOutGrid();
  busy();
  request += 1;
  const asked = wishes();
  [done, all] = [0, asked.length];
  worker.postMessage({
    draw: request,
    wishes: asked,
    every: $("slow").checked || !matchMedia("(prefers-reduced-motion: reduce)").matches,
    delay: $("slow").checked ? SLOW_MS / (steps ?? facts.network_calls) : 0,
  });
}

/** The large picture first; it is also the grid's first unless a link says otherwise. */
function wishes() {
  const wish = (seed, cell, large) => {
    const label = view.label ?? defaultLabel(seed, facts.num_classes);
    return { ...edit, seed, label, cell, large, steps: view.steps };
  };
  const both = view.grid > 0 && view.first === view.seed;
  const inGrid = Array.from({ length: view.grid }, (_, cell) => wish(view.first + cell, cell, both && cell === 0));
  return both ? inGrid : [wish(view.seed, null, true), ...inGrid];
}

/** Change what is shown, or what was shown before it was varied: to vary again is to begin anew. */
function vary(strength) {
  draw({ picture: origin, strength });
  bringPictureIntoView();
}

function repaint(mask) {
  draw({ picture: shown, mask });
  bringPictureIntoView();
}

const bringPictureIntoView = () => $("picture").scrollIntoView({ block: "nearest" });

function takePhoto(image) {
  stop();
  bringPictureIntoView();
  edit = {};
  showLarge(image, "Your photo");
  $("counter").textContent = "";
  $("time").textContent = "";
  $("progress").value = 0;
  $("status").textContent = "Your photo, as the model sees it.";
}

/** A picture that is whole, on the large canvas, to be saved and changed. */
function showLarge(image, name) {
  shown = image;
  if (edit.strength === undefined) origin = image;
  paint(canvas, image, facts.image_shape);
  canvas.setAttribute("aria-label", name);
  $("save").disabled = false;
  editing?.enable(true);
}

function show({ wish, image, calls, of, ms, callMs }) {
  const isWhole = calls === of;
  if (wish.large) {
    if (isWhole) showLarge(image, named(wish));
    else {
      paint(canvas, image, facts.image_shape);
      canvas.setAttribute("aria-label", `${named(wish)}, unfinished`);
    }
    const unit = oneCallAStep() && !edit.mask ? "step" : "call";
    $("counter").textContent = `${unit === "step" ? "Step" : "Call"} ${calls} of ${of}`;
    $("time").textContent = calls
      ? `${callMs.toFixed(1)} ms a ${unit}, ${ms.toFixed(0)} ms ${isWhole ? "the picture" : "so far"}`
      : "";
  }
  if (isWhole) {
    done += 1;
    if (wish.cell !== null) fill(wish, image);
    if (all > 1) $("counter").textContent = `Picture ${done} of ${all}`;
  }
  $("progress").value = (done + (isWhole ? 0 : calls / of)) / all;
}

function named({ seed, label }) {
  const what = edit.mask ? "Repainting" : edit.picture ? "Variation" : "Picture";
  return `${what} of seed ${seed}${label === null ? "" : `, class ${facts.class_names?.[label] ?? label}`}`;
}

function busy() {
  $("picture").setAttribute("aria-busy", "true");
  $("cancel").disabled = false;
  $("save").disabled = true;
  editing?.enable(false);
  $("save-grid").disabled = true;
  $("progress").value = 0;
  $("status").textContent = view.grid ? `Drawing ${view.grid} pictures …` : `Drawing seed ${view.seed} …`;
}

function idle() {
  if (document.activeElement === $("cancel")) $("generate").focus(); // a disabled button loses the keyboard's place
  $("picture").setAttribute("aria-busy", "false");
  $("cancel").disabled = true;
  editing?.enable(shown !== null);
}

function finish() {
  idle();
  $("save-grid").disabled = false;
  $("status").textContent = view.grid ? `${view.grid} pictures drawn.` : `Seed ${view.seed} drawn.`;
}

function layOutGrid() {
  $("grid-section").hidden = !view.grid;
  const columns = Math.sqrt(view.grid);
  $("grid").style.setProperty("--columns", String(columns));
  $("grid-title").textContent = `Seeds ${view.first} to ${view.first + view.grid - 1}`;
  cells = Array.from({ length: view.grid }, (_, index) => {
    const cell = Object.assign(document.createElement("button"), { type: "button", disabled: true });
    cell.tabIndex = index ? -1 : 0; // one stop for Tab; the arrow keys move inside
    cell.setAttribute("aria-label", `Seed ${view.first + index}, not drawn yet`);
    cell.append(Object.assign(document.createElement("canvas"), { width: 1, height: 1 }));
    cell.addEventListener("click", () => choose(index));
    return cell;
  });
  images = [];
  $("grid").replaceChildren(...cells);
  markChosen();
}

function fill(wish, image) {
  const cell = cells[wish.cell];
  images[wish.cell] = image;
  paint(cell.firstChild, image, facts.image_shape);
  cell.setAttribute("aria-label", named(wish));
  cell.disabled = false;
}

function markChosen() {
  cells.forEach((cell, index) => cell.setAttribute("aria-pressed", String(view.first + index === view.seed)));
}

/** Take a cell's seed, and its picture, which is drawn already. */
function choose(index) {
  view.seed = view.first + index;
  $("seed").value = String(view.seed);
  if (form.elements.label) form.elements.label.value = view.label ?? "";
  showLarge(images[index], cells[index].getAttribute("aria-label"));
  bringPictureIntoView();
  $("time").textContent = "";
  if (!edit.picture) history.replaceState(null, "", writeAddress(view));
  markChosen();
}

function moveInGrid(event) {
  const columns = Math.sqrt(cells.length);
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const from = cells.indexOf(document.activeElement);
  const to = cells[from + move];
  if (!to || to.disabled) return;
  event.preventDefault();
  cells[from].tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function fitCanvas() {
  const paper = getComputedStyle(canvas.parentElement);
  const room = canvas.parentElement.clientWidth - parseFloat(paper.paddingLeft) - parseFloat(paper.paddingRight);
  fit([canvas, $("mask")], room, facts.image_shape);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("generate").disabled) draw();
});
$("dice").addEventListener("click", () => {
  $("seed").value = String(crypto.getRandomValues(new Int32Array(1))[0] >>> 1);
  if (!$("generate").disabled) draw(edit);
});
$("cancel").addEventListener("click", () => {
  stop();
  $("status").textContent = "Cancelled.";
});
$("save").addEventListener("click", () => {
  savePng(`seed${view.seed}${view.label === null ? "" : `-class${view.label}`}.png`, [canvas], 1, FILE_PIXELS);
});
$("save-grid").addEventListener("click", () => {
  const sources = cells.map((cell) => cell.firstChild);
  savePng(`seeds${view.first}-${view.first + view.grid - 1}.png`, sources, Math.sqrt(view.grid), FILE_PIXELS);
});
$("grid").addEventListener("keydown", moveInGrid);
window.addEventListener("hashchange", () => !$("generate").disabled && follow());
window.addEventListener("resize", () => facts && fitCanvas());

begin().catch((error) => fail(error.message));
