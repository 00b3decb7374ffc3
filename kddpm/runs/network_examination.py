"""The network of a run and what is asked of it, for `kddpm.runs.doctor`: losses, labels, pictures and copies."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import numpy as np

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.base.files import sha256
from kddpm.evaluation import metrics
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import checkpoints, findings, network_findings, probes, weights_files
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory
from kddpm.runs.findings import Finding
from kddpm.runs.network_findings import Looks
from kddpm.theory import linear_denoiser, parametrization, timesteps

_TIMESTEPS = 12  # t at which losses are measured, evenly from 0 to T - 1
# Labels are tried where noise hides the shapes, and most of what they leave open is decided: at a signal-to-noise ratio
# of 16 for the whole picture, 0.25 a pixel of 8x8. Below the least alpha_bar errors of eps would cover their effect.
_HIDING, _LEAST_SIGNAL = 16, 0.05
_GREY_LEVEL = 1 / 127.5  # noise below it cannot be seen, and bfloat16 and the best denoiser lose it
_SELDOM = 0.02  # times as often as evenly: a t that training draws less often is left out on purpose
_PICTURES, _STEPS, _SAMPLER = 64, 25, "ddim"
_REAL = 1000  # images whose looks are compared with those of the pictures
_COMPARED = 300  # images whose nearest other says how near a copy is
_MOST_SEARCHED = 2**31  # bytes of the images among which copies are looked for
_PAUSE = 1.0  # seconds in which a training that wrote the weights also writes the rest of a checkpoint


class NetworkExamination:
    """The network of a run, and what is asked of it.

    Args:
        run: the run directory.
        model: its model, with the averaged weights.
        config: its configuration.
        source: its images.
        held_out: others, or None.
        num_images: on which losses are measured, at most.
        seed: of their choice, and of the noise.
        steps: of its checkpoints.

    Attributes:
        num_images: on which losses are measured.
        calls: how often an image is looked at.
        steps: of the checkpoints that are there.
        step: of the newest that can be read, whose weights are examined.
        digest: of the file of the averaged weights that were examined.
        table: {name: one value a t}, known after `findings`.
        painted: the pictures, uint8, known after `findings`.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: DiffusionModel,
        config: TrainConfig,
        source: data.ImageData,
        held_out: data.ImageData | None,
        num_images: int,
        seed: int,
        steps: list[int],
    ):
        self._run, self._model, self._config, self._seed, self.steps = run, model, config, seed, steps
        self._source, self._held_out = source, held_out
        self.num_images = min(num_images, *(len(some.images) for some in (source, held_out) if some))
        schedule = config.noise_schedule
        self._timesteps = np.unique(np.linspace(0, schedule.num_timesteps - 1, _TIMESTEPS).round()).astype(np.int32)
        ratio = _HIDING / math.prod(source.images.shape[1:3])
        middle = max(ratio / (1 + ratio), _LEAST_SIGNAL)
        self._middle = int(np.argmin(np.abs(schedule.alpha_bars - middle)))
        self.calls = len(self._timesteps) * self.num_images * (3 if held_out else 2)
        self.step, self.digest, self._about_weights = steps[-1], "", ""
        self._load()
        self._predict = probes.predictions(model.denoiser)
        searched = source.images[:: math.ceil(source.images.size / _MOST_SEARCHED)]
        self._originals = metrics.Originals(searched, mirrored=config.horizontal_flip, most=_COMPARED)
        self.table: dict[str, np.ndarray] = {}
        self.painted = np.empty(0, np.uint8)

    def _load(self) -> None:
        """Load the newest checkpoint that can be read, and the file of the weights that generate, which is to be of it.

        Raises:
            InputError: no checkpoint can be read.
        """
        network, path = self._model.ema_network, self._run.weights_path
        while True:
            steps = self.steps
            averaged = self._load_checkpoint()
            network.set_weights(averaged)
            self._about_weights = ""
            if self.step < steps[-1]:  # the file is of a checkpoint that is gone, and may be whole
                return
            try:
                weights_files.load(network, path)
                own = zip(network.get_weights(), averaged, strict=True)
                is_same = all(np.array_equal(one, other, equal_nan=True) for one, other in own)
                self.digest, self._about_weights = sha256(path), "" if is_same else "others"
            except InputError:
                network.set_weights(averaged)
                self._about_weights = "damaged, or not there"
            if not self._about_weights:
                return
            time.sleep(_PAUSE)  # a training beside this writes the weights before the checkpoint is whole
            self.steps = checkpoints.saved_steps(self._run) or steps
            if self.steps == steps:
                return

    def _load_checkpoint(self) -> list[np.ndarray]:
        """Load the newest checkpoint that can be read, as training would; return its averaged weights."""
        averaged, own = self._model.ema_network.weights, self._model.network.weights
        for step in reversed(self.steps):
            try:
                self.digest, values = checkpoints.weights_of(self._run, self._model, step, [*averaged, *own])
            except InputError:
                if step == self.steps[0]:
                    raise
            else:
                self.step, self._own_weights = step, values[len(averaged) :]
                break
        return values[: len(averaged)]

    def findings(self, done: Callable[[int], object]) -> list[Finding]:
        """Return the findings of the network; `done` is told how many images are done."""
        found = [
            findings.of_checkpoint(self.step, self.steps[-1]),
            findings.of_weights(self._about_weights, is_over=self.step >= self._config.steps),
            *self._of_losses(done),
        ]
        if self._config.variance == "learned":
            terms = probes.bound_terms(self._model.denoiser)
            bounds = probes.bounds_at(terms, *self._chosen(self._source), self._timesteps, self._seed)
            found.append(network_findings.of_learned_variance(bounds))
        real = probes.sample(self._source)
        looks = Looks.of(probes.as_floats(real[:: max(len(real) // _REAL, 1)]))
        if self._config.num_classes:
            found += self._of_labels(self._config.num_classes, math.sqrt(looks.variance))
        self.painted = self._paint()
        found += network_findings.of_pictures(Looks.of(probes.as_floats(self.painted)), looks, self._config)
        found.append(self._of_copies())
        if self._held_out:
            found.append(self._of_gap(self._held_out, done))
        return found

    def _of_losses(self, done) -> list[Finding]:
        """Return the findings of the losses at some t, of the average and of the weights themselves."""
        config, chosen = self._config, self._timesteps
        average = self._errors(self._source, done)
        with self._with_weights(self._own_weights):
            own = self._errors(self._source, done)
        along_axes = probes.variances(config, probes.as_floats(probes.sample(self._source)))
        schedule = config.noise_schedule
        linear = linear_denoiser.losses(schedule, config.prediction, along_axes)[chosen]
        is_judged = np.sqrt(schedule.one_minus_alpha_bars)[chosen] > _GREY_LEVEL
        if config.timestep_sampling == "log_normal":
            drawn = timesteps.log_normal_probabilities(schedule)[chosen]
            is_judged &= drawn * schedule.num_timesteps > _SELDOM
        losses, self._of_images = average.losses.mean(axis=1), average.losses.mean(axis=0)
        errors = average.losses.std(axis=1) / math.sqrt(average.losses.shape[1])
        self.table = {
            "t": chosen,
            "average": losses,
            "average_standard_error": errors,
            "weights": own.losses.mean(axis=1),
            "linear_denoiser": linear,
            "zeros": average.powers,
        }
        return [
            network_findings.of_output(float((average.outputs / average.powers).max()), config),
            network_findings.of_average(float(losses.mean() / own.losses.mean()), config, self.step),
            network_findings.of_losses(chosen, losses, errors, linear, average.powers, is_judged, config),
        ]

    def _of_labels(self, num_classes: int, deviation: float) -> list[Finding]:
        """Return the findings of the labels, for data of this standard deviation."""
        config, t = self._config, self._middle
        x_0, labels = self._chosen(self._source)
        change, share, error = probes.effect_of_labels(self._predict, x_0, labels, num_classes, t, self._seed)
        _, b = parametrization.x0_coefficients(config.noise_schedule, config.prediction)
        change *= abs(b[t]) / max(deviation, _GREY_LEVEL)
        return network_findings.of_labels(change, share, error, config)

    def _of_copies(self) -> Finding:
        """Return the finding of pictures that are copies."""
        found, since = self._originals.copies(self.painted), None
        if network_findings.are_copies(found.rate.value):
            since = self._since(lambda: network_findings.are_copies(self._originals.copies(self._paint()).rate.value))
        return network_findings.of_copies(found.rate.value, found.chance.value, since, self._config)

    def _of_gap(self, held_out: data.ImageData, done) -> Finding:
        """Return the finding of the loss on held-out images."""
        errors = self._errors(held_out, done).losses
        self.table["held_out"] = errors.mean(axis=1)
        losses = self._of_images, errors.mean(axis=0)

        def is_memorising():
            both = (self._errors(some, lambda _: None).losses.mean(axis=0) for some in (self._source, held_out))
            return network_findings.is_memorising(*both)

        since = self._since(is_memorising) if network_findings.is_memorising(*losses) else None
        return network_findings.of_gap(*losses, since, self._config)

    def _since(self, is_so: Callable[[], bool]) -> int:
        """Return the first of the kept checkpoints that can be read at which something is so; it is of the last."""
        first = self.step
        for step in (step for step in reversed(self.steps) if step < self.step):
            try:
                _, weights = checkpoints.averaged_weights(self._run, self._model, step)
            except InputError:  # damaged, or deleted by the training that goes on
                continue
            with self._with_weights(weights):
                if not is_so():
                    break
            first = step
        return first

    def _errors(self, some: data.ImageData, done) -> probes.Errors:
        return probes.errors_at(self._predict, *self._chosen(some), self._timesteps, self._seed, done)

    def _chosen(self, some: data.ImageData) -> tuple[np.ndarray, np.ndarray]:
        """Return the images x_0 on which losses are measured, and their labels."""
        order = np.random.default_rng(self._seed % 2**32).permutation(len(some.images))
        rows = np.sort(order[: self.num_images])
        labels = np.zeros(len(rows), np.int32) if some.labels is None else some.labels[rows]
        return probes.as_floats(some.images[rows]), labels.astype(np.int32)

    def _paint(self) -> np.ndarray:
        """Return pictures with the guidance of the run, of the classes as often as the data have them."""
        steps, labels = min(_STEPS, self._config.num_timesteps), None
        if self._config.num_classes and (known := self._source.labels) is not None:
            labels = np.sort(known)[np.linspace(0, len(known) - 1, _PICTURES).round().astype(int)]
        pictures = self._model.generate(
            range(_PICTURES), _SAMPLER, steps, labels=labels, guidance_scale=self._config.guidance_scale, verbose=False
        )
        return np.asarray(pictures)

    @contextlib.contextmanager
    def _with_weights(self, weights: list[np.ndarray]) -> Iterator[None]:
        """Give the network that generates other weights within the block."""
        network = self._model.ema_network
        own = network.get_weights()
        network.set_weights(weights)
        try:
            yield
        finally:
            network.set_weights(own)
