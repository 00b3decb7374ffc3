"""`generate` of a model."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.comparing import apart
from helpers.networks import T
from helpers.small_models import small

from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.sampling import noise, samplers, walks


@pytest.fixture
def painter(make_model):
    """A model whose averaged weights are random and differ from the raw ones; nothing in it is compiled or trained."""

    def make(**unet):
        model = make_model({"multipliers": (1,), **unet})
        rng = np.random.default_rng(1)
        model.ema_network.set_weights([w + rng.normal(0, 0.05, w.shape) for w in model.ema_network.get_weights()])
        return model

    return make


def test_ancestral_sampling_is_algorithm_2(painter):
    model, seeds = painter(), np.array([4, -9], np.int32)
    betas = np.linspace(1e-3, 0.5, T)
    alpha_bars = np.cumprod(1 - betas)
    x = noise.normal(seeds, noise.INITIAL_STREAM, 0, (8, 8, 1)).numpy().astype(float)
    for i, t in enumerate(reversed(range(T))):
        eps = model.ema_network([x.astype("float32"), np.full(2, t)]).numpy()
        z = noise.normal(seeds, noise.STEP_STREAM, i, (8, 8, 1)).numpy() if t else 0
        x = (x - betas[t] / np.sqrt(1 - alpha_bars[t]) * eps) / np.sqrt(1 - betas[t]) + np.sqrt(betas[t]) * z
    by_hand = np.clip(np.round((x + 1) * 127.5), 0, 255)
    assert apart(model.generate(seeds, samplers.Ancestral("large", clip=False)), by_hand) <= 1


def test_pictures_are_uint8_and_repeatable(painter):
    model = painter(image_shape=(8, 4, 3))
    made = model.generate(range(3))
    assert made.shape == (3, 8, 4, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(model.generate(range(3)), made)
    assert min(apart(made[i], made[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) > 20
    assert apart(made, painter(image_shape=(8, 4, 3)).generate(range(3))) == 0


def test_a_picture_depends_on_its_own_seed_alone(painter):
    model = painter()
    many, many_frames = model.generate(range(9), return_trajectory=2)
    for seeds in ([8], [5, 0, 8]):
        few, frames = model.generate(seeds, return_trajectory=2)
        assert apart(few, many[seeds]) <= 1
        np.testing.assert_array_equal(frames[0], many_frames[0][seeds])


def test_chunks_with_a_remainder(painter):
    model, seeds = painter(), list(range(10, 17))
    expected, expected_frames = model.generate(seeds, return_trajectory=3)
    for batch_size in (1, 3, 7):
        made, frames = model.generate(seeds, batch_size=batch_size, return_trajectory=3)
        assert made.shape == expected.shape and apart(made, expected) <= 1
        assert frames.shape == expected_frames.shape and apart(frames, expected_frames) <= 1


def test_trajectories_go_from_noise_to_the_picture(painter):
    model, seeds = painter(), [1, 2]
    made, frames = model.generate(seeds, return_trajectory=5)
    assert frames.shape == (5, 2, 8, 8, 1) and frames.dtype == np.uint8
    start = walks.initial_noise(tf.constant(seeds), (8, 8, 1))
    np.testing.assert_array_equal(frames[0], images.to_uint8(start))
    np.testing.assert_array_equal(frames[-1], made)
    np.testing.assert_array_equal(made, model.generate(seeds))
    steps = model.generate(seeds, return_trajectory=True)[1]
    assert len(steps) == T + 1  # 50 are wanted and there are no more
    np.testing.assert_array_equal(steps[::5], frames)
    assert model.generate(seeds, return_trajectory=1)[1].shape == (1, 2, 8, 8, 1)


def test_samplers_by_name_and_as_objects(painter):
    model = painter()
    made = {
        name: model.generate([1, 2], sampler, num_steps)
        for name, sampler, num_steps in [
            ("ancestral", "ancestral", None),
            ("ancestral in 20", samplers.Ancestral(), 20),
            ("ddim", "ddim", 5),
            ("ddim in a list", samplers.DDIM(), [3, 7, 11, 15, 19]),
            ("ddim elsewhere", "ddim", [0, 1, 2, 3, 19]),
            ("ddim with noise", samplers.DDIM(eta=1.0), 5),
            ("large variance", samplers.Ancestral("large"), None),
        ]
    }
    np.testing.assert_array_equal(made["ancestral"], made.pop("ancestral in 20"))
    np.testing.assert_array_equal(made["ddim"], made.pop("ddim in a list"))
    assert len({pictures.tobytes() for pictures in made.values()}) == len(made) == 5


def test_xla_paints_the_same_pictures(painter):
    model = painter()
    assert apart(model.generate(range(4), num_steps=5), model.generate(range(4), num_steps=5, jit_compile=True)) <= 1


def test_sampling_is_traced_once(painter, monkeypatch):
    model, traces, walk = painter(), [], walks.walk
    monkeypatch.setattr(walks, "walk", lambda *args: traces.append(args) or walk(*args))
    model.generate([1, 2, 3])
    model.generate([4, 5, 6, 7])  # 3 and 4 share a batch of 4
    model.generate(range(9), batch_size=4, return_trajectory=4)
    assert len(traces) == 1
    model.generate([1, 2, 3], "ddim")
    assert len(traces) == 2


def test_pictures_of_classes(painter):
    model, seeds = painter(num_classes=3), [0, 1, 5, -1]
    made = model.generate(seeds)
    np.testing.assert_array_equal(made, model.generate(seeds, labels=[0, 1, 2, 2]))
    other = model.generate(seeds, labels=[1, 1, 2, 2])
    assert apart(made[0], other[0]) > 1 and apart(made[1:], other[1:]) <= 1


def test_pictures_are_of_the_averaged_weights(painter):
    model = painter()
    made = model.generate([1])
    model.network.set_weights([w + 1 for w in model.network.get_weights()])
    np.testing.assert_array_equal(model.generate([1]), made)
    model.ema_network.set_weights([w / 2 for w in model.ema_network.get_weights()])
    assert apart(model.generate([1]), made) > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seeds": []}, r"`seeds` must be a non-empty list of integers. Received: \[\]"),
        ({"seeds": [1.5]}, r"`seeds` must be a non-empty list of integers. Received: \[1.5\]"),
        ({"seeds": [2**31]}, "`seeds` must fit int32. Received: values from 2147483648 to 2147483648"),
        ({"sampler": "euler"}, "`sampler` must be one of ancestral, ddim, .*, or a sampler. Received: 'euler'"),
        ({"num_steps": 21}, r"`num_steps` must be an integer in 1 .. 20 \(T\). Received: 21"),
        ({"num_steps": 0}, r"`num_steps` must be an integer in 1 .. 20 \(T\). Received: 0"),
        ({"num_steps": [1, 20]}, r"`num_steps` must lie in 0 .. 19. Received: 1 .. 20"),
        ({"num_steps": [5, 3]}, "`num_steps` must be increasing integers"),
        ({"num_steps": [3, 18]}, "`num_steps` must end at T - 1 = 19, .* Received: a last step of 18"),
        ({"labels": [0]}, "`labels` were given, but the network has no classes"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1. Received: 0"),
    ],
)
def test_generate_refuses_what_it_cannot_use(arguments, message):
    with pytest.raises(InputError, match=message):
        small().generate(**{"seeds": [1], **arguments})


@pytest.mark.parametrize(
    ("scale", "classes", "label_dropout", "message"),
    [
        (
            2.0,
            None,
            0.1,
            r"`guidance_scale` needs a network with classes \(num_classes\). Received: 2.0 without classes",
        ),
        (
            2.0,
            3,
            0.0,
            "`guidance_scale` needs a model trained with label_dropout: this one never saw pictures without their "
            "class. Received: 2.0",
        ),
        (-1, 3, 0.1, "`guidance_scale` must be at least 0. Received: -1"),
        (float("nan"), 3, 0.1, "`guidance_scale` must be a number. Received: nan"),
        (float("inf"), 3, 0.1, "`guidance_scale` must be a number. Received: inf"),
        ("2", 3, 0.1, "`guidance_scale` must be a number. Received: '2'"),
    ],
)
def test_guidance_that_cannot_be_is_refused_with_the_reason(scale, classes, label_dropout, message):
    model = small(network={"num_classes": classes}, label_dropout=label_dropout)
    with pytest.raises(InputError, match=f"^{message}$"):
        model.generate([1], guidance_scale=scale)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0], "`labels` must be one a seed. Received: 1 labels, 2 seeds"),
        ([0, 3], r"`labels` must be integers in 0 .. 2. Received: int32 from 0 to 3"),
        ([0, -1], r"`labels` must be integers in 0 .. 2. Received: int32 from -1 to 0"),
        ([0.0, 1.0], "`labels` must be a non-empty list of integers"),
    ],
)
def test_generate_refuses_impossible_labels(labels, message):
    with pytest.raises(InputError, match=message):
        small(network={"num_classes": 3}).generate([1, 2], labels=labels)
