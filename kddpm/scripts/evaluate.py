"""Measure a trained run.

    python evaluate.py --run_dir=runs/digits --metrics=bits_per_dim

The images are those that the run was trained on unless --dataset names others, such as a test set; they must be exact,
none of them cropped, resized or recoloured. The numbers are printed and written into --out, with a figure.
"""

from absl import flags

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands
from kddpm.evaluation import DEQUANTIZATIONS, DIVERGENCES, METRICS
from kddpm.runs import directory

FLAGS = flags.FLAGS

_OF_A_METRIC = {
    "num_terms": "bits_per_dim",
    "num_trajectories": "bits_per_dim",
    "divergence": "ode_bits_per_dim",
    "dequantization": "ode_bits_per_dim",
}


def define_flags() -> None:
    """Define the flags of the measurement."""
    flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
    flags.DEFINE_list("metrics", "bits_per_dim", f"what to measure: {', '.join(METRICS)}")
    flags.DEFINE_string("dataset", None, "as in train.py; what the run was trained on if not given")
    flags.DEFINE_integer("max_images", None, "the first so many of a shuffled order; all if not given")
    flags.DEFINE_integer("num_terms", None, "terms of the bound drawn for each image; all T if not given")
    flags.DEFINE_integer("num_trajectories", None, "whole trajectories of each image, for the tighter K-sample bound")
    flags.DEFINE_integer("num_steps", None, "bound or ODE in fewer steps; all T if not given")
    flags.DEFINE_enum("divergence", "hutchinson", DIVERGENCES, "of the ODE; exact is for small images")
    flags.DEFINE_enum("dequantization", "noise", DEQUANTIZATIONS, "of the ODE")
    flags.DEFINE_bool("clip", True, "clip the predicted image to [-1, 1]")
    flags.DEFINE_integer("batch_size", 64, "images in memory at a time")
    flags.DEFINE_bool("overwrite", False, "put the result in place of one of other images or settings")
    flags.DEFINE_integer("seed", 0, "of the noise, and of the choice of terms and images")
    flags.DEFINE_string("out", None, "folder for the numbers and the figure; RUN_DIR/evaluation if not given")
    commands.define_data_flags()
    commands.define_strategy_flags()
    flags.adopt_module_key_flags(commands)  # so that --help shows them


def evaluate() -> None:
    """Call `kddpm.runs.evaluate.evaluate` with the flags as arguments."""
    run_dir = commands.needed("run_dir", "the directory of a run of train.py")
    commands.check_among("metrics", FLAGS.metrics, METRICS)
    commands.check_least(max_images=1, num_terms=2, num_trajectories=2, num_steps=1, batch_size=1)
    for name, metric in _OF_A_METRIC.items():
        if FLAGS[name].present and metric not in FLAGS.metrics:
            raise InputError(f"--{name} belongs to --metrics={metric}. Received: --metrics={','.join(FLAGS.metrics)}")
    if not -(2**31) <= FLAGS.seed < 2**31:
        raise InputError(f"--seed must be an int32. Received: {FLAGS.seed}")
    run = directory.RunDirectory(run_dir)
    run.read()
    out = FLAGS.out or run.evaluation_path
    check_output("out", out, is_folder=True)
    strategy = commands.start_strategy(rows=FLAGS.batch_size)

    from kddpm.runs import evaluate as measuring

    measuring.evaluate(
        run_dir,
        FLAGS.metrics,
        dataset=FLAGS.dataset,
        max_images=FLAGS.max_images,
        num_terms=FLAGS.num_terms,
        num_trajectories=FLAGS.num_trajectories,
        num_steps=FLAGS.num_steps,
        divergence=FLAGS.divergence,
        dequantization=FLAGS.dequantization,
        clip=FLAGS.clip,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        out=out,
        overwrite=FLAGS.overwrite,
        strategy=strategy,
        **commands.data_options(),
    )


def main() -> None:
    """Run the command `kddpm-evaluate`, which is also evaluate.py."""
    define_flags()
    commands.run(evaluate)
