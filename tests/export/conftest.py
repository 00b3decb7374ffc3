"""Exported models, sites of them, and who uses these: Node, and a visitor in Chromium.

Node, npm and Chromium are needed for the latter; where one is missing, tests are skipped, and with
KDDPM_REQUIRE_BROWSER=1 they fail.
"""

import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from helpers.device_pictures import Keras
from helpers.processes import answering, lacking
from helpers.sites import files_of, serving

from export import site

HERE = pathlib.Path(__file__).parent
HEADERS = ("png.h", "openssl/evp.h", "nlohmann/json.hpp")  # of the client in C++


@pytest.fixture(scope="session")
def exported(trained_like, trained_like_with_classes, tmp_path_factory):
    """Exports of small models: a function of precision, classes, sampler and signatures, made once each."""
    made = {}

    def export(precision="float32", classes=False, sampler="ancestral", signatures=None) -> pathlib.Path:
        key = precision, classes, sampler, signatures
        if key not in made:
            path = tmp_path_factory.mktemp("exported") / f"tiny_{precision}.tflite"
            model = trained_like_with_classes if classes else trained_like
            names = ["zero", "one", "two"] if classes else None
            model.export(
                path,
                sampler=sampler,
                num_steps=6,
                precision=precision,
                signatures=signatures,
                class_names=names,
                parity_seeds=1,
                verbose=False,
            )
            made[key] = path
        return made[key]

    return export


@pytest.fixture(scope="session")
def described():
    """Reads the side file of an export."""
    return lambda path: json.loads(path.with_suffix(".json").read_text())


@pytest.fixture(scope="session")
def needs():
    """Skips where a program is missing; with KDDPM_REQUIRE_BROWSER=1 that is a failure."""

    def check(*programs):
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            lacking(f"{' and '.join(missing)} on PATH")

    return check


@pytest.fixture(scope="session")
def npm_packages(needs):
    """What npm installs: LiteRT.js, and what tests the page."""
    needs("node", "npm")
    site.install(with_tools=True)


@pytest.fixture(scope="session")
def sites(exported, npm_packages, tmp_path_factory):
    """A folder of sites, `whole` and some with something missing; copies are links, LiteRT.js is 29 MB."""
    folder = tmp_path_factory.mktemp("sites")
    site.build(exported(signatures=site.SIGNATURES), folder / "whole")
    side_file = json.loads((files_of(folder / "whole") / "model.json").read_text())

    def copy(name, replaced, content):
        shutil.copytree(folder / "whole", folder / name, copy_function=os.link)
        changed = files_of(folder / name) / replaced
        changed.unlink()
        if content is not None:
            changed.write_text(content)

    copy("no_model", "model.tflite", None)
    copy("no_side_file", "model.json", None)
    copy("no_json", "model.json", "<html>")
    copy("no_runtime", "litert/index.js", None)
    copy("other_sha256", "model.json", json.dumps({**side_file, "sha256": "0" * 64}))
    copy("shorter", "model.json", json.dumps({**side_file, "bytes": side_file["bytes"] - 1}))
    older = {key: value for key, value in side_file.items() if key != "description_version"}
    copy("older", "model.json", json.dumps(older))
    copy("newer", "model.json", json.dumps({**side_file, "description_version": 4}))
    copy("five_channels", "model.json", json.dumps({**side_file, "image_shape": [8, 8, 5]}))
    other_noise = [{**vector, "noise_sha256": "0" * 64} for vector in side_file["vectors"]]
    copy("other_noise", "model.json", json.dumps({**side_file, "vectors": other_noise}))
    site.build(exported(classes=True), folder / "classes")
    site.build(exported(sampler="heun"), folder / "heun")
    return folder


@pytest.fixture(scope="session")
def facts(exported, described):
    return described(exported())


@pytest.fixture(scope="session")
def keras(trained_like, facts):
    return Keras(trained_like, facts)


@pytest.fixture(scope="session")
def keras_with_classes(trained_like_with_classes, facts):
    return Keras(trained_like_with_classes, facts)


class AnyHost(http.server.SimpleHTTPRequestHandler):
    """A static host that knows nothing of shared memory."""

    def log_message(self, format, *arguments):
        pass


@pytest.fixture(scope="session")
def host(sites):
    with serving(site.Handler, sites) as address:
        yield address


@pytest.fixture(scope="session")
def plain_host(sites):
    with serving(AnyHost, sites) as address:
        yield address


@pytest.fixture(scope="session")
def node(npm_packages):
    """Asks litert_node.mjs."""
    with answering("node", HERE / "litert_node.mjs") as ask:
        yield ask


@pytest.fixture(scope="session")
def chromium(npm_packages, needs):
    """A visitor in a real browser: chromium(visit, url, ...) returns what that visit of visitor.mjs returns."""
    needs("chromium")
    with answering("node", HERE / "visitor.mjs", shutil.which("chromium")) as ask:

        def visit(name, url, allowed=None, **details):
            answer = ask(visit=name, url=url, **details)
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


@pytest.fixture(scope="session")
def cpp_program(needs, tmp_path_factory):
    """The client, built by the command of its README; pip is that of the Python that runs the tests."""
    needs("cmake", "g++")
    includes = [part for header in HEADERS for part in ("-include", header)]
    found = subprocess.run(["g++", "-E", "-x", "c++", *includes, "/dev/null"], capture_output=True)
    if found.returncode:
        lacking(", ".join(HEADERS))
    build = tmp_path_factory.mktemp("cpp") / "build"
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    for command in (["cmake", "-S", HERE.parents[1] / "export" / "cpp", "-B", build], ["cmake", "--build", build]):
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "warning: " not in result.stderr
    return build / "generate"


@pytest.fixture
def cpp(cpp_program, tmp_path):
    """Runs the client in C++ on the flags and returns what it did."""

    def run(*flags):
        return subprocess.run([cpp_program, *map(str, flags)], capture_output=True, text=True, cwd=tmp_path)

    return run
