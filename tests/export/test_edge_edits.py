"""export/edge/generator.py: another number of steps, variations and inpainting, beside Keras."""

import itertools

import numpy as np
import pytest

from export.edge import generator as edge
from kddpm.sampling import samplers

SEEDS = [0, -3, 7]


@pytest.fixture(scope="module")
def files(trained_like, tmp_path_factory):
    """Exports by sampler and signatures, made once each."""
    made = {}

    def export(sampler, signatures=("denoise", "noise"), steps=6):
        key = sampler, tuple(signatures), steps
        if key not in made:
            made[key] = tmp_path_factory.mktemp("edits") / "m.tflite"
            trained_like.export(
                made[key], sampler=sampler, num_steps=steps, signatures=signatures, parity_seeds=1, verbose=False
            )
        return edge.Generator(made[key])

    return export


SAMPLERS = {
    "ancestral": samplers.Ancestral(),
    "large": samplers.Ancestral(variance="large", clip=False),
    "ddim": samplers.DDIM(),
    "noisy ddim": samplers.DDIM(eta=0.6, clip="dynamic"),
}


@pytest.fixture(params=SAMPLERS)
def both(request, files):
    return files(SAMPLERS[request.param]), SAMPLERS[request.param]


@pytest.fixture(scope="module")
def picture(trained_like):
    return trained_like.generate([42], "ancestral", 10)[0]


def assert_same(found, expected):
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= 1
    assert len(np.unique(found)) > 5


@pytest.mark.parametrize("steps", [None, 1, 3, 7, 20])
def test_any_number_of_steps(both, trained_like, steps):
    generator, sampler = both
    assert_same(
        generator.generate(SEEDS, num_steps=steps), trained_like.generate(SEEDS, sampler=sampler, num_steps=steps or 6)
    )


@pytest.mark.parametrize(("strength", "steps"), [(0, None), (0.3, None), (0.5, 8), (0.9, 3), (1, None)])
def test_variations(both, trained_like, picture, strength, steps):
    generator, sampler = both
    found = generator.variations(picture, strength, SEEDS, num_steps=steps)
    assert_same(found, trained_like.variations(picture, strength, SEEDS, sampler=sampler, num_steps=steps or 6))


@pytest.mark.parametrize(
    "options", [{}, {"num_steps": 1}, {"num_steps": 12}, {"resamplings": 1}, {"jump_length": 2, "resamplings": 3}]
)
def test_inpainting(both, trained_like, picture, options):
    generator, sampler = both
    known = np.ones((8, 8), bool)
    known[2:6, 3:] = False
    steps = options.get("num_steps", 6)
    expected = trained_like.inpaint(picture, known, SEEDS, sampler=sampler, **{"num_steps": steps, **options})
    found = generator.inpaint(picture, known, SEEDS, **options)
    assert_same(found, expected)
    np.testing.assert_array_equal(found[:, known], np.broadcast_to(picture[known], (3, known.sum(), 1)))


@pytest.mark.parametrize("name", samplers.BY_NAME)
@pytest.mark.parametrize("signatures", [("denoise", "noise"), ("start", "step", "finish"), ("generate",)])
def test_every_way_paints_what_keras_paints(files, trained_like, signatures, name):
    generator, calls = files(name, signatures), []
    found = generator.generate(SEEDS, progress=lambda *of: calls.append(of))
    assert_same(found, trained_like.generate(SEEDS, name, 6))
    assert calls[-1] == (len(calls), len(calls))


def test_what_a_file_does_not_allow_is_refused(files, picture):
    known = np.ones((8, 8), bool)
    edits = {
        "--num_steps needs": lambda generator: generator.generate(SEEDS, num_steps=3),
        "variations and inpainting need": lambda generator: generator.variations(picture, 0.5, SEEDS),
        "variations and inpainting needs?": lambda generator: generator.inpaint(picture, known, SEEDS),
    }
    for (purpose, edit), (sampler, signatures, error) in itertools.product(
        edits.items(),
        [
            ("heun", ("denoise", "noise"), "a file of the sampler ancestral or ddim. Received: one of heun"),
            ("ddim", ("denoise",), "the signatures denoise and noise. Received: a file without noise"),
        ],
    ):
        if signatures == ("denoise",):
            with pytest.raises(edge.InputError, match="must have the signatures .*Received: denoise$"):
                files(sampler, signatures)
            continue
        with pytest.raises(edge.InputError, match=f"{purpose} {error}"):
            edit(files(sampler, signatures))
    generator = files("ddim")
    for wrong, error in (
        (lambda: generator.generate(SEEDS, num_steps=0), "--num_steps must lie in 1 .. 20. Received: 0"),
        (lambda: generator.generate(SEEDS, num_steps=21), "--num_steps must lie in 1 .. 20. Received: 21"),
        (lambda: generator.variations(picture, 1.5, SEEDS), r"--strength must lie in \[0, 1\]. Received: 1.5"),
        (lambda: generator.variations(picture, float("nan"), SEEDS), r"--strength must lie in \[0, 1\]"),
        (
            lambda: generator.inpaint(picture, known, SEEDS, jump_length=6),
            "--jump_length must lie in 1 .. 5, or ",
        ),
        (
            lambda: generator.inpaint(picture, known, SEEDS, resamplings=0),
            "--resamplings must be at least 1. Received: 0",
        ),
    ):
        with pytest.raises(edge.InputError, match=error):
            wrong()
