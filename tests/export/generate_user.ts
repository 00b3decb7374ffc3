/** One who uses the module, for the compiler; nothing here runs. */
import { type Facts, load } from "../../export/web/generate/index.js";
import { loadLiteRt } from "../../export/web/generate/node.js";

export async function use(bytes: Uint8Array, facts: Facts, photo: Uint8ClampedArray, mask: Uint8Array) {
  const model = await load({ litert: await loadLiteRt(), bytes, facts, threads: 2, accelerator: "wasm" });
  const picture: Uint8ClampedArray = await model.generate({ seed: 7, label: null, steps: 20 });
  const signal = AbortSignal.timeout(1000);
  await model.variations({ picture, strength: 0.5, seed: 7, signal });
  await model.inpaint({ picture: photo, mask, seed: 7, onStep: ({ calls, of }) => console.log(calls / of) });

  // @ts-expect-error a picture is wanted
  await model.variations({ strength: 0.5, seed: 7 });
  // @ts-expect-error a seed is a number
  await model.generate({ seed: "7" });
  // @ts-expect-error no such accelerator
  await load({ litert: await loadLiteRt(), bytes, facts, accelerator: "cpu" });
}
