"""Pictures of an exported model beside those of Keras."""

import functools

import numpy as np

GREY_LEVELS = 1  # how far a pixel may be from Keras's; WebAssembly's float32 kernels round in another order


class Keras:
    """The model before it was exported: what a client has to show."""

    def __init__(self, model, facts):
        self.model = model
        self._how = {name: facts["sampler"][key] for name, key in (("sampler", "name"), ("num_steps", "num_steps"))}
        self._frames = facts["network_calls"] + 1

    @functools.cache  # noqa: B019 (lives as long as the tests)
    def pictures(self, seed, label=None):
        """The picture of the noise and after each call of the network, int32 (network_calls + 1, H, W, C)."""
        labels = None if label is None else [label]
        _, frames = self.model.generate([seed], **self._how, labels=labels, return_trajectory=self._frames)
        return frames[:, 0].astype(int)

    def picture(self, seed, label=None):
        return self.pictures(seed, label)[-1]


def on_canvas(pixels, shape):
    """The image (H, W, C) of a canvas's pixels, which are opaque and, for one channel, grey."""
    height, width, channels = shape
    rgba = np.array(pixels).reshape(height, width, 4)
    assert (rgba[..., 3] == 255).all()
    assert channels == 3 or (rgba[..., :3] == rgba[..., :1]).all()
    return rgba[..., :channels]


def assert_same_picture(found, expected):
    assert found.shape == expected.shape
    print(f"identical pixels: {np.mean(found == expected):.1%}")
    assert np.abs(found.astype(int) - expected).max() <= GREY_LEVELS
