import pytest
from helpers.processes import python

from kddpm.base.errors import InputError
from kddpm.cli import commands
from kddpm.evaluation import METRICS


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("1,5,10-12", [1, 5, 10, 11, 12]), ("-2", [-2]), ("-3--1", [-3, -2, -1])],
)
def test_numbers(text, numbers):
    assert commands.parse_numbers("seeds", text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1,,2", "1.5", "0-99999999"])
def test_other_text_is_refused(text):
    with pytest.raises(InputError, match="--seeds must look like 0-63 or 1,5,10-20. Received: "):
        commands.parse_numbers("seeds", text)


def test_numbers_beyond_int32_are_refused():
    with pytest.raises(InputError, match="--seeds must fit int32, .* Received: 2147483648"):
        commands.parse_numbers("seeds", "2147483648")


def test_metrics_are_known_names():
    commands.check_among("metrics", ["bits_per_dim"], METRICS)
    for names, received in ([["bits_per_dim", "is", "mmd"], "is,mmd"], [[], "none"], [[""], "none"]):
        with pytest.raises(InputError, match=f"--metrics must be among {', '.join(METRICS)}. Received: {received}$"):
            commands.check_among("metrics", names, METRICS)


def ended(body, *arguments):
    imports = "from kddpm.base.errors import InputError\nfrom kddpm.cli import commands"
    script = f"{imports}\ndef main():\n    {body}\ncommands.run(main)"
    return python("-c", script, *arguments)


def test_bad_input_and_a_failing_disk_end_in_one_line():
    for body, line in [
        ("raise InputError('--x must be 1. Received: 2')", "--x must be 1. Received: 2"),
        ("open('/nowhere/at/all')", "[Errno 2] No such file or directory: '/nowhere/at/all'"),
    ]:
        result = ended(body)
        assert (result.returncode, result.stderr) == (2, f"-c: {line}\n")


def test_anything_else_keeps_its_traceback():
    result = ended("1 / 0")
    assert result.returncode == 1 and "Traceback" in result.stderr and "ZeroDivisionError" in result.stderr


def test_arguments_that_are_no_flags_are_refused():
    result = ended("pass", "stray")
    assert (result.returncode, result.stderr) == (2, "-c: flags must begin with --. Received: stray\n")


RAISE = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("error", ["RuntimeError", "OSError"])
def test_ctrl_c_is_told_whatever_error_a_library_makes_of_it(error):
    caught = f"try:\n        {RAISE}\n    except KeyboardInterrupt:\n        raise {error}('of a callback')"
    result = ended(caught)
    assert (result.returncode, result.stderr) == (130, "\n-c: interrupted\n")


def test_objects_that_stay_are_seldom_searched():
    assert ended("import gc; raise InputError(str(gc.get_threshold()[0]))").stderr == "-c: 50000\n"


def test_tensorflow_starts_without_plots_that_can_be_loaded_later():
    body = "import sys; commands.start_tensorflow(); loaded = [n for n in ('keras', 'matplotlib') if n in sys.modules]"
    result = ended(f"{body}; import matplotlib.pyplot; raise InputError(str(loaded))")
    assert result.stderr.endswith("-c: ['keras']\n")
