"""Whether an exported file paints what Keras paints: bit by bit in its noise, in grey levels in its pictures.

Everything here works on signatures: a mapping of names to functions that take and give NumPy arrays by name. What they
run in, Keras, a SavedModel or LiteRT, does not matter.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from kddpm.base.errors import InputError
from kddpm.base.types import Integers


@dataclasses.dataclass(frozen=True)
class Limit:
    """How far a file may be from Keras; attributes as in `Parity`, None = unlimited."""

    mean_grey_levels: float
    max_grey_levels: float | None
    step_mean_error: float
    denoise_mean_error: float
    finish_max_grey_levels: int = 1


# float32 differs in the last bits alone. Trained models were off by 0.03 grey levels in float16 and by 0.4 to 1.5 in
# int8 on the mean (benchmarks/README.md), with single pixels of an edge that moved far beyond: smaller weights paint a
# slightly different picture. Four times that is another picture, and a broken file is off by 50 or more. Predicted
# noise, of the order of 1, was off by 3e-6, 1e-3 and 5e-2.
LIMITS = {
    "float32": Limit(1, 1, step_mean_error=1e-4, denoise_mean_error=1e-3),
    "float16": Limit(0.5, None, step_mean_error=0.01, denoise_mean_error=0.02),
    "int8": Limit(6, None, step_mean_error=0.1, denoise_mean_error=0.2),
}


@dataclasses.dataclass(frozen=True)
class Parity:
    """A file beside Keras, on pictures of the same seeds.

    Attributes:
        seeds: how many pictures were compared.
        noise_identical: whether x_T has the same bits.
        max_grey_levels, mean_grey_levels: difference of the pictures, in grey levels of 255, the greater of what
            `generate` gives and, for the first pictures, `start`, every `step` and `finish`.
        identical_pixels: share of the values of `generate`'s pictures that are equal.
        step_max_error, step_mean_error: difference after one step from the same x_t, where images are [-1, 1], over the
            steps of the first pictures.
        denoise_max_error, denoise_mean_error: the same for the predicted noise.
        finish_max_grey_levels: difference where both make a picture of the same last state.
    """

    seeds: int
    noise_identical: bool
    max_grey_levels: int
    mean_grey_levels: float
    identical_pixels: float
    step_max_error: float
    step_mean_error: float
    denoise_max_error: float
    denoise_mean_error: float
    finish_max_grey_levels: int

    def check(self, limit: Limit) -> None:
        """Whether the file may be written.

        Raises:
            InputError: noise of other bits, or a difference beyond the limit.
        """
        if not self.noise_identical:
            raise InputError("The exported noise must have the bits of Keras's. Received: other bits; nothing written")
        for name, expected in dataclasses.asdict(limit).items():
            if expected is not None and not getattr(self, name) <= expected:  # NaN is beyond too
                raise InputError(
                    f"The exported file must agree with Keras: {name} <= {expected}. "
                    f"Received: {getattr(self, name):.3g}; nothing written"
                )


def measure(
    candidate: dict,
    reference: dict,
    pictures: np.ndarray,
    batches: Sequence[dict],
    timesteps: Integers,
    advance: Callable[[], object] = lambda: None,
) -> Parity:
    """Compare signatures.

    Args:
        candidate: signatures of the file.
        reference: the same signatures in Keras.
        pictures: uint8 (N, H, W, C), what Keras generates.
        batches: what to generate them from, N in all: inputs of `generate`, {"seed": int32 (B,)}, perhaps "label".
        timesteps: t of each step, (steps,).
        advance: called after every batch of pictures, and after every step of the first.
    """
    noise_identical, generated = True, []
    for batch in batches:
        seed = batch["seed"]
        noise_identical &= (
            _array(candidate["start"](seed=seed)).tobytes() == _array(reference["start"](seed=seed)).tobytes()
        )
        generated.append(_array(candidate["generate"](**batch)))
        advance()
    difference = np.abs(np.concatenate(generated).astype(int) - pictures)

    batch = batches[0]
    label = {name: value for name, value in batch.items() if name == "label"}
    x = _array(reference["start"](seed=batch["seed"]))
    walked = _array(candidate["start"](seed=batch["seed"]))
    step_errors, denoise_errors = [], []
    for index, t in enumerate(timesteps):
        # Of a sampler's state, the picture comes first; what it remembers is beside it.
        of_t = {"x": x[..., : pictures.shape[-1]], "t": np.full(len(x), t, np.int32), **label}
        of_step = {"index": np.array([index], np.int32), **batch}
        denoise_errors.append(np.abs(_array(candidate["denoise"](**of_t)) - _array(reference["denoise"](**of_t))))
        after = _array(reference["step"](x=x, **of_step))
        step_errors.append(np.abs(_array(candidate["step"](x=x, **of_step)) - after))
        walked = _array(candidate["step"](x=walked, **of_step))
        x = after
        advance()
    by_steps = np.abs(_array(candidate["finish"](x=walked)).astype(int) - pictures[: len(walked)])
    finished = np.abs(_array(candidate["finish"](x=x)).astype(int) - _array(reference["finish"](x=x)))
    return Parity(
        seeds=len(pictures),
        noise_identical=noise_identical,
        max_grey_levels=int(max(difference.max(), by_steps.max())),
        mean_grey_levels=float(max(difference.mean(), by_steps.mean())),
        identical_pixels=float((difference == 0).mean()),
        step_max_error=float(np.max(step_errors)),
        step_mean_error=float(np.mean(step_errors)),
        denoise_max_error=float(np.max(denoise_errors)),
        denoise_mean_error=float(np.mean(denoise_errors)),
        finish_max_grey_levels=int(finished.max()),
    )


def _array(outputs: dict) -> np.ndarray:
    """The one output of a signature."""
    (value,) = outputs.values()
    return np.asarray(value)
