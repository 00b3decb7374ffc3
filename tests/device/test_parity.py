import numpy as np
import pytest

import kddpm
from kddpm.device import parity

TIMESTEPS = [9, 4, 0]
QUARTER = 0.25
# Of the toy's steps, x / 2 + index / 4, for the toy's x_0 = 1 / 4.
STEPS = {
    "t": TIMESTEPS,
    "from_x0": [0.0, 1.0, 2.0],
    "from_xt": [0.5, 0.5, 0.5],
    "noise_std": [0.0, 0.0, 0.0],
    "clip": False,
}


def to_image(x, off=0):
    return {"image": np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.int32) + off}


def signatures(offset=0.0, grey=0, noise=0.0, finish=0):
    """A toy with all signatures, off by so much in its steps, one pixel of its pictures, its noise, its finish."""

    def start(seed, stream=0, index=0):
        return {"x": (np.ones((1, 2, 2, 1)) * seed[0] / 8 + noise).astype(np.float32)}

    def step(x, index, seed):
        return {"x": (x / 2 + QUARTER * index[0] + offset * index[0]).astype(np.float32)}

    def generate(seed):
        x = np.ones((1, 2, 2, 1)) * seed[0] / 8
        for index in range(len(TIMESTEPS)):
            x = x / 2 + QUARTER * index
        image = to_image(x)["image"]
        image[0, 0, 0, 0] += grey
        return {"image": image}

    return {
        "generate": generate,
        "start": start,
        "step": step,
        "finish": lambda x: to_image(x, finish),
        "denoise": lambda x, t: {"eps": x * t[0] + offset, "x0": QUARTER * np.ones_like(x)},
        "noise": start,
    }


def measure(left=parity._WAYS, **changes):
    batches = [{"seed": np.array([seed], np.int32)} for seed in range(4)]
    pictures = np.concatenate([signatures()["generate"](**batch)["image"] for batch in batches]).astype(np.uint8)
    candidate = {name: of for name, of in signatures(**changes).items() if name not in parity._WAYS or name in left}
    calls = []
    result = parity.measure(candidate, signatures(), STEPS, pictures, batches, lambda: calls.append(None))
    assert len(calls) == parity.passes(candidate, STEPS, batches)
    return result


def test_equal_signatures_agree_in_everything():
    assert measure() == parity.Parity(4, True, 0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0)


def test_differences_are_measured_where_they_are():
    result = measure(offset=0.125, grey=-3)
    assert (result.mean_grey_levels, result.identical_pixels) == (pytest.approx(0.125 * 2.5 * 127.5, abs=1), 0.75)
    assert (result.step_max_error, result.step_mean_error) == (0.25, 0.125)
    assert (result.denoise_max_error, result.denoise_mean_error) == (0.125, 0.125)
    assert result.finish_max_grey_levels == 0
    assert result.noise_identical
    assert measure(grey=-3).mean_grey_levels == 0.75 and measure(grey=-3).max_grey_levels == 3
    assert not measure(noise=1e-7).noise_identical


@pytest.mark.parametrize("way", parity._WAYS)
def test_a_file_is_measured_by_what_it_has(way):
    result = measure([way], offset=0.125, grey=-3)
    assert (result.step_max_error is None, result.denoise_max_error is None) == (way != "step", way != "denoise")
    assert result.max_grey_levels == {"generate": 3, "step": 40, "denoise": 0}[way]
    assert result.identical_pixels == {"generate": 0.75, "step": 0, "denoise": 1}[way]


@pytest.mark.parametrize(
    ("precision", "changes", "error"),
    [
        ("float32", {"grey": 1}, None),
        ("float32", {"grey": 2}, r"max_grey_levels <= 1\. Received: 2"),
        ("float16", {"grey": 2}, None),
        ("float16", {"grey": 3}, r"mean_grey_levels <= 0\.5\. Received: 0\.75"),
        ("int8", {"grey": 24}, None),
        ("int8", {"grey": 25}, r"mean_grey_levels <= 6\. Received: 6\.25"),
        ("int8", {"noise": 1e-7}, "noise must have the bits"),
        ("int8", {"finish": -1}, None),
        ("float32", {"offset": 0.002}, r"step_mean_error <= 0\.0001\. Received: 0\.002"),
        ("int8", {"offset": 0.01}, None),
        ("int8", {"finish": -2}, r"finish_max_grey_levels <= 1\. Received: 2"),
    ],
)
def test_limits(precision, changes, error):
    result = measure(**changes)
    if error is None:
        result.check(parity.LIMITS[precision])
    else:
        with pytest.raises(kddpm.InputError, match=error):
            result.check(parity.LIMITS[precision])


def test_what_is_no_number_is_beyond_every_limit():
    result = parity.Parity(1, True, 0, 0.0, 1.0, 0.0, 0.0, 0.0, float("nan"), 0)
    with pytest.raises(kddpm.InputError, match="denoise_mean_error"):
        result.check(parity.LIMITS["int8"])


def test_of_a_state_with_a_memory_the_picture_is_denoised():
    asked = []

    def with_memory(memory):
        plain = signatures()

        def step(x, index, seed):
            after = plain["step"](x[..., :1], index, seed)["x"]
            return {"x": np.concatenate([after, x[..., :1] + memory], axis=-1)}

        def denoise(x, t):
            asked.append(x.shape)
            return plain["denoise"](x, t)

        return {
            **plain,
            "start": lambda seed: {"x": np.repeat(plain["start"](seed)["x"], 2, axis=-1)},
            "step": step,
            "finish": lambda x: plain["finish"](x[..., :1]),
            "denoise": denoise,
        }

    batches = [{"seed": np.array([3], np.int32)}]
    pictures = signatures()["generate"](**batches[0])["image"].astype(np.uint8)
    exact = parity.measure(with_memory(0), with_memory(0), STEPS, pictures, batches)
    assert exact == parity.Parity(1, True, 0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0)
    assert set(asked) == {pictures.shape}
    assert parity.measure(with_memory(0.5), with_memory(0), STEPS, pictures, batches).step_max_error == 0.5
