"""Measure a trained run.

    python evaluate.py --run_dir=runs/digits --metrics=bits_per_dim

The images are those that the run was trained on unless --dataset names others, such as a test set; they must be exact,
none of them cropped, resized or recoloured. The numbers are printed and written into --out, with a figure.
"""

from absl import flags

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands
from kddpm.evaluation import METRICS
from kddpm.runs import directory

RUN_DIR = flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
METRICS = flags.DEFINE_list("metrics", "bits_per_dim", f"what to measure: {', '.join(METRICS)}")
DATASET = flags.DEFINE_string("dataset", None, "as in train.py; what the run was trained on if not given")
MAX_IMAGES = flags.DEFINE_integer("max_images", None, "the first so many of a shuffled order; all if not given")
NUM_TERMS = flags.DEFINE_integer("num_terms", None, "terms of the bound drawn for each image; all T if not given")
CLIP = flags.DEFINE_bool("clip", True, "clip the predicted image to [-1, 1]")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images in memory at a time")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "put the result in place of one of other images or settings")
SEED = flags.DEFINE_integer("seed", 0, "of the noise, and of the choice of terms and images")
OUT = flags.DEFINE_string("out", None, "folder for the numbers and the figure; RUN_DIR/evaluation if not given")
commands.define_data_flags()
commands.define_strategy_flags()
flags.adopt_module_key_flags(commands)  # so that --help shows them


def main():
    """Flags to `kddpm.runs.evaluate.evaluate`."""
    run_dir = commands.needed("run_dir", "the directory of a run of train.py")
    commands.check_metrics(METRICS.value)
    commands.check_least(max_images=1, num_terms=2, batch_size=1)
    if not -(2**31) <= SEED.value < 2**31:
        raise InputError(f"--seed must be an int32. Received: {SEED.value}")
    run = directory.RunDirectory(run_dir)
    run.read()
    out = OUT.value or run.evaluation_path
    check_output("out", out, is_folder=True)
    strategy = commands.start_strategy()

    from kddpm.runs import evaluate

    evaluate.evaluate(
        run_dir,
        METRICS.value,
        dataset=DATASET.value,
        max_images=MAX_IMAGES.value,
        num_terms=NUM_TERMS.value,
        clip=CLIP.value,
        batch_size=BATCH_SIZE.value,
        seed=SEED.value,
        out=out,
        overwrite=OVERWRITE.value,
        strategy=strategy,
        **commands.data_options(),
    )


if __name__ == "__main__":
    commands.run(main)
