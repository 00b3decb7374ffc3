"""Metrics of generated pictures: whose pictures, against which real ones, kept where, said how."""

import functools
import json

import numpy as np
import pytest
from helpers.image_samples import random_pixels
from helpers.refusals import raises_in_flags
from helpers.small_runs import make_run
from PIL import Image

import kddpm
from kddpm import data
from kddpm.device import litert
from kddpm.evaluation import classifier, features, metrics, moments
from kddpm.runs import build, checkpoints, evaluate, judging, pieces
from kddpm.runs.directory import RunDirectory

COUNT = 24
LABELS = np.arange(60) % 3


@pytest.fixture(scope="module")
def files(tmp_path_factory, least_network):
    """Sixty images of three classes, a run of them with classes and one without, and an extractor without training."""
    folder = tmp_path_factory.mktemp("quality")
    np.savez(folder / "images.npz", images=random_pixels(60, 8, 8), labels=LABELS)
    np.savez(folder / "others.npz", images=random_pixels(30, 8, 8, seed=1), labels=LABELS[:30])
    digest = data.load(f"npz:{folder}/images.npz").digest
    make_run(folder / "run", f"npz:{folder}/images.npz", digest, class_names="012")
    make_run(folder / "classes", f"npz:{folder}/images.npz", digest, class_names="012", num_classes=3)
    about = classifier.About("0", [8, 8, 1], ["0", "1", "2"], "x", [], 1, "y", 1, 0.5, 1, 1, 0)
    classifier.save(classifier.build((8, 8, 1), 3), about, folder / "judge")
    return folder


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_run", functools.cache(build.load_run))
        patch.setattr(features, "load", functools.cache(features.load))
        yield


@pytest.fixture
def measured(files, tmp_path):
    """evaluate() of the metrics of pictures, in a few steps."""

    def measure(names=("fid",), run="run", **options):
        defaults = {"samplers": ("ddim:2",), "num_images": COUNT, "batch_size": 16, "verbose": False}
        defaults |= {"extractor": str(files / "judge"), "out": tmp_path / "out"}
        return evaluate.evaluate(files / run, names, **(defaults | options))["quality"]

    return measure


def seen(files, images):
    found, probabilities = features.load(str(files / "judge"), (8, 8, 1)).features()(images)
    return found.astype(np.float64), probabilities


def test_the_numbers_are_those_of_the_pictures(files, measured):
    names = ["fid", "kid", "precision_recall", "accuracy", "copies"]
    content = measured(names, "classes", samplers=["ddim:2", "ancestral:3"])
    source = data.load(f"npz:{files}/images.npz")
    real = judging.split(source, None, COUNT, 0)
    reference, _ = seen(files, source.images[real.rows])
    model = build.load_run(files / "classes")
    sets = [real.floor, model.generate(range(COUNT), "ddim", 2), model.generate(range(COUNT), "ancestral", 3)]
    labels = [LABELS[np.setdiff1d(np.arange(60), real.rows)], np.arange(COUNT) % 3, np.arange(COUNT) % 3]
    assert [row["name"] for row in content["rows"][1:]] == ["ddim, 2 steps", "ancestral, 3 steps"]
    for row, pictures, label in zip(content["rows"], sets, labels, strict=True):
        found, probabilities = seen(files, pictures)
        distance = metrics.frechet_distance(moments.of(found), moments.of(reference))
        assert row["num_images"] == COUNT and row["fid"] == pytest.approx(distance, rel=1e-4, abs=1e-9)
        assert row["kid"] == pytest.approx(metrics.kernel_distance(found, reference).value, rel=1e-3, abs=1e-9)
        assert row["named"] == np.mean(probabilities.max(axis=1) >= 0.9)
        assert row["accuracy"] == np.mean(probabilities.argmax(axis=1) == label)
        assert sum(row["classes"]) == COUNT and 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1
    assert content["rows"][1]["copies"] == metrics.copies(sets[1], source.images).rate.value
    assert "copies" not in content["rows"][0] and content["reference_images"] == 60 - COUNT


@pytest.mark.parametrize("held_out", [False, True])
def test_the_floor_is_none_of_the_reference(files, held_out):
    source, others = (data.load(f"npz:{files}/{name}.npz") for name in ("images", "others"))
    real = judging.split(source, others if held_out else None, COUNT, 3)
    reference = {image.tobytes() for image in source.images[real.rows]}
    assert len(reference) == (60 if held_out else 60 - COUNT) and len(real.floor) == COUNT
    assert not reference & {image.tobytes() for image in real.floor}
    pool = others if held_out else source
    for image, label in zip(real.floor, real.floor_labels, strict=True):
        (place,) = np.flatnonzero((pool.images == image).all(axis=(1, 2, 3)))
        assert label == pool.labels[place]
    assert len(judging.split(source, None, None, 0).floor) == 30  # half of what there is


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
    assert table[2].split()[:4] == ["ddim,", "2", "steps", "24"] and f"{content['rows'][1]['fid']:.4g} +-" in table[2]
    assert len({len(line) for line in table}) == 1


def test_bits_stand_in_the_same_table(files, measured, tmp_path):
    options = {"num_terms": 2, "batch_size": 32, "samplers": ["ddim:2"], "num_images": 20, "verbose": False}
    options |= {"extractor": str(files / "judge"), "out": tmp_path}
    results = evaluate.evaluate(files / "run", ["bits_per_dim", "accuracy"], **options)
    assert results["quality"]["rows"][1]["bits_per_dim"] == results["bits_per_dim"]["total"]
    assert "bits_per_dim" not in results["quality"]["rows"][0]


# What was interrupted goes on.


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


def test_a_result_is_not_lost_to_one_of_another_question(measured):
    measured()
    with raises_in_flags("--out has a result of another num_images and samplers; name another folder, or --overwrite"):
        measured(num_images=20, samplers=["ddim:3"])
    assert measured(samplers=["ddim:3"], overwrite=True)


# Whose pictures.


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
    for path in tmp_path.glob("pictures/*/*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            folders[path.parent.name] = archive["pictures"]
    expected = model.generate(range(20), "ddim", 2)
    assert sum(np.array_equal(pictures, expected) for pictures in folders.values()) == 1 and len(folders) == 2


class Runner:
    """A signature `generate` that paints every picture in the grey of its seed, and its label."""

    def __init__(self, batch, has_label=True, side=8):
        self.batch, self.side = batch, side
        self.names = ["seed", "label"] if has_label else ["seed"]

    def get_input_details(self):
        return {name: {"shape": np.array([self.batch])} for name in self.names}

    def get_output_details(self):
        return {"image": {"shape": np.array([self.batch, self.side, self.side, 1])}}

    def __call__(self, **given):
        assert list(given) == self.names and all(array.shape == (self.batch,) for array in given.values())
        grey = given["seed"] + 100 * given.get("label", 0)
        return {"image": np.broadcast_to(grey[:, None, None, None], (self.batch, 8, 8, 1)).astype(np.int32)}


def test_an_exported_file_is_a_row_beside_the_run(measured, tmp_path, monkeypatch):
    path = tmp_path / "phone.tflite"
    path.write_bytes(b"TFL3")
    about = {"sampler": {"name": "ddim", "num_steps": 20}, "precision": "int8"}
    path.with_suffix(".json").write_text(json.dumps(about))
    monkeypatch.setattr(litert, "load", lambda *args, **kwargs: {"generate": Runner(5)})
    content = measured(run="classes", models=[path])
    assert content["rows"][2]["name"] == "phone.tflite, ddim, 20 steps, int8" and len(content["models"][0]) == 64
    found = [np.load(p, allow_pickle=False)["pictures"] for p in tmp_path.glob("out/pictures/*/*.npz")]
    expected = np.arange(COUNT) + 100 * (np.arange(COUNT) % 3)
    assert any(np.array_equal(pictures[:, 0, 0, 0], expected.astype(np.uint8)) for pictures in found)


@pytest.mark.parametrize(
    ("signatures", "text"),
    [
        ({"denoise": None}, "must have the signature 'generate', which paints whole pictures"),
        ({"generate": Runner(1, side=9)}, r"its pictures are \[9, 9, 1\], and those of the run \[8, 8, 1\]"),
        ({"generate": Runner(1, has_label=False)}, "only one of the file and the run has classes"),
    ],
)
def test_files_that_do_not_fit_the_run_are_refused(measured, tmp_path, monkeypatch, signatures, text):
    path = tmp_path / "phone.tflite"
    path.write_bytes(b"TFL3")
    monkeypatch.setattr(litert, "load", lambda *args, **kwargs: signatures)
    with raises_in_flags(f"--model .*{text}"):
        measured(run="classes", models=[path])


def test_cas_trains_on_generated_pictures_and_tests_on_real_ones(files, measured, monkeypatch):
    trained, tested = [], []
    monkeypatch.setattr(classifier, "train", lambda *args, **kwargs: trained.append(args) or "network")
    monkeypatch.setattr(classifier, "accuracy", lambda *args: tested.append(args) or 0.75)
    content = measured(["cas"], "classes", held_out=f"npz:{files}/others.npz")
    (real, real_labels, _), (pictures, labels, classes) = trained
    source, others = (data.load(f"npz:{files}/{name}.npz") for name in ("images", "others"))
    assert np.array_equal(pictures, build.load_run(files / "classes").generate(range(COUNT), "ddim", 2))
    assert np.array_equal(labels, np.arange(COUNT) % 3) and classes == 3 and len(real) == COUNT
    for image, label in zip(real, real_labels, strict=True):
        assert label == source.labels[np.flatnonzero((source.images == image).all(axis=(1, 2, 3)))[0]]
    for _, images, _ in tested:
        assert len(images) == COUNT and all((others.images == image).all(axis=(1, 2, 3)).any() for image in images)
    assert [row["cas"] for row in content["rows"]] == [0.75, 0.75]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samplers": ["euler"]}, "--samplers must be NAME or NAME:STEPS, NAME being one of .*. Received: 'euler'"),
        ({"samplers": ["ddim:0"]}, "--samplers must be NAME or NAME:STEPS"),
        ({"samplers": ["ddim:21"]}, r"--samplers must have at most 20 steps \(T\). Received: ddim:21"),
        ({"checkpoints": [5]}, r"--checkpoints must be all, or among none. Received: \[5\]"),
        ({"num_images": 19}, "--num_images must be an integer of at least 20. Received: 19"),
        ({"extractor": None}, "--extractor is needed: those that come with kddpm, digits and mnist, know"),
        ({"names": ["cas"]}, "--metrics can be cas only for a run with classes, and images with labels"),
        ({"names": ["copies"], "dataset": "others"}, "--dataset must be what the run was trained on, for copies"),
        ({"models": ["nowhere.tflite"]}, "--model must be a .tflite of the run's pictures. .*No such file"),
        ({"names": ["fid", "clip"]}, "--metrics must be among bits_per_dim, .*. Received: 'clip'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(files, measured, tmp_path, options, text):
    if "dataset" in options:
        options = {**options, "dataset": f"npz:{files}/others.npz"}
    with raises_in_flags(text):
        measured(**options)
    assert not (tmp_path / "out" / "quality.json").exists()
