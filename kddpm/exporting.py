"""From a model to files that generate without kddpm: the signatures (the contract), SavedModel and TFLite.

    signature   inputs                                          outputs
    generate    seed int32 (B,)                                 image int32 (B, H, W, C), 0 .. 255
    start       seed int32 (B,)                                 x float32 (B, H, W, C k): the sampler's state
    step        x, index int32 (1,), seed int32 (B,)            x: one step, noise and coefficients included
    finish      x                                               image int32 (B, H, W, C)
    denoise     x, t int32 (B,)                                 eps float32 (B, H, W, C)

With classes, generate, step and denoise also take label int32 (B,). k is 2 for samplers that remember something, else
1. eps is what the network's prediction, guidance included, means as noise. Shapes are static. Sampler, number of steps,
guidance and batch size are chosen at export; the weights are the averaged ones, once in the file. Beside it lies
NAME.json, which says what the file is and how far it agrees with Keras. An export that fails this comparison is not
written.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
import statistics
import tempfile
import textwrap
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

import kddpm
from kddpm import generation, images, inputs, layers, litert, parametrization, parity, progress, samplers, walks
from kddpm.errors import InputError
from kddpm.files import check_output, read_json, replacing

FORMATS = ("litert", "tf_saved_model")

_DEFAULT_STEPS = 50
_PRIMARY = "step"  # its graph stands first in the file: what a tool such as benchmark_model then times is one step
_LATENCY_SECONDS = 1.0
_MOST_THREADS = 256  # LiteRT starts whatever it is asked for


def export(
    model,
    path: str | os.PathLike,
    format: str = "litert",
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | Sequence[int] | None = None,
    precision: str = "float32",
    *,
    guidance_scale: float = 1.0,
    batch_size: int = 1,
    class_names: Sequence[str] | None = None,
    parity_seeds: int = 8,
    threads: int = 2,
    verbose: bool = True,
) -> dict:
    """Write a file, or a folder, that generates by itself, and NAME.json beside it.

    Args:
        model: a `DiffusionModel`.
        path: NAME.tflite, or the folder of a SavedModel.
        format: "litert" = a `.tflite` of builtin operators; "tf_saved_model".
        sampler: as in `DiffusionModel.generate`.
        num_steps: as in `DiffusionModel.generate`; None = 50, or T where that is less.
        precision: "float32", "float16" or "int8", see `litert.quantize`; a SavedModel is float32.
        guidance_scale: as in `DiffusionModel.generate`.
        batch_size: pictures at a time, B; phones and browsers want 1.
        class_names: of the labels, for clients to show.
        parity_seeds: pictures that are compared with Keras's before anything is written.
        threads: of LiteRT, for the comparison and the latencies; a SavedModel uses TensorFlow's own.
        verbose: whether to tell what is going on.

    Returns:
        The content of NAME.json.

    Raises:
        InputError: an unknown format, precision or sampler, a path that cannot be written, operators that TFLite does
            not have, pictures that differ from Keras's. Nothing is written then.
    """
    path = pathlib.Path(path)
    sampler = samplers.by_name(sampler)
    num_steps = min(_DEFAULT_STEPS, model.schedule.num_timesteps) if num_steps is None else num_steps
    table = generation.step_table(model, sampler, num_steps)
    generation.check_guidance(model, guidance_scale)
    guidance_scale = float(guidance_scale)
    batch_size, parity_seeds, threads = (
        inputs.count(name, value)
        for name, value in {"batch_size": batch_size, "parity_seeds": parity_seeds, "threads": threads}.items()
    )
    _check(model, path, format, precision, class_names, threads)
    tell = print if verbose else lambda *_: None

    model = _in_float32(model)
    functions = signatures(model, table, batch_size, guidance_scale)
    with replacing(path) as beside:
        tell("Tracing the signatures ...")
        if format == "tf_saved_model":
            _save(model, functions, beside)
            loaded = tf.saved_model.load(str(beside))
            candidate = loaded.signatures
            facts = _facts_of_folder(beside)
        else:
            content = _litert(model, functions, precision, tell)
            beside.write_bytes(content)
            candidate = litert.load(content, threads)
            facts = {**_facts_of_file(content), "threads": threads}
        batches = _batches(model, parity_seeds, batch_size)
        passes = 2 * len(batches) + table.num_rows
        with progress.bar(passes, "Comparing with Keras", "pass", verbose) as bar:
            pictures = _pictures(model, batches, sampler, num_steps, guidance_scale, bar)
            agreement = parity.measure(candidate, functions, pictures, batches, table.timesteps, bar.update)
        agreement.check(parity.LIMITS[precision])
        description = {
            "kddpm": kddpm.__version__,
            "format": format,
            "file": path.name,
            **facts,
            "precision": precision,
            "image_shape": list(model.image_shape),
            "batch_size": batch_size,
            "sampler": _described_sampler(model, sampler, table),
            "num_steps": table.num_rows,
            "num_timesteps": model.schedule.num_timesteps,
            "prediction": model.prediction,
            "guidance_scale": guidance_scale,
            "num_classes": model.network.num_classes,
            "class_names": None if class_names is None else list(class_names),
            "signatures": {name: _described(function) for name, function in functions.items()},
            "parity": dataclasses.asdict(agreement),
            "latency_ms": _latencies(candidate, batches[0]),
        }
        text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    with replacing(side_file(path)) as side:
        side.write_text(text)
    return json.loads(text)


def _described_sampler(model, sampler, table) -> dict:
    """Its name, steps and arguments, each as a flag of sample.py takes it."""
    arguments = dataclasses.asdict(sampler)
    if arguments.get("variance", model.variance) is None:
        arguments["variance"] = model.variance
    return {"name": samplers.name_of(sampler), "num_steps": len(np.unique(table.timesteps)), **arguments}


def side_file(path: str | os.PathLike) -> pathlib.Path:
    """Where the description of an export lies: NAME.json for NAME.tflite, FOLDER.json for FOLDER, whatever its name."""
    path = pathlib.Path(path)
    return path.with_suffix(".json") if path.suffix == ".tflite" else path.with_name(f"{path.name}.json")


def signatures(model, table: walks.StepTable, batch_size: int, guidance_scale: float = 1.0) -> dict:
    """The five signatures as `tf.function`s of static shapes.

    Args:
        model: a `DiffusionModel`.
        table: the steps from noise to a picture.
        batch_size: pictures at a time, B.
        guidance_scale: as in `DiffusionModel.generate`.
    """
    shape = model.image_shape
    coefficients = parametrization.eps_coefficients(model.schedule, model.prediction)
    # By the name of t, which is what comes in.
    by_name = np.zeros((2, model.schedule.timesteps[-1] + 1), np.float32)
    by_name[:, model.schedule.timesteps] = coefficients

    def predict(label):
        def with_device_layers(x, t):
            with layers.for_devices():
                return generation.denoiser(model, label, guidance_scale, table.learned_variance)(x, t)

        return with_device_layers

    def generate(seed, label=None):
        return finish(walks.walk(predict(label), table, start(seed)["x"], seed))

    def start(seed):
        return {"x": walks.initial_state(walks.initial_noise(seed, shape), table)}

    def step(x, index, seed, label=None):
        return {"x": walks.take_step(predict(label), table, x, seed, tf.reshape(index, []))}

    def finish(x):
        return {"image": images.to_uint8(walks.picture_of(x, table), dtype="int32")}

    def denoise(x, t, label=None):
        output = predict(label)(x, t)[..., : shape[-1]]
        if model.prediction != "eps":
            of_x, of_output = (tf.reshape(tf.gather(column, t), [-1, 1, 1, 1]) for column in by_name)
            output = of_x * x + of_output * output
        return {"eps": output}

    state = walks.initial_state(tf.zeros([batch_size, *shape]), table)
    specs = {
        "seed": tf.TensorSpec([batch_size], tf.int32, "seed"),
        "x": tf.TensorSpec(state.shape, tf.float32, "x"),
        "index": tf.TensorSpec([1], tf.int32, "index"),
        "t": tf.TensorSpec([batch_size], tf.int32, "t"),
    }
    if model.network.num_classes:
        specs["label"] = tf.TensorSpec([batch_size], tf.int32, "label")
    functions = {}
    for function in (generate, start, step, finish, denoise):
        if function is denoise:
            specs["x"] = tf.TensorSpec([batch_size, *shape], tf.float32, "x")
        names = [name for name in inspect.signature(function).parameters if name in specs]
        functions[function.__name__] = tf.function(function, [specs[name] for name in names], autograph=False)
    return functions


def report(description: dict) -> str:
    """A description as a table to read."""
    agreement, latency = description["parity"], description["latency_ms"]
    sampler = dict(description["sampler"])
    name, num_steps = sampler.pop("name"), sampler.pop("num_steps")
    calls = description["num_steps"]
    rows = {
        "file": f"{description['file']}, {description['bytes'] / 1e6:.2f} MB, {description['precision']}",
        "picture": f"{'x'.join(map(str, description['image_shape']))}, {num_steps} steps of {name}"
        + (f" in {calls} calls of the network" if calls != num_steps else "")
        + "".join(f", {argument}={value}" for argument, value in sampler.items()),
        "signatures": "; ".join(f"{name}({', '.join(s['inputs'])})" for name, s in description["signatures"].items()),
    }
    if "operators" in description:
        rows["operators"] = ", ".join(f"{name} {uses}" for name, uses in description["operators"].items())
        delegation = description["delegation"]
        rows["delegated"] = f"{delegation['share']:.1%} of a step's operators run in XNNPACK; the others: " + ", ".join(
            f"{name} {uses}" for name, uses in delegation["outside"].items()
        )
    threads = f", {description['threads']} threads" if "threads" in description else ""
    rows["latency"] = f"{latency['step']:.2f} ms a step, {latency['picture']:.1f} ms a picture{threads}"
    rows["noise"] = "the bits of Keras"
    rows["parity"] = (
        f"{agreement['seeds']} pictures beside Keras's: off by {agreement['mean_grey_levels']:.3f} grey levels on the "
        f"mean, {agreement['max_grey_levels']} at most; {agreement['identical_pixels']:.2%} of pixels identical"
    )
    rows["a step"] = (
        f"off by {agreement['step_mean_error']:.1e} on the mean, {agreement['step_max_error']:.1e} at most, "
        "where pixels are in [-1, 1]"
    )
    width = 100
    lines = []
    for name, text in rows.items():
        first, *more = textwrap.wrap(text, width)
        lines += [f"{name:<12}{first}", *(" " * 12 + line for line in more)]
    return "\n".join(lines)


def _check(model, path, format, precision, class_names, threads):
    for name, value, choices in (("format", format, FORMATS), ("precision", precision, litert.PRECISIONS)):
        if value not in choices:
            raise InputError(f"`{name}` must be one of {', '.join(choices)}. Received: {value!r}")
    if threads > _MOST_THREADS:
        raise InputError(f"`threads` must lie in 1 .. {_MOST_THREADS}. Received: {threads}")
    classes = model.network.num_classes
    if class_names is not None and len(class_names) != (classes or 0):
        raise InputError(f"`class_names` must be one a class, {classes or 0}. Received: {len(class_names)}")
    is_folder = format == "tf_saved_model"
    if is_folder and precision != "float32":
        raise InputError(f"`precision` of a SavedModel is float32. Received: {precision!r}")
    if not is_folder and path.suffix != ".tflite":
        raise InputError(f"`path` must end in .tflite. Received: {path}")
    check_output("`path`", path, is_folder)
    check_output("`path`", side_file(path), is_folder=False)
    before = _described_before(path)
    if side_file(path).exists() and before is None:
        raise InputError(
            f"`path` needs {side_file(path)} for its description. Received: a file of something else there"
        )
    if is_folder and path.exists():
        foreign = {_name_in(path, file) for file in _files(path)} - set((before or {}).get("files", ()))
        if foreign:
            raise InputError(f"`path` must be new, empty or an export. Received: {path}, with {min(foreign)}")


def _described_before(path) -> dict | None:
    """The description of an earlier export in the same place."""
    try:
        described = read_json(side_file(path))
        return described if described["file"] == path.name and "kddpm" in described else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _in_float32(model):
    """The model itself, or one of the same averaged weights that computes in float32, as the files do."""
    if model.ema_network.compute_dtype == "float32":
        return model
    config = {**model.network.get_config(), "dtype": "float32"}
    network = type(model.network).from_config(config)
    twin = type(model).from_config({**model.get_config(), "network": keras.saving.serialize_keras_object(network)})
    twin.ema_network.set_weights(model.ema_network.get_weights())
    return twin


def _save(model, functions, folder):
    """Write a SavedModel that holds the averaged weights, once, as its variables."""
    module = tf.Module()
    # Keras's variables mean nothing to TensorFlow's tracking: listed by hand, or they are left out without a word.
    module.variables_of_network = [variable.value for variable in model.ema_network.variables]
    for name, function in functions.items():
        setattr(module, name, function)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), signatures=functions, options=options)


def _litert(model, functions, precision, tell) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _save(model, functions, folder)
        tell("Converting to TFLite ...")
        content = litert.convert(folder, list(functions))
    if precision != "float32":
        tell(f"Taking the weights to {precision} ...")
    return litert.pack(litert.quantize(content, precision), _PRIMARY)


def _batches(model, count, batch_size) -> list[dict]:
    """Inputs of `generate` for at least `count` pictures."""
    seeds = np.arange(-(-count // batch_size) * batch_size, dtype=np.int32).reshape(-1, batch_size)
    classes = model.network.num_classes
    return [{"seed": seed, **({"label": seed % classes} if classes else {})} for seed in seeds]


def _pictures(model, batches, sampler, num_steps, guidance_scale, bar) -> np.ndarray:
    pictures = []
    for batch in batches:
        pictures.append(
            model.generate(
                batch["seed"],
                sampler,
                num_steps,
                labels=batch.get("label"),
                guidance_scale=guidance_scale,
                verbose=False,
            )
        )
        bar.update()
    return np.concatenate(pictures)


def _described(function) -> dict:
    concrete = function.get_concrete_function()
    inputs_by_name = {spec.name: spec for spec in function.input_signature}
    return {
        kind: {name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name} for name, spec in specs.items()}
        for kind, specs in (("inputs", inputs_by_name), ("outputs", concrete.structured_outputs))
    }


def _latencies(candidate, batch) -> dict:
    """Milliseconds of one step, the median over a second of them, and of a picture."""
    of_step = {**batch, "x": np.asarray(candidate["start"](seed=batch["seed"])["x"]), "index": np.zeros(1, np.int32)}

    def milliseconds(name, inputs):
        began = time.perf_counter()
        candidate[name](**inputs)
        return 1e3 * (time.perf_counter() - began)

    steps = [milliseconds("step", of_step)]
    while sum(steps) < 1e3 * _LATENCY_SECONDS:
        steps.append(milliseconds("step", of_step))
    return {"step": statistics.median(steps), "picture": milliseconds("generate", batch)}


def _facts_of_file(content: bytes) -> dict:
    share, outside = litert.delegation(content)
    return {
        "bytes": len(content),
        "sha256": _sha256(content),
        "operators": litert.operators(content),
        "delegation": {"signature": _PRIMARY, "share": share, "outside": outside},
    }


def _facts_of_folder(folder: pathlib.Path) -> dict:
    return {
        "bytes": sum(file.stat().st_size for file in _files(folder)),
        "files": {_name_in(folder, file): _sha256(file.read_bytes()) for file in _files(folder)},
    }


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _name_in(folder: pathlib.Path, file: pathlib.Path) -> str:
    return file.relative_to(folder).as_posix()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
