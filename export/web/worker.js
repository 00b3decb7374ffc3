/**
 * Loads the model and draws with it, so that the page stays alive meanwhile. It is told
 *   {load: {facts, sizes}}            and answers {loaded, total}, in bytes, on the way, then {ready} or {failed: message},
 *   {draw: id, wishes, every, delay}  and answers {id, wish, image, calls, of, ms, callMs} when a wish is drawn and,
 *                                     where it is large and `every` is set, on the way; then {id, done: true} or {failed},
 *   {draw: null}                      and stops before its next call without an answer, as it does for the next `draw`,
 *   {gpu: true or false}              and answers {by: what runs the network, whyNotGpu}, as after a `draw` that lost it.
 *
 * This is a classic worker because LiteRT.js loads its WebAssembly by importScripts, which module workers refuse.
 */
const RUNTIMES = "litert/wasm/";
const MOST_THREADS = 4; // the networks are small: more of them wait for each other
const FRAME_MS = 16; // a screen shows no more
const NEWS_MS = 50; // between two reports of what is loaded

const gpu = self.navigator.gpu; // LiteRT.js is shown none before one is asked for

let model = null;
let useGpu = null;
let onCpu = "";
let stopped = new AbortController();
let work = Promise.resolve();

self.onmessage = ({ data }) => {
  if (data.load) {
    load(data.load).then(
      (ready) => self.postMessage({ ready }),
      (error) => self.postMessage({ failed: String(error?.message ?? error) }),
    );
    return;
  }
  if ("gpu" in data) {
    work = work.then(() => switchTo(data.gpu));
    return;
  }
  stopped.abort();
  stopped = new AbortController();
  const { signal } = stopped;
  if (data.draw !== null) work = work.then(() => draw(data, signal));
};

async function load({ facts, sizes }) {
  const [files, generate, litert] = await Promise.all([
    import("./files.js"),
    import("./generate/index.js"),
    import("./litert/index.js"),
  ]);
  const hasSimd = await litert.supportsFeature("relaxedSimd");
  const isThreaded = self.crossOriginIsolated && hasSimd; // threads share memory
  const kind = isThreaded ? "threaded_" : hasSimd ? "" : "compat_";
  const runtime = `${RUNTIMES}litert_wasm_${kind}internal`;
  const hear = report(facts.bytes + sizes[`${runtime}.wasm`]);
  const [bytes] = await Promise.all([
    files.fetchFile("model.tflite").then((response) => files.readBytes(response, hear)),
    startLiteRt(litert, files, runtime, hear),
  ]);
  const threads = isThreaded ? Math.min(self.navigator.hardwareConcurrency ?? 1, MOST_THREADS) : 1;
  model = await generate.load({ litert, bytes, facts, threads, accelerator: "wasm" });
  onCpu = `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
  useGpu = async () => {
    litert.setWebGpuDevice(await deviceOf(await gpu.requestAdapter({ powerPreference: "high-performance" })));
    await model.useGpu(bytes);
  };
  const { whyNotEdit, whyNotSteps } = model;
  return { by: onCpu, hasGpu: Boolean(gpu), files: [`${runtime}.js`, `${runtime}.wasm`], whyNotEdit, whyNotSteps };
}

/** A device with the limits that LiteRT.js wants. */
async function deviceOf(adapter) {
  if (!adapter) throw new Error("This browser gives pages no GPU here.");
  const { maxBufferSize, maxStorageBufferBindingSize, maxStorageBuffersPerShaderStage } = adapter.limits;
  const requiredFeatures = ["shader-f16", "subgroups"].filter((feature) => adapter.features.has(feature));
  const requiredLimits = { maxBufferSize, maxStorageBufferBindingSize, maxStorageBuffersPerShaderStage };
  return adapter.requestDevice({ requiredFeatures, requiredLimits });
}

async function switchTo(isGpu) {
  model.useCpu();
  let whyNotGpu = null;
  if (isGpu) await useGpu().catch((error) => (whyNotGpu = error.message));
  tell(whyNotGpu);
}

/** Say what runs the network. */
function tell(whyNotGpu = null) {
  const by = model.accelerator === "webgpu" ? "WebGPU" : onCpu;
  self.postMessage({ by, whyNotGpu: whyNotGpu ?? model.whyNotGpu });
}

/** @returns {(bytes: number) => void} which adds up what has come and tells the page now and then */
function report(total) {
  let loaded = 0;
  let toldAt = -Infinity;
  return (bytes) => {
    loaded += bytes;
    const now = performance.now();
    if (now - toldAt < NEWS_MS && loaded < total) return;
    toldAt = now;
    self.postMessage({ loaded, total });
  };
}

async function startLiteRt(litert, files, runtime, hear) {
  const { prepare } = await import("./generate/litert.js");
  const script = new URL(`${runtime}.js`, self.location.href).href;
  await new Promise((resolve, reject) => {
    prepare({
      mainScriptUrlOrBlob: script, // of the threads
      instantiateWasm(imports, resolveWasm) {
        instantiate(files, `${runtime}.wasm`, imports, hear).then(
          ({ instance, module }) => resolveWasm(instance, module),
          reject,
        );
        return {};
      },
    });
    litert.loadLiteRt(script).then(resolve, reject);
  });
}

/** Compile WebAssembly while it comes in, and count what has come. */
async function instantiate(files, name, imports, hear) {
  const response = await files.fetchFile(name);
  const counted = files.readBytes(response.clone(), hear);
  // Hosts that serve it under another type rule out the first way.
  return WebAssembly.instantiateStreaming(response, imports).catch(async () =>
    WebAssembly.instantiate(await counted, imports),
  );
}

async function draw({ draw: id, wishes, every, delay }, signal) {
  const { accelerator } = model;
  try {
    for (const wish of wishes) await drawOne(id, wish, wish.large && every, wish.large ? delay : 0, signal);
    if (model.accelerator !== accelerator) tell();
    self.postMessage({ id, done: true });
  } catch (error) {
    if (!signal.aborted) self.postMessage({ failed: String(error?.message ?? error) });
  }
}

/** @returns {Promise<void>} when the picture is drawn; rejected when the signal came before */
async function drawOne(id, { seed, label, cell, large, ...how }, every, delay, signal) {
  let [ms, callsMs, frameAt] = [0, 0, -Infinity];
  let [before, all] = [performance.now(), 0];
  const send = (image, calls) => {
    const wish = { seed, label, cell, large };
    const answer = { id, wish, image, calls, of: all, ms, callMs: callsMs / Math.max(calls, 1) };
    self.postMessage(answer, [image.buffer]);
  };
  const onStep = async ({ calls, of, picture }) => {
    const now = performance.now();
    ms += now - before;
    if (calls) callsMs += now - before;
    all = of;
    if (calls < of) {
      const image = every && now - frameAt >= FRAME_MS ? await picture() : null;
      if (image) {
        frameAt = now;
        send(image, calls);
      }
      await pause(delay);
    }
    before = performance.now();
  };
  const method = how.mask ? "inpaint" : how.picture ? "variations" : "generate";
  const image = await model[method]({ seed, label, ...how, onStep, signal });
  ms += performance.now() - before;
  send(image, all);
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
