"""kddpm's network under Keras's JAX backend: a training step and a sampler as one XLA program each."""

import os
import time

import numpy as np

TABLE_ROWS = 250  # of the longest sampler that is measured; shorter ones fit the same program


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
        os.environ["KERAS_BACKEND"] = "jax"
        os.environ["JAX_PLATFORMS"] = "cuda" if device == "gpu" else "cpu"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other program needs memory too
        import jax

        self.jax, self.path, self.preset, self.config = jax, path, preset, config_of(preset)
        self.name = f"kddpm, JAX {jax.__version__}"
        self.device = jax.devices()[0].device_kind
        self._step = self._state = self._sample = None

    def _network(self, precision):
        from kddpm.networks.unet import UNet

        config = self.config
        return UNet(
            (*config.image_size, config.channels),
            width=config.width,
            multipliers=config.multipliers,
            blocks_per_level=config.blocks_per_level,
            attention_resolutions=config.attention_resolutions,
            dropout=config.dropout,
            dtype="mixed_bfloat16" if precision == "bfloat16" else "float32",
        )

    def _loaded(self, precision):
        """The network of a precision and its weights as a list of arrays on the device."""
        import network_file

        network, file = self._network(precision), network_file.read(self.path)
        weights = [file.weights[v.path.split("/", 1)[1]] for v in network.trainable_variables]
        return network, [self.jax.numpy.asarray(value) for value in weights]

    def _precise(self, precision):
        """Products of float32 in full, where XLA may otherwise take TF32 or less."""
        return self.jax.default_matmul_precision("highest" if precision == "float32" else "default")

    def write(self):
        """Write the file: random weights, inputs and eps in float32."""
        import network_file

        network, rng = self._network("float32"), np.random.default_rng(0)
        network_file.randomise(network, rng)
        x, t = network_file.inputs(network, self.config.num_timesteps, rng)
        weights = [variable.value for variable in network.trainable_variables]
        with self._precise("float32"):
            eps = self.jax.jit(_predictor(network))(weights, x, t)
        network_file.write(self.path, network, self.preset, x, t, np.asarray(eps))

    def eps(self, precision):
        """What the network makes of the inputs in the file, float32 (B, H, W, C)."""
        import network_file

        file = network_file.read(self.path)
        network, weights = self._loaded(precision)
        with self._precise(precision):
            return np.asarray(self.jax.jit(_predictor(network))(weights, file.x, file.t))

    def prepare_training(self, precision, batch):
        """Compile the training step; returns seconds, and the bytes that it holds."""
        import keras

        jax, jnp = self.jax, self.jax.numpy
        network, weights = self._loaded(precision)
        optimizer = keras.optimizers.Adam(self.config.learning_rate, global_clipnorm=self.config.clip_norm)
        optimizer.build(network.trainable_variables)
        self._state = {
            "weights": weights,
            "averages": [jnp.copy(value) for value in weights],
            "optimizer": [jnp.copy(variable.value) for variable in optimizer.variables],
            "step": jnp.zeros((), jnp.int32),
        }
        images = np.random.default_rng(0).uniform(-1, 1, (batch, *network.image_shape)).astype(np.float32)
        images = jnp.asarray(images)
        step = jax.jit(_training_step(network, optimizer, self.config), donate_argnums=0)
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
        sample = self.jax.jit(_sampler(network, shape))
        columns = self._columns("ddim", 1)
        self._sample, seconds, held = self._compiled(sample, precision, weights, *columns, 0)
        self._weights, self._batch = weights, batch
        return seconds, held

    def sample(self, sampler, steps):
        """Paint a batch; returns images."""
        pictures = self._sample(self._weights, *self._columns(sampler, steps), steps)
        if not np.isfinite(np.asarray(pictures)).all():
            raise ArithmeticError("a picture is not finite")
        return self._batch

    def _columns(self, sampler, steps):
        """Timesteps (TABLE_ROWS,), coefficients (5, TABLE_ROWS) and number of rows of a sampler."""
        timesteps, coefficients = coefficients_of(self.config, sampler, steps)
        beyond = TABLE_ROWS - len(timesteps)
        return np.pad(timesteps, (0, beyond)), np.pad(coefficients, ((0, 0), (0, beyond))), len(timesteps)

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


def config_of(preset):
    """The `TrainConfig` of a preset; a preset without a data set needs none here."""
    from kddpm.runs import presets

    needed = {} if "dataset" in presets.PRESETS[preset] else {"dataset": "none"}
    return presets.make_config(preset, **needed)


def coefficients_of(config, sampler, steps):
    """Timesteps int32 (rows,), and a, b, c, d and sigma of `kddpm.sampling.step_table`, float32 (5, rows)."""
    from kddpm.sampling import samplers

    table = samplers.step_table(samplers.by_name(sampler), config.noise_schedule, steps, config.objective)
    rows = table.rows
    columns = [table.x0_from_xt, table.x0_from_output, rows.from_x0, rows.from_xt, rows.noise_std]
    return table.timesteps.astype(np.int32), np.stack(columns).astype(np.float32)


def _predictor(network):
    """A function of (weights, x, t) that returns eps."""
    fixed = [variable.value for variable in network.non_trainable_variables]
    return lambda weights, x, t, **how: network.stateless_call(weights, fixed, [x, t], **how)[0]


def _training_step(network, optimizer, config):
    """Algorithm 1 of Ho et al. 2020 with clipped gradients, Adam and averaged weights: (state, x_0) -> state, loss."""
    import jax
    from jax import numpy as jnp

    from kddpm.theory.process import GaussianDiffusion

    diffusion, predict = GaussianDiffusion(config.noise_schedule), _predictor(network)

    def step(state, x_0):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state["step"]), 3)
        t = jax.random.randint(keys[0], x_0.shape[:1], 0, config.num_timesteps)
        noise = jax.random.normal(keys[1], x_0.shape)
        seed = jax.random.randint(keys[2], x_0.shape[:1], 0, 2**31 - 1)
        x_t = diffusion.q_sample(x_0, t, noise)

        def loss_of(weights):
            return jnp.mean(jnp.square(predict(weights, x_t, t, training=True, seed=seed) - noise))

        loss, gradients = jax.value_and_grad(loss_of)(state["weights"])
        weights, moments = optimizer.stateless_apply(state["optimizer"], gradients, state["weights"])
        momentum = jnp.minimum(config.ema_momentum, (1 + state["step"]) / (10 + state["step"]))
        averages = [a + (1 - momentum) * (w - a) for a, w in zip(state["averages"], weights, strict=True)]
        after = {"weights": weights, "averages": averages, "optimizer": moments, "step": state["step"] + 1}
        return after, loss

    return step


def _sampler(network, shape):
    """Equations (1) and (2) of `kddpm.sampling.step_table` in one loop, from noise to pictures of this shape."""
    import jax
    from jax import numpy as jnp

    predict = _predictor(network)

    def sample(weights, timesteps, coefficients, rows, seed):
        key = jax.random.key(seed)

        def body(index, x):
            a, b, c, d, std = coefficients[:, index]
            output = predict(weights, x, jnp.full(shape[:1], timesteps[index]))
            draw = jax.random.fold_in(key, index)
            z = jax.lax.cond(std > 0, lambda: jax.random.normal(draw, shape), lambda: jnp.zeros(shape))
            return c * jnp.clip(a * x + b * output, -1, 1) + d * x + std * z

        return jax.lax.fori_loop(0, rows, body, jax.random.normal(jax.random.fold_in(key, TABLE_ROWS), shape))

    return sample
