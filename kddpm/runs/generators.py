"""What generates the pictures that are evaluated: a run's weights with a sampler, or an exported file."""

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kddpm.base import extras
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import check_regular, expand, read_json, sha256
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import checkpoints, snapshots
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory

_MOST_FILE_BYTES = 2**32


@dataclasses.dataclass(frozen=True)
class Generator:
    """A way from seeds to pictures.

    Attributes:
        name: what a table calls it.
        facts: all that the pictures depend on besides their seeds, as JSON values.
        paint: from int32 seeds (N,) to uint8 (N, H, W, C); the label of a picture is its seed modulo the classes.
    """

    name: str
    facts: dict
    paint: Callable[[np.ndarray], np.ndarray]


def in_batches(paint: Callable[[np.ndarray], np.ndarray], seeds: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield the pictures of seeds (N,), up to `size` at a time, all painted in batches of that one shape."""
    for first in range(0, len(seeds), size):
        some = seeds[first : first + size]
        yield paint(np.resize(some, size))[: len(some)]


def of_run(
    run: RunDirectory,
    config: TrainConfig,
    model: DiffusionModel,
    digest: str,
    ways: Sequence[tuple[str, int | None, float]],
    steps: Sequence[int] | None,
    lengths: Sequence[float],
    batch_size: int,
) -> Iterator[Generator]:
    """Return the generators of a run: each of its weights in each way, all of them checked.

    The model has the weights of a generator until the next is asked for, and its own in the end.

    Args:
        run: its directory.
        config: its configuration.
        model: its model, with the averaged weights.
        digest: sha256 of the file that these were read from.
        ways: name of a sampler, its number of steps, None = T, and guidance scale each.
        steps: of checkpoints whose averaged weights generate; None = the run's averaged weights.
        lengths: of averages that are rebuilt from the run's snapshots, and generate after those.
        batch_size: pictures at a time.

    Raises:
        InputError: an unknown sampler, more steps than T, a sampler or a guidance scale that the model does not take,
            no such checkpoint, or a damaged one, or a length that the snapshots do not give; while they are iterated
            over also: a damaged snapshot.
    """
    for name, count, scale in ways:
        if count is not None and count > config.num_timesteps:
            raise InputError("samplers", f"must have at most {config.num_timesteps} steps (T)", f"{name}:{count}")
        model.denoiser.steps(name, count)
        try:
            model.denoiser.check_guidance(scale)
        except InputError as error:
            raise InputError("guidance_scales", error.expected, error.received) from None
    last = snapshots.check_lengths(run, lengths, "ema_lengths") if lengths else None
    at = "" if checkpoints.saved_steps(run)[-1:] == [last] else f" at step {last}"
    # All are read at once: a training beside this deletes old ones.
    kept = None if steps is None else {step: checkpoints.averaged_weights(run, model, step) for step in steps}
    rebuilt = [(f"EMA length {length:g}{at}, ", length, last) for length in lengths]
    return _of_run(run, config, model, digest, ways, kept, rebuilt, batch_size)


def _of_run(run, config, model, digest, ways, kept, rebuilt, batch_size):
    network = model.ema_network
    own = network.get_weights()
    try:
        for which, of_weights, weights in _weights(run, model, digest, own, kept, rebuilt):
            network.set_weights(weights)
            for way in ways:
                yield _of_sampler(model, config, which, of_weights, batch_size, *way)
    finally:
        network.set_weights(own)


def _weights(run, model, digest, own, kept, rebuilt):
    """Yield what a table calls some weights before the sampler, what a row says of them, and the weights."""
    if kept is None:
        yield "", {"weights_sha256": digest, "step": None}, own
    for step, (of_step, weights) in (kept or {}).items():
        yield f"step {step}, ", {"weights_sha256": of_step, "step": step}, weights
    for which, length, last in rebuilt:
        of_length, weights = snapshots.rebuilt(run, model, length, "ema_lengths", last)
        yield which, {"weights_sha256": of_length, "step": last, "ema_length": float(length)}, weights


def _of_sampler(model, config, which, of_weights, batch_size, name, count, scale) -> Generator:
    settings = config.precision, model.denoiser.steps(name, count).fingerprint
    facts = {
        **of_weights,
        "sampler": name,
        "num_steps": count or config.num_timesteps,
        "guidance_scale": scale,
        "settings_sha256": hashlib.sha256(repr(settings).encode()).hexdigest(),
    }
    options = {"guidance_scale": scale, "batch_size": batch_size, "verbose": False}
    return Generator(
        f"{which}{name}, {facts['num_steps']} steps{'' if scale == 1 else f', guidance {scale:g}'}",
        facts,
        lambda seeds: model.generate(seeds, name, count, **options),
    )


def of_file(path: str | os.PathLike, image_shape: tuple[int, int, int], num_classes: int | None) -> Generator:
    """Return the generator of an exported `.tflite`.

    Args:
        path: the file, with a signature `generate`.
        image_shape: height, width, channels that its pictures must have.
        num_classes: classes that it must have, None = none.

    Raises:
        InputError: ai-edge-litert is not installed; the file is missing, or its pictures are others.
    """
    extras.need("export", "{models}", models=os.fspath(path))
    from kddpm.device import litert

    place = pathlib.Path(expand(path))
    try:
        check_regular(place)
        if place.stat().st_size > _MOST_FILE_BYTES:
            raise ValueError("it is larger than a .tflite can be")
        signatures = litert.load(place.read_bytes(), threads=os.cpu_count() or 1)
        generate = signatures["generate"]
        inputs, (output,) = generate.get_input_details(), generate.get_output_details().values()
        if inputs.keys() not in ({"seed"}, {"seed", "label"}) or len(inputs["seed"]["shape"]) != 1:
            raise ValueError(f"it paints from {', '.join(inputs)}, and not from seeds, or seeds and labels")
        batch = int(inputs["seed"]["shape"][0])
        shape = [int(side) for side in output["shape"][1:]]
        if shape != list(image_shape):
            raise ValueError(f"its pictures are {shape}, and those of the run {list(image_shape)}")
        if ("label" in inputs) != bool(num_classes):
            raise ValueError("only one of the file and the run has classes")
        about = _described(place)
        if num_classes and about.get("num_classes", num_classes) != num_classes:
            raise ValueError(f"it has {about['num_classes']} classes, and the run {num_classes}")
    except KeyError as error:
        raise InputError("models", f"must have the signature {error}, which paints whole pictures", path) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError("models", "must be a .tflite of the run's pictures", f"{path}: {first_line(error)}") from None

    def paint(seeds):
        filled = np.resize(seeds, math.ceil(len(seeds) / batch) * batch).astype(np.int32)
        pictures = []
        for first in range(0, len(filled), batch):
            some = {"seed": filled[first : first + batch]}
            if num_classes:
                some["label"] = some["seed"] % num_classes
            pictures.append(next(iter(generate(**some).values())))
        return np.concatenate(pictures)[: len(seeds)].astype(np.uint8)

    facts = {"model": place.name, "model_sha256": sha256(place)}
    try:
        sampler = about["sampler"]
        name = f"{place.name}, {sampler['name']}, {sampler['num_steps']} steps, {about['precision']}"
    except (KeyError, TypeError):
        name = place.name
    return Generator(name, facts, paint)


def _described(path: pathlib.Path) -> dict:
    """Return the description beside a file, {} = there is none that can be read: the file is enough."""
    try:
        about = read_json(path.with_suffix(".json"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
