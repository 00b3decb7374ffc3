import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from kddpm import noise, samplers, schedules, walks
from kddpm.errors import InputError
from kddpm.samplers import DDIM, Ancestral

GOLDEN = np.load(pathlib.Path(__file__).parent / "goldens" / "sampler_trajectories.npz")
# In the rows fixed_large/50 diffusers adds noise at the last step: see goldens/README.md.
TRAJECTORIES = [key[:-4] for key in GOLDEN if key.endswith("/x_0") and "fixed_large/50" not in key]
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}
# Error rates of the statistical tests, all at 5 standard errors: a right sampler fails a comparison with probability
# 6e-7 (once, when the seeds were chosen: they are fixed); one that is off by 8 standard errors passes with 1e-3.
STANDARD_ERRORS = 5

linear_100 = schedules.linear(100, 1e-3, 0.2)  # T = 1000 in a tenth of the steps
ALL_SAMPLERS = [
    Ancestral("small"),
    Ancestral("large"),
    Ancestral("small", clip=False),
    DDIM(0.0),
    DDIM(0.5),
    DDIM(1.0, clip=False),
]


def gaussian_denoiser(betas, mean, std):
    """The best possible eps(x_t, t) for data N(mean, std^2) in every element."""
    alpha_bars = np.cumprod(1 - betas)
    slopes = np.sqrt(1 - alpha_bars) / (alpha_bars * std**2 + 1 - alpha_bars)
    offsets = slopes * np.sqrt(alpha_bars) * mean

    def at(table, t, x):
        return tf.reshape(tf.gather(table.astype(np.float32), t), [-1] + [1] * (len(x.shape) - 1))

    return lambda x, t: at(slopes, t, x) * x - at(offsets, t, x)


def denoiser_of(schedule):
    return gaussian_denoiser(schedule.betas, 0.3, 0.2)


def draw(denoiser, table, seeds, image_shape, mode="graph", **limits):
    """Samples as float64 (B, *image_shape)."""
    x = walks.initial_noise(seeds, image_shape)
    walk = MODES[mode](lambda x, seeds: walks.walk(denoiser, table, x, seeds, **limits))
    return np.array(walk(x, seeds), np.float64)


def sampler_of(trajectory):
    kind, option, _, *clip = trajectory.split("/")
    if kind == "ddim":
        return DDIM(float(option.removeprefix("eta")), clip=False)
    return Ancestral(option.removeprefix("fixed_"), clip=clip == ["clip"])


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
def test_trajectories_of_diffusers(trajectory, monkeypatch):
    schedule, stored = schedules.linear(1000), tf.constant(GOLDEN["noise"], tf.float32)
    table = samplers.step_table(sampler_of(trajectory), schedule, int(trajectory.split("/")[2]))
    np.testing.assert_array_equal(table.timesteps, GOLDEN[f"{trajectory}/timesteps"])
    used = GOLDEN[f"{trajectory}/noises_used"]
    # Where its last step is not t = 0, diffusers draws there too, and multiplies by 0 or 1e-10.
    assert np.count_nonzero(table.rows.noise_std) == used - bool(used and table.timesteps[-1])

    def row(seeds, stream, step, shape):
        assert stream == noise.STEP_STREAM and shape == (4,)
        return tf.gather(stored, step)

    monkeypatch.setattr(noise, "normal", row)
    denoiser = gaussian_denoiser(np.linspace(1e-4, 0.02, 1000), GOLDEN["mu"], GOLDEN["s"])
    x_T = tf.constant(GOLDEN["x_T"], tf.float32)
    x_0 = tf.function(lambda x: walks.walk(denoiser, table, x, tf.range(8)))(x_T)
    np.testing.assert_allclose(x_0, GOLDEN[f"{trajectory}/x_0"], rtol=0, atol=3e-5)


def chain_moments(sampler, betas, kept, mean, std):
    """Mean and variance at the end of the finite chain on data N(mean, std^2), from the papers' equations alone.

    eps*(x) = g (x - sqrt(alpha_bar) mean) makes every step linear in x, so both moments have a recursion.
    """
    alpha_bars = np.cumprod(1 - betas)
    result, variance = 0.0, 1.0
    for i in reversed(range(len(kept))):
        alpha_bar, before = alpha_bars[kept[i]], alpha_bars[kept[i - 1]] if i else 1.0
        alpha, beta = alpha_bar / before, 1 - alpha_bar / before
        posterior = beta * (1 - before) / (1 - alpha_bar)
        g = math.sqrt(1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
        if isinstance(sampler, DDIM):  # Song et al. 2021, eq. 12 and 16
            sigma = sampler.eta * math.sqrt((1 - before) / (1 - alpha_bar)) * math.sqrt(1 - alpha_bar / before)
            of_x = math.sqrt(before / alpha_bar)
            of_eps = math.sqrt(1 - before - sigma**2) - math.sqrt(before / alpha_bar) * math.sqrt(1 - alpha_bar)
        else:  # Ho et al. 2020, algorithm 2, line 4
            by_name = {"small": posterior, "large": beta}
            sigma = math.sqrt(by_name[sampler.variance] if sampler.variance in by_name else sampler.variance[i])
            of_x, of_eps = 1 / math.sqrt(alpha), -beta / math.sqrt(1 - alpha_bar) / math.sqrt(alpha)
        factor = of_x + of_eps * g
        result = factor * result - of_eps * g * math.sqrt(alpha_bar) * mean
        variance = factor**2 * variance + (sigma**2 if i else 0)
    return result, variance


@pytest.mark.parametrize("kept", [range(100), range(9, 100, 10)], ids=len)
@pytest.mark.parametrize("name", ["small", "large", "sequence", 0.0, 0.5, 1.0])
def test_gaussian_data_come_back_with_the_moments_of_the_chain(name, kept):
    if name == "sequence":
        name = tuple(np.linspace(1e-3, 0.05, len(kept)))
    sampler = DDIM(name, clip=False) if isinstance(name, float) else Ancestral(name, clip=False)
    table = samplers.step_table(sampler, linear_100, len(kept))
    samples = draw(denoiser_of(linear_100), table, tf.range(64), (32, 32, 1), mode="xla")
    mean, variance = chain_moments(sampler, linear_100.betas, kept, 0.3, 0.2)
    assert abs(np.mean(samples) - mean) < STANDARD_ERRORS * math.sqrt(variance / samples.size)
    assert abs(np.var(samples) - variance) < STANDARD_ERRORS * variance * math.sqrt(2 / samples.size)


@pytest.mark.parametrize("sampler", [Ancestral("small", clip=False), DDIM(0.0, clip=False)], ids=str)
def test_two_modes_are_recovered(sampler):
    """0.3 N(-1, 0.2^2) + 0.7 N(1, 0.2^2) in 500 of 1000 steps.

    On top of the standard errors, 500 steps may shift weights and means by 0.003 and change a width by 4 %; four
    times the sample showed 0.002 and 3.6 % at most.
    """
    schedule, weight, std = schedules.linear(1000), 0.7, 0.2
    signal = np.sqrt(schedule.alpha_bars).astype(np.float32)

    def denoiser(x, t):
        a = tf.reshape(tf.gather(signal, t), [-1, 1, 1, 1])
        variance = a**2 * std**2 + 1 - a**2
        upper = tf.sigmoid(math.log(weight / (1 - weight)) + 2 * a * x / variance)  # P(mode +1 given x_t)
        return tf.sqrt(1 - a**2) * (x - a * (2 * upper - 1)) / variance

    samples = draw(denoiser, samplers.step_table(sampler, schedule, 500), tf.range(64), (32, 32, 1), mode="xla")
    above = samples > 0
    allowed = STANDARD_ERRORS * math.sqrt(weight * (1 - weight) / samples.size) + 0.003
    assert abs(np.mean(above) - weight) < allowed
    for mode, part in ((-1, samples[~above]), (1, samples[above])):
        assert abs(np.mean(part) - mode) < STANDARD_ERRORS * std / math.sqrt(part.size) + 0.003
        assert abs(np.std(part) - std) < STANDARD_ERRORS * std / math.sqrt(2 * part.size) + 0.04 * std


@pytest.mark.parametrize("kept", [[0, 1, 2, 99], [9, 50, 99], range(100)], ids=len)
def test_variances_are_those_between_the_kept_steps(kept):
    """The large one is that of q(x_t | x_prev); the small one has the precision of prior and likelihood together."""
    alphas = 1 - linear_100.betas
    small = samplers.step_table(Ancestral("small"), linear_100, kept).rows.noise_std ** 2
    large = samplers.step_table(Ancestral("large"), linear_100, kept).rows.noise_std ** 2
    walk = list(zip(kept[:0:-1], kept[-2::-1], strict=True))
    assert len(small) == len(large) == len(walk) + 1
    for i, (t, t_prev) in enumerate(walk):
        prior, alpha = 1 - np.prod(alphas[: t_prev + 1]), np.prod(alphas[t_prev + 1 : t + 1])
        assert large[i] == pytest.approx(1 - alpha, rel=1e-9)
        assert small[i] == pytest.approx(1 / (1 / prior + alpha / (1 - alpha)), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta_leads_from_ddim_to_the_ancestral_sampler(eta):
    """Song et al. 2021, section 4.1: sigma is eta times that of algorithm 2, and eta = 1 is algorithm 2."""
    ddim, ancestral = (samplers.step_table(s, linear_100, 10) for s in (DDIM(eta), Ancestral("small")))
    np.testing.assert_allclose(ddim.rows.noise_std, eta * ancestral.rows.noise_std, rtol=1e-12)
    same = [
        np.allclose(getattr(ddim.rows, column), getattr(ancestral.rows, column), rtol=1e-9, atol=1e-12)
        for column in ("from_x0", "from_xt")
    ]
    assert same == [eta == 1] * 2


def test_a_sequence_of_variances_counts_from_the_data():
    table = samplers.step_table(Ancestral((9.0, 1.0, 4.0)), schedules.linear(3))
    assert table.rows.noise_std.tolist() == [2.0, 1.0, 0.0] and table.timesteps.tolist() == [2, 1, 0]


@pytest.mark.parametrize("sampler", [*ALL_SAMPLERS, Ancestral((0.5,) * 10)], ids=str)
def test_no_noise_at_the_last_step(sampler, monkeypatch):
    table = samplers.step_table(sampler, linear_100, 10)
    assert table.rows.noise_std[-1] == 0
    denoiser, normal = denoiser_of(linear_100), noise.normal

    def disturb(at):
        def other(seeds, stream, step, shape):
            changed = tf.cast((stream == noise.STEP_STREAM) & (step == at), tf.float32)
            return normal(seeds, stream, step, shape) + 0.1 * changed

        monkeypatch.setattr(noise, "normal", other)
        return draw(denoiser, table, tf.range(2), (4, 4, 1))

    undisturbed = disturb(-1)
    np.testing.assert_array_equal(disturb(9), undisturbed)
    assert np.array_equal(disturb(8), undisturbed) == (sampler == DDIM(0.0))


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
    np.testing.assert_allclose(samplers.step_table(DDIM(), respaced).step(x_t, eps, index), line, rtol=1e-5, atol=1e-6)
    mean = math.sqrt(before) * beta * x_0 + math.sqrt(1 - beta) * (1 - before) * x_t
    step = samplers.step_table(Ancestral(), respaced).step(x_t, eps, index)
    np.testing.assert_allclose(step, mean / (1 - alpha_bar), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", [Ancestral, DDIM])
def test_only_a_clipped_walk_ends_in_range(sampler):
    def far_away(x, t):
        return tf.fill(x.shape, -50.0)

    clipped, free = (
        draw(far_away, samplers.step_table(sampler(clip=clip), linear_100, 5), tf.range(2), (4, 4, 1))
        for clip in (True, False)
    )
    assert np.all(clipped == 1) and np.all(free > 1)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("sampler", ALL_SAMPLERS, ids=str)
def test_a_walk_in_two_halves_is_the_walk(sampler, mode):
    table, denoiser, seeds = samplers.step_table(sampler, linear_100, 7), denoiser_of(linear_100), tf.range(3)
    halfway = tf.constant(draw(denoiser, table, seeds, (4, 4, 1), mode, stop=3), tf.float32)
    end = walks.walk(denoiser, table, halfway, seeds, start=tf.constant(3))
    np.testing.assert_array_equal(end, draw(denoiser, table, seeds, (4, 4, 1), mode))
    assert not np.array_equal(end, halfway)


@pytest.mark.parametrize("sampler", ALL_SAMPLERS, ids=str)
def test_every_mode_gives_the_same(sampler):
    table, denoiser = samplers.step_table(sampler, linear_100, 10), denoiser_of(linear_100)
    eager, graph, xla = (draw(denoiser, table, tf.range(3), (4, 4, 3), mode) for mode in MODES)
    np.testing.assert_allclose(graph, eager, atol=1e-5)
    np.testing.assert_allclose(xla, eager, atol=1e-5)


def concrete_walk(num_steps, denoiser, sampler=None):
    table = samplers.step_table(sampler or Ancestral(), linear_100, num_steps)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def sample(seeds):
        return walks.walk(denoiser, table, walks.initial_noise(seeds, (4, 4, 1)), seeds)

    return sample.get_concrete_function()


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM()], ids=str)
def test_one_loop_whatever_the_number_of_steps(sampler):
    sizes = set()
    for num_steps in (2, 7, 100):
        graph = concrete_walk(num_steps, denoiser_of(linear_100), sampler).graph.as_graph_def()
        operators = [node.op for node in graph.node]
        operators += [node.op for function in graph.library.function for node in function.node_def]
        assert sum(operator in ("While", "StatelessWhile") for operator in operators) == 1
        sizes.add(len(operators))
    assert len(sizes) == 1


def test_shapes_are_static_and_a_denoiser_of_another_shape_is_refused():
    def of_unknown_shape(x, t):
        return tf.raw_ops.PlaceholderWithDefault(input=x, shape=tf.TensorShape(None))

    def of_other_channels(x, t):
        return tf.concat([x, x], axis=-1)

    assert concrete_walk(5, of_unknown_shape).output_shapes == (2, 4, 4, 1)
    with pytest.raises(ValueError, match=r"Shapes are \[2,4,4,1\] and \[2,4,4,2\]"):
        concrete_walk(5, of_other_channels)


@pytest.mark.parametrize("sampler", ALL_SAMPLERS, ids=str)
def test_an_image_depends_on_its_own_seed_alone(sampler):
    table, denoiser = samplers.step_table(sampler, linear_100, 5), denoiser_of(linear_100)
    seeds = tf.constant([4, -1, 4, 0])
    batch = draw(denoiser, table, seeds, (4, 4, 3))
    for k in range(4):
        np.testing.assert_array_equal(batch[k], draw(denoiser, table, seeds[k : k + 1], (4, 4, 3))[0])
    np.testing.assert_array_equal(batch[0], batch[2])
    assert not np.allclose(batch[0], batch[1])


def test_the_denoiser_is_asked_about_the_steps_as_the_schedule_names_them():
    asked = []

    def denoiser(x, t):
        asked.append((t.dtype, t.numpy().tolist()))
        return x

    draw(denoiser, samplers.step_table(DDIM(), linear_100, [3, 40, 99]), tf.range(2), (1, 1, 1), mode="eager")
    assert asked == [(tf.int32, [t, t]) for t in (99, 40, 3)]


def test_names_and_steps():
    assert samplers.by_name("ancestral", variance="large") == Ancestral("large")
    assert samplers.by_name("ddim", eta=0.5, clip=False) == DDIM(0.5, clip=False)
    assert samplers.by_name(DDIM(0.25)) == DDIM(0.25)
    assert samplers.step_table(DDIM(), linear_100).timesteps.tolist() == list(range(99, -1, -1))
    assert samplers.step_table(DDIM(), linear_100, np.int64(3)).timesteps.tolist() == [99, 66, 32]
    assert samplers.step_table(DDIM(), linear_100, 3).num_steps == 3
    np.testing.assert_array_equal(
        walks.initial_noise(tf.range(2), [3, 3]), noise.normal(tf.range(2), noise.INITIAL_STREAM, 0, (3, 3))
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: samplers.by_name("euler"),
            "`sampler` must be one of ancestral, ddim, dpm_solver, heun, predictor_corrector, or a sampler. Received: 'euler'",
        ),
        (lambda: Ancestral("medium"), '`variance` must be "small", "large", "learned" or a sequence. Received: \'medium\''),
        (lambda: Ancestral((0.1, -0.2)), r"`variance` must hold finite numbers >= 0. Received: \(0.1, -0.2\)"),
        (lambda: Ancestral((0.1, math.nan)), r"`variance` must hold finite numbers >= 0. Received: \(0.1, nan\)"),
        (lambda: Ancestral((0.1, math.inf)), r"`variance` must hold finite numbers >= 0. Received: \(0.1, inf\)"),
        (
            lambda: samplers.step_table(Ancestral((0.1, 0.2)), linear_100, 3),
            "`variance` must have one entry for each of 3 steps. Received: 2 entries",
        ),
        (lambda: Ancestral(0.5), "`variance` must be a name or a sequence of numbers. Received: 0.5"),
        (lambda: samplers.step_table(DDIM(), linear_100, 2.5), r"`num_steps` must be an integer .* Received: 2.5"),
        (lambda: DDIM(-0.1), r"`eta` must lie in \[0, 1\]. Received: -0.1"),
        (lambda: DDIM(1.1), r"`eta` must lie in \[0, 1\]. Received: 1.1"),
        (lambda: DDIM(math.nan), r"`eta` must lie in \[0, 1\]. Received: nan"),
        (
            lambda: samplers.step_table(DDIM(), linear_100, 101),
            r"`num_steps` must be an integer in 1 .. 100 \(T\). .* 101",
        ),
        (lambda: samplers.step_table(DDIM(), linear_100, 0), r"`num_steps` must be an integer in 1 .. 100 \(T\). .* 0"),
        (
            lambda: samplers.step_table(DDIM(), linear_100, [0, 50, 98]),
            "`num_steps` must end at T - 1 = 99, where sampling starts. Received: a last step of 98",
        ),
        (lambda: samplers.step_table(DDIM(), linear_100, [50, 0, 99]), "`timesteps` must be increasing integers"),
        (lambda: samplers.step_table(DDIM(), linear_100, [50, 100]), "`timesteps` must lie in 0 .. 99"),
    ],
)
def test_unusable_values_are_named(make, text):
    with pytest.raises(InputError, match=text):
        make()
