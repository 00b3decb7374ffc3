"""What is measured: networks, and the forms of each program. Needs neither TensorFlow nor PyTorch."""

import dataclasses
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the project
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # network_file, for the workers

from contestants import Contestant, Failure

from kddpm.runs import presets


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and how it is trained: a preset, with some fields of `TrainConfig` replaced."""

    name: str
    preset: str
    overrides: dict

    def config(self, **more):
        """The `TrainConfig`, with further fields replaced."""
        return presets.make_config(self.preset, **self.overrides, **more)


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to run a program: `options` are fields of `TrainConfig` for kddpm, arguments of `torch_worker` else."""

    name: str
    program: str  # kddpm, keras or torch
    options: dict


TOLERANCE = 1e-4  # of float32, absolute; outputs are of the order of 1
EPS = {"num_classes": None, "prediction": "eps"}  # as PyTorch's network is trained
GREY32 = {"image_size": (32, 32), "width": 64, "blocks_per_level": 2, "attention_resolutions": (16,), "batch_size": 16}
CASES = {
    case.name: case
    for case in (
        Case("digits", "digits", {}),
        Case("mnist", "mnist", EPS),
        Case("mobile32", "mobile32", {"batch_size": 32}),
        Case("grey32", "mnist", EPS | GREY32),  # 6.5 million parameters
        Case("ddpm32", "ddpm32", {"batch_size": 8}),
    )
}

KDDPM = (
    Form("kddpm", "kddpm", {}),  # as it comes
    Form("kddpm float32", "kddpm", {"precision": "float32", "jit_compile": False}),
    Form("kddpm float32 XLA", "kddpm", {"precision": "float32", "jit_compile": True}),
    Form("kddpm bfloat16", "kddpm", {"precision": "mixed_bfloat16", "jit_compile": False}),
    Form("kddpm bfloat16 XLA", "kddpm", {"precision": "mixed_bfloat16", "jit_compile": True}),
)
KERAS = (Form("Keras's layers", "keras", {"precision": "float32", "jit_compile": False}),)
LAYOUTS = {"": (False, False), " channels-last": (True, False), " channels-last compiled": (True, True)}
TORCH = tuple(
    Form(
        f"PyTorch {precision}{words}",
        "torch",
        {"bfloat16": precision == "bfloat16", "channels_last": channels_last, "compiled": compiled},
    )
    for precision in ("float32", "bfloat16")
    for words, (channels_last, compiled) in LAYOUTS.items()
)
XLA = tuple(form.name for form in KDDPM if form.options.get("jit_compile"))
PLAIN = ("PyTorch float32", "PyTorch bfloat16")
# What is not the fastest there, as smaller networks show, and would take minutes; of ddpm32 also the memory for all.
SLOW = {"mobile32": XLA[:1], "grey32": (*XLA, "Keras's layers"), "ddpm32": (*XLA, "Keras's layers", *PLAIN)}
FORMS = {form.name: form for form in (*KDDPM, *KERAS, *TORCH)}


def worthwhile(case, forms):
    """Those forms that may be the fastest for a case; of kddpm's, those whose configurations differ."""
    found, seen = [], []
    for form in forms:
        config = case.config(**form.options) if form.program == "kddpm" else form.name
        if form.name not in SLOW.get(case.name, ()) and config not in seen:
            found.append(form)
            seen.append(config)
    return found


def start(form, python, cache=None):
    """Start the process of a form; `python` is {program: interpreter}."""
    script = "torch_worker.py" if form.program == "torch" else "keras_worker.py"
    return Contestant(form.name, python[form.program], script, cache)


def networks(cases, python):
    """{case: `architecture`, arguments of `torch_unet.UNet`, and `parameters`, their number}.

    Raises:
        Failure: PyTorch's network of the same weights computes something else.
    """
    found, ours, theirs = {}, FORMS["kddpm float32"], FORMS["PyTorch float32"]
    with tempfile.TemporaryDirectory() as folder, start(ours, python) as writer, start(theirs, python) as reader:
        for case in cases:
            path = f"{folder}/{case.name}.npz"
            architecture = writer.ask("write_network", path=path, **described(case, ours))
            error, parameters = reader.ask("check_network", path=path)
            if not error < TOLERANCE:
                raise Failure(
                    f"{case.name}: PyTorch must agree to {TOLERANCE} with kddpm. Received: off by {error:.2g}"
                )
            print(f"{case.name}: {parameters:,} parameters, PyTorch agrees to {error:.0e}", flush=True)
            found[case.name] = {"architecture": architecture, "parameters": parameters}
    return found


def described(case, form):
    """A case and a form of kddpm as `keras_worker` takes them."""
    return {"preset": case.preset, "overrides": {**case.overrides, **form.options}}
