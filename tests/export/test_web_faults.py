"""What the web page says when something is wrong with a seed, a link, the site or the browser."""

import pytest
from helpers.device_pictures import assert_same_picture, on_canvas


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
        ("whole/#seed=0&steps=21", "Steps must be a whole number from 1 to 20."),
        ("whole/#seed=0&steps=two", "steps=two, which is no number"),
        ("heun/#seed=0&steps=5", "steps=5, but this model has its own number alone"),
    ],
)
def test_bad_links_say_so(chromium, host, address, message):
    assert message in chromium("look", f"{host}/{address}")["seedError"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("no_model", "model.tflite could not be fetched: the server answered 404."),
        ("no_side_file", "model.json could not be fetched: the server answered 404."),
        ("no_json", "The model's side file must be an object of JSON. Received: null."),
        ("older", "description_version 3. Received: none, as in older exports."),
        ("newer", "The model's side file must have description_version 3. Received: 4."),
        ("five_channels", "A picture must have 1 to 4 channels. Received: 5."),
        ("other_noise", "The noise of seed 0 must have the bits of the side file. Received: other bits."),
        ("no_runtime", "litert/index.js"),
        ("other_sha256", "The model is not the file that its side file describes"),
        ("shorter", "The model is not the file that its side file describes"),
    ],
)
def test_broken_sites_say_so(chromium, host, folder, message):
    assert message in chromium("look", f"{host}/{folder}/", allowed="404")["error"]


def test_without_webassembly_says_so(chromium, host):
    assert "has no WebAssembly" in chromium("withoutWebAssembly", f"{host}/whole/")["error"]


def test_opened_as_a_file_says_so(chromium, sites):
    shown = chromium("file", (sites / "whole" / "index.html").as_uri(), allowed=r"CORS|ERR_FAILED|Unsafe")
    assert "Serve this folder" in shown["error"]
