"""What the clients take NAME.json to be, beside what the export writes."""

import pathlib
import re

import pytest

from export import site
from kddpm.device import description
from kddpm.sampling import samplers

EXPORT = pathlib.Path(site.__file__).parent
CLIENTS = (
    "edge/description.py",
    "cpp/side_file.hpp",
    "web/generate/description.js",
    "android/Generator.kt",
    "ios/Generator.swift",
)


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_reads_the_version_that_is_written(client):
    versions = re.findall(r"(?i)DESCRIPTION_?VERSION = (\d+)", (EXPORT / client).read_text())
    assert versions == [str(description.VERSION)]


@pytest.mark.parametrize("client", ["android/Generator.kt", "ios/Generator.swift"])
def test_the_samples_read_what_is_there(exported, described, client):
    """They find inputs and entries by name; the state has its own channels, the picture those of its shape."""
    about, code = described(exported(sampler="heun", classes=True)), (EXPORT / client).read_text()
    of_signatures = {name for signature in about["signatures"].values() for kind in signature.values() for name in kind}
    read = set(re.findall(r'"([a-z]\w+)"|    let (\w+):', code))
    read = {found for pair in read for found in pair if found} - {"cpu", "model", "json", "tflite"}
    assert {"description_version", "image_shape", "network_calls"} <= read
    assert read <= {*about, *about["signatures"], *of_signatures}


@pytest.mark.parametrize("client", ["edge/command.py", "cpp/generate.cpp", "web/page.js"])
def test_every_sampler_has_a_name(client):
    named = re.findall(r'\b(\w+)"?[:,] "[^"]+"\}?[,}]', (EXPORT / client).read_text())
    assert [name for name in named if name in samplers.BY_NAME] == list(samplers.BY_NAME)
