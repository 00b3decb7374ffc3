"""What figures of a run mean: each function judges one, and returns a `Finding`.

Here are those of the schedule and of the course of the loss; `data_findings` has those of the images, and
`network_findings` those of the network and its pictures.

The figures are measured by `kddpm.runs.doctor`. A limit lies beyond what healthy runs came to, which stands beside it:
runs of the preset `digits` with several seeds, with and without classes, of 500 to 5,000 steps.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kddpm.model.checks import LARGEST_LAST_ALPHA_BAR
from kddpm.runs.config import TrainConfig
from kddpm.theory.schedules import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Finding:
    """A figure of a run, and its verdict.

    Attributes:
        what: what was measured.
        value: the figure; NaN = it is unknown.
        measured: the figure as text.
        expected: what it is in a healthy run.
        fault: a name of what is wrong, "" = nothing.
        advice: the likely cause and the remedy; "" where nothing is wrong.
    """

    what: str
    value: float
    measured: str
    expected: str
    fault: str = ""
    advice: str = ""


def judged(what: str, value: float, measured: str, expected: str, *faults: tuple[bool, str, str]) -> Finding:
    """Return a finding with the first of the faults, (whether it is so, name, advice), that is so."""
    verdict = next((fault for is_so, *fault in faults if is_so), ["", ""])
    return Finding(what, float(value), measured, expected, *verdict)


# What more steps may mend: the first as long as the loss falls.
_WHILE_IT_FALLS = ("no progress", "outputs zeros")
_OF_YOUNG_RUNS = (
    "EMA too slow", "not learned at some t", "labels ignored", "still noise", "tinted", "saturated", "collapse",
)  # fmt: skip


def so_far(found: Sequence[Finding], stands_still: bool) -> list[Finding]:
    """Return the findings of a run that is not over: what more steps may mend is no fault yet.

    Args:
        found: as of a run that is over.
        stands_still: whether the loss does.
    """
    mended = _OF_YOUNG_RUNS if stands_still else (*_WHILE_IT_FALLS, *_OF_YOUNG_RUNS)
    return [
        dataclasses.replace(each, measured=f"{each.measured} so far", fault="", advice="")
        if each.fault in mended
        else each
        for each in found
    ]


def longer(config: TrainConfig) -> str:
    """Return what a run of this configuration that is over needs, to take more steps."""
    return "more --steps" if config.learning_rate_decay == "none" else "a new run of more --steps"


def pure_noise(config: TrainConfig) -> str:
    """Return the flags that end a schedule in pure noise, which a network that predicts eps cannot learn from."""
    return "--zero_terminal_snr" + (" with --prediction=v" if config.prediction in ("eps", "mu") else "")


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.3g} %"


# The schedule.

_LEAST_FIRST_NOISE = 1e-4  # an eightieth of a grey level; of the schedules with a name the least is 1e-3
_MOST_FIRST_NOISE = 0.15  # 19 grey levels; of the schedules with a name and 20 steps the most is 0.13


def of_last_step(schedule: NoiseSchedule, config: TrainConfig) -> Finding:
    """Judge the signal left at T."""
    last = float(schedule.alpha_bars[-1])
    snr = float(last / schedule.one_minus_alpha_bars[-1])
    advice = (
        "x_T still shows the image, and sampling begins with pure noise, which the network never saw: "
        f"another --schedule, such as cosine, or {pure_noise(config)}"
    )
    fault = (last > LARGEST_LAST_ALPHA_BAR, "signal left at T", advice)
    return judged("signal over noise at T", snr, f"{snr:.2g}", f"up to {LARGEST_LAST_ALPHA_BAR}", fault)


def of_first_step(schedule: NoiseSchedule) -> Finding:
    """Judge the noise at t = 0."""
    noise = math.sqrt(schedule.one_minus_alpha_bars[0])
    return judged(
        "noise at t = 0", noise, f"{noise:.2g}", f"{_LEAST_FIRST_NOISE} to {_MOST_FIRST_NOISE}",
        (
            noise < _LEAST_FIRST_NOISE, "no noise at t = 0",
            "The first steps add no noise that can be seen: fewer --num_timesteps, or another --schedule",
        ),
        (
            noise > _MOST_FIRST_NOISE, "too few timesteps",
            "The last step of sampling has to take away noise that hides details: more --num_timesteps",
        ),
    )  # fmt: skip


# The course of the loss.

_LONGEST_WARM_UP = 0.5  # of the steps; presets: up to 0.04
_LEAST_ROWS = 8  # of metrics.csv after the warm-up, to judge a course
_NEIGHBOURS = 10  # rows before a row, with which it is compared
_SPIKE = 1.5  # times their median; healthy runs: up to 1.05
_FAR = 10  # of their deviations above it, where the loss is noisy in itself
_EARLY = (
    1.1  # the lowest loss of rows 2 to 10 over the first; healthy runs: up to 0.6, and 1.0 where nothing is learned
)
_RISE = 1.2  # the last quarter over the best; healthy runs: 1.00
_FALL = 0.08  # of the last quarter below the one before; healthy runs: up to 0.05
_STILL = 0.03  # the same, of a loss that stands still
_STANDARD_ERRORS = 3  # of either, which the noise of the rows leaves open
_SPIKES = 0.02  # share of the rows
_SKIPPED = 1e-3  # share of the steps
_SKIPPED_LATE = 0.1  # share of the steps of the last row
_MOST_DROPOUT = 0.5  # beyond which it is named first where nothing is learned; presets: up to 0.1
_NO_PROGRESS = 1.1  # times the linear denoiser's loss; training's has dropout; healthy runs: 0.63 to 0.85


@dataclasses.dataclass(frozen=True)
class Course:
    """The rows of metrics.csv.

    Attributes:
        step: of the last row, 0 = there is none.
        skipped: steps that were skipped because loss or gradients were not finite.
        skipped_late: share of the steps of the last row that were; 0 where there is none.
        early: the lowest of rows 2 to 10 over the first row, the warm-up included; NaN = there are none.
        losses: of the rows after the warm-up in which a step was taken, (n,).
        gap: the most steps from one row to the next; 0 where there is none.
    """

    step: int
    skipped: int
    skipped_late: float
    early: float
    losses: np.ndarray
    gap: int

    @classmethod
    def of(cls, rows: Sequence[dict], warmup_steps: int) -> "Course":
        """Return the course of rows as `RunDirectory.rows` gives them."""
        steps = [int(row["step"]) for row in rows]
        step = steps[-1] if steps else 0
        skipped, late = 0, 0.0
        for row, before, now in zip(rows, [0, *steps], steps, strict=False):
            count = float(row["skipped_steps"])
            if not math.isfinite(count) or (not count and not math.isfinite(float(row["loss"]))):
                count = now - before
            skipped, late = skipped + round(count), count / max(now - before, 1)
        taken = [(int(row["step"]), float(row["loss"])) for row in rows if 0 < float(row["loss"]) < math.inf]
        early = float(min(loss for _, loss in taken[1:10]) / taken[0][1]) if len(taken) > 1 else math.nan
        losses = np.array([loss for step, loss in taken if step > warmup_steps])
        gap = max((now - before for before, now in zip([0, *steps], steps, strict=False)), default=0)
        return cls(step, skipped, late, early, losses, gap)

    @property
    def is_long_enough(self) -> bool:
        """Whether there are rows enough to judge."""
        return len(self.losses) >= _LEAST_ROWS

    @property
    def quarters(self) -> np.ndarray:
        """Medians of the losses in four equal parts, (4,); up to three rows at the beginning belong to none."""
        size = len(self.losses) // 4
        return np.median(self.losses[len(self.losses) - 4 * size :].reshape(4, size), axis=1)

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of `quarters`, as of medians of independent normal numbers, (4,)."""
        size = len(self.losses) // 4
        return 1.25 * self.losses[len(self.losses) - 4 * size :].reshape(4, size).std(axis=1, ddof=1) / size**0.5

    @property
    def fall(self) -> tuple[float, float]:
        """How far the last quarter lies below the one before, relative to that, and what its noise leaves open."""
        relative, kept = self.errors / self.quarters, self.quarters[-1] / self.quarters[-2]
        return float(1 - kept), float(_STANDARD_ERRORS * kept * math.hypot(relative[-1], relative[-2]))

    @property
    def stands_still(self) -> bool:
        """Whether there are rows enough to say that the loss no longer falls."""
        return self.is_long_enough and sum(self.fall) < _STILL

    @property
    def spikes(self) -> int:
        """How many rows have a loss far above those before them."""
        count = 0
        for i in range(_NEIGHBOURS, len(self.losses)):
            before = self.losses[i - _NEIGHBOURS : i]
            middle = np.median(before)
            usual = np.median(np.abs(before - middle))
            count += bool(self.losses[i] > max(_SPIKE * middle, middle + _FAR * usual))
        return count


def of_skipped_steps(course: Course, config: TrainConfig) -> Finding:
    """Judge the steps that were skipped. Ten in a row end a run, which then writes the row that it is in."""
    advice = (
        "Loss or gradients were not finite in some steps, which were skipped: a smaller --learning_rate than "
        f"{config.learning_rate:g}, or a longer --warmup_steps"
    )
    text = f"{course.skipped:,} of {course.step:,}"
    is_cut = course.skipped_late > 0 and course.step % config.log_every != 0 and course.step < config.steps
    is_so = course.skipped > _SKIPPED * course.step or course.skipped_late >= _SKIPPED_LATE or is_cut
    fault = (is_so, "loss not finite", advice)
    return judged("skipped steps", course.skipped, text, f"up to {percent(_SKIPPED)}", fault)


def of_course(course: Course, config: TrainConfig, is_done: bool) -> list[Finding]:
    """Judge the course of the loss; nothing, where there are too few rows.

    Args:
        course: of a run.
        config: of the run.
        is_done: whether it took all its steps.
    """
    if not course.is_long_enough:
        return []
    quarters, spikes = course.quarters, course.spikes
    best, relative = int(quarters.argmin()), course.errors / quarters
    rise, (fall, fall_error) = quarters[-1] / quarters[best], course.fall
    rise_error = _STANDARD_ERRORS * rise * math.hypot(relative[-1], relative[best])
    # Without importance sampling most of "vlb" is of t = 0, of which a row has few draws or none.
    is_steady = config.weighting != "vlb" or config.timestep_sampling == "importance"
    lower = f"--learning_rate={config.learning_rate:g} is too high: try a third of it, or a longer --warmup_steps"
    goes_on = "the same command with more --steps goes on"
    anew = "train anew with more --steps, over which the learning rate falls"
    short = f"The loss still fell fast when the run ended: {goes_on if config.learning_rate_decay == 'none' else anew}"
    return [
        judged(
            "lowest loss soon after the start, over the first", course.early, f"{course.early:.2f}", f"up to {_EARLY}",
            (course.early > _EARLY, "rate too high", f"The loss rose above where it began: {lower}"),
        ),
        judged(
            "spikes of the loss", spikes, f"{spikes} of {len(course.losses)} rows", f"up to {percent(_SPIKES)}, or one",
            (
                is_steady and spikes > max(1, _SPIKES * len(course.losses)), "rate too high",
                f"The loss jumps up again and again: {lower}",
            ),
        ),
        judged(
            "last loss over the best", rise, f"{rise:.2f}", f"up to {_RISE}",
            (rise - rise_error > _RISE, "diverging", f"The loss rises again: {lower}"),
        ),
        judged(
            "fall of the loss at the end", fall, percent(fall), f"up to {percent(_FALL)} when done",
            (is_done and fall - fall_error > _FALL, "too short a run", short),
        ),
    ]  # fmt: skip


def of_training_loss(loss: float, linear: float, config: TrainConfig) -> Finding:
    """Judge the loss of training, beside that of the best linear denoiser; both are means over t."""
    ratio = loss / linear if linear else math.inf
    dropout = f"--dropout={config.dropout:g} is too high, or " if config.dropout > _MOST_DROPOUT else ""
    advice = (
        "The network does no better than what knows the mean and the covariance of the data alone: "
        f"{longer(config)}; if the loss stands still, {dropout}--learning_rate={config.learning_rate:g} is too high, "
        "or far too low"
    )
    fault = (not ratio <= _NO_PROGRESS, "no progress", advice)
    return judged("loss over the linear denoiser's", ratio, f"{ratio:.2f}", f"up to {_NO_PROGRESS}", fault)


def of_warm_up(config: TrainConfig) -> Finding:
    """Judge how much of a run the learning rate takes to rise."""
    advice = (
        f"For {min(config.warmup_steps, config.steps):,} of {config.steps:,} steps the learning rate is below its "
        f"value: a shorter --warmup_steps, or {longer(config)}"
    )
    fault = (config.warmup_steps > _LONGEST_WARM_UP * config.steps, "warm-up too long", advice)
    text = f"{config.warmup_steps:,} of {config.steps:,}"
    expected = f"up to {percent(_LONGEST_WARM_UP)}"
    return judged("steps of the warm-up", config.warmup_steps, text, expected, fault)


def of_rows(course: Course, step: int, log_every: int) -> Finding:
    """Judge whether metrics.csv has a row every so many steps, up to the newest checkpoint, of this step."""
    advice = "Rows of metrics.csv were lost, and nothing tells what the loss did then: bring the file back"
    fault = (course.step < step - log_every or course.gap > log_every, "rows are missing", advice)
    return judged("last row of metrics.csv", course.step, f"{course.step:,}", "the newest checkpoint's", fault)


def of_checkpoint(read: int, newest: int) -> Finding:
    """Judge the newest checkpoint, of the step `newest`; the newest that can be read is of the step `read`."""
    advice = (
        f"The checkpoint of step {newest} cannot be read: bring it back. Else the same command goes on from step "
        f"{read}, which is examined here, and writes the weights that generate anew too"
    )
    fault = (read < newest, "damaged checkpoint", advice)
    return judged("newest checkpoint", newest, "damaged" if read < newest else "whole", "whole", fault)


def of_weights(what: str, *, is_over: bool) -> Finding:
    """Judge ema.weights.h5, whose weights generate.

    Args:
        what: "" where they are the average in the newest checkpoint, else what they are.
        is_over: whether that is of the last step.
    """
    anew = "delete it, and the same command writes it" if is_over else "go on with the same command, which writes it"
    advice = (
        "ema.weights.h5, which sample.py, evaluate.py and the export read, is not the average in the newest "
        f"checkpoint: bring it back, or {anew} anew"
    )
    fault = (bool(what), "other weights", advice)
    return judged("weights that generate", not what, what or "the checkpoint's", "the checkpoint's", fault)


def of_progress(step: int, steps: int, seconds_a_step: float) -> Finding:
    """Say how far a run is, and how long it will still take; `seconds_a_step` NaN = unknown. Nothing is at fault."""
    text = f"{step:,} of {steps:,}"
    if step < steps and math.isfinite(seconds_a_step):
        minutes = (steps - step) * seconds_a_step / 60
        text += f", {minutes / 60:.1f} hours left" if minutes >= 100 else f", {minutes:.0f} minutes left"
    return Finding("steps", step / steps, text, "all in the end")
