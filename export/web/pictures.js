/** Pixels onto canvases, into files and out of them. */

/** @param {Uint8ClampedArray} image (H, W, 1 to 4): grey or colour, with or without alpha; the canvas takes its size */
export function paint(canvas, image, [height, width, channels]) {
  const data = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const values = image.subarray(channels * pixel, channels * (pixel + 1));
    for (let colour = 0; colour < 3; colour++) data.data[4 * pixel + colour] = values[channels >= 3 ? colour : 0];
    data.data[4 * pixel + 3] = channels % 2 ? 255 : values[channels - 1];
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(data, 0, 0);
}

/** @returns {Promise<Uint8ClampedArray>} the middle of a picture file, scaled to the shape of a model's pictures */
export async function readPhoto(file, [height, width, channels]) {
  const whole = await createImageBitmap(file, { colorSpaceConversion: "none" }); // no gamma, no profile, as in Python
  const scale = Math.max(width / whole.width, height / whole.height);
  const cut = [width / scale, height / scale].map((side) => Math.max(Math.round(side), 1));
  const corner = [(whole.width - cut[0]) / 2, (whole.height - cut[1]) / 2].map(Math.floor);
  const middle = await createImageBitmap(whole, ...corner, ...cut); // first, so that no edge of it bleeds in
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  if (channels % 2) {
    context.fillStyle = "white"; // under what is transparent, where the model knows no alpha
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(middle, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8ClampedArray.from({ length: height * width * channels }, (_, index) => {
    const [pixel, channel] = [4 * Math.floor(index / channels), index % channels];
    if (channels >= 3) return data[pixel + channel];
    if (channel === 1) return data[pixel + 3];
    return 0.299 * data[pixel] + 0.587 * data[pixel + 1] + 0.114 * data[pixel + 2]; // luma of ITU-R 601
  });
}

/** As large as fits into `room` CSS pixels, with every pixel the same whole number of the screen's pixels wide. */
export function fit(canvases, room, [height, width]) {
  const density = window.devicePixelRatio;
  const scale = Math.max(1, Math.floor((room * density) / Math.max(height, width))) / density;
  for (const canvas of canvases) {
    canvas.style.width = `${width * scale}px`;
    canvas.style.height = `${height * scale}px`;
  }
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
