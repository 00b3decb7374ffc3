import keras
import numpy as np
import pytest
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.theory import parametrization, schedules
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion, split_output

SCHEDULE = schedules.linear(1000)
DIFFUSION = GaussianDiffusion(SCHEDULE)
STEPS = [0, 1, 10, 500, 998, 999]
INVERSES = {
    "eps": (DIFFUSION.x0_from_eps, DIFFUSION.eps_from_x0),
    "mu": (DIFFUSION.x0_from_mu, DIFFUSION.mu_from_x0),
    "v": (DIFFUSION.x0_from_v, DIFFUSION.v_from_x0),
    "score": (DIFFUSION.eps_from_score, DIFFUSION.score_from_eps),
}
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}


def normals(*shape, count=2, dtype="float64"):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for _ in range(count)]


def column(table, rank=2):
    """The entries of a table at STEPS, to broadcast against (len(STEPS), ...)."""
    return table[STEPS].reshape(-1, *[1] * (rank - 1))


def every_method():
    methods = {name: getattr(DIFFUSION, name) for name in ("q_sample", "q_step", "posterior_mean_variance")}
    return {**methods, **{method.__name__: method for pair in INVERSES.values() for method in pair}}


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3, 1)])
def test_forward_process_agrees_with_the_tables(shape):
    x, noise = normals(*shape)
    alpha_bar, beta = column(SCHEDULE.alpha_bars, len(shape)), column(SCHEDULE.betas, len(shape))
    expected = np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(DIFFUSION.q_sample(x, STEPS, noise), expected, rtol=1e-11, atol=1e-11)
    expected = np.sqrt(1 - beta) * x + np.sqrt(beta) * noise
    np.testing.assert_allclose(DIFFUSION.q_step(x, STEPS, noise), expected, rtol=1e-11, atol=1e-11)
    mean, variance = DIFFUSION.q_mean_variance(x, STEPS)
    np.testing.assert_allclose(mean, np.sqrt(alpha_bar) * x, rtol=1e-11)
    np.testing.assert_allclose(variance, 1 - alpha_bar, rtol=1e-11)
    assert variance.shape == (6,) + (1,) * (len(shape) - 1)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3, 1)])
def test_posterior_agrees_with_the_tables(shape):
    x_0, x_t = normals(*shape)
    mean, variance = DIFFUSION.posterior_mean_variance(x_t, STEPS, x_0)
    coef_x0, coef_xt = (column(c, len(shape)) for c in (SCHEDULE.posterior_coefs_x0, SCHEDULE.posterior_coefs_xt))
    np.testing.assert_allclose(mean, coef_x0 * x_0 + coef_xt * x_t, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(variance, column(SCHEDULE.posterior_variances, len(shape)), rtol=1e-11)


def test_chained_steps_have_the_mean_and_variance_of_q_sample():
    """Every step is linear: what it does to 1 and to unit noise gives the moments of the chain, without sampling."""
    t, ones, zeros = np.arange(1000), np.ones((1000, 1)), np.zeros((1000, 1))
    kept, added = np.array(DIFFUSION.q_step(ones, t, zeros)), np.array(DIFFUSION.q_step(zeros, t, ones))
    mean, variance, moments = 1.0, 0.0, []
    for factor, std in zip(kept[:, 0], added[:, 0], strict=True):
        mean, variance = factor * mean, factor**2 * variance + std**2
        moments.append((mean, variance))
    expected = np.concatenate(DIFFUSION.q_mean_variance(ones, t), axis=1)
    np.testing.assert_allclose(expected, moments, rtol=1e-11)
    sampled = np.concatenate([DIFFUSION.q_sample(ones, t, zeros), DIFFUSION.q_sample(zeros, t, ones)], axis=1)
    np.testing.assert_allclose(sampled ** [1, 2], moments, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3, 1)])
@pytest.mark.parametrize("name", INVERSES)
def test_conversions_are_inverse_pairs(name, shape, dtype):
    """Rounding grows by the largest coefficient, 1 / c0 of mu at T - 1: tolerances are 8 rounding errors times that."""
    to, back = INVERSES[name]
    x_t, given = normals(*shape, dtype=dtype)
    tolerance = 8 * np.finfo(dtype).eps / SCHEDULE.posterior_coefs_x0[-1]
    for there, again in ((to, back), (back, to)):
        if name == "mu" and there is to:
            given = back(x_t, STEPS, given)  # a mu at t = 0 is an x_0, whatever x_t is
        result = again(x_t, STEPS, there(x_t, STEPS, given))
        assert result.dtype == dtype and result.shape == shape
        np.testing.assert_allclose(result, given, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3, 1)])
def test_predictions_of_one_point_agree(shape):
    """From x_0 and eps, with every definition written out."""
    x_0, eps = normals(*shape)
    alpha_bar = column(SCHEDULE.alpha_bars, len(shape))
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
    score = -(x_t - np.sqrt(alpha_bar) * x_0) / (1 - alpha_bar)  # the gradient of -(x_t - mean)^2 / (2 variance)

    def assert_close(actual, expected):
        return np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)

    assert_close(DIFFUSION.x0_from_eps(x_t, STEPS, eps), x_0)
    assert_close(DIFFUSION.eps_from_x0(x_t, STEPS, x_0), eps)
    assert_close(DIFFUSION.v_from_x0(x_t, STEPS, x_0), v)
    assert_close(DIFFUSION.x0_from_v(x_t, STEPS, v), x_0)
    assert_close(DIFFUSION.score_from_eps(x_t, STEPS, eps), score)
    assert_close(DIFFUSION.eps_from_score(x_t, STEPS, score), eps)
    assert_close(DIFFUSION.mu_from_x0(x_t, STEPS, x_0), DIFFUSION.posterior_mean_variance(x_t, STEPS, x_0)[0])


@pytest.mark.parametrize("name", every_method())
def test_low_precision_is_computed_in_float32(name):
    low = [tf.cast(x, tf.bfloat16) for x in normals(6, 3)]
    high = [tf.cast(x, tf.float32) for x in low]
    for result, expected in zip(
        keras.tree.flatten(every_method()[name](low[0], STEPS, low[1])),
        keras.tree.flatten(every_method()[name](high[0], STEPS, high[1])),
        strict=True,
    ):
        assert result.dtype == tf.float32
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("name", every_method())
def test_every_mode_gives_the_same(name, mode):
    first, second = normals(6, 2, 3, 1, dtype="float32")
    inputs = first, tf.constant(STEPS), second
    method = every_method()[name]
    compiled = keras.tree.flatten(MODES[mode](lambda *args: method(*args))(*inputs))
    for result, expected in zip(compiled, keras.tree.flatten(method(*inputs)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", schedules.BY_NAME)
@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_from_x0_is_the_inverse_of_x0_from(prediction, name):
    """At every t. A rounding error grows by the larger of b and 1 / b of `parametrization`, equation (1)."""
    schedule = schedules.by_name(name)
    diffusion, t = GaussianDiffusion(schedule), np.arange(1000)
    x_t, x_0 = normals(1000, 3)
    a, b = (table[:, None] for table in parametrization.x0_coefficients(schedule, prediction))
    tolerance = 16 * np.finfo(np.float64).eps * (1 + np.abs(b) + np.abs(1 / b) + np.abs(a))
    output = np.array(diffusion.from_x0(x_t, t, x_0, prediction))
    size = 1 + np.abs(x_t) + np.abs(x_0) + np.abs(output)
    assert np.all(np.abs(diffusion.x0_from(x_t, t, output, prediction) - x_0) < tolerance * size)
    given = x_0  # the same numbers as an output: any output is the answer to some x_0
    implied = diffusion.x0_from(x_t, t, given, prediction)
    assert np.all(np.abs(diffusion.from_x0(x_t, t, implied, prediction) - given) < tolerance * size)


@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_x0_from_is_the_named_conversion(prediction):
    x_t, output = normals(6, 3)
    if prediction in ("edm", "velocity"):  # which have no name of their own: in the variables of their papers
        alpha_bar = column(SCHEDULE.alpha_bars)
        y, sigma = x_t / np.sqrt(alpha_bar), np.sqrt((1 - alpha_bar) / alpha_bar)
        c_skip, c_out = 0.5**2 / (sigma**2 + 0.5**2), 0.5 * sigma / np.sqrt(0.5**2 + sigma**2)
        tau = sigma / (1 + sigma)
        expected = c_skip * y + c_out * output if prediction == "edm" else (1 - tau) * y - tau * output
    else:
        named = {**{name: pair[0] for name, pair in INVERSES.items()}, "x0": lambda x_t, t, x_0: x_0}[prediction]
        expected = named(x_t, STEPS, output)
    np.testing.assert_allclose(DIFFUSION.x0_from(x_t, STEPS, output, prediction), expected, rtol=1e-13, atol=1e-12)
    low = tf.cast(output, tf.bfloat16)
    assert DIFFUSION.x0_from(low, STEPS, low, prediction).dtype == tf.float32


def test_an_unknown_prediction_or_variance_is_refused():
    x_t, output = normals(6, 3)
    for method in (DIFFUSION.x0_from, DIFFUSION.from_x0):
        with pytest.raises(
            InputError, match="`prediction` must be one of eps, x0, mu, v, edm, velocity. Received: 'score'"
        ):
            method(x_t, STEPS, output, "score")
    with pytest.raises(InputError, match='`variance` must be "small" or "large".* Received: \'tiny\''):
        DIFFUSION.log_variance(x_t, STEPS, "tiny")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_variance_lies_between_that_of_the_posterior_and_log_beta(dtype):
    """Learned: on a straight line between the logarithms (Nichol & Dhariwal 2021, eq. 15); t = 1 stands in at t = 0."""
    (x_t,) = normals(6, 2, 2, 3, count=1, dtype=dtype)
    posterior = SCHEDULE.posterior_variances.copy()
    posterior[0] = posterior[1]
    low, high = np.log(column(posterior, 4)), np.log(column(SCHEDULE.betas, 4))
    large = np.where(np.reshape(STEPS, (-1, 1, 1, 1)) == 0, low, high)
    rtol = 1e-12 if dtype == "float64" else 1e-6
    for variance, expected in (("small", low), ("large", large)):
        result = DIFFUSION.log_variance(x_t, STEPS, variance)
        assert result.dtype == dtype and result.shape == (6, 1, 1, 1)
        np.testing.assert_allclose(result, expected, rtol=rtol)
    for value, expected in ((-1, low), (1, high), (0, (low + high) / 2), (3, 2 * high - low)):
        result = DIFFUSION.log_variance(x_t, STEPS, "learned", np.full(x_t.shape, value, dtype))
        assert result.dtype == dtype and result.shape == x_t.shape
        np.testing.assert_allclose(result, np.broadcast_to(expected, x_t.shape), rtol=rtol)


@pytest.mark.parametrize("variance", parametrization.VARIANCES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_p_is_the_posterior_of_the_predicted_x0(prediction, clip, variance):
    x_t, x_0 = normals(6, 2, 2, 3)
    fraction = normals(6, 2, 2, 3, count=3)[2]
    output = np.array(DIFFUSION.from_x0(x_t, STEPS, x_0, prediction))
    objective = Objective(prediction, "vlb", variance)
    mean, log_variance = DIFFUSION.p_mean_log_variance(x_t, STEPS, output, fraction, objective, clip)
    expected, _ = DIFFUSION.posterior_mean_variance(x_t, STEPS, np.clip(x_0, -1, 1) if clip else x_0)
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(log_variance, DIFFUSION.log_variance(x_t, STEPS, variance, fraction))
    assert np.abs(x_0).max() > 1, "something is clipped"


def test_a_learned_variance_is_the_other_half_of_the_channels():
    (output,) = normals(6, 2, 2, 6, count=1)
    prediction, fraction = split_output(output, Objective("eps", "hybrid", "learned"))
    np.testing.assert_array_equal(np.concatenate([prediction, fraction], axis=-1), output)
    assert prediction.shape == fraction.shape
    for variance in ("small", "large"):
        whole, nothing = split_output(output, Objective(variance=variance))
        assert whole is output and nothing is None


CONVERSIONS = [
    *("x0_from_eps", "eps_from_x0", "mu_from_x0", "x0_from_mu", "v_from_x0", "x0_from_v"),
    *("q_sample", "q_step", "score_from_eps", "eps_from_score", "posterior_mean_variance"),
]


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize(("first", "other"), [("float32", "float64"), ("float64", "float32")])
def test_the_first_argument_decides_the_dtype(name, first, other):
    x, y, t = np.zeros((2, 3), first), np.ones((2, 3), other), np.array([0, 5])
    for result in keras.tree.flatten(getattr(DIFFUSION, name)(x, t, y)):
        assert keras.ops.dtype(result) == first


@pytest.mark.parametrize("weighting", parametrization.WEIGHTINGS)
def test_another_variance_is_refused_whatever_the_weighting(weighting):
    with pytest.raises(InputError, match="`variance` must be one of small, large, learned. Received: 'lerned'"):
        Objective(weighting=weighting, variance="lerned")
