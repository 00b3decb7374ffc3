import type * as LiteRt from "@litertjs/core";

/** What the side file NAME.json says of a model, as far as this module reads it. */
export interface Facts {
  description_version: number;
  file: string;
  bytes: number;
  sha256: string;
  precision: string;
  /** Of TensorFlow Lite, such as "2.13.0". */
  min_runtime_version: string;
  target: "cpu" | "gpu";
  batch_size: number;
  /** [height, width, channels]; 1 = grey, 2 = grey and alpha, 3 = RGB, 4 = RGBA. */
  image_shape: [number, number, number];
  /** Of the sampler's state: more than a picture's where it remembers. */
  state_channels: number;
  num_classes: number | null;
  class_names: string[] | null;
  guidance_scale: number;
  /** How often the network is called for a picture; some samplers call it more than once a step. */
  network_calls: number;
  sampler: {
    name: string;
    num_steps: number;
    clip: boolean | "dynamic";
    spacing: string;
    eta?: number;
    variance?: string | number[];
  };
  /** The timesteps, null = 0 .. T - 1, and alpha_bar at each. */
  schedule: { timesteps: number[] | null; alpha_bars: number[] };
  /** Columns of coefficients, one entry a network call, from noise to picture. */
  steps: { t: number[]; [column: string]: any };
  vectors?: { seed: number; label?: number; noise_sha256: string; picture_sha256: string; picture: string }[];
}

export interface Load {
  /** LiteRT.js with its WebAssembly loaded. */
  litert: typeof LiteRt;
  /** Of the .tflite file. */
  bytes: Uint8Array;
  /** The side file, parsed. */
  facts: Facts;
  /** Of the CPU; more than one needs LiteRT.js loaded with threads. 1 if not given. */
  threads?: number;
  /**
   * What runs the network; "wasm" if not given. "webgpu" is tried: where it fails, or gives other values than the CPU,
   * `accelerator` of the model stays "wasm" and `whyNotGpu` says why. `start` and `noise` run on the CPU always.
   */
  accelerator?: "wasm" | "webgpu";
}

export interface Step {
  /** How often the network was called so far, and in all. */
  calls: number;
  of: number;
  /** The picture as it is now; undefined on the way where the file has `generate` alone. */
  picture(): Promise<Uint8ClampedArray | undefined>;
}

export interface Options {
  /** int32: another picture for each. */
  seed: number;
  /** The class, 0 .. num_classes - 1; the seed chooses if it is not given. */
  label?: number | null;
  /** How many steps the whole way from noise has; the file's own if not given. */
  steps?: number;
  /** Called before the first network call and after each; awaited, if it returns a promise. */
  onStep?: (step: Step) => void | Promise<void>;
  /** Ends it before the next network call: the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
}

export interface Inpainting {
  /** height x width x channels values, 0 .. 255. */
  picture: Uint8Array | Uint8ClampedArray;
  /** height x width values: 1 or 255 = keep the pixel, 0 = paint it anew. */
  mask: Uint8Array | Uint8ClampedArray;
  /** How many steps to go back, fewer than there are; 10 if not given, or all but one if there are fewer. */
  jumpLength?: number;
  /** How often each stretch of steps is taken, at most 1000; 5 if not given. */
  resamplings?: number;
}

/** A model that draws. Pictures are height x width x channels values, 0 .. 255. */
export class Model {
  readonly facts: Facts;
  /** Why `variations` and `inpaint` would throw with this file; null if they work. */
  readonly whyNotEdit: string | null;
  /** Why `steps` would throw with this file; null if it works. */
  readonly whyNotSteps: string | null;
  /** What runs the network now; a GPU that is lost on the way is left for the CPU. */
  readonly accelerator: "wasm" | "webgpu";
  /** Why "webgpu" was asked for and does not run the network; null if it was not, or does. */
  readonly whyNotGpu: string | null;

  /** Let a GPU run the network: that of LiteRT.js, see `setWebGpuDevice` there. `whyNotGpu` says why it does not. */
  useGpu(bytes: Uint8Array): Promise<void>;
  useCpu(): void;

  private constructor();

  /** The picture of a seed. */
  generate(options: Options): Promise<Uint8ClampedArray>;

  /**
   * A picture similar to `picture`: noise is added up to a level, then taken away. A strength of 0 gives the picture
   * itself, 1 what the seed gives without it.
   */
  variations(
    options: Options & { picture: Uint8Array | Uint8ClampedArray; strength: number },
  ): Promise<Uint8ClampedArray>;

  /** `picture` with what the mask leaves painted anew; what it keeps stays exactly as it is. */
  inpaint(options: Options & Inpainting): Promise<Uint8ClampedArray>;
}

/**
 * Compile a model, and check it: its bytes against the side file, its noise against the side file's vectors.
 *
 * @throws Error if one of them differs, or the side file is of another version or has an entry that no export writes
 */
export function load(options: Load): Promise<Model>;

/** @returns `found`, if it is a side file that this module reads; throws an Error that names the entry that is not */
export function checkFacts(found: unknown): Facts;

/** @returns the seed that a text writes out; null if that is not an int32 */
export function parseSeed(text: string): number | null;

/** @returns the class of a seed for which none was chosen; null if the model has no classes */
export function defaultLabel(seed: number, numClasses: number | null): number | null;
