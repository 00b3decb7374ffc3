"""What CONTRIBUTING.md and the hooks speak of is there."""

import re

import pytest
from helpers.places import ROOT


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_are_named_exist(document):
    names = re.findall(
        r"[`(]((?:kddpm|tests|export|docs|\.ci)/[\w./]+|\w+\.(?:md|txt|toml))[`)]", (ROOT / document).read_text()
    )
    assert names and [name for name in names if not (ROOT / name).exists()] == []


def test_the_hooks_fetch_nothing():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (.+)", text) == ["local"] and set(re.findall(r"language: (.+)", text)) == {"system"}
    lint = re.findall(
        r"\$\(BIN\)/(.+)", re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    )
    assert [line.removesuffix(" .") for line in lint] == re.findall(r"entry: (.+)", text)
