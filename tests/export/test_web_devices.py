"""The web page on screens of all sizes, with hosts and networks of all kinds, in Chromium."""

import json
import os
import pathlib
import re
import shutil
import time

import numpy as np
import pytest
from helpers.device_pictures import assert_same_picture, on_canvas
from helpers.sites import files_of, serving

from export import site

WEB = pathlib.Path(__file__).parents[2] / "export" / "web"


@pytest.mark.parametrize(
    ("folder", "width", "height"),
    [("classes", 360, 640), ("classes", 640, 360), ("heun", 360, 640), ("classes", 730, 740), ("whole", 1280, 800)],
)
def test_picture_and_button_are_in_sight_together(chromium, host, folder, width, height):
    seen = chromium("screen", f"{host}/{folder}/#seed=0&grid=64", width=width, height=height)
    assert seen["first"] == [True, True]
    assert seen["tapped"]
    assert (seen["page"], seen["cells"], seen["outside"]) == (width, 64, 0)
    assert seen["smallest"] >= 40  # a finger's
    assert seen["picture"] >= 200


def test_works_offline_after_the_first_visit(chromium, host, keras, facts):
    shown = chromium("offline", f"{host}/whole/", seed="7", allowed="net::ERR")
    assert not shown["reached"]
    assert shown["isolated"]  # so that it still has its threads
    assert shown["status"] == "Seed 7 drawn."
    assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(7))


def test_another_export_replaces_what_was_kept(chromium, plain_host, sites, keras, facts):
    """An earlier one, as after a rollback: the host, which goes by dates, would call the index unchanged."""
    for name, source in (("changing", "classes"), ("next", "whole")):
        shutil.copytree(sites / source, sites / name, copy_function=os.link)
    folders = {"folder": str(sites / "changing"), "other": str(sites / "next")}
    result = chromium("replaced", f"{plain_host}/changing/#seed=4", **folders)
    for shown in result["seen"]:
        assert "8 pixels, grey · " in shown["facts"]
        assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(4))
    (kept,) = result["caches"]
    assert kept.endswith(f"/changing/{files_of(sites / 'whole').name}/")


class StrictHost(site.Handler):
    """A host with a policy that allows the site's own files and WebAssembly, nothing else."""

    def end_headers(self):
        policy = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; object-src 'none'"
        self.send_header("Content-Security-Policy", policy)
        super().end_headers()


class SlowHost(site.Handler):
    """A host that sends the large files in four pieces, a quarter of a second apart."""

    def copyfile(self, source, outputfile):
        content = source.read()
        is_large = self.path.endswith((".tflite", ".wasm"))
        size = -(-len(content) // 4) if is_large else max(len(content), 1)
        for start in range(0, len(content), size):
            outputfile.write(content[start : start + size])
            time.sleep(0.25 if is_large else 0)


def test_strict_policy_of_the_host(chromium, sites, keras, facts):
    with serving(StrictHost, sites) as address:
        shown = chromium("offline", f"{address}/whole/", seed="7", allowed="net::ERR")
    assert_same_picture(on_canvas(shown["pixels"], facts["image_shape"]), keras.picture(7))


def test_loading_is_shown_in_bytes(chromium, sites):
    with serving(SlowHost, sites) as address:
        said = chromium("loading", f"{address}/whole/")
    sizes = json.loads((files_of(sites / "whole") / "files.json").read_text())
    total = f"{(sizes['model.tflite'] + sizes['litert/wasm/litert_wasm_threaded_internal.wasm']) / 1e6:.1f} MB"
    counted = {one["text"] for one in said if re.fullmatch(rf"Loading \d+\.\d of {total}", one["text"])}
    values = [one["value"] for one in said]
    assert len(counted) >= 3
    assert all(one["inSight"] for one in said)
    assert values == sorted(values)
    assert len({value for value in values if 0 < value < 1}) >= 2


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
