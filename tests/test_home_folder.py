"""A path may begin with `~` at every door: shells leave it alone in `--out=~/x`, and Python always does."""

import pathlib

import matplotlib
import numpy as np
import pytest
from helpers import small_runs
from helpers.image_samples import write_zip
from helpers.places import ROOT
from helpers.processes import python
from helpers.small_models import small

import kddpm
from export import site
from export.edge import command
from kddpm import plots
from kddpm.base import files
from kddpm.base.errors import InputError
from kddpm.cli import picture_files
from kddpm.data import image_cache, images
from kddpm.device import description
from kddpm.evaluation import features
from kddpm.runs import evaluate, weights_files
from kddpm.runs.directory import RunDirectory

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder with pictures, and a current folder that has to stay empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    for i, image in enumerate(IMAGES):
        images.save_png(home / "photos" / f"{i}.png", image)
    write_zip(home / "photos.zip", {path.name: path.read_bytes() for path in (home / "photos").iterdir()})
    np.savez(home / "photos.npz", images=IMAGES)
    images.save_png(home / "mask.png", np.tile(np.uint8([0, 255]), (8, 4))[..., np.newaxis])
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # a new home has no list of fonts, which takes long
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda path: images.save_png(path, IMAGES[0]), "a.png"),
        (lambda path: images.save_gif(path, list(IMAGES)), "a.gif"),
        (lambda path: picture_files.save(pathlib.Path(path), IMAGES, range(6)), "a.npz"),
        (lambda path: picture_files.save(pathlib.Path(path), IMAGES, range(6)), "a.NPZ"),
        (lambda path: picture_files.save(pathlib.Path(path), IMAGES, range(6)), "folder"),
        (lambda path: plots.loss_curve([{"step": i, "loss": 1 / i} for i in (1, 2, 3)], path), "loss.png"),
    ],
)
def test_what_writes_a_file(home, write, name):
    write(f"~/new/{name}")
    assert (home / "new" / name).exists()


@pytest.mark.parametrize("spec", ["folder:~/photos", "zip:~/photos.zip", "npz:~/photos.npz"])
def test_sources_of_images(home, spec):
    loaded = kddpm.data.load(spec)
    np.testing.assert_array_equal(loaded.images, IMAGES)
    assert loaded.source == spec


def test_the_folder_of_decoded_images(home, monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 0)
    np.testing.assert_array_equal(kddpm.data.load("npz:~/photos.npz", cache_dir="~/cache").images, IMAGES)
    assert len(list((home / "cache").glob("images-*.npy"))) == 1


def test_the_folder_of_tensorflow_datasets(home, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    asked = []
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: asked.append(data_dir))
    with pytest.raises(InputError):
        kddpm.data.load("tfds:mnist", tfds_data_dir="~/tfds")
    assert asked == [str(home / "tfds")]


def test_pictures_to_edit(home):
    photos, mask = picture_files.read_inputs("inpaint", "~/photos/0.png", "~/mask.png", (8, 8, 1))
    np.testing.assert_array_equal(photos.images, IMAGES[:1])
    assert mask.sum() == 32
    pair, _ = picture_files.read_inputs("interpolate", "~/photos/0.png,~/photos/1.png", None, (8, 8, 1))
    np.testing.assert_array_equal(pair.images, IMAGES[:2])


def test_runs(home):
    small_runs.make_run("~/run", "npz:~/photos.npz", kddpm.data.load("npz:~/photos.npz").digest)
    assert RunDirectory("~/run").path == home / "run"
    model = kddpm.load_run("~/run")
    weights_files.save(model.ema_network, "~/w/a.weights.h5")
    weights_files.load(model.ema_network, "~/w/a.weights.h5")
    evaluate.evaluate("~/run", out="~/numbers", num_terms=2, max_images=2, verbose=False)
    assert (home / "numbers" / "bits_per_dim.json").is_file() and (home / "w" / "a.weights.json").is_file()


def test_a_run_that_has_its_decoded_images_is_new(home):
    (home / "run" / "decoded").mkdir(parents=True)
    RunDirectory("~/run").check(small_runs.TINY, cache_dir="~/run/decoded")


def test_weights_of_inception(home, monkeypatch):
    (home / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(features.inception, "load", lambda path, variant: pathlib.Path(path).read_bytes())
    loaded = features.load("inception:~/weights.safetensors", (8, 8, 1))
    assert loaded.sha256.endswith(files.sha256(home / "weights.safetensors"))


def test_exports(home, trained_like):
    with pytest.raises(InputError, match=f"`path` must be a folder. Received: {home}/photos.zip"):
        trained_like.export("~/photos.zip", "tf_saved_model")
    assert description.side_file("~/a.tflite") == home / "a.json"


def test_the_site(home, monkeypatch):
    with pytest.raises(InputError, match=f"Received: {home}/site, which holds no"):
        site.serve("~/site", 0)
    monkeypatch.setattr(site, "install", lambda: None)
    with pytest.raises(InputError, match=f"Received: {home}/photos"):
        site.check("~/photos", 1, 1, site.SIGNATURES)
    monkeypatch.setattr(site.os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/kept")
    assert site._npm_folder() == home / "kept" / "kddpm" / "web"


def test_the_client(home):
    with pytest.raises(SystemExit, match=f"{home}/model.tflite is missing"):
        command.main(["~/model.tflite", "--out=~/grid.png"])
    with pytest.raises(SystemExit, match=f"must be a .png file, or a folder. Received: {home}/photos.png"):
        (home / "photos.png").mkdir()
        command.main(["~/model.tflite", "--out=~/photos.png"])


def test_flags(home):
    small_runs.make_run(home / "run", "npz:~/photos.npz")
    edit = ["--inpaint=~/photos/0.png", "--mask=~/mask.png", "--num_steps=1", "--resamplings=1", "--seeds=0"]
    result = python(ROOT / "sample.py", "--run_dir=~/run", "--out=~/way/out.png", *edit)
    assert result.returncode == 0 and f"1 picture in {home}/way/out.png" in result.stdout, result.stderr
    assert (home / "way" / "out.png").is_file()
    result = python("-m", "kddpm.plots", "--out=~/photos.zip")
    assert result.returncode == 2 and f"--out must be a folder. Received: {home}/photos.zip" in result.stderr


def test_other_paths_stay_as_they_are(home):
    for path in ("a/~", "./~/x", "a~", "", "/~", "a/../b/"):
        assert files.expand(path) == path
    assert files.expand(pathlib.Path("~")) == files.expand("~") == str(home)


@pytest.mark.parametrize("open_", [kddpm.load_run, lambda path: kddpm.data.load(f"folder:{path}"), files.expand])
def test_a_user_that_does_not_exist_is_named(home, open_):
    with pytest.raises(InputError, match="A path can begin with ~nobodyhere only for .* Received: ~nobodyhere/x"):
        open_("~nobodyhere/x")


def test_a_file_that_has_such_a_name_is_meant(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    images.save_png(tmp_path / "~nobodyhere" / "a.png", IMAGES[0])
    np.testing.assert_array_equal(kddpm.data.load("folder:~nobodyhere").images, IMAGES[:1])


def test_files_of_keras(home):
    model = small(network={"num_classes": 3})
    model.save("~/a.keras")
    model.save_weights("~/a.weights.h5")
    model.load_weights("~/a.weights.h5")
    assert (home / "a.keras").exists() and (home / "a.weights.h5").exists()
