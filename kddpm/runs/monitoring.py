"""The quality of a run's pictures while it trains: their Frechet distance, and the weights that had the lowest one.

    frechet.json    the distances with their errors, what they are of, and the step whose weights are in best/
    frechet.png     the distances as a curve
    best/           the averaged weights of that step, as a run directory for sampling, evaluation and export

The averaged weights paint the pictures of the seeds 0, 1, ..., the same at every step: nothing is drawn that training
draws, and pictures at two steps differ by their weights alone. The reference is all images of the run. The lowest of
many noisy numbers is a little too low.
"""

import pathlib
import time
from collections.abc import Iterator

import numpy as np
from tqdm.auto import tqdm

from kddpm import data, plots
from kddpm.base import extras, progress
from kddpm.base.errors import InputError, first_line
from kddpm.base.files import check_output, read_json, replacing, sha256
from kddpm.cli.sampling_flags import parse_sampler
from kddpm.distribution import workers
from kddpm.evaluation import features, metrics, moments
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import generators, weights_files
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import RunDirectory, writing
from kddpm.runs.judging import Judge, Real
from kddpm.runs.results import write_json


class Monitor:
    """Measures the averaged weights of a model that is being trained, and keeps the best. All workers must call it.

    Args:
        run: the run directory; nothing is written to it before a distance is measured.
        model: the model.
        config: the configuration, with `eval_every` > 0.
        source: the images of the run.
        cache: folder for the features of the images.
        verbose: whether to print the distances, and show progress bars.

    Raises:
        InputError: no extractor for such images, or one that cannot be read; too few pictures for its features; a
            sampler that the model does not take; or distances of other pictures are there.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: DiffusionModel,
        config: TrainConfig,
        source: data.ImageData,
        cache: pathlib.Path,
        verbose: bool,
    ):
        self._run, self._model, self._config, self._verbose = run, model, config, verbose
        self._sampler = parse_sampler(config.eval_sampler)
        model.denoiser.steps(*self._sampler)
        shape = source.images.shape[1:]
        extractor = features.load(config.extractor or features.default(config.dataset, {source.digest}, shape), shape)
        _check_number(config, extractor)
        if run.writes:
            check_output("cache_dir", cache / "features", is_folder=True)
        self._settings = {
            "dataset": source.digest,
            "extractor": extractor.sha256,
            **{name: getattr(config, name) for name in ("eval_images", "eval_sampler", "guidance_scale")},
        }
        self._size = min(config.batch_size // config.accumulation, config.eval_images)
        real = Real(source, np.arange(len(source.images)), source, np.arange(0))  # no floor
        self._judge = Judge(["fid"], extractor, real, config.num_classes, (), self._size, cache / "features", verbose)
        self._best_run, self._cache = RunDirectory(run.best_path), cache
        self._rows, self._best = self._read()

    def is_due(self, step: int) -> bool:
        """Return whether the weights after a step are to be measured."""
        return step > 0 and (step % self._config.eval_every == 0 or step == self._config.steps)

    def go_on(self, step: int) -> dict | None:
        """Forget what follows a step, as it will be measured again; measure the step itself where a kill prevented it.

        The best weights stay, as they are there.

        Returns:
            What `measure` returned; None = there was nothing to measure.

        Raises:
            InputError: as in `measure`, or the file of the distances cannot be read.
        """
        rows, self._best = self._read()
        self._rows = [row for row in rows if row["step"] <= step]
        missing = self._run.writes and self.is_due(step) and all(row["step"] != step for row in self._rows)
        return self.measure(step) if workers.total(self._model.distribute_strategy, missing) else None

    def measure(self, step: int) -> dict:
        """Measure the averaged weights after a step, and write what is new.

        Returns:
            The distance: `frechet`, `frechet_standard_error`, `frechet_at_infinity`, with `step` and `num_images`.

        Raises:
            InputError: a file cannot be written.
        """
        begun = time.monotonic()
        with writing(self._cache):
            row = {"step": step, **self._judge.row(self._pictures(), None)}
        self._rows.append(row)
        if is_lowest := self._best is None or row["frechet"] < self._best["frechet"]:
            self._best = row if not self._run.writes else {**row, "weights_sha256": self._keep_weights()}
        if self._run.writes:
            self._write(self._best)
        if self._verbose:
            lowest = f"the lowest is {_shown(self._best)}, of step {self._best['step']}"
            tqdm.write(
                f"Step {step}: Frechet distance {_shown(row)} of {row['num_images']:,} pictures, in "
                f"{time.monotonic() - begun:.1f} s; {'the lowest so far' if is_lowest else lowest}"
            )
        return row

    def last(self) -> str:
        """Return the last distance with its error, as words of a progress line; "" = none yet."""
        return f"Frechet {_shown(self._rows[-1])}" if self._rows else ""

    def _pictures(self) -> Iterator[np.ndarray]:
        count, shown = self._config.eval_images, "auto" if self._verbose else False
        scale = self._config.guidance_scale

        def paint(seeds):
            return self._model.generate(
                seeds, *self._sampler, guidance_scale=scale, batch_size=self._size, verbose=False
            )

        with progress.bar(count, "Measuring pictures", "picture", shown, leave=False) as bar:
            for pictures in generators.in_batches(paint, np.arange(count), self._size):
                bar.update(len(pictures))
                yield pictures

    def _keep_weights(self) -> str:
        """Write best/, and return the digest of its weights."""
        best = self._best_run
        with writing(best.path, RuntimeError):  # which h5py raises on a full disk
            with replacing(best.config_path) as temporary:
                temporary.write_bytes(self._run.config_path.read_bytes())
            weights_files.save(self._model.ema_network, best.weights_path)
            return sha256(best.weights_path)

    def _write(self, best: dict) -> None:
        with writing(self._run.frechet_path):
            write_json(self._run.frechet_path, {"settings": self._settings, "best": best, "rows": self._rows})
        if extras.missing("plots") is None:
            with writing(self._run.frechet_curve_path):
                plots.frechet_curve(self._rows, best, self._run.frechet_curve_path)

    def _read(self) -> tuple[list[dict], dict | None]:
        """Return the rows that are there and the best of them, None = there is none with its weights."""
        path = self._run.frechet_path
        if not path.exists():
            return [], None
        try:
            content = read_json(path)
            other = [name for name, value in self._settings.items() if content["settings"][name] != value]
            rows, best = content["rows"], content["best"]
            for row in [*rows, best]:
                _check_row(row)
            digest = best["weights_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
            raise InputError(f"{path} must hold the Frechet distances of this run: {text}") from None
        if other:
            names = " and ".join(f"{{{name}}}" for name in other)
            raise InputError(
                "run_dir",
                f"has Frechet distances of another {names}, which are no comparison. Measure as before, or move "
                f"{path.name} and {self._best_run.path.name}/ elsewhere, and measuring begins anew",
                self._run.path,
                **dict.fromkeys(other, ...),
            )
        path = self._best_run.weights_path
        return rows, best if path.exists() and sha256(path) == digest else None  # a kill may have come in between


def _check_number(config: TrainConfig, extractor: features.Extractor) -> None:
    """Check that there are pictures enough for the covariance of the features, and for groups with all classes.

    Raises:
        InputError: there are too few.
    """
    if config.eval_images <= extractor.size:
        raise InputError(
            "eval_images",
            f"must be more than the {extractor.size:,} features of {{extractor}} {extractor.name}",
            config.eval_images,
            extractor=...,
        )
    least = 2 * moments.GROUPS * (config.num_classes or 1)
    if config.eval_images < least:
        raise InputError(
            "eval_images",
            f"must be at least {least:,} with {{num_classes}}: two of each class in each group that tells the error",
            config.eval_images,
            num_classes=config.num_classes,
        )


def _check_row(row: dict) -> None:
    """Check that a row of frechet.json is one.

    Raises:
        KeyError, TypeError or ValueError: it is not.
    """
    numbers = {"step": int, "frechet": float, "frechet_standard_error": float}
    if not all(type(row[name]) is kind for name, kind in numbers.items()):
        raise ValueError(f"a row must hold the numbers {', '.join(numbers)}. Received: {row!r:.80}")


def _shown(row: dict) -> metrics.Estimate:
    return metrics.Estimate(row["frechet"], row["frechet_standard_error"])
