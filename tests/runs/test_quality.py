"""Metrics of generated pictures: whose pictures, against which real ones, kept where, said how."""

import collections
import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from helpers.image_samples import random_pixels
from helpers.places import ROOT
from helpers.processes import python
from helpers.refusals import raises_in_flags
from helpers.small_runs import make_run
from PIL import Image

import kddpm
from kddpm import data
from kddpm.base import files as kddpm_files
from kddpm.device import litert
from kddpm.evaluation import classifier, features, metrics, moments
from kddpm.runs import build, checkpoints, evaluate, generators, judging, pieces, quality
from kddpm.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("least_network")
COUNT = 24
LABELS = np.arange(60) % 3


@pytest.fixture(scope="module")
def files(tmp_path_factory, least_network):
    """Sixty images of three classes, a run of them with classes and one without, and an extractor without training."""
    folder = tmp_path_factory.mktemp("quality")
    np.savez(folder / "images.npz", images=random_pixels(60, 8, 8), labels=LABELS)
    np.savez(folder / "others.npz", images=random_pixels(30, 8, 8, seed=1), labels=LABELS[:30])
    np.savez(folder / "unlabelled.npz", images=random_pixels(30, 8, 8, seed=1))
    digest = data.load(f"npz:{folder}/images.npz").digest
    make_run(folder / "run", f"npz:{folder}/images.npz", digest, class_names="012")
    make_run(folder / "mirrored", f"npz:{folder}/images.npz", digest, class_names="012", horizontal_flip=True)
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
        assert row["num_images"] == COUNT and row["frechet"] == pytest.approx(distance, rel=1e-4, abs=1e-9)
        assert row["kid"] == pytest.approx(metrics.kernel_distance(found, reference).value, rel=1e-3, abs=1e-9)
        assert row["named"] == np.mean(probabilities.max(axis=1) >= 0.9)
        assert row["accuracy"] == np.mean(probabilities.argmax(axis=1) == label)
        assert sum(row["classes"]) == COUNT and 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1
    assert content["rows"][1]["copies"] == metrics.copies(sets[1], source.images).rate.value
    assert "copies" not in content["rows"][0] and content["reference_images"] == 60 - COUNT


def test_what_belongs_to_the_reference_is_measured_once(files, measured, monkeypatch):
    """Of three rows: the root of its covariance, the sums of its kernels, its radii, and how near copies are."""
    made = collections.Counter()

    def counting(name, function):
        return lambda *args, **options: made.update([name]) or function(*args, **options)

    for name in ("FrechetReference", "KernelReference", "Originals", "nearest_others"):
        monkeypatch.setattr(metrics, name, counting(name, getattr(metrics, name)))
    measured(["fid", "kid", "precision_recall", "copies"], samplers=["ddim:2", "ancestral:3"])
    radii = 1 + 3 + 1  # of the reference, of each row, and between the originals
    assert made == {"FrechetReference": 1, "KernelReference": 1, "Originals": 1, "nearest_others": radii}


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
    assert (
        table[2].split()[:4] == ["ddim,", "2", "steps", "24"] and f"{content['rows'][1]['frechet']:.4g} +-" in table[2]
    )
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
    for path in (finished / "evaluation").glob("pictures/*/*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            folders[path.parent.name] = archive["pictures"]
    expected = model.generate(range(20), "ddim", 2)
    assert sum(np.array_equal(pictures, expected) for pictures in folders.values()) == 1 and len(folders) == 2


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


def test_an_exported_file_is_a_row_beside_the_run(files, measured, tmp_path, monkeypatch):
    path = tmp_path / "phone.tflite"
    path.write_bytes(b"TFL3")
    about = {"sampler": {"name": "ddim", "num_steps": 20}, "precision": "int8"}
    path.with_suffix(".json").write_text(json.dumps(about))
    monkeypatch.setattr(litert, "load", lambda *args, **kwargs: {"generate": Runner(5)})
    content = measured(run="classes", models=[path])
    assert content["rows"][2]["name"] == "phone.tflite, ddim, 20 steps, int8" and len(content["models"][0]) == 64
    found = [
        np.load(p, allow_pickle=False)["pictures"] for p in (files / "classes" / "evaluation").glob("pictures/*/*.npz")
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


def test_cas_is_measured(files, measured, monkeypatch):
    monkeypatch.setattr(judging, "_CAS_STEPS", 20)
    monkeypatch.setattr(features, "load", pytest.fail)  # cas has its own classifier
    content = measured(["cas"], "classes", held_out=f"npz:{files}/others.npz", extractor=None)
    assert content["extractor"] is None and all(0 <= row["cas"] <= 1 for row in content["rows"])


@pytest.mark.parametrize(("count", "steps"), [(24, 1000), (130, 1000), (25_600, 2000)])
def test_cas_trains_for_so_many_steps(files, monkeypatch, count, steps):
    taken = []

    def train(images, labels, num_classes, *, epochs, batch_size, verbose):
        taken.append(epochs * (len(images) // batch_size))
        return lambda images, training: (None, np.zeros((len(images), 3)))

    monkeypatch.setattr(classifier, "train", train)
    source = data.load(f"npz:{files}/images.npz")
    judge = judging.Judge(["cas"], None, judging.split(source, None, 20, 0), 3, (), 16, files, False)
    judge._cas(np.zeros((count, 1)), np.zeros(count))
    assert taken == [steps]


def test_cas_compares_equal_numbers_of_pictures(files, measured, monkeypatch):
    """Sixty real images, of which 30 are the floor: 30 are left to train on, and so many of the 50 generated ones."""
    trained = []
    monkeypatch.setattr(classifier, "train", lambda *args, **kwargs: trained.append(len(args[0])))
    monkeypatch.setattr(classifier, "accuracy", lambda *args: 0.5)
    measured(["cas"], "classes", num_images=50, held_out=None)
    assert trained == [30, 30]


@pytest.mark.slow
def test_two_replicas_paint_judge_and_train(files, tmp_path, whole_network):
    script = tmp_path / "two.py"
    script.write_text("""
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from kddpm.runs import evaluate, judging
judging._CAS_STEPS, judging._CAS_EPOCHS = 2, 1
content = evaluate.evaluate(
    sys.argv[1], ["fid", "accuracy", "cas"], samplers=["ddim:2"], num_images=20, out=sys.argv[2],
    extractor=sys.argv[3], strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), verbose=False,
)
""")
    run = make_run(tmp_path / "run", f"npz:{files}/images.npz", class_names="012", num_classes=3)
    result = python(script, run, tmp_path / "out", files / "judge", PYTHONPATH=str(ROOT))
    assert not result.returncode, result.stderr
    stored = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert all(0 <= row["cas"] <= 1 and row["frechet"] > 0 for row in stored["rows"]) and len(stored["rows"]) == 2


# What goes with what.


def test_classes_in_turn_are_dealt_to_groups_in_rounds(files, measured, monkeypatch):
    dealt, in_groups = [], moments.in_groups
    monkeypatch.setattr(
        moments, "in_groups", lambda batches, *rounds: dealt.append(rounds) or in_groups(batches, *rounds)
    )
    measured(run="classes")
    measured(run="run", overwrite=True)
    generated = [rounds for rounds in dealt if rounds not in ((), (1,))]
    assert generated == [(3,)] and len(dealt) == 6  # floor, reference and pictures of each


def test_the_floor_is_dealt_in_no_order(files, measured, monkeypatch):
    """Sorted by class, or classes in turn, its groups would differ less, or more, than random ones."""
    dealt, in_groups = [], moments.in_groups

    def collected(batches, *rounds):
        dealt.append(list(batches))
        return in_groups(dealt[-1], *rounds)

    monkeypatch.setattr(moments, "in_groups", collected)
    row = measured(["fid", "accuracy"], "classes", held_out=f"npz:{files}/others.npz", num_images=30)["rows"][0]
    source = data.load(f"npz:{files}/others.npz")
    in_order, probabilities = seen(files, source.images)
    floor = np.concatenate(dealt[0])
    assert np.abs(floor - in_order).max() > 1e-3
    np.testing.assert_allclose(np.sort(floor, axis=0), np.sort(in_order, axis=0), atol=1e-5)
    assert row["accuracy"] == np.mean(probabilities.argmax(axis=1) == source.labels)


def test_two_evaluations_do_not_write_to_one_folder(measured, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        kddpm_files.locked(tmp_path / "out"),
        raises_in_flags("--out must be another folder: another process is writing to it. Received: "),
    ):
        measured()
    assert not list((tmp_path / "out").iterdir())
    measured()


def test_images_that_changed_since_the_training_are_named(files, measured, tmp_path, capsys):
    run = shutil.copytree(files / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["digest"] = "of other images"
    (run / "config.json").write_text(json.dumps(config))
    measured(run=run, verbose=True)
    assert "images.npz are no longer those that the run was trained on" in capsys.readouterr().out


def test_places_that_cannot_be_written_to_are_named_before_anything_is_painted(files, measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kddpm.DiffusionModel, "generate", pytest.fail)
    with raises_in_flags("--cache_dir must be in a folder that can be written to. Received: "):
        measured(cache_dir=str(tmp_path / "file"))
    run = shutil.copytree(files / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    (run / "evaluation").touch()
    with raises_in_flags("--run_dir must be in a folder that can be written to. Received: "):
        measured(run=run)


def test_large_batches_paint_no_more_pictures(measured, monkeypatch):
    monkeypatch.setattr(pieces, "ROWS", 10)
    generate, painted = kddpm.DiffusionModel.generate, []

    def counted(self, seeds, *args, **kwargs):
        painted.append(len(seeds))
        return generate(self, seeds, *args, **kwargs)

    monkeypatch.setattr(kddpm.DiffusionModel, "generate", counted)
    measured(samplers=["ddim:4"], batch_size=512)
    assert painted == [10, 10, 10]


def test_pixels_need_no_extractor(measured, monkeypatch, capsys):
    monkeypatch.setattr(features, "load", pytest.fail)
    content = measured(["copies"], extractor=None, verbose=True)
    assert content["extractor"] is None and content["rows"][1]["num_images"] == COUNT
    assert "\nReference: 36 of 60 images of npz:" in capsys.readouterr().out


def test_accuracy_needs_no_features_of_real_images(measured, monkeypatch):
    monkeypatch.setattr(judging.Judge, "_of_reference", pytest.fail)
    assert "named" in measured(["accuracy"])["rows"][1]


def test_moments_are_of_the_frechet_distance_alone(measured, monkeypatch):
    monkeypatch.setattr(moments, "in_groups", pytest.fail)
    row = measured(["kid", "precision_recall", "accuracy"])["rows"][1]
    assert row["num_images"] == COUNT and {"kid", "recall", "named"} < set(row)


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


def test_what_the_table_lacks_is_said(files, measured, tmp_path, capsys):
    images = random_pixels(22, 8, 10, seed=1)
    np.savez(tmp_path / "wide.npz", images=images, labels=LABELS[:22])
    about = classifier.About("0", [8, 8, 1], ["a", "b", "c"], "x", [], 1, "y", 1, 0.5, 1, 1, 0)
    classifier.save(classifier.build((8, 8, 1), 3), about, tmp_path / "judge")
    options = {"held_out": f"npz:{tmp_path}/wide.npz", "extractor": str(tmp_path / "judge"), "verbose": True}
    content = measured(["fid", "accuracy"], "classes", **options)
    printed = capsys.readouterr().out
    assert "The floor's Frechet distance is of 22 pictures, not of 24, and larger for that" in printed
    assert f"Images of npz:{tmp_path}/wide.npz: 22 of 22 changed (22 cropped" in printed
    assert "No accuracy: the classes of the run are 0, 1, 2, those of the extractor a, b, c" in printed
    assert "accuracy" not in content["rows"][1] and "named" in content["rows"][1]
    measured(["precision_recall"], num_images=40, verbose=True, overwrite=True)
    printed = capsys.readouterr().out
    assert "Precision and recall compare 40 pictures with 30 real ones" in printed and "No accuracy" not in printed
    assert "The floor's precision and recall are of 30 pictures, not of 40" in printed


def test_mirror_images_are_copies_of_a_run_that_was_trained_on_them(files, measured, monkeypatch):
    images = data.load(f"npz:{files}/images.npz").images
    monkeypatch.setattr(kddpm.DiffusionModel, "generate", lambda self, seeds, *args, **options: images[seeds, :, ::-1])
    found = [measured(["copies"], run, overwrite=True)["rows"][1] for run in ("mirrored", "run")]
    assert found[0]["copies"] == 1 and found[1]["copies"] < 0.5


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


def test_what_is_not_a_number_is_a_dash():
    lines = list(quality.table([{"name": "a", "num_images": 20, "frechet": 1.5, "frechet_at_infinity": float("nan")}]))
    assert lines[1].split() == ["a", "20", "1.5", "-"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samplers": ["euler"]}, "--samplers must be NAME or NAME:STEPS, NAME being one of .*. Received: 'euler'"),
        ({"samplers": ["ddim:0"]}, "--samplers must be NAME or NAME:STEPS"),
        ({"samplers": ["ddim:21"]}, r"--samplers must have at most 20 steps \(T\). Received: ddim:21"),
        ({"checkpoints": "all"}, "--checkpoints must be all, or among none. Received: all"),
        ({"held_out": "images"}, "--held_out must be other images than --dataset"),
        ({"held_out": "unlabelled", "run": "classes"}, "--held_out must have labels, as the run has 3 classes"),
        ({"checkpoints": [5]}, r"--checkpoints must be all, or among none. Received: \[5\]"),
        ({"num_images": 19}, "--num_images must be an integer of at least 20. Received: 19"),
        ({"extractor": None}, "--extractor is needed: those that come with kddpm, digits and mnist, know"),
        ({"names": ["cas"]}, "--metrics can be cas only for a run with classes, and images with labels"),
        ({"names": ["copies"], "dataset": "others"}, "--dataset must be what the run was trained on, for copies"),
        ({"models": ["nowhere.tflite"]}, "--models must be a .tflite of the run's pictures. .*No such file"),
        ({"names": ["fid", "clip"]}, "--metrics must be among bits_per_dim, .*. Received: 'clip'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(files, measured, tmp_path, options, text):
    options = {
        name: f"npz:{files}/{value}.npz" if name in ("dataset", "held_out") else value
        for name, value in options.items()
    }
    with raises_in_flags(text):
        measured(**options)
    assert not (tmp_path / "out" / "quality.json").exists()


def test_weights_that_change_while_they_are_read_are_refused(files, monkeypatch, tmp_path):
    run = shutil.copytree(files / "run", tmp_path / "run")
    load = build.load_run

    def while_training(path):
        model = load(path)
        (run / "ema.weights.h5").write_bytes(b"those of the next checkpoint")
        return model

    monkeypatch.setattr(build, "load_run", while_training)
    with raises_in_flags("--run_dir must keep its weights while they are read, and training has replaced them"):
        evaluate.evaluate(run, ["fid"], samplers=["ddim:2"], extractor=str(files / "judge"), verbose=False)


@pytest.mark.parametrize("change", [{"variance": "large"}, {"precision": "mixed_bfloat16"}])
def test_pictures_of_other_steps_are_not_taken_for_these(finished, change):
    run, found = RunDirectory(finished), []
    own, trained_on = run.read()
    for config in (own, own, dataclasses.replace(own, **change)):
        model = build.build_model(config, tuple(trained_on["image_shape"]))
        (generator,) = generators.of_run(run, config, model, "same", [("ancestral", 3)], None, (), 16)
        found.append(generator.facts)
    assert found[0] == found[1] != found[2]


def test_another_guidance_is_another_question(files, measured, monkeypatch):
    measured(run="classes")
    read = RunDirectory.read

    def changed(run):
        config, trained_on = read(run)
        return dataclasses.replace(config, guidance_scale=2.0), trained_on

    monkeypatch.setattr(RunDirectory, "read", changed)
    with raises_in_flags("--out has a result of another guidance_scale"):
        measured(run="classes")


def test_samplers_are_checked_before_anything_is_measured(files):
    model = build.load_run(files / "run")
    run = RunDirectory(files / "run")
    with raises_in_flags("--samplers must have at most 20 steps"):
        generators.of_run(run, run.read()[0], model, "", [("ddim", 9999)], None, (), 16)
