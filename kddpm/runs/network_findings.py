"""What figures of a trained network and of its pictures mean, as in `findings`."""

import dataclasses
import math

import numpy as np

from kddpm.evaluation import metrics
from kddpm.runs.config import TrainConfig
from kddpm.runs.findings import Finding, judged, longer, percent, pure_noise

# The losses.

_LEAST_POWER = 0.1  # of the output over the target's, at the t where it is most; healthy runs: 1.0
_EXCESS = 0.08  # of the target's power, above the loss of the linear denoiser; healthy runs: up to 0.043
_STANDARD_ERRORS = 3  # of a figure, which its images leave open
_MOST_WASTE = 0.1  # of the bound
_SLOW = 1.1  # the average's loss over that of the weights; healthy runs: 0.90 to 0.97
_GAP = 0.1  # of the held-out loss above the training's; a choice, not a measurement


def of_output(power: float, config: TrainConfig) -> Finding:
    """Judge the power of the output over that of its target, at the t where it is most."""
    advice = (
        "The network says zero everywhere, as before its first step: nothing reached its weights. A larger "
        f"--learning_rate, or {longer(config)}"
    )
    broken = "The network says NaN or infinity: train anew, with a smaller --learning_rate or a longer --warmup_steps"
    return judged(
        "power of the output over the target's", power, f"{power:.2f}", f"{_LEAST_POWER} or more",
        (not math.isfinite(power), "outputs not finite", broken),
        (power < _LEAST_POWER, "outputs zeros", advice),
    )  # fmt: skip


def of_losses(
    timesteps: np.ndarray,
    losses: np.ndarray,
    errors: np.ndarray,
    linear: np.ndarray,
    powers: np.ndarray,
    is_judged: np.ndarray,
    config: TrainConfig,
) -> Finding:
    """Judge the loss at some t beside that of the best linear denoiser.

    Args:
        timesteps: t, (K,).
        losses: of the averaged weights at these t, (K,).
        errors: their standard errors, (K,).
        linear: the losses of the linear denoiser, (K,).
        powers: of the target, the losses of an output of zeros, (K,).
        is_judged: whether the network can be expected to know that t, (K,).
        config: of the run.
    """
    excess = np.where(is_judged, (losses - linear) / powers, -np.inf)
    is_worse = excess - _STANDARD_ERRORS * errors / powers > _EXCESS
    worst = float(excess.max())
    where = ", ".join(str(t) for t in timesteps[is_worse])
    advice = (
        f"At t = {where} the network is worse than what knows the mean and the covariance of the data alone: it has "
        f"not learned these noise levels. {longer(config).capitalize()}, or another --timestep_sampling"
    )
    fault = (bool(is_worse.any()), "not learned at some t", advice)
    what, expected = "loss above the linear denoiser's, at the worst t", f"up to {percent(_EXCESS)} of the target"
    return judged(what, worst, percent(worst), expected, fault)


def of_learned_variance(nats: np.ndarray) -> Finding:
    """Judge the variance that a network says by the bound with it, beside the better of the two tables at each t.

    Args:
        nats: L_t with the learned variance, the small and the large one, (3, K, N) for K values of t and N images.
    """
    tables = nats[1:].mean(axis=2)
    better = np.take_along_axis(nats[1:], tables.argmin(axis=0)[np.newaxis, :, np.newaxis], axis=0)[0]
    learned, of_tables = nats[0].sum(axis=0), better.sum(axis=0)  # of each image
    excess = float(learned.mean() / of_tables.mean() - 1)
    error = float((learned - of_tables).std() / math.sqrt(len(learned)) / of_tables.mean())
    advice = (
        "The variance that the network says codes the images worse than a table: ancestral pictures and bits suffer. "
        "More steps, a smaller --learning_rate, or --variance=small in a new run"
    )
    fault = (not excess - _STANDARD_ERRORS * error <= _MOST_WASTE, "variance not learned", advice)
    text, expected = f"{percent(excess)} +- {percent(error)}", f"up to {percent(_MOST_WASTE)}"
    return judged("bound with the learned variance, above a table's", excess, text, expected, fault)


def of_average(ratio: float, config: TrainConfig, step: int) -> Finding:
    """Judge the average by its loss over that of the weights themselves.

    Args:
        ratio: of the two losses, each a mean over t.
        config: of the run, with the momentum m.
        step: steps taken. The average is over about 1 / (1 - m) steps, and over (10 + step) / 9 at most.
    """
    momentum = config.ema_momentum
    by_momentum, by_steps = 1 / (1 - momentum), (10 + step) / 9
    smaller = f"a smaller --ema_momentum than {momentum:g}, or " if by_momentum < by_steps else ""
    slow = (
        f"The average over {min(by_momentum, by_steps):,.0f} of {step:,} steps is behind the weights: {smaller}"
        f"{longer(config)}"
    )
    fault = (not ratio <= _SLOW, "EMA too slow", slow)
    return judged("loss of the average over the weights'", ratio, f"{ratio:.3f}", f"up to {_SLOW}", fault)


def of_gap(train: np.ndarray, held_out: np.ndarray, since: int | None, config: TrainConfig) -> Finding:
    """Judge the losses of held-out images beside those of images of the training, (N,) and (M,).

    Args:
        train: mean over t for each image.
        held_out: the same.
        since: the first checkpoint at which it is so, where the network memorises.
        config: of the run.
    """
    gap, error = _gap(train, held_out)
    advice = _memorised(since, "The loss on held-out images is higher", config)
    fault = (is_memorising(train, held_out), "memorising", advice)
    measured = f"{percent(gap)} +- {percent(error)}"
    return judged("held-out loss above the training's", gap, measured, f"up to {percent(_GAP)}", fault)


def is_memorising(train: np.ndarray, held_out: np.ndarray) -> bool:
    """Return whether losses of held-out images, as in `of_gap`, are those of a network that memorises."""
    gap, error = _gap(train, held_out)
    return gap - _STANDARD_ERRORS * error > _GAP


def _gap(train, held_out):
    """Return by how much the mean of held-out losses is above the training's, relative to it, and its error."""
    ratio = held_out.mean() / train.mean()
    errors = (losses.std(ddof=1) / losses.mean() / len(losses) ** 0.5 for losses in (train, held_out))
    return float(ratio - 1), float(ratio * math.hypot(*errors))


def _memorised(since, what, config):
    began = "" if since is None else f", already at the checkpoint of step {since}"
    flip = "" if config.horizontal_flip else "--horizontal_flip where mirror images are as good, "
    return f"{what}{began}: more images, {flip}a larger --dropout, or fewer --steps"


# The labels.

_LEAST_CHANGE = 0.05  # of the predicted x_0 with the label, over the deviation of the data; healthy runs: 0.8
_LEAST_SHARE = 0.5  # of the loss that a wrong label would add to the best network's; 0 for exchanged labels


def of_labels(change: float, share: float, error: float, config: TrainConfig) -> list[Finding]:
    """Judge what labels do at a noise level that hides the shapes.

    The best network says the mean of the target for x_t and the label. The error of that is orthogonal to every
    function of these, so a wrong label adds the mean square of the difference of the two predictions to its loss.

    Args:
        change: the difference of x_0 as predicted with the right and with a wrong label, root mean square, over the
            standard deviation of the data.
        share: the loss that a wrong label adds, over the mean square of that difference.
        error: its standard error.
        config: of the run.
    """
    dropout = ", or a smaller --label_dropout" if config.label_dropout else ""
    ignored = (
        "The prediction is the same for every label. Do the labels of --dataset belong to their images? If they do: "
        f"{longer(config)}{dropout}"
    )
    swapped = (
        "The right label lowers the loss no more than a wrong one: the labels of --dataset do not belong to their "
        "images. Mend them and train anew"
    )
    return [
        judged(
            "change of the predicted picture with the label", change, percent(change),
            f"{percent(_LEAST_CHANGE)} or more",
            (change < _LEAST_CHANGE, "labels ignored", ignored),
        ),
        judged(
            "loss that a wrong label adds, over its change", share, f"{percent(share)} +- {percent(error)}",
            "about 100 %",
            (
                change >= _LEAST_CHANGE and share + _STANDARD_ERRORS * error < _LEAST_SHARE, "swapped labels",
                swapped,
            ),
        ),
    ]  # fmt: skip


# The pictures.

_NOISY = 0.25  # share of the way from the real roughness to that of noise; healthy runs: below 0
_TINT = 0.15  # 19 grey levels, besides what the number of pictures leaves open; healthy runs: up to 0.02
_SATURATED = 0.15  # share of the pixels at the ends above that of real ones; healthy runs: below 0
_END = 0.99  # a pixel beyond is at an end
_LEAST_VARIETY = 0.5  # variance over pictures, of that over real ones; healthy runs: 0.82 and more
_LEAST_APART = 0.3  # median distance of a picture to its nearest other, of that of as many real ones
_NEIGHBOURS = 64  # pictures among which the nearest other is looked for
_COPIES = 0.15  # share of the pictures; 1 % is chance; healthy runs: 0
_LEAST_ROOM = 0.05  # between real images and noise, to measure on


@dataclasses.dataclass(frozen=True)
class Looks:
    """Figures of a set of pictures.

    Attributes:
        count: of the pictures.
        roughness: mean squared difference of neighbouring pixels over twice the variance; 1 = independent pixels.
        colours: mean of each channel, (C,).
        spread: the largest deviation of a channel's mean over the pictures.
        ends: share of pixels at -1 or 1.
        variance: over the pictures, mean over the pixels.
        variance_spread: standard deviation over the pictures of what each adds to that.
        apart: median over some pictures of the distance to the nearest other of them, root mean square of the pixels.
    """

    count: int
    roughness: float
    colours: np.ndarray
    spread: float
    ends: float
    variance: float
    variance_spread: float
    apart: float

    @classmethod
    def of(cls, x: np.ndarray) -> "Looks":
        """Return the figures of pictures in [-1, 1], (N, H, W, C)."""
        x = x.astype(np.float64)
        centred = x - x.mean(axis=(0, 1, 2))
        steps = [np.square(np.diff(x, axis=axis)) for axis in (1, 2)]
        squares = sum(each.sum() for each in steps) / max(sum(each.size for each in steps), 1)
        variance = np.square(centred).mean()
        some = x[np.linspace(0, len(x) - 1, min(_NEIGHBOURS, len(x))).round().astype(int)].reshape(-1, x[0].size)
        nearest = metrics.nearest_others(some) if len(some) > 1 else np.zeros(1)
        return cls(
            len(x),
            float(squares / (2 * variance)) if variance else 0.0,
            x.mean(axis=(0, 1, 2)),
            float(x.mean(axis=(1, 2)).std(axis=0).max()),
            float((np.abs(x) > _END).mean()),
            float(x.var(axis=0).mean()),
            float(np.square(x - x.mean(axis=0)).mean(axis=(1, 2, 3)).std()),
            float(np.sqrt(np.median(nearest) / some.shape[1])),
        )


def of_pictures(painted: Looks, real: Looks, config: TrainConfig) -> list[Finding]:
    """Judge generated pictures of a run by real ones."""
    room = 1 - real.roughness
    noise = (painted.roughness - real.roughness) / max(room, _LEAST_ROOM)
    tint = float(np.abs(painted.colours - real.colours).max())
    allowed = _TINT + _STANDARD_ERRORS * real.spread / painted.count**0.5
    ends = painted.ends - real.ends
    variety = painted.variance / real.variance if real.variance else 1.0
    left_open = _STANDARD_ERRORS * real.variance_spread / (real.variance or 1.0) / painted.count**0.5
    least_variety = max(min(_LEAST_VARIETY, 1 - left_open), 0.0)
    apart = painted.apart / real.apart if real.apart else 1.0
    more = longer(config)
    has_pure_noise = config.zero_terminal_snr or config.timestep_sampling == "log_normal"  # or cannot have it
    or_noise = "" if has_pure_noise else f", or {pure_noise(config)}"
    v = "" if config.prediction == "v" else f", or --prediction=v in place of {config.prediction}"
    guided = "A smaller --guidance_scale, with which they are painted. Else: " if config.guidance_scale > 1 else ""
    return [
        judged(
            "noise in the pictures", noise, percent(noise), f"up to {percent(_NOISY)}",
            (
                noise > _NOISY and room >= _LEAST_ROOM, "still noise",
                f"Neighbouring pixels differ as in noise: {more}, or a larger network (--width)",
            ),
        ),
        judged(
            "colour or brightness off by", tint, f"{tint:.3f}", f"up to {allowed:.2f}",
            (
                tint > allowed, "tinted",
                "Pictures have other colours, or another brightness, than the data: the noisiest t decide that. "
                f"{more.capitalize()}{or_noise}",
            ),
        ),
        judged(
            "pixels at the ends, above the data's", ends, percent(ends), f"up to {percent(_SATURATED)}",
            (
                ends > _SATURATED, "saturated",
                "Pictures are black and white where the data are not: the predicted x_0 leaves [-1, 1]. "
                f"{guided}{more.capitalize()}{v}",
            ),
        ),
        judged(
            "variety, of the data's", variety, percent(variety), f"{percent(least_variety)} or more",
            (
                variety < least_variety, "collapse",
                "Pictures are nearly all the same, or grey: the network takes its mean for an answer. "
                f"{more.capitalize()}, or a smaller --learning_rate",
            ),
        ),
        judged(
            "distance of a picture to the next, of the data's", apart, percent(apart),
            f"{percent(_LEAST_APART)} or more",
            (
                apart < _LEAST_APART, "collapse",
                f"The same few pictures come again and again: {more}, or a smaller --learning_rate",
            ),
        ),
    ]  # fmt: skip


def of_copies(rate: float, chance: float, since: int | None, config: TrainConfig) -> Finding:
    """Judge the share of pictures that are copies of training images, at the latest since the checkpoint `since`."""
    fault = (are_copies(rate), "copies", _memorised(since, "Pictures are copies of training images", config))
    return judged("copies of training images", rate, percent(rate), f"about {percent(chance)} by chance", fault)


def are_copies(rate: float) -> bool:
    """Return whether this share of copies is beyond chance."""
    return rate > _COPIES
