"""The module around LiteRT.js (export/web/generate) in Node, beside Keras."""

import base64
import hashlib
import io
import json
import pathlib
import re
import subprocess

import numpy as np
import pytest
from helpers.device_pictures import assert_same_picture
from helpers.side_files import WRONG, with_entry
from PIL import Image

import kddpm
from kddpm.device import parity
from kddpm.sampling import walks

HERE = pathlib.Path(__file__).parent
MODULE = HERE.parents[1] / "export" / "web" / "generate"
SEEDS = [0, 7, -5, 2**31 - 1, -(2**31)]
PICTURE = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
KNOWN = np.tile([1, 1, 1, 0, 0, 1, 1, 1], (8, 1)).astype(np.uint8)
WAYS = {"steps": [], "denoise": ["start", "step", "finish", "generate"], "whole": ["step", "denoise"]}


@pytest.fixture
def paint(node, exported, described):
    """Calls of a model's methods in Node: a function that returns [(counts, pictures)] or the error of each.

    `made_with` is the sampler of the file, `hide` which signatures the module is not to see; other arguments replace
    entries of the side file.
    """

    def run(*calls, classes=False, made_with="ancestral", hide=(), **changes):
        path = exported(classes=classes, sampler=made_with)
        facts = {**described(path), **changes}
        answer = node(model=str(path), facts=facts, hide=list(hide), calls=calls)
        if "error" in answer:
            return answer["error"]
        shape = facts["image_shape"]
        return [
            result.get("error")
            or (result["counts"], [np.reshape(picture, shape) for picture in result["pictures"] if picture])
            for result in answer["results"]
        ]

    return run


def noise_of(model, seed):
    return hashlib.sha256(walks.initial_noise(np.array([seed], np.int32), model.image_shape).numpy().tobytes())


@pytest.mark.parametrize("hide", [[], ["noise"]])
def test_noise_has_the_bits_of_keras_or_nothing_is_drawn(paint, trained_like, hide):
    """A model is loaded only if its noise has the hash of the side file's vector."""
    for seed in SEEDS:
        right = {"seed": seed, "noise_sha256": noise_of(trained_like, seed).hexdigest()}
        assert paint(vectors=[right], hide=hide) == []
    wrong = {"seed": 7, "noise_sha256": noise_of(trained_like, 8).hexdigest()}
    expected = "The noise of seed 7 must have the bits of the side file. Received: other bits."
    assert paint(vectors=[wrong], hide=hide) == expected


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_pictures_are_those_of_keras(paint, keras, keras_with_classes, way, classes):
    model = keras_with_classes if classes else keras
    calls = [{"method": "generate", "seed": seed} for seed in SEEDS]
    for seed, (counts, found) in zip(SEEDS, paint(*calls, classes=classes, hide=WAYS[way]), strict=True):
        expected = model.pictures(seed)
        if way == "whole":
            expected = expected[-1:]
            assert counts == [[0, 6], [6, 6]]  # one call of `generate` is six of the network
        else:
            assert counts == [[calls, 6] for calls in range(7)]
        assert_same_picture(np.stack(found[:-1]), expected)
        np.testing.assert_array_equal(found[-1], found[-2])


@pytest.mark.parametrize("hide", [[], ["step", "generate"]])
@pytest.mark.parametrize(("sampler", "calls"), [("dpm_solver", 6), ("heun", 11)])
def test_samplers_with_a_memory(paint, trained_like, sampler, calls, hide):
    [(counts, found)] = paint({"method": "generate", "seed": -5}, made_with=sampler, hide=hide)
    assert counts[-1] == [calls, calls]
    assert_same_picture(found[-1], trained_like.generate([-5], sampler=sampler, num_steps=6)[0])


SAMPLERS = {
    "ancestral": kddpm.samplers.Ancestral(),
    "large": kddpm.samplers.Ancestral(variance="large"),
    "ddim": kddpm.samplers.DDIM(eta=0.5, clip="dynamic"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_editing_and_other_steps_are_those_of_keras(paint, trained_like, name):
    """The file's own sampler is another: the steps come from the side file, the file gives noise and x_0."""
    sampler = SAMPLERS[name]
    options = {**vars(sampler), "name": "ddim" if name == "ddim" else "ancestral", "num_steps": 6}
    if options.get("variance", "") is None:
        options["variance"] = "small"
    steps, strengths = ((1, 5, 20), (0, 0.3, 0.65, 1)) if name == "ancestral" else ((5,), (0.65,))
    about = {"seed": -5, "picture": PICTURE.ravel().tolist()}
    jumps = {"jump_length": 3, "resamplings": 2}
    found = paint(
        *({"method": "generate", "seed": -5, "steps": count} for count in steps),
        *({"method": "variations", **about, "strength": strength, "steps": 5} for strength in strengths),
        {"method": "inpaint", **about, "mask": KNOWN.ravel().tolist(), "steps": 5},
        {"method": "inpaint", **about, "mask": KNOWN.ravel().tolist(), "steps": 5, "jumpLength": 3, "resamplings": 2},
        sampler=options,
    )
    how = {"seeds": [-5], "sampler": sampler, "num_steps": 5}
    expected = [
        *(trained_like.generate(**{**how, "num_steps": count}) for count in steps),
        *(trained_like.variations(PICTURE, strength, **how) for strength in strengths),
        *(trained_like.inpaint(PICTURE, KNOWN.astype(bool), **how, **jumped) for jumped in ({}, jumps)),
    ]
    for (_, pictures), [picture] in zip(found, expected, strict=True):
        assert_same_picture(pictures[-1], picture)
    np.testing.assert_array_equal(found[-1][1][-1][KNOWN > 0], PICTURE[KNOWN > 0])


def test_learned_variance_memory_and_dynamic_clipping_are_walked_as_in_python(npm_packages, tmp_path):
    """Both walk the same table with the same made-up network."""
    rng = np.random.default_rng(0)
    columns = ["from_x0", "from_xt", "noise_std", "from_memory", "memory_from_x0", "memory_from_xt"]
    columns += ["memory_from_memory", "log_variance_low"]
    steps = {name: rng.uniform(0.1, 0.4, 4).tolist() for name in columns}
    steps |= {"t": [9, 6, 3, 0], "log_variance_high": [1.0, 2.0, 1.5, 1.0], "clip": "dynamic"}

    def noise(seed, stream, index):
        return {"noise": (seed + stream + index) * np.linspace(-1, 1, 500, dtype=np.float32).reshape(1, 10, 10, 5)}

    def denoise(x, t):
        return {"x0": x * 1.5 + 0.1 * t.astype(np.float32), "fraction": x * 0.25}

    expected = parity.walked_by_client(noise, denoise, steps, {"seed": np.array([2], np.int32)})
    script = f"""
        import {{ tableWalk }} from {json.dumps((MODULE / "walks.js").as_uri())};
        import {{ ownRows }} from {json.dumps((MODULE / "tables.js").as_uri())};
        const values = Float32Array.from({{ length: 500 }}, (_, i) => -1 + (2 * i) / 499);
        const run = async (name, {{ seed, stream, index, x, t }}) =>
          name === "noise"
            ? {{ noise: values.map((value) => (seed + stream + index) * value) }}
            : {{ x0: x.map((value) => value * 1.5 + 0.1 * t), fraction: x.map((value) => value * 0.25) }};
        const facts = {{ sampler: {{ clip: "dynamic" }}, steps: {json.dumps(steps)},
          schedule: {{ timesteps: null, alpha_bars: Array(10).fill(0.5) }} }};
        const walk = tableWalk(run, facts, {{ seed: 2, label: null }}, ownRows(facts));
        let state = await walk.begin();
        for (let call = 0; call < walk.calls; call++) state = await walk.next(state, call);
        console.log(JSON.stringify([...(await walk.picture(state))]));
    """
    (tmp_path / "walk.mjs").write_text(script)
    found = subprocess.run(["node", tmp_path / "walk.mjs"], check=True, capture_output=True, text=True).stdout
    assert 20 < expected.mean() < 235 and len(np.unique(expected)) > 50
    assert_same_picture(np.reshape(json.loads(found), expected.shape), expected)


def test_stopped_by_a_signal(paint):
    [error, (counts, _)] = paint(
        {"method": "generate", "seed": 7, "stopAt": 2}, {"method": "generate", "seed": 7}, hide=WAYS["denoise"]
    )
    assert error.startswith("AbortError: ")
    assert counts[-1] == [6, 6]


EDIT = {"seed": 0, "picture": [0] * 64, "strength": 0.5}


@pytest.mark.parametrize(
    ("call", "changes", "message"),
    [
        ({"seed": 2**31}, {}, "seed must be a whole number in -2147483648 .. 2147483647. Received: 2147483648"),
        ({"seed": 0.5}, {}, "seed must be a whole number"),
        ({"seed": 0, "label": 1}, {}, "label belongs to a model with classes"),
        ({"seed": 0, "steps": 21}, {}, "steps must be a whole number in 1 .. 20. Received: 21"),
        ({**EDIT, "strength": 1.5}, {}, "strength must lie in 0 .. 1. Received: 1.5"),
        ({**EDIT, "picture": [0] * 63}, {}, "picture must be a typed array of 8 x 8 x 1 values. Received: 63 values"),
        ({**EDIT, "mask": [1] * 65}, {}, "mask must be a typed array of 8 x 8 values. Received: 65 values"),
        ({**EDIT, "mask": [7] * 64}, {}, "mask must have the values 0 (paint anew) and 1 or 255 (keep). Received: 7"),
        ({**EDIT, "mask": [1] * 64, "jumpLength": 6}, {}, "jumpLength must be a whole number in 1 .. 5. Received: 6"),
        ({**EDIT, "mask": [1] * 64, "resamplings": 0}, {}, "resamplings must be a whole number in 1 .. 1000."),
        (EDIT, {"hide": ["denoise"]}, "Editing needs the signatures denoise and noise. Received: finish, generate,"),
        (EDIT, {"made_with": "heun"}, "Editing needs the sampler ancestral or ddim. Received: heun"),
        (
            {"seed": 0, "steps": 5},
            {"made_with": "heun"},
            "Another number of steps needs the sampler ancestral or ddim.",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(paint, call, changes, message):
    method = "inpaint" if "mask" in call else "variations" if "picture" in call else "generate"
    [error] = paint({"method": method, **call}, **changes)
    assert message in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"description_version": 2}, "must have description_version 3. Received: 2."),
        ({"image_shape": [8, 8, 5]}, "A picture must have 1 to 4 channels. Received: 5."),
        ({"batch_size": 4}, "The model's batch_size must be 1. Received: 4."),
        ({"sha256": "0" * 64}, "its length or sha256 differs."),
        ({"min_runtime_version": "2.22.0"}, "needs TensorFlow Lite 2.22.0 or newer. Received: LiteRT.js, of 2.21.0."),
        ({"steps": None}, "must have steps.t, a list of 6. Received: none."),
        ({"class_names": ["zero"]}, "must have class_names, null or 0 texts. Received: a list of 1."),
        ({"vectors": [{}]}, "must have vectors.0.seed, a whole number of 32 bits. Received: none."),
        ({"state_channels": 2}, "must describe the model. Received: other batches, shapes or classes."),
        ({"image_shape": [8, 9, 1]}, "must describe the model. Received: other batches, shapes or classes."),
        ({"num_classes": 3}, "must describe the model. Received: other batches, shapes or classes."),
    ],
)
def test_files_that_do_not_go_together_are_refused(paint, changes, message):
    assert message in paint(**changes)


@pytest.mark.parametrize("name", [*WRONG, "sampler.variance", "steps.from_memory"])
def test_an_entry_that_no_export_writes_is_named(paint, facts, name):
    sampler = {**facts["sampler"], **({"name": "ddim"} if name == "sampler.eta" else {})}
    partner = "steps.memory_from_x0" if name == "steps.from_memory" else name
    for value in WRONG.get(name, [[1.0] * 6] if name != partner else [None, "none", 3, [0.1, "x"]]):
        found = paint(**with_entry({**facts, "sampler": sampler}, name, value))
        assert re.match(rf"The model's side file must have {re.escape(partner)}(\.\d)?, .+\. Received: ", found)


def test_steps_of_a_listed_variance_or_another_spacing_are_the_files_own(paint, facts):
    own, other = {"method": "generate", "seed": 0}, {"method": "generate", "seed": 0, "steps": 5}
    for change in ({"variance": [0.1] * 6}, {"variance": "learned"}, {"spacing": "karras"}):
        [(counts, _), error] = paint(own, other, sampler={**facts["sampler"], **change})
        assert counts[-1] == [6, 6]
        assert "Another number of steps needs the " in error


def test_command_paints_a_png(npm_packages, exported, keras_with_classes, tmp_path):
    out = tmp_path / "picture.png"

    def run(*flags):
        command = ["node", MODULE / "paint.js", exported(classes=True), *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("--seed=4", "--label=0", f"--out={out}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"1 picture in {out}\n", "")
    assert_same_picture(np.asarray(Image.open(out)), keras_with_classes.picture(4, label=0))
    for flag, message in (("--seed=x", "--seed must be"), ("--label=3", "label must be"), ("--sed=1", "--sed")):
        failed = run(flag)
        assert failed.returncode == 1 and message in failed.stderr and failed.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_command_names_the_file_at_fault(npm_packages, exported, facts, tmp_path):
    """Of a model that was truncated before its side file was written, and of a side file of something else."""
    model, side = tmp_path / "m.tflite", tmp_path / "m.json"
    for content, changes, message in (
        (exported().read_bytes()[:-5000], {}, f"{model} cannot be run by LiteRT.js: "),
        (exported().read_bytes(), {"precision": 3}, f"{side} must have precision, a text. Received: 3."),
        (exported().read_bytes(), {"num_classes": 3}, f"{side} must describe the model. Received: other batches"),
    ):
        model.write_bytes(content)
        about = {**facts, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}
        side.write_text(json.dumps(about))
        failed = subprocess.run(["node", MODULE / "paint.js", model], capture_output=True, text=True, cwd=tmp_path)
        assert failed.returncode == 1 and failed.stderr.startswith(f"paint.js: {message}")
        assert failed.stderr.count("\n") == 1


def test_vector_of_the_side_file_is_the_picture(paint, facts):
    """What a client may compare with without Keras."""
    [vector] = facts["vectors"]
    [(_, pictures)] = paint({"method": "generate", "seed": vector["seed"]})
    expected = np.asarray(Image.open(io.BytesIO(base64.b64decode(vector["picture"]))))
    assert_same_picture(pictures[-1][..., 0], expected)


def test_types_hold(npm_packages):
    """The module keeps its declarations, and one who uses it wrongly is told."""
    options = "--noEmit --strict --noImplicitAny false --allowJs --checkJs --skipLibCheck --target es2023"
    options += " --lib es2023,dom --module nodenext"
    tsc = MODULE.parent / "node_modules" / "typescript" / "bin" / "tsc"
    files = [MODULE / "index.js", MODULE / "node.d.ts", HERE / "generate_user.ts"]
    done = subprocess.run(["node", tsc, *options.split(), *files], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0
