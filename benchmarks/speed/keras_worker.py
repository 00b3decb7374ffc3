"""kddpm, and the same network of Keras's own layers, in a process that `contestants.serve` lets others call."""

import time

import contestants
import kernels


class Worker:
    """What the questions measure; `preset` and `overrides` are arguments of `presets.make_config`."""

    def prepare_training(self, preset, overrides, architecture=None):
        """Take the first step of training; returns seconds since the process was started, and its memory.

        Args:
            preset: of the network and its training.
            overrides: fields that differ from it.
            architecture: arguments of the network of `keras_unet`; None = kddpm's network.
        """
        ends, imported = import_all(), contestants.peak_gib()
        config, shape = config_of(preset, overrides)
        if not config.jit_compile:
            divide_batches(config.batch_size)
        self._batch, self._model = config.batch_size, model_of(config, shape, architecture)
        self._batches = _batches(config, shape)
        ends["build"] = contestants.age()
        self._time_the_trace(ends)
        self._model.fit(self._batches, steps_per_epoch=1, verbose=0)
        ends["step"] = contestants.age()
        return {
            "ends": ends, "imported_gib": imported, "parameters": self._model.network.count_params(),
            "precision": self._model.network.compute_dtype, "is_xla": bool(self._model.jit_compile),
        }  # fmt: skip

    def _time_the_trace(self, ends):
        """Note when the training step, which is traced once, is entered for that and left."""
        take_step = self._model.train_step

        def traced(data):
            ends["enter"] = contestants.age()
            logs = take_step(data)
            ends["trace"] = contestants.age()
            return logs

        self._model.train_step = traced

    def train(self, steps):
        """Take steps; returns images/s, without what `fit` does before the first and after the last."""
        return self._fit(self._batches, steps)

    def _fit(self, batches, steps):
        clock = _step_clock()
        self._model.fit(batches, steps_per_epoch=steps + 1, verbose=0, callbacks=[clock])
        return steps * self._batch / (clock.ends[-1] - clock.ends[0])

    def peak_gib(self):
        """Most memory that this process has held."""
        return contestants.peak_gib()

    def prepare_sampling(self, preset, overrides):
        """Build the model, with weights that leave their mark."""
        import_all()
        import network_file
        import numpy as np

        from kddpm.runs import build

        divide_batches(64)  # the pictures that are painted at a time; at batch 1 too an operation then has one thread
        config, shape = config_of(preset, overrides)
        self._model = build.build_model(config, shape)
        network_file.randomise(self._model.ema_network, np.random.default_rng(0))
        self._sampling = {"jit_compile": overrides["jit_compile"]} if "jit_compile" in overrides else {}
        self._alone = None

    def warm_up(self, batch, sampler, num_steps):
        """Compile what `sample` will run, which is another program for each sampler and number of steps."""
        self.sample(batch, batch, sampler, num_steps)

    def sample(self, pictures, batch, sampler, num_steps):
        """Paint; returns pictures/s."""
        start = time.perf_counter()
        self._model.generate(range(pictures), sampler, num_steps, batch_size=batch, verbose=False, **self._sampling)
        return pictures / (time.perf_counter() - start)

    def network_ms(self, batch, calls):
        """Milliseconds of a call of the network alone, called in a loop of the graph as `generate` does."""
        import tensorflow as tf

        from kddpm.networks import fused

        network = self._model.ema_network
        x, t = tf.zeros((batch, *network.image_shape)), tf.zeros((batch,), tf.int32)
        if self._alone is None:

            @tf.function(**self._sampling)
            def alone(x, t):
                for _ in tf.range(calls):
                    with fused.allowed():
                        x = network([x, t])
                return x

            self._alone = alone
            self._alone(x, t)
        start = time.perf_counter()
        self._alone(x, t)
        return (time.perf_counter() - start) / calls * 1e3

    def ceiling(self, precision, seconds):
        """{operator: operations/s}, as in `kernels`."""
        import tensorflow as tf

        dtype = tf.as_dtype(precision)

        def product(side):
            a, b = (tf.cast(tf.random.normal((side, side)), dtype) for _ in range(2))
            return tf.function(lambda: a @ b)

        def operands(batch, side, channels):
            shapes = (batch, side, side, channels), (3, 3, channels, channels)
            return [tf.cast(tf.random.normal(shape), dtype) for shape in shapes]

        def convolution(batch, side, channels):
            x, kernel = operands(batch, side, channels)
            return tf.function(lambda: tf.nn.conv2d(x, kernel, 1, "SAME"))

        def backward(batch, side, channels):
            x, kernel = operands(batch, side, channels)

            def gradients():
                y = tf.nn.conv2d(x, kernel, 1, "SAME")
                return y, tf.gradients(y, [x, kernel])

            return tf.function(gradients)

        return kernels.rates(product, convolution, backward, seconds)

    def write_network(self, path, preset, overrides):
        """Write a file of `network_file`; returns the architecture, arguments of `torch_unet.UNet`."""
        import_all()
        import network_file
        import numpy as np

        from kddpm.runs import build

        config, shape = config_of(preset, overrides)
        network = build.build_model(config, shape).ema_network
        rng = np.random.default_rng(0)
        network_file.randomise(network, rng)
        x, t = network_file.inputs(network, config.num_timesteps, rng)
        network_file.write(path, network, preset, x, t, network.predict([x, t], verbose=0))
        return network_file.read(path).architecture


def import_all():
    """Import what training needs; returns when each was imported, in seconds since the process was started."""
    ends = {"python": contestants.age()}
    import cases  # noqa: F401  # it says where kddpm is

    from kddpm.cli import commands

    commands.start_tensorflow()  # with the settings that train.py gives it
    ends["tensorflow"] = contestants.age()
    from kddpm.runs import training  # noqa: F401

    ends["kddpm"] = contestants.age()
    return ends


def divide_batches(rows):
    """Share batches among the cores, as the scripts do."""
    from kddpm.distribution import cores

    cores.divide_batches(rows)


def config_of(preset, overrides):
    from kddpm.runs import presets

    config = presets.make_config(preset, **overrides)
    return config, (*config.image_size, config.channels)


def model_of(config, shape, architecture=None):
    """A compiled model, as `train.py` makes it, or one around the network of `keras_unet`."""
    import keras

    from kddpm.model.diffusion_model import DiffusionModel
    from kddpm.runs import training

    if architecture is None:
        return training.new_model(config, shape)
    import keras_unet

    network = keras_unet.unet(**architecture, dropout=config.dropout)
    averages = {"ema_momentum": config.ema_momentum, "clip_norm": config.clip_norm}
    model = DiffusionModel(network, config.noise_schedule, **averages)
    model.compile(keras.optimizers.Adam(config.learning_rate), jit_compile=config.jit_compile)
    return model


def _batches(config, shape):
    import numpy as np

    from kddpm import data

    pixels = np.random.default_rng(0).integers(0, 256, (4 * config.batch_size, *shape), np.uint8)
    return data.batches(data.ImageData(pixels, None, (), "random", ""), config.batch_size, seed=0)


def _step_clock():
    import keras

    class StepClock(keras.callbacks.Callback):
        """When each step ended."""

        def __init__(self):
            super().__init__()
            self.ends = []

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())

    return StepClock()


if __name__ == "__main__":
    contestants.serve(Worker())
