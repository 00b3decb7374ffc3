"""What the scripts share: one line for bad input, the flags of samplers, the notation of seeds. No TensorFlow."""

import contextlib
import os
import pathlib
import re
import sys
import tempfile

from absl import app, flags, logging

from kddpm.errors import InputError
from kddpm.parametrization import VARIANCES
from kddpm.presets import SAMPLERS
from kddpm.schedules import SPACINGS


def run(main) -> None:
    """Run a script's `main()` under absl; bad input and a failing disk end in one line on stderr and exit status 2."""

    def guarded(arguments):
        try:
            if len(arguments) > 1:
                raise InputError(f"flags must begin with --. Received: {' '.join(arguments[1:])}")
            main()
        except (InputError, OSError) as error:
            print(f"{_program(arguments[0])}: {error}", file=sys.stderr)
            sys.exit(2)

    logging.set_verbosity(logging.WARNING)
    app.run(guarded)


def _program(path: str) -> str:
    """The script's name; of a package started with -m, the package's."""
    path = pathlib.Path(path)
    return path.parent.name if path.name == "__main__.py" else path.name


# Which samplers take a flag beside those that all take.
_OWNERS = {"variance": "ancestral", "eta": "ddim", "corrections": "predictor_corrector", "snr": "predictor_corrector"}
_CLIPS = {"true": True, "false": False, "dynamic": "dynamic"}


def define_sampler_flags(sampler: str, num_steps: str) -> None:
    """The flags --sampler, --num_steps and what the samplers take beside; the arguments say what is the default."""
    flags.DEFINE_string("sampler", None, f"{', '.join(SAMPLERS)}; {sampler} if not given")
    flags.DEFINE_integer("num_steps", None, f"steps, at most T; {num_steps} if not given")
    flags.DEFINE_enum("spacing", None, SPACINGS, "which steps, where fewer than T; trailing if not given")
    flags.DEFINE_enum(
        "clip", "true", list(_CLIPS), "clip the predicted image to [-1, 1] at every step; dynamic = to its own quantile",
        case_sensitive=False,
    )  # fmt: skip
    flags.DEFINE_float("guidance_scale", None, "of classes: 1 = none, more = clearer; the run's if not given")
    flags.DEFINE_enum("variance", None, VARIANCES, "of the ancestral sampler; the run's if not given")
    flags.DEFINE_float("eta", None, "of ddim: 0 (deterministic, if not given) to 1 (as much noise as ancestral)")
    flags.DEFINE_integer("corrections", None, "of predictor_corrector: Langevin steps a step; 1 if not given")
    flags.DEFINE_float("snr", None, "of predictor_corrector: size of a Langevin step; 0.16 if not given")


def sampler_options(name: str) -> dict:
    """The arguments of the sampler of that name, from its flags.

    Raises:
        InputError: no such sampler, or a flag of another one.
    """
    if name not in SAMPLERS:
        raise InputError(f"--sampler must be one of {', '.join(SAMPLERS)}. Received: {name}")
    options = {"clip": _CLIPS[flags.FLAGS.clip]}
    if flags.FLAGS.spacing is not None:
        options["spacing"] = flags.FLAGS.spacing
    for flag, owner in _OWNERS.items():
        if (value := flags.FLAGS[flag].value) is not None:
            if name != owner:
                raise InputError(f"--{flag} belongs to --sampler={owner}. Received: --sampler={name}")
            options[flag] = value
    return options


def start_tensorflow() -> None:
    """Import TensorFlow and say on what it runs.

    Its native libraries write a page of notes to stderr while they start, whatever the log level; they are held back
    unless the import fails, or TF_CPP_MIN_LOG_LEVEL asks for them.
    """
    print("Starting TensorFlow ...", flush=True)
    wanted = "TF_CPP_MIN_LOG_LEVEL" in os.environ
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.nullcontext() if wanted else _held_back_stderr():
        import tensorflow as tf

        devices = tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU")
    names = ", ".join(device.name.removeprefix("/physical_device:") for device in devices)
    print(f"TensorFlow {tf.__version__} on {names or f'the CPU, {os.cpu_count()} cores'}", flush=True)


@contextlib.contextmanager
def _held_back_stderr():
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def parse_numbers(flag: str, text: str) -> list[int]:
    """Numbers from "0-63", "7" or "1,5,10-20"; a range includes both ends.

    Raises:
        InputError: anything else, or numbers that do not fit int32.
    """
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,12})(?:-(-?\d{1,12}))?\s*", part)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if last < first or last - first >= 10_000_000:
            raise InputError(f"--{flag} must look like 0-63 or 1,5,10-20. Received: {text!r}")
        if first < -(2**31) or last >= 2**31:
            raise InputError(f"--{flag} must fit int32, {-(2**31)} to {2**31 - 1}. Received: {part.strip()}")
        numbers.extend(range(first, last + 1))
    return numbers
