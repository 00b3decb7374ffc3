"""The contract between an exported file and its clients: signatures of static shapes."""

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.device import SIGNATURES
from kddpm.networks import layers
from kddpm.sampling import noise as noises
from kddpm.sampling import walks
from kddpm.sampling.denoiser import Denoiser
from kddpm.sampling.step_table import StepTable
from kddpm.theory import parametrization

_WITH_NETWORK = ("step", "denoise", "generate")


def chosen(names: Iterable[str] | None) -> list[str]:
    """Return signatures by name in the contract's order; None = all.

    Raises:
        InputError: an unknown name, or none that calls the network.
    """
    if names is None:
        return list(SIGNATURES)
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in SIGNATURES:
            raise InputError("signatures", f"must be of {', '.join(SIGNATURES)}", f"{name!r:.80}")
    if not set(names) & set(_WITH_NETWORK):
        raise InputError(
            "signatures", f"must hold one that calls the network, of {', '.join(_WITH_NETWORK)}", ", ".join(names)
        )
    return [name for name in SIGNATURES if name in names]


def primary(names: Iterable[str]) -> str:
    """Return the signature whose graph is the first in the file, so that benchmark_model times one network call."""
    return next(name for name in _WITH_NETWORK if name in names)


def signatures(denoiser: Denoiser, table: StepTable, batch_size: int, guidance_scale: float = 1.0) -> dict:
    """Return all signatures as `tf.function`s of static shapes, by name.

    Args:
        denoiser: the network.
        table: the steps from noise to a picture.
        batch_size: B.
        guidance_scale: as in `generation.generate`.
    """
    shape = denoiser.image_shape
    has_variance = denoiser.objective.variance == "learned"

    def predict(label, learned_variance):
        if label is not None:
            label = tf.clip_by_value(label, 0, denoiser.num_classes)

        def with_device_layers(x, t):
            with layers.for_devices():
                return denoiser.predictor(label, guidance_scale, learned_variance)(x, t)

        return with_device_layers

    def generate(seed, label=None):
        predicted = predict(label, table.learned_variance)
        return finish(walks.walk(predicted, table, start(seed)["x"], seed))

    def start(seed):
        return {"x": walks.initial_state(walks.initial_noise(seed, shape), table)}

    def step(x, index, seed, label=None):
        row = tf.clip_by_value(index[0], 0, table.num_rows - 1)
        return {"x": walks.take_step(predict(label, table.learned_variance), table, x, seed, row)}

    def finish(x):
        image = images.to_uint8(walks.picture_of(x, table), dtype="int32")
        return {"image": tf.clip_by_value(image, 0, 255)}  # once more, as integers: NaN is not clipped as a float

    def denoise(x, t, label=None):
        t = tf.clip_by_value(t, 0, denoiser.last_timestep)
        output = predict(label, has_variance)(x, t)
        output, *fraction = tf.split(output, 2, axis=-1) if has_variance else [output]
        predicted = _converted(denoiser, x, output, t)
        return {**predicted, **dict(zip(["fraction"], fraction, strict=False))}

    def noise(seed, stream, index):
        return {"noise": noises.normal(seed, stream[0], index[0], shape)}

    state = walks.initial_state(tf.zeros([batch_size, *shape]), table)
    numbers, number, picture = [batch_size], [1], [batch_size, *shape]
    with_label = {"label": numbers} if denoiser.num_classes else {}
    inputs = {
        generate: {"seed": numbers, **with_label},
        start: {"seed": numbers},
        step: {"x": state.shape, "index": number, "seed": numbers, **with_label},
        finish: {"x": state.shape},
        denoise: {"x": picture, "t": numbers, **with_label},
        noise: {"seed": numbers, "stream": number, "index": number},
    }
    return {
        function.__name__: tf.function(function, [_spec(*item) for item in shapes.items()], autograph=False)
        for function, shapes in inputs.items()
    }


def _spec(name, shape) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32 if name == "x" else tf.int32, name)


def _converted(denoiser, x, output, t) -> dict:
    """Return eps and x_0 of the network's output at the timesteps t, (B,)."""
    schedule, prediction = denoiser.schedule, denoiser.objective.prediction
    of_name = {
        "eps": parametrization.eps_coefficients(schedule, prediction),
        "x0": parametrization.x0_coefficients(schedule, prediction),
    }

    def at(column):
        by_timestep = np.zeros(denoiser.last_timestep + 1, np.float32)  # not by index in the schedule
        by_timestep[schedule.timesteps] = column
        return tf.reshape(tf.gather(by_timestep, t), [-1, 1, 1, 1])

    return {
        name: output if name == prediction else at(of_x) * x + at(of_output) * output
        for name, (of_x, of_output) in of_name.items()
    }


def described(function: tf.types.experimental.PolymorphicFunction) -> dict:
    """Return the shapes and dtypes of a signature's inputs and outputs, by name, for JSON."""
    concrete = function.get_concrete_function()
    inputs_by_name = {spec.name: spec for spec in function.input_signature}
    return {
        kind: {name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name} for name, spec in specs.items()}
        for kind, specs in (("inputs", inputs_by_name), ("outputs", concrete.structured_outputs))
    }
