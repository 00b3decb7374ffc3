"""Latency, memory and size of one denoising step on the device, beside ONNX Runtime and PyTorch.

    .venv/bin/python benchmarks/device.py --out=FOLDER --preset=ddpm32
    ENVIRONMENT/bin/python benchmarks/device.py --model=FOLDER --threads=2

The first command, in the project's environment, gives a preset's network random weights and writes it as `.tflite` in
each precision, with the weights and what the network makes of some inputs beside them. The second, in an environment
made from benchmarks/device-requirements.txt, builds the same network in PyTorch, exports it to ONNX, and refuses to
measure anything in float32 that does not give the same result.

A step is one call of the network at batch 1, from NumPy arrays x (1, H, W, C) and t (1,) to a NumPy array: copies in
and out are part of it, loading is not. Each runtime lives in a process of its own and they take turns, A B C A B C ...,
because another load on the machine slows some of them more than others. Peak memory is the process's high-water mark
(VmHWM), mapped files included; "own" is without what the process had reached once the runtime was imported.
"""

import dataclasses
import functools
import importlib.util
import json
import logging
import multiprocessing
import pathlib
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable

import network_file
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands
from kddpm.runs import presets

OUT = flags.DEFINE_string("out", None, "folder to write a preset's network to; needs the project's environment")
PRESET = flags.DEFINE_enum("preset", "ddpm32", sorted(presets.PRESETS), "whose network, with --out")
MODEL = flags.DEFINE_string("model", None, "folder that --out wrote, to measure; needs device-requirements.txt")
THREADS = flags.DEFINE_integer("threads", 2, "of each runtime", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "turns of each runtime", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 2.0, "of each turn", lower_bound=0.0)
JSON = flags.DEFINE_string("json", None, "write the figures here as well")

PRECISIONS = ("float32", "float16", "int8")
TOLERANCE = 1e-4  # of float32, absolute; outputs are of the order of 1
LEAST_CALLS = 5  # of a turn, however short


BASELINE = "ONNX Runtime float32"
LITERT_FLOAT32, LITERT_INT8 = "kddpm on LiteRT float32", "kddpm on LiteRT int8"


# --out: in the project's environment.


def write_network(folder, preset):
    """Write NAME.tflite for each precision, and network.npz: architecture, weights, inputs and outputs."""
    commands.start_tensorflow()
    from kddpm.runs import build

    config = network_file.config_of(preset)
    model = build.build_model(config, (*config.image_size, config.channels))
    network = model.ema_network
    rng = np.random.default_rng(0)
    network_file.randomise(network, rng)
    x, t = network_file.inputs(network, config.num_timesteps, rng)
    eps = network.predict([x, t], verbose=0)
    network_file.write(folder / "network.npz", network, preset, x, t, eps)
    for precision in PRECISIONS:
        print(f"Exporting {preset} in {precision} ...", flush=True)
        file = folder / f"{precision}.tflite"
        model.export(file, format="litert", sampler="ddim", num_steps=20, precision=precision)


# --model: in the environment of device-requirements.txt.


def write_rivals(folder):
    """Write float32.pt, float32.onnx, int8_dynamic.onnx and int8_static.onnx beside what --out wrote."""
    import torch
    import torch_unet

    file = network_file.read(folder / "network.npz")
    network = torch_unet.UNet(**file.architecture)
    torch_unet.load_weights(network, file.weights)
    x, t, eps = file.x, file.t, file.eps
    network = torch_unet.DeviceCall(network).eval()
    with torch.inference_mode():
        error = np.abs(network(torch.from_numpy(x), torch.from_numpy(t)).numpy() - eps).max()
    if not error < TOLERANCE:
        raise InputError(f"torch_unet.py must agree with network.npz to {TOLERANCE}. Received: off by {error:.2g}")
    print(f"PyTorch agrees with Keras to {error:.1e}", flush=True)
    torch.save(network.state_dict(), folder / "float32.pt")
    print("Exporting to ONNX ...", flush=True)
    write_onnx(folder, network, torch.from_numpy(x[:1]), torch.from_numpy(t[:1]))
    print("Quantising for ONNX Runtime ...", flush=True)
    quantize(folder, x.shape[1:], int(t.max()))


def write_onnx(folder, network, x, t):
    """Write float32.onnx, in the form that ONNX Runtime was seen to run fastest.

    Opset 18 took 0.92 of opset 21's time: the operator GroupNormalization, new there, is taken apart into many small
    ones. Written otherwise (statistics by a matrix as in kddpm, or LayerNormalization; attention by 1x1 convolutions;
    upsampling fused with its convolution) the network was within 3 % of this.
    """
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    names = {"input_names": ["x", "t"], "output_names": ["eps"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (x, t), dynamo=True, opset_version=18, verbose=False, **names)
    program.save(folder / "float32.onnx")


def quantize(folder, image_shape, last_timestep):
    """Both of ONNX Runtime's ways to int8, from float32.onnx.

    Dynamic means that activations are quantised as they come, as kddpm's export does, static that their ranges were
    found beforehand, here on eight inputs.
    """
    from onnxruntime import quantization

    class Calibration(quantization.CalibrationDataReader):
        """Noise, at timesteps all over the schedule."""

        def __init__(self):
            rng = np.random.default_rng(1)
            self._inputs = iter(
                {"x": rng.standard_normal((1, *image_shape)).astype(np.float32), "t": np.array([t], np.int32)}
                for t in np.linspace(0, last_timestep, 8)
            )

        def get_next(self):
            """The next inputs, or None."""
            return next(self._inputs, None)

    logging.getLogger().setLevel(logging.ERROR)  # it advises a pre-processing that the exporter has done
    source, kinds = folder / "float32.onnx", quantization.QuantType
    # Signed weights with a scale for each channel would make this one four times as slow.
    quantization.quantize_dynamic(source, folder / "int8_dynamic.onnx", weight_type=kinds.QUInt8)
    quantization.quantize_static(
        source,
        folder / "int8_static.onnx",
        Calibration(),
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=kinds.QUInt8,
        weight_type=kinds.QInt8,
    )


def start_litert(folder, variant, threads):
    """The signature `denoise` of a `.tflite`."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(folder / variant.file), num_threads=threads).get_signature_runner("denoise")
    return lambda x, t: runner(x=x, t=t)["eps"]


def start_onnx(folder, variant, threads):
    """An ONNX Runtime session, with all of its graph optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session = onnxruntime.InferenceSession(folder / variant.file, options, providers=["CPUExecutionProvider"])
    return lambda x, t: session.run(None, {"x": x, "t": t})[0]


def start_torch(folder, variant, threads, channels_last=False):
    """PyTorch, eager."""
    import torch
    import torch_unet

    torch.set_num_threads(threads)
    with np.load(folder / "network.npz") as archive:
        architecture = json.loads(str(archive["architecture"]))
    with torch.device("meta"):  # no memory for weights that the file's will replace
        network = torch_unet.DeviceCall(torch_unet.UNet(**architecture), channels_last).eval()
    network.load_state_dict(torch.load(folder / variant.file, mmap=True), assign=True)
    if channels_last:
        network.to(memory_format=torch.channels_last)

    def call(x, t):
        with torch.inference_mode():
            return network(torch.from_numpy(x), torch.from_numpy(t)).numpy()

    return call


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table.

    Args:
        runtime: its name for the table.
        precision: of the weights.
        file: what it loads.
        package: what it imports.
        start: function of folder, variant and threads that gives a function of x and t.
    """

    runtime: str
    precision: str
    file: str
    package: str
    start: Callable

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.runtime} {self.precision}"


VARIANTS = (
    *(Variant("kddpm on LiteRT", p, f"{p}.tflite", "ai_edge_litert.interpreter", start_litert) for p in PRECISIONS),
    Variant("ONNX Runtime", "float32", "float32.onnx", "onnxruntime", start_onnx),
    Variant("ONNX Runtime", "int8, dynamic", "int8_dynamic.onnx", "onnxruntime", start_onnx),
    Variant("ONNX Runtime", "int8, static", "int8_static.onnx", "onnxruntime", start_onnx),
    Variant("PyTorch", "float32", "float32.pt", "torch", start_torch),
    Variant(
        "PyTorch channels_last",
        "float32",
        "float32.pt",
        "torch",
        functools.partial(start_torch, channels_last=True),
    ),
)


def peak_mb():
    """High-water mark of this process's memory; of the kernel's two, the one that a parent's size does not reach."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1000


def worker(pipe, folder, variant, threads):
    """Load, compare, then make calls for as many seconds as the parent asks for."""
    importlib.import_module(variant.package)
    bare = peak_mb()
    call = variant.start(folder, variant, threads)
    with np.load(folder / "network.npz") as archive:
        x, t, eps = (archive[name] for name in ("x", "t", "eps"))
    pipe.send([call(x[i : i + 1], t[i : i + 1]) - eps[i : i + 1] for i in range(len(t))])
    x, t = x[:1], t[:1]
    while (seconds := pipe.recv()) is not None:
        call(x, t)  # not counted: threads wake up, caches fill
        end, times = time.perf_counter() + seconds, []
        while len(times) < LEAST_CALLS or time.perf_counter() < end:
            started = time.perf_counter()
            call(x, t)
            times.append(time.perf_counter() - started)
        pipe.send(1000 * float(np.median(times)))
    pipe.send((peak_mb(), peak_mb() - bare))


def measure(folder, threads, rounds, seconds):
    """All variants in turns; returns a dictionary of figures for each."""
    context = multiprocessing.get_context("spawn")  # a fork would begin with the parent's memory
    with np.load(folder / "network.npz") as archive:
        scale = float(np.sqrt((archive["eps"] ** 2).mean()))
    pipes, rows = {}, {}
    for variant in VARIANTS:
        here, there = context.Pipe()
        context.Process(target=worker, args=(there, folder, variant, threads), daemon=True).start()
        there.close()  # so that a worker that dies ends the wait for it
        error = np.concatenate(here.recv())
        if variant.precision == "float32" and not np.abs(error).max() < TOLERANCE:
            raise InputError(
                f"{variant.file} must agree with network.npz to {TOLERANCE}. Received: off by {np.abs(error).max():.2g}"
            )
        pipes[variant.name] = here
        size = (folder / variant.file).stat().st_size / 1e6
        rows[variant.name] = {"error": float(np.sqrt((error**2).mean())) / scale, "file_mb": size, "times_ms": []}
        print(f"{variant.name}: loaded, error {rows[variant.name]['error']:.1e}", flush=True)
    for number in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(seconds)
            rows[name]["times_ms"].append(pipe.recv())
        print(f"Round {number + 1} of {rounds} done", flush=True)
    for name, pipe in pipes.items():
        pipe.send(None)
        rows[name]["peak_mb"], rows[name]["own_mb"] = pipe.recv()
    return rows


def ratios(rows, name, baseline):
    """Time of one over time of another, round by round."""
    return np.divide(rows[name]["times_ms"], rows[baseline]["times_ms"])


def print_table(rows):
    """A line for each variant."""
    columns = f"{'ms a step':>10s} {'smallest to largest':>20s} {'over ' + BASELINE:>34s} {'file MB':>9s}"
    print(f"\n{'':32s}{columns} {'peak MB':>9s} {'own MB':>9s} {'error':>9s}")
    for name, row in rows.items():
        low, middle, high = np.quantile(row["times_ms"], [0, 0.5, 1])
        ratio = ratios(rows, name, BASELINE)
        spread = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        print(
            f"{name:32s}{middle:10.2f} {f'{low:.2f} to {high:.2f}':>20s} {spread:>34s} {row['file_mb']:9.1f} "
            f"{row['peak_mb']:9.0f} {row['own_mb']:9.0f} {row['error']:9.1e}"
        )
    print("error: root mean square of the difference from Keras's float32, over that of the output")


def print_goals(rows):
    """What was reached of what was wanted."""
    memory = {kind: rows[LITERT_INT8][kind] / rows[LITERT_FLOAT32][kind] for kind in ("peak_mb", "own_mb")}
    print(
        f"\nLiteRT int8 takes {np.median(ratios(rows, LITERT_INT8, BASELINE)):.2f} of {BASELINE}'s time, goal 0.30"
        f"\nLiteRT float32 takes {np.median(ratios(rows, LITERT_FLOAT32, BASELINE)):.2f} of it, goal 1.10"
        f"\nLiteRT int8 takes {memory['peak_mb']:.2f} of LiteRT float32's peak memory, goal 0.50 "
        f"({memory['own_mb']:.2f} without the runtime)",
        flush=True,
    )


def check_flags():
    """Whether what the flags ask for can be done here, before the work."""
    if (OUT.value is None) == (MODEL.value is None):
        raise InputError("one of --out (write a network) and --model (measure it) is needed, and not both")
    packages = ("tensorflow",) if OUT.value else ("torch", "onnx", "onnxscript", "onnxruntime", "ai_edge_litert")
    environment = "the project's environment" if OUT.value else "benchmarks/device-requirements.txt"
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--{'out' if OUT.value else 'model'} needs {environment}: {package} is not installed here"
            )
    if OUT.value:
        check_output("out", OUT.value, is_folder=True)
    else:
        for file in ("network.npz", *(f"{precision}.tflite" for precision in PRECISIONS)):
            if not (pathlib.Path(MODEL.value).expanduser() / file).is_file():
                raise InputError(f"--model must be a folder that --out wrote. Received: {MODEL.value}, without {file}")
    if JSON.value:
        check_output("json", JSON.value, is_folder=False)


def main():
    """Flags to `write_network`, or to `measure`."""
    check_flags()
    if OUT.value:
        write_network(pathlib.Path(OUT.value).expanduser(), PRESET.value)
        return
    folder = pathlib.Path(MODEL.value).expanduser()
    write_rivals(folder)
    with np.load(folder / "network.npz") as archive:
        preset = str(archive["preset"])
    rows = measure(folder, THREADS.value, ROUNDS.value, SECONDS.value)
    cores = multiprocessing.cpu_count()
    print(f"\n{preset}, {THREADS.value} threads, {cores} cores, {platform.processor() or platform.machine()}")
    print_table(rows)
    print_goals(rows)
    if JSON.value:
        pathlib.Path(JSON.value).expanduser().parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(JSON.value).expanduser().write_text(
            json.dumps({"preset": preset, "threads": THREADS.value, **rows}, indent=1)
        )


if __name__ == "__main__":
    commands.run(main)
