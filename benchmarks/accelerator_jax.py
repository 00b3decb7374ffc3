"""kddpm's network under Keras's JAX backend: a training step and a sampler as one XLA program each."""

import dataclasses
import os
import time

import network_file
import numpy as np

TABLE_ROWS = 250  # of the longest sampler that is measured; shorter ones fit the same program


def use(device):
    """Choose JAX on "gpu" or "cpu", before it is imported; other programs need memory too."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["JAX_PLATFORMS"] = "cuda" if device == "gpu" else "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


class Program:
    """What `accelerator.py` measures of kddpm.

    Args:
        path: a file of `network_file.write`, or where `write` writes one.
        preset: whose network it is.
        device: "gpu" or "cpu".

    Raises:
        RuntimeError: JAX has no such device.
    """

    def __init__(self, path, preset, device):
        use(device)
        import jax

        self.jax, self.path, self.preset, self.config = jax, path, preset, network_file.config_of(preset)
        self.name = f"kddpm, JAX {jax.__version__}"
        self.device = jax.devices()[0].device_kind
        self._step = self._state = self._sample = None

    def _network(self, precision):
        dtype = "mixed_bfloat16" if precision == "bfloat16" else "float32"
        return network_of(dataclasses.replace(self.config, precision=dtype))

    def _loaded(self, precision):
        """The network of a precision and its weights as a list of arrays on the device."""
        network, file = self._network(precision), network_file.read(self.path)
        weights = [file.weights[v.path.split("/", 1)[1]] for v in network.trainable_variables]
        return network, [self.jax.numpy.asarray(value) for value in weights]

    def _precise(self, precision):
        """Products of float32 in full, where XLA may otherwise take TF32 or less."""
        return self.jax.default_matmul_precision("highest" if precision == "float32" else "default")

    def write(self):
        """Write the file: random weights, inputs and eps in float32."""
        network, rng = self._network("float32"), np.random.default_rng(0)
        network_file.randomise(network, rng)
        x, t = network_file.inputs(network, self.config.num_timesteps, rng)
        weights = [variable.value for variable in network.trainable_variables]
        with self._precise("float32"):
            eps = self.jax.jit(predictor(network))(weights, [x, t])
        network_file.write(self.path, network, self.preset, x, t, np.asarray(eps))

    def eps(self, precision):
        """What the network makes of the inputs in the file, float32 (B, H, W, C)."""
        file = network_file.read(self.path)
        network, weights = self._loaded(precision)
        with self._precise(precision):
            return np.asarray(self.jax.jit(predictor(network))(weights, [file.x, file.t]))

    def prepare_training(self, precision, batch):
        """Compile the training step; returns seconds, and the bytes that it holds."""
        import keras

        jax, jnp = self.jax, self.jax.numpy
        network, weights = self._loaded(precision)
        optimizer = keras.optimizers.Adam(self.config.learning_rate)
        self._state = first_state(network, optimizer, weights, jax.random.key(0))
        images = np.random.default_rng(0).uniform(-1, 1, (batch, *network.image_shape)).astype(np.float32)
        images = jnp.asarray(images)
        step = jax.jit(training_step(network, optimizer, self.config), donate_argnums=0)
        self._step, seconds, held = self._compiled(step, precision, self._state, images)
        self._images = images
        return seconds, held

    def train(self, steps):
        """Take steps; returns images."""
        for _ in range(steps):
            self._state, loss = self._step(self._state, self._images)
        if not np.isfinite(float(loss)):
            raise ArithmeticError(f"the loss is {loss}")
        return steps * len(self._images)

    def prepare_sampling(self, precision, batch):
        """Compile the sampler; returns seconds, and the bytes that it holds."""
        network, weights = self._loaded(precision)
        shape = (batch, *network.image_shape)
        sample = self.jax.jit(sampler(network, shape))
        columns = columns_of(self.config, "ddim", 1)
        self._sample, seconds, held = self._compiled(sample, precision, weights, *columns, 0)
        self._weights, self._batch = weights, batch
        return seconds, held

    def sample(self, sampler, steps):
        """Paint a batch; returns images."""
        pictures = self._sample(self._weights, *columns_of(self.config, sampler, steps), steps)
        if not np.isfinite(np.asarray(pictures)).all():
            raise ArithmeticError("a picture is not finite")
        return self._batch

    def _compiled(self, function, precision, *arguments):
        start = time.perf_counter()
        with self._precise(precision):
            program = function.lower(*arguments).compile()
        seconds, plan = time.perf_counter() - start, program.memory_analysis()
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return program, seconds, held + plan.temp_size_in_bytes

    def release(self):
        """Let go of what was prepared."""
        self._step = self._state = self._images = self._sample = self._weights = None


def coefficients_of(config, sampler, steps):
    """Timesteps int32 (rows,), and a, b, c, d and sigma of `kddpm.sampling.step_table`, float32 (5, rows)."""
    from kddpm.sampling import samplers

    table = samplers.step_table(samplers.by_name(sampler), config.noise_schedule, steps, config.objective)
    rows = table.rows
    columns = [table.x0_from_xt, table.x0_from_output, rows.from_x0, rows.from_xt, rows.noise_std]
    return table.timesteps.astype(np.int32), np.stack(columns).astype(np.float32)


def columns_of(config, sampler, steps):
    """Timesteps (TABLE_ROWS,), coefficients (5, TABLE_ROWS) and number of rows of a sampler."""
    timesteps, coefficients = coefficients_of(config, sampler, steps)
    beyond = TABLE_ROWS - len(timesteps)
    return np.pad(timesteps, (0, beyond)), np.pad(coefficients, ((0, 0), (0, beyond))), len(timesteps)


def network_of(config):
    """The network of a `TrainConfig`."""
    from kddpm.networks.unet import UNet

    return UNet((*config.image_size, config.channels), **config.architecture, dtype=config.precision)


def predictor(network):
    """A function of (weights, [x, t] or [x, t, label]) that returns what the network predicts."""
    fixed = [variable.value for variable in network.non_trainable_variables]
    return lambda weights, inputs, **how: network.stateless_call(weights, fixed, inputs, **how)[0]


def first_state(network, optimizer, weights, key):
    """What a training step takes and returns, before the first; `key` is of everything random."""
    from jax import numpy as jnp

    optimizer.build(network.trainable_variables)
    return {
        "weights": weights,
        "averages": [jnp.copy(value) for value in weights],
        "optimizer": [jnp.copy(variable.value) for variable in optimizer.variables],
        "step": jnp.zeros((), jnp.int32),
        "key": key,
    }


def training_step(network, optimizer, config, candidates=1):
    """Algorithm 1 of Ho et al. 2020 for the objective of a configuration: (state, x_0, label) -> state, loss.

    Gradients are clipped by their norm, and weights averaged. An image has the nearest of so many `candidates` of its
    noise. Of the ways to draw t, "importance" is not there.
    """
    import jax
    from jax import numpy as jnp

    from kddpm.theory import objectives, timesteps
    from kddpm.theory.process import GaussianDiffusion

    schedule, kind = config.noise_schedule, config.timestep_sampling
    diffusion, predict, size = GaussianDiffusion(schedule), predictor(network), schedule.num_timesteps
    shares = timesteps.log_normal_probabilities(schedule) if kind == "log_normal" else np.full(size, 1 / size)
    ends = jnp.asarray(np.cumsum(shares)[:-1], jnp.float32)

    def draw_t(key, batch):
        if kind == "uniform":
            return jax.random.randint(key, (batch,), 0, size)
        return jnp.searchsorted(ends, (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1, side="right")

    def draw_noise(key, x_0):
        if candidates == 1:
            return jax.random.normal(key, x_0.shape)
        noises = jax.random.normal(key, (candidates, *x_0.shape))
        nearest = jnp.argmin(jnp.square(noises - x_0).sum((2, 3, 4)), axis=0)
        return noises[nearest, jnp.arange(len(x_0))]

    def step(state, x_0, label=None):
        keys = jax.random.split(jax.random.fold_in(state["key"], state["step"]), 5)
        if config.horizontal_flip:
            x_0 = jnp.where(jax.random.bernoulli(keys[4], shape=(len(x_0), 1, 1, 1)), x_0[:, :, ::-1], x_0)
        t, noise = draw_t(keys[0], len(x_0)), draw_noise(keys[1], x_0)
        seed = jax.random.randint(keys[2], (len(x_0),), 0, 2**31 - 1)
        inputs = [diffusion.q_sample(x_0, t, noise), t]
        if label is not None:
            dropped = jax.random.bernoulli(keys[3], config.label_dropout, label.shape)
            inputs.append(jnp.where(dropped, config.num_classes, label))

        def loss_of(weights):
            output = predict(weights, inputs, training=True, seed=seed)
            return objectives.training_loss(diffusion, *inputs[:2], x_0, noise, output, config.objective).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state["weights"])
        norm = jnp.sqrt(sum(jnp.square(gradient).sum() for gradient in gradients))
        gradients = [gradient * jnp.minimum(1, config.clip_norm / norm) for gradient in gradients]
        weights, moments = optimizer.stateless_apply(state["optimizer"], gradients, state["weights"])
        momentum = jnp.minimum(config.ema_momentum, (1 + state["step"]) / (10 + state["step"]))
        averages = [a + (1 - momentum) * (w - a) for a, w in zip(state["averages"], weights, strict=True)]
        after = {"weights": weights, "averages": averages, "optimizer": moments, "step": state["step"] + 1}
        return after | {"key": state["key"]}, loss

    return step


def sampler(network, shape):
    """Equations (1) and (2) of `kddpm.sampling.step_table` in one loop, from noise to pictures of this shape."""
    import jax
    from jax import numpy as jnp

    predict = predictor(network)

    def sample(weights, timesteps, coefficients, rows, seed, label=None):
        key = jax.random.key(seed)

        def body(index, x):
            a, b, c, d, std = coefficients[:, index]
            inputs = [x, jnp.full(shape[:1], timesteps[index])]
            output = predict(weights, inputs if label is None else [*inputs, label])
            draw = jax.random.fold_in(key, index)
            z = jax.lax.cond(std > 0, lambda: jax.random.normal(draw, shape), lambda: jnp.zeros(shape))
            return c * jnp.clip(a * x + b * output, -1, 1) + d * x + std * z

        return jax.lax.fori_loop(0, rows, body, jax.random.normal(jax.random.fold_in(key, TABLE_ROWS), shape))

    return sample
