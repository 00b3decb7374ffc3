"""What a network predicts, its loss weight and its variance: names, and the tables that they give with a schedule.

Given x_t and t, each of eps, x_0, mu (the posterior mean) and v determines the others, and x_0 is a linear function of
x_t and any of them. With s = sqrt(alpha_bar) and n = sqrt(1 - alpha_bar):

    (1)  x_0 = a_t x_t + b_t output
         eps       a = 1 / s,                b = -n / s                                          (Ho et al. 2020, eq. 4)
         x0        a = 0,                    b = 1
         mu        a = -ct / c0,             b = 1 / c0,  c0 and ct of the posterior mean        (Ho et al. 2020, eq. 7)
         v         a = s,                    b = -n                                      (Salimans & Ho 2022, section 4)
         edm       a = d^2 s / (n^2 + d^2 s^2),  b = d n / sqrt(n^2 + d^2 s^2),  d = 0.5    (Karras et al. 2022, eq. 7)
         velocity  a = 1 / (s + n),          b = -n / (s + n)                          (Lipman et al. 2023, section 4.1)

In y = x_t / s and sigma = n / s, edm is D(y) = c_skip y + c_out F, d being sigma_data. The network of Karras et al.
sees y / sqrt(sigma^2 + d^2); ours sees x_t = y / sqrt(sigma^2 + 1), their input for d = 1. With d = 1, F would be -v.
Velocity is eps - x_0, the derivative of (1 - tau) x_0 + tau eps by tau = n / (s + n).

So an output error e is an error b_t e of x_0, and a weight w of |x_0 - x_0'|^2 is a weight w b_t^2 of |e|^2:

    (2)  simple   1                                                                             (Ho et al. 2020, eq. 14)
         vlb      c0_t^2 b_t^2 / (2 sigma_t^2), that of the bound, in nats                (Ho et al. 2020, eq. 8 and 12)
         min_snr  min(SNR_t, 5) b_t^2,  SNR = alpha_bar / (1 - alpha_bar)                (Hang et al. 2023, section 3.4)
                  For all but eps and mu the minimum is at least 0.1: without signal, nothing else would train the x_0
                  with which sampling starts. (For eps the weight is 1 there; for mu b_t has no bound.)
         hybrid   simple + 0.001 T L_t in bits; its gradient only reaches the variance  (Nichol & Dhariwal 2021, eq. 16)

    (3)  sigma_t^2, the variance of p(x_{t-1} | x_t):
         small    that of the posterior q(x_{t-1} | x_t, x_0);  large  beta_t              (Ho et al. 2020, section 3.2)
         learned  exp(f log beta_t + (1 - f) log posterior variance), f = (1 + output) / 2 from the network's other
                  C channels, clipped 20 nats beyond the two             (Nichol & Dhariwal 2021, eq. 15)
         At t = 0 the posterior variance is 0; that of t = 1 replaces it, and also the beta of "large", as in Ho et
         al.'s code.

Everything is float64 NumPy and needs neither Keras nor TensorFlow.
"""

import dataclasses

import numpy as np

from kddpm.base.errors import InputError
from kddpm.theory.schedules import NoiseSchedule

PREDICTIONS = ("eps", "x0", "mu", "v", "edm", "velocity")
WEIGHTINGS = ("simple", "vlb", "min_snr", "hybrid")
VARIANCES = ("small", "large", "learned")
TIMESTEP_SAMPLINGS = ("uniform", "stratified", "importance", "log_normal")

_MIN_SNR_GAMMA = 5  # Hang et al. 2023, section 4.1
_MIN_SNR_FLOOR = 0.1  # docs/theory.md, section 6, has the measurements
_SIGMA_DATA = 0.5  # Karras et al. 2022, table 1
_BOUNDED = ("x0", "v", "edm", "velocity")  # predictions whose a and b are numbers without signal
_LARGEST_FACTOR = 1e30  # of x_t or an output in x_0: float32 ends at 3e38, and an output may be large


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a network is trained for: its prediction, the weighting of errors and the variance.

    Attributes:
        prediction: what the network predicts, equation (1): "eps", "x0", "mu", "v", "edm" or "velocity".
        weighting: of the loss, equation (2): "simple", "vlb", "min_snr" or "hybrid".
        variance: of p(x_{t-1} | x_t), equation (3): "small", "large", or "learned" by C more output channels.
        timestep_sampling: how training draws t: "uniform"; "stratified" = uniform, and spread evenly over the batch
            (the low-discrepancy sampler of Kingma et al. 2021); "importance" = with probability proportional to
            sqrt(E[L_t^2]), and weights that undo it (Nichol & Dhariwal 2021, section 3.3); "log_normal" = log(n / s)
            from N(-1.2, 1.2^2), which chooses what counts and is not undone (Karras et al. 2022, table 1). The last two
            are spread evenly too.

    Raises:
        InputError: an unknown name, or a combination without meaning; the message says why.
    """

    prediction: str = "eps"
    weighting: str = "simple"
    variance: str = "small"
    timestep_sampling: str = "uniform"

    def __post_init__(self):
        for name, choices in (
            ("prediction", PREDICTIONS),
            ("weighting", WEIGHTINGS),
            ("variance", VARIANCES),
            ("timestep_sampling", TIMESTEP_SAMPLINGS),
        ):
            if (value := getattr(self, name)) not in choices:
                more = ", each in the form that belongs to {prediction}" if name == "weighting" else ""
                raise InputError(name, f"must be one of {', '.join(choices)}{more}", f"{value!r:.80}", prediction=...)
        if self.weighting == "hybrid" and self.variance != "learned":
            raise InputError(
                "weighting",
                "hybrid is the loss of a learned variance and needs {variance}",
                f"variance={self.variance!r}",
                variance="learned",
            )
        if self.variance == "learned" and self.weighting not in ("vlb", "hybrid"):
            raise InputError(
                "variance",
                "learned needs {weighting} or 'vlb': no other term trains it",
                f"weighting={self.weighting!r}",
                weighting="hybrid",
            )
        if self.timestep_sampling == "log_normal" and self.weighting in ("vlb", "min_snr"):
            raise InputError(
                "timestep_sampling",
                "log_normal is itself a choice of what counts and goes with {weighting} or 'hybrid'",
                f"weighting={self.weighting!r}",
                weighting="simple",
            )

    def check_schedule(self, schedule: NoiseSchedule) -> None:
        """Check that a network can be trained for this objective on a schedule, in float32.

        Raises:
            InputError: the schedule ends without signal, where eps is x_t itself and where "log_normal" never draws; or
                it leaves so little signal that float32 cannot hold the x_0 that follows from eps or mu, or the weight
                of the loss.
        """
        if schedule.zero_terminal_snr and self.prediction == "eps":
            raise InputError(
                "prediction",
                "must be x0, mu, v, edm or velocity where the schedule ends at alpha_bar = 0 (zero terminal SNR): "
                "there eps is x_t itself and says nothing about the image",
                "'eps'",
            )
        if schedule.zero_terminal_snr and self.timestep_sampling == "log_normal":
            raise InputError(
                "timestep_sampling",
                "must be another where the schedule ends at alpha_bar = 0 (zero terminal SNR): log_normal never draws "
                "the last t, where sampling starts",
                "'log_normal'",
            )
        fits = np.all(np.abs(x0_coefficients(schedule, self.prediction)) < _LARGEST_FACTOR, axis=0)
        if not np.all(fits):
            raise InputError(
                "prediction",
                "must be x0, v, edm or velocity where a schedule leaves so little signal: the factor "
                f"1 / sqrt(alpha_bar) by which x_0 follows from eps or mu leaves float32 from t={np.argmin(fits)}",
                f"{self.prediction!r}, and alpha_bar={schedule.alpha_bars[-1]:.1g} at the end",
            )
        if self.weighting == "hybrid":
            return
        with np.errstate(over="ignore", under="ignore"):
            variance = "small" if self.variance == "learned" else self.variance
            weights = loss_weights(schedule, dataclasses.replace(self, variance=variance)).astype(np.float32)
        fits = (weights > 0) & np.isfinite(weights)
        if not np.all(fits):
            raise InputError(
                "weighting",
                "must be another where a schedule leaves so little signal: for this {prediction} the weight is "
                f"{weights[np.argmin(fits)]:.0f} in float32 from t={np.argmin(fits)}",
                f"{self.weighting!r}, and alpha_bar={schedule.alpha_bars[-1]:.1g} at the end",
                prediction=self.prediction,
            )

    def out_channels(self, channels: int) -> int:
        """Return the number of output channels of a network for images with this many channels."""
        return channels * (2 if self.variance == "learned" else 1)


def x0_coefficients(schedule: NoiseSchedule, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a_t and b_t of equation (1), (T,) each."""
    if prediction == "eps":
        with np.errstate(divide="ignore"):
            a = 1 / np.sqrt(schedule.alpha_bars)
        return a, -np.sqrt(schedule.one_minus_alpha_bars) * a
    if prediction == "x0":
        return np.zeros(schedule.num_timesteps), np.ones(schedule.num_timesteps)
    if prediction == "mu":
        with np.errstate(divide="ignore"):
            b = 1 / schedule.posterior_coefs_x0
        return -schedule.posterior_coefs_xt * b, b
    signal, noise = np.sqrt(schedule.alpha_bars), np.sqrt(schedule.one_minus_alpha_bars)
    if prediction == "v":
        return signal, -noise
    if prediction == "edm":
        variance = schedule.one_minus_alpha_bars + _SIGMA_DATA**2 * schedule.alpha_bars
        return _SIGMA_DATA**2 * signal / variance, _SIGMA_DATA * noise / np.sqrt(variance)
    if prediction == "velocity":
        return 1 / (signal + noise), -noise / (signal + noise)
    raise InputError("prediction", f"must be one of {', '.join(PREDICTIONS)}", f"{prediction!r:.80}")


def eps_coefficients(schedule: NoiseSchedule, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a_t and b_t of eps = a_t x_t + b_t output, (T,) each.

    They follow from equation (1) in x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.
    """
    if prediction == "eps":
        return np.zeros(schedule.num_timesteps), np.ones(schedule.num_timesteps)
    a, b = x0_coefficients(schedule, prediction)
    signal, noise = np.sqrt(schedule.alpha_bars), np.sqrt(schedule.one_minus_alpha_bars)
    return (1 - signal * a) / noise, -signal * b / noise


def log_variances(schedule: NoiseSchedule, variance: str) -> np.ndarray:
    """Return log sigma_t^2 of equation (3) for "small" or "large", (T,)."""
    small = schedule.posterior_variances.copy()
    small[0] = small[1] if len(small) > 1 else schedule.betas[0]
    if variance == "small":
        return np.log(small)
    if variance == "large":
        return np.log(np.concatenate([small[:1], schedule.betas[1:]]))
    raise InputError("variance", 'must be "small" or "large" for a table', repr(variance))


def log_variance_range(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of a learned log-variance, equation (3): log posterior variance and log beta, (T,) each."""
    return log_variances(schedule, "small"), np.log(schedule.betas)


def loss_weights(schedule: NoiseSchedule, objective: Objective) -> np.ndarray:
    """Return the weight of the mean squared error of the output at each t, equation (2), (T,).

    Args:
        schedule: of all T steps.
        objective: its weighting is "simple", "vlb" without a learned variance, or "min_snr".

    Raises:
        InputError: the loss is not a weighted squared error.
    """
    _, b = x0_coefficients(schedule, objective.prediction)
    if objective.weighting == "simple":
        return np.ones(schedule.num_timesteps)
    if objective.weighting == "vlb":
        return (schedule.posterior_coefs_x0 * b) ** 2 / (2 * np.exp(log_variances(schedule, objective.variance)))
    if objective.weighting == "min_snr":
        least = np.minimum(schedule.alpha_bars / schedule.one_minus_alpha_bars, _MIN_SNR_GAMMA)
        if objective.prediction in _BOUNDED:
            least = np.maximum(least, _MIN_SNR_FLOOR)
        return least * b**2
    raise InputError("weighting", "must be simple, vlb or min_snr for a table", repr(objective.weighting))
