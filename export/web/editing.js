/** The part of the page that changes pictures: a mask that is drawn with a finger or the mouse, a strength, a photo. */
import { readPhoto } from "./pictures.js";

const BRUSH = 1 / 16; // its radius, of the picture's shorter side

const $ = (id) => document.getElementById(id);

/**
 * Wire the controls to the page.
 *
 * @param {number[]} shape of the model's pictures, [height, width, channels]
 * @param {{take: (image: Uint8ClampedArray) => void, vary: (strength: number) => void,
 *   repaint: (mask: Uint8Array) => void, complain: (message: string, input: HTMLElement) => void}} page
 */
export function offerEditing(shape, page) {
  const mask = new Mask($("mask"), shape, () => showMask());
  const showMask = () => {
    $("repaint").disabled = mask.isEmpty || $("vary").disabled;
    $("clear").disabled = mask.isEmpty;
  };
  const showStrength = () => ($("strength-shown").textContent = `${$("strength").value} %`);
  showStrength();
  $("edits").hidden = false;
  $("strength").addEventListener("input", showStrength);
  $("editing").addEventListener("toggle", () => ($("mask").hidden = !$("editing").open));
  $("vary").addEventListener("click", () => page.vary(Number($("strength").value) / 100));
  $("repaint").addEventListener("click", () => {
    page.repaint(mask.known());
    mask.clear(); // so that it does not hide what is painted
  });
  $("clear").addEventListener("click", () => mask.clear());
  $("photo").addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    target.value = ""; // so that the same file can be chosen again
    if (!file) return;
    const image = await readPhoto(file, shape).catch(() => null);
    if (!image) return page.complain(`${file.name} must be a picture that this browser reads.`, target);
    mask.clear();
    page.take(image);
  });
  return {
    /** Whether there is a picture to change. */
    enable(hasPicture) {
      $("photo").disabled = false;
      $("vary").disabled = !hasPicture;
      showMask();
    },
  };
}

/** What is to be painted anew, on a canvas with the pixels of the picture that lies under it. */
class Mask {
  #canvas;
  #size;
  #marked;
  #hear;

  constructor(canvas, [height, width], hear) {
    this.#canvas = canvas;
    this.#size = [height, width];
    this.#hear = hear;
    this.#marked = new Uint8Array(height * width);
    canvas.width = width;
    canvas.height = height;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#draw(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const move of moves.length ? moves : [event]) this.#draw(move);
    });
  }

  get isEmpty() {
    return !this.#marked.includes(1);
  }

  /** (H W): 1 = keep the pixel, 0 = paint it anew. */
  known() {
    return this.#marked.map((value) => 1 - value);
  }

  clear() {
    this.#marked.fill(0);
    this.#show();
  }

  /** Mark the pixels under a round brush, at least the one under its middle. */
  #draw(event) {
    const [height, width] = this.#size;
    const box = this.#canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width - 0.5;
    const y = ((event.clientY - box.top) / box.height) * height - 0.5;
    const radius = Math.max(0.71, Math.min(height, width) * BRUSH);
    this.#marked.forEach((_, pixel) => {
      const distance = Math.hypot((pixel % width) - x, Math.floor(pixel / width) - y);
      if (distance <= radius) this.#marked[pixel] = 1;
    });
    this.#show();
  }

  #show() {
    const [height, width] = this.#size;
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(this.#canvas).color;
    this.#marked.forEach((value, pixel) => value && context.fillRect(pixel % width, Math.floor(pixel / width), 1, 1));
    this.#hear();
  }
}
