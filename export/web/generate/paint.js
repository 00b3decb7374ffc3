#!/usr/bin/env node
/**
 * Paints a picture in Node:
 *
 *   node paint.js MODEL.tflite --seed=7 --out=picture.png [--label=3] [--num_steps=50]
 *
 * The side file lies beside the model.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { crc32, deflateSync } from "node:zlib";

import { load, parseSeed } from "./index.js";
import { loadLiteRt } from "./node.js";

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

async function main() {
  const options = /** @type {const} */ ({ type: "string" });
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { seed: options, label: options, num_steps: options, out: options },
  });
  const [file] = positionals;
  if (positionals.length !== 1 || !file.endsWith(".tflite")) {
    throw new Error(`One MODEL.tflite is needed. Received: ${positionals.join(" ") || "none"}`);
  }
  const wish = {
    seed: number("seed", values.seed) ?? 0,
    label: number("label", values.label),
    steps: number("num_steps", values.num_steps),
  };
  const facts = JSON.parse(readFileSync(file.replace(/tflite$/, "json"), "utf8"));
  const model = await load({ litert: await loadLiteRt(), bytes: readFileSync(file), facts });
  const picture = await model.generate(wish);
  writeFileSync(values.out ?? "picture.png", png(picture, facts.image_shape));
}

main().catch((error) => {
  console.error(String(error.message));
  process.exitCode = 1;
});
