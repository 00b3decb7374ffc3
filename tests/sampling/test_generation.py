import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import best_model
from helpers.comparing import apart

import kddpm
from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.sampling import denoiser, generation, walks
from kddpm.sampling.samplers import DDIM, Ancestral

SHAPE = (4, 4, 1)
SEEDS = np.array([3, -8, 11], np.int32)


@pytest.fixture(scope="module")
def model():
    return best_model(SHAPE)


@pytest.fixture(scope="module")
def model_with_classes():
    """Pixels N(-0.3, 0.1^2) or N(0.2, 0.1^2); without a class the network says N(0, 0.1^2)."""
    return best_model(SHAPE, std=0.1, class_means=(-0.3, 0.2))


@pytest.fixture(scope="module")
def learned():
    """A network with a learned variance and three classes, its weights like trained ones."""
    keras.utils.set_random_seed(0)
    network = kddpm.UNet(image_shape=(4, 4, 2), width=8, multipliers=(1,), groups=4, num_classes=3, out_channels=4)
    model = kddpm.DiffusionModel(network, kddpm.schedules.linear(20, 1e-3, 0.5), variance="learned", weighting="hybrid")
    random = np.random.default_rng(0)
    for weight in model.ema_network.weights:
        weight.assign(random.normal(size=weight.shape) / np.sqrt(weight.shape[0] if weight.shape.rank else 1))
    return model


# The denoiser.


def asked(count, image_shape):
    """x_t and t for a network."""
    x = np.random.default_rng(0).normal(size=(count, *image_shape)).astype(np.float32)
    return tf.constant(x), tf.constant([3, 7, 19][:count])


def test_without_guidance_the_denoiser_is_the_averaged_network(trained_like, trained_like_with_classes):
    x, t = asked(3, (8, 8, 1))
    np.testing.assert_array_equal(trained_like.denoiser.predictor()(x, t), trained_like.ema_network([x, t]))
    x, t = asked(3, (8, 8, 3))
    label = tf.constant([2, 0, 1])
    np.testing.assert_array_equal(
        trained_like_with_classes.denoiser.predictor(label)(x, t),
        trained_like_with_classes.ema_network([x, t, label]),
    )


@pytest.mark.parametrize("scale", [0, 0.0, 0.4, 2, 7.5])
def test_guidance_is_a_straight_line_from_no_class_through_the_class(trained_like_with_classes, scale):
    """Ho & Salimans 2022, eq. 6; "no class" is the label behind the last one."""
    (x, t), label = asked(3, (8, 8, 3)), tf.constant([2, 0, 1])
    network = trained_like_with_classes.ema_network
    given, none = network([x, t, label]).numpy(), network([x, t, tf.constant([3, 3, 3])]).numpy()
    assert not np.allclose(given, none, atol=0.1)
    guided = trained_like_with_classes.denoiser.predictor(label, scale)(x, t)
    np.testing.assert_allclose(guided, none + scale * (given - none), atol=1e-4)


def test_guidance_leaves_a_learned_variance_to_the_class(learned):
    (x, t), label = asked(3, (4, 4, 2)), tf.constant([2, 0, 1])
    given, none = learned.ema_network([x, t, label]).numpy(), learned.ema_network([x, t, tf.fill(3, 3)]).numpy()
    assert not np.allclose(given[..., 2:], none[..., 2:], atol=0.05)
    whole = learned.denoiser.predictor(label, 3.0, learned_variance=True)(x, t)
    np.testing.assert_allclose(whole[..., :2], none[..., :2] + 3 * (given - none)[..., :2], atol=1e-4)
    np.testing.assert_allclose(whole[..., 2:], given[..., 2:], atol=1e-5)
    # A sampler that has no use for the variance gets the prediction alone.
    np.testing.assert_allclose(learned.denoiser.predictor(label, 3.0)(x, t), whole[..., :2], atol=1e-6)
    np.testing.assert_allclose(learned.denoiser.predictor(label)(x, t), given[..., :2], atol=1e-6)


def test_pictures_with_a_learned_variance(learned):
    made = {sampler: learned.generate([1, 2], sampler, 3, guidance_scale=2.0) for sampler in (Ancestral(), DDIM())}
    assert all(pictures.shape == (2, 4, 4, 2) for pictures in made.values())
    assert len({pictures.tobytes() for pictures in made.values()}) == len(made)


# Pictures of classes.


def test_a_scale_of_one_is_no_guidance(model_with_classes):
    plain = model_with_classes.generate(SEEDS, num_steps=5, labels=[0, 1, 1])
    for scale in (1, 1.0):
        guided = model_with_classes.generate(SEEDS, num_steps=5, labels=[0, 1, 1], guidance_scale=scale)
        np.testing.assert_array_equal(guided, plain)


def test_a_scale_of_zero_knows_no_class(model_with_classes):
    made = [
        model_with_classes.generate(SEEDS, num_steps=5, labels=labels, guidance_scale=0)
        for labels in ([0, 0, 0], [1, 0, 1])
    ]
    np.testing.assert_array_equal(*made)
    assert apart(made[0], best_model(SHAPE, std=0.1).generate(SEEDS, num_steps=5)) <= 1


@pytest.mark.parametrize(("sampler", "scale"), [("ancestral", 0.5), ("dpm_solver", 2.5)])
def test_guided_pictures_are_those_of_a_class_further_away(model_with_classes, sampler, scale):
    """eps of N(m, std^2) is linear in m: guided with scale w, the classes are those with the means w m."""
    further = best_model(SHAPE, std=0.1, class_means=(-0.3 * scale, 0.2 * scale))
    guided = model_with_classes.generate(SEEDS, sampler, 10, labels=[0, 1, 0], guidance_scale=scale)
    assert apart(guided, further.generate(SEEDS, sampler, 10, labels=[0, 1, 0])) <= 1
    assert apart(guided, model_with_classes.generate(SEEDS, sampler, 10, labels=[0, 1, 0])) > 10


def test_guidance_does_not_mix_images(model_with_classes):
    together = model_with_classes.generate(SEEDS, "ddim", 5, labels=[0, 1, 0], guidance_scale=3.0)
    for k in range(3):
        alone = model_with_classes.generate(SEEDS[[k]], "ddim", 5, labels=[k % 2], guidance_scale=3.0)
        assert apart(alone[0], together[k]) <= 1


# Edits.


def brightened(by):
    """Adds to every image its own number after every step; and its seed, in hundredths."""

    def function(x, index, seeds, amount):
        return (
            x + amount + tf.reshape(tf.cast(seeds, tf.float32), (-1, 1, 1, 1)) / 100 * tf.cast(index == 0, tf.float32)
        )

    return generation.Edit(("brightened",), function, (np.array(by, np.float32).reshape(-1, 1, 1, 1),))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_an_edit_follows_every_step_of_its_own_image(model, batch_size):
    """By hand, one image at a time; chunks of two leave a remainder of one."""
    table, amounts = model.denoiser.steps("ddim", 4), [0.1, -0.2, 0.3]
    floats, frames = generation.paint(model.denoiser, table, SEEDS, edit=brightened(amounts), batch_size=batch_size)
    assert frames is None and floats.shape == (3, *SHAPE)
    predict = model.denoiser.predictor()
    for k in range(3):
        x = walks.initial_noise(tf.constant(SEEDS[[k]]), SHAPE)
        for index in range(4):
            x = walks.take_step(predict, table, x, tf.constant(SEEDS[[k]]), index) + amounts[k]
            x = x + SEEDS[k] / 100 if index == 0 else x
        np.testing.assert_allclose(floats[k], x[0], atol=1e-5)


def test_edits_of_one_name_are_traced_once(model, monkeypatch):
    traces, walk = [], walks.walk
    monkeypatch.setattr(walks, "walk", lambda *args: traces.append(args) or walk(*args))
    table = model.denoiser.steps("ddim", 3)
    for amounts in ([0.0, 0.0, 0.0], [0.5, 0.5, 0.5]):
        floats, _ = generation.paint(model.denoiser, table, SEEDS, edit=brightened(amounts))
    assert len(traces) == 1 and np.mean(floats) > 0.4
    generation.paint(model.denoiser, table, SEEDS)
    assert len(traces) == 2


def test_pictures_can_start_from_a_given_x(model):
    table, x_T = model.denoiser.steps("heun", 5), np.ones((3, *SHAPE), np.float32)
    floats, frames = generation.paint(
        model.denoiser, table, SEEDS, x=x_T, frames=generation.Frames((0, 4)), batch_size=2
    )
    assert frames.shape == (3, 3, *SHAPE)
    np.testing.assert_array_equal(frames[0], images.to_uint8(x_T))
    np.testing.assert_array_equal(frames[-1], images.to_uint8(floats))
    state = walks.initial_state(tf.constant(x_T), table)
    end = walks.walk(model.denoiser.predictor(), table, state, tf.constant(SEEDS))
    np.testing.assert_allclose(floats, walks.picture_of(end, table), atol=1e-5)


@pytest.mark.parametrize("sampler", ["dpm_solver", "heun", "predictor_corrector"])
def test_frames_are_pictures_whatever_the_state_holds(model, sampler):
    made, frames = model.generate(SEEDS, sampler, 5, return_trajectory=3)
    assert frames.shape == (3, 3, *SHAPE)
    np.testing.assert_array_equal(frames[0], images.to_uint8(walks.initial_noise(SEEDS, SHAPE)))
    np.testing.assert_array_equal(frames[-1], made)
    assert apart(model.generate(SEEDS, sampler, 5, jit_compile=True), made) <= 1


@pytest.mark.parametrize("sampler", [Ancestral("small", clip=False), "dpm_solver", "heun"])
def test_a_frame_of_x0_is_what_the_network_predicts(model, sampler):
    """The mean of x_0 given x_t, in closed form: pixels N(0, 0.25^2)."""
    table = model.denoiser.steps(sampler, 6)
    made, frames = model.generate(SEEDS, sampler, 6, return_trajectory="x0")
    assert len(frames) == table.num_rows + 1
    np.testing.assert_array_equal(frames[-1], made)
    alpha_bars = np.cumprod(1 - model.schedule.betas)
    state = walks.initial_state(walks.initial_noise(SEEDS, SHAPE), table)
    for row, t in enumerate(table.timesteps):
        gain = np.sqrt(alpha_bars[t]) * 0.25**2 / (alpha_bars[t] * 0.25**2 + 1 - alpha_bars[t])
        x_0 = gain * walks.picture_of(state, table).numpy().astype(np.float64)
        assert apart(frames[row], np.clip(np.round((x_0 + 1) * 127.5), 0, 255)) <= 1
        state = walks.take_step(model.denoiser.predictor(), table, state, tf.constant(SEEDS), row)


def test_frames_at_chosen_t_are_those_of_the_nearest_steps(model):
    every = model.generate(SEEDS, "ddim", 5, return_trajectory="x0")[1]
    chosen = model.generate(SEEDS, "ddim", 5, return_trajectory="x0", frames=[1, 19, 12])[1]
    assert model.denoiser.steps("ddim", 5).timesteps.tolist() == [19, 15, 11, 7, 3]
    np.testing.assert_array_equal(chosen, every[[0, 2, 4, 5]])


@pytest.mark.parametrize("sampler", ["heun", "predictor_corrector"])
def test_a_frame_at_a_t_is_what_the_step_from_there_gets(model, sampler):
    """Not where Euler's half of Heun's step lands, nor what a predictor leaves to its correctors."""
    table = model.denoiser.steps(sampler, 5)
    t = int(table.timesteps[2])
    row = max(np.flatnonzero(table.timesteps == t))
    assert row == table.row_from(t) > np.argmax(table.timesteps == t)
    frame = model.generate(SEEDS, sampler, 5, return_trajectory=True, frames=[t])[1][0]
    state = walks.initial_state(walks.initial_noise(SEEDS, SHAPE), table)
    state = walks.walk(model.denoiser.predictor(), table, state, tf.constant(SEEDS), 0, row)
    assert apart(frame, images.to_uint8(walks.picture_of(state, table)).numpy()) <= 1


# Pictures that share a part of their way.


@pytest.mark.parametrize("sampler", ["ancestral", DDIM(eta=0.5), "predictor_corrector"])
def test_pictures_that_share_x_t(model, sampler):
    seeds = [3, 4, 5]
    alone = model.generate(seeds, sampler)
    for t in (19, 10, 0):
        shared = model.shared_until(seeds, t, sampler=sampler)
        assert apart(shared[0], alone[0]) <= 1
        assert apart(shared[0], shared[1]) == 0 if t == 0 else apart(shared[0], shared[1]) > 10
    assert apart(model.shared_until([4, 4], 10, sampler=sampler)[1], alone[1]) <= 1


def test_how_much_pictures_share_is_what_x_t_knows():
    """Given x_t, pixels N(0, s^2) have the variance s^2 (1 - alpha_bar) / (alpha_bar s^2 + 1 - alpha_bar)."""
    std, t = 0.25, 300
    schedule = kddpm.schedules.linear(1000)
    model = best_model((8, 8, 1), schedule, std=std)
    exact = Ancestral(tuple(toy.gaussian_variances(schedule, std)), clip=False)
    pictures = model.shared_until(range(64), t, sampler=exact).astype(np.float64) / 127.5 - 1
    left = 1 - np.prod(1 - schedule.betas[: t + 1])
    expected = std**2 * left / ((1 - left) * std**2 + left)
    assert abs(pictures.var(axis=0, ddof=1).mean() / expected - 1) < 5 * np.sqrt(2 / (63 * 64)) + 0.01


def test_labels_below_the_shared_part_are_those_of_the_pictures(model_with_classes):
    shared = model_with_classes.shared_until([1, 1], 19, labels=[0, 1])
    assert apart(shared, model_with_classes.generate([1, 1], labels=[0, 1])) <= 1


@pytest.mark.parametrize(
    ("t", "sampler", "text"),
    [
        (20, "ancestral", r"`t` must lie in 0 .. 19. Received: 20"),
        (-1, "ancestral", "`t` must be an integer of at least 0. Received: -1"),
        (5, "ddim", "`sampler` must draw noise and have no memory. Received: ddim, which draws no noise"),
        (5, "dpm_solver", "`sampler` must draw noise and have no memory. Received: dpm_solver, which remembers"),
    ],
)
def test_what_cannot_be_shared(model, t, sampler, text):
    with pytest.raises(InputError, match=text):
        model.shared_until([1, 2], t, sampler=sampler)


# What cannot be used.


def test_labels_are_checked(model, model_with_classes):
    assert model.denoiser.checked_labels(None, SEEDS) is None
    assert model_with_classes.denoiser.checked_labels(None, SEEDS).tolist() == [1, 0, 1]
    for labels in ([0, 1, 1], np.array([0, 1, 1]), range(2)):
        if len(labels) == 3:
            checked = model_with_classes.denoiser.checked_labels(labels, SEEDS)
            assert checked.tolist() == [0, 1, 1] and checked.dtype == np.int32
        else:
            with pytest.raises(InputError, match="`labels` must be one a seed. Received: 2 labels, 3 seeds"):
                model_with_classes.denoiser.checked_labels(labels, SEEDS)
    for labels in ([0, 1, 2], [0, -1, 1]):  # 2 is "no class", and not a user's to give
        with pytest.raises(InputError, match=r"`labels` must be integers in 0 .. 1"):
            model_with_classes.denoiser.checked_labels(labels, SEEDS)
    with pytest.raises(InputError, match=r"`labels` were given, but the network has no classes \(num_classes=None\)"):
        model.denoiser.checked_labels([0, 1, 1], SEEDS)


@pytest.mark.parametrize("scale", [1, 1.0, 0, 0.0, 3, 7.5, np.float64(2), np.float32(2), np.int64(2)])
def test_any_scale_of_at_least_zero_is_guidance(model_with_classes, scale):
    model_with_classes.denoiser.check_guidance(scale)


@pytest.mark.parametrize("scale", [-1, -0.1, float("nan"), float("inf"), "2", None])
def test_other_scales_are_refused(model_with_classes, scale):
    with pytest.raises(InputError, match=f"`guidance_scale` must be (a number|at least 0). Received: {scale!r}"):
        model_with_classes.generate([1], guidance_scale=scale)


def test_guidance_needs_classes_and_dropped_labels(model):
    model.denoiser.check_guidance(1.0)
    with pytest.raises(
        InputError, match=r"`guidance_scale` needs a network with classes \(num_classes\). Received: 2.0"
    ):
        model.generate([1], guidance_scale=2.0)
    network = model.network.__class__(SHAPE, model.schedule.betas, class_means=(-0.3, 0.2))
    undropped = kddpm.DiffusionModel(network, model.schedule, label_dropout=0.0)
    undropped.denoiser.check_guidance(1.0)
    for scale in (0, 2.0):
        with pytest.raises(InputError, match="`guidance_scale` needs a model trained with label_dropout"):
            undropped.generate([1], guidance_scale=scale)


def test_the_noise_of_an_inversion_is_painted_again(model):
    seeds = range(3)
    x_T = np.random.default_rng(0).normal(size=(3, *SHAPE))
    made = model.generate(seeds, "ddim", 5, x_T=x_T)
    np.testing.assert_array_equal(made, model.generate([7, 8, 9], "ddim", 5, x_T=x_T))  # DDIM draws nothing
    assert not np.array_equal(made, model.generate(seeds, "ddim", 5))
    shape = r"\(3, " + ", ".join(map(str, SHAPE)) + r"\)"
    for other, received in ((x_T[:2], "float64"), (x_T.astype(int), "int64")):
        with pytest.raises(InputError, match=f"`x_T` must be float {shape}, one a seed. Received: {received}"):
            model.generate(seeds, "ddim", 5, x_T=other)
    with pytest.raises(InputError, match="`x_T` must be finite. Received: NaN or infinite values"):
        model.generate(seeds, "ddim", 5, x_T=np.where(x_T > 3, x_T, np.nan))


def test_one_trace_serves_every_scale(model_with_classes):
    model_with_classes.denoiser._compiled.clear()
    for scale in (2.0, 3.0, 1.5, np.float32(4)):
        model_with_classes.generate([1], num_steps=2, guidance_scale=scale)
    assert len(model_with_classes.denoiser._compiled) == 1
    model_with_classes.generate([1], num_steps=2)
    assert len(model_with_classes.denoiser._compiled) == 2


def test_what_was_used_longest_ago_is_forgotten(monkeypatch):
    model = best_model(SHAPE)
    monkeypatch.setattr(denoiser, "_MOST_COMPILED", 2)
    made = []

    def ask(key):
        return model.denoiser.compiled((key,), lambda: made.append(key) or key)

    assert [ask(key) for key in "abacab"] == list("abacab")
    assert made == list("abcb")


def test_no_class_at_all_is_one_picture_whatever_the_label(model_with_classes):
    first, other = (model_with_classes.generate([1], num_steps=3, labels=[k], guidance_scale=0) for k in (0, 1))
    np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("wrong", [-3, 2.5, None])
def test_frames_are_counted(model, wrong):
    with pytest.raises(InputError, match="`return_trajectory` must be an integer of at least 0. Received: "):
        model.generate([1], num_steps=2, return_trajectory=wrong)
    with pytest.raises(
        InputError, match="`frames` must be an integer of at least 1. Received: |`frames` must be a non"
    ):
        model.generate([1], num_steps=2, return_trajectory=True, frames=wrong)


def test_frames_are_of_something_and_at_a_t(model):
    with pytest.raises(InputError, match="`return_trajectory` must be True, False, x_t, x0 or a number. Received: 'a'"):
        model.generate([1], num_steps=2, return_trajectory="a")
    with pytest.raises(InputError, match=r"`frames` must be a number, or t in 0 .. 19. Received: \[20, 3\]"):
        model.generate([1], num_steps=2, return_trajectory="x0", frames=[20, 3])


@pytest.mark.parametrize("wrong", [5, np.float32(1.5), "seven", [1.5], [[1]], []])
def test_seeds_are_a_list_of_integers(model, wrong):
    with pytest.raises(InputError, match="`seeds` must be a non-empty list of integers. Received: "):
        model.generate(wrong)
