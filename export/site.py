"""A folder with the page, LiteRT.js and one exported model: a web site for any static host.

check(out, batch_size)  checks that the site can be built
build(model, out)       builds it; LiteRT.js comes from npm, as web/package-lock.json pins it
serve(folder, port)     serves it at http://localhost:port, with the headers that let the model use threads
"""

import contextlib
import functools
import hashlib
import http.server
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Collection

from kddpm.base.errors import InputError
from kddpm.base.files import expand, replacing

from .edge import description

WEB = pathlib.Path(__file__).with_name("web")
MARK = "kddpm-site.txt"
SIGNATURES = ("denoise", "noise", "finish")  # for all that the page does; one copy of the network in memory
WAYS = (("start", "step", "finish"), ("denoise", "noise"), ("generate",))  # to draw; the page needs one of them
NPM_FILES = ("package.json", "package-lock.json", ".npmrc")
PAGE = (
    *("style.css", "icon.svg", "file.js", "files.js", "page.js", "address.js", "pictures.js", "editing.js"),
    *("offline.js", "worker.js"),
    *(f"generate/{name}.js" for name in ("index", "description", "tables", "walks", "litert")),
)
# The page loads one of the three: threads if it may share memory, else relaxed SIMD if the browser has it, else
# the compatible one (Safari). The fourth in the package, jspi, is for GPUs.
RUNTIMES = ("litert_wasm_threaded_internal", "litert_wasm_internal", "litert_wasm_compat_internal")


def check(out: pathlib.Path, batch_size: int, channels: int, signatures: Collection[str]) -> None:
    """Check that a site can be built as `out`, before a model is exported; fetch LiteRT.js if it is missing.

    Args:
        out: as in `build`.
        batch_size: pictures at a time.
        channels: of a picture.
        signatures: of the model, by name.

    Raises:
        InputError: `out` is something else than a site, the page cannot use such a model, or npm is missing or fails.
    """
    if batch_size != 1:
        raise InputError(f"--batch_size must be 1 with --format=web: the page draws one by one. Received: {batch_size}")
    if not 1 <= channels <= 4:
        raise InputError(f"--format=web shows pictures of 1 to 4 channels. Received: {channels}")
    if not any(set(way) <= set(signatures) for way in WAYS):
        ways = ", or ".join(" and ".join(way) for way in WAYS)
        raise InputError(f"--signatures must hold {ways} with --format=web. Received: {', '.join(signatures)}")
    out = pathlib.Path(os.path.abspath(expand(out)))
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and _is_foreign(out)):
        raise InputError(f"--out must be a new or empty folder, or a site built before. Received: {out}")
    install()


def build(model: pathlib.Path, out: pathlib.Path) -> None:
    """Build the site of the exported `model` as the folder `out`, and replace a site that was built there before.

    Args:
        model: a .tflite file with its side file, of the same name with .json, in the same folder.
        out: a folder that is new, empty, or a site that was built before.

    Raises:
        InputError: the model, its side file, npm or a folder to build in is missing, or model and side file differ.
    """
    model = pathlib.Path(expand(model))
    about = _described(model)
    check(out, about["batch_size"], about["image_shape"][-1], about["signatures"])
    with replacing(os.path.abspath(expand(out))) as part:
        _fill(part, model)


def install(with_tools: bool = False) -> None:
    """Run `npm ci` next to the page, or in the user's cache, unless the packages of the lock file are there already.

    Args:
        with_tools: whether the packages that test the page are wanted too.

    Raises:
        InputError: npm is missing or fails.
    """
    folder = _npm_folder()
    wanted = _packages(WEB / "package-lock.json", with_tools)
    if wanted.items() <= _packages(folder / "node_modules" / ".package-lock.json", with_tools=True).items():
        return
    if shutil.which("npm") is None:
        raise InputError("--format=web needs npm (it comes with Node.js) to fetch LiteRT.js. Received: no npm on PATH")
    if folder != WEB:
        folder.mkdir(parents=True, exist_ok=True)
        for name in NPM_FILES:
            shutil.copyfile(WEB / name, folder / name)
    print(f"Fetching LiteRT.js with npm into {folder / 'node_modules'} ...", flush=True)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    command += [] if with_tools else ["--omit=dev"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = (done.stdout.strip().splitlines() or ["nothing"])[0]
        raise InputError(f"--format=web needs `npm ci` to end well in {folder}. Received: {said}")


def _npm_folder() -> pathlib.Path:
    """Return where npm installs: next to the page, or in the user's cache if that folder is not writable."""
    if os.access(WEB, os.W_OK):
        return WEB
    return pathlib.Path(expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "kddpm" / "web"


def serve(folder: pathlib.Path, port: int) -> None:
    """Serve a site on this machine until Ctrl-C; port 0 = any free port.

    Raises:
        InputError: `folder` is not a site, or the port is taken.
    """
    folder = pathlib.Path(expand(folder))
    if not (folder / MARK).is_file():
        raise InputError(f"--out must be a site that was built. Received: {folder}, which holds no {MARK}")
    try:
        server = Server(("127.0.0.1", port), functools.partial(Handler, directory=folder))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--port must be a free port of this machine. Received: {port} ({reason})") from None
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"http://localhost:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


class Server(http.server.ThreadingHTTPServer):
    """A server that prints nothing when a browser closes a connection."""

    def handle_error(self, request, client_address):
        """Print an error, unless it is a closed connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the types that browsers require, and the two headers that allow shared memory."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 (the base class's own attribute); the machine's table may differ
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".wasm": "application/wasm",
        ".svg": "image/svg+xml",
        ".txt": "text/plain; charset=utf-8",
        "": "application/octet-stream",
    }

    def send_head(self):
        """Send files anew: what replaces an export may bear the same date, or an earlier one."""
        del self.headers["If-Modified-Since"]
        return super().send_head()

    def end_headers(self):
        """Add the headers to every response."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format, *arguments):
        """Print nothing, so that the address stays visible on the terminal."""


def _is_foreign(folder: pathlib.Path) -> bool:
    return any(folder.iterdir()) and not (folder / MARK).is_file()


def _described(model: pathlib.Path) -> dict:
    """Return what the side file says of `model`, once it is known to be that model's."""
    try:
        return description.read(model)
    except description.InputError as error:
        raise InputError(str(error)) from None


def _packages(lock_file: pathlib.Path, with_tools: bool) -> dict[str, str]:
    """Return the packages of an npm lock file, the integrity of each folder; none if the file cannot be read."""
    try:
        packages = json.loads(lock_file.read_text(encoding="utf-8"))["packages"]
    except (OSError, ValueError, KeyError):
        return {}
    return {
        folder: package["integrity"]
        for folder, package in packages.items()
        if folder and (with_tools or not package.get("dev"))
    }


def _fill(part: pathlib.Path, model: pathlib.Path) -> None:
    """Write all files of the site into the new folder `part`.

    All but index.html and the service worker lie in a folder that is named after what they hold, so that no cache ever
    shows files of two exports together.
    """
    core = _npm_folder() / "node_modules" / "@litertjs" / "core"
    part.mkdir()
    version = json.loads((core / "package.json").read_text(encoding="utf-8"))["version"]
    # Written first: it marks an incomplete folder as ours.
    (part / MARK).write_text(
        "A site that kddpm built; the next build replaces this folder.\n"
        f"litert/ holds LiteRT.js {version} (https://github.com/google-ai-edge/LiteRT), Apache License 2.0.\n",
        encoding="utf-8",
    )
    files = part / "files"
    (files / "litert" / "wasm").mkdir(parents=True)
    (files / "generate").mkdir()
    for name in PAGE:
        shutil.copyfile(WEB / name, files / name)
    for runtime in RUNTIMES:
        for suffix in (".js", ".wasm"):
            shutil.copyfile(core / "wasm" / (runtime + suffix), files / "litert" / "wasm" / (runtime + suffix))
    shutil.copyfile(core.parent / "wasm-utils" / "dist" / "index.js", files / "litert" / "wasm-utils.js")
    (files / "litert" / "index.js").write_text(_without_bare_import(core / "dist" / "index.js"), encoding="utf-8")
    (files / "litert" / "LICENSE").write_text(_licence(), encoding="utf-8")
    shutil.copyfile(model, files / "model.tflite")
    shutil.copyfile(model.with_suffix(".json"), files / "model.json")
    index = (WEB / "index.html").read_text(encoding="utf-8")
    name = f"v-{_digest(files, index)}"
    files.rename(part / name)
    (part / "index.html").write_text(index.replace("VERSION", name), encoding="utf-8")
    shutil.copyfile(WEB / "service.js", part / "service.js")


def _digest(files: pathlib.Path, index: str) -> str:
    """Write files.json, the sizes of the files that the page fetches, and return a hash of all that a visitor gets."""
    paths = {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}
    digest = hashlib.sha256(index.encode())
    for name, path in paths.items():
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    sizes = {name: path.stat().st_size for name, path in paths.items() if path.suffix}
    (files / "files.json").write_text(json.dumps({**sizes, "files.json": 0}), encoding="utf-8")
    return digest.hexdigest()[:12]


def _licence() -> str:
    """Return the Apache License, LiteRT.js's and ours, from the source tree or the installed package."""
    path = WEB.parents[1] / "LICENSE"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return importlib.metadata.distribution("kddpm").read_text("licenses/LICENSE") or ""


def _without_bare_import(script: pathlib.Path) -> str:
    """Return a script that imports its helper by address; an import map would not apply in the page's worker."""
    text = script.read_text(encoding="utf-8")
    bare = 'from "@litertjs/wasm-utils"'
    if text.count(bare) != 1:
        raise RuntimeError(f"{script} must import @litertjs/wasm-utils once. Found: {text.count(bare)} times")
    lines = text.replace(bare, 'from "./wasm-utils.js"').splitlines()
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL=")) + "\n"
