"""`TrainConfig`, the configuration of a training run. Needs neither TensorFlow nor the data."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np

from kddpm.base.errors import InputError
from kddpm.cli.sampling_flags import parse_sampler
from kddpm.data.labels import MOST_CLASSES
from kddpm.networks import levels
from kddpm.sampling import samplers
from kddpm.theory import schedules
from kddpm.theory.parametrization import PREDICTIONS, VARIANCES, WEIGHTINGS, Objective

# Fields that may change when a run resumes; changing any other would make it another run.
CHANGEABLE = (
    "steps", "checkpoint_every", "sample_every", "snapshot_every", "sampler", "sampling_steps", "guidance_scale",
    "eval_every", "eval_images", "eval_sampler", "extractor",
)  # fmt: skip

# {field: (least, most)}. The limits are far above practical values: they guard against untrusted configurations.
_WHOLE_NUMBERS = {
    "steps": (1, 10**9),
    "batch_size": (1, 10**6),
    "accumulation": (1, 10**6),
    "num_timesteps": (1, 10**5),
    "width": (1, 10**5),
    "blocks_per_level": (1, 100),
    "warmup_steps": (0, 10**9),
    "log_every": (1, 10**9),
    "checkpoint_every": (1, 10**9),
    "sample_every": (1, 10**9),
    "eval_every": (0, 10**9),
    "eval_images": (20, 10**7),
    "snapshot_every": (0, 10**9),
}


_MOST_CHANNELS = 10**5
_MOST_PIXELS = 2**14
_PRECISIONS = ("float32", "mixed_bfloat16")
_CHOICES = {
    "precision": _PRECISIONS,
    "learning_rate_decay": ("none", "cosine"),
    "sampler": tuple(samplers.BY_NAME),
    "schedule": tuple(schedules.BY_NAME),
}


def _one_of(names: Iterable[str]) -> str:
    """The names as a choice in words: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run; the defaults are those of Ho et al. 2020 for CIFAR-10, without flips.

    Every field is a flag of `train.py`, and the text in its annotation is the help.

    Raises:
        InputError: a value of the wrong type or out of range, or values that do not fit each other.
    """

    dataset: Annotated[str, "digits, npz:FILE, folder:DIR, zip:FILE or tfds:NAME[:SPLIT]"]
    image_size: Annotated[tuple[int, int], "pixels: one number, or HEIGHTxWIDTH"] = (32, 32)
    channels: Annotated[int | None, "1 = grey, 3 = RGB; none = as the data are"] = None
    num_classes: Annotated[int | None, "train on labels 0 .. num_classes - 1; none = unconditional"] = None
    label_dropout: Annotated[float, "share of labels left out in training, so that guidance is possible"] = 0.1
    horizontal_flip: Annotated[bool, "mirror half of the images"] = False
    schedule: Annotated[str, _one_of(schedules.BY_NAME)] = "linear"
    num_timesteps: Annotated[int, "T, noising steps"] = 1000
    zero_terminal_snr: Annotated[bool, "stretch the schedule so that nothing of the image is left at T"] = False
    prediction: Annotated[str, f"what the network predicts: {_one_of(PREDICTIONS)}"] = "eps"
    weighting: Annotated[str, f"of the loss: {_one_of(WEIGHTINGS)}"] = "simple"
    variance: Annotated[str, f"of a reverse step: {_one_of(VARIANCES)}"] = "small"
    timestep_sampling: Annotated[
        str, "uniform; stratified = even over the batch; importance = by the losses seen; log_normal = by the noise"
    ] = "uniform"
    width: Annotated[int, "channels of the network's first level"] = 128
    multipliers: Annotated[tuple[int, ...], "channels of each level over the width; each level halves the size"] = (
        1,
        2,
        2,
        2,
    )
    blocks_per_level: Annotated[int, "residual blocks of a level"] = 2
    attention_resolutions: Annotated[tuple[int, ...], "sizes, in pixels, of the levels with attention"] = (16,)
    dropout: Annotated[float, "rate in the residual blocks"] = 0.1
    steps: Annotated[int, "training steps"] = 800_000
    batch_size: Annotated[int, "images a step"] = 128
    learning_rate: Annotated[float, "of Adam"] = 2e-4
    warmup_steps: Annotated[int, "steps over which the learning rate rises from 0"] = 5000
    learning_rate_decay: Annotated[str, "after the warm-up: none; cosine = to 0 at the end, which fixes --steps"] = (
        "none"
    )
    clip_norm: Annotated[float | None, "largest global norm of the gradients; none = unlimited"] = 1.0
    accumulation: Annotated[int, "micro-batches that a batch is taken in, for less memory"] = 1
    ema_momentum: Annotated[float, "of the averaged weights that generate"] = 0.9999
    seed: Annotated[int, "of everything random"] = 0
    precision: Annotated[str, _one_of(_PRECISIONS)] = "float32"
    jit_compile: Annotated[bool, "compile the training step with XLA"] = False
    log_every: Annotated[int, "steps between rows of metrics.csv"] = 100
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 5000
    sample_every: Annotated[int, "steps between sample grids"] = 20_000
    snapshot_every: Annotated[int, "steps between snapshots, which give averages of other lengths; 0 = none"] = 0
    sampler: Annotated[str, f"of the sample grids: {', '.join(samplers.BY_NAME)}"] = "ancestral"
    sampling_steps: Annotated[int | None, "of the sample grids; none = T"] = None
    guidance_scale: Annotated[float, "of grids and of measured pictures, with classes; 1 = no guidance"] = 1.0
    eval_every: Annotated[int, "steps between Frechet distances, the lowest of which chooses best/; 0 = none"] = 0
    eval_images: Annotated[int, "pictures of each of these distances"] = 512
    eval_sampler: Annotated[str, "of the pictures of --eval_every, NAME or NAME:STEPS"] = "dpm_solver:20"
    extractor: Annotated[str | None, "of --eval_every, as in evaluate.py; none = the one that fits"] = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        for name, (least, most) in _WHOLE_NUMBERS.items():
            _in_range(name, getattr(self, name), least, most)
        for name in ("dropout", "label_dropout", "ema_momentum"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        for name, choices in _CHOICES.items():
            _require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}", repr(getattr(self, name)))
        self._check_theory()
        self._check_classes()
        self._check_training()
        self._check_levels()
        self._check_evaluation()

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of `UNet` that these fields name; image shape, output channels and dtype go beside them."""
        names = ("width", "multipliers", "blocks_per_level", "attention_resolutions", "dropout", "num_classes")
        return {name: getattr(self, name) for name in names}

    @property
    def objective(self) -> Objective:
        """The training objective of these fields."""
        return Objective(self.prediction, self.weighting, self.variance, self.timestep_sampling)

    @property
    def noise_schedule(self) -> schedules.NoiseSchedule:
        """The schedule of these fields."""
        schedule = schedules.by_name(self.schedule, self.num_timesteps)
        return schedules.zero_terminal_snr(schedule) if self.zero_terminal_snr else schedule

    def _check_theory(self):
        if self.zero_terminal_snr:
            _require(
                self.num_timesteps > 1, "num_timesteps", "at least 2 with {zero_terminal_snr}", self.num_timesteps,
                zero_terminal_snr=...,
            )  # fmt: skip
        self.objective.check_schedule(self.noise_schedule)
        _require(
            self.sampling_steps is None or 1 <= self.sampling_steps <= self.num_timesteps,
            "sampling_steps", f"in 1 .. {self.num_timesteps} ({{num_timesteps}}), or none", self.sampling_steps,
            num_timesteps=...,
        )  # fmt: skip

    def _check_classes(self):
        _require(
            self.num_classes is None or self.num_classes > 1, "num_classes", "at least 2, or none", self.num_classes
        )
        _require(
            (self.num_classes or 0) <= MOST_CLASSES, "num_classes", f"at most {MOST_CLASSES:,}, or none",
            self.num_classes,
        )  # fmt: skip
        _require(self.guidance_scale >= 0, "guidance_scale", "at least 0", self.guidance_scale)
        _require(
            self.guidance_scale == 1 or self.num_classes is not None,
            "guidance_scale", "1 without {num_classes}", self.guidance_scale, num_classes=...,
        )  # fmt: skip
        _require(
            self.guidance_scale == 1 or self.label_dropout > 0,
            "guidance_scale", "1 with {label_dropout}: the network never sees pictures without their class",
            self.guidance_scale, label_dropout=0,
        )  # fmt: skip

    def _check_training(self):
        _require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "positive, or none", self.clip_norm)
        _require(
            self.batch_size % self.accumulation == 0,
            "batch_size", "divisible by {accumulation}", self.batch_size, accumulation=self.accumulation,
        )  # fmt: skip
        _require(-(2**31) <= self.seed < 2**31, "seed", "an int32", self.seed)

    def _check_levels(self):
        _require(self.channels in (None, 1, 3), "channels", "1, 3 or none", self.channels)
        _require(
            len(self.multipliers) > 0 and min(self.multipliers) >= 1, "multipliers", "numbers >= 1", self.multipliers
        )
        widest = self.width * max(self.multipliers)
        _require(
            widest <= _MOST_CHANNELS,
            "multipliers", f"at most {_MOST_CHANNELS:,} channels with {{width}}", self.multipliers, width=self.width,
        )  # fmt: skip
        _require(len(self.image_size) == 2 and min(self.image_size) >= 1, "image_size", "N or HxW", self.image_size)
        size = "x".join(str(side) for side in self.image_size)
        _require(max(self.image_size) <= _MOST_PIXELS, "image_size", f"at most {_MOST_PIXELS:,} a side", size)
        count, most = len(self.multipliers), max(self.image_size).bit_length()
        _require(count <= most, "multipliers", f"at most {most} numbers for {{image_size}}", count, image_size=size)
        levels.check(self.image_size, count, self.attention_resolutions, "image_size")

    def _check_evaluation(self):
        try:
            _, count = parse_sampler(self.eval_sampler)
        except InputError as error:
            raise InputError("eval_sampler", error.expected, f"{self.eval_sampler!r:.80}") from None
        _require(
            not self.eval_every or (count or 1) <= self.num_timesteps,
            "eval_sampler", f"of at most {self.num_timesteps} steps ({{num_timesteps}}), for {{eval_every}}",
            self.eval_sampler, num_timesteps=..., eval_every=...,
        )  # fmt: skip


def help_of(field: dataclasses.Field) -> str:
    """Return the help text of a `TrainConfig` field's flag."""
    return typing.get_args(field.type)[1]


def parse(field: dataclasses.Field, text: str) -> object:
    """Parse the value of a `TrainConfig` field from the text of its flag.

    Raises:
        InputError: the text is not a value of the field's type.
    """
    kinds = _kinds(field)
    if text.lower() == "none" and types.NoneType in kinds:
        return None
    try:
        if kinds[0] is tuple:
            numbers = tuple(int(n) for n in text.lower().replace("x", ",").split(",") if n.strip())
            return numbers * 2 if field.name == "image_size" and len(numbers) == 1 else numbers
        return kinds[0](text.replace("_", "")) if kinds[0] is int else kinds[0](text)
    except ValueError:
        raise InputError(field.name, f"must be {_EXPECTED[kinds[0]]}", f"{text!r:.80}") from None


_EXPECTED = {
    int: "a whole number",
    float: "a number",
    tuple: "whole numbers, separated by commas",
    str: "text",
    bool: "true or false",
}


def _kinds(field) -> tuple:
    """Return the types a field may have, without their parameters."""
    annotated = field.type.__origin__
    union = typing.get_args(annotated) if isinstance(annotated, types.UnionType) else (annotated,)
    return tuple(typing.get_origin(kind) or kind for kind in union)


def _typed(field, value):
    """Return the value in the field's type: lists become tuples, and NumPy's numbers Python's."""
    kinds = _kinds(field)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and number.bit_length() > 63:  # Python refuses to print very long ones
            raise InputError(field.name, "must fit 64 bits", f"a number of {number.bit_length()} bits")
    if kinds[0] is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if field.name == "image_size" and isinstance(value, int):
        value = (value, value)
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    wrong = wrong or (isinstance(value, float) and not math.isfinite(value))
    if wrong or (isinstance(value, tuple) and not all(type(item) is int for item in value)):
        raise InputError(field.name, f"must be {_EXPECTED[kinds[0]]}", f"{value!r:.80}")
    return value


def _require(condition, name, expected, value, **others):
    if not condition:
        raise InputError(name, f"must be {expected}", f"{value!s:.80}", **others)


def _in_range(name, value, least, most):
    _require(value >= least, name, f"at least {least}", value)
    _require(value <= most, name, f"at most {most:,}", value)
