#!/usr/bin/env node
/**
 * Paints a picture in Node:
 *
 *   node paint.js MODEL.tflite --seed=7 --out=picture.png [--label=3] [--num_steps=50]
 *
 * The side file lies beside the model.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { crc32, deflateSync } from "node:zlib";

import { load, parseSeed } from "./index.js";
import { loadLiteRt } from "./node.js";

const USAGE = "node paint.js MODEL.tflite [--seed=7] [--label=3] [--num_steps=50] [--out=picture.png]";
const COLOUR_TYPE = [0, 4, 2, 6]; // of PNG, for 1 to 4 channels

function png(/** @type {Uint8ClampedArray} */ pixels, /** @type {number[]} */ [height, width, channels]) {
  const chunk = (/** @type {string} */ name, /** @type {Buffer} */ content) => {
    const body = Buffer.concat([Buffer.from(name), content]);
    const [length, check] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(content.length);
    check.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, check]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, COLOUR_TYPE[channels - 1]], 8); // 8 bits a channel
  const row = width * channels;
  const rows = Array.from({ length: height }, (_, y) => [0, ...pixels.subarray(y * row, (y + 1) * row)]); // 0 = no filter
  const parts = [chunk("IHDR", header), chunk("IDAT", deflateSync(Buffer.from(rows.flat()))), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...parts]);
}

/** The whole number of a flag; undefined if the flag was not given. */
function number(/** @type {string} */ flag, /** @type {string | undefined} */ text) {
  if (text === undefined) return undefined;
  const value = parseSeed(text);
  if (value === null) throw new RangeError(`--${flag} must be a whole number of 32 bits. Received: ${text}`);
  return value;
}

const sideOf = (/** @type {string} */ file) => file.replace(/tflite$/, "json");

/** The description beside a model. */
function factsOf(/** @type {string} */ file) {
  const side = sideOf(file);
  for (const name of [file, side]) {
    if (!statSync(name, { throwIfNoEntry: false })?.isFile()) {
      throw new Error(`${name} is missing: an export is NAME.tflite with NAME.json beside it`);
    }
  }
  try {
    return JSON.parse(readFileSync(side, "utf8"));
  } catch {
    throw new Error(`${side} must be the description that the export wrote beside the file. Received: something else`);
  }
}

/** Write to a temporary file and rename it, so that the file is complete or absent. */
function write(/** @type {string} */ path, /** @type {Buffer} */ content) {
  mkdirSync(dirname(path), { recursive: true });
  const part = join(dirname(path), `.${basename(path)}.${process.pid}.part`);
  try {
    writeFileSync(part, content);
    renameSync(part, path);
  } finally {
    rmSync(part, { force: true });
  }
}

async function main() {
  const options = /** @type {const} */ ({ type: "string" });
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { seed: options, label: options, num_steps: options, out: options, help: { type: "boolean" } },
  });
  if (values.help) return console.log(USAGE);
  const [file] = positionals;
  if (positionals.length !== 1 || !file.endsWith(".tflite")) {
    throw new Error(`One MODEL.tflite is needed. Received: ${positionals.join(" ") || "none"}`);
  }
  const out = values.out ?? "picture.png";
  if (!out.endsWith(".png")) throw new Error(`--out must end in .png. Received: ${out}`);
  const wish = {
    seed: number("seed", values.seed) ?? 0,
    label: number("label", values.label),
    steps: number("num_steps", values.num_steps),
  };
  const facts = factsOf(file);
  const model = await load({ litert: await loadLiteRt(), bytes: readFileSync(file), facts }).catch((error) => {
    const named = error.message.replace("The model's side file", () => sideOf(file)).replace("The model", () => file);
    throw new Error(named);
  });
  const picture = await model.generate(wish);
  write(out, png(picture, facts.image_shape));
  console.log(`1 picture in ${out}`);
}

main().catch((error) => {
  console.error(`paint.js: ${String(error.message).split("\n")[0].replace(/^steps /, "--num_steps ")}`);
  process.exitCode = 1;
});
