"""A file for GPUs on a software GPU, in Chromium (LiteRT.js) and in LiteRT, beside the same file on the CPU.

Skipped where there is no adapter; with KDDPM_REQUIRE_BROWSER=1 that is a failure.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.device_pictures import assert_same_picture, on_canvas
from helpers.processes import answering, lacking
from helpers.sites import serving
from PIL import Image

import kddpm
from export import site
from kddpm.device import litert

HERE = pathlib.Path(__file__).parent
EDGE = HERE.parents[1] / "export" / "edge" / "generate.py"
STEPS = 2
GREY_LEVELS = 1  # how far a pixel may be from the CPU's
ERROR = 1e-4  # of what lies in [-1, 1], or is of the order of 1
SWIFTSHADER = "vk_swiftshader_icd.json"  # beside Chromium


@pytest.fixture(scope="module")
def model_file(trained_like_with_classes, tmp_path_factory):
    """Guided, so that the network sees a batch of two; without the signatures of the CPU."""
    path = tmp_path_factory.mktemp("gpu") / "model.tflite"
    names = ["generate", "step", "finish", "denoise"]
    trained_like_with_classes.export(
        path, "litert", "ddim", STEPS, target="gpu", signatures=names, guidance_scale=2, parity_seeds=1, verbose=False
    )
    return path


@pytest.fixture(scope="module")
def calls(model_file):
    """A few calls of every signature, [name, inputs], with the states that the steps reach on the CPU."""
    run = litert.load(model_file.read_bytes())
    label = {"label": np.array([1], np.int32)}
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    made = [("generate", {"x": x, **label})]
    made += [("denoise", {"x": x, "t": np.array([t], np.int32), **label}) for t in (0, 19)]
    for index in range(STEPS):
        made.append(("step", {"x": x, "index": np.array([index], np.int32), **label}))
        x = run["step"](**made[-1][1])["x"]
    return [*made, ("finish", {"x": x}), ("finish", {"x": np.full_like(x, 1e9)})]


@pytest.fixture(scope="module")
def on_cpu(model_file, calls):
    run = litert.load(model_file.read_bytes())
    return [run[name](**inputs) for name, inputs in calls]


def check(outputs, on_cpu, calls):
    for (name, _), found, expected in zip(calls, outputs, on_cpu, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            bound = GREY_LEVELS if value.dtype == np.int32 else ERROR
            np.testing.assert_allclose(np.ravel(found[key]), value.ravel(), atol=bound, rtol=0, err_msg=f"{name} {key}")


@pytest.fixture
def in_chromium(needs, npm_packages, tmp_path):
    """Asks litert_gpu.mjs about a file; skips where Chromium has no adapter."""
    needs("chromium")
    return functools.partial(asked, tmp_path)


def asked(tmp_path, model_file, order):
    (tmp_path / "calls.json").write_text(json.dumps(order))
    command = ["node", HERE / "litert_gpu.mjs", shutil.which("chromium"), model_file, tmp_path / "calls.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if answer["adapter"] is None:
        lacking("a WebGPU adapter in Chromium")
    return answer


def test_in_the_browser_everything_runs_on_the_gpu(model_file, calls, on_cpu, in_chromium):
    listed = [
        [name, {key: {"dtype": v.dtype.name, "shape": v.shape, "values": v.ravel().tolist()} for key, v in of.items()}]
        for name, of in calls
    ]
    answer = in_chromium(model_file, listed)
    assert answer["fully"] and answer["complaints"] == []
    check(answer["outputs"], on_cpu, calls)


def test_in_litert_everything_runs_on_the_gpu(model_file, calls, on_cpu, tmp_path):
    drivers = list(pathlib.Path("/usr/lib").glob(f"chromium*/{SWIFTSHADER}"))
    if not drivers:
        lacking(f"{SWIFTSHADER}, which comes with Chromium")
    arrays = {f"{i}.{name}.{key}": value for i, (name, of) in enumerate(calls) for key, value in of.items()}
    np.savez(tmp_path / "calls.npz", **arrays)
    command = [sys.executable, HERE / "litert_gpu.py", model_file, tmp_path / "calls.npz", tmp_path / "outputs.npz"]
    libraries = str(drivers[0].parent)  # Chromium's libvulkan serves where the system has none
    environment = {**os.environ, "VK_ICD_FILENAMES": str(drivers[0]), "LD_LIBRARY_PATH": libraries}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    if done.returncode == 3:
        lacking("a WebGPU adapter in LiteRT")
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "outputs.npz")
    assert found["fully"]
    assert "will run on the CPU" not in done.stderr
    outputs = [{} for _ in calls]
    for key in set(found) - {"fully"}:
        number, _, output = key.split(".")
        outputs[int(number)][output] = found[key]
    check(outputs, on_cpu, calls)


@pytest.fixture(scope="module")
def noisy_file(trained_like, tmp_path_factory):
    """A file for GPUs with the signatures of the CPU that draw the noise of its steps."""
    path = tmp_path_factory.mktemp("gpu") / "noisy.tflite"
    options = {"signatures": ["start", "step", "finish", "noise"], "parity_seeds": 1, "verbose": False}
    trained_like.export(path, "litert", "ancestral", STEPS, target="gpu", **options)
    return path


@pytest.fixture
def painted(trained_like):
    return trained_like.generate([7], "ancestral", STEPS, verbose=False)


@pytest.mark.parametrize("lose", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_module_paints_on_the_gpu_or_says_why_not(noisy_file, painted, described, in_chromium, lose):
    """Noise comes from the CPU. A GPU that is lost is left for the CPU, with the same picture."""
    answer = in_chromium(noisy_file, {"facts": described(noisy_file), "seed": 7, "lose": lose})
    assert answer["accelerator"] == ("wasm" if lose else "webgpu")
    assert (answer["whyNotGpu"] or "").startswith("The GPU was left for the CPU: " if lose else "")
    np.testing.assert_allclose(answer["picture"], painted.ravel(), atol=GREY_LEVELS)


@pytest.mark.slow
def test_the_module_says_that_a_file_is_not_for_gpus(exported, described, in_chromium):
    answer = in_chromium(exported(), {"facts": described(exported()), "seed": 7})
    assert answer["accelerator"] == "wasm"
    assert answer["whyNotGpu"] == "The GPU was left for the CPU: the model must be exported with --target=gpu"


def test_the_python_client_draws_the_noise_of_a_file_for_gpus(noisy_file, painted, tmp_path):
    command = [sys.executable, EDGE, noisy_file, "--seeds=7", f"--out={tmp_path / 'picture.png'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "picture.png") as image:
        shown = np.asarray(image).astype(int)
    np.testing.assert_allclose(shown, kddpm.images.grid(painted)[..., 0], atol=GREY_LEVELS)


@pytest.fixture(scope="module")
def gpu_host(noisy_file, needs, npm_packages, tmp_path_factory):
    """A site of a file for GPUs."""
    needs("chromium")
    folder = tmp_path_factory.mktemp("site") / "site"
    site.build(noisy_file, folder)
    with serving(site.Handler, folder) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize("has_adapter", [True, False])
def test_the_page_offers_the_gpu_and_says_what_ran(gpu_host, painted, described, noisy_file, has_adapter):
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] if has_adapter else ["--disable-gpu"]
    with answering("node", HERE / "visitor.mjs", shutil.which("chromium"), *flags) as ask:
        answer = ask(visit="gpu", url=f"{gpu_host}/", seed="7")
    assert "error" not in answer, answer
    seen = answer["result"]
    assert "WebAssembly" in seen["before"]["facts"]
    shown = seen["chosen"]
    assert_same_picture(on_canvas(shown["pixels"], described(noisy_file)["image_shape"]), painted[0])
    assert shown["checked"] is has_adapter
    if has_adapter:
        assert "· WebGPU" in shown["facts"] and "WebAssembly" not in shown["facts"]
        assert "WebAssembly" in seen["after"]["facts"]
    else:
        assert re.search(r"· WebAssembly, .* · This browser gives pages no GPU here\.", shown["facts"])
