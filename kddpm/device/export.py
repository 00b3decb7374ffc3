"""Exports a model to a file that generates without kddpm, a SavedModel or a `.tflite`, with these signatures:

    signature   inputs                                          outputs
    generate    seed int32 (B,)                                 image int32 (B, H, W, C), 0 .. 255
    start       seed int32 (B,)                                 x float32 (B, H, W, C k): the sampler's state
    step        x, index int32 (1,), seed int32 (B,)            x: one step, noise and coefficients included
    finish      x                                               image int32 (B, H, W, C)
    denoise     x (B, H, W, C), t int32 (B,)                    eps, x0 float32 (B, H, W, C)
    noise       seed, stream int32 (1,), index int32 (1,)       noise float32 (B, H, W, C)

With classes, generate, step and denoise also take label int32 (B,). k is 2 for samplers with a memory, else 1. eps and
x0 are the network's prediction, guidance included, as noise and as a picture; a network with a learned variance also
gives `fraction`. `noise` draws stream 0 (x_T, at index 0), 1 (of the step `index`), or another of `sampling.noise`.
An index, t or label out of range is taken as the nearest in it, and the label num_classes as "no class"; an image lies
in 0 .. 255 whatever x holds. Shapes are static. Sampler, number of steps, guidance and batch size are fixed at export;
the file contains the averaged weights once, but XNNPACK copies them for each of generate, step and denoise: a file with
one of them takes a third of the memory. NAME.json, in the same folder, describes the file, its steps and how closely it
agrees with Keras. An export that fails this comparison is not written.

A file for GPUs differs in two signatures, so that all but `start` and `noise` have only operators that GPUs take:

    generate    x, what start gives                             image; only for samplers without noise and few steps
    step        x, index int32 (1,), noise as x                 x; without the input where the sampler adds no noise
"""

import dataclasses
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kddpm.base import arguments, extras, progress
from kddpm.base.errors import InputError
from kddpm.base.files import check_output, expand, replacing
from kddpm.base.types import Integers
from kddpm.base.version import __version__
from kddpm.device import PRECISIONS, TARGETS, description, gpu, litert, parity
from kddpm.device import signatures as contract
from kddpm.device.description import side_file
from kddpm.networks.contract import copied
from kddpm.sampling import generation, samplers, walks
from kddpm.sampling.denoiser import Denoiser, HasDenoiser, denoiser_of
from kddpm.sampling.step_table import StepTable

FORMATS = ("litert", "tf_saved_model")

_DEFAULT_STEPS = 50
_LATENCY_SECONDS = 1.0
_MOST_THREADS = 256  # LiteRT itself sets no limit


def export(
    model: Denoiser | HasDenoiser,
    path: str | os.PathLike,
    format: str = "litert",
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | Integers | None = None,
    precision: str = "float32",
    *,
    guidance_scale: float = 1.0,
    batch_size: int = 1,
    target: str = "cpu",
    signatures: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    parity_seeds: int = 8,
    threads: int = 2,
    verbose: bool = True,
) -> dict:
    """Write a file, or a folder, that generates without kddpm, and NAME.json next to it.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`.
        path: NAME.tflite, or the folder of a SavedModel.
        format: "litert" = a `.tflite` of builtin operators; "tf_saved_model" = a SavedModel.
        sampler: as in `generation.generate`.
        num_steps: as in `generation.generate`; None = 50, or T if that is less.
        precision: "float32", "float16" or "int8", see `litert.quantize`; a SavedModel is float32.
        guidance_scale: as in `generation.generate`.
        batch_size: pictures at a time, B; phones and browsers want 1.
        target: "cpu", or "gpu" for a file of operators that GPUs take, see above.
        signatures: which of the signatures above, by name; None = all that the target can have.
        class_names: names of the classes, for clients to show.
        parity_seeds: number of pictures to compare with Keras's before anything is written.
        threads: LiteRT's threads, for the comparison and the latencies; a SavedModel uses TensorFlow's own.
        verbose: whether to print progress.

    Returns:
        The content of NAME.json.

    Raises:
        InputError: an unknown format, precision, target, signature or sampler, a path that cannot be written, operators
            that TFLite or GPUs lack, or pictures that differ from Keras's. Nothing is written then.
    """
    denoiser = denoiser_of(model)
    path = pathlib.Path(expand(path))
    painting, table = _painting(denoiser, sampler, num_steps, guidance_scale)
    batch_size, parity_seeds, threads = (
        arguments.count(name, value)
        for name, value in {"batch_size": batch_size, "parity_seeds": parity_seeds, "threads": threads}.items()
    )
    _check(denoiser, path, format, precision, target, class_names, threads)
    chosen = contract.chosen(signatures, target, table)
    say = print if verbose else lambda *_: None

    denoiser = _in_float32(denoiser)
    of_target = functools.partial(contract.signatures, denoiser, table, batch_size, painting["guidance_scale"])
    reference = of_target("cpu")
    functions = reference if target == "cpu" else of_target(target)  # the same ones, so that they are traced once
    functions = {name: functions[name] for name in chosen}
    batches = _batches(denoiser, parity_seeds, batch_size)
    with replacing(path) as temporary:
        candidate, facts = _write(denoiser, functions, temporary, format, precision, target, threads, say)
        if target == "gpu":
            candidate = parity.given_noise(candidate, reference, table.is_noisy)
        pictures, agreement = _compared(denoiser, candidate, reference, table, batches, verbose, **painting)
        agreement.check(parity.LIMITS[precision])
        about = {
            "description_version": description.VERSION,
            "kddpm": __version__,
            "format": format,
            "target": target,
            "file": path.name,
            **facts,
            "precision": precision,
            **description.of_sampling(denoiser, painting["sampler"], table, painting["guidance_scale"]),
            "batch_size": batch_size,
            "class_names": None if class_names is None else list(class_names),
            "signatures": {name: contract.described(function) for name, function in functions.items()},
            "parity": dataclasses.asdict(agreement),
            "limits": dataclasses.asdict(parity.LIMITS[precision]),
            "latency_ms": _latencies(candidate, reference, batches[0], table),
            "vectors": description.vectors(reference["start"], batches, pictures),
        }
    return description.write(about, path)


def _painting(denoiser, sampler, num_steps, guidance_scale) -> tuple[dict, StepTable]:
    """Return the arguments of `generation.generate` that say how a picture is painted, checked, and its steps."""
    sampler = samplers.by_name(sampler)
    num_steps = min(_DEFAULT_STEPS, denoiser.schedule.num_timesteps) if num_steps is None else num_steps
    table = denoiser.steps(sampler, num_steps)
    denoiser.check_guidance(guidance_scale)
    return {"sampler": sampler, "num_steps": num_steps, "guidance_scale": float(guidance_scale)}, table


def _write(denoiser, functions, temporary, format, precision, target, threads, say) -> tuple[dict, dict]:
    """Write the file or folder, and return its signatures, loaded again, and its entries of the description."""
    say("Tracing the signatures ...")
    if format == "tf_saved_model":
        _save(denoiser, functions, temporary)
        return tf.saved_model.load(str(temporary)).signatures, description.facts_of_folder(temporary)
    content = _litert(denoiser, functions, precision, say)
    if target == "gpu":
        gpu.check(content)
    temporary.write_bytes(content)
    return litert.load(content, threads), {**description.facts_of_file(content, list(functions)), "threads": threads}


def _check(denoiser, path, format, precision, target, class_names, threads):
    """Check the arguments of `export` that need no tracing.

    Raises:
        InputError: as in `export`.
    """
    of_name = {"format": (format, FORMATS), "precision": (precision, PRECISIONS), "target": (target, TARGETS)}
    for name, (value, choices) in of_name.items():
        if value not in choices:
            raise InputError(name, f"must be one of {', '.join(choices)}", repr(value))
    if format == "litert":
        extras.need("export", "{format}", format=format)
    if threads > _MOST_THREADS:
        raise InputError("threads", f"must lie in 1 .. {_MOST_THREADS}", threads)
    classes = denoiser.num_classes
    if class_names is not None and len(class_names) != (classes or 0):
        raise InputError("class_names", f"must be one a class, {classes or 0}", len(class_names))
    is_folder = format == "tf_saved_model"
    if is_folder and precision != "float32":
        raise InputError("precision", "of a SavedModel is float32", repr(precision))
    if is_folder and target != "cpu":
        raise InputError("target", "of a SavedModel is cpu", repr(target))
    if not is_folder and path.suffix != ".tflite":
        raise InputError("path", "must end in .tflite", path)
    check_output("path", path, is_folder)
    check_output("path", side_file(path), is_folder=False)
    before = description.described_before(path)
    if side_file(path).exists() and before is None:
        raise InputError("path", f"needs {side_file(path)} for its description", "a file of something else there")
    if is_folder and path.exists():
        foreign = {description.name_in(path, file) for file in description.files(path)} - set(
            (before or {}).get("files", ())
        )
        if foreign:
            raise InputError("path", "must be new, empty or an export", f"{path}, with {min(foreign)}")


def _in_float32(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser itself if it computes in float32, as the files do, else a float32 copy of it."""
    network = denoiser.network
    if all(layer.compute_dtype != "bfloat16" for layer in network._flatten_layers()):
        return denoiser
    twin = copied(network, network.name, denoiser.last_timestep)
    for layer in twin._flatten_layers():
        layer.dtype_policy = "float32"
    return dataclasses.replace(denoiser, network=twin)


def _save(denoiser, functions, folder):
    """Write a SavedModel that contains the averaged weights once, as its variables."""
    module = tf.Module()
    # TensorFlow does not track Keras's variables: without this list they would silently be missing.
    module.variables_of_network = [variable.value for variable in denoiser.network.variables]
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    # Given the functions themselves, TensorFlow would trace each once more, and forget that trace.
    traced = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(module, str(folder), signatures=traced, options=options)


def _litert(denoiser, functions, precision, say) -> bytes:
    """Return the content of the `.tflite`: converted, quantised and packed."""
    from kddpm.device import packing  # imported here, because a plain install has no LiteRT

    with tempfile.TemporaryDirectory() as folder:
        _save(denoiser, functions, folder)
        say("Converting to TFLite ...")
        content = litert.convert(folder, list(functions))
    if precision != "float32":
        say(f"Taking the weights to {precision} ...")
    return packing.pack(litert.quantize(content, precision), contract.primary(functions))


def _batches(denoiser, count, batch_size) -> list[dict]:
    """Return inputs of `generate` for at least `count` pictures."""
    batches = []
    for seed in np.arange(-(-count // batch_size) * batch_size, dtype=np.int32).reshape(-1, batch_size):
        label = denoiser.checked_labels(None, seed)
        batches.append({"seed": seed} if label is None else {"seed": seed, "label": label})
    return batches


def _compared(denoiser, candidate, reference, table, batches, verbose, **options) -> tuple[np.ndarray, parity.Parity]:
    """Return the pictures that Keras generates from these inputs, uint8 (N, H, W, C), and how near the file comes."""
    steps = description.of_steps(table)
    pictures = []
    with progress.bar(
        len(batches) + parity.passes(candidate, steps, batches), "Comparing with Keras", "pass", verbose
    ) as bar:
        for batch in batches:
            labels = batch.get("label")
            pictures.append(generation.generate(denoiser, batch["seed"], labels=labels, verbose=False, **options))
            bar.update()
        painted = np.concatenate(pictures)
        return painted, parity.measure(candidate, reference, steps, painted, batches, bar.update)


def _latencies(candidate, reference, batch, table) -> dict:
    """Return the milliseconds of a network call, as the median over one second, and of a picture.

    A file without `generate` takes for a picture what the calls of the network take.
    """
    label = {name: value for name, value in batch.items() if name == "label"}
    x = np.asarray(reference["start"](seed=batch["seed"])["x"])
    t = np.full(len(x), table.timesteps[0], np.int32)
    inputs = {
        "step": {**batch, "x": x, "index": np.zeros(1, np.int32)},
        "denoise": {"x": np.asarray(walks.picture_of(x, table)), "t": t, **label},
        "generate": batch,
    }

    def milliseconds(name):
        began = time.perf_counter()
        candidate[name](**inputs[name])
        return 1e3 * (time.perf_counter() - began)

    name = contract.primary(candidate)
    calls = [milliseconds(name)]
    while sum(calls) < 1e3 * _LATENCY_SECONDS:
        calls.append(milliseconds(name))
    call = statistics.median(calls) / (table.num_rows if name == "generate" else 1)
    return {"call": call, "picture": milliseconds("generate") if "generate" in candidate else call * table.num_rows}
