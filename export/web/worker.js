/**
 * Loads the model and draws with it, so that the page stays alive meanwhile. It is told
 *   {load: facts}                     and answers {ready: number of threads} or {failed: message},
 *   {draw: id, wishes, every, delay}  and answers {id, wish, image, calls, ms, callMs} when a wish is drawn and, where
 *                                     it is large and `every` is set, on the way; then {id, done: true} or {failed},
 *   {draw: null}                      and stops before its next call without an answer, as it does for the next `draw`.
 *
 * This is a classic worker because LiteRT.js loads its WebAssembly by importScripts, which module workers refuse.
 */
const WASM = new URL("litert/wasm/", self.location.href).href;
const MOST_THREADS = 4; // the networks are small: more of them wait for each other
const FRAME_MS = 16; // a screen shows no more

let model = null;
let wanted = null;
let work = Promise.resolve();

self.onmessage = ({ data }) => {
  if (data.load) {
    load(data.load).then(
      (threads) => self.postMessage({ ready: threads }),
      (error) => self.postMessage({ failed: String(error?.message ?? error) }),
    );
    return;
  }
  wanted = data.draw;
  if (wanted !== null) work = work.then(() => draw(data));
};

async function load(facts) {
  const [{ fetchFile, Model }, litert] = await Promise.all([import("./model.js"), import("./litert/index.js")]);
  const bytes = new Uint8Array(await (await fetchFile("model.tflite")).arrayBuffer());
  await check(bytes, facts);
  const threads = await startLiteRt(litert);
  model = await Model.load(litert, bytes, facts, threads);
  return threads;
}

async function check(bytes, facts) {
  // Browsers offer crypto.subtle on https and localhost only; elsewhere the length has to do.
  if (bytes.length !== facts.bytes || (self.crypto.subtle && (await sha256(bytes)) !== facts.sha256)) {
    throw new Error("model.tflite is not the file that model.json describes: its length or sha256 differs.");
  }
}

async function sha256(bytes) {
  const digest = new Uint8Array(await self.crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Promise<number>} the number of threads: more than one needs shared memory and relaxed SIMD */
async function startLiteRt(litert) {
  const threaded = self.crossOriginIsolated && (await litert.supportsFeature("relaxedSimd"));
  self.Module = {
    // In a worker the loader looks beside the worker's own script.
    locateFile: (name) => WASM + name,
    mainScriptUrlOrBlob: `${WASM}litert_wasm_threaded_internal.js`,
    // LiteRT.js writes all its notes to stderr, which the console would show as errors.
    printErr: (line) => (line.startsWith("ERROR") ? console.error(line) : console.debug(line)),
  };
  // LiteRT.js asks for a GPU although the model runs in WebAssembly; that would wake one and warn where there is none.
  const noDevice = { limits: {}, features: new Set(), requestDevice: async () => null };
  Object.defineProperty(self.navigator, "gpu", { value: { requestAdapter: async () => noDevice }, configurable: true });
  await litert.loadLiteRt(WASM, { threads: threaded });
  return threaded ? Math.min(self.navigator.hardwareConcurrency ?? 1, MOST_THREADS) : 1;
}

async function draw({ draw: id, wishes, every, delay }) {
  try {
    for (const wish of wishes) {
      if (!(await drawOne(id, wish, wish.large && every, wish.large ? delay : 0))) return;
    }
    self.postMessage({ id, done: true });
  } catch (error) {
    self.postMessage({ failed: String(error?.message ?? error) });
  }
}

/** @returns {Promise<boolean>} whether it came to its end before something else was wanted */
async function drawOne(id, wish, every, delay) {
  const all = model.facts.network_calls;
  let callsMs = 0;
  let frameAt = -Infinity;
  let [x, ms] = await timed(model.start(wish.seed));
  const startMs = ms;
  for (let calls = 0; ; calls++) {
    const begun = performance.now();
    if (calls === all || (every && begun - frameAt >= FRAME_MS)) {
      frameAt = begun;
      const [image, finishMs] = await timed(model.finish(x));
      const answer = { id, wish, image, calls, ms: startMs + callsMs + finishMs, callMs: callsMs / Math.max(calls, 1) };
      self.postMessage(answer, [image.buffer]);
    }
    if (calls === all) break;
    await pause(delay);
    if (wanted !== id) break;
    [x, ms] = await timed(model.step(x, calls, wish));
    callsMs += ms;
  }
  x.delete();
  return wanted === id;
}

async function timed(promise) {
  const begun = performance.now();
  return [await promise, performance.now() - begun];
}

/** Let messages in. A message to oneself, where there is no delay: browsers stretch short timeouts to 4 ms. */
const { port1, port2 } = new MessageChannel();
function pause(delay) {
  return new Promise((resolve) => {
    if (delay > 0) return void setTimeout(resolve, delay);
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
}
