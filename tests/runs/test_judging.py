"""Metrics of generated pictures: their numbers, against which real ones, measured once."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from helpers.judged_runs import COUNT, LABELS, seen
from helpers.places import ROOT
from helpers.processes import python
from helpers.small_runs import make_run

import kddpm
from kddpm import data
from kddpm.evaluation import classifier, features, metrics, moments
from kddpm.runs import build, judging

pytestmark = pytest.mark.usefixtures("least_network", "loaded_once")


def test_the_numbers_are_those_of_the_pictures(judged, measured):
    names = ["fid", "kid", "precision_recall", "accuracy", "copies"]
    content = measured(names, "classes", samplers=["ddim:2", "ancestral:3"])
    source = data.load(f"npz:{judged}/images.npz")
    real = judging.split(source, None, COUNT, 0)
    reference, _ = seen(judged, source.images[real.rows])
    model = build.load_run(judged / "classes")
    sets = [real.floor, model.generate(range(COUNT), "ddim", 2), model.generate(range(COUNT), "ancestral", 3)]
    labels = [LABELS[np.setdiff1d(np.arange(60), real.rows)], np.arange(COUNT) % 3, np.arange(COUNT) % 3]
    assert [row["name"] for row in content["rows"][1:]] == ["ddim, 2 steps", "ancestral, 3 steps"]
    for row, pictures, label in zip(content["rows"], sets, labels, strict=True):
        found, probabilities = seen(judged, pictures)
        distance = metrics.frechet_distance(moments.of(found), moments.of(reference))
        assert row["num_images"] == COUNT and row["frechet"] == pytest.approx(distance, rel=1e-4, abs=1e-9)
        assert row["kid"] == pytest.approx(metrics.kernel_distance(found, reference).value, rel=1e-3, abs=1e-9)
        assert row["named"] == np.mean(probabilities.max(axis=1) >= 0.9)
        assert row["accuracy"] == np.mean(probabilities.argmax(axis=1) == label)
        assert sum(row["classes"]) == COUNT and 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1
    assert content["rows"][1]["copies"] == metrics.copies(sets[1], source.images).rate.value
    assert "copies" not in content["rows"][0] and content["reference_images"] == 60 - COUNT


def test_what_belongs_to_the_reference_is_measured_once(judged, measured, monkeypatch):
    """Of three rows: the root of its covariance, the sums of its kernels, its radii, and how near copies are."""
    made = collections.Counter()

    def counting(name, function):
        return lambda *args, **options: made.update([name]) or function(*args, **options)

    for name in ("FrechetReference", "KernelReference", "Originals", "nearest_others"):
        monkeypatch.setattr(metrics, name, counting(name, getattr(metrics, name)))
    measured(["fid", "kid", "precision_recall", "copies"], samplers=["ddim:2", "ancestral:3"])
    radii = 1 + 3  # of the reference and of each row
    assert made == {"FrechetReference": 1, "KernelReference": 1, "Originals": 1, "nearest_others": radii}


@pytest.mark.parametrize("held_out", [False, True])
def test_the_floor_is_none_of_the_reference(judged, held_out):
    source, others = (data.load(f"npz:{judged}/{name}.npz") for name in ("images", "others"))
    real = judging.split(source, others if held_out else None, COUNT, 3)
    reference = {image.tobytes() for image in source.images[real.rows]}
    assert len(reference) == (60 if held_out else 60 - COUNT) and len(real.floor) == COUNT
    assert not reference & {image.tobytes() for image in real.floor}
    assert real.known == 0
    pool = others if held_out else source
    for image, label in zip(real.floor, real.floor_labels, strict=True):
        (place,) = np.flatnonzero((pool.images == image).all(axis=(1, 2, 3)))
        assert label == pool.labels[place]
    assert len(judging.split(source, None, None, 0).floor) == 30  # half of what there is


def test_held_out_pictures_that_are_in_the_reference_are_counted(judged):
    source, others = (data.load(f"npz:{judged}/{name}.npz") for name in ("images", "others"))
    mixed = np.concatenate([others.images[:20], source.images[:7]])
    assert judging.split(source, dataclasses.replace(others, images=mixed), None, 0).known == 7


def test_the_floor_is_dealt_in_no_order(judged, measured, monkeypatch):
    """Sorted by class, or classes in turn, its groups would differ less, or more, than random ones."""
    dealt, in_groups = [], moments.in_groups

    def collected(batches, *rounds):
        dealt.append(list(batches))
        return in_groups(dealt[-1], *rounds)

    monkeypatch.setattr(moments, "in_groups", collected)
    row = measured(["fid", "accuracy"], "classes", held_out=f"npz:{judged}/others.npz", num_images=30)["rows"][0]
    source = data.load(f"npz:{judged}/others.npz")
    in_order, probabilities = seen(judged, source.images)
    floor = np.concatenate(dealt[0])
    assert np.abs(floor - in_order).max() > 1e-3
    np.testing.assert_allclose(np.sort(floor, axis=0), np.sort(in_order, axis=0), atol=1e-5)
    assert row["accuracy"] == np.mean(probabilities.argmax(axis=1) == source.labels)


def test_classes_in_turn_are_dealt_to_groups_in_rounds(judged, measured, monkeypatch):
    dealt, in_groups = [], moments.in_groups
    monkeypatch.setattr(
        moments, "in_groups", lambda batches, *rounds: dealt.append(rounds) or in_groups(batches, *rounds)
    )
    measured(run="classes")
    measured(run="run", overwrite=True)
    generated = [rounds for rounds in dealt if rounds not in ((), (1,))]
    assert generated == [(3,)] and len(dealt) == 6  # floor, reference and pictures of each


def test_accuracy_needs_no_features_of_real_images(measured, monkeypatch):
    monkeypatch.setattr(judging.Judge, "_of_reference", pytest.fail)
    assert "named" in measured(["accuracy"])["rows"][1]


def test_moments_are_of_the_frechet_distance_alone(measured, monkeypatch):
    monkeypatch.setattr(moments, "in_groups", pytest.fail)
    row = measured(["kid", "precision_recall", "accuracy"])["rows"][1]
    assert row["num_images"] == COUNT and {"kid", "recall", "named"} < set(row)


def test_pixels_need_no_extractor(measured, monkeypatch, capsys):
    monkeypatch.setattr(features, "load", pytest.fail)
    content = measured(["copies"], extractor=None, verbose=True)
    assert content["extractor"] is None and content["rows"][1]["num_images"] == COUNT
    assert "\nReference: 36 of 60 images of npz:" in capsys.readouterr().out


def test_mirror_images_are_copies_of_a_run_that_was_trained_on_them(judged, measured, monkeypatch):
    images = data.load(f"npz:{judged}/images.npz").images
    monkeypatch.setattr(kddpm.DiffusionModel, "generate", lambda self, seeds, *args, **options: images[seeds, :, ::-1])
    found = [measured(["copies"], run, overwrite=True)["rows"][1] for run in ("mirrored", "run")]
    assert found[0]["copies"] == 1 and found[1]["copies"] < 0.5


def test_cas_trains_on_generated_pictures_and_tests_on_real_ones(judged, measured, monkeypatch):
    trained, tested = [], []
    monkeypatch.setattr(classifier, "train", lambda *args, **kwargs: trained.append(args) or "network")
    monkeypatch.setattr(classifier, "accuracy", lambda *args: tested.append(args) or 0.75)
    content = measured(["cas"], "classes", held_out=f"npz:{judged}/others.npz")
    (real, real_labels, _), (pictures, labels, classes) = trained
    source, others = (data.load(f"npz:{judged}/{name}.npz") for name in ("images", "others"))
    assert np.array_equal(pictures, build.load_run(judged / "classes").generate(range(COUNT), "ddim", 2))
    assert np.array_equal(labels, np.arange(COUNT) % 3) and classes == 3 and len(real) == COUNT
    for image, label in zip(real, real_labels, strict=True):
        assert label == source.labels[np.flatnonzero((source.images == image).all(axis=(1, 2, 3)))[0]]
    for _, images, _ in tested:
        assert len(images) == COUNT and all((others.images == image).all(axis=(1, 2, 3)).any() for image in images)
    assert [row["cas"] for row in content["rows"]] == [0.75, 0.75]


def test_cas_is_measured(judged, measured, monkeypatch):
    monkeypatch.setattr(judging, "_CAS_STEPS", 20)
    monkeypatch.setattr(features, "load", pytest.fail)  # cas has its own classifier
    content = measured(["cas"], "classes", held_out=f"npz:{judged}/others.npz", extractor=None)
    assert content["extractor"] is None and all(0 <= row["cas"] <= 1 for row in content["rows"])


@pytest.mark.parametrize(("count", "steps"), [(24, 1000), (130, 1000), (25_600, 2000)])
def test_cas_trains_for_so_many_steps(judged, monkeypatch, count, steps):
    taken = []

    def train(images, labels, num_classes, *, epochs, batch_size, verbose):
        taken.append(epochs * (len(images) // batch_size))
        return lambda images, training: (None, np.zeros((len(images), 3)))

    monkeypatch.setattr(classifier, "train", train)
    source = data.load(f"npz:{judged}/images.npz")
    judge = judging.Judge(["cas"], None, judging.split(source, None, 20, 0), 3, (), 16, judged, False)
    judge._cas(np.zeros((count, 1)), np.zeros(count))
    assert taken == [steps]


def test_cas_compares_equal_numbers_of_pictures(judged, measured, monkeypatch):
    """Sixty real images, of which 30 are the floor: 30 are left to train on, and so many of the 50 generated ones."""
    trained = []
    monkeypatch.setattr(classifier, "train", lambda *args, **kwargs: trained.append(len(args[0])))
    monkeypatch.setattr(classifier, "accuracy", lambda *args: 0.5)
    measured(["cas"], "classes", num_images=50, held_out=None)
    assert trained == [30, 30]


@pytest.mark.slow
def test_two_replicas_paint_judge_and_train(judged, tmp_path, whole_network):
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
    run = make_run(tmp_path / "run", f"npz:{judged}/images.npz", class_names="012", num_classes=3)
    result = python(script, run, tmp_path / "out", judged / "judge", PYTHONPATH=str(ROOT))
    assert not result.returncode, result.stderr
    stored = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert all(0 <= row["cas"] <= 1 and row["frechet"] > 0 for row in stored["rows"]) and len(stored["rows"]) == 2
