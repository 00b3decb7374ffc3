"""The loss of the best linear denoiser, which knows the mean and the covariance of the data and nothing else.

A network with a larger loss at some t has not learned that t. Let x_0 have the mean m and the covariance C, whatever
its distribution, and x_t = s x_0 + n eps with s = sqrt(alpha_bar_t), n = sqrt(1 - alpha_bar_t). Of all affine functions
of x_t the one nearest to x_0 in the mean square is (the Gauss-Markov theorem; Wiener 1949)

    (1)  x_0' = m + s C (s^2 C + n^2)^-1 (x_t - s m)

In the orthonormal basis in which C is diagonal, with the variances l_i, every coordinate is taken for itself, and

    (2)  E (x_0 - x_0')_i^2 = l_i n^2 / (s^2 l_i + n^2)

An error e of a network's output is an error b_t e of x_0 (`kddpm.parametrization`, equation (1)), and given x_t all
predictions are affine in x_0, so that the best one of each kind follows from (1). Its loss, a mean over the elements:

    (3)  L_t = mean_i l_i n^2 / (s^2 l_i + n^2) / b_t^2
         eps  mean_i s^2 l_i / (s^2 l_i + n^2);   v  mean_i l_i / (s^2 l_i + n^2);   x0  (2) itself

Of Gaussian data nothing is better than (1); of all others a network can be. In another orthonormal basis (2) with the
variances along its axes is the loss of a filter that takes every axis for itself. It is never below that of (1): those
variances are averages of the l_i, and (2) is concave in l.

Everything is float64 NumPy and needs neither Keras nor TensorFlow.
"""

import numpy as np

from kddpm.theory import parametrization
from kddpm.theory.schedules import NoiseSchedule

_IMAGES_A_DIMENSION = 10  # fewer leave the smallest eigenvalues of a covariance too small by half or more
_MOST_VALUES = 2**22  # of images whose spectra are in memory at a time


def variances(x_0: np.ndarray) -> np.ndarray:
    """Return the variances of images along the axes of an orthonormal basis, about their mean, float64 (H W C,).

    The basis is that of the covariance's eigenvectors where there are 10 images for each dimension. With fewer images
    the covariance is not known, and the basis is that of plane waves, in which images of any content are nearly
    uncorrelated, with the mixtures of channels that are so at each wave: the filter of (2) is then a convolution, and
    the variances are the power spectrum.

    Args:
        x_0: images in [-1, 1], float (N, H, W, C).
    """
    count, dimensions = len(x_0), x_0[0].size
    mean = x_0.mean(axis=0, dtype=np.float64)
    if count >= _IMAGES_A_DIMENSION * dimensions:
        centred = (x_0 - mean).reshape(count, dimensions)
        return np.maximum(np.linalg.eigvalsh(centred.T @ centred / count), 0)
    power = np.zeros((*x_0.shape[1:], x_0.shape[3]), complex)  # of each pair of channels
    block = max(1, _MOST_VALUES // dimensions)
    for first in range(0, count, block):
        waves = np.fft.fft2(x_0[first : first + block] - mean, axes=(1, 2), norm="ortho")
        power += np.einsum("nhwc,nhwd->hwcd", waves, waves.conj()) / count
    return np.maximum(np.linalg.eigvalsh(power), 0).ravel()


def losses(schedule: NoiseSchedule, prediction: str, along_axes: np.ndarray) -> np.ndarray:
    """Return the loss of the best linear denoiser at every t, equation (3): a mean squared error of the output, (T,).

    Args:
        schedule: of T steps.
        prediction: what the network predicts, one of `parametrization.PREDICTIONS`.
        along_axes: of `variances`.

    Raises:
        InputError: an unknown prediction.
    """
    _, b = parametrization.x0_coefficients(schedule, prediction)
    levels = zip(schedule.alpha_bars, schedule.one_minus_alpha_bars, strict=True)
    errors = [np.mean(along_axes * noise / (signal * along_axes + noise)) for signal, noise in levels]
    return np.array(errors) / b**2
