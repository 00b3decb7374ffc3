"""A file for GPUs on LiteRT's GPU accelerator: what each signature computes and how long it takes, beside the CPU.

    python benchmarks/device_gpu.py --models=digits.tflite,ddpm32.tflite

The files come from `python -m export --target=gpu --signatures=generate,step,finish,denoise`, so that no signature is
for the CPU. Every signature gets the same random inputs on the CPU, on the GPU in 32 bits, and in the 16 that a GPU
takes where it is not told otherwise; `step` is walked to its end, and `finish` paints what it ends at. A time is of a
call from NumPy arrays to NumPy arrays at batch 1.
"""

import importlib.util
import json
import multiprocessing
import pathlib
import sys
import time

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands

MODELS = flags.DEFINE_list("models", None, "files for GPUs")
SEEDS = flags.DEFINE_integer("seeds", 4, "pictures of each file", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 1.0, "of calls that are timed, for each signature", lower_bound=0.0)
THREADS = flags.DEFINE_integer("threads", 4, "of the CPU", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "write the figures here as well")

VARIANTS = ("CPU", "GPU, 32 bits", "GPU, 16 bits")
LEAST_CALLS = 5
OUTPUTS = {"generate": "image", "step": "x", "finish": "image", "denoise": "eps"}
WAIT_S = 600  # for a compilation


def start(path, variant, threads):
    """Load a file; returns a function (signature, inputs) -> outputs, and whether nothing is left to the CPU."""
    if variant == "CPU":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(path, num_threads=threads)
        runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        return lambda name, inputs: runners[name](**inputs), None
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.gpu_options import GpuOptions
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import Options

    either = HardwareAccelerator.GPU | HardwareAccelerator.CPU
    gpu_options = GpuOptions(enforce_f32=variant == "GPU, 32 bits")
    model = CompiledModel.from_file(path, options=Options(hardware_accelerators=either, gpu_options=gpu_options))
    kept = {}

    def call(name, inputs):
        if name not in kept:
            details = model.get_output_tensor_details(name)
            given = {key: model.create_input_buffer_by_name(name, key) for key in inputs}
            kept[name] = details, given, {key: model.create_output_buffer_by_name(name, key) for key in details}
        details, given, made = kept[name]
        for key, buffer in given.items():
            buffer.write(inputs[key])
        model.run_by_name(name, given, made)
        found = {}
        for key, buffer in made.items():
            shape, dtype = details[key]["shape"], np.dtype(details[key]["dtype"])
            found[key] = buffer.read(int(np.prod(shape)), dtype.type).reshape(shape)
        return found

    return call, model.is_fully_accelerated()


def calls_of(description, seed):
    """Calls (signature, inputs) that need no other's result, with random inputs; `step` for each of its rows.

    The state `x` of `step`, `finish` and `generate` is the same; `denoise` gets its first channels, at the middle t.
    """
    rng, calls = np.random.default_rng(seed), []
    colours = description["image_shape"][-1]
    shape = (1, *description["image_shape"][:-1], description["state_channels"])
    state = rng.standard_normal(shape).astype(np.float32)
    for name, of in description["signatures"].items():
        given = {"denoise": {"x": state[..., :colours], "t": np.array([description["num_timesteps"] // 2], np.int32)}}
        inputs = given.get(name, {"x": state})
        for index in range(len(description["steps"]["t"]) if name == "step" else 1):
            if name == "step":
                inputs = {"x": state, "index": np.array([index], np.int32)}
            if "noise" in of["inputs"]:
                inputs["noise"] = rng.standard_normal(of["inputs"]["noise"]["shape"]).astype(np.float32)
            calls.append((name, inputs))
    return calls


def outputs_of(call, description, seeds):
    """Run every signature, {signature: (seeds, ...)}; `step` to its end, and `finish` on the state there."""
    found = {name: [] for name in description["signatures"]}
    for seed in range(seeds):
        state = None
        for name, inputs in sorted(calls_of(description, seed), key=lambda named: named[0] == "finish"):
            if state is not None and name in ("step", "finish"):
                inputs = {**inputs, "x": state}
            output = call(name, inputs)[OUTPUTS[name]]
            if name == "step":
                state = output
            else:
                found[name].append(output)
        if state is not None:
            found["step"].append(state)
    return {name: np.stack(values) for name, values in found.items()}


def times_ms(call, description, seconds):
    """Milliseconds of calls of each signature, {signature: (median, smallest, largest)}."""
    found = {}
    for name, inputs in dict(calls_of(description, 0)).items():
        call(name, inputs)
        times, end = [], time.perf_counter() + seconds
        while len(times) < LEAST_CALLS or time.perf_counter() < end:
            begun = time.perf_counter()
            call(name, inputs)
            times.append(1000 * (time.perf_counter() - begun))
        found[name] = tuple(float(q) for q in np.quantile(times, [0.5, 0, 1]))
    return found


def described(path):
    """Read the description beside a file.

    Raises:
        InputError: no file, none for GPUs, or one with signatures for the CPU or with classes.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"--models must be files. Received: {path}, which is none")
    description = json.loads(pathlib.Path(path).with_suffix(".json").read_text())
    signatures = description["signatures"]
    if description["target"] != "gpu" or {"start", "noise"} & set(signatures) or description["num_classes"]:
        raise InputError(
            "--models must be files of --target=gpu --signatures=generate,step,finish,denoise (or some of these), "
            f"without classes. Received: {path}, for {description['target']}, with {', '.join(signatures)}"
        )
    return description


def worker(pipe, path, variant, description, seeds, seconds, threads):
    """Send (seconds to compile, whether nothing is left to the CPU, outputs, times)."""
    begun = time.perf_counter()
    call, fully = start(path, variant, threads)
    compiled_s = time.perf_counter() - begun
    pipe.send((compiled_s, fully, outputs_of(call, description, seeds), times_ms(call, description, seconds)))


def measured(path, variant, description):
    """Run a variant in a process of its own, since a delegate can crash; None where it does."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    arguments = (there, path, variant, description, SEEDS.value, SECONDS.value, THREADS.value)
    process = context.Process(target=worker, args=arguments, daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(WAIT_S) else None
    except EOFError:
        return None
    finally:
        process.kill()


def main():
    """Flags to a table."""
    if not MODELS.value:
        raise InputError("--models is needed: files for GPUs")
    if JSON.value:
        check_output("json", JSON.value, is_folder=False)
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise InputError("--models needs ai-edge-litert, which is not installed here")
    descriptions, rows = {path: described(path) for path in MODELS.value}, []
    for path, description in descriptions.items():
        expected = None
        for variant in VARIANTS:
            answer = measured(path, variant, description)
            if answer is None:
                print(f"{path} on {variant}: no answer", flush=True)
                continue
            compiled_s, fully, outputs, times = answer
            expected = outputs if variant == "CPU" else expected
            left = "" if fully is None else f", {'nothing' if fully else 'something'} left to the CPU"
            print(f"{path} on {variant}: ready in {compiled_s:.1f} s{left}", flush=True)
            for name, (middle, low, high) in times.items():
                row = {"model": path, "variant": variant, "signature": name, "ms": [middle, low, high], "fully": fully}
                if expected is not None:
                    off = np.abs(outputs[name].astype(np.float64) - expected[name])
                    row |= {"largest": float(off.max()), "mean": float(off.mean())}
                    row["of"] = float(np.abs(expected[name]).max())
                print(f"  {name:10s}{middle:10.2f} ms ({low:.2f} to {high:.2f})   off by {row.get('largest', '?')}, "
                      f"mean {row.get('mean', '?')}, of {row.get('of', '?')}", flush=True)  # fmt: skip
                rows.append(row)
    if JSON.value:
        target = pathlib.Path(JSON.value).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    commands.run(main)
