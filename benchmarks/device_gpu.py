"""A file for GPUs on LiteRT's GPU accelerator: what each signature computes and how long it takes, beside the CPU.

    python benchmarks/device_gpu.py --models=digits.tflite,ddpm32.tflite

The files come from `python -m export --target=gpu --signatures=generate,step,finish,denoise`, so that no signature is
for the CPU. Needed is ai-edge-litert. Every signature gets the same random inputs on the CPU, on the GPU in 32 bits, and
in the 16 that a GPU takes where it is not told otherwise; `step` is walked to its end, and `finish` paints what it ends
at. A time is of a call from NumPy arrays to NumPy arrays at batch 1.
"""

import json
import multiprocessing
import pathlib
import sys
import time

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kddpm.base.errors import InputError
from kddpm.cli import commands

MODELS = flags.DEFINE_list("models", None, "files for GPUs")
SEEDS = flags.DEFINE_integer("seeds", 4, "pictures of each file", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 1.0, "of calls that are timed, for each signature", lower_bound=0.0)
THREADS = flags.DEFINE_integer("threads", 4, "of the CPU", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "write the figures here as well")

VARIANTS = ("CPU", "GPU, 32 bits", "GPU, 16 bits")
LEAST_CALLS = 5
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


def pictures_and_eps(call, facts, seeds):
    """Run every signature; returns {signature: outputs, (seeds, ...)}."""
    found = {name: [] for name in facts["signatures"]}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        inputs = {"x": rng.standard_normal(facts["shape"]).astype(np.float32)}
        x = inputs["x"]
        for name, more in last_calls(facts, rng):
            if name == "finish":
                found[name].append(call(name, {"x": x})["image"])
            elif name == "step":
                x = call(name, {"x": x, **more})["x"]
            else:
                found[name].append(next(iter(call(name, {**inputs, **more}).values())))
        if "step" in found:
            found["step"].append(x)
    return {name: np.stack(values) for name, values in found.items()}


def last_calls(facts, rng):
    """Calls (signature, inputs but x) of one seed: the walk of `step`, and one call of each other signature."""
    named = facts["signatures"]
    calls = []
    for index in range(facts["steps"] if "step" in named else 0):
        more = {"index": np.array([index], np.int32)}
        if "noise" in named["step"]:
            more["noise"] = rng.standard_normal(facts["shape"]).astype(np.float32)
        calls.append(("step", more))
    if "denoise" in named:
        calls.append(("denoise", {"t": np.array([facts["timesteps"] // 2], np.int32)}))
    return calls + [(name, {}) for name in ("finish", "generate") if name in named]


def times_ms(call, facts, seconds):
    """Milliseconds of calls of each signature, {signature: (median, smallest, largest)}."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(facts["shape"]).astype(np.float32)
    found = {}
    for name, more in dict(last_calls(facts, rng)).items():
        call(name, {"x": x, **more})
        times, end = [], time.perf_counter() + seconds
        while len(times) < LEAST_CALLS or time.perf_counter() < end:
            begun = time.perf_counter()
            call(name, {"x": x, **more})
            times.append(1000 * (time.perf_counter() - begun))
        found[name] = tuple(float(q) for q in np.quantile(times, [0.5, 0, 1]))
    return found


def facts_of(path):
    """What a file's signatures take, {shape of x, number of steps and of timesteps, {signature: inputs}}."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    signatures = {name: lists["inputs"] for name, lists in interpreter.get_signature_list().items()}
    if {"start", "noise"} & set(signatures) or any("label" in inputs for inputs in signatures.values()):
        raise InputError(
            "--models must be files without classes of --target=gpu --signatures=generate,step,finish,denoise. "
            f"Received: {path}, with {', '.join(signatures)}"
        )
    described = json.loads(pathlib.Path(path).with_suffix(".json").read_text())
    details = interpreter.get_signature_runner("denoise").get_input_details()
    shape = tuple(int(side) for side in details["x"]["shape"])
    return {
        "shape": shape,
        "steps": len(described["steps"]["t"]),
        "timesteps": described["num_timesteps"],
        "signatures": signatures,
    }


def worker(pipe, path, variant, facts, seeds, seconds, threads):
    """Send (seconds to compile, whether nothing is left to the CPU, outputs, times)."""
    begun = time.perf_counter()
    call, fully = start(path, variant, threads)
    compiled_s = time.perf_counter() - begun
    pipe.send((compiled_s, fully, pictures_and_eps(call, facts, seeds), times_ms(call, facts, seconds)))


def measured(path, variant, facts):
    """Run a variant in a process of its own, since a delegate can crash; None where it does."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    arguments = (there, path, variant, facts, SEEDS.value, SECONDS.value, THREADS.value)
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
    rows = []
    for path in MODELS.value:
        if not pathlib.Path(path).is_file():
            raise InputError(f"--models must be files. Received: {path}, which is none")
        facts, expected = facts_of(path), None
        for variant in VARIANTS:
            answer = measured(path, variant, facts)
            if answer is None:
                print(f"{path} on {variant}: no answer", flush=True)
                continue
            compiled_s, fully, outputs, times = answer
            expected = outputs if variant == "CPU" else expected
            print(f"{path} on {variant}: ready in {compiled_s:.1f} s, nothing left to the CPU: {fully}", flush=True)
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
        pathlib.Path(JSON.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    commands.run(main)
