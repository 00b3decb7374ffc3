"""Whose pictures are measured: weights, samplers, guidance and exported files, and what was painted before."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.judged_runs import COUNT, seen
from helpers.refusals import raises_in_flags

import kddpm
from kddpm import data
from kddpm.device import litert
from kddpm.evaluation import metrics, moments
from kddpm.runs import build, checkpoints, evaluate, generators, judging, pieces
from kddpm.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("least_network", "loaded_once")


def test_every_checkpoint_generates_with_its_own_weights(finished, tmp_path):
    options = {"num_images": 20, "out": tmp_path, "verbose": False}
    content = evaluate.evaluate(finished, ["accuracy"], checkpoints="all", samplers=["ddim:2"], **options)["quality"]
    run, model = RunDirectory(finished), build.load_run(finished)
    assert [row["name"] for row in content["rows"][1:]] == ["step 3, ddim, 2 steps", "step 6, ddim, 2 steps"]
    assert content["checkpoints"] == checkpoints.saved_steps(run) == [3, 6]
    final = model.ema_network.get_weights()
    early, late = (checkpoints.averaged_weights(run, model, step)[1] for step in (3, 6))
    assert all(np.array_equal(a, b) for a, b in zip(final, late, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(final, early, strict=True))
    folders = {}
    for path in (finished / "evaluation").glob("pictures/*/*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            folders[path.parent.name] = archive["pictures"]
    expected = model.generate(range(20), "ddim", 2)
    assert sum(np.array_equal(pictures, expected) for pictures in folders.values()) == 1 and len(folders) == 2


def test_a_checkpoint_without_its_file_is_named(finished, tmp_path):
    run = RunDirectory(shutil.copytree(finished, tmp_path / "run"))
    model = build.load_run(finished)
    with raises_in_flags(r"--checkpoints must be among those of the run, 3, 6. Received: 4"):
        checkpoints.averaged_weights(run, model, 4)
    (run.checkpoints_path / "step_0000003.npz").unlink()
    with raises_in_flags(r"--checkpoints must be among those of the run, 6. Received: 3"):
        checkpoints.averaged_weights(run, model, 3)
    (run.checkpoints_path / "step_0000006.npz").write_bytes(b"")
    with raises_in_flags("The checkpoint of step 6 in .* cannot be read: its sha256 is not that of its description"):
        checkpoints.averaged_weights(run, model, 6)


def test_each_guidance_is_a_row(judged, measured):
    content = measured(run="classes", guidance_scales=[1, 2])
    model = build.load_run(judged / "classes")
    real = judging.split(data.load(f"npz:{judged}/images.npz"), None, COUNT, 0)
    reference = moments.of(seen(judged, real.reference.images[real.rows])[0])
    for row, scale in zip(content["rows"][1:], (1, 2), strict=True):
        pictures = model.generate(range(COUNT), "ddim", 2, guidance_scale=scale)
        distance = metrics.frechet_distance(moments.of(seen(judged, pictures)[0]), reference)
        assert row["name"] == "ddim, 2 steps" + ("" if scale == 1 else ", guidance 2")
        assert row["guidance_scale"] == scale and row["frechet"] == pytest.approx(distance, rel=1e-4)
    assert content["rows"][1]["frechet"] != content["rows"][2]["frechet"]
    with raises_in_flags("--out has a result of another guidance_scales"):
        measured(run="classes")
    with raises_in_flags("--guidance_scales needs a network with classes"):
        measured(guidance_scales=[2])


def test_guidance_is_the_runs_unless_asked(judged, measured, monkeypatch):
    read = RunDirectory.read

    def changed(run):
        config, trained_on = read(run)
        return dataclasses.replace(config, guidance_scale=2.0), trained_on

    monkeypatch.setattr(RunDirectory, "read", changed)
    assert measured(run="classes")["rows"][1]["guidance_scale"] == 2


def test_samplers_are_checked_before_anything_is_measured(judged):
    model = build.load_run(judged / "run")
    run = RunDirectory(judged / "run")
    with raises_in_flags("--samplers must have at most 20 steps"):
        generators.of_run(run, run.read()[0], model, "", [("ddim", 9999, 1.0)], None, (), 16)


@pytest.mark.parametrize("change", [{"variance": "large"}, {"precision": "mixed_bfloat16"}])
def test_pictures_of_other_steps_are_not_taken_for_these(finished, change):
    run, found = RunDirectory(finished), []
    own, trained_on = run.read()
    for config in (own, own, dataclasses.replace(own, **change)):
        model = build.build_model(config, tuple(trained_on["image_shape"]))
        (generator,) = generators.of_run(run, config, model, "same", [("ancestral", 3, 1.0)], None, (), 16)
        found.append(generator.facts)
    assert found[0] == found[1] != found[2]


def test_pictures_are_painted_once(measured, monkeypatch):
    monkeypatch.setattr(pieces, "ROWS", 8)
    generate, painted, left = kddpm.DiffusionModel.generate, [], [2]

    def counted(self, seeds, *args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        painted.append(list(seeds))
        return generate(self, seeds, *args, **kwargs)

    monkeypatch.setattr(kddpm.DiffusionModel, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(batch_size=8)
    left[0] = 1
    resumed = measured(batch_size=8)
    assert painted == [list(range(first, first + 8)) for first in (0, 8, 16)]
    again = measured(batch_size=8)
    assert again["rows"] == resumed["rows"]
    left[0] = 1
    more = measured(batch_size=8, num_images=32, overwrite=True)
    assert painted[3:] == [list(range(24, 32))] and more["num_images"] == 32


def test_large_batches_paint_no_more_pictures(measured, monkeypatch):
    monkeypatch.setattr(pieces, "ROWS", 10)
    generate, painted = kddpm.DiffusionModel.generate, []

    def counted(self, seeds, *args, **kwargs):
        painted.append(len(seeds))
        return generate(self, seeds, *args, **kwargs)

    monkeypatch.setattr(kddpm.DiffusionModel, "generate", counted)
    measured(samplers=["ddim:4"], batch_size=512)
    assert painted == [10, 10, 10]


class Runner:
    """A signature `generate` that paints every picture in the grey of its seed, and its label."""

    def __init__(self, batch, has_label=True, side=8, names=("seed",), seeds=None):
        self.batch, self.side, self.seeds = batch, side, [batch] if seeds is None else seeds
        self.names = [*names, "label"] if has_label else [*names]

    def get_input_details(self):
        return {name: {"shape": np.array(self.seeds)} for name in self.names}

    def get_output_details(self):
        return {"image": {"shape": np.array([self.batch, self.side, self.side, 1])}}

    def __call__(self, **given):
        assert list(given) == self.names and all(array.shape == (self.batch,) for array in given.values())
        grey = given["seed"] + 100 * given.get("label", 0)
        return {"image": np.broadcast_to(grey[:, None, None, None], (self.batch, 8, 8, 1)).astype(np.int32)}


def test_an_exported_file_is_a_row_beside_the_run(judged, measured, tmp_path, monkeypatch):
    path = tmp_path / "phone.tflite"
    path.write_bytes(b"TFL3")
    about = {"sampler": {"name": "ddim", "num_steps": 20}, "precision": "int8"}
    path.with_suffix(".json").write_text(json.dumps(about))
    monkeypatch.setattr(litert, "load", lambda *args, **kwargs: {"generate": Runner(5)})
    content = measured(run="classes", models=[path])
    assert content["rows"][2]["name"] == "phone.tflite, ddim, 20 steps, int8" and len(content["models"][0]) == 64
    found = [
        np.load(p, allow_pickle=False)["pictures"] for p in (judged / "classes" / "evaluation").glob("pictures/*/*.npz")
    ]
    expected = np.arange(COUNT) + 100 * (np.arange(COUNT) % 3)
    assert any(np.array_equal(pictures[:, 0, 0, 0], expected.astype(np.uint8)) for pictures in found)
    path.with_suffix(".json").write_text(json.dumps(about | {"num_classes": 5}))
    with raises_in_flags("--models .*it has 5 classes, and the run 3"):
        measured(run="classes", models=[path])


@pytest.mark.parametrize(
    ("signatures", "text"),
    [
        ({"denoise": None}, "must have the signature 'generate', which paints whole pictures"),
        ({"generate": Runner(1, side=9)}, r"its pictures are \[9, 9, 1\], and those of the run \[8, 8, 1\]"),
        ({"generate": Runner(1, has_label=False)}, "only one of the file and the run has classes"),
        ({"generate": Runner(1, names=["x"])}, "it paints from x, label, and not from seeds, or seeds and labels"),
        ({"generate": Runner(1, seeds=[])}, "it paints from seed, label, and not from seeds, or seeds and labels"),
    ],
)
def test_files_that_do_not_fit_the_run_are_refused(measured, tmp_path, monkeypatch, signatures, text):
    path = tmp_path / "phone.tflite"
    path.write_bytes(b"TFL3")
    monkeypatch.setattr(litert, "load", lambda *args, **kwargs: signatures)
    with raises_in_flags(f"--models .*{text}"):
        measured(run="classes", models=[path])
