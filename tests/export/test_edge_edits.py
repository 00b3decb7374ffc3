"""export/edge/generator.py: another number of steps, variations and inpainting, beside Keras."""

import numpy as np
import pytest
from helpers.networks import one_conv_model

from export.edge import generator as edge
from kddpm.device import description
from kddpm.sampling import samplers

SEEDS = [0, -3, 7]
STEPS = 6


@pytest.fixture(scope="module")
def model():
    return one_conv_model()  # which Keras traces in no time


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    """An export with the least that can be walked in any steps."""
    path = tmp_path_factory.mktemp("edits") / "m.tflite"
    model.export(path, num_steps=STEPS, signatures=["denoise", "noise"], parity_seeds=1, verbose=False)
    return path


@pytest.fixture
def file_of(path, model):
    """The export as one of another sampler: only the description says by which."""

    def described(sampler):
        generator, sampler = edge.Generator(path), samplers.by_name(sampler)
        table = model.denoiser.steps(sampler, STEPS)
        generator.about.update(description.of_sampling(model.denoiser, sampler, table, 1.0))
        return generator

    return described


SAMPLERS = {
    "ancestral": samplers.Ancestral(),
    "large": samplers.Ancestral(variance="large", clip=False),
    "ddim": samplers.DDIM(),
    "noisy ddim": samplers.DDIM(eta=0.6, clip="dynamic"),
}


@pytest.fixture(params=SAMPLERS)
def both(request, file_of):
    return file_of(SAMPLERS[request.param]), SAMPLERS[request.param]


@pytest.fixture(scope="module")
def picture(model):
    return model.generate([42], "ancestral", 10)[0]


def assert_same(found, expected):
    found = np.stack(list(found))
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= 1
    assert len(np.unique(found)) > 5


@pytest.mark.parametrize("steps", [None, 1, 3, 7, 20])
def test_any_number_of_steps(both, model, steps):
    generator, sampler = both
    assert_same(
        generator.generate(SEEDS, num_steps=steps), model.generate(SEEDS, sampler=sampler, num_steps=steps or STEPS)
    )


@pytest.mark.parametrize(("strength", "steps"), [(0, None), (0.3, None), (0.5, 8), (0.9, 3), (1, None)])
def test_variations(both, model, picture, strength, steps):
    generator, sampler = both
    found = generator.variations(picture, strength, SEEDS, num_steps=steps)
    assert_same(found, model.variations(picture, strength, SEEDS, sampler=sampler, num_steps=steps or STEPS))


@pytest.mark.parametrize(
    "options", [{}, {"num_steps": 1}, {"num_steps": 12}, {"resamplings": 1}, {"jump_length": 2, "resamplings": 3}]
)
def test_inpainting(both, model, picture, options):
    generator, sampler = both
    known = np.ones((8, 8), bool)
    known[2:6, 3:] = False
    steps = options.get("num_steps", STEPS)
    expected = model.inpaint(picture, known, SEEDS, sampler=sampler, **{"num_steps": steps, **options})
    found = np.stack(list(generator.inpaint(picture, known, SEEDS, **options)))
    assert_same(found, expected)
    np.testing.assert_array_equal(found[:, known], np.broadcast_to(picture[known], (3, known.sum(), 2)))


@pytest.mark.parametrize("name", samplers.BY_NAME)
def test_every_sampler_is_walked_by_denoise(file_of, model, name):
    generator, calls = file_of(name), []
    assert_same(generator.generate(SEEDS, progress=lambda *of: calls.append(of)), model.generate(SEEDS, name, STEPS))
    assert calls[-1] == (len(calls), len(calls))


@pytest.mark.parametrize("names", [("start", "step", "finish"), ("generate",), ("denoise",)])
def test_the_other_ways(model, tmp_path, names):
    """A sampler with a memory by `step`, and by `generate`, and neither."""
    path = tmp_path / "m.tflite"
    model.export(path, sampler="heun", num_steps=3, signatures=names, parity_seeds=1, verbose=False)
    if names == ("denoise",):
        with pytest.raises(edge.InputError, match="must have the signatures .*Received: denoise$"):
            edge.Generator(path)
    else:
        assert_same(edge.Generator(path).generate(SEEDS), model.generate(SEEDS, "heun", 3))
        with pytest.raises(edge.InputError, match="--num_steps needs the signatures .* a file without denoise"):
            edge.Generator(path).generate(SEEDS, num_steps=2)


def test_what_a_file_does_not_allow_is_refused(file_of, picture):
    known, of_heun = np.ones((8, 8), bool), file_of("heun")
    for purpose, edit in {
        "--num_steps needs": lambda: of_heun.generate(SEEDS, num_steps=3),
        "variations and inpainting need": lambda: of_heun.variations(picture, 0.5, SEEDS),
        "variations and inpainting needs?": lambda: of_heun.inpaint(picture, known, SEEDS),
    }.items():
        with pytest.raises(edge.InputError, match=f"{purpose} a file of the sampler ancestral .*heun"):
            edit()
    generator = file_of("ddim")
    for wrong, error in (
        (lambda: generator.generate(SEEDS, num_steps=0), "--num_steps must lie in 1 .. 20. Received: 0"),
        (lambda: generator.generate(SEEDS, num_steps=21), "--num_steps must lie in 1 .. 20. Received: 21"),
        (lambda: generator.variations(picture, 1.5, SEEDS), r"--strength must lie in \[0, 1\]. Received: 1.5"),
        (lambda: generator.variations(picture, float("nan"), SEEDS), r"--strength must lie in \[0, 1\]"),
        (
            lambda: generator.inpaint(picture, known, SEEDS, jump_length=6),
            "--jump_length must be at least 1, and less than the 6 steps unless",
        ),
        (
            lambda: generator.inpaint(picture, known, SEEDS, resamplings=0),
            "--resamplings must lie in 1 .. 1000. Received: 0",
        ),
        (lambda: generator.inpaint(picture, known, SEEDS, resamplings=10**9), r"in 1 \.\. 1000\. Received: 1000000000"),
    ):
        with pytest.raises(edge.InputError, match=error):
            wrong()
