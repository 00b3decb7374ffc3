/**
 * Runs models with LiteRT.js in Node. Each line of stdin is {model, facts, hide, calls}: the .tflite, its side file, the
 * signatures that the module is not to see, and the calls {method, stopAt, ...options} of a model's methods, with
 * pictures and masks as lists. Each is answered by a line {results}, a list of {counts, pictures, error} with what
 * onStep saw, the last picture included, or by {error} if the model could not be loaded.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { load } from "../../export/web/generate/index.js";
import { loadLiteRt } from "../../export/web/generate/node.js";

const litert = await loadLiteRt();

/** LiteRT.js as if the file lacked some signatures. */
const without = (hidden) => ({
  Tensor: litert.Tensor,
  async loadAndCompile(...args) {
    const compiled = await litert.loadAndCompile(...args);
    const signatures = Object.entries(compiled.signatures).filter(([name]) => !hidden.includes(name));
    return { signatures: Object.fromEntries(signatures), run: (...args) => compiled.run(...args) };
  },
});

async function called(model, { method, stopAt, ...options }) {
  for (const name of ["picture", "mask"]) if (options[name]) options[name] = Uint8Array.from(options[name]);
  const [counts, pictures] = [[], []];
  const controller = new AbortController();
  const onStep = async ({ calls, of, picture }) => {
    counts.push([calls, of]);
    pictures.push([...((await picture()) ?? [])]);
    if (calls === stopAt) controller.abort();
  };
  try {
    pictures.push([...(await model[method]({ ...options, onStep, signal: controller.signal }))]);
    return { counts, pictures };
  } catch (error) {
    return { counts, pictures, error: `${error.name}: ${error.message}` };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { model: file, facts, hide, calls } = JSON.parse(line);
  let answer;
  try {
    const model = await load({ litert: without(hide), bytes: readFileSync(file), facts });
    const results = [];
    for (const call of calls) results.push(await called(model, call));
    answer = { results, whyNotEdit: model.whyNotEdit, whyNotSteps: model.whyNotSteps };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
