"""Generate pictures with a trained run, or edit pictures with it.

    python sample.py --run_dir=runs/digits --seeds=0-63 --out=grid.png
    python sample.py --run_dir=runs/photos --variations=photo.jpg --strength=0.5 --seeds=0-7
    python sample.py --run_dir=runs/photos --inpaint=photo.jpg --mask=mask.png
    python sample.py --run_dir=runs/photos --interpolate=a.jpg,b.jpg --out=way.gif

--out chooses the form: .png a grid, or with --frames a filmstrip, a row a picture from noise to the end; .gif the
same as an animation, or the way of --interpolate, to and fro; .npz the raw `images`, `seeds` and, with classes,
`labels`, a data set for train.py; anything without a suffix a folder with one PNG a seed. What is edited is cropped
around its centre and resized to what the run paints.
"""

import pathlib

from absl import flags

from kddpm.base.files import check_output
from kddpm.cli import commands, picture_files, sampling_flags
from kddpm.runs import directory

RUN_DIR = flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
SEEDS = flags.DEFINE_string(
    "seeds", None, "one picture a seed: 0-7, or 1,5,10-20; 0-63 if not given, of one edited picture 0-7, else one each"
)
LABELS = flags.DEFINE_string(
    "labels", None, "classes, one a seed or one for all; if not given seed modulo classes, but edits need them"
)
OUT = flags.DEFINE_string("out", "grid.png", "NAME.png, NAME.gif, NAME.npz or a folder")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "pictures in memory at a time")
FRAMES = flags.DEFINE_integer("frames", None, "stages from noise to picture, for .png (a filmstrip) and .gif (60)")
COLUMNS = flags.DEFINE_integer("columns", None, "pictures a row of a grid; as square as possible if not given")

sampling_flags.define_sampler_flags(sampler="the run's", num_steps="the run's")
sampling_flags.define_edit_flags()
commands.define_strategy_flags()
for module in (commands, sampling_flags):
    flags.adopt_module_key_flags(module)  # so that --help shows them
FLAGS = flags.FLAGS


def main():
    """Flags to a method of `DiffusionModel`, its pictures to a file."""
    run_dir = commands.needed("run_dir", "the directory of a run of train.py")
    edit = sampling_flags.chosen_edit()
    out = pathlib.Path(OUT.value)
    commands.check_least(columns=1, frames=2, batch_size=1)
    sampling_flags.check_form(out, edit)
    seeds = commands.parse_numbers("seeds", SEEDS.value or "0-63")
    config, trained_on = directory.RunDirectory(run_dir).read()
    sampling_flags.check_num_steps(config.num_timesteps)
    name = FLAGS.sampler or config.sampler
    options = sampling_flags.sampler_options(name, edit)
    if edit:
        photos, mask = picture_files.read_inputs(edit, FLAGS[edit].value, FLAGS.mask, trained_on["image_shape"])
        print("\n".join(photos.notes), end="\n" if photos.notes else "")
        seeds = sampling_flags.seeds_of_photos(seeds if SEEDS.value else None, len(photos.images))
    labels = sampling_flags.parse_labels(LABELS.value, len(seeds), needed=bool(edit and config.num_classes))
    painted = labels if labels or not config.num_classes else [seed % config.num_classes for seed in seeds]
    picture_files.check_names(out, seeds, painted)
    check_output("out", out, is_folder=not out.suffix)
    strategy = commands.start_strategy()

    from kddpm.distribution import workers
    from kddpm.runs import build
    from kddpm.sampling import samplers

    common = {
        "num_steps": config.sampling_steps if FLAGS.num_steps is None else FLAGS.num_steps,
        "labels": labels,
        "batch_size": BATCH_SIZE.value,
        "verbose": "auto" if workers.is_chief(strategy) else False,
    }
    if edit != "interpolate":
        common["sampler"] = samplers.by_name(name, **options)
        common["guidance_scale"] = config.guidance_scale if FLAGS.guidance_scale is None else FLAGS.guidance_scale
    frames = None
    with workers.using(strategy):
        with workers.all_or_none(strategy):
            model = build.load_run(run_dir)
        if edit == "interpolate":
            pictures = model.interpolate(*photos.images, FLAGS.count, **common)
        elif edit == "variations":
            pictures = model.variations(photos.for_seeds, FLAGS.strength, seeds, **common)
        elif edit == "inpaint":
            jumps = {"jump_length": FLAGS.jump_length, "resamplings": FLAGS.resamplings}
            pictures = model.inpaint(photos.for_seeds, mask, seeds, **jumps, **common)
        elif FRAMES.value or out.suffix.lower() == ".gif":
            pictures, frames = model.generate(seeds, **common, return_trajectory=FRAMES.value or 60)
        else:
            pictures = model.generate(seeds, **common)
    if not workers.is_chief(strategy):
        return
    if edit == "interpolate":
        picture_files.save_way(out, pictures, COLUMNS.value)
    else:
        picture_files.save(out, pictures, seeds, painted, frames, COLUMNS.value)
    print(f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''} in {out}")


if __name__ == "__main__":
    commands.run(main)
