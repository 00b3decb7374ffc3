"""Generates any number of pictures with `kddpm.walks`, chunk by chunk, with a progress bar."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kddpm.base import arguments, progress
from kddpm.base.errors import InputError
from kddpm.base.types import Integers
from kddpm.data import images
from kddpm.distribution import replicas
from kddpm.networks import fused
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
    return_trajectory: bool | str | int = False,
    frames: int | Integers = 50,
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
        return_trajectory: whether to return frames on the way from noise to each picture as well: True or "x_t" = of
            the noisy x_t, "x0" = of the x_0 that the network predicts from them (Ho et al. 2020, figure 6), which takes
            one more call of it a frame. A number is True with that many `frames`.
        frames: how many, at most, evenly spaced with the picture as the last; or the t at which they are taken, each
            the nearest that the sampler visits, and the picture after them.
        verbose: whether to show a progress bar; "auto" = after two seconds of sampling.
        jit_compile: whether to compile with XLA: slower to start, faster for small networks.

    Returns:
        uint8 (N, H, W, C); with `return_trajectory` also uint8 (frames, N, H, W, C), from noise to the pictures.

    Raises:
        InputError: no seeds, seeds that are not int32, an unknown sampler, more steps than T, labels out of range
            or for a network without classes, guidance of a model trained without label dropout, an x_T of
            another shape, frames of something else or at a t out of range.
    """
    denoiser = denoiser_of(model)
    seeds = arguments.int32("seeds", seeds)
    labels = denoiser.checked_labels(labels, seeds)
    denoiser.check_guidance(guidance_scale)
    table = denoiser.steps(sampler, num_steps)
    framed = _frames(return_trajectory, frames, table, denoiser.last_timestep)
    if x_T is not None:
        x_T = _checked_x_T(denoiser, x_T, len(seeds))
    floats, trajectory = paint(
        denoiser,
        table,
        seeds,
        labels,
        x=x_T,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        frames=framed,
        verbose=verbose,
        jit_compile=jit_compile,
    )
    pictures = images.to_uint8(floats).numpy()
    return pictures if trajectory is None else (pictures, trajectory)


def shared_until(
    model: Denoiser | HasDenoiser,
    seeds: Integers,
    t: int,
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | Integers | None = None,
    *,
    labels: Integers | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> np.ndarray:
    """Return pictures that share x_t down to t, that of the first seed, and differ below it.

    What they have in common is what x_t knows of the picture: all of it where t is small, and only the layout and the
    colours where it is large (Ho et al. 2020, figure 7). The first is the picture that `generate` paints.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`.
        seeds: int32 numbers, one a picture, of the noise below t.
        t: the level down to which they share x_t, 0 .. T - 1; the nearest that the sampler visits.
        sampler: one that draws noise and has no memory, such as "ancestral", or `samplers.DDIM` with an eta.
        num_steps: as in `generate`.
        labels: as in `generate`; down to t that of the first counts.
        guidance_scale: as in `generate`.
        batch_size: as in `generate`.
        verbose: as in `generate`.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        InputError: t out of range, a sampler without noise or with a memory, or as in `generate`.
    """
    denoiser = denoiser_of(model)
    seeds = arguments.int32("seeds", seeds)
    labels = denoiser.checked_labels(labels, seeds)
    denoiser.check_guidance(guidance_scale)
    sampler = samplers.by_name(sampler)
    table = denoiser.steps(sampler, num_steps)
    if table.has_memory or not table.is_noisy:
        why = "remembers the way" if table.has_memory else "draws no noise: pictures of one x_t are all the same"
        raise InputError("sampler", "must draw noise and have no memory", f"{samplers.name_of(sampler)}, which {why}")
    first = table.row_from(checked_t(denoiser, t))
    x = walks.initial_noise(seeds[:1], denoiser.image_shape).numpy()
    how: dict[str, Any] = {"guidance_scale": guidance_scale, "batch_size": batch_size, "verbose": verbose}
    if first:
        x, _ = paint(denoiser, table, seeds[:1], None if labels is None else labels[:1], span=(0, first), **how)
    x, span = np.repeat(x, len(seeds), axis=0), (first, table.num_rows)
    floats, _ = paint(denoiser, table, seeds, labels, x=x, span=span, **how)
    return images.to_uint8(floats).numpy()


def checked_t(denoiser: Denoiser, t: int) -> int:
    """Check that t lies in 0 .. T - 1, or the range of a respaced schedule, and return it.

    Raises:
        InputError: it does not.
    """
    last = denoiser.last_timestep
    if arguments.count("t", t, 0) > last:
        raise InputError("t", f"must lie in 0 .. {last}", t)
    return int(t)


@dataclasses.dataclass(frozen=True)
class Frames:
    """Which frames of a walk to return; the picture itself is always the last.

    Attributes:
        rows: rows of the table before which a frame is taken, increasing.
        of: "x_t", or "x0" for what the network predicts from it.
    """

    rows: tuple[int, ...]
    of: str = "x_t"


def _frames(return_trajectory, frames, table, last_timestep) -> Frames | None:
    """Return the frames that the arguments of `generate` ask for; None = none."""
    if isinstance(return_trajectory, str):
        if return_trajectory not in ("x_t", "x0"):
            raise InputError("return_trajectory", "must be True, False, x_t, x0 or a number", repr(return_trajectory))
        of = return_trajectory
    elif isinstance(return_trajectory, bool | np.bool_):
        of = "x_t"
    else:
        frames, of = arguments.count("return_trajectory", return_trajectory, 0), "x_t"
        return_trajectory = frames > 0
    if not return_trajectory:
        return None
    if np.ndim(frames) == 0:
        count = arguments.count("frames", frames)
        rows = sorted({*np.linspace(0, table.num_rows, count).round().astype(int).tolist()})[:-1]
    else:
        wanted = arguments.int32("frames", frames)
        if wanted.min() < 0 or wanted.max() > last_timestep:
            raise InputError("frames", f"must be a number, or t in 0 .. {last_timestep}", wanted.tolist())
        rows = [table.row_from(t) for t in wanted]
    return Frames(tuple(sorted(set(rows))), of)


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
    span: tuple[int, int] | None = None,
    frames: Frames | None = None,
    verbose: bool | str = "auto",
    jit_compile: bool = False,
    task: str = "Generating",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Take the steps of a table for every seed.

    Args:
        denoiser: the network.
        table: the steps.
        seeds: int32 (N,).
        labels: int32 (N,), None for a network without classes.
        x: float32 (N, H, W, C) to start from; None = the noise of the seeds.
        edit: the change after every step; None = no change.
        guidance_scale: as in `generate`.
        batch_size: images at a time.
        span: first row to take, whose x_t is `x`, and one past the last; None = all rows. Noise belongs to rows.
        frames: which frames to return; None = none.
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
    batch = rows.full(batch)
    first, last = span or (0, table.num_rows)
    stops = _stops(first, last, frames.rows if frames else ())
    of_x0 = frames is not None and frames.of == "x0"
    begin, walk, predicted = _walk_functions(denoiser, table, batch, guidance_scale, edit, jit_compile)
    scale = tf.constant(guidance_scale, tf.float32)
    chunks = [slice(i, i + batch) for i in range(0, len(seeds), batch)]
    arrays = () if edit is None else edit.arrays
    floats, trajectories = [], []
    with progress.bar(len(chunks) * (last - first), f"{task} {len(seeds)} pictures", "step", verbose) as bar:
        for chunk in chunks:
            count = len(seeds[chunk])

            def filled(array, chunk=chunk):
                """Return the chunk as a full batch; its rows are repeated to fill it."""
                return rows.share(None if array is None else np.resize(array[chunk], (batch, *array.shape[1:])))

            chunk_seeds, chunk_labels = filled(seeds), filled(labels)
            state = begin(chunk_seeds, filled(x))
            way = []

            def picture(state, count=count):
                return rows.join(state)[:count, ..., : denoiser.image_shape[-1]]

            for start, stop, is_frame in stops:
                here = tf.constant(start, tf.int32)
                if is_frame:
                    seen = predicted(state, chunk_labels, scale, here) if of_x0 else state
                    way.append(images.to_uint8(picture(seen)).numpy())
                span = here, tf.constant(stop, tf.int32)
                state = walk(state, chunk_seeds, chunk_labels, scale, *span, *map(filled, arrays))
                bar.update(stop - start)
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
    """Return compiled (begin, walk, predicted x_0) for a table and a batch size.

    All guidance scales but 0 and 1 share one trace.
    """
    guided = guidance_scale not in (0, 1)

    def make():
        def begin(seeds, x):
            return walks.initial_state(walks.initial_noise(seeds, denoiser.image_shape) if x is None else x, table)

        def walk(state, seeds, label, scale, start, stop, *arrays):
            after = None if edit is None else lambda x, index: edit.function(x, index, seeds, *arrays)
            predict = denoiser.predictor(label, scale if guided else guidance_scale, table.learned_variance)
            with fused.allowed():
                return walks.walk(predict, table, state, seeds, start, stop, after)

        def predicted(state, label, scale, index):
            predict = denoiser.predictor(label, scale if guided else guidance_scale, table.learned_variance)
            with fused.allowed():
                return walks.predicted_x0(predict, table, state, index)

        rows = replicas.SharedRows(denoiser.strategy)
        return tuple(rows.compile(function, jit_compile=jit_compile) for function in (begin, walk, predicted))

    scale = "any" if guided else int(guidance_scale)
    name = None if edit is None else edit.name
    return denoiser.compiled((table.fingerprint, batch, scale, name, jit_compile), make)


def _stops(first: int, last: int, framed: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Return the stretches of a walk: (first row, row to stop before, whether a frame is taken before the first)."""
    starts = sorted({first, *framed, *range(first, last, _STEPS_A_CALL)})
    return [(start, stop, start in framed) for start, stop in zip(starts, [*starts[1:], last], strict=True)]
