"""Turn a trained run into a file that generates on a device: seed in, picture out.

    python -m export --run_dir=runs/digits --precision=int8 --out=digits.tflite
    python -m export --run_dir=runs/digits --format=web --precision=int8 --out=site --serve

tflite: one file of builtin operators for phones, boards and browsers. saved_model: a folder for TensorFlow. web: a
folder with a page that generates in the visitor's browser, for any web host; --serve shows it on this machine, and
serves a folder that is there already where --run_dir is not given. NAME.json, beside the file, says what it is.
"""

import pathlib
import shlex
import tempfile

from absl import flags

from kddpm.base import extras
from kddpm.base.errors import InputError
from kddpm.base.files import check_output, expand
from kddpm.cli import commands, sampling_flags
from kddpm.device import PRECISIONS, SIGNATURES, TARGETS
from kddpm.runs import directory

from . import site

FLAGS = flags.FLAGS

DEFAULT_OUT = {"tflite": "model.tflite", "saved_model": "saved_model", "web": "site"}


def define_flags() -> None:
    """Define the flags of the file and of its sampler."""
    flags.DEFINE_string("run_dir", None, "directory of a run of train.py")
    sampling_flags.define_weights_flags()
    flags.DEFINE_enum("format", "tflite", ["tflite", "saved_model", "web"], "what to make")
    flags.DEFINE_string("out", None, "NAME.tflite, or a folder; model.tflite, saved_model or site if not given")
    flags.DEFINE_enum("precision", "float32", PRECISIONS, "of the weights")
    flags.DEFINE_enum("target", "cpu", TARGETS, "what runs the network; gpu needs operators that GPUs take")
    flags.DEFINE_list(
        "signatures",
        None,
        f"which of {', '.join(SIGNATURES)}; all if not given, of a page those that it calls. Each of "
        "generate, step and denoise takes the memory of a whole network",
    )
    flags.DEFINE_integer("batch_size", 1, "pictures at a time; browsers and most phones want 1")
    flags.DEFINE_integer("parity_seeds", 8, "pictures compared with Keras's before anything is written")
    flags.DEFINE_integer("threads", 2, "of LiteRT, for the comparison and the latencies, 1 to 256")
    flags.DEFINE_bool("serve", False, "with --format=web: serve the folder on this machine")
    flags.DEFINE_integer("port", 8000, "of --serve")
    sampling_flags.define_sampler_flags(sampler="the run's", num_steps="50, or T where that is less,")
    flags.adopt_module_key_flags(sampling_flags)  # so that --help shows them


def make() -> None:
    """Export, build a page and serve it, as the flags ask."""
    out = pathlib.Path(expand(FLAGS.out or DEFAULT_OUT[FLAGS.format]))
    is_page = FLAGS.format == "web"
    if FLAGS.serve and not is_page:
        raise InputError(f"--serve belongs to --format=web. Received: --format={FLAGS.format}")
    if FLAGS.run_dir:
        export(out, is_page)
    elif not FLAGS.serve:
        raise InputError("--run_dir is needed: the directory of a run of train.py")
    if FLAGS.serve:
        site.serve(out, FLAGS.port)


def export(out: pathlib.Path, is_page: bool) -> None:
    """Load the run, write the file or folder and print its description."""
    if FLAGS.format == "tflite" and out.suffix != ".tflite":
        raise InputError(f"--out must end in .tflite. Received: {out}")
    if FLAGS.format == "saved_model" and FLAGS.precision != "float32":
        raise InputError(f"--precision must be float32 with --format=saved_model. Received: {FLAGS.precision}")
    if FLAGS.format == "saved_model" and FLAGS.target != "cpu":
        raise InputError(f"--target must be cpu with --format=saved_model. Received: {FLAGS.target}")
    commands.check_least(batch_size=1, parity_seeds=1, threads=1)
    check_output("out", out, is_folder=FLAGS.format != "tflite")
    config, data = directory.RunDirectory(FLAGS.run_dir).read()
    sampling_flags.check_num_steps(config.num_timesteps)
    name = FLAGS.sampler or config.sampler
    options = sampling_flags.sampler_options(name)
    if FLAGS.format != "saved_model":
        extras.need("export", "{format}", format=FLAGS.format)
    if is_page:
        site.check(out, FLAGS.batch_size, data["image_shape"][-1], FLAGS.signatures or site.SIGNATURES)
    commands.start_tensorflow()

    from kddpm.device import description
    from kddpm.runs import build
    from kddpm.sampling import samplers

    model = build.load_run(FLAGS.run_dir, FLAGS.ema_length)
    names = data["class_names"] or []  # a model may have more classes than the data, or none
    names = names if len(names) == model.network.num_classes else None
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite" if is_page else out
        about = model.export(
            path,
            "tf_saved_model" if FLAGS.format == "saved_model" else "litert",
            samplers.by_name(name, **options),
            FLAGS.num_steps,
            FLAGS.precision,
            guidance_scale=config.guidance_scale if FLAGS.guidance_scale is None else FLAGS.guidance_scale,
            batch_size=FLAGS.batch_size,
            target=FLAGS.target,
            signatures=FLAGS.signatures or (site.SIGNATURES if is_page else None),
            class_names=names,
            parity_seeds=FLAGS.parity_seeds,
            threads=FLAGS.threads,
        )
        if is_page:
            site.build(path, out)
    print(description.report(about))
    sampler, *chosen = about["sampler"].items()
    chosen = [("sampler", sampler[1]), *chosen, ("guidance_scale", about["guidance_scale"])]
    chosen.append(("ema_length", FLAGS.ema_length))
    chosen = [(flag, value) for flag, value in chosen if value is not None]
    same = [*commands.command("sample"), f"--run_dir={FLAGS.run_dir}", *(f"--{flag}={value}" for flag, value in chosen)]
    print(f"{out} is written. In Keras its pictures are those of: {shlex.join(same)}")


def main() -> None:
    """Run the command `kddpm-export`, the same as `python -m export`."""
    define_flags()
    commands.run(make)


if __name__ == "__main__":
    main()
