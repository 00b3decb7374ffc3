"""Whether an exported file paints what Keras paints: bit by bit in its noise, in grey levels in its pictures.

Everything here works on signatures: a mapping of names to functions that take and give NumPy arrays by name. What they
run in, Keras, a SavedModel or LiteRT, does not matter.
"""

import dataclasses

import numpy as np

from kddpm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limit:
    """How far pictures may be from Keras's, in grey levels of 255: on the mean, and anywhere (None = unlimited)."""

    mean_grey_levels: float
    max_grey_levels: float | None = None


# float32 differs in the last bits alone. Trained models were off by 0.01 in float16 and by 0.4 to 1.5 in int8 on the
# mean (benchmarks/README.md), with single pixels of an edge that moved far beyond: smaller weights paint a slightly
# different picture. Four times that is another picture, and a broken file is off by 50 or more.
LIMITS = {"float32": Limit(1, 1), "float16": Limit(0.5), "int8": Limit(6)}


@dataclasses.dataclass(frozen=True)
class Parity:
    """A file beside Keras, on pictures of the same seeds.

    Attributes:
        seeds: how many pictures were compared.
        noise_identical: whether x_T has the same bits.
        max_grey_levels, mean_grey_levels: difference of the pictures, in grey levels of 255.
        identical_pixels: share of the pictures' values that are equal.
        step_max_error, step_mean_error: difference after one step from the same x_t, where images are [-1, 1]; the
            largest and the mean over the steps of the first picture.
        denoise_max_error: the same for the predicted noise.
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
    finish_max_grey_levels: int

    def check(self, limit: Limit) -> None:
        """Whether the file may be written.

        Raises:
            InputError: noise of other bits, or pictures beyond the limit.
        """
        if not self.noise_identical:
            raise InputError("The exported noise must have the bits of Keras's. Received: other bits; nothing written")
        for name, expected in {**dataclasses.asdict(limit), "finish_max_grey_levels": 1}.items():
            if expected is not None and not getattr(self, name) <= expected:  # not finite is beyond too
                raise InputError(
                    f"The exported pictures must agree with Keras's: {name} <= {expected}. "
                    f"Received: {getattr(self, name):.3g}; nothing written"
                )


def measure(candidate: dict, reference: dict, pictures, batches, timesteps, advance=lambda: None) -> Parity:
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
    step_errors, denoise_errors = [], []
    for index, t in enumerate(timesteps):
        of_t = {"x": x, "t": np.full(len(x), t, np.int32), **label}
        of_step = {"x": x, "index": np.array([index], np.int32), **batch}
        denoise_errors.append(np.abs(_array(candidate["denoise"](**of_t)) - _array(reference["denoise"](**of_t))))
        x = _array(reference["step"](**of_step))
        step_errors.append(np.abs(_array(candidate["step"](**of_step)) - x))
        advance()
    finished = _array(candidate["finish"](x=x)).astype(int) - _array(reference["finish"](x=x))
    return Parity(
        seeds=len(pictures),
        noise_identical=noise_identical,
        max_grey_levels=int(difference.max()),
        mean_grey_levels=float(difference.mean()),
        identical_pixels=float((difference == 0).mean()),
        step_max_error=float(np.max(step_errors)),
        step_mean_error=float(np.mean(step_errors)),
        denoise_max_error=float(np.max(denoise_errors)),
        finish_max_grey_levels=int(np.abs(finished).max()),
    )


def _array(outputs: dict) -> np.ndarray:
    """The one output of a signature."""
    (value,) = outputs.values()
    return np.asarray(value)
