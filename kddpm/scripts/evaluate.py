"""Measure a trained run.

    python evaluate.py --run_dir=runs/digits --metrics=bits_per_dim
    python evaluate.py --run_dir=runs/digits --metrics=fid,accuracy,copies --samplers=ancestral:250,ddim:20

The images are those that the run was trained on unless --dataset names others, such as a test set for the bits, which
must be exact: none of them cropped, resized or recoloured. For the metrics of pictures a test set is --held_out;
docs/evaluation.md says what they mean. The numbers are printed and written into --out, with figures. Pictures that were
painted before an interruption are kept.
"""

import contextlib
import os
import pathlib

from absl import flags

from kddpm.base.errors import InputError
from kddpm.base.files import check_output, expand, read_json
from kddpm.cli import commands
from kddpm.cli.sampling_flags import parse_sampler
from kddpm.evaluation import BITS, DEQUANTIZATIONS, DIVERGENCES, METRICS, OF_EXTRACTORS, OF_PICTURES
from kddpm.runs import directory

FLAGS = flags.FLAGS
_TERMS_BESIDE_PICTURES = 32  # of the bound, drawn for each image

# {flag: the metrics that it is for}
_OF_METRICS = {
    **dict.fromkeys(["num_terms", "num_trajectories"], ("bits_per_dim",)),
    **dict.fromkeys(["divergence", "dequantization"], ("ode_bits_per_dim",)),
    **dict.fromkeys(["max_images", "num_steps", "clip"], BITS),
    **dict.fromkeys(
        ["num_images", "samplers", "checkpoints", "ema_lengths", "guidance_scales", "model", "held_out"], OF_PICTURES
    ),
    "extractor": OF_EXTRACTORS,
}
_EXAMPLES = {"ema_lengths": "0.03,0.1", "guidance_scales": "1,1.5,2"}  # of flags that are lists of numbers


def define_flags() -> None:
    """Define the flags of the measurement."""
    flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
    flags.DEFINE_list("metrics", "bits_per_dim", f"what to measure: {', '.join(METRICS)}")
    flags.DEFINE_string("dataset", None, "as in train.py; what the run was trained on if not given")
    flags.DEFINE_string(
        "held_out", None, "real images that are not in --dataset, for the floor; if not given a part of --dataset"
    )
    flags.DEFINE_integer("max_images", None, "of the bits: the first so many of a shuffled order; all if not given")
    flags.DEFINE_integer(
        "num_terms",
        None,
        "terms of the bound drawn for each image; if not given those of the result in --out, else all T, or "
        f"{_TERMS_BESIDE_PICTURES} beside metrics of pictures",
    )
    flags.DEFINE_integer("num_trajectories", None, "whole trajectories of each image, for the tighter K-sample bound")
    flags.DEFINE_integer("num_steps", None, "bound or ODE in fewer steps; all T if not given")
    flags.DEFINE_enum("divergence", "hutchinson", DIVERGENCES, "of the ODE; exact is for small images")
    flags.DEFINE_enum("dequantization", "noise", DEQUANTIZATIONS, "of the ODE")
    flags.DEFINE_bool("clip", True, "of the bits: clip the predicted image to [-1, 1]")
    flags.DEFINE_integer(
        "num_images", None, "to generate; if not given 1000, or half of the images or all of --held_out if fewer"
    )
    flags.DEFINE_list("samplers", [], "that generate, such as ancestral:1000,ddim:50; the run's if not given")
    flags.DEFINE_string("checkpoints", None, "all, or steps such as 1000,5000; the last averaged weights if not given")
    flags.DEFINE_list(
        "ema_lengths", [], f"averages of the weights to rebuild, such as {_EXAMPLES['ema_lengths']}, that generate too"
    )
    flags.DEFINE_list(
        "guidance_scales",
        [],
        f"of classes, such as {_EXAMPLES['guidance_scales']}, for each sampler; the run's if not given",
    )
    flags.DEFINE_list("model", [], "exported .tflite files, whose pictures are measured too")
    flags.DEFINE_string(
        "extractor",
        None,
        "digits, mnist, NAME of kddpm.evaluation.extractor, or inception:FILE, also inception_clean, inception_keras "
        "and inception_torchvision; what fits if not given",
    )
    flags.DEFINE_integer("batch_size", 64, "images in memory at a time")
    flags.DEFINE_bool("overwrite", False, "put the result in place of one of other images or settings")
    flags.DEFINE_integer("seed", 0, "of the noise, and of the choice of terms and images")
    flags.DEFINE_string("out", None, "folder for the numbers and the figures; RUN_DIR/evaluation if not given")
    commands.define_data_flags()
    commands.define_strategy_flags()
    flags.adopt_module_key_flags(commands)  # so that --help shows them


def evaluate() -> None:
    """Call `kddpm.runs.evaluate.evaluate` with the flags as arguments."""
    run_dir = commands.needed("run_dir", "the directory of a run of train.py")
    _check_flags()
    run = directory.RunDirectory(run_dir)
    run.read()
    out = FLAGS.out or run.evaluation_path
    check_output("out", out, is_folder=True)
    strategy = commands.start_strategy(min(FLAGS.batch_size, FLAGS.max_images or FLAGS.batch_size))

    from kddpm.runs import evaluate as measuring

    measuring.evaluate(
        run_dir,
        FLAGS.metrics,
        dataset=FLAGS.dataset,
        held_out=FLAGS.held_out,
        max_images=FLAGS.max_images,
        num_terms=_num_terms(out),
        num_trajectories=FLAGS.num_trajectories,
        num_steps=FLAGS.num_steps,
        divergence=FLAGS.divergence,
        dequantization=FLAGS.dequantization,
        clip=FLAGS.clip,
        num_images=FLAGS.num_images,
        samplers=FLAGS.samplers,
        checkpoints=_checkpoints(),
        ema_lengths=_floats("ema_lengths"),
        guidance_scales=_floats("guidance_scales"),
        models=FLAGS.model,
        extractor=FLAGS.extractor,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        out=out,
        overwrite=FLAGS.overwrite,
        strategy=strategy,
        **commands.data_options(),
    )


def _check_flags() -> None:
    """Check the flags that can be checked before anything is read.

    Raises:
        InputError: a value out of range, or a flag of metrics that are not measured.
    """
    commands.check_among("metrics", FLAGS.metrics, METRICS)
    commands.check_least(max_images=1, num_terms=2, num_trajectories=2, num_steps=1, batch_size=1, num_images=20)
    for name, metrics in _OF_METRICS.items():
        if FLAGS[name].present and not set(metrics) & set(FLAGS.metrics):
            text = f"--{name} belongs to --metrics={','.join(metrics)}"
            raise InputError(f"{text}. Received: --metrics={','.join(FLAGS.metrics)}")
    if not -(2**31) <= FLAGS.seed < 2**31:
        raise InputError(f"--seed must be an int32. Received: {FLAGS.seed}")
    for text in FLAGS.samplers:
        parse_sampler(text)
    _checkpoints()
    for name in _EXAMPLES:
        _floats(name)


def _checkpoints() -> str | list[int]:
    text = FLAGS.checkpoints
    return text if text == "all" else commands.parse_numbers("checkpoints", text) if text else []


def _floats(name: str) -> list[float]:
    try:
        return [float(text) for text in FLAGS[name].value]
    except ValueError:
        received = ",".join(FLAGS[name].value)
        raise InputError(f"--{name} must be numbers such as {_EXAMPLES[name]}. Received: {received}") from None


def _num_terms(out: str | os.PathLike) -> int | None:
    """Return --num_terms; by default as in `out`, else few beside metrics of pictures, for the time."""
    if FLAGS.num_terms is not None or FLAGS.num_trajectories is not None:
        return FLAGS.num_terms
    if not FLAGS.overwrite:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            there = read_json(pathlib.Path(expand(out)) / "bits_per_dim.json")["num_terms"]
            if there is None or (type(there) is int and there >= 2):
                return there
    return _TERMS_BESIDE_PICTURES if set(OF_PICTURES) & set(FLAGS.metrics) else None


def main() -> None:
    """Run the command `kddpm-evaluate`, which is also evaluate.py."""
    define_flags()
    commands.run(evaluate)
