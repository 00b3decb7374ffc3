"""What the clients take NAME.json to be, beside what the export writes."""

import pathlib
import re

import pytest

from export import site
from kddpm.device import description
from kddpm.sampling import samplers

EXPORT = pathlib.Path(site.__file__).parent
KOTLIN = (EXPORT / "android" / "README.md").read_text()


@pytest.mark.parametrize("client", ["edge/model.py", "web/model.js", "android/README.md", "site.py"])
def test_every_client_reads_the_version_that_is_written(client):
    versions = re.findall(r"DESCRIPTION_VERSION = (\d+)", (EXPORT / client).read_text())
    assert versions == [str(description.VERSION)]


def test_the_kotlin_reads_what_is_there(exported, described):
    about = described(exported(sampler="heun"))
    (read,) = re.findall(r"```kotlin\n(import .*?)```", KOTLIN, re.DOTALL)
    keys = re.findall(r'(?:\.opt|\.getInt|\.getJSONArray)\("(\w+)"\)', read)
    assert set(keys) == {"description_version", "batch_size", "image_shape", "state_channels", "network_calls"}
    assert set(keys) <= set(about)
    known = {*about, *about["sampler"], *samplers.BY_NAME, "benchmark_model"}
    assert set(re.findall(r"`(\w+_\w+)`", KOTLIN)) <= known
    # The state has its own channels, the picture those of its shape.
    assert "FloatArray(stateChannels)" in read and "IntArray(channels)" in read


@pytest.mark.parametrize("client", ["edge/model.py", "web/page.js"])
def test_every_sampler_has_a_name(client):
    named = re.findall(r'^ +"?(\w+)"?: "(?:.+)",$', (EXPORT / client).read_text(), re.MULTILINE)
    assert [name for name in named if name in samplers.BY_NAME] == list(samplers.BY_NAME)
