"""The results of metrics of pictures: the table, what is said beside it, files, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from helpers.image_samples import random_pixels
from helpers.judged_runs import LABELS
from helpers.refusals import raises_in_flags
from PIL import Image

import kddpm
from kddpm.base import files
from kddpm.evaluation import classifier
from kddpm.runs import build, evaluate, judging, quality

pytestmark = pytest.mark.usefixtures("least_network", "loaded_once")


def test_table_files_and_figure(measured, tmp_path, capsys):
    content = measured(["fid", "copies"], verbose=True, held_out=None)
    out = tmp_path / "out"
    stored = json.loads((out / "quality.json").read_text(), parse_constant=pytest.fail)
    assert list(stored) == list(content) and stored["rows"][0]["name"] == "real pictures, the floor"
    with Image.open(out / "quality.png") as figure:
        assert figure.format == "PNG"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"quality.json and quality.png in {out}"
    heading, *table = lines[-5:-1]
    assert (
        heading.endswith("images.npz") and ", which names 50.0 % of real images right; reference: 36 of 60" in heading
    )
    assert table[0].split()[:2] == ["pictures", "Frechet"] and "by chance %" in table[0]
    assert (
        table[2].split()[:4] == ["ddim,", "2", "steps", "24"] and f"{content['rows'][1]['frechet']:.4g} +-" in table[2]
    )
    assert len({len(line) for line in table}) == 1


def test_bits_stand_in_the_same_table(judged, measured, tmp_path):
    options = {"num_terms": 2, "batch_size": 32, "samplers": ["ddim:2"], "num_images": 20, "verbose": False}
    options |= {"extractor": str(judged / "judge"), "out": tmp_path}
    results = evaluate.evaluate(judged / "run", ["bits_per_dim", "accuracy"], **options)
    assert results["quality"]["rows"][1]["bits_per_dim"] == results["bits_per_dim"]["total"]
    assert "bits_per_dim" not in results["quality"]["rows"][0]


def test_what_is_not_a_number_is_a_dash():
    lines = list(quality.table([{"name": "a", "num_images": 20, "frechet": 1.5, "frechet_at_infinity": float("nan")}]))
    assert lines[1].split() == ["a", "20", "1.5", "-"]


def test_what_the_table_lacks_is_said(judged, measured, tmp_path, capsys):
    images = random_pixels(22, 8, 10, seed=1)
    np.savez(tmp_path / "wide.npz", images=images, labels=LABELS[:22])
    about = classifier.About("0", [8, 8, 1], ["a", "b", "c"], "x", [], 1, "y", 1, 0.5, 1, 1, 0)
    classifier.save(classifier.build((8, 8, 1), 3), about, tmp_path / "judge")
    options = {"held_out": f"npz:{tmp_path}/wide.npz", "extractor": str(tmp_path / "judge"), "verbose": True}
    content = measured(["fid", "accuracy"], "classes", **options)
    printed = capsys.readouterr().out
    assert "The floor's Frechet distance is of 22 pictures, not of 24, and larger for that" in printed
    assert f"Images of npz:{tmp_path}/wide.npz: 22 of 22 changed (22 cropped" in printed
    assert "The Frechet distance is of 24 pictures with 64 features each, and says little: give a larger" in printed
    assert "No accuracy: the classes of the run are 0, 1, 2, those of the extractor a, b, c" in printed
    assert "accuracy" not in content["rows"][1] and "named" in content["rows"][1]
    measured(["precision_recall"], num_images=40, verbose=True, overwrite=True)
    printed = capsys.readouterr().out
    assert "Precision and recall compare 40 pictures with 30 real ones" in printed and "No accuracy" not in printed
    assert "The floor's precision and recall are of 30 pictures, not of 40" in printed


def test_images_that_changed_since_the_training_are_named(judged, measured, tmp_path, capsys):
    run = shutil.copytree(judged / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["digest"] = "of other images"
    (run / "config.json").write_text(json.dumps(config))
    measured(run=run, verbose=True)
    assert "images.npz are no longer those that the run was trained on" in capsys.readouterr().out


def test_each_row_is_kept_when_it_is_known(measured, monkeypatch, tmp_path, capsys):
    row, left = judging.Judge.row, [1]

    def interrupted(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return row(*args)

    monkeypatch.setattr(judging.Judge, "row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(samplers=["ddim:2", "ddim:3"], verbose=True)
    stored = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["real pictures, the floor", "ddim, 2 steps"]
    assert "\nddim, 2 steps: Frechet " in capsys.readouterr().out


def test_an_earlier_result_stays_until_the_next_is_whole(measured, monkeypatch, tmp_path):
    measured()
    before = (tmp_path / "out" / "quality.json").read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(judging.Judge, "row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured()
    assert (tmp_path / "out" / "quality.json").read_bytes() == before


def test_a_result_is_not_lost_to_one_of_another_question(measured):
    measured()
    with raises_in_flags("--out has a result of another num_images and samplers; name another folder, or --overwrite"):
        measured(num_images=20, samplers=["ddim:3"])
    assert measured(samplers=["ddim:3"], overwrite=True)


def test_two_evaluations_do_not_write_to_one_folder(measured, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        files.locked(tmp_path / "out"),
        raises_in_flags("--out must be another folder: another process is writing to it. Received: "),
    ):
        measured()
    assert not list((tmp_path / "out").iterdir())
    measured()


def test_places_that_cannot_be_written_to_are_named_before_anything_is_painted(judged, measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kddpm.DiffusionModel, "generate", pytest.fail)
    with raises_in_flags("--cache_dir must be in a folder that can be written to. Received: "):
        measured(cache_dir=str(tmp_path / "file"))
    run = shutil.copytree(judged / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    (run / "evaluation").touch()
    with raises_in_flags("--run_dir must be in a folder that can be written to. Received: "):
        measured(run=run)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samplers": ["euler"]}, "--samplers must be NAME or NAME:STEPS, NAME being one of .*. Received: 'euler'"),
        ({"samplers": ["ddim:0"]}, "--samplers must be NAME or NAME:STEPS"),
        ({"samplers": ["ddim:21"]}, r"--samplers must have at most 20 steps \(T\). Received: ddim:21"),
        ({"checkpoints": "all"}, "--checkpoints must be all, or among none. Received: all"),
        ({"held_out": "images"}, "--held_out must be other images than --dataset"),
        ({"held_out": "others", "dataset": "few"}, "--dataset must have 20 images or more. Received: .*, with 2"),
        ({"dataset": "others"}, "--dataset must have 40 images or more. Received: .*, with 30"),
        ({"held_out": "few"}, "--held_out must have 20 images or more. Received: .*, with 2"),
        ({"held_out": "unlabelled", "run": "classes"}, "--held_out must have labels, as the run has 3 classes"),
        ({"checkpoints": [5]}, "--checkpoints must be all, or among none. Received: 5$"),
        ({"checkpoints": range(1, 20_000)}, r"--checkpoints must be all, or among none. Received: 1, 2, 3 \.\.\.$"),
        ({"num_images": 19}, "--num_images must be an integer of at least 20. Received: 19"),
        ({"extractor": None}, "--extractor is needed: those that come with kddpm, digits and mnist, know"),
        ({"names": ["cas"]}, "--metrics can be cas only for a run with classes, and images with labels"),
        ({"names": ["copies"], "dataset": "others"}, "--dataset must be what the run was trained on, for copies"),
        ({"models": ["nowhere.tflite"]}, "--models must be a .tflite of the run's pictures. .*No such file"),
        ({"names": ["fid", "clip"]}, "--metrics must be among bits_per_dim, .*. Received: 'clip'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(judged, measured, tmp_path, options, text):
    options = {
        name: f"npz:{judged}/{value}.npz" if name in ("dataset", "held_out") else value
        for name, value in options.items()
    }
    with raises_in_flags(text):
        measured(**options)
    assert not (tmp_path / "out" / "quality.json").exists()


def test_held_out_images_that_no_one_reads_are_named_by_their_flag(measured):
    with raises_in_flags("--held_out must be one of digits, npz:FILE, .*. Received: 'faces'"):
        measured(held_out="faces")


def test_numbers_of_numpy_are_numbers(measured):
    numbers = {"num_images": np.int64(20), "seed": np.int32(1), "batch_size": np.int64(16)}
    content = measured(["copies"], **numbers, checkpoints=np.array([], int), guidance_scales=[np.float32(1)])
    assert content["num_images"] == 20 and content["guidance_scales"] == [1.0]


def test_weights_that_change_while_they_are_read_are_refused(judged, monkeypatch, tmp_path):
    run = shutil.copytree(judged / "run", tmp_path / "run")
    load = build.load_run

    def while_training(path):
        model = load(path)
        (run / "ema.weights.h5").write_bytes(b"those of the next checkpoint")
        return model

    monkeypatch.setattr(build, "load_run", while_training)
    with raises_in_flags("--run_dir must keep its weights while they are read, and training has replaced them"):
        evaluate.evaluate(run, ["fid"], samplers=["ddim:2"], extractor=str(judged / "judge"), verbose=False)
