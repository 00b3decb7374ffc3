/**
 * Visits pages in Chromium: `node visitor.mjs CHROMIUM FLAG...`, then a line of JSON for each visit, {visit, url, ...},
 * each answered by a line {result} or {error}, with the console's complaints and every address that was asked for.
 */
import { renameSync } from "node:fs";
import { createInterface } from "node:readline";

import { chromium } from "../../export/web/node_modules/playwright-core/index.mjs";

const PATIENCE_MS = 20_000;

/** The pixels of a cell of the grid, or of the large picture: red, green, blue, alpha, red, ... */
const pixels = (page, cell = null) =>
  page.evaluate((cell) => {
    const canvas = cell === null ? document.querySelector("#canvas") : document.querySelectorAll("#grid canvas")[cell];
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d"); // to leave the page's own as it is
    copy.drawImage(canvas, 0, 0);
    return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
  }, cell);

const drawn = (page) => page.waitForSelector('#picture[aria-busy="false"]');

async function open(page, url) {
  await page.goto(url);
  await drawn(page);
}

/** Until the page says that it has what it needs without a network. */
const kept = (page) =>
  page.waitForFunction(() => document.querySelector("#facts").textContent.endsWith("works offline"));

/** Whether all of an element is in sight. */
const inSight = (page, selector) =>
  page.evaluate((selector) => {
    const box = document.querySelector(selector).getBoundingClientRect();
    return box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
  }, selector);

async function look(page) {
  return {
    pixels: await pixels(page),
    seed: await page.inputValue("#seed"),
    hash: new URL(page.url()).hash,
    status: await page.textContent("#status"),
    counter: await page.textContent("#counter"),
    time: await page.textContent("#time"),
    progress: await page.evaluate(() => document.querySelector("#progress").value),
    facts: await page.textContent("#facts"),
    error: (await page.isVisible("#error")) ? await page.textContent("#error") : "",
    seedError: await page.textContent("#seed-error"),
    isolated: await page.evaluate(() => crossOriginIsolated),
    focus: await page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label")),
  };
}

const saved = async (page, button) => {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  const chunks = [];
  for await (const chunk of await download.createReadStream()) chunks.push(chunk);
  return { name: download.suggestedFilename(), base64: Buffer.concat(chunks).toString("base64") };
};

const visits = {
  async look(page, { url }) {
    await open(page, url);
    return look(page);
  },

  async type(page, { url, seeds }) {
    await open(page, url);
    const seen = [];
    for (const seed of seeds) {
      await page.fill("#seed", seed);
      await page.click("#generate");
      await drawn(page);
      seen.push(await look(page));
    }
    return seen;
  },

  /** Follow a link within the page, as an edited address or a click on one does. */
  async follow(page, { url, hash }) {
    await open(page, url);
    const before = await page.inputValue("#seed");
    await page.evaluate((hash) => (location.hash = hash), hash);
    await page.waitForFunction((before) => document.querySelector("#seed").value !== before, before);
    await drawn(page);
    return look(page);
  },

  async dice(page, { url }) {
    await open(page, url);
    const seen = [];
    for (let throws = 0; throws < 3; throws++) {
      await page.click("#dice");
      await drawn(page);
      seen.push(await look(page));
    }
    return seen;
  },

  /** Every picture on the large canvas, in slow motion or for one who wants no motion; overheard, so none is missed. */
  async frames(page, { url, seed, motion }) {
    await page.emulateMedia({ reducedMotion: motion ? "no-preference" : "reduce" });
    await open(page, url);
    await page.evaluate(() => {
      window.painted = [];
      const put = CanvasRenderingContext2D.prototype.putImageData;
      CanvasRenderingContext2D.prototype.putImageData = function (data, ...rest) {
        window.painted.push([...data.data]);
        return put.call(this, data, ...rest);
      };
    });
    if (motion) await page.check("#slow");
    await page.fill("#seed", seed);
    await page.click("#generate");
    await drawn(page);
    return page.evaluate(() => window.painted);
  },

  /**
   * Stop one picture half-way, then ask for two at once: the second replaces the first. Also returns the last call of
   * every request that the worker answered, and the status after an answer that came too late.
   */
  async changeMind(page, { url, seeds }) {
    await page.addInitScript(() => {
      window.lastCalls = {};
      window.Worker = class extends Worker {
        constructor(address) {
          super(address);
          window.worker = this;
          this.addEventListener("message", ({ data }) => {
            if ("calls" in data) window.lastCalls[data.id] = data.calls;
          });
        }
      };
    });
    await open(page, url);
    await page.check("#slow");
    await page.click("#generate");
    await page.waitForFunction(() => document.querySelector("#counter").textContent.startsWith("Step 2"));
    await page.click("#cancel");
    await drawn(page);
    const cancelled = await look(page);
    await page.evaluate(() => {
      window.worker.dispatchEvent(new MessageEvent("message", { data: { id: 2, done: true } }));
    });
    const late = await page.textContent("#status");
    await page.fill("#seed", seeds[0]);
    await page.click("#generate");
    await page.waitForFunction(() => document.querySelector("#counter").textContent.startsWith("Step 1"));
    await page.uncheck("#slow");
    await page.fill("#seed", seeds[1]);
    await page.click("#generate");
    await drawn(page);
    return { cancelled, late, replaced: await look(page), calls: await page.evaluate(() => window.lastCalls) };
  },

  async grid(page, { url, seed, cell }) {
    await open(page, url);
    await page.fill("#seed", seed);
    await page.check('input[name="grid"][value="16"]', { force: true });
    await page.click("#generate");
    await drawn(page);
    const cells = [];
    for (let index = 0; index < 16; index++) cells.push(await pixels(page, index));
    const before = await look(page);
    const gridFile = await saved(page, "#save-grid");
    await page.click(`#grid button:nth-child(${cell + 1})`);
    const chosen = await look(page);
    const file = await saved(page, "#save");
    await page.goto("about:blank");
    await open(page, new URL(chosen.hash, url).href);
    const again = await look(page);
    return { cells, before, chosen, again, cellAgain: await pixels(page, 15), gridFile, file };
  },

  async keyboard(page, { url, seed }) {
    await open(page, url);
    const press = async (...keys) => {
      for (const key of keys) await page.keyboard.press(key);
    };
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.name);
    const stops = [];
    const outlines = [];
    await press("Tab");
    await press("Control+a");
    await page.keyboard.type(seed);
    await press("Enter");
    await drawn(page);
    const typed = await look(page);
    for (let stop = 0; stop < 5; stop++) {
      stops.push(await focused());
      outlines.push(
        await page.evaluate(() => {
          const active = document.activeElement;
          return getComputedStyle(active.type === "radio" ? active.nextSibling : active).outlineStyle;
        }),
      );
      if (stops.at(-1) === "grid") break;
      await press("Tab");
    }
    await press("ArrowRight", "Shift+Tab", "Enter");
    await drawn(page);
    const grid = await look(page);
    while ((await page.evaluate(() => document.activeElement.parentElement.id)) !== "grid") await press("Tab");
    await press("ArrowRight", "ArrowDown", "Enter");
    return { typed, stops, outlines, grid, chosen: await look(page) };
  },

  /** A screen of some size: what is in sight at first and after the last small picture was tapped. */
  async screen(page, { url, width, height }) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ reducedMotion: "reduce" });
    await open(page, url);
    const first = [await inSight(page, "#canvas"), await inSight(page, "#generate")];
    const sizes = await page.evaluate(() => {
      const all = (selector) => [...document.querySelectorAll(selector)];
      document.querySelector("#editing").open = true;
      return {
        page: document.scrollingElement.scrollWidth,
        cells: all("#grid canvas").length,
        smallest: Math.min(
          ...all("form button, .choices label, .button").map((one) => one.clientHeight || Infinity), // hidden ones have 0
        ),
        outside: all("main *").filter((one) => one.getBoundingClientRect().right > innerWidth).length,
        picture: document.querySelector("#canvas").clientWidth,
      };
    });
    await page.click("#grid button:last-child");
    return { ...sizes, first, tapped: await inSight(page, "#canvas") };
  },

  /** A second visit without a network. */
  async offline(page, { url, seed }) {
    await open(page, url);
    await kept(page);
    await page.context().setOffline(true);
    await page.reload();
    await drawn(page);
    await page.fill("#seed", seed);
    await page.click("#generate");
    await drawn(page);
    const reached = await page.evaluate(() => fetch("nothing").then(() => true, () => false));
    return { ...(await look(page)), reached };
  },

  /** A site that another export replaces between two visits; the third is without a network. */
  async replaced(page, { url, folder, other }) {
    await open(page, url);
    await kept(page);
    renameSync(folder, `${folder}_before`);
    renameSync(other, folder);
    const seen = [];
    for (const offline of [false, true]) {
      await page.context().setOffline(offline);
      await page.reload();
      await drawn(page);
      if (!offline) await kept(page);
      seen.push(await look(page));
    }
    return { seen, caches: await page.evaluate(() => caches.keys()) };
  },

  /** All that the page says while it loads, and whether that is in sight: noted in the page itself, which misses nothing. */
  async loading(page, { url }) {
    await page.setViewportSize({ width: 360, height: 640 });
    await page.addInitScript(() => {
      globalThis.said = [];
      new MutationObserver((changes) => {
        const loading = document.querySelector("#loading");
        if (!changes.some(({ target }) => target === loading) || loading.hidden) return;
        const { top, left, bottom, right } = loading.getBoundingClientRect();
        const inSight = top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;
        said.push({ text: loading.textContent, value: document.querySelector("#progress").value, inSight });
      }).observe(document, { subtree: true, childList: true });
    });
    await open(page, url);
    return page.evaluate(() => said);
  },

  /** A photo, variations of it, a part repainted, then a picture in another number of steps. */
  async edit(page, { url, photo, notPhoto, seed, strength, steps }) {
    await open(page, url);
    await page.click("#editing summary");
    await page.setInputFiles("#photo", notPhoto);
    await page.waitForFunction(() => document.querySelector("#seed-error").textContent);
    const refused = await page.textContent("#seed-error");
    await page.setInputFiles("#photo", photo);
    await page.waitForFunction(() => document.querySelector("#status").textContent.startsWith("Your photo"));
    const seen = { refused, photo: await look(page) };
    await page.fill("#seed", seed);
    await page.fill("#strength", strength);
    for (const name of ["varied", "again"]) {
      await page.click("#vary");
      await drawn(page);
      seen[name] = await look(page);
    }
    seen.maskless = await page.isDisabled("#repaint");
    await page.locator("#mask").scrollIntoViewIfNeeded();
    const box = await page.locator("#mask").boundingBox();
    await page.mouse.move(box.x + box.width * 0.7, box.y + 2);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.7, box.y + box.height - 2, { steps: 20 });
    await page.mouse.up();
    seen.mask = await page.evaluate(() => {
      const { width, height } = document.querySelector("#mask");
      const { data } = document.querySelector("#mask").getContext("2d").getImageData(0, 0, width, height);
      return Array.from({ length: width * height }, (_, pixel) => data[4 * pixel + 3] > 0);
    });
    await page.click("#repaint");
    await drawn(page);
    seen.repainted = await look(page);
    await page.fill("#steps", "21");
    await page.click("#generate");
    seen.tooMany = await page.textContent("#seed-error");
    await page.fill("#steps", steps);
    await page.click("#generate");
    await drawn(page);
    seen.steps = await look(page);
    await page.goto("about:blank");
    await open(page, new URL(seen.steps.hash, url).href);
    seen.linked = await look(page);
    return seen;
  },

  /** What the page's own functions make of pictures with and without alpha, and of a photo. */
  async channels(page, { url, script, images, photo }) {
    await page.goto(url);
    return page.evaluate(
      async ({ script, images, photo }) => {
        const { paint, readPhoto } = await import(script);
        const painted = images.map((image) => {
          const canvas = document.createElement("canvas");
          paint(canvas, Uint8ClampedArray.from(image), [1, 2, image.length / 2]);
          return [...canvas.getContext("2d").getImageData(0, 0, 2, 1).data];
        });
        const file = new Blob([Uint8Array.from(atob(photo), (character) => character.charCodeAt(0))]);
        const read = [];
        for (let channels = 1; channels <= 4; channels++) read.push([...(await readPhoto(file, [1, 1, channels]))]);
        return { painted, read };
      },
      { script, images, photo },
    );
  },

  async gpu(page, { url, seed }) {
    await open(page, url);
    const before = await look(page);
    await page.click("#gpu");
    await page.waitForSelector("#gpu:not(:disabled)");
    await page.fill("#seed", seed);
    await page.click("#generate");
    await drawn(page);
    const chosen = await look(page);
    chosen.checked = await page.isChecked("#gpu");
    await page.uncheck("#gpu");
    await page.waitForSelector("#gpu:not(:disabled)");
    return { before, chosen, after: await look(page) };
  },

  async withoutWebAssembly(page, { url }) {
    await page.addInitScript(() => delete globalThis.WebAssembly);
    await open(page, url);
    return look(page);
  },

  async file(page, { url }) {
    await page.goto(url);
    return look(page);
  },

  async classes(page, { url, chosen, seed }) {
    await open(page, url);
    const names = await page.$$eval("#labels label", (labels) => labels.map((label) => label.textContent));
    const first = await look(page);
    first.label = await page.getAttribute("#canvas", "aria-label");
    await page.check(`#labels input[value="${chosen}"]`, { force: true });
    await page.fill("#seed", seed);
    await page.click("#generate");
    await drawn(page);
    const second = await look(page);
    second.label = await page.getAttribute("#canvas", "aria-label");
    await page.goto("about:blank");
    await open(page, new URL(second.hash, url).href);
    const again = await look(page);
    again.label = await page.getAttribute("#canvas", "aria-label");
    return { names, first, second, again };
  },

  async picture(page, { url, path, width, height, colours, until }) {
    await page.emulateMedia({ colorScheme: colours });
    await page.setViewportSize({ width, height });
    await page.goto(url);
    if (until) {
      await drawn(page);
      await page.check("#slow");
      await page.click("#generate");
      await page.waitForFunction((text) => document.querySelector("#counter").textContent.startsWith(text), until);
    } else await drawn(page);
    await page.screenshot({ path, fullPage: true });
    return path;
  },
};

const browser = await chromium.launch({ executablePath: process.argv[2], args: ["--no-sandbox", ...process.argv.slice(3)] });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  const context = await browser.newContext();
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const complaints = [];
  const requests = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  context.on("request", (request) => requests.push(request.url()));
  let answer;
  try {
    answer = { result: await visits[order.visit](page, order) };
  } catch (error) {
    answer = { error: String(error) };
  }
  await context.close();
  process.stdout.write(`${JSON.stringify({ ...answer, complaints, requests })}\n`);
}
await browser.close();
