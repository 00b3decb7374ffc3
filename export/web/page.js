/** The page: what the visitor asks for goes to the worker, what it draws goes onto canvases and into the address. */
import { readAddress, writeAddress } from "./address.js";
import { checkFacts, count, defaultLabel, fetchFile, parseSeed } from "./model.js";
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
let worker;
let request = 0;
/** @type {import("./address.js").View} */
let view;
let [done, all] = [0, 1];
let cells = [];

/** Something that ends it: no model, no browser for it. */
function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("status").textContent = "";
  $("generate").disabled = true;
  idle();
}

async function fetchFacts() {
  return checkFacts(await (await fetchFile("model.json")).json().catch(() => null));
}

async function begin() {
  if (typeof WebAssembly !== "object") {
    throw new Error("This browser has no WebAssembly, which the model needs. Any browser of the last years has it.");
  }
  facts = await fetchFacts();
  offerClasses();
  fitCanvas();
  describe(null);
  $("status").textContent = "Loading the model …";
  worker = new Worker(new URL("worker.js", import.meta.url));
  worker.onmessage = ({ data }) => hear(data);
  worker.onerror = () => fail("The worker that draws could not be loaded: worker.js is missing or cannot be read.");
  worker.postMessage({ load: facts });
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

function describe(threads) {
  const [height, width, channels] = facts.image_shape;
  const calls = facts.network_calls;
  const { name, num_steps: steps } = facts.sampler;
  const parts = [
    `${width} × ${height} pixels, ${channels === 1 ? "grey" : "colour"}`,
    `${count(steps, "step")} of ${SAMPLERS[name] ?? name}` + (oneCallAStep() ? "" : `, ${calls} network calls`),
    facts.precision,
    facts.bytes && `${(facts.bytes / 1e6).toFixed(1)} MB`,
    threads && count(threads, "thread"),
  ];
  $("facts").textContent = parts.filter(Boolean).join(" · ");
}

/** Whether a step is one call of the network, so that the counter, which counts calls, may say "step". */
function oneCallAStep() {
  return facts.network_calls === facts.sampler.num_steps;
}

function hear(message) {
  if ("ready" in message) {
    describe(message.ready);
    $("generate").disabled = false;
    $("status").textContent = "";
    follow();
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
  const wanted = { label: asked.label ?? "", grid: asked.grid ?? "0" };
  for (const [name, value] of Object.entries(wanted)) {
    const choices = [...form.querySelectorAll(`input[name="${name}"]`)];
    const choice = choices.find((input) => input.value === value);
    if (choice) choice.checked = true;
    else if (choices.length || value) return complain(`The link asks for ${name}=${value}, which is none of these.`);
  }
  draw(asked.first);
}

function complain(message) {
  stop();
  $("status").textContent = "";
  $("seed-error").textContent = message;
  $("seed").setAttribute("aria-invalid", "true");
  $("seed").focus();
}

function stop() {
  request += 1;
  worker.postMessage({ draw: null });
  idle();
}

/** Draw what the form says, in place of whatever is being drawn; `firstText` is the seed at which the grid begins. */
function draw(firstText = null) {
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
  const chosen = form.elements.label?.value ?? "";
  view = { seed, label: chosen === "" ? null : Number(chosen), grid, first };
  $("seed").value = String(seed);
  $("seed-error").textContent = "";
  $("seed").removeAttribute("aria-invalid");
  history.replaceState(null, "", writeAddress(view));
  layOutGrid();
  busy();
  request += 1;
  const asked = wishes();
  [done, all] = [0, asked.length];
  worker.postMessage({
    draw: request,
    wishes: asked,
    every: $("slow").checked || !matchMedia("(prefers-reduced-motion: reduce)").matches,
    delay: $("slow").checked ? SLOW_MS / facts.network_calls : 0,
  });
}

/** The large picture first; it is also the grid's first unless a link says otherwise. */
function wishes() {
  const wish = (seed, cell, large) => {
    return { seed, label: view.label ?? defaultLabel(seed, facts.num_classes), cell, large };
  };
  const both = view.grid > 0 && view.first === view.seed;
  const inGrid = Array.from({ length: view.grid }, (_, cell) => wish(view.first + cell, cell, both && cell === 0));
  return both ? inGrid : [wish(view.seed, null, true), ...inGrid];
}

function show({ wish, image, calls, ms, callMs }) {
  const isWhole = calls === facts.network_calls;
  if (wish.large) {
    paint(canvas, image, facts.image_shape);
    canvas.setAttribute("aria-label", isWhole ? named(wish) : `${named(wish)}, unfinished`);
    const unit = oneCallAStep() ? "step" : "call";
    $("counter").textContent = `${unit === "step" ? "Step" : "Call"} ${calls} of ${facts.network_calls}`;
    $("time").textContent = calls
      ? `${callMs.toFixed(1)} ms a ${unit}, ${ms.toFixed(0)} ms ${isWhole ? "the picture" : "so far"}`
      : "";
  }
  if (isWhole) {
    done += 1;
    if (wish.large) $("save").disabled = false;
    if (wish.cell !== null) fill(wish, image);
    if (all > 1) $("counter").textContent = `Picture ${done} of ${all}`;
  }
  $("progress").value = (done + (isWhole ? 0 : calls / facts.network_calls)) / all;
}

function named({ seed, label }) {
  return `Picture of seed ${seed}${label === null ? "" : `, class ${facts.class_names?.[label] ?? label}`}`;
}

function busy() {
  $("picture").setAttribute("aria-busy", "true");
  $("cancel").disabled = false;
  $("save").disabled = true;
  $("save-grid").disabled = true;
  $("progress").value = 0;
  $("status").textContent = view.grid ? `Drawing ${view.grid} pictures …` : `Drawing seed ${view.seed} …`;
}

function idle() {
  if (document.activeElement === $("cancel")) $("generate").focus(); // a disabled button loses the keyboard's place
  $("picture").setAttribute("aria-busy", "false");
  $("cancel").disabled = true;
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
  $("grid").replaceChildren(...cells);
  markChosen();
}

function fill(wish, image) {
  const cell = cells[wish.cell];
  paint(cell.firstChild, image, facts.image_shape);
  cell.setAttribute("aria-label", named(wish));
  cell.disabled = false;
}

function markChosen() {
  cells.forEach((cell, index) => cell.setAttribute("aria-pressed", String(view.first + index === view.seed)));
}

/** Take a cell's seed, and its picture, which is drawn already. */
function choose(index) {
  const source = cells[index].firstChild;
  view.seed = view.first + index;
  $("seed").value = String(view.seed);
  if (form.elements.label) form.elements.label.value = view.label ?? "";
  canvas.width = source.width;
  canvas.height = source.height;
  canvas.getContext("2d").drawImage(source, 0, 0);
  canvas.setAttribute("aria-label", cells[index].getAttribute("aria-label"));
  $("time").textContent = "";
  $("save").disabled = false;
  history.replaceState(null, "", writeAddress(view));
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
  fit(canvas, room, facts.image_shape);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("generate").disabled) draw();
});
$("dice").addEventListener("click", () => {
  $("seed").value = String(crypto.getRandomValues(new Int32Array(1))[0] >>> 1);
  if (!$("generate").disabled) draw();
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
