"""Data sets of kddpm, and training on them, in a process that `contestants.serve` lets others call."""

import time

import contestants
import keras_worker


class Worker(keras_worker.Worker):
    """What `inputs.py` and `growth.py` measure besides."""

    def load(self, dataset, image_size, is_mapped=False, cache_dir=None, data_dir=None):
        """Load a data set, into a memory map if asked to; returns images/s."""
        keras_worker.import_all()
        from kddpm import data
        from kddpm.data import image_cache

        if is_mapped:
            image_cache.MAX_RAM_BYTES = 0
        start = time.perf_counter()
        self._data = data.load(dataset, image_size, cache_dir=cache_dir, tfds_data_dir=data_dir, progress=False)
        return len(self._data.images) / (time.perf_counter() - start)

    def stream(self, batch, steps):
        """Go through batches in training's order, and do nothing with them; returns images/s."""
        from kddpm import data

        batches = iter(data.batches(self._data, batch, seed=0))
        next(batches)
        start = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return steps * batch / (time.perf_counter() - start)

    def prepare_waiting(self, preset, overrides):
        """Take the first steps on what was loaded, and on one batch of it over and over."""
        from kddpm import data

        config, _ = keras_worker.config_of(preset, overrides)
        self._batch = config.batch_size
        self._model = keras_worker.model_of(config, self._data.images.shape[1:])
        self._batches = data.batches(self._data, self._batch, seed=0)
        self._fixed = self._batches.take(1).cache().repeat()
        return min(self._fit(batches, 3) for batches in (self._batches, self._fixed))

    def waiting(self, steps):
        """Return the share of the time that training waits: what it would save if its batches were there already."""
        return 1 - self._fit(self._batches, steps) / self._fit(self._fixed, steps)

    def prepare_replicas(self, preset, overrides, replicas, images):
        """Take the first step on random images, with that many replicas on the CPU."""
        keras_worker.import_all()
        import numpy as np

        from kddpm import data
        from kddpm.distribution import strategies, workers

        config, shape = keras_worker.config_of(preset, overrides)
        strategy = strategies.make("mirrored" if replicas > 1 else "one", replicas)
        pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), np.uint8)
        self._batch = config.batch_size
        with workers.using(strategy):
            self._model = keras_worker.model_of(config, shape)
            self._batches = data.batches(data.ImageData(pixels, None, (), "random", ""), self._batch, seed=0)
            self._fit(self._batches, 1)

    def bits_seconds(self, preset, overrides, images):
        """Seconds that the bits per dimension of an image take, with all T terms."""
        keras_worker.import_all()
        import numpy as np

        from kddpm.runs import build

        config, shape = keras_worker.config_of(preset, overrides)
        pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), np.uint8)
        return build.build_model(config, shape).bits_per_dim(pixels, verbose=False).seconds_per_image


if __name__ == "__main__":
    contestants.serve(Worker())
