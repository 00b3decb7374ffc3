import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import MODES, draw, gaussian_denoiser
from helpers.networks import LEARNED

from kddpm.sampling import noise, samplers, walks
from kddpm.sampling.inversion import Inversion
from kddpm.sampling.samplers import DDIM, Ancestral, DPMSolver, Heun, PredictorCorrector
from kddpm.theory import schedules
from kddpm.theory.parametrization import PREDICTIONS, Objective

linear_100 = schedules.linear(100, 1e-3, 0.2)  # T = 1000 in a tenth of the steps
ALL_SAMPLERS = [
    Ancestral("small"),
    Ancestral("large", clip="dynamic"),
    Ancestral("small", clip=False),
    DDIM(0.0),
    DDIM(0.5, clip="dynamic"),
    DDIM(1.0, clip=False),
    DPMSolver(),
    Heun(clip="dynamic"),
    PredictorCorrector(2),
]
WITHOUT_NOISE = (DDIM(0.0), DPMSolver(), Heun(clip="dynamic"))
every_sampler = pytest.mark.parametrize("sampler", ALL_SAMPLERS, ids=str)


def denoiser_of(schedule, prediction="eps"):
    return gaussian_denoiser(schedule, 0.8, 0.4, prediction)  # beyond 1 often enough to be clipped


def with_fraction(denoiser):
    """The same with C more channels, a learned variance: 0.5 for an x_t above 0, -0.5 below."""
    return lambda x, t: tf.concat([denoiser(x, t), 0.5 * tf.sign(x)], axis=-1)


# The loop.


@pytest.mark.parametrize(
    ("sampler", "mode"),
    [*((s, "eager") for s in ALL_SAMPLERS), *((s, "graph") for s in (Ancestral(), Heun()))],
    ids=str,
)
def test_a_walk_in_two_halves_is_the_walk(sampler, mode):
    table, denoiser, seeds = samplers.step_table(sampler, linear_100, 7), denoiser_of(linear_100), tf.range(3)
    start = walks.initial_state(walks.initial_noise(seeds, (4, 4, 1)), table)
    walk = MODES[mode](lambda state, start, stop: walks.walk(denoiser, table, state, seeds, start, stop))
    ends = tf.constant([0, 4, table.num_rows])
    halfway = walk(start, ends[0], ends[1])
    end = walk(halfway, ends[1], ends[2])
    np.testing.assert_array_equal(end, walk(start, ends[0], ends[2]))
    np.testing.assert_array_equal(end, MODES[mode](lambda x: walks.walk(denoiser, table, x, seeds))(start))
    assert not np.array_equal(end, halfway)


@pytest.mark.parametrize("sampler", [*ALL_SAMPLERS, Ancestral("learned")], ids=str)
def test_every_mode_gives_the_same(sampler):
    learned = getattr(sampler, "variance", None) == "learned"
    denoiser = with_fraction(denoiser_of(linear_100)) if learned else denoiser_of(linear_100)
    table = samplers.step_table(sampler, linear_100, 5, LEARNED if learned else None)
    eager, graph, xla = (draw(denoiser, table, range(3), (4, 4, 3), mode) for mode in MODES)
    np.testing.assert_allclose(graph, eager, atol=1e-5)
    np.testing.assert_allclose(xla, eager, atol=1e-5)


def concrete_walk(num_steps, denoiser, sampler, image_shape=(4, 4, 1)):
    table = samplers.step_table(sampler, linear_100, num_steps)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def sample(seeds):
        state = walks.initial_state(walks.initial_noise(seeds, image_shape), table)
        return walks.picture_of(walks.walk(denoiser, table, state, seeds), table)

    return sample.get_concrete_function()


@pytest.mark.parametrize("sampler", [*ALL_SAMPLERS[1:4], *ALL_SAMPLERS[6:], Inversion()], ids=str)
def test_one_loop_whatever_the_number_of_steps(sampler):
    sizes = set()
    for num_steps in (3, 100):
        graph = concrete_walk(num_steps, denoiser_of(linear_100), sampler).graph.as_graph_def()
        operators = [node.op for node in graph.node]
        operators += [node.op for function in graph.library.function for node in function.node_def]
        assert sum(operator in ("While", "StatelessWhile") for operator in operators) == 1
        sizes.add(len(operators))
    assert len(sizes) == 1


@pytest.mark.parametrize("sampler", [Ancestral(), Heun()], ids=str)
def test_shapes_are_static_and_a_denoiser_of_another_shape_is_refused(sampler):
    def of_unknown_shape(x, t):
        return tf.raw_ops.PlaceholderWithDefault(input=x, shape=tf.TensorShape(None))

    def of_other_channels(x, t):
        return tf.concat([x, x], axis=-1)

    assert concrete_walk(5, of_unknown_shape, sampler).output_shapes == (2, 4, 4, 1)
    with pytest.raises(ValueError, match=r"\[2,4,4,1\]|\[2,4,4,2\]"):
        concrete_walk(5, of_other_channels, sampler)


@every_sampler
def test_an_image_depends_on_its_own_seed_alone(sampler):
    table, denoiser, seeds = samplers.step_table(sampler, linear_100, 5), denoiser_of(linear_100), [4, -1, 4, 0]
    batch = draw(denoiser, table, seeds, (4, 4, 3), "eager")
    for k in range(4):
        np.testing.assert_array_equal(batch[k], draw(denoiser, table, seeds[k : k + 1], (4, 4, 3), "eager")[0])
    np.testing.assert_array_equal(batch[0], batch[2])
    assert not np.allclose(batch[0], batch[1])


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (Ancestral(), (99, 40, 3)),
        (DDIM(), (99, 40, 3)),
        (DPMSolver(), (99, 40, 3)),
        (Heun(), (99, 40, 40, 3, 3)),
        (PredictorCorrector(2), (99, 40, 40, 40, 3, 3, 3)),
        (Inversion(2), (3, 3, 40, 40, 99, 99)),
    ],
    ids=str,
)
def test_the_denoiser_is_asked_about_the_steps_as_the_schedule_names_them(sampler, steps):
    asked = []

    def denoiser(x, t):
        asked.append((x.shape, t.dtype, t.numpy().tolist()))
        return x

    draw(denoiser, samplers.step_table(sampler, linear_100, [3, 40, 99]), [0, 1], (1, 1, 1), "eager")
    assert asked == [((2, 1, 1, 1), tf.int32, [t, t]) for t in steps]
    # A respaced schedule keeps its names: its 0, 1, 2 are 3, 40, 99.
    table = samplers.step_table(sampler, linear_100.respace([3, 40, 99]))
    assert table.timesteps.tolist() == list(steps)


def test_something_may_be_done_after_every_step():
    table, denoiser, indices = samplers.step_table(Heun(), linear_100, 3), denoiser_of(linear_100), []
    state = walks.initial_state(walks.initial_noise(tf.range(2), (1, 2, 1)), table)

    def halve(state, index):
        indices.append(int(index))
        return state / 2

    end = walks.walk(denoiser, table, state, tf.range(2), after_step=halve)
    for index in range(5):
        state = walks.take_step(denoiser, table, state, tf.range(2), index) / 2
    np.testing.assert_array_equal(end, state)
    assert indices == [0, 1, 2, 3, 4] and state.shape == (2, 1, 2, 2)


# The noise.


@pytest.mark.parametrize("sampler", [*ALL_SAMPLERS, Ancestral((0.5,) * 10), Ancestral("learned")], ids=str)
def test_no_noise_at_the_last_step(sampler, monkeypatch):
    learned = getattr(sampler, "variance", None) == "learned"
    table = samplers.step_table(sampler, linear_100, 10, LEARNED if learned else None)
    last = table.num_rows - 1
    assert table.rows.noise_std[last] == 0
    denoiser, normal = denoiser_of(linear_100), noise.normal
    if learned:
        denoiser = with_fraction(denoiser)

    def disturb(at):
        def other(seeds, stream, step, shape):
            changed = tf.cast((stream == noise.STEP_STREAM) & (step == at), tf.float32)
            return normal(seeds, stream, step, shape) + 0.1 * changed

        monkeypatch.setattr(noise, "normal", other)
        return draw(denoiser, table, [0, 1], (4, 4, 1), "eager")

    undisturbed = disturb(-1)
    np.testing.assert_array_equal(disturb(last), undisturbed)
    assert np.array_equal(disturb(last - 1), undisturbed) == (sampler in WITHOUT_NOISE)


@every_sampler
def test_the_last_step_ends_at_x0(sampler):
    """Every sampler's last row: x_0 as the network says it, clipped as the sampler does."""
    table = samplers.step_table(dataclasses.replace(sampler, clip=False), linear_100, 4, Objective("x0"))
    x, x_0 = (np.random.default_rng(i).normal(size=(2, 3, 3, 1)).astype(np.float32) for i in (0, 1))
    state = walks.initial_state(x, table)
    end = walks.picture_of(walks.next_state(table, state, x_0, table.num_rows - 1, x), table)
    np.testing.assert_allclose(end, x_0, rtol=1e-5, atol=1e-6)


# What the network predicts.


@pytest.mark.parametrize("sampler", [*ALL_SAMPLERS, Inversion(2)], ids=str)
def test_every_prediction_leads_the_same_way(sampler):
    """Each the best possible one for T = 100, in 7 steps of these."""
    ends = [
        draw(denoiser_of(linear_100, prediction), samplers.step_table(sampler, linear_100, 7, Objective(prediction)),
             range(3), (4, 4, 1), "eager")
        for prediction in PREDICTIONS
    ]  # fmt: skip
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=5e-4)
    assert np.std(ends[0]) > 0.1


@pytest.mark.parametrize("sampler", ALL_SAMPLERS, ids=str)
def test_zero_terminal_snr_is_walked_whatever_the_prediction(sampler):
    schedule = schedules.zero_terminal_snr(linear_100)
    ends = [
        draw(denoiser_of(schedule, prediction), samplers.step_table(sampler, schedule, 7, Objective(prediction)),
             range(3), (4, 4, 1), "eager")
        for prediction in ("x0", "v", "mu", "edm", "velocity")
    ]  # fmt: skip
    assert np.all(np.isfinite(ends)) and np.std(ends[0]) > 0.1
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=5e-4)


# A learned variance.


def std_of(table, fraction, row):
    """The standard deviation of a row, from what one unit of noise does to x_t = 0; (1, 2, 1, 1) for such fractions."""
    zero = tf.zeros((1, 2, 1, 1))
    output = tf.concat([zero, tf.reshape(tf.constant(fraction, tf.float32), (1, 2, 1, 1))], axis=-1)
    return np.ravel(
        walks.next_state(table, zero, output, row, tf.ones_like(zero)) - walks.next_state(table, zero, output, row)
    )


@pytest.mark.parametrize("kept", [[0, 1, 2, 99], [9, 50, 99], range(100)], ids=len)
def test_a_learned_variance_lies_between_small_and_large(kept):
    """Nichol & Dhariwal 2021, eq. 15, between the kept steps; every pixel has its own."""
    table = samplers.step_table(Ancestral(), linear_100, kept, LEARNED)
    assert table.learned_variance
    small, large = (samplers.step_table(Ancestral(v), linear_100, kept).rows.noise_std for v in ("small", "large"))
    assert not np.allclose(small[:-1], large[:-1], rtol=1e-3)
    for row in {0, 1, len(kept) - 2}:
        np.testing.assert_allclose(std_of(table, [-1, 1], row), [small[row], large[row]], rtol=1e-5)
        share = np.array([0.25, 0.8])
        between = np.exp(share * np.log(large[row]) + (1 - share) * np.log(small[row]))
        np.testing.assert_allclose(std_of(table, 2 * share - 1, row), between, rtol=1e-5)
    np.testing.assert_array_equal(std_of(table, [-1, 1], len(kept) - 1), [0, 0])


@pytest.mark.parametrize("end", [-1, 1])
def test_walks_with_the_ends_of_a_learned_variance(end):
    denoiser = denoiser_of(linear_100)
    learned, fixed = (samplers.step_table(Ancestral(v), linear_100, 8, LEARNED)
                      for v in ("learned", "small" if end == -1 else "large"))  # fmt: skip
    same = draw(lambda x, t: tf.concat([denoiser(x, t), end + 0 * x], -1), learned, [1, 2], (3, 3, 2), "eager")
    np.testing.assert_allclose(same, draw(denoiser, fixed, [1, 2], (3, 3, 2), "eager"), atol=1e-5)


def test_langevin_rows_do_not_learn_their_noise():
    table = samplers.step_table(PredictorCorrector(), linear_100, [9, 50, 99], LEARNED)
    fixed = samplers.step_table(PredictorCorrector(), linear_100, [9, 50, 99])
    for row in (1, 3):
        np.testing.assert_allclose(std_of(table, [-1, 1], row), [fixed.rows.noise_std[row]] * 2, rtol=1e-6)
    learned = samplers.step_table(Ancestral(), linear_100, [9, 50, 99], LEARNED)
    for row in (0, 2, 4):
        np.testing.assert_allclose(std_of(table, [-0.5, 0.7], row), std_of(learned, [-0.5, 0.7], row // 2), rtol=1e-6)


# Clipping.


@pytest.mark.parametrize("index", range(10))
def test_clipping_keeps_x0_in_range_and_the_noise_consistent(index):
    """A DDIM step ends on the line from the clipped x_0 through x_t; an ancestral one at their posterior mean."""
    respaced = linear_100.respace(range(9, 100, 10))
    alpha_bar, before = respaced.alpha_bars[9 - index], respaced.alpha_bars_prev[9 - index]
    beta = 1 - alpha_bar / before
    x_t, eps = np.array([[-2.0, 0.3, 1.5]], np.float32), np.array([[50.0, -50.0, 50.0]], np.float32)
    x_0 = np.array([[-1.0, 1.0, -1.0]])
    eps_again = (x_t - math.sqrt(alpha_bar) * x_0) / math.sqrt(1 - alpha_bar)
    line = math.sqrt(before) * x_0 + math.sqrt(1 - before) * eps_again
    np.testing.assert_allclose(
        walks.next_state(samplers.step_table(DDIM(), respaced), x_t, eps, index), line, rtol=1e-5, atol=1e-6
    )
    mean = math.sqrt(before) * beta * x_0 + math.sqrt(1 - beta) * (1 - before) * x_t
    step = walks.next_state(samplers.step_table(Ancestral(), respaced), x_t, eps, index)
    np.testing.assert_allclose(step, mean / (1 - alpha_bar), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", [Ancestral, DDIM, DPMSolver, Heun, PredictorCorrector])
def test_only_a_clipped_walk_ends_in_range(sampler):
    def far_away(x, t):
        return tf.fill(x.shape, -50.0)

    clipped, dynamic, free = (
        draw(far_away, samplers.step_table(sampler(clip=clip), linear_100, 5), [0, 1], (4, 4, 1), "eager")
        for clip in (True, "dynamic", False)
    )
    assert np.all(clipped == 1) and np.all(free > 1)
    assert np.max(dynamic) == 1 and np.min(dynamic) > 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (4, 4, 1), (5, 7, 3), (67, 3, 1), (20, 10, 1), (32, 32, 3)])
def test_dynamic_thresholding_is_that_of_numpy(shape):
    """Saharia et al. 2022, section 2.3, each image by itself: its 99.5 % quantile, at least 1.

    (67, 3, 1) has 201 values, whose quantile is the 199th exactly.
    """
    scales = np.array([0.2, 0.5, 3.0, 20.0]).reshape(-1, 1, 1, 1)
    x_0 = (scales * np.random.default_rng(0).normal(size=(4, *shape))).astype(np.float32)
    limits = np.quantile(np.abs(x_0), 0.995, axis=(1, 2, 3), keepdims=True, method="higher")
    assert np.any(limits > 1) and limits[0] < 1
    expected = np.clip(x_0, -np.maximum(limits, 1), np.maximum(limits, 1)) / np.maximum(limits, 1)
    np.testing.assert_array_equal(expected[limits.ravel() <= 1], np.clip(x_0[limits.ravel() <= 1], -1, 1))
    table = samplers.step_table(DDIM(clip="dynamic"), linear_100, 5, Objective("x0"))
    np.testing.assert_allclose(walks.next_state(table, tf.zeros_like(x_0), x_0, 4), expected, rtol=1e-6)


def test_dynamic_thresholding_is_not_clipping():
    """Values beyond 1 keep their order."""
    x_0 = np.linspace(0, 2, 400, dtype=np.float32).reshape(1, 20, 20, 1)
    tables = (samplers.step_table(DDIM(clip=clip), linear_100, 5, Objective("x0")) for clip in ("dynamic", True))
    dynamic, hard = (np.ravel(walks.next_state(table, 0 * x_0, x_0, 4)) for table in tables)
    assert np.all(np.diff(dynamic[:397]) > 0) and np.all(dynamic[398:] == 1)
    assert np.all(hard[200:] == 1)


# Tables.


@pytest.mark.parametrize("sampler", [Ancestral("learned"), Heun()], ids=str)
def test_rows_can_be_taken_in_another_order(sampler):
    table = samplers.step_table(sampler, linear_100, 6, LEARNED)
    order = np.array([0, 1, 2, 1, 2, 3, 0])
    taken = table.take(order)
    assert taken.timesteps.tolist() == table.timesteps[order].tolist() and taken.clip == table.clip
    channels = 4 if table.has_memory else 2
    state, output = (np.random.default_rng(i).normal(size=(1, 2, 2, channels)).astype(np.float32) for i in (0, 1))
    state = state[..., :2] if not table.has_memory else state
    output = output if table.learned_variance else output[..., :2]
    for row, source in enumerate(order):
        ours, theirs = (
            walks.next_state(t, state, output, i, state[..., :2]) for t, i in ((taken, row), (table, source))
        )
        np.testing.assert_array_equal(ours, theirs)


def test_fingerprints_tell_tables_apart():
    def table(sampler=Ancestral(), schedule=linear_100, num_steps=5, objective=None):  # noqa: B008
        return samplers.step_table(sampler, schedule, num_steps, objective)

    others = [
        table(),
        *(table(sampler) for sampler in [*ALL_SAMPLERS[1:], Heun(clip=False), Ancestral(spacing="karras")]),
        table(num_steps=6),
        table(num_steps=[0, 39, 59, 79, 99]),
        table(schedule=schedules.linear(100, 1e-3, 0.21)),
        table(objective=Objective("v")),
        table(objective=LEARNED),
        table().take(np.arange(4)),
    ]
    assert len({other.fingerprint for other in others}) == len(others)
    assert table().fingerprint == table().fingerprint
    assert {table().fingerprint, table(num_steps=[19, 39, 59, 79, 99]).fingerprint} == {table().fingerprint}
