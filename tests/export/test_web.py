"""The web page as a visitor uses it, in Chromium, and its LiteRT.js in Node, beside Keras.

Skipped where node, npm or Chromium is missing; with KDDPM_REQUIRE_BROWSER=1 that is a failure.
"""

import base64
import contextlib
import functools
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from export import site
from kddpm.sampling import walks

HERE = pathlib.Path(__file__).parent
WEB = HERE.parents[1] / "export" / "web"
SEEDS = [0, 7, -5, 2**31 - 1, -(2**31)]
GREY_LEVELS = 1  # how far a pixel may be from Keras's; WebAssembly's float32 kernels round in another order


class Keras:
    """The model before it was exported: what Node and the browser have to show."""

    def __init__(self, model, facts):
        self._model = model
        self._how = {name: facts["sampler"][key] for name, key in (("sampler", "name"), ("num_steps", "num_steps"))}
        self._frames = facts["network_calls"] + 1

    def noise(self, seed):
        return walks.initial_noise(np.array([seed], np.int32), self._model.image_shape).numpy()[0]

    @functools.cache  # noqa: B019 (lives as long as the module's tests)
    def pictures(self, seed, label=None):
        """The picture of the noise and after each call of the network, int32 (network_calls + 1, H, W, C)."""
        labels = None if label is None else [label]
        _, frames = self._model.generate([seed], **self._how, labels=labels, return_trajectory=self._frames)
        return frames[:, 0].astype(int)

    def picture(self, seed, label=None):
        return self.pictures(seed, label)[-1]


@pytest.fixture(scope="module")
def facts(exported, described):
    return described(exported())


@pytest.fixture(scope="module")
def keras(trained_like, facts):
    return Keras(trained_like, facts)


@pytest.fixture(scope="module")
def keras_with_classes(trained_like_with_classes, facts):
    return Keras(trained_like_with_classes, facts)


@contextlib.contextmanager
def serving(handler, folder):
    with site.Server(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


class AnyHost(http.server.SimpleHTTPRequestHandler):
    """A static host that knows nothing of shared memory."""

    def log_message(self, format, *arguments):
        pass


@pytest.fixture(scope="module")
def host(sites):
    with serving(site.Handler, sites) as address:
        yield address


@pytest.fixture(scope="module")
def plain_host(sites):
    with serving(AnyHost, sites) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(sites, needs):
    """A visitor in a real browser: chromium(visit, url, ...) returns what that visit of visitor.mjs returns."""
    needs("chromium")
    command = ["node", HERE / "visitor.mjs", shutil.which("chromium")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def visit(name, url, allowed=None, **details):
            process.stdin.write(json.dumps({"visit": name, "url": url, **details}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert "error" not in answer, answer["error"]
            complaints = [text for text in answer["complaints"] if not (allowed and re.search(allowed, text))]
            assert not complaints
            origin = re.match(r"\w+://[^/]*", url)[0]
            elsewhere = [
                request for request in answer["requests"] if not request.startswith((origin, "blob:", "data:"))
            ]
            assert [request for request in elsewhere if request != "about:blank"] == []
            return answer["result"]

        yield visit
        process.stdin.close()
        process.wait(timeout=20)


def on_canvas(pixels, shape):
    """The image (H, W, C) of a canvas's pixels, which are opaque and, for one channel, grey."""
    height, width, channels = shape
    rgba = np.array(pixels).reshape(height, width, 4)
    assert (rgba[..., 3] == 255).all()
    assert channels == 3 or (rgba[..., :3] == rgba[..., :1]).all()
    return rgba[..., :channels]


def assert_same_picture(found, expected):
    assert found.shape == expected.shape
    print(f"identical pixels: {np.mean(found == expected):.1%}")
    assert np.abs(found - expected).max() <= GREY_LEVELS


# LiteRT.js in Node


@pytest.fixture(scope="module")
def node(sites, exported):
    """For each seed what LiteRT.js computes in Node, of a model with classes or without, and of any sampler."""

    @functools.cache
    def run(classes, sampler="ancestral"):
        model = exported(classes=classes, sampler=sampler)
        files = model, model.with_suffix(".json")
        command = ["node", HERE / "litert_node.mjs", *files, ",".join(map(str, SEEDS))]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return run


def decoded(text, dtype, shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_in_node_is_that_of_keras_bit_for_bit(node, keras, seed):
    expected = keras.noise(seed)
    found = decoded(node(False)[str(seed)]["noise"], np.float32, expected.shape)
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [False, True])
def test_pictures_in_node_are_those_of_keras(node, keras, keras_with_classes, facts, classes, seed):
    model = keras_with_classes if classes else keras
    expected, results = model.pictures(seed), node(classes)[str(seed)]
    found = [decoded(picture, np.int32, expected[0].shape) for picture in results["pictures"]]
    assert_same_picture(np.stack(found), expected[1:])
    assert_same_picture(decoded(results["generated"], np.int32, expected[0].shape), expected[-1])


@pytest.mark.parametrize("sampler", ["dpm_solver", "heun"])
def test_samplers_with_a_memory_in_node_paint_what_keras_paints(node, trained_like, exported, described, sampler):
    """Their state is more than a picture; the client passes it on without a look."""
    facts = described(exported(sampler=sampler))
    expected, results = Keras(trained_like, facts).pictures(-5), node(False, sampler)["-5"]
    found = [decoded(picture, np.int32, expected[0].shape) for picture in results["pictures"]]
    assert len(found) == facts["network_calls"] == {"dpm_solver": 6, "heun": 11}[sampler]
    assert_same_picture(np.stack(found), expected[1:])
    assert_same_picture(decoded(results["generated"], np.int32, expected[0].shape), expected[-1])


# A visitor


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
        assert bool(re.search(r"· [234] threads$", shown["facts"])) is many, shown["facts"]


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
    assert seen["stops"] == ["seed", "dice", "grid", "slow", "generate"]
    assert seen["outlines"] == ["solid"] * 5
    assert seen["grid"]["hash"] == "#seed=42&grid=16"
    assert seen["chosen"]["seed"] == "47"  # one to the right and one row of four down
    assert_same_picture(on_canvas(seen["chosen"]["pixels"], facts["image_shape"]), keras.picture(47))


@pytest.mark.parametrize("width", [360, 730])
@pytest.mark.parametrize("folder", ["classes", "heun"])
def test_narrow_screens_need_no_sideways_scrolling(chromium, host, folder, width):
    seen = chromium("widths", f"{host}/{folder}/#seed=0&grid=64", width=width)
    assert seen == {"page": width, "cells": 64, "smallest": seen["smallest"], "outside": 0}
    assert seen["smallest"] >= 40  # a finger's


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


# What goes wrong


def test_bad_seeds_say_so_and_draw_nothing(chromium, host, keras, facts):
    bad = ["", "seven", "1.5", "2147483648", "-2147483649", "1e3", "0x10", "9" * 400]
    seen = chromium("type", f"{host}/whole/#seed=7", seeds=[*bad, " 8 "])
    for shown in seen[:-1]:
        assert shown["seedError"] == "A seed is a whole number from -2147483648 to 2147483647."
        assert shown["focus"] == "seed"
        assert shown["hash"] == "#seed=7"
        assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(7))
    assert seen[-1]["seedError"] == ""
    assert seen[-1]["hash"] == "#seed=8"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("whole/#seed=99999999999", "A seed is a whole number"),
        ("whole/#seed=7&grid=5", "grid=5, which is none"),
        ("whole/#seed=7&label=1", "label=1, which is none"),
        ("classes/#seed=7&label=3", "label=3, which is none"),
        ("whole/#seed=2147483600&grid=64", "begin at 2147483584 or less"),
        ("whole/#seed=0&grid=16&first=x", "A seed is a whole number"),
    ],
)
def test_bad_links_say_so(chromium, host, address, message):
    assert message in chromium("look", f"{host}/{address}")["seedError"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("no_model", "model.tflite could not be fetched: the server answered 404."),
        ("no_side_file", "model.json could not be fetched: the server answered 404."),
        ("no_json", "model.json must hold the network_calls, the sampler with its num_steps and the image_shape"),
        ("older", "description_version 2, the one that this page reads. Received: none, as in older exports."),
        ("newer", "model.json must have description_version 2, the one that this page reads. Received: 3."),
        ("no_runtime", "litert/index.js"),
        ("other_sha256", "model.tflite is not the file that model.json describes"),
        ("shorter", "model.tflite is not the file that model.json describes"),
    ],
)
def test_broken_sites_say_so(chromium, host, folder, message):
    assert message in chromium("look", f"{host}/{folder}/", allowed="404")["error"]


def test_without_webassembly_says_so(chromium, host):
    assert "has no WebAssembly" in chromium("withoutWebAssembly", f"{host}/whole/")["error"]


def test_opened_as_a_file_says_so(chromium, sites):
    shown = chromium("file", (sites / "whole" / "index.html").as_uri(), allowed=r"CORS|ERR_FAILED|Unsafe")
    assert "Serve this folder" in shown["error"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme):
    blocks = re.findall(r":root \{(.*?)\}", (WEB / "style.css").read_text(), re.DOTALL)
    colours = {}
    for block in blocks[: 1 if scheme == "light" else 2]:
        colours |= dict(re.findall(r"--([\w-]+): (#\w{6})", block))

    def luminance(name):
        channels = np.array([int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    texts = [("ink", "ground"), ("quiet", "ground"), ("ink", "paper"), ("quiet", "paper"), ("bad", "bad-ground")]
    for pair in [*texts, ("bad", "ground"), ("on-accent", "accent")]:
        assert contrast(*pair) >= 4.5, pair
    for pair in (("edge", "ground"), ("edge", "paper"), ("accent", "ground")):
        assert contrast(*pair) >= 3, pair
