"""Measure a trained run.

    python evaluate.py --run_dir=runs/digits --metrics=bits_per_dim

The images are those that the run was trained on unless --dataset names others, such as a test set; they must be exact,
none of them cropped, resized or recoloured. The numbers are printed and written into --out, with a figure.
"""

from absl import flags

from kddpm import commands, runs
from kddpm.errors import InputError
from kddpm.files import check_output

RUN_DIR = flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
METRICS = flags.DEFINE_list("metrics", "bits_per_dim", f"what to measure: {', '.join(commands.METRICS)}")
DATASET = flags.DEFINE_string("dataset", None, "as in train.py; what the run was trained on if not given")
MAX_IMAGES = flags.DEFINE_integer("max_images", None, "the first so many of a shuffled order; all if not given")
NUM_TERMS = flags.DEFINE_integer("num_terms", None, "terms of the bound drawn for each image; all T if not given")
CLIP = flags.DEFINE_bool("clip", True, "clip the predicted image to [-1, 1]")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images in memory at a time")
SEED = flags.DEFINE_integer("seed", 0, "of the noise, and of the choice of terms and images")
OUT = flags.DEFINE_string("out", None, "folder for the numbers and the figure; RUN_DIR/evaluation if not given")
commands.define_data_flags()
flags.adopt_module_key_flags(commands)  # so that --help shows them


def main():
    """Flags to `kddpm.evaluation.evaluate`."""
    if not RUN_DIR.value:
        raise InputError("--run_dir is needed: the directory of a run of train.py")
    commands.check_metrics(METRICS.value)
    for flag, least in ((MAX_IMAGES, 1), (NUM_TERMS, 2), (BATCH_SIZE, 1)):
        if flag.value is not None and flag.value < least:
            raise InputError(f"--{flag.name} must be at least {least}. Received: {flag.value}")
    if not -(2**31) <= SEED.value < 2**31:
        raise InputError(f"--seed must be an int32. Received: {SEED.value}")
    run = runs.RunDirectory(RUN_DIR.value)
    run.read()
    out = OUT.value or run.path / "evaluation"
    check_output("--out", out, is_folder=True)
    commands.start_tensorflow()

    from kddpm import evaluation

    evaluation.evaluate(
        RUN_DIR.value,
        METRICS.value,
        dataset=DATASET.value,
        max_images=MAX_IMAGES.value,
        num_terms=NUM_TERMS.value,
        clip=CLIP.value,
        batch_size=BATCH_SIZE.value,
        seed=SEED.value,
        out=out,
        **commands.data_options(),
    )


if __name__ == "__main__":
    commands.run(main)
