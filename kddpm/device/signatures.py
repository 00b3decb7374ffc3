"""The contract between an exported file and its clients: signatures of static shapes."""

import inspect
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

MOST_UNROLLED = 10  # network calls of a `generate` for GPUs, each of which keeps its own copy of the weights in memory

_WITH_NETWORK = ("step", "denoise", "generate")


def chosen(names: Iterable[str] | None, target: str, table: StepTable) -> list[str]:
    """Return signatures by name in the contract's order; None = all that the target can have.

    Args:
        names: those that were asked for.
        target: "cpu" or "gpu".
        table: the steps from noise to a picture.

    Raises:
        InputError: an unknown name, none that calls the network, or a `generate` that GPUs cannot have.
    """
    obstacle = _obstacle_to_unrolling(table) if target == "gpu" else None
    if names is None:
        return [name for name in SIGNATURES if name != "generate" or obstacle is None]
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in SIGNATURES:
            raise InputError("signatures", f"must be of {', '.join(SIGNATURES)}", f"{name!r:.80}")
    if not set(names) & set(_WITH_NETWORK):
        raise InputError(
            "signatures", f"must hold one that calls the network, of {', '.join(_WITH_NETWORK)}", ", ".join(names)
        )
    if "generate" in names and obstacle is not None:
        raise InputError(
            "signatures",
            "must leave out generate for GPUs, which have no loops, unless the sampler adds no noise and calls the "
            f"network at most {MOST_UNROLLED} times",
            obstacle,
        )
    return [name for name in SIGNATURES if name in names]


def _obstacle_to_unrolling(table):
    if table.is_noisy:
        return "generate with a sampler that adds noise"
    return f"generate with {table.num_rows} network calls" if table.num_rows > MOST_UNROLLED else None


def primary(names: Iterable[str]) -> str:
    """Return the signature whose graph is the first in the file, so that benchmark_model times one network call."""
    return next(name for name in _WITH_NETWORK if name in names)


def signatures(
    denoiser: Denoiser, table: StepTable, batch_size: int, guidance_scale: float = 1.0, target: str = "cpu"
) -> dict:
    """Return all signatures that the target has as `tf.function`s of static shapes, by name.

    Args:
        denoiser: the network.
        table: the steps from noise to a picture.
        batch_size: B.
        guidance_scale: as in `generation.generate`.
        target: "cpu", or "gpu" = `step` is given its noise, and `generate` begins with that of `start` and has no loop.
    """
    kind = _OnCpu if target == "cpu" else _OnGpuWithNoise if table.is_noisy else _OnGpu
    owner = kind(denoiser, table, guidance_scale)
    picture = tf.zeros([batch_size, *denoiser.image_shape])
    shapes = {
        "x": walks.initial_state(picture, table).shape,
        "noise": picture.shape,
        **{key: [1] for key in ("index", "stream")},
        **{key: [batch_size] for key in ("seed", "t", "label")},
    }
    if not denoiser.num_classes:
        del shapes["label"]
    functions = {}
    for name in (name for name in SIGNATURES if hasattr(owner, name)):
        function = getattr(owner, name)
        of_x = {"x": picture.shape} if name == "denoise" else {}
        inputs = {key: {**shapes, **of_x}[key] for key in inspect.signature(function).parameters if key in shapes}
        functions[name] = tf.function(function, [_spec(*item) for item in inputs.items()], autograph=False)
    return functions


class _Everywhere:
    """The signatures of all targets, as methods whose parameters have the names of the inputs."""

    _tables_sinusoids = False

    def __init__(self, denoiser, table, guidance_scale):
        self._denoiser = denoiser
        self._table = table
        self._guidance_scale = guidance_scale

    def start(self, seed):
        return {"x": walks.initial_state(walks.initial_noise(seed, self._denoiser.image_shape), self._table)}

    def finish(self, x):
        image = images.to_uint8(walks.picture_of(x, self._table), dtype="int32")
        return {"image": tf.clip_by_value(image, 0, 255)}  # once more, as integers: NaN is not clipped as a float

    def denoise(self, x, t, label=None):
        has_variance = self._denoiser.objective.variance == "learned"
        t = _nearest(t, self._denoiser.last_timestep)
        output = self._predict(label, has_variance)(x, t)
        output, *fraction = walks.halves(output) if has_variance else [output]
        predicted = _converted(self._denoiser, x, output, t)
        return {**predicted, **dict(zip(["fraction"], fraction, strict=False))}

    def noise(self, seed, stream, index):
        return {"noise": noises.normal(seed, stream[0], index[0], self._denoiser.image_shape)}

    def _predict(self, label, learned_variance=None):
        """Return the function (x_t, t) -> output; learned_variance: None = as the steps need it."""
        learned_variance = self._table.learned_variance if learned_variance is None else learned_variance
        if label is not None:
            label = _nearest(label, self._denoiser.num_classes)

        tabled_timesteps = self._denoiser.last_timestep + 1 if self._tables_sinusoids else None

        def with_device_layers(x, t):
            with layers.for_devices(tabled_timesteps):
                return self._denoiser.predictor(label, self._guidance_scale, learned_variance)(x, t)

        return with_device_layers


class _OnCpu(_Everywhere):
    """Noise is drawn inside, and `generate` is a loop."""

    def generate(self, seed, label=None):
        state = walks.walk(self._predict(label), self._table, self.start(seed)["x"], seed)
        return self.finish(state)

    def step(self, x, index, seed, label=None):
        row = _nearest(index, self._table.num_rows - 1)
        return {"x": walks.take_step(self._predict(label), self._table, x, seed, row)}


class _OnGpu(_Everywhere):
    """`generate` begins with what `start` gives, and is unrolled."""

    _tables_sinusoids = True

    def generate(self, x, label=None):
        for row in range(self._table.num_rows):
            x = walks.take_step_with(self._predict(label), self._table, x, row)
        return self.finish(x)

    def step(self, x, index, label=None):
        row = _nearest(index, self._table.num_rows - 1)
        return {"x": walks.take_step_with(self._predict(label), self._table, x, row)}


class _OnGpuWithNoise(_Everywhere):
    """The noise of a step is an input."""

    _tables_sinusoids = True

    def step(self, x, index, noise, label=None):
        row = _nearest(index, self._table.num_rows - 1)
        return {"x": walks.take_step_with(self._predict(label), self._table, x, row, noise)}


def _nearest(number, last):
    """Return an integer tensor, clipped to 0 .. last.

    By differences: the converter makes a RELU6 of integers, which TFLite lacks, of a clip to 0 .. 6.
    """
    return last - tf.maximum(last - tf.maximum(number, 0), 0)


def _spec(name, shape) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32 if name in ("x", "noise") else tf.int32, name)


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
