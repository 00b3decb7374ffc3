"""The files of a run: rows of metrics.csv, config.json, and whose directory it is."""

import pytest
from helpers.refusals import raises_in_flags
from helpers.small_runs import TINY

from kddpm.base.errors import InputError
from kddpm.runs import build, training
from kddpm.runs.directory import COLUMNS, RunDirectory

pytestmark = pytest.mark.usefixtures("least_network")


def test_foreign_directories_and_files_are_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with raises_in_flags("--run_dir must be new, empty or a run of train.py. Received: .*full, with files"):
        training.train(TINY, tmp_path / "full", verbose=False)
    with raises_in_flags("--run_dir must be a directory. Received: the file"):
        training.train(TINY, tmp_path / "full" / "thesis.txt", verbose=False)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_metrics_cut_at_any_byte_are_written_again(tmp_path):
    run, rows = RunDirectory(tmp_path), [dict.fromkeys(COLUMNS, step) for step in (3, 6)]
    for row in rows:
        run.append_row(row)
    whole = run.metrics_path.read_bytes()
    for size in range(len(whole) + 1):
        run.metrics_path.write_bytes(whole[:size])
        run.forget_rows_after(0)
        for row in rows:
            run.append_row(row)
        assert run.metrics_path.read_bytes() == whole, f"cut after {size} bytes"


@pytest.mark.parametrize(
    "content", ["step,loss\r\n2,1.0\r\n", "loss,step,gradient_norm,skipped_steps,learning_rate\r\n"]
)
def test_metrics_of_other_columns_are_refused(begin, content):
    run_dir = begin(4, killed=True)
    (run_dir / "metrics.csv").write_text(content)
    with pytest.raises(InputError, match="metrics.csv must hold rows of numbers: expected the columns step,loss,grad"):
        training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_text() == content.replace("\r\n", "\n")


def edited(old, new):
    return lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "must be a run of train.py: no config.json in"),
        (lambda run: (run / "config.json").write_text("{"), "config.json cannot be read: "),
        (lambda run: (run / "config.json").write_text("{}"), "config.json cannot be read: it must hold `config` and"),
        (edited('"width": 8', '"width": 8, "widht": 9'), "config.json cannot be read: .* unexpected keyword"),
        (edited('"images": ', '"pictures": '), "`data` must hold source, .* images, pictures are missing or unknown"),
        (edited('"digest": "', '"digest": 7, "source": "'), "`digest` of its `data` must be str. Received: 7"),
        (edited('"image_shape": [', '"image_shape": ["x", '), "`image_shape` of its `data` must be height, width and"),
        (edited('"width": 8', '"width": -8'), "holds a configuration that cannot be used: `width` must be at least 1"),
        (edited('"width": 8', '"width": 16'), "ema.weights.h5 cannot be read, or does not fit config.json"),
        (lambda run: (run / "ema.weights.h5").unlink(), "has no weights yet: ema.weights.h5 comes with the first"),
        (lambda run: (run / "ema.weights.h5").write_bytes(b"x" * 99), "ema.weights.h5 cannot be read, or does not fit"),
    ],
)
def test_runs_that_cannot_generate_say_why(begin, damage, message):
    run_dir = begin(3)
    damage(run_dir)
    with raises_in_flags(message):
        build.load_run(run_dir)
