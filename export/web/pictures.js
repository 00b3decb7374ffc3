/** Pixels onto canvases and into files. */

/** @param {Int32Array} image (H, W, 1 or 3), 0..255; the canvas takes its size */
export function paint(canvas, image, [height, width, channels]) {
  const data = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let colour = 0; colour < 3; colour++) {
      data.data[4 * pixel + colour] = image[channels * pixel + (channels === 3 ? colour : 0)];
    }
    data.data[4 * pixel + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(data, 0, 0);
}

/** As large as fits into `room` CSS pixels, with every pixel the same whole number of the screen's pixels wide. */
export function fit(canvas, room, [height, width]) {
  const density = window.devicePixelRatio;
  const scale = Math.max(1, Math.floor((room * density) / Math.max(height, width))) / density;
  canvas.style.width = `${width * scale}px`;
  canvas.style.height = `${height * scale}px`;
}

/** Offer canvases, side by side in so many columns, as one PNG whose longer side has about `size` pixels. */
export async function savePng(name, canvases, columns, size) {
  const { width, height } = canvases[0];
  const rows = Math.ceil(canvases.length / columns);
  const scale = Math.max(1, Math.round(size / Math.max(width * columns, height * rows)));
  const sheet = document.createElement("canvas");
  sheet.width = width * columns * scale;
  sheet.height = height * rows * scale;
  const context = sheet.getContext("2d");
  context.imageSmoothingEnabled = false;
  canvases.forEach((canvas, index) => {
    const [column, row] = [index % columns, Math.floor(index / columns)];
    context.drawImage(canvas, column * width * scale, row * height * scale, width * scale, height * scale);
  });
  const blob = await new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // some browsers start to read it later
}
