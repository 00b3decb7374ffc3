"""Pictures that the web page makes of pictures, in Chromium, beside Keras."""

import base64
import io
import re

import numpy as np
from helpers.device_pictures import assert_same_picture, on_canvas
from helpers.png_chunks import GAMMA, QUARTER_TURN, with_chunk
from helpers.sites import files_of
from PIL import Image


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_photo_variations_repainting_and_steps(chromium, host, trained_like, facts, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    lying = with_chunk(encoded(Image.fromarray(np.rot90(photo))), "eXIf", QUARTER_TURN)
    (tmp_path / "photo.png").write_bytes(with_chunk(lying, "gAMA", GAMMA))
    (tmp_path / "words.png").write_text("no picture")
    files = {"photo": str(tmp_path / "photo.png"), "notPhoto": str(tmp_path / "words.png")}
    seen = chromium("edit", f"{host}/whole/", **files, seed="-5", strength="65", steps="9")
    looks = ("photo", "varied", "again", "repainted", "steps", "linked")
    shown = {name: on_canvas(seen[name]["pixels"], facts["image_shape"]) for name in looks}

    assert seen["refused"] == "words.png must be a picture that this browser reads."
    np.testing.assert_array_equal(shown["photo"][..., 0], photo)
    expected = trained_like.variations(photo[..., np.newaxis], 0.65, seeds=[-5], num_steps=6)[0]
    assert_same_picture(shown["varied"], expected)
    np.testing.assert_array_equal(shown["again"], shown["varied"])  # it begins with the photo again
    assert seen["varied"]["counter"] == "Step 4 of 4"

    assert seen["maskless"]
    known = ~np.reshape(seen["mask"], (8, 8))
    assert known[:, :4].all() and not known[:, 5].any()
    expected = trained_like.inpaint(shown["varied"].astype(np.uint8), known, seeds=[-5], num_steps=6)[0]
    assert_same_picture(shown["repainted"], expected)
    np.testing.assert_array_equal(shown["repainted"][known], shown["varied"][known])
    assert re.fullmatch(r"Call (\d+) of \1", seen["repainted"]["counter"])
    assert seen["repainted"]["hash"] == "#seed=0"  # a link draws from noise

    assert seen["tooMany"] == "Steps must be a whole number from 1 to 20."
    assert_same_picture(shown["steps"], trained_like.generate([-5], num_steps=9)[0])
    assert seen["steps"]["counter"] == "Step 9 of 9"
    assert seen["steps"]["hash"] == "#seed=-5&steps=9"
    np.testing.assert_array_equal(shown["linked"], shown["steps"])


def test_channels(chromium, host, sites):
    """Grey or colour, with and without alpha; a photo is cut in the middle, and white where the model has no alpha."""
    images = [[10, 20], [10, 255, 20, 0], [1, 2, 3, 4, 5, 6], [1, 2, 3, 255, 4, 5, 6, 255]]
    photo = Image.new("RGBA", (30, 10), (255, 0, 0, 255))
    photo.paste((0, 0, 255, 255), (10, 0, 20, 10))
    script = f"{host}/whole/{files_of(sites / 'whole').name}/pictures.js"
    about = {"script": script, "images": images, "photo": base64.b64encode(encoded(photo)).decode()}
    seen = chromium("channels", f"{host}/whole/", **about)
    assert seen["painted"] == [
        [10, 10, 10, 255, 20, 20, 20, 255],
        [10, 10, 10, 255, 0, 0, 0, 0],
        [1, 2, 3, 255, 4, 5, 6, 255],
        [1, 2, 3, 255, 4, 5, 6, 255],
    ]
    assert seen["read"] == [[29], [29, 255], [0, 0, 255], [0, 0, 255, 255]]
    about["photo"] = base64.b64encode(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))).decode()
    seen = chromium("channels", f"{host}/whole/", **about)
    assert seen["read"] == [[255], [0, 0], [255, 255, 255], [0, 0, 0, 0]]
