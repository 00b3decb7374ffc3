"""Measures generated pictures against real ones: a row of numbers for each way of generating, one for real pictures.

    quality.json     the rows, what they were compared with and by whom; null = not a number
    quality.png      the same as a figure

Generated pictures are kept in evaluation/pictures of the run, so that what was interrupted goes on and other metrics
need not paint them again (`kddpm.runs.pieces`).

The real pictures of the first row are none of the reference: those of `held_out`, else some of the reference's own,
which it then lacks. That row is the floor: what perfect pictures would get, and a little less if the run and the
extractor were trained on its pictures. Figures of different numbers of pictures,
references or extractors are no comparison.
"""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kddpm import data, plots
from kddpm.base import arguments, extras, progress
from kddpm.base.errors import InputError
from kddpm.base.files import check_output, read_json
from kddpm.cli.sampling_flags import parse_sampler
from kddpm.data import labels
from kddpm.distribution import workers
from kddpm.evaluation import OF_EXTRACTORS, features, metrics
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.runs import checkpoints, generators, pieces
from kddpm.runs.directory import RunDirectory
from kddpm.runs.generators import Generator
from kddpm.runs.judging import LEAST_IMAGES, NAMED, Judge, Real, split
from kddpm.runs.results import write_json

# Results that differ in one of these answer different questions.
QUESTION = (
    "weights_sha256", "digest", "seed", "metrics", "num_images", "samplers", "guidance_scales", "checkpoints",
    "models", "held_out", "extractor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to measure of which pictures; the arguments of `kddpm.runs.evaluate.evaluate` under these names."""

    metrics: Sequence[str]
    num_images: int | None
    samplers: Sequence[str]
    checkpoints: str | Sequence[int]
    ema_lengths: Sequence[float]
    guidance_scales: Sequence[float]
    models: Sequence[str | os.PathLike]
    extractor: str | os.PathLike | None


class Quality:
    """The quality of a run's pictures: all is checked when it is made, and measured when it is called, once.

    Args:
        run: the run directory.
        model: its model.
        source: the real images.
        held_out: others, or None.
        wanted: what to measure.
        facts: what results say of the run and its images.
        cache: folder for the features of real images.
        say: called with lines for the user.
        verbose: whether to show progress bars.

    Attributes:
        facts: what quality.json says besides its rows.

    Raises:
        InputError: an argument in `wanted` that cannot be used.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: DiffusionModel,
        source: data.ImageData,
        held_out: data.ImageData | None,
        wanted: Wanted,
        facts: dict,
        cache: pathlib.Path,
        say: Callable[[str], None],
        verbose: bool,
    ):
        self._say, self._verbose, self._strategy = say, verbose, model.denoiser.strategy
        self._config, trained_on = run.read()
        self._shape = tuple(trained_on["image_shape"])
        if wanted.num_images is not None:
            arguments.count("num_images", wanted.num_images, LEAST_IMAGES)
            arguments.int32("num_images", [wanted.num_images])  # so do their seeds
        if "copies" in wanted.metrics and not facts["trained_on_these"]:
            expected = "must be what the run was trained on, for copies; others can be {held_out}"
            raise InputError("dataset", expected, source.source, held_out=...)
        self._extractor = None
        if set(OF_EXTRACTORS) & set(wanted.metrics):
            digests = {source.digest, trained_on["digest"]}
            name = wanted.extractor or features.default(source.source, digests, self._shape)
            self._extractor = features.load(name, self._shape)
        self._real = split(source, held_out, wanted.num_images, facts["seed"])
        self._count = wanted.num_images or len(self._real.floor_rows)
        self._steps = _steps(run, wanted.checkpoints)
        size, classes = facts["batch_size"], self._config.num_classes
        files = [generators.of_file(path, self._shape, classes) for path in wanted.models]
        of_weights = self._steps, wanted.ema_lengths
        ways = [parse_sampler(text) for text in wanted.samplers]
        ways = ways or [(self._config.sampler, self._config.sampling_steps)]
        scales = [float(scale) for scale in wanted.guidance_scales] or [self._config.guidance_scale]
        guided = [(*way, scale) for way in ways for scale in scales]
        of_run = generators.of_run(run, self._config, model, facts["weights_sha256"], guided, *of_weights, size)
        self._generators = itertools.chain(of_run, files)
        self._class_names = trained_on["class_names"][:classes]
        of_classes, place = (classes, self._class_names), cache / "features"
        mirrored = self._config.horizontal_flip
        self._judge = Judge(wanted.metrics, self._extractor, self._real, *of_classes, size, place, verbose, mirrored)
        self._pictures = run.evaluation_path / "pictures"
        if workers.is_chief(self._strategy):  # it alone writes
            check_output("run_dir", self._pictures, is_folder=True)
            if self._extractor:
                check_output("cache_dir", place, is_folder=True)
        self.facts = {
            **{key: facts[key] for key in ("kddpm", "run_dir", "weights_sha256", "dataset", "digest")},
            "trained_on_these": facts["trained_on_these"],
            "seed": facts["seed"],
            "batch_size": size,
            "metrics": list(wanted.metrics),
            "num_images": self._count,
            "samplers": [f"{name}:{count or self._config.num_timesteps}" for name, count in ways],
            "guidance_scales": scales,
            "checkpoints": self._steps,
            "ema_lengths": [float(length) for length in wanted.ema_lengths] or None,
            "models": [file.facts["model_sha256"] for file in files],
            "held_out": held_out and held_out.digest,
            "reference_images": len(self._real.rows),
            "extractor": self._extractor and self._extractor.describe(),
        }
        for line in self._reservations(source, held_out):
            say(line)

    def __call__(self, bits: dict[str, dict], out: pathlib.Path | None) -> dict:
        """Measure, print each row and a table, and write the result after each row that an earlier result lacks.

        Args:
            bits: results of other metrics, of which bits_per_dim joins the rows of the run's own weights.
            out: folder for the result; None = this worker writes nothing.

        Returns:
            The content of quality.json.
        """
        rows: list[dict] = []
        content = {**self.facts, "rows": rows}
        earlier = _rows_in(out / "quality.json") if out else 0
        for row in self._rows(bits):
            rows.append(row)
            self._say(_line(row))
            if out and len(rows) >= earlier:
                write_json(out / "quality.json", content)
        if out and len(rows) < earlier:
            write_json(out / "quality.json", content)
        self._say("\n".join([_heading(self._extractor, self._real), *table(rows)]))
        need = extras.missing("plots")
        if out:
            if need is None:
                plots.quality(rows, COLUMNS, out / "quality.png")
            self._say(f"quality.json {f'(the figure {need})' if need else 'and quality.png'} in {out}")
        return content

    def _reservations(self, source, held_out) -> Iterator[str]:
        """Yield lines about what the table will lack, or what is less comparable than it looks."""
        wanted, count = self.facts["metrics"], self._count
        others = [] if self.facts["trained_on_these"] else [source]
        for some in filter(None, [*others, held_out]):
            if some.changes:
                yield f"Images of {some.source}: {some.changes}"
        if others and source.source == self._config.dataset:
            yield f"The images of {source.source} are no longer those that the run was trained on"
        if "fid" in wanted and (there := len(self._real.floor_rows)) < count:
            yield (
                f"The floor's Frechet distance is of {there:,} pictures, not of {count:,}, and larger for that: give "
                f"a larger --held_out, or --num_images={there}"
            )
        if held_out and (seen := self._real.known):
            yield (
                f"{seen:,} of the {len(self._real.floor_rows):,} held-out pictures are in the reference as well: "
                "the floor, and copies by chance, are not of pictures never seen"
            )
        if "fid" in wanted and self._extractor and count <= self._extractor.size:
            yield (
                f"The Frechet distance is of {count:,} pictures with {self._extractor.size:,} features each, and says "
                "little: give a larger --num_images"
            )
        if "precision_recall" in wanted and (there := len(self._real.rows)) < count:
            yield f"Precision and recall compare {count:,} pictures with {there:,} real ones: there are no more"
        if "precision_recall" in wanted and (there := len(self._real.floor_rows)) < count:
            yield f"The floor's precision and recall are of {there:,} pictures, not of {count:,}"
        classes, extractor = self._config.num_classes, self._extractor
        if "accuracy" in wanted and classes and extractor and not self._judge.knows_classes:
            own, known = labels.shown(self._class_names), labels.shown(extractor.class_names)
            yield f"No accuracy: the classes of the run are {own}, those of the extractor {known}"

    def _rows(self, bits) -> Iterator[dict]:
        yield {"name": "real pictures, the floor", **self._judge.floor(self._count)}
        classes = self._config.num_classes
        in_turn = np.arange(self._count) % classes if classes else None
        for generator in self._generators:
            row = {"name": generator.name, **generator.facts}
            row |= self._judge.row(self._painted(generator), in_turn)
            if row.get("weights_sha256") == self.facts["weights_sha256"] and "bits_per_dim" in bits:
                row["bits_per_dim"] = bits["bits_per_dim"]["total"]
                row["bits_per_dim_standard_error"] = bits["bits_per_dim"]["standard_error"]
            yield row

    def _painted(self, generator: Generator) -> Iterator[np.ndarray]:
        """Yield the pictures of seeds from 0, uint8 (n, H, W, C); what was painted before is not painted again."""
        count = self._count
        size = min(self.facts["batch_size"], count, pieces.ROWS)
        kinds = {"pictures": (self._shape, "uint8")}
        kept = pieces.Pieces(self._pictures, generator.facts, kinds, self._strategy)
        with progress.bar(count, f"Pictures: {generator.name}", "picture", self._verbose) as bar:

            def make(rows):
                parts = []
                for pictures in generators.in_batches(generator.paint, rows, size):
                    parts.append(pictures)
                    bar.update(len(pictures))
                return {"pictures": np.concatenate(parts)}

            done = 0
            for piece in kept.get(count, make):
                done += len(piece["pictures"])
                bar.update(done - bar.n)  # what was kept
                yield piece["pictures"]


def _rows_in(path: pathlib.Path) -> int:
    """Return how many rows a result has, 0 = it is not there, or no result."""
    try:
        return len(read_json(path)["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _steps(run: RunDirectory, chosen: str | Sequence[int]) -> list[int] | None:
    """Return the steps of the checkpoints that are wanted, None = the run's own weights."""
    if len(chosen) == 0:
        return None
    there = checkpoints.saved_steps(run)
    if chosen == "all" and there:
        return there
    received: object = chosen
    if not isinstance(chosen, str):
        wanted = sorted(set(arguments.counts("checkpoints", chosen)))
        if not (missing := [step for step in wanted if step not in there]):
            return wanted
        received = f"{', '.join(map(str, missing[:3]))}{' ...' if len(missing) > 3 else ''}"
    raise InputError("checkpoints", f"must be all, or among {', '.join(map(str, there)) or 'none'}", received)


# {key of a row: (heading, factor)}
COLUMNS = {
    "bits_per_dim": ("bits/dim", 1),
    "frechet": ("Frechet", 1), "frechet_at_infinity": ("at infinity", 1), "kid": ("KID x 1000", 1000),
    "precision": ("precision %", 100), "recall": ("recall %", 100), "named": (f"named % (p >= {NAMED})", 100),
    "accuracy": ("accuracy %", 100), "cas": ("CAS %", 100), "copies": ("copies %", 100),
    "copies_chance": ("by chance %", 100),
}  # fmt: skip


def table(rows: Sequence[dict]) -> Iterator[str]:
    """Yield the lines of a table of rows, with the columns that any of them has."""
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [["", "pictures", *(COLUMNS[key][0] for key in columns)]]
    for row in rows:
        cells.append([row["name"], f"{row['num_images']:,}", *(_cell(row, key) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *others = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        yield f"  {'  '.join([first, *others])}"


def _line(row) -> str:
    """Return a row as a line of its own."""
    return f"{row['name']}: {', '.join(f'{COLUMNS[key][0]} {_cell(row, key)}' for key in COLUMNS if key in row)}"


def _cell(row, key) -> str:
    if math.isnan(row.get(key, math.nan)):
        return "-"
    factor = COLUMNS[key][1]
    return str(metrics.Estimate(factor * row[key], factor * row.get(f"{key}_standard_error", math.nan)))


def _heading(extractor: features.Extractor | None, real: Real) -> str:
    """Return a line that says by what and against what pictures were judged."""
    reference = f"{len(real.rows):,} of {len(real.reference.images):,} images of {real.reference.source}"
    if extractor is None:
        return f"Reference: {reference}"
    known = "" if extractor.accuracy is None else f", which names {100 * extractor.accuracy:.1f} % of real images right"
    return f"Features of {extractor.kind} {extractor.name}{known}; reference: {reference}"
