"""Pictures from a model: the walk of `kddpm.walks` over any number of images, chunk by chunk, with a progress bar."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm import images, inputs, progress, samplers, strategies, walks
from kddpm.errors import InputError

_STEPS_A_CALL = 50  # a walk returns to Python this often, to move the progress bar
_MOST_COMPILED = 64  # functions a model keeps; those used longest ago are forgotten


def generate(
    model, seeds, sampler, num_steps, labels, guidance_scale, x_T, batch_size, return_trajectory, verbose, jit_compile
):
    """`DiffusionModel.generate`, where the arguments are described."""
    seeds = inputs.int32("seeds", seeds)
    labels = checked_labels(model, labels, seeds)
    check_guidance(model, guidance_scale)
    if isinstance(return_trajectory, bool):
        frames = 50 if return_trajectory else 0
    else:
        frames = inputs.count("return_trajectory", return_trajectory, 0)
    if x_T is not None:
        x_T = _checked_x_T(model, x_T, len(seeds))
    floats, trajectory = paint(
        model,
        step_table(model, sampler, num_steps),
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
    return (pictures, trajectory) if frames else pictures


def step_table(model, sampler, num_steps, strength: float = 1.0) -> walks.StepTable:
    """The steps of a sampler, by name or itself, for what the model's network predicts."""
    return samplers.step_table(
        samplers.by_name(sampler), model.schedule, num_steps, model.prediction, model.variance, strength
    )


def denoiser(model, label=None, guidance_scale=1.0, learned_variance: bool = False) -> Callable:
    """(x_t, t) -> output of the averaged network, float32, for `walks`.

    With classifier-free guidance (Ho & Salimans 2022, eq. 6, whose w is ours less 1) the output is
    none + scale (given - none), "none" being the network's answer without a class; a learned variance stays the given
    class's.

    Args:
        model: a `DiffusionModel`.
        label: int32 (B,), None for a network without classes.
        guidance_scale: a number, of which 1 = no guidance and 0 = no class need one answer; or a float32 scalar tensor.
        learned_variance: whether a learned variance is wanted beside the prediction.
    """
    channels, no_class = model.image_shape[-1], model.network.num_classes
    is_number = not tf.is_tensor(guidance_scale)

    def network(*arguments):
        return tf.cast(model.ema_network(list(arguments)), tf.float32)

    def predict(x, t):
        if label is None:
            output = network(x, t)
        elif is_number and guidance_scale == 1:
            output = network(x, t, label)
        elif is_number and guidance_scale == 0:
            output = network(x, t, tf.fill(label.shape, no_class))
        else:
            no_label = tf.fill(label.shape, no_class)
            twice = [tf.concat(pair, axis=0) for pair in ((x, x), (t, t), (label, no_label))]
            output, without = tf.split(network(*twice), 2)
            guided = without[..., :channels] + guidance_scale * (output - without)[..., :channels]
            output = tf.concat([guided, output[..., channels:]], axis=-1) if model.variance == "learned" else guided
        return output if learned_variance or model.variance != "learned" else output[..., :channels]

    return predict


@dataclasses.dataclass(frozen=True)
class Edit:
    """What is done to the state after every step of a walk, inside the loop.

    Attributes:
        name: of the function, hashable with whatever it is made from.
        function: (x, index, seeds, *arrays) -> x.
        arrays: one row an image, each (N, ...).
    """

    name: tuple
    function: Callable
    arrays: tuple[np.ndarray, ...]


def paint(
    model,
    table: walks.StepTable,
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
    """Walk to the end for every seed.

    Args:
        model: a `DiffusionModel`.
        table: the steps.
        seeds: int32 (N,).
        labels: int32 (N,), None for a network without classes.
        x: float32 (N, H, W, C) to start from; None = the noise of the seeds.
        edit: what happens after every step; None = nothing.
        guidance_scale: as in `denoiser`.
        batch_size: images at a time.
        frames: how many pictures of the way to keep.
        verbose: as in `DiffusionModel.generate`.
        jit_compile: compile with XLA.
        task: what the progress bar says.

    Returns:
        float32 (N, H, W, C), and uint8 (frames, N, H, W, C) or None.
    """
    batch_size = inputs.count("batch_size", batch_size)
    rows = strategies.Rows(model.distribute_strategy)
    # A power of two, so that a few shapes serve every number of seeds.
    batch = min(batch_size, 2 ** (len(seeds) - 1).bit_length())
    batch = -(-batch // rows.replicas) * rows.replicas
    stops = _stops(table.num_rows, frames)
    begin, walk = _compiled(model, table, batch, guidance_scale, edit, jit_compile)
    scale = tf.constant(guidance_scale, tf.float32)
    chunks = [slice(i, i + batch) for i in range(0, len(seeds), batch)]
    arrays = () if edit is None else edit.arrays
    floats, trajectories = [], []
    with progress.bar(len(chunks) * table.num_rows, f"{task} {len(seeds)} pictures", "step", verbose) as bar:
        for chunk in chunks:
            count = len(seeds[chunk])

            def filled(array, chunk=chunk):
                """The chunk as a full batch, its first rows again at the end."""
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


def compiled(model, key: tuple, make: Callable):
    """What `make` compiles for `key`, made once and kept by the model, until too much else has been asked for."""
    if key in model.compiled_functions:
        made = model.compiled_functions.pop(key)
    else:
        made = make()
        while len(model.compiled_functions) >= _MOST_COMPILED:
            del model.compiled_functions[next(iter(model.compiled_functions))]
    model.compiled_functions[key] = made  # the last in the order of use
    return made


def checked_labels(model, labels, seeds: np.ndarray) -> np.ndarray | None:
    """Labels as int32 (N,), one a seed; None for a network without classes.

    Raises:
        InputError: labels of another number, out of range, or for a network without classes.
    """
    classes = model.network.num_classes
    if not classes:
        if labels is not None:
            raise InputError("`labels` were given, but the network has no classes (num_classes=None)")
        return None
    if labels is None:
        return (seeds % classes).astype(np.int32)
    labels = inputs.int32("labels", labels)
    if len(labels) != len(seeds):
        raise InputError(f"`labels` must be one a seed. Received: {len(labels)} labels, {len(seeds)} seeds")
    inputs.check_labels(labels, classes)
    return labels


def labels_of_images(model, labels, count: int) -> np.ndarray | None:
    """Labels of images, which have a class of their own and none to be made up: int32 (count,).

    Raises:
        InputError: as in `checked_labels`, or no labels for a network with classes.
    """
    classes = model.network.num_classes
    if classes and labels is None:
        raise InputError(f"`labels` are needed: the network has {classes} classes. Received: None")
    if classes and np.shape(labels) != (count,):
        raise InputError(f"`labels` must be one an image, ({count},). Received: shape {np.shape(labels)}")
    return checked_labels(model, labels, np.arange(count))


def check_guidance(model, guidance_scale: float) -> None:
    """Whether the model can be guided so.

    Raises:
        InputError: a scale that is negative or no number, a network without classes, or one trained without dropout.
    """
    if inputs.number("guidance_scale", guidance_scale) < 0:
        raise InputError(f"`guidance_scale` must be at least 0. Received: {guidance_scale}")
    if guidance_scale == 1:
        return
    if not model.network.num_classes:
        raise InputError(
            f"`guidance_scale` needs a network with classes (num_classes). Received: {guidance_scale} without classes"
        )
    if not model.label_dropout:
        raise InputError(
            "`guidance_scale` needs a model trained with label_dropout: this one never saw pictures without their "
            f"class. Received: {guidance_scale}"
        )


def _checked_x_T(model, x_T, count) -> np.ndarray:
    x_T = np.asarray(x_T)
    expected = (count, *model.image_shape)
    if x_T.shape != expected or x_T.dtype.kind != "f":
        raise InputError(f"`x_T` must be float {expected}, one a seed. Received: {x_T.dtype} {x_T.shape}")
    return x_T.astype(np.float32)


def _compiled(model, table, batch, guidance_scale, edit, jit_compile):
    """(begin, walk) for a table and a batch size; one trace serves every guidance scale but 0 and 1."""
    guided = guidance_scale not in (0, 1)

    def make():
        def begin(seeds, x):
            return walks.initial_state(walks.initial_noise(seeds, model.image_shape) if x is None else x, table)

        def walk(state, seeds, label, scale, start, stop, *arrays):
            after = None if edit is None else lambda x, index: edit.function(x, index, seeds, *arrays)
            predict = denoiser(model, label, scale if guided else guidance_scale, table.learned_variance)
            return walks.walk(predict, table, state, seeds, start, stop, after)

        rows = strategies.Rows(model.distribute_strategy)
        return tuple(rows.compile(function, jit_compile=jit_compile) for function in (begin, walk))

    scale = "any" if guided else int(guidance_scale)
    name = None if edit is None else edit.name
    return compiled(model, (table.fingerprint, batch, scale, name, jit_compile), make)


def _stops(num_steps: int, frames: int) -> list[tuple[int, bool]]:
    """Where a walk returns to Python: (step to stop before, whether a frame is taken before walking there)."""
    framed = np.unique(np.linspace(0, num_steps, frames).round().astype(int))[:-1] if frames > 1 else []
    starts = sorted({0, *framed, *range(0, num_steps, _STEPS_A_CALL)})
    return [(stop, start in framed) for start, stop in zip(starts, [*starts[1:], num_steps], strict=True)]
