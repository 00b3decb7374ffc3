"""Say whether a run of train.py is healthy, during it or after it.

    python -m kddpm.doctor --run_dir=runs/digits
    python -m kddpm.doctor --run_dir=runs/digits --held_out=npz:others.npz

It examines images, schedule, the course of the loss, the loss at some t beside that of the best linear denoiser, the
average, labels, pictures and copies: for each a figure and what is expected of it, and where it is not so, the likely
cause and the remedy. docs/doctor.md says what the verdicts mean. The exit status is 0 for healthy and for sick runs;
with --strict it is 1 for sick ones.
"""

import sys

from absl import flags

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.cli import commands
from kddpm.runs import directory

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of the examination."""
    flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
    flags.DEFINE_string("held_out", None, "images that the run was not trained on, to tell whether it memorises")
    flags.DEFINE_integer("num_images", 128, "images on which losses are measured, at each of 12 t")
    flags.DEFINE_integer("seed", 0, "of the choice of images, and of the noise")
    flags.DEFINE_string("out", None, "folder for doctor.json and doctor.png; RUN_DIR/evaluation if not given")
    flags.DEFINE_bool("strict", False, "exit with status 1 if anything is wrong")
    commands.define_data_flags()
    flags.adopt_module_key_flags(commands)  # so that --help shows them


def examine() -> None:
    """Call `kddpm.runs.doctor.examine` with the flags as arguments."""
    run_dir = commands.needed("run_dir", "the directory of a run of train.py")
    commands.check_least(num_images=2)
    if not -(2**31) <= FLAGS.seed < 2**31:
        raise InputError(f"--seed must be an int32. Received: {FLAGS.seed}")
    run = directory.RunDirectory(run_dir)
    run.read()
    out = FLAGS.out or run.evaluation_path
    check_output("out", out, is_folder=True)
    commands.start_tensorflow()

    from kddpm.runs import doctor

    result = doctor.examine(
        run_dir,
        held_out=FLAGS.held_out,
        num_images=FLAGS.num_images,
        seed=FLAGS.seed,
        out=out,
        **commands.data_options(),
    )
    if FLAGS.strict and not result["is_healthy"]:
        sys.exit(1)


def main() -> None:
    """Run the command `python -m kddpm.doctor`."""
    define_flags()
    commands.run(examine)
