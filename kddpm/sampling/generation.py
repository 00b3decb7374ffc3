"""Generates any number of pictures with `kddpm.walks`, chunk by chunk, with a progress bar."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.base import arguments, progress
from kddpm.base.errors import InputError
from kddpm.base.types import Integers
from kddpm.data import images
from kddpm.distribution import replicas
from kddpm.sampling import samplers, walks
from kddpm.sampling.denoiser import Denoiser, HasDenoiser, denoiser_of
from kddpm.sampling.step_table import StepTable

_STEPS_A_CALL = 50  # a walk returns to Python this often, to move the progress bar


def generate(
    model: Denoiser | HasDenoiser,
    seeds: Integers,
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | Integers | None = None,
    *,
    labels: Integers | None = None,
    guidance_scale: float = 1.0,
    x_T: np.ndarray | None = None,
    batch_size: int = 64,
    return_trajectory: int | bool = False,
    verbose: bool | str = "auto",
    jit_compile: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Generate pictures from seeds, by Algorithm 2 or any other sampler.

    Picture k depends only on seeds[k] (and labels[k]), not on the rest of the batch: its noise is the same bit for
    bit, and the picture is the same up to the rounding of floats.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`, whose averaged weights then generate.
        seeds: int32 numbers, one a picture.
        sampler: a key of `samplers.BY_NAME`, or a sampler with its arguments, such as
            `kddpm.samplers.DDIM(eta=0.5)`.
        num_steps: the number of steps, or the steps themselves; None = all T.
        labels: classes, one a picture; None = seed modulo the number of classes.
        guidance_scale: scale of classifier-free guidance (Ho & Salimans 2022): 1 = none, more = further away from the
            output without a class, 0 = no class at all. Others call the network on twice the batch.
        x_T: float (N, H, W, C) to start from instead of the seeds' noise, such as the result of `editing.invert`.
        batch_size: pictures in memory at a time; a smaller last chunk is filled up and not traced again.
        return_trajectory: whether to return frames from noise to each picture as well, at most this many; True = 50.
        verbose: whether to show a progress bar; "auto" = after two seconds of sampling.
        jit_compile: whether to compile with XLA: slower to start, faster for small networks.

    Returns:
        uint8 (N, H, W, C); with `return_trajectory` also uint8 (frames, N, H, W, C), from noise to the pictures.

    Raises:
        InputError: no seeds, seeds that are not int32, an unknown sampler, more steps than T, labels out of range
            or for a network without classes, guidance of a model trained without label dropout, an x_T of
            another shape.
    """
    denoiser = denoiser_of(model)
    seeds = arguments.int32("seeds", seeds)
    labels = denoiser.checked_labels(labels, seeds)
    denoiser.check_guidance(guidance_scale)
    if isinstance(return_trajectory, bool):
        frames = 50 if return_trajectory else 0
    else:
        frames = arguments.count("return_trajectory", return_trajectory, 0)
    if x_T is not None:
        x_T = _checked_x_T(denoiser, x_T, len(seeds))
    floats, trajectory = paint(
        denoiser,
        denoiser.steps(sampler, num_steps),
        seeds,
        labels,
        x=x_T,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        frames=frames,
        verbose=verbose,
        jit_compile=jit_compile,
    )
    pictures = images.to_uint8(floats).numpy()
    return pictures if trajectory is None else (pictures, trajectory)


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of the state after every step, inside the loop of `walks.walk`.

    Attributes:
        name: hashable key that identifies the function and the constants inside it.
        function: (x, index, seeds, *arrays) -> x.
        arrays: arrays with one row an image, each (N, ...).
    """

    name: tuple
    function: Callable
    arrays: tuple[np.ndarray, ...]


def paint(
    denoiser: Denoiser,
    table: StepTable,
    seeds: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    x: np.ndarray | None = None,
    edit: Edit | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 64,
    frames: int = 0,
    verbose: bool | str = "auto",
    jit_compile: bool = False,
    task: str = "Generating",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Take all steps of a table for every seed.

    Args:
        denoiser: the network.
        table: the steps.
        seeds: int32 (N,).
        labels: int32 (N,), None for a network without classes.
        x: float32 (N, H, W, C) to start from; None = the noise of the seeds.
        edit: the change after every step; None = no change.
        guidance_scale: as in `generate`.
        batch_size: images at a time.
        frames: how many frames to return.
        verbose: as in `generate`.
        jit_compile: whether to compile with XLA.
        task: the first word of the progress bar.

    Returns:
        float32 (N, H, W, C), and uint8 (frames, N, H, W, C) or None.
    """
    batch_size = arguments.count("batch_size", batch_size)
    rows = replicas.SharedRows(denoiser.strategy)
    # A power of two, so that few shapes are traced for all numbers of seeds.
    batch = min(batch_size, 2 ** (len(seeds) - 1).bit_length())
    batch = -(-batch // rows.replicas) * rows.replicas
    stops = _stops(table.num_rows, frames)
    begin, walk = _walk_functions(denoiser, table, batch, guidance_scale, edit, jit_compile)
    scale = tf.constant(guidance_scale, tf.float32)
    chunks = [slice(i, i + batch) for i in range(0, len(seeds), batch)]
    arrays = () if edit is None else edit.arrays
    floats, trajectories = [], []
    with progress.bar(len(chunks) * table.num_rows, f"{task} {len(seeds)} pictures", "step", verbose) as bar:
        for chunk in chunks:
            count = len(seeds[chunk])

            def filled(array, chunk=chunk):
                """Return the chunk as a full batch; its rows are repeated to fill it."""
                return rows.share(None if array is None else np.resize(array[chunk], (batch, *array.shape[1:])))

            chunk_seeds, chunk_labels = filled(seeds), filled(labels)
            state = begin(chunk_seeds, filled(x))
            start, way = 0, []

            def picture(state, count=count):
                return walks.picture_of(rows.join(state), table)[:count]

            for stop, is_frame in stops:
                if is_frame:
                    way.append(images.to_uint8(picture(state)).numpy())
                span = tf.constant(start, tf.int32), tf.constant(stop, tf.int32)
                state = walk(state, chunk_seeds, chunk_labels, scale, *span, *map(filled, arrays))
                bar.update(stop - start)
                start = stop
            floats.append(picture(state).numpy())
            if frames:
                trajectories.append(np.stack([*way, images.to_uint8(floats[-1]).numpy()]))
    return np.concatenate(floats), np.concatenate(trajectories, axis=1) if frames else None


def _checked_x_T(denoiser, x_T, count) -> np.ndarray:
    """Check x_T and return it as float32 (N, H, W, C)."""
    x_T = np.asarray(x_T)
    expected = (count, *denoiser.image_shape)
    if x_T.shape != expected or x_T.dtype.kind != "f":
        raise InputError("x_T", f"must be float {expected}, one a seed", f"{x_T.dtype} {x_T.shape}")
    if not np.all(np.isfinite(x_T)):
        raise InputError("x_T", "must be finite", "NaN or infinite values")
    return x_T.astype(np.float32)


def _walk_functions(denoiser, table, batch, guidance_scale, edit, jit_compile):
    """Return compiled (begin, walk) for a table and a batch size; all guidance scales but 0 and 1 share one trace."""
    guided = guidance_scale not in (0, 1)

    def make():
        def begin(seeds, x):
            return walks.initial_state(walks.initial_noise(seeds, denoiser.image_shape) if x is None else x, table)

        def walk(state, seeds, label, scale, start, stop, *arrays):
            after = None if edit is None else lambda x, index: edit.function(x, index, seeds, *arrays)
            predict = denoiser.predictor(label, scale if guided else guidance_scale, table.learned_variance)
            return walks.walk(predict, table, state, seeds, start, stop, after)

        rows = replicas.SharedRows(denoiser.strategy)
        return tuple(rows.compile(function, jit_compile=jit_compile) for function in (begin, walk))

    scale = "any" if guided else int(guidance_scale)
    name = None if edit is None else edit.name
    return denoiser.compiled((table.fingerprint, batch, scale, name, jit_compile), make)


def _stops(num_steps: int, frames: int) -> list[tuple[int, bool]]:
    """Return where a walk returns to Python: (step to stop before, whether a frame is taken before walking there)."""
    framed: Integers = np.unique(np.linspace(0, num_steps, frames).round().astype(int))[:-1] if frames > 1 else []
    starts = sorted({0, *framed, *range(0, num_steps, _STEPS_A_CALL)})
    return [(stop, start in framed) for start, stop in zip(starts, [*starts[1:], num_steps], strict=True)]
