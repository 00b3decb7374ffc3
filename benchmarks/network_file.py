"""One network for several programs: random weights in a file, and what the network makes of a few inputs."""

import dataclasses
import json
import pathlib

import numpy as np

_ARCHITECTURE = ("image_shape", "width", "multipliers", "blocks_per_level", "attention_resolutions", "groups")


@dataclasses.dataclass(frozen=True)
class NetworkFile:
    """What `write` wrote.

    Attributes:
        preset: whose network it is.
        architecture: arguments of kddpm's and of `torch_unet`'s `UNet`.
        weights: arrays by kddpm's path without the outermost name, "down_0_0/conv_1/kernel".
        x, t: inputs, float32 (B, H, W, C) and int32 (B,).
        eps: what the network makes of them in float32, (B, H, W, C).
    """

    preset: str
    architecture: dict
    weights: dict
    x: np.ndarray
    t: np.ndarray
    eps: np.ndarray


def config_of(preset):
    """The `TrainConfig` of a preset with what other programs have too: eps, and neither classes nor mirrored images."""
    from kddpm.runs import presets

    return presets.make_config(preset, dataset="none", num_classes=None, prediction="eps", horizontal_flip=False)


def randomise(network, rng):
    """Give a network weights that leave their mark: new ones are 0 in many places, where a mistake would not show."""
    for weight in network.weights:
        initial, kind = np.asarray(weight), weight.path.rsplit("/", 1)[1]
        if kind != "kernel":
            weight.assign(rng.normal(1 if kind == "scale" else 0, 0.1, initial.shape))
        elif np.abs(initial).max() < 1e-4:
            weight.assign(rng.normal(0, 0.5 / np.sqrt(np.prod(initial.shape[:-1])), initial.shape))


def inputs(network, num_timesteps, rng):
    """Three inputs (x, t), at the first, the middle and the last timestep."""
    x = rng.standard_normal((3, *network.image_shape)).astype(np.float32)
    return x, np.array([0, num_timesteps // 2, num_timesteps - 1], np.int32)


def write(path, network, preset, x, t, eps):
    """Write a network, whole or not at all; the arguments are the fields of `NetworkFile`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    np.savez(
        unfinished,
        preset=preset,
        architecture=json.dumps({name: getattr(network, name) for name in _ARCHITECTURE}),
        x=x,
        t=t,
        eps=eps,
        **{f"weights/{weight.path.split('/', 1)[1]}": np.asarray(weight) for weight in network.weights},
    )
    unfinished.replace(path)


def read(path):
    """Read a `NetworkFile`."""
    with np.load(path) as archive:
        weights = {name.removeprefix("weights/"): archive[name] for name in archive.files if "/" in name}
        x, t, eps = (archive[name] for name in ("x", "t", "eps"))
        return NetworkFile(str(archive["preset"]), json.loads(str(archive["architecture"])), weights, x, t, eps)
