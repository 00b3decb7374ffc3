"""What kddpm asks of a network, `docs/your_network.md`, and whether one does it.

    inputs          [x_t, t], or [x_t, t, label]: float32 (B, H, W, C), int32 (B,), int32 (B,)
    output          one tensor, floats (B, H, W, C), or (B, H, W, 2 C) with a learned variance
    image_shape     attribute (H, W, C); may be missing where the network has an `Input` of this shape
    num_classes     attribute, None = no labels; may be missing where the network has two inputs, or no `Input`
    seed            argument of `call`, int32 (B,), from which its dropout masks follow; may be missing

The label `num_classes` means "no class".
"""

import inspect
import re
import warnings

import keras
import numpy as np
from keras import ops

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.networks.unet import UNet

_INPUTS = "[x_t, t] or [x_t, t, label]"
_SAME = 0.05  # difference of two outputs, relative to the largest value: a copy may compute in bfloat16, the other not
_LONGEST = 300  # characters of an error that is quoted
_REMADE = (
    "must be made anew by get_config and from_config, for its averaged weights and for files: get_config returns every "
    "argument of __init__, and functions have names and @keras.saving.register_keras_serializable()"
)


def complete(network: keras.Model, last_timestep: int) -> int:
    """Give a network the attributes that follow from its inputs, build it if need be, and check what it gives.

    Args:
        network: any Keras model.
        last_timestep: the largest t that it will see.

    Returns:
        The channels of its output.

    Raises:
        InputError: it is not as the module says.
    """
    if not isinstance(network, keras.Model):
        raise InputError("network", "must be a Keras model", type(network).__name__)
    _set_attributes(network)
    required = [
        parameter.name
        for parameter in list(inspect.signature(network.call).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:  # Keras builds a network from a file without them
        raise InputError("network", "must have defaults for all arguments of call but the first", ", ".join(required))
    if isinstance(network, UNet):  # known to be right, and too slow for a trial
        return network.out_channels
    output = _trial(network, last_timestep)
    shape = tuple(network.image_shape)
    given = keras.backend.standardize_dtype(output.dtype) if hasattr(output, "dtype") else type(output).__name__
    if "float" not in given:
        raise InputError("network", "must give one tensor of floats", given)
    if tuple(output.shape[:-1]) != (2, *shape[:-1]):
        expected = f"must give (2, {shape[0]}, {shape[1]}, channels) for two images of {shape}{_format()}"
        raise InputError("network", expected, f"an output of shape {tuple(output.shape)}")
    if not np.all(np.isfinite(ops.convert_to_numpy(ops.cast(output, "float32")))):
        raise InputError("network", "must give finite numbers", "NaN or infinite values")
    for weight in network.trainable_variables:
        if weight.dtype != "float32":
            raise InputError(
                "network", "must have float32 weights, such as with the dtype mixed_bfloat16", f"{weight.dtype} weights"
            )
    return output.shape[-1]


def takes_seed(network: keras.Model) -> bool:
    """Return whether `call` has an argument `seed`."""
    return "seed" in inspect.signature(network.call).parameters


def copied(network: keras.Model, name: str, last_timestep: int) -> keras.Model:
    """Return a copy of a network with its values, made the way a file is loaded: `get_config`, then `from_config`.

    Args:
        network: `complete`.
        name: of the copy.
        last_timestep: as in `complete`.

    Raises:
        InputError: the copy cannot be made, or computes something else.
    """
    unregistered = {kind.__name__: kind for kind in map(type, network._flatten_layers()) if not _is_known(kind)}
    try:
        made = serialized(network)
        if "name" in made["config"]:
            made["config"]["name"] = name
        copy = deserialized(made, custom_objects=unregistered)
        if not copy.built:
            _trial(copy, last_timestep)
        copy_values(network, copy)
    except Exception as error:
        raise InputError("network", _REMADE, f"{type(network).__name__}, for which: {_reason(error)}") from error
    if unregistered:
        names = ", ".join(sorted(unregistered))
        warnings.warn(
            f"A file of this model will load only with custom_objects, as Keras does not know {names}. Put "
            "@keras.saving.register_keras_serializable() above the class",
            stacklevel=3,
        )
    if not isinstance(network, UNet):
        ours, theirs, again = (_trial(each, last_timestep) for each in (network, copy, network))
        if _differ(ours, theirs) and not _differ(ours, again):  # some are random even without training
            raise InputError("network", _REMADE, f"{type(network).__name__}, whose copy computes something else")
    return copy


def serialized(network: keras.Model) -> dict:
    """Return a `complete` network as `keras.saving` writes it, with the attributes that Keras would lose.

    How the network may once have been compiled for itself is left out.
    """
    attributes = {"image_shape": tuple(map(int, network.image_shape)), "num_classes": network.num_classes}
    return {**keras.saving.serialize_keras_object(network), "compile_config": None, "attributes": attributes}


def deserialized(config: dict, custom_objects: dict | None = None) -> keras.Model:
    """Return the network that is `serialized` in `config`, with new weights."""
    config = dict(config)
    attributes = config.pop("attributes", {})  # not in files of earlier versions
    network = keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    for name, value in attributes.items():
        if not hasattr(network, name):
            setattr(network, name, tuple(value) if name == "image_shape" else value)
    return network


def _is_known(kind):
    """Return whether Keras finds a class by its name in a file."""
    name = keras.saving.get_registered_name(kind)
    return kind.__module__.startswith("keras.") or keras.saving.get_registered_object(name) is kind


def copy_values(network: keras.Model, copy: keras.Model) -> None:
    """Copy the values of all weights to a network of the same layers."""
    copy.set_weights(network.get_weights())
    for layer in copy._flatten_layers():
        if hasattr(layer, "finalize_state"):  # Normalization: what it computes with follows from its weights
            layer.finalize_state()


def _set_attributes(network):
    """Set `image_shape` and `num_classes` from the network's inputs, where it lacks them, and check them.

    Raises:
        InputError: they are missing or not as they must be.
    """
    if isinstance(network, keras.Sequential):
        raise InputError("network", f"must take {_INPUTS}", "a Sequential, which takes one input")
    inputs = getattr(network, "inputs", None) or []
    if not hasattr(network, "image_shape"):
        shape = tuple(inputs[0].shape[1:]) if inputs else (None,)
        if None in shape:
            given = f"an input of shape {shape}" if inputs else "a network without it"
            raise InputError("network", "must have the attribute image_shape, (H, W, C), as a UNet has", given)
        network.image_shape = shape
    shape = tuple(network.image_shape)
    if len(shape) != 3 or any(not isinstance(n, int | np.integer) or n < 1 for n in shape):
        raise InputError("network", f"must take {_INPUTS}, and have an image_shape of (H, W, C)", shape)
    if not hasattr(network, "num_classes"):
        if len(inputs) > 2:
            expected = "has an input for labels and must have the attribute num_classes, the number of classes"
            raise InputError("network", expected, "a network without it")
        network.num_classes = None
    if network.num_classes is not None:
        classes = arguments.count("num_classes", network.num_classes)
        if type(network.num_classes) is not int:
            network.num_classes = classes
    if inputs and len(inputs) != (3 if network.num_classes else 2):
        expected = f"must take {_INPUTS}, the latter if it has num_classes"
        raise InputError("network", expected, f"{len(inputs)} inputs, num_classes={network.num_classes}")


def _trial(network, last_timestep):
    """Return the output for two images, with the first and the last t and label; changes no variable.

    Raises:
        InputError: the network fails.
    """
    shape, classes = tuple(network.image_shape), network.num_classes
    x_t = np.linspace(-1, 1, 2 * int(np.prod(shape)), dtype=np.float32).reshape(2, *shape)
    inputs = [ops.convert_to_tensor(x) for x in (x_t, np.array([0, last_timestep], np.int32))]
    expected = f"must take [x_t float32 (B, {', '.join(map(str, shape))}), t int32 (B,) in 0 .. {last_timestep}"
    if classes:
        inputs.append(ops.convert_to_tensor(np.array([0, classes], np.int32)))
        expected += f", label int32 (B,) in 0 .. {classes}, where {classes} means no class"
    try:
        if not network.built:
            network(inputs, training=False)
        # A CPU refuses indices beyond a table, where an accelerator may not.
        with keras.device("cpu:0"), keras.StatelessScope():
            return network(inputs, training=False)
    except InputError:
        raise
    except Exception as error:
        labels = "" if classes else ", and no labels, as num_classes is None"
        received = f"{type(network).__name__}: {_reason(error)}"
        raise InputError("network", f"{expected}]{labels}{_format()}", received) from error


def _format():
    """Return a note on Keras's image_data_format, if it is not that of kddpm."""
    found = keras.config.image_data_format()
    return "" if found == "channels_last" else f"; layers made with Keras's image_data_format {found} do not"


def _differ(ours, theirs):
    ours, theirs = (ops.convert_to_numpy(ops.cast(output, "float32")) for output in (ours, theirs))
    scale = np.max(np.abs(ours), initial=0, where=np.isfinite(ours))
    return not np.allclose(ours, theirs, rtol=0, atol=_SAME * scale, equal_nan=True)


def _reason(error):
    """Return the line of an error that says why; Keras puts others before it."""
    text = str(error).rpartition("Exception encountered: ")[2]
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return lines[0][:_LONGEST] if lines else type(error).__name__
