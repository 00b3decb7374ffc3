"""benchmarks/speed: its page and its processes, without a measurement."""

import importlib
import sys

import pytest
from helpers.places import ROOT

SPEED = ROOT / "benchmarks" / "speed"
ANSWERING = """
import sys
sys.path.insert(0, {folder!r})
import contestants

class Worker:
    def twice(self, number):
        print("a library prints")
        return 2 * number

    def fail(self):
        raise ValueError("what went wrong\\nand more")

    def die(self):
        import os
        os._exit(1)

contestants.serve(Worker())
"""


@pytest.fixture(scope="module")
def speed():
    """A function that imports a file of benchmarks/speed, whose names others have too."""
    sys.path.insert(0, str(SPEED))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(SPEED))


@pytest.fixture
def contestant(speed, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(ANSWERING.format(folder=str(SPEED)))
    with speed("contestants").Contestant("A", sys.executable, script) as it:
        yield it


def test_a_contestant_answers_and_what_it_prints_is_no_answer(contestant):
    assert [contestant.ask("twice", number=n) for n in (2, 3)] == [4, 6]


def test_errors_and_deaths_are_told_in_a_line(speed, contestant):
    failure = speed("contestants").Failure
    with pytest.raises(failure, match="^A: fail: ValueError: what went wrong$"):
        contestant.ask("fail")
    assert contestant.ask("twice", number=1) == 2
    with pytest.raises(failure, match="^A: die: the process died"):
        contestant.ask("die")


def row(form, rates, peak):
    precision = "bfloat16" if "bfloat16" in form else "float32"
    return {
        "case": "digits", "form": form, "batch": 64, "rates": rates, "peak_gib": peak, "imported_gib": 0.25,
        "first_step_s": 9.0, "parameters": 1000, "precision": precision, "is_xla": form == "kddpm",
    }  # fmt: skip


def found(rows):
    machine = {
        "processor": "P", "cores": 2, "features": {"avx2": True, "amx_tile": False}, "memory_gib": 8.0, "system": "S",
        "versions": {"kddpm": {"keras": "3"}}, "busy": 0.5,
    }  # fmt: skip
    about = {"machine": machine, "command": "python x.py", "date": "2000-01-01", "minutes": 3.0, "quick": False}
    operators = [{"what": "product", "program": "PyTorch", "precision": "float32", "rates": [6e9, 6e9, 6e9]}]
    return {
        "ceiling": {**about, "rows": operators, "operations": {"digits": 1e7}},
        "training": {**about, "rows": rows},
    }  # fmt: skip


ROWS = [
    row("kddpm", [90.0, 100.0, 110.0], 1.0),
    row("kddpm bfloat16", [80.0, 80.0, 80.0], 0.5),
    row("PyTorch float32", [60.0, 200.0, 220.0], 2.0),
    row("PyTorch bfloat16", [10.0, 10.0, 10.0], 1.0),
]


def test_the_summary_puts_the_fastest_form_of_each_program_side_by_side(speed):
    # Ratios of the rounds: 90 / 60, 100 / 200, 110 / 220.
    line = "| training, `digits`, batch 64 | 100/s, float32 XLA | 200/s, float32 | 0.500 (0.500 to 1.50) | 0.50 |"
    assert line in speed("report").summary(found(ROWS)).splitlines()


def test_the_page_has_every_form_with_its_share_of_the_ceiling(speed):
    page = speed("report").text(found(ROWS))
    # 3 x 100 images/s x 1e7 operations over 6e9; nothing was measured in bfloat16.
    assert (
        "| kddpm: float32 XLA | 100 (90.0 to 110) | 0.500 (0.500 to 1.50) | 9.0 s | 1.00 GiB | 0.75 GiB | 0.50 |"
        in page
    )
    assert "| kddpm bfloat16 | 80.0 (80.0 to 80.0) | 0.400 (0.364 to 1.33) | 9.0 s | 0.50 GiB | 0.25 GiB |  |" in page
    assert "avx2 yes, amx_tile no" in page and "others used 50 % of the machine" in page


def test_a_page_quotes_the_summary_between_its_markers(speed, tmp_path):
    report, page = speed("report"), tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    report.quote(page, found(ROWS))
    assert page.read_text() == f"before\n{report.BEGIN}{report.summary(found(ROWS))}{report.END}after\n"


def test_the_readme_has_the_markers(speed):
    report, text = speed("report"), (ROOT / "README.md").read_text()
    assert 0 < text.index(report.BEGIN) < text.index(report.END)


def test_figures_keep_three_digits(speed):
    rounded = speed("report").rounded
    assert [rounded(x) for x in (0, 0.01234, 1.236, 99.96, 123.4, 12345.6)] == [
        "0",
        "0.0123",
        "1.24",
        "100",
        "123",
        "12,346",
    ]
