"""Real pictures, and what measures sets of pictures against them: the numbers of a row of `kddpm.runs.quality`."""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kddpm import data
from kddpm.base import progress
from kddpm.base.errors import InputError
from kddpm.distribution import workers
from kddpm.evaluation import classifier, features, metrics, moments
from kddpm.runs.pieces import ROWS, Pieces

DEFAULT_IMAGES = 1000  # generated where no number is given
LEAST_IMAGES = 20  # two for each group of `moments.in_groups`; also of the reference
_MOST_COMPARED = 2**31  # bytes of the reference in which pictures of the floor are looked for
NAMED = 0.9  # a class is named where it is at least this probable
_CAS_STEPS, _CAS_EPOCHS = 1000, 10  # at least so many
_CAS_BATCH = 128  # at most


@dataclasses.dataclass(frozen=True)
class Real:
    """Real pictures: what generated ones are compared with.

    Attributes:
        reference: data whose pictures in `rows` are the reference.
        rows: increasing indices.
        others: data whose pictures in `floor_rows` are the floor; `reference` itself unless there are held-out images.
        floor_rows: increasing indices.
    """

    reference: data.ImageData
    rows: np.ndarray
    others: data.ImageData
    floor_rows: np.ndarray

    @property
    def is_held_out(self) -> bool:
        """Whether the floor is of a data set of its own."""
        return self.others is not self.reference

    @property
    def floor(self) -> np.ndarray:
        """The pictures of the floor, uint8 (n, H, W, C), copied."""
        return self.others.images[self.floor_rows]

    @property
    def known(self) -> int:
        """How many pictures of the floor are in the reference too, or in an even choice of 2 GiB of it."""
        floor = {image.tobytes() for image in self.floor}
        every = math.ceil(self.reference.images.size / _MOST_COMPARED)
        images = (self.reference.images[row].tobytes() for row in self.rows[::every])
        return len({image for image in images if image in floor})

    @property
    def floor_labels(self) -> np.ndarray | None:
        """Their labels, int (n,), None = without labels."""
        return None if self.others.labels is None else self.others.labels[self.floor_rows]


def split(source: data.ImageData, held_out: data.ImageData | None, num_images: int | None, seed: int) -> Real:
    """Choose the reference and the pictures of the floor.

    Args:
        source: the real images.
        held_out: others, for the floor; None = some of `source`.
        num_images: how many pictures are generated; None = up to `DEFAULT_IMAGES`.
        seed: of the choice.

    Raises:
        InputError: too few images, or `held_out` the same as `source`.
    """
    pool = source if held_out is None else held_out
    if held_out is not None and held_out.digest == source.digest:
        raise InputError("held_out", "must be other images than {dataset}", held_out.source, dataset=...)
    most = len(pool.images) // (2 if held_out is None else 1)
    least = LEAST_IMAGES * (2 if held_out is None else 1)  # half of them are the floor
    for name, some in {"dataset": source, "held_out": held_out}.items():
        if some is not None and len(some.images) < least:
            raise InputError(name, f"must have {least} images or more", f"{some.source}, with {len(some.images)}")
    order = np.random.default_rng(seed % 2**32).permutation(len(pool.images))
    chosen = np.sort(order[: min(num_images or DEFAULT_IMAGES, most)])
    rows = np.arange(len(source.images))
    rows = rows if held_out is not None else np.setdiff1d(rows, chosen)
    return Real(source, rows, pool, chosen)


class Judge:
    """Measures sets of pictures.

    Args:
        wanted: metrics, of `kddpm.evaluation.OF_PICTURES`.
        extractor: whose features judge; None if no metric is among `evaluation.OF_EXTRACTORS`.
        real: what pictures are compared with.
        num_classes: of the run, None = it has no classes.
        class_names: of the run.
        batch_size: pictures at a time.
        cache: folder for the features of the reference, which are computed when they are first needed.
        verbose: whether to show progress bars.
        is_mirrored: whether the run was trained on mirror images too, which are copies then.

    Attributes:
        knows_classes: whether the extractor has the classes of the run, so that `accuracy` can be told.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        extractor: features.Extractor | None,
        real: Real,
        num_classes: int | None,
        class_names: Sequence[str],
        batch_size: int,
        cache: pathlib.Path,
        verbose: bool,
        is_mirrored: bool = False,
    ):
        self._wanted, self._real, self._num_classes = set(wanted), real, num_classes or 0
        self._batch_size, self._verbose, self._cache = batch_size, verbose, cache
        if "accuracy" in self._wanted and extractor and not extractor.class_names:
            raise InputError("extractor", "must know classes for accuracy", extractor.name)
        if "cas" in self._wanted and not (num_classes and real.floor_labels is not None):
            raise InputError("metrics", "can be cas only for a run with classes, and images with labels", "cas")
        self._is_mirrored = is_mirrored
        self.knows_classes = bool(num_classes and extractor and extractor.class_names == tuple(class_names))
        self._seen: Any = extractor and _Seen(extractor, batch_size)  # None = no metric asks
        self._balls: dict[int, metrics.Balls] = {}  # around so many pictures of the reference

    @property
    def _keeps_features(self) -> bool:
        return bool(self._wanted & {"kid", "precision_recall"})

    @functools.cached_property
    def _reference(self) -> tuple[Any, Any]:
        """The moments of the reference, and its features, each None if it is not needed."""
        kept: list[np.ndarray] = []

        def stream():
            for found in self._of_reference():
                if self._keeps_features:
                    kept.append(found)
                yield found

        groups = self._groups(stream(), 1)
        return groups and moments.merged(groups), np.concatenate(kept) if kept else None

    def _groups(self, stream: Iterator[np.ndarray], in_turn: int) -> list[moments.Moments] | None:
        """Consume features; return their moments in groups, None if no metric needs them."""
        if "fid" in self._wanted:
            return moments.in_groups(stream, in_turn)
        collections.deque(stream, maxlen=0)
        return None

    @functools.cached_property
    def _frechet(self) -> metrics.FrechetReference:
        return metrics.FrechetReference(self._reference[0])

    @functools.cached_property
    def _kernel(self) -> metrics.KernelReference:
        return metrics.KernelReference(self._reference[1])

    @functools.cached_property
    def _originals(self) -> metrics.Originals:
        real = self._real
        held_out = real.floor if real.is_held_out else None
        return metrics.Originals(real.reference.images, held_out, mirrored=self._is_mirrored)

    def _of_reference(self) -> Iterator[np.ndarray]:
        """Yield the features of the reference, from the cache where it has them."""
        images, rows = self._real.reference.images, self._real.rows
        extractor = self._seen.extractor
        facts = {"digest": self._real.reference.digest, "extractor": extractor.sha256}
        kinds = {"features": ((extractor.size,), "float32")}
        pieces = Pieces(self._cache, facts, kinds, extractor.strategy)
        inside = np.isin(np.arange(len(images)), rows)
        task = "Features of real images"
        with progress.bar(len(images), task, "image", "auto" if self._verbose else False) as bar:
            first = 0
            for piece in pieces.get(len(images), lambda some: {"features": self._seen(images[some])[0]}):
                found = piece["features"]
                chosen = found[inside[first : first + len(found)]].astype(np.float64)
                first += len(found)
                bar.update(len(found))
                yield chosen

    def floor(self, count: int) -> dict:
        """Return the numbers of the real pictures of the floor.

        Args:
            count: number of the pictures that are generated.
        """
        real, labels = self._real, self._real.floor_labels
        # In a data set classes may follow each other in turn, or be sorted: a group must be a random part of it.
        order = np.random.default_rng(0).permutation(len(real.floor_rows))
        parts = (real.others.images[real.floor_rows[order[i : i + ROWS]]] for i in range(0, len(order), ROWS))
        row = self._row(parts, None if labels is None else labels[order])
        if "cas" in self._wanted:
            rows = np.random.default_rng(0).permutation(real.rows)[:count]
            labels = real.reference.labels
            row |= {} if labels is None else self._cas(real.reference.images[rows], labels[rows])
        return row

    def row(self, pieces: Iterator[np.ndarray], labels: np.ndarray | None) -> dict:
        """Return the numbers of generated pictures.

        Args:
            pieces: uint8 (n, H, W, C), one after another.
            labels: of all of them, the classes in turn; None = without classes.
        """
        kept: list[np.ndarray] = []

        def passed():
            for piece in pieces:
                if self._wanted & {"copies", "cas"}:
                    kept.append(piece)
                yield piece

        row = self._row(passed(), labels, self._num_classes or 1)
        if "copies" in self._wanted:
            row |= self._copies(np.concatenate(kept))
        if "cas" in self._wanted:
            count = min(row["num_images"], len(self._real.rows))  # as many as there are for the floor
            row |= self._cas(np.concatenate(kept)[:count], np.asarray(labels)[:count])
        return row

    def _row(self, pieces, labels, in_turn: int = 1) -> dict:
        """Return the numbers that features and probabilities tell; `in_turn` is the number of classes in turn."""
        if not self._seen:
            return {"num_images": sum(map(len, pieces))}
        kept, certain, classes, counts = [], [], [], []

        def stream():
            for piece in pieces:
                counts.append(len(piece))
                found, probabilities = self._seen(piece)
                found = found.astype(np.float64)
                if self._keeps_features:
                    kept.append(found)
                if "accuracy" in self._wanted:
                    certain.append(probabilities.max(axis=1) >= NAMED)
                    classes.append(probabilities.argmax(axis=1))
                yield found

        groups = self._groups(stream(), in_turn)
        row: dict[str, Any] = {"num_images": sum(counts)}
        if groups:
            distance = self._frechet.of_groups(groups)
            row |= _named("frechet", distance) | {"frechet_at_infinity": distance.at_infinity}
        if "kid" in self._wanted:
            row |= _named("kid", self._kernel.distance(np.concatenate(kept)))
        if "precision_recall" in self._wanted:
            row |= self._precision_recall(np.concatenate(kept))
        if "accuracy" in self._wanted:
            found = np.concatenate(classes)
            row |= _named("named", metrics.share(np.concatenate(certain)))
            row |= _named("accuracy", metrics.share(found == labels)) if self.knows_classes else {}
            row["classes"] = np.bincount(found, minlength=len(self._seen.extractor.class_names)).tolist()
        return row

    def _precision_recall(self, found) -> dict:
        """Compare with as many real pictures, or with all there are."""
        count = len(found)
        if count not in self._balls:
            real = self._reference[1]
            chosen = np.random.default_rng(0).permutation(len(real))[:count]
            self._balls[count] = metrics.Balls(real[chosen])
        result = self._balls[count].precision_recall(found)
        return _named("precision", result.precision) | _named("recall", result.recall)

    def _copies(self, pictures) -> dict:
        found = self._originals.copies(pictures)
        row = _named("copies", found.rate) | _named("copies_chance", found.chance)
        return row | {"copies_distance": found.distance}

    def _cas(self, pictures, labels) -> dict:
        """Train a classifier on pictures, and return its accuracy on the real ones of the floor."""
        size = min(_CAS_BATCH, len(pictures))
        epochs = max(_CAS_EPOCHS, math.ceil(_CAS_STEPS / (len(pictures) // size)))
        network = classifier.train(
            pictures, labels, self._num_classes, epochs=epochs, batch_size=size, verbose=self._verbose
        )
        right = classifier.accuracy(network, self._real.floor, np.asarray(self._real.floor_labels))
        error = math.sqrt(right * (1 - right) / len(self._real.floor_rows))
        return _named("cas", metrics.Estimate(right, error))


class _Seen:
    """Pictures as an extractor sees them: from uint8 (N, H, W, C) to features (N, D) and probabilities (N, classes)."""

    def __init__(self, extractor: features.Extractor, batch_size: int):
        self.extractor = extractor
        self._measure, self._size = extractor.features(), batch_size

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self._size
        with workers.using(self.extractor.strategy):
            parts = [self._measure(np.asarray(images[i : i + size])) for i in range(0, len(images), size)]
        found, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return found, probabilities


def _named(name: str, estimate: metrics.Estimate) -> dict:
    return {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
