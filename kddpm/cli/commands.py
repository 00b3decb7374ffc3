"""Code shared by the scripts: one-line errors, flags of data and devices, parsing of seeds. Needs no TensorFlow."""

import contextlib
import gc
import os
import pathlib
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging

from kddpm.base import settings
from kddpm.base.errors import InputError, WorkerLostError
from kddpm.distribution import STRATEGIES

if TYPE_CHECKING:
    import tensorflow as tf

# New objects between two searches for cycles; by default some hundreds. Importing TensorFlow and tracing a step make a
# million that stay, and the default searches them again and again: 8 % of the CPU time to the first step.
_OBJECTS_A_COLLECTION = 50_000


def run(main: Callable[[], None]) -> None:
    """Run a script's `main()` under absl.

    Bad input and disk errors print one line on stderr and exit with status 2, Ctrl-C with 130 and the loss of another
    worker with 3. --help shows the docstring and the flags of the module of `main`, whether it is run directly, by a
    script or by an installed command.
    """

    def guarded(arguments):
        try:
            if len(arguments) > 1:
                raise InputError(f"flags must begin with --. Received: {' '.join(arguments[1:])}")
            with _interruptible():
                main()
        except InputError as error:
            print(f"{_program(arguments[0])}: {error.as_flags(_flags_of_arguments())}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            print(f"{_program(arguments[0])}: {error}", file=sys.stderr)
            sys.exit(2)
        except WorkerLostError as error:
            print(f"{_program(arguments[0])}: {error}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(3)  # a normal exit would make TensorFlow wait for the lost worker
        except KeyboardInterrupt:
            print(f"\n{_program(arguments[0])}: interrupted", file=sys.stderr)
            sys.exit(130)

    if main.__module__ != "__main__":
        _show_as_program(main.__module__)
    gc.set_threshold(_OBJECTS_A_COLLECTION)
    logging.set_verbosity(logging.WARNING)
    app.run(guarded)


@contextlib.contextmanager
def _interruptible():
    """Let Ctrl-C end in KeyboardInterrupt, also where TensorFlow makes another error of it.

    It does so where its C++ calls Python, as while a graph is traced.
    """
    came = False

    def note(number, frame):
        nonlocal came
        came = True
        raise KeyboardInterrupt

    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so in a shell's background
    if is_ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_as_program(module: str) -> None:
    """Make --help describe a module: absl shows the docstring of __main__ and the flags of sys.argv[0]."""
    text = sys.modules[module].__doc__ or ""
    if _is_installed():
        text = re.sub(r"python (?:-m )?(\w+)(?:\.py)?(?= --)", r"kddpm-\1", text)
    sys.modules["__main__"].__doc__ = text
    for flags_by_module in (flags.FLAGS.flags_by_module_dict(), flags.FLAGS.key_flags_by_module_dict()):
        flags_by_module[sys.argv[0]] = flags_by_module.pop(module, [])


def _is_installed() -> bool:
    """Return whether the program is an installed command, not a file of the source tree."""
    return _program(sys.argv[0]).startswith("kddpm-")


def command(script: str) -> list[str]:
    """Return the command that starts another script in the way this one was started, such as python, sample.py."""
    return [f"kddpm-{script}"] if _is_installed() else ["python", f"{script}.py"]


def _flags_of_arguments() -> dict[str, str]:
    """Return {argument of the library: its flag}; the names are the same, except for exported files."""
    names = {name: name for name in flags.FLAGS}
    return names | {argument: flag for argument, flag in (("path", "out"), ("models", "model")) if flag in names}


def _program(path: str) -> str:
    """Return the script's name; for a package started with -m, the package's."""
    program = pathlib.Path(path)
    return program.parent.name if program.name == "__main__.py" else program.name


def define_data_flags() -> None:
    """Define the flags of every script that opens a data set."""
    flags.DEFINE_string("tfds_data_dir", None, "where TensorFlow Datasets keeps its data")
    flags.DEFINE_string("cache_dir", None, "for decoded images that do not fit in memory; the run's if not given")
    flags.DEFINE_bool("skip_bad_images", False, "leave unreadable images out, with a list of them")


def data_options() -> dict:
    """Return these flags as arguments of `training.train` and `evaluate.evaluate`, under the same names."""
    return {name: flags.FLAGS[name].value for name in ("tfds_data_dir", "cache_dir", "skip_bad_images")}


def define_strategy_flags() -> None:
    """Define the flags of the devices that share the work."""
    flags.DEFINE_enum(
        "strategy",
        "auto",
        STRATEGIES,
        "one device; mirrored = all GPUs of this machine; multi_worker = the machines of TF_CONFIG; tpu; or auto, the "
        "largest of these",
    )
    flags.DEFINE_integer("cpu_replicas", 1, "of --strategy=mirrored on a CPU, to try what several GPUs would do")


def needed(flag: str, what: str) -> str:
    """Return the value of a required flag.

    Raises:
        InputError: the flag was not given.
    """
    if not (value := flags.FLAGS[flag].value):
        raise InputError(f"--{flag} is needed: {what}")
    return value


def check_least(**least: int) -> None:
    """Check that the flags of these names, if given, are at least this large.

    Raises:
        InputError: a flag is smaller.
    """
    for name, low in least.items():
        if (value := flags.FLAGS[name].value) is not None and value < low:
            raise InputError(f"--{name} must be at least {low}. Received: {value}")


def check_among(flag: str, names: Sequence[str], choices: Sequence[str]) -> None:
    """Check that a list flag names one or more of the choices, and nothing else.

    Raises:
        InputError: the list is empty or has an unknown name.
    """
    unknown = [name for name in names if name not in choices]
    if unknown or not names:
        raise InputError(f"--{flag} must be among {', '.join(choices)}. Received: {','.join(unknown) or 'none'}")


def start_tensorflow() -> None:
    """Import TensorFlow and print its version and devices.

    Its native libraries write a page of notes to stderr at start, at any log level; they are suppressed unless the
    import fails or TF_CPP_MIN_LOG_LEVEL is set.

    Raises:
        InputError: Keras is set to another backend, or to another type of numbers.
    """
    settings.check_backend()
    settings.check_floatx()
    print("Starting TensorFlow ...", flush=True)
    wanted = "TF_CPP_MIN_LOG_LEVEL" in os.environ
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.nullcontext() if wanted else _suppressed_stderr(), _hidden("matplotlib"):
        import keras  # noqa: F401  it would load matplotlib for functions that are not used here
        import tensorflow as tf

        devices = tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU")
    names = ", ".join(device.name.removeprefix("/physical_device:") for device in devices)
    print(f"TensorFlow {tf.__version__} on {names or f'the CPU, {settings.cores()} cores'}", flush=True)


@contextlib.contextmanager
def _hidden(package):
    """Let a package that is not loaded yet look as if it were not installed, to all that is loaded in the context."""
    is_loaded = package in sys.modules
    if not is_loaded:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not is_loaded:
            sys.modules.pop(package, None)


def start_strategy(rows: int = 1) -> "tf.distribute.Strategy":
    """Start TensorFlow and make the `tf.distribute.Strategy` that the flags ask for, for batches of this many rows."""
    check_least(cpu_replicas=1)
    start_tensorflow()
    from kddpm.distribution import strategies, workers

    strategy = strategies.make(flags.FLAGS.strategy, flags.FLAGS.cpu_replicas, rows)
    if text := workers.describe(strategy):
        print(text, flush=True)
    with workers.using(strategy):
        workers.check_same(strategy, "command line", " ".join(sys.argv[1:]))
    return strategy


@contextlib.contextmanager
def _suppressed_stderr():
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
    """Parse numbers such as "0-63", "7" or "1,5,10-20"; a range includes both ends.

    Raises:
        InputError: another format, or numbers that do not fit int32.
    """
    numbers: list[int] = []
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
