"""Presets: named configurations of training runs, with measured results. Needs no TensorFlow."""

from kddpm.base.errors import InputError
from kddpm.runs.config import TrainConfig

PRESETS = {
    # Handwritten digits of 8x8 pixels, 3 minutes on two cores: a classifier assigns a class with probability above 0.9
    # to 95 % of the generated digits, and to 94 % of real ones.
    "digits": {
        "dataset": "digits", "image_size": (8, 8), "channels": 1, "schedule": "cosine",
        "width": 32, "multipliers": (1, 2), "blocks_per_level": 1, "attention_resolutions": (4,),
        "steps": 5000, "batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 100, "ema_momentum": 0.999,
        "log_every": 50, "checkpoint_every": 1000, "sample_every": 1000, "snapshot_every": 250, "sampling_steps": 250,
    },
    # MNIST on two cores: 96 minutes with AVX2 alone, about 17 at the 307 images/s of AVX-512. Of the pictures 96 % are
    # of their class, and 95 % are named with probability above 0.9; with a guidance of 1.25, 99 % and 98 %.
    # docs/results.md has what each choice is worth.
    "mnist": {
        "dataset": "tfds:mnist", "image_size": (28, 28), "channels": 1, "num_classes": 10, "schedule": "cosine",
        "prediction": "v", "width": 32, "multipliers": (1, 2, 2), "blocks_per_level": 1, "attention_resolutions": (7,),
        "steps": 5000, "batch_size": 64, "learning_rate": 2e-3, "learning_rate_decay": "cosine", "warmup_steps": 200,
        "ema_momentum": 0.998, "log_every": 20, "checkpoint_every": 500, "sample_every": 500, "snapshot_every": 250,
        "sampler": "ddim", "sampling_steps": 50,
    },
    # CIFAR-10 and its classes on two cores, about three hours with AVX-512, or two at the 137 images/s of bfloat16; not
    # trained to its end so far. docs/results.md has what smaller budgets give: two hours with AVX2 alone, and a GPU's.
    "cifar32": {
        "dataset": "tfds:cifar10", "channels": 3, "num_classes": 10, "horizontal_flip": True, "schedule": "cosine",
        "prediction": "v", "width": 48, "multipliers": (1, 2, 3), "blocks_per_level": 1, "attention_resolutions": (8,),
        "dropout": 0.0, "steps": 15_000, "batch_size": 64, "learning_rate": 1e-3, "learning_rate_decay": "cosine",
        "warmup_steps": 500, "ema_momentum": 0.999, "log_every": 50, "checkpoint_every": 1000, "sample_every": 1000,
        "snapshot_every": 750, "sampler": "ddim", "sampling_steps": 50,
    },
    # CIFAR-10 as in Ho et al. 2020: FID 3.17 after 800,000 steps in the paper; not trained here.
    "ddpm32": {"dataset": "tfds:cifar10", "channels": 3, "horizontal_flip": True},
    # LSUN and CelebA-HQ 256 as in Ho et al. 2020; not trained here.
    "ddpm256": {
        "image_size": (256, 256), "channels": 3, "horizontal_flip": True, "multipliers": (1, 1, 2, 2, 4, 4),
        "dropout": 0.0, "batch_size": 64, "learning_rate": 2e-5, "steps": 500_000,
    },
    # A small network for phones and browsers; not trained to its end here.
    "mobile32": {
        "dataset": "tfds:cifar10", "channels": 3, "horizontal_flip": True, "schedule": "cosine",
        "width": 48, "multipliers": (1, 2, 3), "blocks_per_level": 1, "attention_resolutions": (8,), "dropout": 0.0,
        "steps": 200_000, "learning_rate": 5e-4, "warmup_steps": 1000, "ema_momentum": 0.999,
        "sampler": "ddim", "sampling_steps": 50,
    },
}  # fmt: skip


def make_config(preset: str | None = None, **overrides) -> TrainConfig:
    """Return the configuration of a preset with some fields replaced.

    Args:
        preset: a key of `PRESETS`; None = "digits" for the data set digits, else "ddpm32".
        **overrides: fields of `TrainConfig`.

    Raises:
        InputError: unknown preset, or no data set given for a preset without one.
    """
    if preset is None:
        preset = "digits" if overrides.get("dataset", "digits") == "digits" else "ddpm32"
    if preset not in PRESETS:
        raise InputError("preset", f"must be one of {', '.join(PRESETS)}", repr(preset))
    values = {**PRESETS[preset], **overrides}
    if "dataset" not in values:
        raise InputError("dataset", f"is needed: the preset {preset} has none of its own")
    return TrainConfig(**values)
