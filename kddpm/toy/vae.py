"""From the VAE to diffusion, a step at a time, on the same points and with the same bound.

    (1)  p(x_0, x_1 .. x_T) = N(x_T; 0, 1) prod_t p(x_{t-1} | x_t),   p(x_{t-1} | x_t) = N(mean, variance)
    (2)  L = E_q[-log p(x_T) + sum_t log q(x_t | x_{t-1}) - log p(x_{t-1} | x_t)]  >=  -log p(x_0)

T = 1 with a learned q is the VAE (Kingma & Welling 2014), T > 1 the Markovian hierarchical VAE, and a q that adds noise
in fixed amounts makes it a diffusion model. p(x_0 | x_1) is a density, so that all of them bound the same number.
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.theory import objectives, schedules
from kddpm.theory.process import GaussianDiffusion
from kddpm.theory.schedules import NoiseSchedule
from kddpm.toy.descent import Descent, bound_loss, reverse_of
from kddpm.toy.planes import IMAGE_SHAPE, MLP, Plane, exact_nats, to_images, to_points

_TRAINING_POINTS = 20_000
_NARROW = -4.0  # log-variance at the start; from wide steps, training ends where no latent is used

Normal = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A hierarchical VAE, equation (1): the two directions of a Markov chain of latents.

    Attributes:
        encode: (x_{t-1}, t) -> (mean, log-variance) of q(x_t | x_{t-1}).
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t).
        shapes: shapes of the latents x_1 .. x_T, without the batch.
        weights: what is trained in both.
    """

    encode: Normal
    reverse: Normal
    shapes: Sequence[tuple[int, ...]]
    weights: Sequence[keras.Variable]

    def bound_nats(self, x_0: Tensor, seeds: Tensor) -> Tensor:
        """Estimate the bound (2) by one trajectory for each point, in nats per dimension.

        Args:
            x_0: data, (B, ...).
            seeds: two int32, of the noise.

        Returns:
            (B,).
        """
        noises = [self._noise(ops.shape(x_0)[0], t, seeds) for t in range(len(self.shapes))]
        return objectives.bound_from_chain_nats(self.encode, self.reverse, x_0, noises)

    def sample(self, count: int, seeds: Tensor) -> Tensor:
        """Draw x_0 of the model, (count, ...)."""
        x = self._noise(count, len(self.shapes) - 1, seeds)
        for t in reversed(range(len(self.shapes))):
            mean, log_variance = self.reverse(x, t)
            noise = tf.random.stateless_normal(tf.shape(mean), tf.random.fold_in(seeds, len(self.shapes) + t))
            x = mean + ops.exp(0.5 * log_variance) * noise
        return x

    def _noise(self, count, t, seeds):
        return tf.random.stateless_normal((count, *self.shapes[t]), tf.random.fold_in(seeds, t))


def hierarchical_vae(levels: int = 1, fixed: NoiseSchedule | None = None, width: int = 64, depth: int = 3) -> Chain:
    """Return a chain for points in the plane with a network for each step in each direction; one level is the VAE.

    Args:
        levels: T.
        fixed: a schedule of T steps that takes the place of the learned encoder; None = learn it.
        width: units of a layer.
        depth: hidden layers of a network.

    Raises:
        InputError: `levels` is not a count, or `fixed` has another number of steps.
    """
    levels = arguments.count("levels", levels)
    if fixed and fixed.num_timesteps != levels:
        raise InputError("fixed", f"must have {levels} steps", fixed.num_timesteps)
    decoders = [_network(width, depth) for _ in range(levels)]
    encoders = [_network(width, depth) for _ in range(0 if fixed else levels)]
    encode = _noise_steps(fixed) if fixed else lambda x_prev, t: _normal(encoders[t], x_prev)
    weights = [weight for network in (*decoders, *encoders) for weight in network.trainable_variables]
    return Chain(encode, lambda x_t, t: _normal(decoders[t], x_t), [IMAGE_SHAPE] * levels, weights)


def diffusion_chain(schedule: NoiseSchedule, network: keras.Model) -> Chain:
    """Return the chain of a diffusion model: noise steps as encoder, one network for the whole way back.

    Args:
        schedule: a schedule of T steps.
        network: as for `reverse_of`.
    """
    reverse = reverse_of(schedule, network)
    shapes = [network.image_shape] * schedule.num_timesteps
    return Chain(_noise_steps(schedule), lambda x, t: reverse(x, _all(t, x)), shapes, network.trainable_variables)


def _noise_steps(schedule):
    diffusion = GaussianDiffusion(schedule)
    return lambda x_prev, t: diffusion.q_step_mean_log_variance(x_prev, _all(t, x_prev))


@dataclasses.dataclass(frozen=True)
class Compared:
    """One row of `compare`.

    Attributes:
        name: of the model.
        networks: how many it has.
        weights: numbers that were trained.
        bound: mean of the bound on points that it has not seen, in nats per dimension.
        points: draws of the model, (N, 2), in units of the plane.
    """

    name: str
    networks: int
    weights: int
    bound: float
    points: np.ndarray


def compare(
    plane: Plane, steps: int = 3000, held_out: int = 10_000, count: int = 1000, seed: int = 0
) -> tuple[list[Compared], float]:
    """Train five models, from the VAE to a diffusion model, on the same points for as many steps.

    In order: T = 1; T = 3; a fixed encoder; one network, told t, in place of T; T = 100. The first three train on (2)
    as it stands, which is all that a learned encoder allows, and the other two with one t a point.

    Args:
        plane: the distribution of the points.
        steps: training steps of each model, of 250 points.
        held_out: how many points measure the bound.
        count: how many points each model draws.
        seed: of weights, points and noise; also becomes Keras's global seed.

    Returns:
        The models, and the mean of -log p(x_0) of the held-out points by the plane's own density: no bound can be lower
        on average. Both in nats per dimension of the model, where `LIMIT` is 1.
    """
    keras.utils.set_random_seed(seed)
    points, unseen = to_images(plane.draw(_TRAINING_POINTS, seed)), plane.draw(held_out, seed + 1)
    few = schedules.from_alpha_bar(lambda u: 1 / (1 + np.exp(8 * u - 5)), 3)  # log-SNR from 5 to -3 on a line
    many = schedules.cosine(100)
    shared_few, shared_many = (MLP(out_channels=2 * IMAGE_SHAPE[-1]) for _ in range(2))
    rows = []
    for name, networks, chain, loss in (
        ("VAE", 2, hierarchical_vae(), None),
        ("hierarchical VAE, 3 levels", 6, hierarchical_vae(3), None),
        ("fixed encoder, 3 steps", 3, hierarchical_vae(3, few), None),
        ("fixed encoder, 3 steps, one network", 1, diffusion_chain(few, shared_few), _loss(few, shared_few)),
        ("diffusion: 100 steps, one network", 1, diffusion_chain(many, shared_many), _loss(many, shared_many)),
    ):
        Descent(loss or chain.bound_nats, chain.weights, points, steps=steps).run(seed)
        bound = float(np.mean(chain.bound_nats(to_images(unseen), tf.constant([seed, -1]))))
        drawn = to_points(chain.sample(count, tf.constant([seed, -2])))
        rows.append(Compared(name, networks, sum(int(np.prod(w.shape)) for w in chain.weights), bound, drawn))
    return rows, exact_nats(plane, unseen)


def _loss(schedule, network):
    return bound_loss("one_sample", schedule, reverse_of(schedule, network))


def _network(width, depth):
    """Return a network of what is added to x for the mean, and of the log-variance; it starts with narrow steps."""
    hidden = [keras.layers.Dense(width, "silu") for _ in range(depth)]
    last = keras.layers.Dense(2 * IMAGE_SHAPE[-1], kernel_initializer=keras.initializers.VarianceScaling(0.01))
    network = keras.Sequential([keras.Input(IMAGE_SHAPE), *hidden, last])
    last.bias.assign(np.repeat([0.0, _NARROW], IMAGE_SHAPE[-1]))
    return network


def _normal(network, x):
    change, log_variance = ops.split(network(x), 2, axis=-1)
    return x + change, log_variance


def _all(t, x):
    return ops.full((ops.shape(x)[0],), t, "int32")
