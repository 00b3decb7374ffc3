"""Pictures from pictures: inversion, interpolation, variations and inpainting, all with the averaged weights."""

import numpy as np
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Integers, Tensor
from kddpm.data import images as kd_images
from kddpm.data import inputs, masks
from kddpm.sampling import generation, noise, samplers
from kddpm.sampling.denoiser import Denoiser, HasDenoiser, denoiser_of
from kddpm.sampling.inversion import Inversion

_JUMP_LENGTH = 10  # Lugmayr et al. 2022, section 5.1


def invert(
    model: Denoiser | HasDenoiser,
    images: Tensor,
    num_steps: int | Integers | None = None,
    *,
    labels: Integers | None = None,
    iterations: int = 3,
    clip: bool | str = True,
    spacing: str = "trailing",
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> np.ndarray:
    """Return the x_T from which DDIM in the same steps generates these images (`kddpm.sampling.inversion`).

    Args:
        model: a `Denoiser`, or a `DiffusionModel`.
        images: uint8, or float in [-1, 1], (N, H, W, C).
        num_steps: as in `generation.generate`.
        labels: classes, one an image, for a network with classes.
        iterations: network calls a step; more are more accurate.
        clip: that of the `DDIM` sampler that generates the images again.
        spacing: likewise.
        batch_size: images in memory at a time.
        verbose: as in `generation.generate`.

    Returns:
        float32 (N, H, W, C), approximately standard normal for images like the training images.

    Raises:
        InputError: images of another shape or type, labels missing or out of range, or arguments out of range.

    Example:
        >>> x_T = model.invert(images, num_steps=100)
        >>> images_again = model.generate(range(len(images)), "ddim", num_steps=100, x_T=x_T)
    """
    denoiser = denoiser_of(model)
    x_0 = _checked(_guard(denoiser), images)
    labels = denoiser.labels_of_images(labels, len(x_0))
    inversion = Inversion(iterations, clip, spacing)
    return _inverted(denoiser, inversion, x_0, num_steps, labels, batch_size=batch_size, verbose=verbose)


def interpolate(
    model: Denoiser | HasDenoiser,
    a: Tensor,
    b: Tensor,
    count: int = 9,
    num_steps: int | Integers | None = None,
    *,
    labels: Integers | None = None,
    t: int | None = None,
    seed: int | None = None,
    sampler: str | samplers.Sampler | None = None,
    guidance_scale: float | None = None,
    iterations: int | None = None,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> np.ndarray:
    """Return pictures between image a and image b.

    Without a t, both are inverted to x_T, the x_T are interpolated along the sphere (Song et al. 2021, section 5.3),
    and DDIM generates a picture from each. The error of an inverted and regenerated end is added back, in proportion:
    the first and the last picture are a and b.

    At a t (Ho et al. 2020, figure 8) both are noised to x_t by q(x_t | x_0), the x_t are interpolated along the line,
    and the sampler denoises each. Both get the same noise, so that what lies between them has the noise of level t
    too; the noise of the steps is the same as well. The larger t, the less is left of a and b, at the ends too.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`.
        a: uint8 (H, W, C).
        b: uint8 (H, W, C).
        count: number of pictures, both ends included.
        num_steps: as in `generation.generate`.
        labels: the classes of a and b, for a model with classes; every picture has the class of the nearer end.
        t: the level at which x_t are mixed, 0 .. T - 1; the nearest that the sampler visits. None = by inversion.
        seed: with a t, of the noise; None = 0.
        sampler: with a t, as in `generation.generate`; None = "ancestral".
        guidance_scale: with a t, as in `generation.generate`; None = 1.
        iterations: without a t, as in `invert`; None = 3.
        batch_size: as in `invert`.
        verbose: as in `generation.generate`.

    Returns:
        uint8 (count, H, W, C).

    Raises:
        InputError: as in `invert`, or the count is below 2, t out of range, or as in `generation.generate`.
    """
    denoiser = denoiser_of(model)
    count = arguments.count("count", count, 2)
    guard = _guard(denoiser)
    ends = np.concatenate([_checked(guard, np.asarray(end)[np.newaxis]) for end in (a, b)])
    labels = denoiser.labels_of_images(labels, 2)
    shares = np.linspace(0, 1, count, dtype=np.float32).reshape(-1, 1, 1, 1)
    nearer = (shares.ravel() > 0.5).astype(np.int32)
    labels_between = None if labels is None else labels[nearer]
    given = {"seed": seed, "sampler": sampler, "guidance_scale": guidance_scale}
    for name, value in given.items() if t is None else [("iterations", iterations)]:
        if value is not None:
            raise InputError(name, f"has no meaning {'without' if t is None else 'with'} {{t}}", value, t=...)
    if t is not None:
        denoiser.check_guidance(1.0 if guidance_scale is None else guidance_scale)
        return _mixed(
            denoiser, (1 - shares) * ends[0] + shares * ends[1], generation.checked_t(denoiser, t), seed or 0,
            sampler or "ancestral", num_steps, labels=labels_between,
            guidance_scale=1.0 if guidance_scale is None else guidance_scale, batch_size=batch_size, verbose=verbose,
        )  # fmt: skip
    inversion = Inversion(3 if iterations is None else iterations)
    start, end = _inverted(denoiser, inversion, ends, num_steps, labels, batch_size=batch_size, verbose=verbose)
    floats, _ = generation.paint(
        denoiser,
        denoiser.steps(samplers.DDIM(), num_steps),
        np.arange(count, dtype=np.int32),
        labels_between,
        x=_slerp(start, end, shares),
        batch_size=batch_size,
        verbose=verbose,
        task="Interpolating",
    )
    lost = ends - floats[[0, -1]]
    return kd_images.to_uint8(floats + (1 - shares) * lost[0] + shares * lost[1]).numpy()


def variations(
    model: Denoiser | HasDenoiser,
    images: Tensor,
    strength: float,
    seeds: Integers | None = None,
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | Integers | None = None,
    *,
    labels: Integers | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> np.ndarray:
    """Return pictures similar to the given ones: add noise up to a level t, then denoise (Meng et al. 2022, "SDEdit").

    Args:
        model: a `Denoiser`, or a `DiffusionModel`.
        images: uint8, or float in [-1, 1], (N, H, W, C); one image (H, W, C) is used for every seed.
        strength: t / T: 0 = the images themselves, 1 = the pictures that the seeds generate without them.
        seeds: one a picture; None = 0 .. N - 1.
        sampler: as in `generation.generate`.
        num_steps: steps of the whole way from T, as in `generation.generate`; those from t on are taken.
        labels: classes, one a picture, for a network with classes.
        guidance_scale: as in `generation.generate`.
        batch_size: as in `generation.generate`.
        verbose: as in `generation.generate`.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        InputError: the strength lies outside [0, 1], images of another shape, or as in `generation.generate`.
    """
    denoiser = denoiser_of(model)
    strength = arguments.number("strength", strength)
    if not 0 <= strength <= 1:
        raise InputError("strength", "must lie in [0, 1]", strength)
    x_0, seeds = _images_and_seeds(denoiser, images, seeds)
    labels = denoiser.labels_of_images(labels, len(seeds))
    denoiser.check_guidance(guidance_scale)
    batch_size = arguments.count("batch_size", batch_size)
    sampler = samplers.by_name(sampler)
    kept = samplers.kept_steps(sampler, denoiser.schedule, num_steps, strength)
    if not len(kept):
        return kd_images.to_uint8(x_0).numpy()
    x = None
    if kept[-1] < denoiser.schedule.num_timesteps - 1:
        x = _noised(denoiser, x_0, kept[-1], seeds, batch_size)
    floats, _ = generation.paint(
        denoiser, denoiser.steps(sampler, num_steps, strength), seeds, labels, x=x,
        guidance_scale=guidance_scale, batch_size=batch_size, verbose=verbose, task="Varying",
    )  # fmt: skip
    return kd_images.to_uint8(floats).numpy()


def inpaint(
    model: Denoiser | HasDenoiser,
    images: Tensor,
    mask: Tensor,
    seeds: Integers | None = None,
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | Integers | None = None,
    *,
    labels: Integers | None = None,
    guidance_scale: float = 1.0,
    jump_length: int | None = None,
    resamplings: int = 5,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> np.ndarray:
    """Paint the unknown pixels of images (Lugmayr et al. 2022, "RePaint", algorithm 1 and appendix B).

    After every step the known pixels are replaced by those of the image, noised to the level reached. So that the rest
    fits them, the sampler adds noise again for `jump_length` steps, `resamplings` - 1 times at every `jump_length`-th
    level.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`.
        images: uint8, or float in [-1, 1], (N, H, W, C); one image (H, W, C) is used for every seed.
        mask: bool (H, W) or (N, H, W), True = known; or numbers or a picture, white = known, by the rules of
            `kddpm.data.masks`.
        seeds: one a picture; None = 0 .. N - 1.
        sampler: "ancestral" or "ddim", or one of the two with its arguments.
        num_steps: as in `generation.generate`, without the resampling.
        labels: classes, one a picture, for a network with classes.
        guidance_scale: as in `generation.generate`.
        jump_length: steps to go back, fewer than there are; None = 10, or all but one if there are fewer.
        resamplings: how often each stretch of steps is taken; 1 = once.
        batch_size: as in `generation.generate`.
        verbose: as in `generation.generate`.

    Returns:
        uint8 (N, H, W, C); known pixels are exactly those of the image.

    Raises:
        InputError: a mask of another shape or with other values, a sampler of another kind, images of another shape, a
            jump of as many steps as there are, or as in `generation.generate`.
    """
    denoiser = denoiser_of(model)
    sampler = samplers.by_name(sampler)
    if not sampler.memoryless:
        raise InputError(
            "sampler",
            f"must be {' or '.join(samplers.MEMORYLESS)} for inpainting",
            f"{samplers.name_of(sampler)}, which has a memory, or takes several rows a step",
        )
    resamplings = arguments.count("resamplings", resamplings)
    x_0, seeds = _images_and_seeds(denoiser, images, seeds)
    known = masks.known(mask, denoiser.image_shape[:2], len(x_0))[..., np.newaxis]
    known = np.broadcast_to(known, x_0.shape).copy()
    labels = denoiser.labels_of_images(labels, len(seeds))
    denoiser.check_guidance(guidance_scale)
    table = denoiser.steps(sampler, num_steps)
    order, climbs = _resampled(table.num_rows, _checked_jump(jump_length, resamplings, table.num_rows), resamplings)
    edit = _repaint(denoiser, table.timesteps, order, climbs, x_0, known)
    floats, _ = generation.paint(
        denoiser, table.take(order), seeds, labels, edit=edit,
        guidance_scale=guidance_scale, batch_size=batch_size, verbose=verbose, task="Inpainting",
    )  # fmt: skip
    return kd_images.to_uint8(floats).numpy()


def _checked_jump(jump_length, resamplings, num_steps) -> int:
    """Check the jump length and return it, or the default."""
    if jump_length is None:
        return min(_JUMP_LENGTH, max(num_steps - 1, 1))
    jump_length = arguments.count("jump_length", jump_length)
    if resamplings > 1 and jump_length >= num_steps:
        raise InputError(
            "jump_length", f"must be less than the {num_steps} steps, or resamplings=1 for none", jump_length
        )
    return jump_length


def _mixed(denoiser, x_0, t, seed, sampler, num_steps, *, batch_size, **options) -> np.ndarray:
    """Return pictures, uint8 (N, H, W, C): x_0 noised to the level nearest to t, all by one seed, and denoised."""
    sampler, schedule = samplers.by_name(sampler), denoiser.schedule
    batch_size = arguments.count("batch_size", batch_size)
    kept = samplers.kept_steps(sampler, schedule, num_steps)
    level = kept[np.argmin(np.abs(schedule.timesteps[kept] - t))]
    seeds = arguments.int32("seed", [seed] * len(x_0))
    table = denoiser.steps(sampler, num_steps, (level + 1) / schedule.num_timesteps)
    x = _noised(denoiser, x_0, level, seeds, batch_size)
    floats, _ = generation.paint(denoiser, table, seeds, x=x, batch_size=batch_size, task="Interpolating", **options)
    return kd_images.to_uint8(floats).numpy()


def _noised(denoiser, x_0, t: int, seeds, batch_size) -> np.ndarray:
    """Return x_t of images (N, H, W, C), with the noise that `generate` would start from."""
    chunks = []
    for rows in (slice(i, i + batch_size) for i in range(0, len(x_0), batch_size)):
        drawn = noise.normal(tf.constant(seeds[rows]), noise.INITIAL_STREAM, 0, denoiser.image_shape)
        chunks.append(denoiser.process.q_sample(x_0[rows], np.full(len(drawn), t, np.int32), drawn).numpy())
    return np.concatenate(chunks)


def _resampled(num_steps: int, jump_length: int, resamplings: int) -> tuple[np.ndarray, np.ndarray]:
    """Return RePaint's order of steps: the step to take at each row, and how many noising steps follow it."""
    # The authors' t = 0 is the first noising step, level 1 here; there is no jump back from the data themselves.
    left = dict.fromkeys(range(1, num_steps - jump_length + 1, jump_length), resamplings - 1)
    order, climbs, level = [], [], num_steps
    while level > 0:
        order.append(num_steps - level)
        level -= 1
        again = left.get(level, 0) > 0
        if again:
            left[level] -= 1
        climbs.append(jump_length if again else 0)
        level += climbs[-1]
    return np.array(order), np.array(climbs)


def _repaint(denoiser, timesteps, order, climbs, x_0, known) -> generation.Edit:
    """Return the edit after row i: set the known pixels at the level reached, then add the noise of the jump."""
    schedule, shape = denoiser.schedule, denoiser.image_shape
    indices = np.searchsorted(schedule.timesteps, timesteps)  # decreasing
    alpha_bars = np.append(schedule.alpha_bars[indices], 1.0)  # of the levels, from noise to data
    reached = order + 1
    signal, spread = np.sqrt(alpha_bars[reached]), np.sqrt(1 - alpha_bars[reached])
    kept = alpha_bars[reached - climbs] / alpha_bars[reached]
    up, up_spread = np.sqrt(kept), np.sqrt(1 - kept)

    def function(x, index, seeds, x_0, known):
        def at(column):
            return tf.gather(column.astype(np.float32), index)

        noised = at(signal) * x_0 + at(spread) * noise.normal(seeds, noise.KNOWN_STREAM, index, shape)
        x = tf.where(known, noised, x)
        return at(up) * x + at(up_spread) * noise.normal(seeds, noise.RETURN_STREAM, index, shape)

    return generation.Edit(("repaint", order.tobytes(), climbs.tobytes()), function, (x_0, known))


def _slerp(a, b, shares):
    """Interpolate along the great circle from a (H, W, C) to b; linearly if they are parallel."""
    cosine = np.sum(a * b, dtype=np.float64) / np.sqrt(
        np.sum(a * a, dtype=np.float64) * np.sum(b * b, dtype=np.float64)
    )
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-4:
        return (1 - shares) * a + shares * b
    return ((np.sin((1 - shares) * angle) * a + np.sin(shares * angle) * b) / np.sin(angle)).astype(np.float32)


def _inverted(denoiser, inversion, x_0, num_steps, labels, **kwargs) -> np.ndarray:
    """Return the x_T of images that were checked."""
    table = samplers.step_table(inversion, denoiser.schedule, num_steps, denoiser.objective)
    seeds = np.arange(len(x_0), dtype=np.int32)
    x_T, _ = generation.paint(denoiser, table, seeds, labels, x=x_0, task="Inverting", **kwargs)
    return x_T


def _guard(denoiser) -> inputs.Guard:
    return inputs.Guard(denoiser.image_shape, None)


def _checked(guard, images) -> np.ndarray:
    """Check images and return them as float32 (N, H, W, C) in [-1, 1]."""
    images = np.asarray(images)
    guard.arrays(images)
    return np.asarray(kd_images.to_float(images) if images.dtype == np.uint8 else np.clip(images, -1, 1), np.float32)


def _images_and_seeds(denoiser, images, seeds) -> tuple[np.ndarray, np.ndarray]:
    """Check images and seeds and return them, one a picture; a single image is repeated."""
    images = np.asarray(images)
    single = images.ndim == 3
    x_0 = _checked(_guard(denoiser), images[np.newaxis] if single else images)
    seeds = arguments.int32("seeds", range(len(x_0)) if seeds is None else seeds)
    if single:
        x_0 = np.repeat(x_0, len(seeds), axis=0)
    if len(seeds) != len(x_0):
        raise InputError("seeds", "must be one an image", f"{len(seeds)} seeds, {len(x_0)} images")
    return x_0, seeds
