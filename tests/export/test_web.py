"""The web page as a visitor uses it, in Chromium, beside Keras."""

import base64
import io
import os
import re

import numpy as np
from helpers.device_pictures import Keras, assert_same_picture, on_canvas
from PIL import Image

SEEDS = [0, 7, -5, 2**31 - 1, -(2**31)]


def test_visitor_types_seeds_and_sees_the_pictures_of_keras(chromium, host, keras, facts):
    seen = chromium("type", f"{host}/whole/", seeds=[str(seed) for seed in SEEDS])
    for seed, shown in zip(SEEDS, seen, strict=True):
        assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(seed))
        assert shown["hash"] == f"#seed={seed}"
        assert shown["status"] == f"Seed {seed} drawn."
        assert shown["counter"] == f"Step {facts['network_calls']} of {facts['network_calls']}"
        assert shown["progress"] == 1
        assert re.fullmatch(r"\d+\.\d ms a step, \d+ ms the picture", shown["time"])
    assert len({str(keras.picture(seed)) for seed in SEEDS}) == len(SEEDS)


def test_link_shows_its_picture_with_and_without_shared_memory(chromium, host, plain_host, keras, facts):
    for address, isolated in ((host, True), (plain_host, False)):
        shown = chromium("look", f"{address}/whole/#seed=-5")
        assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(-5))
        assert shown["seed"] == "-5"
        assert shown["isolated"] is isolated
        many = isolated and len(os.sched_getaffinity(0)) > 1
        assert bool(re.search(r"· WebAssembly, [234] threads", shown["facts"])) is many, shown["facts"]


def test_facts_in_one_line(chromium, host, facts):
    height, width, _ = facts["image_shape"]
    shown = chromium("look", f"{host}/whole/")
    size = f"{width} \N{MULTIPLICATION SIGN} {height} pixels, grey"
    assert shown["facts"].startswith(f"{size} · {facts['network_calls']} steps of ancestral sampling · float32 · ")
    assert shown["seed"] == "0"


def test_steps_of_several_calls_are_told_from_the_calls(chromium, host, trained_like, exported, described):
    """Heun's method calls the network twice a step, but for the last one; a picture forms call by call."""
    facts = described(exported(sampler="heun"))
    keras = Keras(trained_like, facts)
    shown = chromium("look", f"{host}/heun/#seed=7")
    assert " · 6 steps of Heun's method, 11 network calls · float32 · " in shown["facts"]
    assert shown["counter"] == "Call 11 of 11"
    assert shown["progress"] == 1
    assert re.fullmatch(r"\d+\.\d ms a call, \d+ ms the picture", shown["time"])
    assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(7))
    frames = chromium("frames", f"{host}/heun/", seed="7", motion=True)
    assert_same_picture(np.stack([on_canvas(frame, facts["image_shape"]) for frame in frames]), keras.pictures(7))


def test_dice_draws_other_seeds(chromium, host, keras, facts):
    seen = chromium("dice", f"{host}/whole/")
    assert len({shown["seed"] for shown in seen}) == len(seen)
    for shown in seen:
        assert shown["hash"] == f"#seed={shown['seed']}"
        assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(int(shown["seed"])))


def test_picture_forms_step_by_step(chromium, host, keras, facts):
    frames = chromium("frames", f"{host}/whole/", seed="7", motion=True)
    assert len(frames) == facts["network_calls"] + 1
    assert_same_picture(np.stack([on_canvas(frame, facts["image_shape"]) for frame in frames]), keras.pictures(7))


def test_who_wants_no_motion_sees_the_end_only(chromium, host, keras, facts):
    (frame,) = chromium("frames", f"{host}/whole/", seed="7", motion=False)
    assert_same_picture(on_canvas(frame, facts["image_shape"]), keras.picture(7))


def test_link_within_the_page_is_followed(chromium, host, keras, facts):
    shown = chromium("follow", f"{host}/whole/#seed=1", hash="#seed=8&grid=16")
    assert shown["status"] == "16 pictures drawn."
    assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(8))


def test_cancel_and_a_request_in_place_of_another(chromium, host, keras, facts):
    seen = chromium("changeMind", f"{host}/whole/", seeds=["5", "6"])
    assert seen["cancelled"]["status"] == "Cancelled."
    assert seen["cancelled"]["focus"] == "generate"
    assert seen["cancelled"]["counter"] == f"Step 2 of {facts['network_calls']}"
    assert seen["cancelled"]["progress"] == 2 / facts["network_calls"]
    assert seen["late"] == "Cancelled."
    assert seen["replaced"]["status"] == "Seed 6 drawn."
    first, cancelled, replaced, last = seen["calls"].values()
    assert first == last == facts["network_calls"]
    assert max(cancelled, replaced) < facts["network_calls"]
    assert_same_picture(on_canvas(seen["replaced"]["pixels"], facts["image_shape"]), keras.picture(6))


def test_grid_its_files_and_its_link(chromium, host, keras, facts):
    shape = facts["image_shape"]
    seen = chromium("grid", f"{host}/whole/", seed="100", cell=5)
    cells = [on_canvas(cell, shape) for cell in seen["cells"]]
    for index, cell in enumerate(cells):
        assert_same_picture(cell, keras.picture(100 + index))
    assert seen["before"]["hash"] == "#seed=100&grid=16"
    assert seen["before"]["status"] == "16 pictures drawn."
    assert_same_picture(on_canvas(seen["before"]["pixels"], shape), keras.picture(100))
    assert seen["chosen"]["seed"] == "105"
    assert seen["chosen"]["hash"] == "#seed=105&grid=16&first=100"
    np.testing.assert_array_equal(on_canvas(seen["chosen"]["pixels"], shape), cells[5])
    np.testing.assert_array_equal(on_canvas(seen["again"]["pixels"], shape), cells[5])
    np.testing.assert_array_equal(on_canvas(seen["cellAgain"], shape), cells[15])

    assert seen["file"]["name"] == "seed105.png"
    assert_enlarged(seen["file"]["base64"], cells[5])
    assert seen["gridFile"]["name"] == "seeds100-115.png"
    assert_enlarged(seen["gridFile"]["base64"], np.vstack([np.hstack(cells[row : row + 4]) for row in range(0, 16, 4)]))


def assert_enlarged(png, image):
    """The file shows `image`, each pixel as a square of the same size."""
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    scale = found.shape[0] // image.shape[0]
    assert scale >= 2
    expected = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(found, expected)


def test_keyboard_alone(chromium, host, keras, facts):
    seen = chromium("keyboard", f"{host}/whole/", seed="42")
    assert_same_picture(on_canvas(seen["typed"]["pixels"], facts["image_shape"]), keras.picture(42))
    assert seen["stops"] == ["seed", "dice", "generate", "grid"]
    assert seen["outlines"] == ["solid"] * 4
    assert seen["grid"]["hash"] == "#seed=42&grid=16"
    assert seen["chosen"]["seed"] == "47"  # one to the right and one row of four down
    assert_same_picture(on_canvas(seen["chosen"]["pixels"], facts["image_shape"]), keras.picture(47))


def test_classes_have_names_and_the_seed_chooses_until_the_visitor_does(chromium, host, keras_with_classes):
    seen = chromium("classes", f"{host}/classes/#seed=-4", chosen=0, seed="4")
    assert seen["names"] == ["By seed", "zero", "one", "two"]
    assert seen["first"]["hash"] == "#seed=-4"
    assert seen["first"]["label"] == "Picture of seed -4, class two"  # -4 % 3 == 2
    assert seen["second"]["hash"] == "#seed=4&label=0"
    assert seen["second"]["label"] == "Picture of seed 4, class zero"
    assert seen["again"]["label"] == seen["second"]["label"]
    shape = (8, 8, 3)
    assert_same_picture(on_canvas(seen["first"]["pixels"], shape), keras_with_classes.picture(-4))
    assert_same_picture(on_canvas(seen["second"]["pixels"], shape), keras_with_classes.picture(4, label=0))
