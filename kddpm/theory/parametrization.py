"""What a network predicts, with which weight and which variance: tables that follow from a schedule and these names.

Given x_t and t, each of eps, x_0, mu (the posterior mean) and v determines the others, and the way from any of them to
x_0 is a straight line:

    (1)  x_0 = a_t x_t + b_t output
         eps  a = 1 / sqrt(alpha_bar),  b = -sqrt(1 - alpha_bar) / sqrt(alpha_bar)               (Ho et al. 2020, eq. 4)
         x0   a = 0,                    b = 1
         mu   a = -ct / c0,             b = 1 / c0,  c0 and ct of the posterior mean             (Ho et al. 2020, eq. 7)
         v    a = sqrt(alpha_bar),      b = -sqrt(1 - alpha_bar)                         (Salimans & Ho 2022, section 4)

So an error of the output is b_t times as large in x_0, and every weight of |x_0 - x_0'|^2 is one of |output error|^2:

    (2)  simple   1                                                                             (Ho et al. 2020, eq. 14)
         vlb      c0_t^2 b_t^2 / (2 sigma_t^2), the bound's own, in nats                  (Ho et al. 2020, eq. 8 and 12)
         min_snr  min(SNR_t, 5) b_t^2,  SNR = alpha_bar / (1 - alpha_bar)                (Hang et al. 2023, section 3.4)
         hybrid   simple + 0.001 T L_t, whose gradient reaches the variance alone       (Nichol & Dhariwal 2021, eq. 16)

    (3)  sigma_t^2, the variance of p(x_{t-1} | x_t):
         small    that of the posterior q(x_{t-1} | x_t, x_0);  large  beta_t              (Ho et al. 2020, section 3.2)
         learned  exp(f log beta_t + (1 - f) log posterior variance), f = (1 + output) / 2 from the network's other
                  C channels, held to 20 nats around the two             (Nichol & Dhariwal 2021, eq. 15)
         At t = 0 the posterior variance is 0, and that of t = 1 stands in for it and for the beta of "large", as in
         Ho et al.'s code.

All of it is float64 NumPy; needs neither Keras nor TensorFlow.
"""

import dataclasses

import numpy as np

from kddpm.base.errors import InputError
from kddpm.theory.schedules import NoiseSchedule

PREDICTIONS = ("eps", "x0", "mu", "v")
WEIGHTINGS = ("simple", "vlb", "min_snr", "hybrid")
VARIANCES = ("small", "large", "learned")
TIMESTEP_SAMPLINGS = ("uniform", "importance")

_MIN_SNR_GAMMA = 5  # Hang et al. 2023, section 4.1


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a network is trained to do: what it predicts, how errors are weighted, and which variance belongs to it.

    Attributes:
        prediction: what the network says, equation (1): "eps", "x0", "mu" or "v".
        weighting: of the loss, equation (2): "simple", "vlb", "min_snr" or "hybrid".
        variance: of p(x_{t-1} | x_t), equation (3): "small", "large", or "learned" by C more output channels.
        timestep_sampling: "uniform", or "importance" = t as often as the root of its squared loss (Nichol & Dhariwal
            2021, section 3.3).

    Raises:
        InputError: a name that is none of these, or a combination that means nothing; the text says why.
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

    def check_schedule(self, schedule: NoiseSchedule) -> None:
        """Whether it can be trained on a schedule.

        Raises:
            InputError: a schedule that leaves no signal, and eps, which then says nothing.
        """
        if schedule.zero_terminal_snr and self.prediction == "eps":
            raise InputError(
                "prediction",
                "must be x0, mu or v where the schedule ends at alpha_bar = 0 (zero terminal SNR): there eps is x_t "
                "itself and says nothing about the image",
                "'eps'",
            )

    def out_channels(self, channels: int) -> int:
        """Output channels of a network for images of so many channels."""
        return channels * (2 if self.variance == "learned" else 1)


def x0_coefficients(schedule: NoiseSchedule, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """a_t and b_t of equation (1), (T,) each."""
    if prediction == "eps":
        with np.errstate(divide="ignore"):
            a = 1 / np.sqrt(schedule.alpha_bars)
        return a, -np.sqrt(schedule.one_minus_alpha_bars) * a
    if prediction == "x0":
        return np.zeros(schedule.num_timesteps), np.ones(schedule.num_timesteps)
    if prediction == "mu":
        b = 1 / schedule.posterior_coefs_x0
        return -schedule.posterior_coefs_xt * b, b
    if prediction == "v":
        return np.sqrt(schedule.alpha_bars), -np.sqrt(schedule.one_minus_alpha_bars)
    raise InputError("prediction", f"must be one of {', '.join(PREDICTIONS)}", f"{prediction!r:.80}")


def eps_coefficients(schedule: NoiseSchedule, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """a_t and b_t of eps = a_t x_t + b_t output, (T,) each.

    That is equation (1) put into x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.
    """
    if prediction == "eps":
        return np.zeros(schedule.num_timesteps), np.ones(schedule.num_timesteps)
    a, b = x0_coefficients(schedule, prediction)
    signal, noise = np.sqrt(schedule.alpha_bars), np.sqrt(schedule.one_minus_alpha_bars)
    return (1 - signal * a) / noise, -signal * b / noise


def log_variances(schedule: NoiseSchedule, variance: str) -> np.ndarray:
    """log sigma_t^2 of equation (3) for "small" or "large", (T,)."""
    small = schedule.posterior_variances.copy()
    small[0] = small[1] if len(small) > 1 else schedule.betas[0]
    if variance == "small":
        return np.log(small)
    if variance == "large":
        return np.log(np.concatenate([small[:1], schedule.betas[1:]]))
    raise InputError("variance", 'must be "small" or "large" for a table', repr(variance))


def log_variance_range(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """The ends between which a learned log-variance lies, equation (3): log posterior variance and log beta, (T,)."""
    return log_variances(schedule, "small"), np.log(schedule.betas)


def loss_weights(schedule: NoiseSchedule, objective: Objective) -> np.ndarray:
    """The weight of the mean squared error of the output at each t, equation (2), (T,).

    Args:
        schedule: of all T steps.
        objective: of weighting "simple", "vlb" or "min_snr", the second without a learned variance.

    Raises:
        InputError: a loss that is more than a weighted square.
    """
    _, b = x0_coefficients(schedule, objective.prediction)
    if objective.weighting == "simple":
        return np.ones(schedule.num_timesteps)
    if objective.weighting == "vlb":
        return (schedule.posterior_coefs_x0 * b) ** 2 / (2 * np.exp(log_variances(schedule, objective.variance)))
    if objective.weighting == "min_snr":
        return np.minimum(schedule.alpha_bars / schedule.one_minus_alpha_bars, _MIN_SNR_GAMMA) * b**2
    raise InputError("weighting", "must be simple, vlb or min_snr for a table", repr(objective.weighting))
