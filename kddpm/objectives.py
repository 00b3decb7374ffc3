"""What training minimises."""

from keras import ops


def simple_loss(noise, predicted_noise):
    """L_simple of one batch, |eps - eps_theta(x_t, t)|^2 as a mean over pixels (Ho et al. 2020, eq. 14).

    Args:
        noise: eps, (B, H, W, C).
        predicted_noise: the network's output, (B, H, W, C).

    Returns:
        float32 (B,), one value an image.
    """
    difference = ops.cast(noise, "float32") - ops.cast(predicted_noise, "float32")
    return ops.mean(ops.square(difference), axis=tuple(range(1, len(difference.shape))))
