"""Building the folder of the web page and serving it; what a visitor sees there: test_web.py."""

import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from helpers.sites import files_of, serving

from export import site
from kddpm.base.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
WEB = ROOT / "export" / "web"
VECTORS = ROOT / "export" / "vectors.tflite"


def test_site_is_whole_and_needs_nothing_else(sites, exported):
    built = sites / "whole"
    files = files_of(built)
    assert (files / "model.tflite").read_bytes() == exported(signatures=site.SIGNATURES).read_bytes()
    assert (files / "litert" / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert not [path for path in sites.iterdir() if path.name.startswith(".part-")]
    for path in [*built.glob("*.html"), *files.glob("*.css"), *built.glob("*.js"), *files.glob("*.js")]:
        assert not re.search(r"https?://|(src|href)=./|url\(|from ./", path.read_text()), path
    named = set(json.loads((files / "files.json").read_text()))
    assert named == {path.relative_to(files).as_posix() for path in files.rglob("*.*")}
    assert files.name in (built / "index.html").read_text()


def test_inline_scripts_and_styles_are_not_needed(sites):
    """A strict policy forbids them."""
    index = (sites / "whole" / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", index)


def test_each_content_has_a_folder_of_its_own(sites):
    """So that no cache shows files of two exports together."""
    names = {files_of(sites / name).name for name in ("whole", "classes", "heun")}
    assert len(names) == 3


def test_build_replaces_a_site_and_only_a_site(sites, exported, tmp_path):
    out = tmp_path / "deep" / "site"
    site.build(exported(), out)
    (out / "left over").touch()
    site.build(exported(), out)
    assert not (out / "left over").exists()
    assert [path.name for path in out.parent.iterdir()] == ["site"]

    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").touch()
    for taken in (own, own / "thesis.txt"):
        with pytest.raises(InputError, match="--out must be a new or empty folder"):
            site.build(exported(), taken)
    assert (own / "thesis.txt").exists()


def test_failed_build_leaves_the_site_that_was_there(sites, exported, tmp_path, monkeypatch):
    out = tmp_path / "site"
    site.build(exported(), out)
    before = sorted(out.rglob("*"))
    kept = files_of(out) / "model.json"
    kept.write_text("kept")
    copy = shutil.copyfile

    def full_disk(source, target):
        if pathlib.Path(source) == exported():
            raise OSError("No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="No space left"):
        site.build(exported(), out)
    assert sorted(out.rglob("*")) == before
    assert kept.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ((4, 1, site.SIGNATURES), "--batch_size must be 1 with --format=web.* Received: 4$"),
        ((1, 5, site.SIGNATURES), "--format=web shows pictures of 1 to 4 channels. Received: 5$"),
        ((1, 1, ["denoise", "finish"]), "--signatures must hold start and step and finish, or .*: denoise, finish$"),
    ],
)
def test_models_that_the_page_cannot_draw_with_are_refused(tmp_path, about, message):
    with pytest.raises(InputError, match=message):
        site.check(tmp_path / "site", *about)


def test_bad_models_are_refused_by_name(tmp_path):
    model = tmp_path / "model.tflite"
    with pytest.raises(InputError, match=r"model\.tflite is missing: an export is NAME\.tflite with NAME\.json"):
        site.build(model, tmp_path / "site")
    model.write_bytes(b"model")
    with pytest.raises(InputError, match=r"model\.json is missing: an export is NAME\.tflite with NAME\.json"):
        site.build(model, tmp_path / "site")
    for side_file in ("not JSON", '{"description_version": 3}', "[]"):
        (tmp_path / "model.json").write_text(side_file)
        with pytest.raises(InputError, match=r"model\.json must be the description that the export wrote"):
            site.build(model, tmp_path / "site")
    for version, received in (({}, "none, as in older exports"), ({"description_version": 4}, "4")):
        (tmp_path / "model.json").write_text(json.dumps({"sha256": "x", **version}))
        with pytest.raises(
            InputError, match=rf"model\.json must have description_version 3, .*\. Received: {received}$"
        ):
            site.build(model, tmp_path / "site")
    shutil.copy(VECTORS.with_suffix(".json"), tmp_path / "model.json")
    with pytest.raises(InputError, match=r"model\.tflite must be the file that model\.json describes: .* Received: 5 "):
        site.build(model, tmp_path / "site")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.tflite"]


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """export/web without what npm installs, and an npm that only does what it is told; returns its folder."""
    web, programs = tmp_path / "web", tmp_path / "programs"
    web.mkdir()
    programs.mkdir()
    shutil.copy(WEB / "package-lock.json", web)
    monkeypatch.setattr(site, "WEB", web)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def npm(script):
        (programs / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "npm").chmod(0o755)

    return npm


def test_npm_runs_only_where_the_lock_file_says_so(fake_npm, tmp_path):
    fake_npm('echo "$*" >> calls; mkdir -p node_modules; cp package-lock.json node_modules/.package-lock.json')
    for _ in range(2):
        site.install()
    calls = (tmp_path / "web" / "calls").read_text().splitlines()
    assert len(calls) == 1 and calls[0].startswith("ci ")
    lock = tmp_path / "web" / "package-lock.json"
    lock.write_text(lock.read_text().replace("sha512-", "sha512-x", 1))
    site.install()
    assert len((tmp_path / "web" / "calls").read_text().splitlines()) == 2


def test_npm_fetches_what_tests_need_for_tests_only(fake_npm, tmp_path):
    fake_npm('echo "$*" >> calls; mkdir -p node_modules; cp package-lock.json node_modules/.package-lock.json')
    site.install(with_tools=True)
    site.install()
    (call,) = (tmp_path / "web" / "calls").read_text().splitlines()
    assert "--omit=dev" not in call
    (tmp_path / "web" / "node_modules" / ".package-lock.json").unlink()
    site.install()
    assert "--omit=dev" in (tmp_path / "web" / "calls").read_text().splitlines()[1]


def test_npm_that_fails_or_is_missing_is_named(fake_npm, monkeypatch, tmp_path):
    fake_npm("echo 'npm error network'; echo more; exit 1")
    with pytest.raises(InputError, match="--format=web needs `npm ci` to end well .* Received: npm error network$"):
        site.install()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="--format=web needs npm .* no npm on PATH$"):
        site.install()


def test_lock_file_names_no_index():
    lock = (WEB / "package-lock.json").read_text()
    assert "resolved" not in lock and "://" not in lock
    packages = json.loads(lock)["packages"]
    assert all(package["integrity"] for folder, package in packages.items() if folder)


def test_serve_prints_its_address_and_ends_at_ctrl_c(sites):
    program = f"from export import site; site.serve({str(sites / 'whole')!r}, 0)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        try:
            address = re.match(r"http://localhost:\d+/", process.stdout.readline())[0]
            files = files_of(sites / "whole").name
            types = {
                "": "text/html; charset=utf-8",
                "service.js": "text/javascript; charset=utf-8",
                f"{files}/icon.svg": "image/svg+xml",
                f"{files}/model.json": "application/json",
                f"{files}/model.tflite": "application/octet-stream",
                f"{files}/litert/wasm/litert_wasm_internal.wasm": "application/wasm",
            }
            for name, expected in types.items():
                with urllib.request.urlopen(address + name) as response:
                    assert response.headers["Content-Type"] == expected
                    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}nothing")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
            assert (process.stdout.read(), process.stderr.read()) == ("", "")
        finally:
            process.kill()


def test_serve_sends_an_older_file_anew(tmp_path):
    (tmp_path / "index.html").write_text("of an earlier export")
    later = {"If-Modified-Since": "Fri, 31 Dec 2100 00:00:00 GMT"}
    with serving(site.Handler, tmp_path) as address:
        with urllib.request.urlopen(urllib.request.Request(address, headers=later), timeout=20) as answer:
            assert answer.read() == b"of an earlier export"


def test_serve_refuses_a_taken_port_and_no_site(sites, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port must be a free port .* Received: {port} "):
            site.serve(sites / "whole", port)
    with pytest.raises(InputError, match="--port must be a free port .* Received: 70000"):
        site.serve(sites / "whole", 70000)
    with pytest.raises(InputError, match="--out must be a site that was built"):
        site.serve(tmp_path, 0)
