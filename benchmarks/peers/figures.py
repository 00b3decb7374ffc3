"""Pictures and bits per dimension of any network that predicts the noise, by NumPy alone: the same for every peer."""

import math

import numpy as np


class Chain:
    """A trained network and the process that it was trained on.

    Args:
        eps_of: function from x_t, float32 (B, H, W, C), and t, int64 (B,), to the noise predicted in it; of a network
            with classes also from labels, int64 (B,).
        alpha_bars: (T,).
        black: value that the network has for the pixel 0.
        white: value that it has for the pixel 255.
    """

    def __init__(self, eps_of, alpha_bars, black=-1.0, white=1.0):
        self._eps_of, self.alpha_bars = eps_of, np.asarray(alpha_bars, np.float64)
        self._black, self._white = black, white

    def _x_0_of(self, x_t, t, labels):
        """Images predicted from x_t (B, H, W, C) at t (B,), clipped to the range of pixels as Ho et al. 2020 do."""
        told = () if labels is None else (labels,)
        eps = np.asarray(self._eps_of(x_t.astype(np.float32), t, *told), np.float64)
        a = self._of_images(t)
        return np.clip((x_t - np.sqrt(1 - a) * eps) / np.sqrt(a), self._black, self._white)

    def _of_images(self, t):
        """alpha_bar at t (B,), as (B, 1, 1, 1)."""
        return self.alpha_bars[t][:, np.newaxis, np.newaxis, np.newaxis]

    def paint(self, count, shape, labels=None, steps=50, seed=0, batch=64):
        """Pictures by DDIM with eta = 0 and even steps from T - 1 on (Song et al. 2021); uint8 (count, H, W, C).

        `labels` are those of all pictures, int64 (count,), or None.
        """
        rng, size = np.random.default_rng(seed), len(self.alpha_bars)
        times = np.round(np.arange(size, 0, -size / steps)).astype(int) - 1
        found = []
        for first in range(0, count, batch):
            x = rng.standard_normal((min(batch, count - first), *shape))
            some = None if labels is None else labels[first : first + batch]
            for t, next_t in zip(times, [*times[1:], -1], strict=True):
                x_0, a = self._x_0_of(x, np.full(len(x), t), some), self.alpha_bars[t]
                eps = (x - math.sqrt(a) * x_0) / math.sqrt(1 - a)
                b = self.alpha_bars[next_t] if next_t >= 0 else 1.0
                x = math.sqrt(b) * x_0 + math.sqrt(1 - b) * eps
            found.append(np.round(255 * (x - self._black) / (self._white - self._black)).clip(0, 255).astype(np.uint8))
        return np.concatenate(found)

    def bits_per_dim(self, images, labels=None, terms=32, seed=0):
        """The bound of Ho et al. 2020, eq. 5, with the smaller of their variances, in bits per dimension.

        Each image has the term of t = 0, the prior's, and others at t drawn with a probability proportional to 1 / t.

        Args:
            images: uint8 (N, H, W, C).
            labels: of the images, int64 (N,), or None.
            terms: others for each image, each with noise of its own.
            seed: of t and noise.

        Returns:
            The mean and its standard error over images; None for a process that begins at more than four grey levels of
            noise, from where no step leads to pixels.
        """
        a = self.alpha_bars[0]
        if math.sqrt((1 - a) / a) > 4 * (self._white - self._black) / 255:
            return None, None
        rng, size = np.random.default_rng(seed), len(self.alpha_bars)
        x_0 = self._black + (self._white - self._black) * images.astype(np.float64) / 255
        axes, bits = tuple(range(1, x_0.ndim)), math.log(2) * x_0[0].size
        total = self._prior(x_0).sum(axes) + self._decoder(x_0, labels, rng).sum(axes)
        shares = 1 / np.arange(1, size)
        shares /= shares.sum()
        for _ in range(terms):
            t = rng.choice(np.arange(1, size), len(x_0), p=shares)
            total += self._divergence(x_0, t, labels, rng).sum(axes) / shares[t - 1] / terms
        return float(total.mean() / bits), float(total.std(ddof=1) / math.sqrt(len(total)) / bits)

    def _noised(self, x_0, t, rng):
        a = self._of_images(t)
        return np.sqrt(a) * x_0 + np.sqrt(1 - a) * rng.standard_normal(x_0.shape)

    def _prior(self, x_0):
        """Divergence of q(x_T | x_0) from a standard normal distribution."""
        a = self.alpha_bars[-1]
        return 0.5 * (a * np.square(x_0) - a - math.log(1 - a))

    def _divergence(self, x_0, t, labels, rng):
        """Divergence of q(x_t-1 | x_t, x_0) from the reverse step: both have the variance of eq. 7."""
        a, before = self._of_images(t), self._of_images(t - 1)
        beta = 1 - a / before
        variance = beta * (1 - before) / (1 - a)
        apart = np.sqrt(before) * beta / (1 - a) * (x_0 - self._x_0_of(self._noised(x_0, t, rng), t, labels))
        return np.square(apart) / (2 * variance)

    def _decoder(self, x_0, labels, rng):
        """Minus the logarithm of the probability of each pixel, eq. 13, with the variance of the second step."""
        a, second = self.alpha_bars[0], self.alpha_bars[1]
        std = math.sqrt((1 - second / a) * (1 - a) / (1 - second))
        t, half = np.zeros(len(x_0), int), (self._white - self._black) / 510
        mean = self._x_0_of(self._noised(x_0, t, rng), t, labels)
        above = np.where(x_0 + half > self._white, np.inf, x_0 + half)
        below = np.where(x_0 - half < self._black, -np.inf, x_0 - half)
        return -np.log(np.maximum(_normal_mass((below - mean) / std, (above - mean) / std), 1e-12))


def _normal_mass(low, high):
    """Mass of the standard normal distribution between two bounds, exact in both tails."""
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    return _below(high) - _below(low)


_below = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), otypes=[np.float64])
