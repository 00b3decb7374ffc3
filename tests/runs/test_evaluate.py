import functools
import json
import math
import types

import numpy as np
import pytest
from helpers.image_samples import random_pixels
from helpers.refusals import raises_in_flags
from helpers.small_runs import make_run
from PIL import Image

from kddpm import data, likelihood, plots
from kddpm.base.errors import InputError
from kddpm.data import image_cache
from kddpm.evaluation import BITS
from kddpm.runs import build, evaluate
from kddpm.scripts import evaluate as command

LABELS = np.array([0, 1, 2, 1, 0, 2, 1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Seven images, with labels and without, and a run for either."""
    folder = tmp_path_factory.mktemp("evaluate")
    images = random_pixels(7, 8, 8)
    np.savez(folder / "plain.npz", images=images)
    np.savez(folder / "labelled.npz", images=images, labels=LABELS)
    digest = data.load(f"npz:{folder}/plain.npz").digest
    make_run(folder / "run", f"npz:{folder}/plain.npz", digest)
    make_run(folder / "classes", f"npz:{folder}/labelled.npz", class_names="012", num_classes=3)
    return folder


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """Each run's model is read, and its loop traced, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_run", functools.cache(build.load_run))
        yield


def bound(run, images, labels=None):
    """What the model itself says, two images at a time."""
    return build.load_run(run).bits_per_dim(images[..., None], labels, batch_size=2, verbose=False)


def written(out):
    """The JSON file, which must hold no NaN, a word that JSON has not."""
    return json.loads((out / "bits_per_dim.json").read_text(), parse_constant=pytest.fail)


def test_the_numbers_are_those_of_the_model(files, tmp_path, capsys):
    content = evaluate.evaluate(files / "run", out=tmp_path, batch_size=2)["bits_per_dim"]
    expected = bound(files / "run", random_pixels(7, 8, 8))
    stored = written(tmp_path)
    assert list(stored) == list(content)
    for name in ("total", "standard_error", "elbo", "prior", "terms", "distortions", "rates", "images"):
        assert np.allclose(stored[name], getattr(expected, name), rtol=1e-6, atol=1e-12), name
    assert len(stored["images"]) == stored["num_images"] == 7 and len(stored["terms"]) == 20
    assert math.isclose(sum(stored["terms"]) + stored["prior"], stored["total"])
    assert math.isclose(sum(stored["terms"][1:]), stored["middle"]) and stored["decoder"] == stored["terms"][0]
    assert stored["trained_on_these"] is True and stored["indices"] is None and stored["monte_carlo_error"] == 0
    assert stored["dataset"] == f"npz:{files}/plain.npz" and len(stored["weights_sha256"]) == 64
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.startswith("  ")]
    assert f"Bits per dimension of 7 of 7 images of npz:{files}/plain.npz, which the run was trained on" in lines
    assert table[0] == ["total", f"{expected.total:.4f}", "+-", f"{expected.standard_error:.4f}"]
    assert table[1] == ["prior,", "L_20", f"{expected.prior:.4f}"]
    assert table[2] == ["L_1", "..", "L_19", f"{stored['middle']:.4f}"]
    assert table[3] == ["decoder,", "L_0", f"{stored['decoder']:.4f}"]
    assert table[4][:3] == ["time", "per", "image"]
    assert table[5] == ["memory", f"{stored['bytes_per_image'] / 1e6:.3g}", *"MB for each image of a batch".split()]
    assert table[6] == ["peak", "memory", f"{stored['peak_bytes'] / 1e6:,.0f}", "MB"]
    figures = ["bits_per_dim.png", "rate_distortion.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bits_per_dim.json", *figures]
    assert lines[-1] == f"bits_per_dim.json and {' and '.join(figures)} in {tmp_path}"
    for name in figures:
        with Image.open(tmp_path / name) as figure:
            assert figure.format == "PNG"


def test_terms_that_were_not_drawn_are_null(files, tmp_path, capsys):
    content = evaluate.evaluate(files / "run", out=tmp_path, num_terms=2, max_images=1)["bits_per_dim"]
    stored = written(tmp_path)
    drawn = [t for t, term in enumerate(stored["terms"]) if term is not None]
    assert drawn[0] == 0 and 2 <= len(drawn) <= 3 and stored["num_terms"] == 2
    assert stored["rates"][-1] == stored["prior"] and stored["rates"][0] is None
    assert not (tmp_path / "rate_distortion.png").exists()
    assert stored["standard_error"] is None and math.isnan(content["standard_error"])  # of one image
    assert math.isclose(stored["prior"] + stored["decoder"] + stored["middle"], stored["total"])
    printed = capsys.readouterr().out
    assert f", of which the choice of terms {stored['monte_carlo_error']:.4f}\n" in printed


def test_trajectories_and_fewer_steps_are_passed_on(files, tmp_path, capsys):
    options = {"num_trajectories": 2, "num_steps": 5}
    content = evaluate.evaluate(files / "run", out=tmp_path, max_images=2, **options)["bits_per_dim"]
    stored = written(tmp_path)
    assert stored["num_trajectories"] == 2 and len(stored["terms"]) == stored["num_steps"] == 5
    assert math.isclose(stored["prior"] + stored["middle"] + stored["decoder"], stored["elbo"])
    assert stored["total"] == content["total"] != stored["elbo"] and stored["monte_carlo_error"] > 0
    assert f", of which the trajectories {stored['monte_carlo_error']:.4f}\n" in capsys.readouterr().out


def test_the_bits_of_the_ode_are_another_result(files, tmp_path, capsys):
    options = {"out": tmp_path, "max_images": 3, "num_steps": 4}
    results = evaluate.evaluate(files / "run", ["ode_bits_per_dim", "bits_per_dim"], **options)
    stored = json.loads((tmp_path / "ode_bits_per_dim.json").read_text())
    assert list(results) == ["ode_bits_per_dim", "bits_per_dim"] and list(stored) == list(results["ode_bits_per_dim"])
    images = random_pixels(7, 8, 8)[stored["indices"]]
    expected = likelihood.ode_bits_per_dim(build.load_run(files / "run"), images[..., None], num_steps=4)
    assert np.allclose(stored["images"], expected.images, rtol=1e-5) and stored["num_images"] == 3
    assert np.allclose([stored[name] for name in ("total", "halved")], [expected.total, expected.halved], rtol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    place = lines.index(
        f"Bits per dimension of 3 of 7 images of npz:{files}/plain.npz, which the run was trained on, by the "
        "probability-flow ODE"
    )
    assert lines[place + 1].startswith(f"  {stored['total']:.4f} bits per dimension by the ODE, standard error ")
    assert lines[place + 2] == f"ode_bits_per_dim.json in {tmp_path}"
    with raises_in_flags("--out has a result of another num_steps; name another folder, or --overwrite"):
        evaluate.evaluate(files / "run", ["ode_bits_per_dim"], **{**options, "num_steps": 5})


def test_the_figure_is_of_the_result(files, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "bits_by_term", lambda *arguments: drawn.append(arguments))
    content = evaluate.evaluate(files / "run", out=tmp_path, num_terms=2, batch_size=2, verbose=False)["bits_per_dim"]
    ((result, path),) = drawn
    assert result.total == content["total"] and path == tmp_path / "bits_per_dim.png"


def test_nothing_is_said_where_nothing_shall_be(files, tmp_path, capfd):
    evaluate.evaluate(files / "run", out=tmp_path, num_terms=2, batch_size=2, verbose=False)
    assert capfd.readouterr().out == ""


@pytest.fixture
def quick(files, tmp_path, monkeypatch):
    """evaluate() with two terms, no figure and no words."""
    monkeypatch.setattr(plots, "bits_by_term", lambda result, path: None)

    def quickly(run="run", **options):
        options = {
            "num_terms": 2,
            "batch_size": 2,
            "out": tmp_path / "out",
            "overwrite": True,
            "verbose": False,
            **options,
        }
        return evaluate.evaluate(files / run, **options)["bits_per_dim"]

    return quickly


def test_fewer_images_are_the_first_of_a_shuffled_order(files, quick):
    four = quick(max_images=4, num_terms=None)
    assert (np.diff(four["indices"]) > 0).all() and len(four["indices"]) == four["num_images"] == 4
    assert set(quick(max_images=3)["indices"]) < set(four["indices"])
    chosen = {tuple(quick(max_images=3, seed=seed)["indices"]) for seed in range(3)}
    assert len(chosen) > 1
    expected = bound(files / "run", random_pixels(7, 8, 8)[four["indices"]])
    assert np.allclose(four["images"], expected.images, rtol=1e-6)
    assert quick(max_images=7)["indices"] is None and quick(max_images=9)["num_images"] == 7
    with pytest.raises(InputError, match="`max_images` must be at least 1. Received: 0"):
        quick(max_images=0)


def test_files_go_into_the_run_where_nothing_else_is_said(files, quick):
    quick(out=None)
    assert (files / "run" / "evaluation" / "bits_per_dim.json").exists()


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": random_pixels(7, 9, 8)}, "7 of 7 changed (7 cropped)"),
        ({"images": random_pixels(3, 16, 16, 3)}, "3 of 3 changed (3 made grey and resized)"),
    ],
)
def test_images_that_were_changed_are_refused(quick, tmp_path, arrays, text):
    np.savez(tmp_path / "other.npz", **arrays)
    spec = f"npz:{tmp_path}/other.npz"
    with pytest.raises(InputError) as caught:
        quick(dataset=spec)
    assert str(caught.value) == (
        "`dataset` must hold grey images of 8x8 to be taken as they are: an image that was resized has other bits to "
        f"code. Received: {spec}, with {text}"
    )
    assert not (tmp_path / "out").exists()


def test_one_changed_file_among_many_is_refused(quick, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(random_pixels(8, 8, seed=i)).save(folder / f"{i}.png")
    assert quick(dataset=f"folder:{folder}", max_images=2)["trained_on_these"] is False
    Image.fromarray(random_pixels(8, 10)).save(folder / "20.png")
    with pytest.raises(InputError, match=r"with 1 of 21 changed \(1 cropped\)"):
        quick(dataset=f"folder:{folder}", max_images=2)


def test_a_run_that_was_trained_on_resized_images_is_refused_them_too(files, quick, tmp_path):
    np.savez(tmp_path / "large.npz", images=random_pixels(3, 16, 16))
    spec = f"npz:{tmp_path}/large.npz"
    make_run(tmp_path / "resized", spec, weights=False)
    with pytest.raises(InputError, match=r"with 3 of 3 changed \(3 resized\)"):
        quick(tmp_path / "resized")


def test_labels_are_those_of_the_data(files, quick, tmp_path):
    content = quick("classes", num_terms=None)
    run, images = files / "classes", random_pixels(7, 8, 8)
    assert np.allclose(content["images"], bound(run, images, LABELS).images, rtol=1e-6)
    others = bound(run, images, (LABELS + 1) % 3).images
    assert np.abs(content["images"] - others).max() > 0.01
    some = quick("classes", num_terms=None, max_images=4)
    again = bound(run, images[some["indices"]], LABELS[some["indices"]])
    assert np.allclose(some["images"], again.images, rtol=1e-6)
    quick(dataset=f"npz:{files}/labelled.npz")  # labels too many are left aside


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (None, "--dataset must have labels, as the run has 3 classes. Received: npz:"),
        ([0, 1, 2, 3, 0, 0, 0], "--dataset must have the run's classes, 0, 1, 2. Received: npz:.*, with 0, 1, 2, 3$"),
    ],
)
def test_labels_that_do_not_fit_are_refused(quick, tmp_path, labels, text):
    arrays = {"images": random_pixels(7, 8, 8)} | ({} if labels is None else {"labels": labels})
    np.savez(tmp_path / "other.npz", **arrays)
    with raises_in_flags(text):
        quick("classes", dataset=f"npz:{tmp_path}/other.npz")


def test_classes_are_told_apart_by_their_names(files, quick, tmp_path, monkeypatch):
    model = build.load_run(files / "classes")
    monkeypatch.setattr(build, "load_run", lambda run: model)

    def folders(*names):
        path = tmp_path / "-".join(names)
        for name in names:
            (path / name).mkdir(parents=True)
            Image.fromarray(random_pixels(8, 8)).save(path / name / "1.png")
        return f"folder:{path}"

    names = ["cat", "dog", "emu"]
    run = make_run(tmp_path / "run", folders(*names), class_names=names, num_classes=3, weights=False)
    quick(run, dataset=folders("cat", "dog"))
    np.savez(tmp_path / "numbers.npz", images=random_pixels(2, 8, 8), labels=[0, 2])
    quick(run, dataset=f"npz:{tmp_path}/numbers.npz")
    with pytest.raises(InputError, match="the run's classes, cat, dog, emu. Received: folder:.*, with cat, emu$"):
        quick(run, dataset=folders("cat", "emu"))  # whose emus would be taken for dogs


def test_decoded_data_are_shared_with_training(files, quick, tmp_path, monkeypatch):
    model = build.load_run(files / "run")
    monkeypatch.setattr(build, "load_run", lambda run: model)
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 100)
    np.savez(tmp_path / "grey.npz", images=random_pixels(7, 8, 8))
    spec = f"npz:{tmp_path}/grey.npz"
    run = make_run(tmp_path / "run", spec, weights=False)
    config = json.loads((run / "config.json").read_text())
    config["config"]["channels"] = None
    (run / "config.json").write_text(json.dumps(config))
    data.load(spec, (8, 8), None, cache_dir=str(run / "data"))  # as `training.train` does
    (stored,) = (run / "data").glob("*.json")
    before = stored.stat().st_mtime_ns
    assert quick(run)["num_images"] == 7
    assert stored.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_images": 3}, "max_images"),
        ({"num_terms": 3}, "num_terms"),
        ({"seed": 1}, "seed"),
        ({"clip": False}, "clip"),
        ({"num_steps": 5}, "num_steps"),
        ({"num_terms": None, "num_trajectories": 2}, "num_terms and num_trajectories"),
    ],
)
def test_a_result_is_not_lost_to_one_of_another_question(quick, tmp_path, options, name):
    quick()
    before = (tmp_path / "out" / "bits_per_dim.json").read_bytes()
    with raises_in_flags(f"--out has a result of another {name}; name another folder, or --overwrite"):
        quick(overwrite=False, **options)
    assert (tmp_path / "out" / "bits_per_dim.json").read_bytes() == before
    quick(overwrite=False)  # the same question again
    assert quick(**options)


def test_a_result_from_before_an_option_is_of_its_default(quick, tmp_path):
    quick()
    path = tmp_path / "out" / "bits_per_dim.json"
    content = json.loads(path.read_text())
    del content["num_trajectories"], content["num_steps"], content["elbo"], content["rates"], content["distortions"]
    path.write_text(json.dumps(content))
    with raises_in_flags("--out has a result of another num_steps; name another folder, or --overwrite"):
        quick(overwrite=False, num_steps=5)
    assert "rates" in quick(overwrite=False)


def test_a_file_of_something_else_is_not_overwritten(quick, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bits_per_dim.json").write_text("[]")
    with raises_in_flags("--out has a result of another format"):
        quick(overwrite=False)


def test_a_metric_named_twice_is_measured_once(quick, monkeypatch):
    measured, once = [], evaluate.BITS["bits_per_dim"]
    monkeypatch.setitem(evaluate.BITS, "bits_per_dim", lambda *args: measured.append(1) or once(*args))
    quick(metrics=["bits_per_dim", "bits_per_dim"])
    assert measured == [1]


def test_one_image_at_a_time_does_not_tell_the_memory_of_one_more(quick, capsys):
    content = quick(verbose=True, batch_size=1)
    assert content["peak_bytes"] > 10**7 and math.isnan(content["bytes_per_image"])
    printed = capsys.readouterr().out
    assert "time per image" in printed and "for each image of a batch" not in printed


def test_metrics_by_name(quick):
    assert tuple(evaluate.BITS) == BITS
    with pytest.raises(
        InputError, match="`metrics` must be among bits_per_dim, ode_bits_per_dim, fid, .*. Received: 'is'"
    ):
        quick(metrics=["is"])


@pytest.mark.parametrize("there", [None, 8, 100])
@pytest.mark.parametrize("metrics", [["bits_per_dim"], ["bits_per_dim", "fid"]])
def test_terms_that_are_not_named_are_those_of_the_result_that_is_there(monkeypatch, tmp_path, metrics, there):
    given = {"num_terms": None, "num_trajectories": None, "overwrite": False, "metrics": metrics}
    default = 32 if "fid" in metrics else None

    def terms(**changes):
        monkeypatch.setattr(command, "FLAGS", types.SimpleNamespace(**(given | changes)))
        return command._num_terms(tmp_path)

    assert terms() == default
    (tmp_path / "bits_per_dim.json").write_text(json.dumps({"num_terms": there}))
    assert terms() == there and terms(num_terms=5) == 5
    assert terms(overwrite=True) == default and terms(num_trajectories=2) is None
    (tmp_path / "bits_per_dim.json").write_text(json.dumps({"num_terms": "all"}))
    assert terms() == default
