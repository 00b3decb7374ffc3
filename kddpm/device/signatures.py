"""The contract between an exported file and its clients: five signatures of static shapes."""

import inspect

import numpy as np
import tensorflow as tf

from kddpm.data import images
from kddpm.networks import layers
from kddpm.sampling import walks
from kddpm.sampling.denoiser import Denoiser
from kddpm.sampling.step_table import StepTable
from kddpm.theory import parametrization

PRIMARY = "step"  # its graph is the first in the file, so that tools such as benchmark_model time one step


def signatures(denoiser: Denoiser, table: StepTable, batch_size: int, guidance_scale: float = 1.0) -> dict:
    """Return the five signatures as `tf.function`s of static shapes.

    Args:
        denoiser: the network.
        table: the steps from noise to a picture.
        batch_size: B.
        guidance_scale: as in `generation.generate`.
    """
    shape = denoiser.image_shape
    coefficients = parametrization.eps_coefficients(denoiser.schedule, denoiser.objective.prediction)
    # Indexed by the timestep that the signature gets, not by its index in the schedule.
    by_name = np.zeros((2, denoiser.schedule.timesteps[-1] + 1), np.float32)
    by_name[:, denoiser.schedule.timesteps] = coefficients

    def predict(label):
        def with_device_layers(x, t):
            with layers.for_devices():
                return denoiser.predictor(label, guidance_scale, table.learned_variance)(x, t)

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
        if denoiser.objective.prediction != "eps":
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
    if denoiser.num_classes:
        specs["label"] = tf.TensorSpec([batch_size], tf.int32, "label")
    functions = {}
    for function in (generate, start, step, finish, denoise):
        if function is denoise:
            specs["x"] = tf.TensorSpec([batch_size, *shape], tf.float32, "x")
        names = [name for name in inspect.signature(function).parameters if name in specs]
        functions[function.__name__] = tf.function(function, [specs[name] for name in names], autograph=False)
    return functions


def described(function: tf.types.experimental.PolymorphicFunction) -> dict:
    """Return the shapes and dtypes of a signature's inputs and outputs, by name, for JSON."""
    concrete = function.get_concrete_function()
    inputs_by_name = {spec.name: spec for spec in function.input_signature}
    return {
        kind: {name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name} for name, spec in specs.items()}
        for kind, specs in (("inputs", inputs_by_name), ("outputs", concrete.structured_outputs))
    }
