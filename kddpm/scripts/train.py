"""Train a diffusion model on images.

    python train.py --preset=digits --run_dir=runs/digits
    python train.py --dataset=folder:photos/ --preset=ddpm32 --run_dir=runs/photos

The same command again goes on where it stopped. --dry_run prints the configuration and stops. What no flag says is as
in the preset; without --preset it is digits for the data set digits, else ddpm32.
"""

import dataclasses
import json

from absl import flags

from kddpm.base import settings
from kddpm.cli import commands
from kddpm.runs import presets
from kddpm.runs.config import TrainConfig, help_of, parse

FLAGS = flags.FLAGS
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def define_flags() -> None:
    """Define the flags of the run, and one for each field of the configuration."""
    flags.DEFINE_string("run_dir", None, "directory of the run: checkpoints, samples, metrics")
    flags.DEFINE_string("preset", None, f"starting point: {', '.join(presets.PRESETS)}")
    flags.DEFINE_list(
        "override_resume",
        [],
        "flags in which a run that goes on may differ from what it was begun with, such as dropout",
    )
    flags.DEFINE_bool("dry_run", False, "print the configuration and stop")
    commands.define_data_flags()
    commands.define_strategy_flags()
    flags.adopt_module_key_flags(commands)  # so that --help shows them
    for name, field in FIELDS.items():
        define = flags.DEFINE_bool if isinstance(field.default, bool) else flags.DEFINE_string
        define(name, None, help_of(field))


def train() -> None:
    """Make a configuration from the flags and call `kddpm.runs.training.train` with it."""
    given = {name: value for name in FIELDS if (value := FLAGS[name].value) is not None}
    overrides = {k: v if isinstance(v, bool) else parse(FIELDS[k], v) for k, v in given.items()}
    config = presets.make_config(FLAGS.preset, **overrides)
    print(json.dumps(vars(config), indent=2))
    if FLAGS.dry_run:
        return
    run_dir = commands.needed("run_dir", "the directory that the run is kept in")
    rows = config.batch_size // config.accumulation
    can_divide = rows % settings.cores() == 0 and not config.jit_compile
    strategy = commands.start_strategy(rows if can_divide else 1)

    from kddpm.runs import training

    training.train(config, run_dir, strategy=strategy, override_resume=FLAGS.override_resume, **commands.data_options())


def main() -> None:
    """Run the command `kddpm-train`, which is also train.py."""
    define_flags()
    commands.run(train)
