"""Generate pictures with a trained run.

    python sample.py --run_dir=runs/digits --seeds=0-63 --out=grid.png

--out chooses the form: .png a grid, or with --frames a filmstrip, a row a picture from noise to the end; .gif the
same as an animation; .npz the raw `images` and `seeds`; anything without a suffix a folder with one PNG a seed.
"""

import pathlib

from absl import flags

from kddpm import commands, runs
from kddpm.errors import InputError
from kddpm.files import check_output, replacing

RUN_DIR = flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
SEEDS = flags.DEFINE_string("seeds", "0-63", "one picture a seed: 0-63, or 1,5,10-20")
LABELS = flags.DEFINE_string("labels", None, "classes, one a seed or one for all; seed modulo classes if not given")
OUT = flags.DEFINE_string("out", "grid.png", "NAME.png, NAME.gif, NAME.npz or a folder")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "pictures in memory at a time")
FRAMES = flags.DEFINE_integer("frames", None, "stages from noise to picture, for .png (a filmstrip) and .gif (60)")
COLUMNS = flags.DEFINE_integer("columns", None, "pictures a row of the grid; as square as possible if not given")

commands.define_sampler_flags(sampler="the run's", num_steps="the run's")
flags.adopt_module_key_flags(commands)  # so that --help shows them
FLAGS = flags.FLAGS

SUFFIXES = (".png", ".gif", ".npz", "")


def main():
    """Flags to `DiffusionModel.generate`, its pictures to a file."""
    if not RUN_DIR.value:
        raise InputError("--run_dir is needed: the directory of a run of train.py")
    out = pathlib.Path(OUT.value)
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"--out must end in .png, .gif or .npz, or be a folder. Received: {out}")
    if COLUMNS.value is not None and COLUMNS.value < 1:
        raise InputError(f"--columns must be at least 1. Received: {COLUMNS.value}")
    if FRAMES.value is not None and FRAMES.value < 2:
        raise InputError(f"--frames must be at least 2. Received: {FRAMES.value}")
    seeds = commands.parse_numbers("seeds", SEEDS.value)
    labels = commands.parse_numbers("labels", LABELS.value) if LABELS.value else None
    if labels is not None and len(labels) == 1:
        labels *= len(seeds)
    config, _ = runs.RunDirectory(RUN_DIR.value).read()
    name = FLAGS.sampler or config.sampler
    options = commands.sampler_options(name)
    check_output("--out", out, is_folder=not suffix)
    commands.start_tensorflow()

    import numpy as np

    from kddpm import checkpoints, images, samplers

    model = checkpoints.load_run(RUN_DIR.value)
    pictures, frames = model.generate(
        seeds,
        samplers.by_name(name, **options),
        config.sampling_steps if FLAGS.num_steps is None else FLAGS.num_steps,
        labels=labels,
        guidance_scale=config.guidance_scale if FLAGS.guidance_scale is None else FLAGS.guidance_scale,
        batch_size=BATCH_SIZE.value,
        return_trajectory=FRAMES.value or (60 if suffix == ".gif" else 2),  # two, the least, cost nothing
    )
    if suffix == ".png" and FRAMES.value:
        images.save_png(out, images.filmstrip(frames))
    elif suffix == ".png":
        images.save_png(out, images.grid(pictures, COLUMNS.value))
    elif suffix == ".gif":
        images.save_gif(out, [images.grid(frame, COLUMNS.value) for frame in frames])
    elif suffix == ".npz":
        with replacing(out) as beside:
            np.savez_compressed(beside, images=pictures, seeds=np.array(seeds, np.int32))
    else:
        for seed, picture in zip(seeds, pictures, strict=True):
            images.save_png(out / f"{seed}.png", picture)
    print(f"{len(seeds)} pictures in {out}")


if __name__ == "__main__":
    commands.run(main)
