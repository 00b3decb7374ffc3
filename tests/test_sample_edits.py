"""sample.py with pictures to edit: what it reads, what it writes, what it refuses."""

import numpy as np
import pytest
from helpers.image_samples import random_pixels
from helpers.processes import sampling
from helpers.small_runs import make_run
from PIL import Image

from kddpm.cli import picture_files
from kddpm.runs import build


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def half(height=8, width=8):
    """A mask: the upper half is kept."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 255
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, one with classes; a picture, the same twice as large in colour and with a border, masks for both."""
    path = tmp_path_factory.mktemp("edits")
    make_run(path / "run", "digits")
    make_run(path / "classes", "digits", class_names="012", num_classes=3)
    save(path / "a.png", random_pixels(8, 8))
    save(path / "b.png", random_pixels(8, 8, seed=1))
    large = np.pad(random_pixels(8, 8).repeat(2, 0).repeat(2, 1), ((0, 0), (3, 3)), constant_values=9)
    save(path / "large.png", np.repeat(large[..., None], 3, -1))
    save(path / "mask.png", half())
    save(path / "large_mask.png", half(16, 22))
    np.savez(path / "three.npz", images=random_pixels(3, 8, 8, seed=2))
    np.savez(path / "two.npz", images=np.stack([random_pixels(8, 8), random_pixels(8, 8, seed=1)]))
    return path


@pytest.fixture(scope="module")
def main(folder):
    """main(*flags) -> what it printed, and its error or None."""
    with sampling(folder) as call:
        yield call


@pytest.fixture
def sample(main):
    """sample(*flags) -> what it printed, having gone well."""

    def call(*flags, run="run"):
        printed, error = main(f"--run_dir={run}", "--num_steps=4", *flags)
        assert error is None
        return printed

    return call


def test_inpainted_pictures_keep_the_known_pixels_in_every_form(sample, folder, tmp_path):
    flags = ["--inpaint=a.png", "--mask=mask.png", "--seeds=3,5", "--resamplings=2", "--jump_length=2"]
    assert f"2 pictures in {tmp_path / 'out'}" in sample(*flags, f"--out={tmp_path / 'out'}")
    photo, painted = random_pixels(8, 8), [read(tmp_path / "out" / f"{seed}.png") for seed in (3, 5)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["3.png", "5.png"]
    for picture in painted:
        assert np.array_equal(picture[:4], photo[:4]) and (picture[4:] != photo[4:]).mean() > 0.5
    assert (painted[0][4:] != painted[1][4:]).mean() > 0.5
    sample(*flags, f"--out={tmp_path / 'out.npz'}")
    with np.load(tmp_path / "out.npz") as archive:
        assert np.array_equal(archive["images"][..., 0], painted) and archive["seeds"].tolist() == [3, 5]
    sample(*flags, f"--out={tmp_path / 'grid.png'}")
    assert np.array_equal(read(tmp_path / "grid.png")[2:50:6, 52:100:6], painted[1])


def test_larger_photos_are_fitted_and_their_masks_with_them(sample, folder, tmp_path):
    flags = ["--inpaint=large.png", "--seeds=3", "--resamplings=2", "--jump_length=2"]
    for mask in ("mask.png", "large_mask.png"):
        printed = sample(*flags, f"--mask={mask}", f"--out={tmp_path / mask[:-4]}")
        assert printed.startswith("large.png: made grey, cropped and resized, from 22x16 to 8x8\n")
        painted = read(tmp_path / mask[:-4] / "3.png")
        assert np.array_equal(painted[:4], random_pixels(8, 8)[:4]) and not np.array_equal(
            painted[4:], random_pixels(8, 8)[4:]
        )


def test_inpainting_with_other_settings(sample, folder, tmp_path):
    flags = ["--inpaint=a.png", "--mask=mask.png", "--seeds=3", f"--out={tmp_path / 'out'}"]

    def painted(*more):
        sample(*flags, *more)
        return read(tmp_path / "out" / "3.png")

    once = painted("--resamplings=1")
    assert not np.array_equal(once, painted("--resamplings=2", "--jump_length=1"))
    assert not np.array_equal(once, painted("--resamplings=1", "--sampler=ddim"))


def test_variations_lie_between_the_picture_and_others(sample, folder, tmp_path):
    def varied(*flags):
        sample(*flags, f"--out={tmp_path / 'out.npz'}")
        with np.load(tmp_path / "out.npz") as archive:
            return archive["images"][..., 0].astype(int), archive["seeds"].tolist()

    photo = random_pixels(8, 8).astype(int)
    same, seeds = varied("--variations=a.png", "--strength=0", "--seeds=4-6")
    assert np.array_equal(same, [photo] * 3) and seeds == [4, 5, 6]
    some, _ = varied("--variations=a.png", "--strength=0.25", "--seeds=4-6")
    assert len(np.unique(some, axis=0)) == 3
    model = build.load_run(folder / "run")
    expected = model.variations(random_pixels(8, 8)[..., None], 0.25, [4, 5, 6], num_steps=4, verbose=False)
    assert np.abs(some - expected[..., 0]).max() <= 1
    whole, _ = varied("--variations=a.png", "--strength=1", "--seeds=4-6")
    assert np.array_equal(whole, varied("--seeds=4-6")[0])
    default, seeds = varied("--variations=a.png")
    half_way, _ = varied("--variations=a.png", "--strength=0.5", "--seeds=0-7")
    assert np.array_equal(default, half_way) and seeds == list(range(8))


def test_every_picture_of_an_archive_is_varied(sample, folder, tmp_path):
    sample("--variations=three.npz", "--strength=0", f"--out={tmp_path / 'out'}")
    for seed in range(3):
        assert np.array_equal(read(tmp_path / "out" / f"{seed}.png"), random_pixels(3, 8, 8, seed=2)[seed])


def test_classes_of_edited_pictures(main, sample, folder, tmp_path):
    def varied(label, *more):
        flags = ["--variations=a.png", "--strength=0.5", "--seeds=1,1", f"--labels={label}", *more]
        sample(*flags, f"--out={tmp_path / 'out.npz'}", run="classes")
        with np.load(tmp_path / "out.npz") as archive:
            return archive["images"]

    both = varied("0,2")
    assert not np.array_equal(both[0], both[1]) and np.array_equal(varied("2")[0], both[1])
    assert not np.array_equal(varied("0,2", "--guidance_scale=4"), both)
    _, error = main("--run_dir=classes", "--variations=a.png", f"--out={tmp_path / 'x.png'}")
    assert error == "--labels is needed to edit with a run with classes: that of the picture, or another"


@pytest.mark.parametrize("ends", ["a.png,b.png", "two.npz"])
def test_the_way_between_two_pictures(sample, folder, tmp_path, ends):
    flags = [f"--interpolate={ends}", "--count=4"]
    assert "4 pictures in" in sample(*flags, f"--out={tmp_path / 'way.npz'}")
    with np.load(tmp_path / "way.npz") as archive:
        way = archive["images"][..., 0]
    assert way.shape == (4, 8, 8)
    assert np.array_equal(way[0], random_pixels(8, 8)) and np.array_equal(way[-1], random_pixels(8, 8, seed=1))
    assert all((way[i] != way[i + 1]).any() for i in range(3))
    if ends == "two.npz":
        return
    sample(*flags, f"--out={tmp_path / 'way.png'}")
    row = read(tmp_path / "way.png")
    assert row.shape == (52, 4 * 50 + 2) and np.array_equal(row[2:50:6, 102:150:6], way[2])
    sample(*flags, f"--out={tmp_path / 'way.gif'}")
    with Image.open(tmp_path / "way.gif") as animation:
        frames = [(animation.seek(i), np.asarray(animation.convert("L")))[1] for i in range(animation.n_frames)]
        assert animation.info["loop"] == 0
    assert [frame[2:50:6, 2:50:6].tolist() for frame in frames] == way[[0, 1, 2, 3, 2, 1]].tolist()


def test_a_way_by_mixing_noised_pictures(sample, tmp_path):
    flags = ["--interpolate=a.png,b.png", "--count=3", "--interpolate_t=10", "--sampler=ddim"]
    ways = []
    for more in ([], ["--seeds=3"]):
        sample(*flags, *more, f"--out={tmp_path / 'way.npz'}")
        with np.load(tmp_path / "way.npz") as archive:
            ways.append(archive["images"])
    assert ways[0].shape == (3, 8, 8, 1) and (ways[0] != ways[1]).any()


def test_guesses_and_sisters(sample, tmp_path):
    sample("--seeds=0-1", "--frames=3", "--frames_of=x0", f"--out={tmp_path / 'x0.png'}")
    sample("--seeds=0-1", "--frames=3", f"--out={tmp_path / 'x_t.png'}")
    guesses, noisy = read(tmp_path / "x0.png"), read(tmp_path / "x_t.png")
    assert guesses.shape == noisy.shape and (guesses[:, :50] != noisy[:, :50]).any()
    np.testing.assert_array_equal(guesses[:, -50:], noisy[:, -50:])
    sample("--seeds=0-3", "--shared_until=0", f"--out={tmp_path / 'sisters.npz'}")
    with np.load(tmp_path / "sisters.npz") as archive:
        assert (archive["images"] == archive["images"][:1]).all()


def test_classes_of_the_two_ends(sample, tmp_path):
    flags = ["--interpolate=a.png,b.png", "--count=3"]
    ways = []
    for labels in ("0,2", "1"):
        sample(*flags, f"--labels={labels}", f"--out={tmp_path / 'way.npz'}", run="classes")
        with np.load(tmp_path / "way.npz") as archive:
            ways.append(archive["images"])
    assert np.array_equal(ways[0][0], ways[1][0]) and not np.array_equal(ways[0][1], ways[1][1])


# What is refused, before TensorFlow starts.

INPAINT = ["--inpaint=a.png", "--mask=mask.png"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--variations=a.png", *INPAINT], "--variations and --inpaint exclude each other"),
        (["--strength=0.3"], "--strength belongs to --variations. Received: no such flag"),
        (["--mask=mask.png", "--variations=a.png"], "--mask belongs to --inpaint. Received: --variations"),
        ([*INPAINT, "--count=4"], "--count belongs to --interpolate. Received: --inpaint"),
        (["--interpolate=a.png,b.png", "--mask=mask.png"], "--mask belongs to --inpaint. Received: --interpolate"),
        (["--jump_length=2"], "--jump_length belongs to --inpaint. Received: no such flag"),
        ([*INPAINT, "--frames=4"], "--frames has no meaning for --inpaint. Received: both"),
        *(
            (["--interpolate=a.png,b.png", flag], f"--{flag[2:].split('=')[0]} has no meaning for --interpolate")
            for flag in ("--seeds=1", "--sampler=ddim", "--clip=false", "--eta=1", "--spacing=karras", "--snr=0.1",
                         "--guidance_scale=2", "--variance=large", "--corrections=2", "--frames=9")
        ),
        (["--inpaint=a.png"], "--mask is needed for --inpaint: an image file, white = keep, black = paint"),
        ([*INPAINT, "--sampler=heun"], "--sampler must be one of ancestral, ddim for --inpaint. Received: heun"),
        ([*INPAINT, "--eta=1"], "--eta belongs to --sampler=ddim. Received: --sampler=ancestral"),
        ([*INPAINT, "--resamplings=0"], "--resamplings must be at least 1. Received: 0"),
        ([*INPAINT, "--jump_length=0"], "--jump_length must be at least 1. Received: 0"),
        (["--interpolate=a.png,b.png", "--count=1"], "--count must be at least 2. Received: 1"),
        (["--variations=a.png", "--strength=1.5"], "--strength must lie in 0 .. 1. Received: 1.5"),
        (["--variations=a.png", "--strength=nan"], "--strength must lie in 0 .. 1. Received: nan"),
        (["--variations=a.png", "--out=x.gif"], "--out must end in .png or .npz, or be a folder, for --varia"),
        (["--interpolate=a.png,b.png", "--out=x.mp4"], "--out must end in .png, .gif or .npz, or be a folder"),
        (["--variations=three.npz", "--seeds=1,2"], "--seeds must be one for each of 3 pictures to edit. Received: 2"),
        (["--variations=a.png", "--seeds=1-3", "--labels=0,1"], "--labels must be one for all, or one for each of 3"),
        (["--labels=0,1"], "--labels must be one for all, or one for each of 64 pictures. Received: 2"),
        (["--interpolate=a.png"], "--interpolate must name two pictures, A.png,B.png. Received: 1, a.png"),
        (["--interpolate=three.npz"], "--interpolate must name two pictures, A.png,B.png. Received: 3, three.npz"),
        (["--variations=no.png"], "--variations: cannot read no.png: No such file or directory"),
        (["--variations=no.npz"], "--variations=no.npz: expected a NumPy .npz archive; no such file"),
        (["--variations=three.npz.png"], "--variations: cannot read three.npz.png: No such file"),
        (["--inpaint=a.png", "--mask=three.npz"], "--mask: cannot read three.npz: not a readable image; expected PNG"),
        (["--inpaint=a.png", "--mask=large_mask.png"], "--mask must be 8x8, as the picture is. Received: large"),
        (["--inpaint=large.png", "--mask=wide.png"], "--mask must be 8x8 or 22x16, as the picture is. Received: "
         "wide.png, 9x8"),
        (["--inpaint=a.png", "--mask=white.png"], "--mask must have black in it, where to paint. Received: white.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_ends_in_one_line(main, folder, flags, line):
    save(folder / "wide.png", half(8, 9))
    save(folder / "white.png", np.full((8, 8), 255, np.uint8))
    printed, error = main("--run_dir=run", *flags)
    assert error.startswith(line) and "\n" not in error
    assert "TensorFlow" not in printed and not (folder / "grid.png").exists()


# The rooms behind it.


def test_masks_are_cut_at_half_grey_and_transparency_is_white(tmp_path):
    ramp = save(tmp_path / "ramp.png", np.array([[0, 127, 128, 255]] * 2, np.uint8))
    assert picture_files.read_mask("--mask", ramp, (2, 4), (2, 4)).tolist() == [[False, False, True, True]] * 2
    clear = np.zeros((2, 4, 4), np.uint8)
    clear[:, 2:, 3] = 255
    assert (
        picture_files.read_mask("--mask", save(tmp_path / "clear.png", clear), (2, 4), (2, 4)).tolist()
        == [[True, True, False, False]] * 2
    )


def test_masks_of_the_photo_follow_it(tmp_path):
    mask = np.zeros((6, 4), np.uint8)  # of which a square keeps the middle four rows
    mask[1, :3] = 255
    mask[2, :2] = 255
    path = save(tmp_path / "mask.png", mask)
    assert picture_files.read_mask("--mask", path, (2, 2), (6, 4)).tolist() == [[True, False], [False, False]]
    dots = np.where(np.random.default_rng(0).random((6, 6)) < 0.5, 0, 255).astype(np.uint8)
    path = save(tmp_path / "dots.png", dots)
    grown = picture_files.read_mask("--mask", path, (36, 36), (6, 6))
    assert np.array_equal(grown, dots.repeat(6, 0).repeat(6, 1) > 0)  # no rounded corners


def test_photos_say_where_they_were_changed(tmp_path):
    first, second = save(tmp_path / "1.png", random_pixels(4, 4)), tmp_path / "2.npz"
    np.savez(second, images=random_pixels(2, 8, 6))
    photos = picture_files.read_photos("--x", [str(first), str(second)], (4, 4, 1))
    assert photos.images.shape == (3, 4, 4, 1) and photos.sizes == [(4, 4), (8, 6), (8, 6)]
    assert photos.notes == [f"{second}: cropped and resized, from 6x8 to 4x4"]
    assert np.array_equal(photos.images[0, ..., 0], random_pixels(4, 4))
    assert np.array_equal(photos.for_seeds, photos.images)
    assert picture_files.read_photos("--x", [str(first)], (4, 4, 1)).for_seeds.shape == (4, 4, 1)
