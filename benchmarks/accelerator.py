"""Training step and samplers on a GPU: kddpm's network under Keras's JAX backend, beside PyTorch's `torch.compile`.

    python benchmarks/accelerator.py --preset=ddpm32
    python benchmarks/accelerator.py --device=cpu --preset=digits --cases=train:float32:16,sample:bfloat16:16

It needs JAX, Keras, PyTorch and what `kddpm.networks` imports, no TensorFlow. A case is TASK:PRECISION:BATCH. `train`
is a step with loss, gradients clipped by their norm, Adam and averaged weights; `sample` paints with DDIM in 50 steps
and ancestral sampling in 250. Precisions are bfloat16 (weights stay float32), tf32 and float32 (every product in full).

Both programs have the same weights, and nothing is measured before what they predict agrees, in every precision. Each
lives in a process of its own. They compile at the same time and then take turns, A B A B .... Images are on the device;
t, noise and dropout are drawn there. GiB is what XLA plans for its program, and the most that PyTorch's allocator held.
`share` is of the operations/s that PyTorch reaches on a product of two large matrices of the same precision; a training
step counts three times the network's operations, a picture one time each step.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

import network_file
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands
from kddpm.runs import presets

DEVICE = flags.DEFINE_enum("device", "gpu", ["gpu", "cpu"], "what both programs run on")
PRESET = flags.DEFINE_enum("preset", "ddpm32", sorted(presets.PRESETS), "whose network")
CASES = flags.DEFINE_list(
    "cases",
    [f"{task}:{kind}:{batch}" for kind in ("bfloat16", "tf32") for task in ("train", "sample") for batch in (128, 256)],
    "TASK:PRECISION:BATCH, in the order in which they are measured",
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each program", lower_bound=1)
SECONDS = flags.DEFINE_float(
    "seconds", 2.0, "of each turn, about; a turn of sampling paints one batch", lower_bound=0.0
)
CUDA_GRAPHS = flags.DEFINE_bool("cuda_graphs", True, "whether PyTorch records its kernels and replays them")
JSON = flags.DEFINE_string("json", None, "write the figures here as well, after each case")

TASKS = ("train", "sample")
# How far eps may be from float32's: root mean square of the difference over that of eps.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 5e-2}
SAMPLERS = (("ddim", 50), ("ancestral", 250))
TRAINING = 3  # times the operations of a forward pass


def worker(pipe, program, path, preset, device, options):
    """Answer calls (method, arguments) with (result, None) or (None, what went wrong), until the parent is gone."""
    made = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            method, *arguments = pipe.recv()
            try:
                if made is None:
                    made = importlib.import_module(f"accelerator_{program}").Program(path, preset, device, **options)
                found = getattr(made, method)
                answer = found(*arguments) if callable(found) else found, None
            except Exception as error:
                answer = None, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
            pipe.send(answer)


class Rival:
    """A program in a process of its own, whose methods are called by name."""

    def __init__(self, program, path, preset, device, **options):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        arguments = (there, program, path, preset, device, options)
        context.Process(target=worker, args=arguments, daemon=True).start()
        there.close()  # so that a process that dies ends the wait for it
        self.program = program
        try:
            self.name = self.ask("name")
        except InputError as error:
            raise InputError(f"--device={device} needs {program} and such a device here. {error}") from None

    def ask(self, *call):
        """Return what a method returns; the call is (method, arguments), as in `start`."""
        self.start(*call)
        return self.answer()

    def start(self, *call):
        """Start a call; `answer` must come before the next."""
        self._call = call
        with contextlib.suppress(OSError):  # a process that is gone: `answer` says so
            self._pipe.send(call)

    def answer(self):
        """Return what the started call returns.

        Raises:
            InputError: it raised an error, or the process died.
        """
        try:
            result, fault = self._pipe.recv()
        except (EOFError, OSError):
            result, fault = None, "the process died"
        if fault is not None:
            raise InputError(f"{self.program} must answer {self._call}. Received: {fault}")
        return result

    def rate(self, method, *arguments):
        """Return images/s of a method that returns a number of images."""
        start = time.perf_counter()
        images = self.ask(method, *arguments)
        return images / (time.perf_counter() - start)


def together(rivals, *call):
    """Return what each program answers; they compute at the same time.

    Raises:
        InputError: one of them could not; all have answered by then.
    """
    for rival in rivals:
        rival.start(*call)
    answers, faults = [], []
    for rival in rivals:
        try:
            answers.append(rival.answer())
        except InputError as fault:
            faults.append(fault)
    if faults:
        raise faults[0]
    return answers


def check_agreement(rivals, expected, precisions):
    """Compare what the programs predict; returns {precision: {program: error}}.

    Raises:
        InputError: a program is further from float32 than its precision explains.
    """
    errors = {}
    for precision in dict.fromkeys(["float32", *precisions]):
        errors[precision] = {}
        for rival, eps in zip(rivals, together(rivals, "eps", precision), strict=True):
            error = rms(eps - expected) / rms(expected)
            errors[precision][rival.program] = error
            if not error < TOLERANCES[precision]:
                raise InputError(
                    f"{rival.name} must agree with kddpm's float32 to {TOLERANCES[precision]} in {precision}. "
                    f"Received: off by {error:.2g}"
                )
        found = ", ".join(f"{program} {error:.1e}" for program, error in errors[precision].items())
        print(f"eps in {precision} beside kddpm's in float32: {found}", flush=True)
    return errors


def rms(values):
    """Root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def measure(rivals, case, rounds, seconds):
    """Measure a case; returns rows, one for each program and sampler."""
    task, precision, batch = case
    rows, method = [], "prepare_training" if task == "train" else "prepare_sampling"
    for rival, (compiled_s, held) in zip(rivals, together(rivals, method, precision, batch), strict=True):
        for sampler, steps in SAMPLERS if task == "sample" else ((None, 1),):
            rows.append({
                "task": task if sampler is None else f"{sampler}-{steps}", "precision": precision, "batch": batch,
                "program": rival.program, "compile_s": compiled_s, "memory_gib": held / 2**30, "rates": [],
                "call": ("train", 3) if sampler is None else ("sample", sampler, steps),
            })  # fmt: skip
    of = {rival.program: rival for rival in rivals}
    for row in rows:
        rate = of[row["program"]].rate(*row["call"])  # not counted: clocks rise
        if task == "train":
            row["call"] = ("train", max(3, round(seconds * rate / batch)))
    for _ in range(rounds):
        for row in rows:
            row["rates"].append(of[row["program"]].rate(*row["call"]))
    together(rivals, "release")
    for row in rows:
        del row["call"]
    return rows


def print_rows(rows, operations, ceiling):
    """A line for each row, with the share of the ceiling."""
    for row in rows:
        per_image = operations * (TRAINING if row["task"] == "train" else int(row["task"].rpartition("-")[2]))
        row["share"] = float(np.median(row["rates"])) * per_image / ceiling
        low, middle, high = np.quantile(row["rates"], [0, 0.5, 1])
        spread = f"{low:,.1f} to {high:,.1f}"
        print(
            f"{row['task']:14s}{row['precision']:10s}{row['batch']:6d}  {row['program']:6s}{middle:12,.1f} "
            f"{spread:>22s}{row['compile_s']:10.1f}{row['memory_gib']:9.2f}{row['share']:8.2f}",
            flush=True,
        )
    for task in dict.fromkeys(row["task"] for row in rows):
        ours, theirs = (row["rates"] for row in rows if row["task"] == task)
        ratios = np.divide(ours, theirs)
        print(f"{task}: jax over torch {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})", flush=True)


def write_json(found):
    """Write the figures so far to --json."""
    path = pathlib.Path(JSON.value).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))


def checked_cases(texts):
    """Return the cases (task, precision, batch) of --cases.

    Raises:
        InputError: a case that is none.
    """
    cases = []
    for text in texts:
        task, _, rest = text.strip().partition(":")
        precision, _, batch = rest.partition(":")
        if task not in TASKS or precision not in TOLERANCES or not batch.isdecimal() or int(batch) < 1:
            raise InputError(
                f"--cases must be TASK:PRECISION:BATCH with {' or '.join(TASKS)}, {', '.join(TOLERANCES)} and a batch "
                f"of 1 or more. Received: {text!r}"
            )
        cases.append((task, precision, int(batch)))
    if not cases:
        raise InputError("--cases must name one or more. Received: none")
    return cases


def main():
    """Flags to `measure`."""
    cases = checked_cases(CASES.value)
    if JSON.value:
        check_output("json", JSON.value, is_folder=False)
    precisions = list(dict.fromkeys(precision for _, precision, _ in cases))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.npz")
        ours = Rival("jax", path, PRESET.value, DEVICE.value)
        theirs = Rival("torch", path, PRESET.value, DEVICE.value, cuda_graphs=CUDA_GRAPHS.value)
        rivals = [ours, theirs]
        ours.ask("write")
        print(f"{PRESET.value} on {theirs.ask('device')}: {', '.join(rival.name for rival in rivals)}", flush=True)
        errors = check_agreement(rivals, network_file.read(path).eps, precisions)
        operations = theirs.ask("operations")
        ceilings = {precision: theirs.ask("ceiling", precision) for precision in precisions}
        for precision, ceiling in ceilings.items():
            print(f"product of matrices in {precision}: {ceiling / 1e12:,.1f} TFLOP/s", flush=True)
        print(f"the network: {operations / 1e9:,.2f} GFLOP an image\n", flush=True)
        print(f"{'task':14s}{'precision':10s}{'batch':>6s}  {'':6s}{'images/s':>12s} {'smallest to largest':>22s}"
              f"{'compile s':>10s}{'GiB':>9s}{'share':>8s}")  # fmt: skip
        found = {"preset": PRESET.value, "device": theirs.ask("device"), "programs": [rival.name for rival in rivals],
                 "errors": errors, "operations": operations, "ceilings": ceilings, "rows": []}  # fmt: skip
        for case in cases:
            try:
                rows = measure(rivals, case, ROUNDS.value, SECONDS.value)
            except InputError as error:  # out of memory, say; the other cases may still do
                print(f"{':'.join(map(str, case))} failed: {error}", flush=True)
                together(rivals, "release")
                continue
            print_rows(rows, operations, ceilings[case[1]])
            found["rows"] += rows
            if JSON.value:
                write_json(found)


if __name__ == "__main__":
    commands.run(main)
