"""Generate pictures with a trained run, or edit pictures with it.

    python sample.py --run_dir=runs/digits --seeds=0-63 --out=grid.png
    python sample.py --run_dir=runs/photos --variations=photo.jpg --strength=0.5 --seeds=0-7
    python sample.py --run_dir=runs/photos --inpaint=photo.jpg --mask=mask.png
    python sample.py --run_dir=runs/photos --interpolate=a.jpg,b.jpg --out=way.gif
    python sample.py --run_dir=runs/photos --seeds=0-7 --frames_of=x0 --frames=8 --out=guesses.png
    python sample.py --run_dir=runs/photos --seeds=0-7 --shared_until=500 --out=sisters.png

--out chooses the form: .png a grid, or with --frames a filmstrip, a row a picture from noise to the end; .gif the
same as an animation, or the way of --interpolate, to and fro; .npz the raw `images`, `seeds` and, with classes,
`labels`, a data set for train.py; anything without a suffix a folder with one PNG a seed. What is edited is cropped
around its centre and resized to what the run paints.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from kddpm.base.files import check_output, expand
from kddpm.cli import commands, picture_files, sampling_flags
from kddpm.data.labels import of_seeds
from kddpm.runs import directory
from kddpm.runs.config import TrainConfig
from kddpm.sampling import samplers

if TYPE_CHECKING:
    from kddpm.model.diffusion_model import DiffusionModel

FLAGS = flags.FLAGS

_STAGES = 60  # default number of stages of an animation


@dataclasses.dataclass(frozen=True)
class Order:
    """The request of the flags, checked before TensorFlow starts.

    Attributes:
        out: path of the pictures.
        seeds: one a picture.
        labels: labels passed to the model; None = its default, or no classes.
        painted: the labels that the pictures get; None for a model without classes.
        sampler: the sampler.
        photos: the pictures to edit; empty when generating.
        mask: mask of --inpaint, True = keep.
    """

    out: pathlib.Path
    seeds: Sequence[int]
    labels: Sequence[int] | None
    painted: Sequence[int] | None
    sampler: samplers.Sampler
    photos: picture_files.Photos
    mask: np.ndarray | None


Stages = np.ndarray | None
Painted = tuple[np.ndarray, Stages]  # the pictures, and their stages if requested


def _generate(model: "DiffusionModel", order: Order, common: dict) -> Painted:
    if FLAGS.shared_until is not None:
        return model.shared_until(order.seeds, FLAGS.shared_until, **common), None
    stages = sampling_flags.frames() or (_STAGES if order.out.suffix.lower() == ".gif" else None)
    way = {} if stages is None else {"return_trajectory": FLAGS.frames_of, "frames": stages}
    painted = model.generate(order.seeds, **common, **way)
    return painted if isinstance(painted, tuple) else (painted, None)


def _variations(model: "DiffusionModel", order: Order, common: dict) -> Painted:
    return model.variations(order.photos.for_seeds, FLAGS.strength, order.seeds, **common), None


def _inpaint(model: "DiffusionModel", order: Order, common: dict) -> Painted:
    jumps = {"jump_length": FLAGS.jump_length, "resamplings": FLAGS.resamplings}
    return model.inpaint(order.photos.for_seeds, order.mask, order.seeds, **jumps, **common), None


def _interpolate(model: "DiffusionModel", order: Order, common: dict) -> Painted:
    first, last = order.photos.images
    if FLAGS.interpolate_t is not None:
        common |= {"t": FLAGS.interpolate_t, "seed": order.seeds[0]}
    else:
        common = {name: value for name, value in common.items() if name not in ("sampler", "guidance_scale")}
    return model.interpolate(first, last, FLAGS.count, **common), None


def _save(order: Order, pictures: np.ndarray, frames: Stages) -> None:
    picture_files.save(order.out, pictures, order.seeds, order.painted, frames, FLAGS.columns)


def _save_way(order: Order, pictures: np.ndarray, frames: Stages) -> None:
    picture_files.save_way(order.out, pictures, FLAGS.columns)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to make pictures: generation or an edit.

    Attributes:
        paint: calls the model's method.
        save: writes its result.
    """

    paint: Callable[["DiffusionModel", Order, dict], Painted]
    save: Callable[[Order, np.ndarray, Stages], None] = _save


KINDS = {
    None: Kind(_generate),
    "variations": Kind(_variations),
    "inpaint": Kind(_inpaint),
    "interpolate": Kind(_interpolate, _save_way),
}


def define_flags() -> None:
    """Define the flags of pictures, samplers and edits."""
    flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
    flags.DEFINE_string(
        "seeds",
        None,
        "one picture a seed: 0-7, or 1,5,10-20; if not given 0-63, and of edits 0-7 for one picture, or one for each",
    )
    flags.DEFINE_string(
        "labels", None, "classes, one a seed or one for all; if not given seed modulo classes, but edits need them"
    )
    flags.DEFINE_string("out", "grid.png", "NAME.png, NAME.gif, NAME.npz or a folder")
    flags.DEFINE_integer("batch_size", 64, "pictures in memory at a time")
    sampling_flags.define_weights_flags()
    sampling_flags.define_frame_flags()
    flags.DEFINE_integer("columns", None, "pictures a row of a grid; as square as possible if not given")
    sampling_flags.define_sampler_flags(sampler="the run's", num_steps="the run's")
    sampling_flags.define_edit_flags()
    commands.define_strategy_flags()
    for module in (commands, sampling_flags):
        flags.adopt_module_key_flags(module)  # so that --help shows them


def sample() -> None:
    """Call the method of `DiffusionModel` that the flags choose, and write its pictures."""
    run_dir = commands.needed("run_dir", "the directory of a run of train.py")
    edit = sampling_flags.chosen_edit()
    out = pathlib.Path(expand(FLAGS.out))
    commands.check_least(columns=1, batch_size=1)
    sampling_flags.check_form(out, edit)
    seeds = commands.parse_numbers("seeds", FLAGS.seeds or "0-63")
    config, trained_on = directory.RunDirectory(run_dir).read()
    order = _order(edit, out, seeds, config, trained_on["image_shape"])
    strategy = commands.start_strategy(
        min(FLAGS.count if edit == "interpolate" else len(order.seeds), FLAGS.batch_size)
    )

    from kddpm.distribution import workers
    from kddpm.runs import build

    kind = KINDS[edit]
    common = _common_options(order, config) | {"verbose": "auto" if workers.is_chief(strategy) else False}
    with workers.using(strategy):
        with workers.all_or_none(strategy):
            model = build.load_run(run_dir, FLAGS.ema_length)
        pictures, frames = kind.paint(model, order, common)
    if not workers.is_chief(strategy):
        return
    kind.save(order, pictures, frames)
    print(f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''} in {out}")


def _order(
    edit: str | None, out: pathlib.Path, seeds: list[int], config: TrainConfig, image_shape: tuple[int, int, int]
) -> Order:
    """Return the request of the flags, checked against the run; print how the pictures to edit were fitted."""
    sampling_flags.check_num_steps(config.num_timesteps)
    sampling_flags.check_levels(config.num_timesteps)
    name = FLAGS.sampler or config.sampler
    sampler = samplers.by_name(name, **sampling_flags.sampler_options(name, edit))
    photos, mask = picture_files.Photos(np.empty((0, *image_shape), np.uint8), [], []), None
    if edit:
        photos, mask = picture_files.read_inputs(edit, FLAGS[edit].value, FLAGS.mask, image_shape)
        print("\n".join(photos.notes), end="\n" if photos.notes else "")
        seeds = sampling_flags.seeds_of_photos(seeds if FLAGS.seeds else None, len(photos.images), edit)
    labels = sampling_flags.parse_labels(FLAGS.labels, len(seeds), needed=bool(edit and config.num_classes))
    painted = labels
    if config.num_classes and not labels:
        painted = of_seeds(seeds, config.num_classes).tolist()
    picture_files.check_names(out, seeds, painted)
    check_output("out", out, is_folder=not out.suffix)
    return Order(out, seeds, labels, painted, sampler, photos, mask)


def _common_options(order: Order, config: TrainConfig) -> dict:
    """Return the arguments common to all kinds."""
    return {
        "num_steps": config.sampling_steps if FLAGS.num_steps is None else FLAGS.num_steps,
        "labels": order.labels,
        "batch_size": FLAGS.batch_size,
        "sampler": order.sampler,
        "guidance_scale": config.guidance_scale if FLAGS.guidance_scale is None else FLAGS.guidance_scale,
    }


def main() -> None:
    """Run the command `kddpm-sample`, which is also sample.py."""
    define_flags()
    commands.run(sample)
