"""Every verdict by the figures that lead to it: those of healthy runs have no fault, those of a fault have its name."""

import dataclasses

import numpy as np
import pytest

from kddpm import data
from kddpm.runs import data_findings, doctor, findings, network_findings, presets
from kddpm.runs.config import TrainConfig
from kddpm.runs.findings import Course
from kddpm.runs.network_findings import Looks
from kddpm.theory import schedules

RATE = 2e-3
CONFIG = TrainConfig("digits", learning_rate=RATE, ema_momentum=0.999, label_dropout=0.1)


@pytest.fixture(scope="module")
def digits():
    """Real digits in [-1, 1]."""
    return data.load("digits", progress=False).images / 127.5 - 1


def rows(losses, skipped=0.0):
    """Rows of metrics.csv, every 50 steps."""
    return [{"step": str(50 * i), "loss": str(loss), "skipped_steps": str(skipped)} for i, loss in enumerate(losses, 1)]


def usual(count=60):
    """The course of a healthy run, with the noise of one."""
    steps = 50 * np.arange(1, count + 1)
    return (0.12 + 0.6 * steps**-0.35) * (1 + 0.02 * np.random.default_rng(0).normal(size=count))


def faults(found):
    """The names of what is wrong, with a sentence each."""
    found = found if isinstance(found, list) else [found]
    assert all(bool(each.fault) == bool(each.advice) and each.measured and each.expected for each in found)
    return [each.fault for each in found if each.fault]


def course_of(losses, is_done=True, **changes):
    config = TrainConfig("digits", learning_rate=RATE, **changes)
    return findings.of_course(Course.of(rows(losses), 100), config, is_done)


def of_course(losses, is_done=True):
    return faults(course_of(losses, is_done))


def images_from(low, high, others=()):
    """Grey images with pixels from low to high, and a few others."""
    pixels = np.resize(np.arange(low, high + 1, dtype=np.uint8), (40, 16, 16, 1))
    pixels[0, 0, : len(others), 0] = others
    return pixels


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (images_from(0, 255), []), (images_from(13, 204), []), (images_from(0, 127), []), (images_from(0, 20), []),
        (images_from(0, 1), ["black inputs"]), (images_from(0, 1, [255, 255]), ["black inputs"]),
        (images_from(128, 255), ["inputs in [0, 1]"]), (images_from(165, 242), ["inputs in [0, 1]"]),
        (images_from(128, 255, [119, 90, 0]), ["inputs in [0, 1]"]),
    ],
)  # fmt: skip
def test_the_range_of_the_pixels(pixels, fault):
    assert faults(data_findings.of_range(pixels)) == fault


def test_images_without_content():
    assert faults(data_findings.of_flat_images(0.01)) == []
    assert faults(data_findings.of_flat_images(0.2)) == ["constant images"]
    assert faults(data_findings.of_variety(0.54)) == []
    assert faults(data_findings.of_variety(0.01)) == ["images all alike"]


def test_images_that_are_there_again_and_again(digits):
    pixels = ((digits + 1) * 127.5).round().astype(np.uint8)
    assert faults(data_findings.of_repeats(pixels)) == []
    again = np.concatenate([pixels, np.repeat(pixels[:1], 500, axis=0)])
    assert faults(data_findings.of_repeats(again)) == ["repeated images"]


def mixed(x_0, share, change):
    """Images of which a share was changed."""
    chosen = np.random.default_rng(0).random(len(x_0)) < share
    return np.where(chosen[:, None, None, None], change(x_0), x_0)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_images_of_two_scales(digits, share):
    assert faults(data_findings.of_kinds(digits)) == faults(data_findings.of_kinds(-digits)) == []
    assert faults(data_findings.of_kinds(mixed(digits, share, lambda x: -x))) == ["inverted images"]
    assert faults(data_findings.of_kinds(mixed(digits, share, lambda x: (x + 1) / 2))) == ["inputs in [0, 1]"]


def test_photos_of_two_kinds_are_neither_negatives_nor_scaled():
    random = np.random.default_rng(0)
    content = random.normal(0, 0.3, (1000, 4, 4, 1)) + np.linspace(0.2, -0.2, 4)[:, None, None]  # skies are bright
    for brightness in (
        random.uniform(-1, 1, 1000),
        random.normal(0, 0.3, 1000),
        np.repeat([-0.1, 0.9], 500),
        np.repeat([-0.5, 0.5], 500) + random.normal(0, 0.1, 1000),  # by night and by day
    ):
        assert faults(data_findings.of_kinds((content + brightness[:, None, None, None]).clip(-1, 1))) == []


def test_labels_and_digests():
    assert faults(data_findings.of_classes(np.array([5, 3, 9]))) == []
    assert faults(data_findings.of_classes(np.array([1, *[900] * 9]))) == ["classes with few images"]
    assert faults(data_findings.of_classes(np.array([0, 17, 0]))) == ["labels of one class"]
    assert faults(data_findings.of_classes(np.array([5, 0, 9]))) == ["classes without images"]
    assert faults(data_findings.of_digest(True)) == []
    assert faults(data_findings.of_digest(False)) == ["other images"]


@pytest.mark.parametrize("name", schedules.BY_NAME)
def test_schedules_with_a_name_are_healthy(name):
    schedule = schedules.by_name(name, 1000)
    assert faults([findings.of_last_step(schedule, CONFIG), findings.of_first_step(schedule)]) == []


def test_both_ends_of_a_schedule():
    weak = schedules.linear(1000, 1e-4, 2e-3)
    found = findings.of_last_step(weak, CONFIG)
    assert faults(found) == ["signal left at T"] and "--zero_terminal_snr with --prediction=v" in found.advice
    assert "--prediction" not in findings.of_last_step(weak, dataclasses.replace(CONFIG, prediction="v")).advice
    assert faults(findings.of_last_step(schedules.zero_terminal_snr(weak), CONFIG)) == []
    assert faults(findings.of_first_step(schedules.linear(1000, 1e-9, 0.02))) == ["no noise at t = 0"]
    assert faults(findings.of_first_step(schedules.cosine(10))) == ["too few timesteps"]


def test_a_healthy_course():
    assert of_course(usual()) == of_course(usual()[:12]) == []
    assert faults(findings.of_skipped_steps(Course.of(rows(usual()), 100), CONFIG)) == []
    assert course_of(usual(9)) == []  # too few rows to judge


def test_skipped_steps():
    course = Course.of(rows([0.3, 0.2, "nan", 0.2], skipped=3.0), 0)
    assert (course.step, course.skipped, course.losses.tolist()) == (200, 12, [0.3, 0.2, 0.2])
    found = findings.of_skipped_steps(course, CONFIG)
    assert faults(found) == ["loss not finite"] and "--learning_rate than 0.002" in found.advice


def test_steps_that_were_skipped_at_the_end_are_a_fault_however_long_the_run():
    long, config = rows(np.full(2000, 0.1)), dataclasses.replace(CONFIG, log_every=1000)
    assert faults(findings.of_skipped_steps(Course.of(long, 0), config)) == []
    # In the row that training ended in, in a row that is full of them, and a few in one.
    for step, skipped, fault in (
        (100_980, 10, ["loss not finite"]),
        (101_000, 200, ["loss not finite"]),
        (101_000, 9, []),
    ):
        last = {"step": str(step), "loss": "0.1", "skipped_steps": str(skipped)}
        assert faults(findings.of_skipped_steps(Course.of([*long, last], 0), config)) == fault
    assert Course.of(rows([0.3, "inf", 0.2]), 0).skipped == 50  # a row that does not count what it skipped


@pytest.mark.parametrize("skipped", ["nan", "inf"])
def test_rows_without_a_number_are_of_skipped_steps(skipped):
    course = Course.of([*rows(usual()), {"step": "3050", "loss": "nan", "skipped_steps": skipped}], 100)
    assert faults(findings.of_skipped_steps(course, CONFIG)) == ["loss not finite"] and course.skipped == 50


def test_rows_of_no_loss_are_left_out():
    assert of_course([0.0, *usual(), 0.0]) == [] and course_of([0.0] * 20) == []


def test_spikes():
    losses = usual()
    losses[40] *= 3
    assert of_course(losses) == []  # one
    losses[50] *= 3
    assert of_course(losses) == ["rate too high"]
    for seed, size in ((0, 12), (1, 60), (2, 200), (3, 2000)):
        assert of_course(np.random.default_rng(seed).lognormal(0, 0.3, size)) == []  # noisy at all times
    # Most of "vlb" is of t = 0, of which a row of 20 steps of 64 images has a draw or none.
    draws = 0.3 + np.random.default_rng(0).poisson(1.28, 100)
    assert faults(course_of(draws, weighting="vlb")) == []
    assert "rate too high" in faults(course_of(draws))


def test_a_loss_above_where_it_began():
    assert of_course(np.concatenate([[0.83], np.full(20, 1.05), usual()[20:]]))[0] == "rate too high"
    assert "rate too high" not in of_course(np.linspace(1.0, 0.99, 60))  # nothing learned yet


def test_a_loss_that_rises():
    assert of_course(np.concatenate([usual(40), 0.2 * 1.05 ** np.arange(20)])) == ["diverging"]


def test_a_loss_that_still_falls():
    falling = 10 * 0.97 ** np.arange(60)
    assert of_course(falling) == ["too short a run"]
    assert of_course(falling, is_done=False) == []
    assert "the same command with more --steps goes on" in course_of(falling)[-1].advice
    assert "train anew with more --steps" in course_of(falling, learning_rate_decay="cosine")[-1].advice


def test_the_loss_of_training_beside_the_linear_denoisers():
    assert faults(findings.of_training_loss(0.139, 0.222, CONFIG)) == []
    assert faults(findings.of_training_loss(0.25, 0.222, CONFIG)) == ["no progress"]
    assert faults(findings.of_training_loss(np.nan, 0.222, CONFIG)) == ["no progress"]
    assert faults(findings.of_training_loss(0.1, 0.0, CONFIG)) == ["no progress"]  # images all the same
    deaf = dataclasses.replace(CONFIG, dropout=0.95)
    assert "--dropout=0.95 is too high" in findings.of_training_loss(0.25, 0.222, deaf).advice


@pytest.mark.parametrize(("warmup_steps", "fault"), [(100, []), (2500, []), (4000, ["warm-up too long"])])
def test_the_warm_up(warmup_steps, fault):
    assert faults(findings.of_warm_up(TrainConfig("digits", steps=5000, warmup_steps=warmup_steps))) == fault


def test_rows_and_weights_of_the_newest_checkpoint():
    course = Course.of(rows(usual()), 100)  # up to step 3,000
    assert faults(findings.of_rows(course, 3000, 50)) == faults(findings.of_rows(course, 3040, 50)) == []
    assert faults(findings.of_rows(course, 5000, 50)) == ["rows are missing"]
    for lost in (slice(0, 30), slice(10, 40)):
        kept = rows(usual())
        del kept[lost]
        assert faults(findings.of_rows(Course.of(kept, 100), 3000, 50)) == ["rows are missing"]
    assert faults(findings.of_checkpoint(3000, 3000)) == faults(findings.of_weights("", is_over=True)) == []
    found = findings.of_weights("others", is_over=True)
    assert faults(found) == ["other weights"] and "or delete it" in found.advice and found.measured == "others"
    assert "or go on with the same command" in findings.of_weights("others", is_over=False).advice
    found = findings.of_checkpoint(2000, 3000)
    assert faults(found) == ["damaged checkpoint"] and "The checkpoint of step 3000 cannot be read" in found.advice


@pytest.mark.parametrize(
    ("step", "seconds", "text"),
    [
        (5000, 1.0, "5,000 of 5,000"), (2000, np.nan, "2,000 of 5,000"), (2000, 0.04, "2,000 of 5,000, 2 minutes left"),
        (2000, 10.0, "2,000 of 5,000, 8.3 hours left"),
    ],
)  # fmt: skip
def test_the_time_left(step, seconds, text):
    found = findings.of_progress(step, 5000, seconds)
    assert (found.measured, found.fault) == (text, "")


T = np.array([0, 9, 19])


def of_losses(*losses, error=0.001, is_judged=(True, True, True)):
    ones = np.ones(3)
    linear = np.array([0.9, 0.3, 0.01])
    errors, judged = error * ones, np.array(is_judged)
    return network_findings.of_losses(T, np.array(losses), errors, linear, ones, judged, CONFIG)


def test_losses_at_some_t():
    assert faults(of_losses(0.8, 0.1, 0.011)) == []
    found = of_losses(0.8, 0.4, 0.2)
    assert faults(found) == ["not learned at some t"] and "At t = 9, 19 the" in found.advice
    assert faults(of_losses(0.8, 0.4, 0.01, error=0.05)) == []  # too few images to tell
    assert faults(of_losses(0.8, 0.4, 0.2, is_judged=(True, False, False))) == []
    assert faults(of_losses(1.0, 1.0, 1.0)) == ["not learned at some t"]
    assert faults(network_findings.of_output(0.0, CONFIG)) == ["outputs zeros"]
    assert faults(network_findings.of_output(np.nan, CONFIG)) == ["outputs not finite"]
    assert faults(network_findings.of_output(1.01, CONFIG)) == []


def test_the_average():
    assert faults(network_findings.of_average(0.97, CONFIG, 5000)) == []
    assert faults(network_findings.of_average(1.5, CONFIG, 5000)) == ["EMA too slow"]
    assert faults(network_findings.of_average(np.nan, CONFIG, 5000)) == ["EMA too slow"]
    # At the beginning the average is over a ninth of the steps, whatever the momentum.
    assert "over 1,000 of 20,000 steps" in network_findings.of_average(2.0, CONFIG, 20_000).advice
    assert "over 57 of 500 steps" in network_findings.of_average(2.0, CONFIG, 500).advice


def test_a_learned_variance():
    random = np.random.default_rng(0)
    small = random.normal(1.0, 0.1, (12, 64))
    large = 1.5 * small
    better = np.where(np.arange(12)[:, None] < 6, small, large)  # of the tables, now one, now the other
    tables = [np.minimum(small, better), np.where(np.arange(12)[:, None] < 6, large, small)]
    assert faults(network_findings.of_learned_variance(np.stack([0.95 * small, *tables]))) == []
    assert faults(network_findings.of_learned_variance(np.stack([1.2 * small, *tables]))) == ["variance not learned"]
    assert faults(network_findings.of_learned_variance(np.stack([np.nan * small, *tables]))) == ["variance not learned"]


def test_memorising():
    train = np.random.default_rng(0).normal(0.14, 0.02, 64)
    assert faults(network_findings.of_gap(train, 1.03 * train, None, CONFIG)) == []
    few = np.array([0.1, 0.2]), np.array([0.1, 0.3])
    assert faults(network_findings.of_gap(*few, None, CONFIG)) == []  # too few images to tell
    found = network_findings.of_gap(train, 1.5 * train, 3000, CONFIG)
    assert faults(found) == ["memorising"] and "already at the checkpoint of step 3000" in found.advice
    assert faults(network_findings.of_copies(0.02, 0.01, None, CONFIG)) == []
    found = network_findings.of_copies(0.9, 0.01, 1000, CONFIG)
    assert faults(found) == ["copies"] and "already at the checkpoint of step 1000" in found.advice


@pytest.mark.parametrize(
    ("change", "share", "error", "fault"),
    [
        (0.3, 1.0, 0.01, []), (0.0, 0.0, 0.0, ["labels ignored"]), (0.3, 0.0, 0.01, ["swapped labels"]),
        (0.3, -1.0, 0.01, ["swapped labels"]), (0.3, 0.2, 0.2, []),
    ],
)  # fmt: skip
def test_labels(change, share, error, fault):
    assert faults(network_findings.of_labels(change, share, error, CONFIG)) == fault


def test_what_more_steps_may_mend_is_no_fault_of_a_young_run():
    young, broken = network_findings.of_output(0.0, CONFIG), data_findings.of_range(images_from(128, 255))
    unlearned = of_losses(0.8, 0.4, 0.2)
    found = findings.so_far([young, unlearned, broken], stands_still=False)
    assert faults(found) == ["inputs in [0, 1]"] and found[0].measured == "0.00 so far"
    # Steps do not mend a loss that stands still.
    assert faults(findings.so_far([young, unlearned, broken], True)) == ["outputs zeros", "inputs in [0, 1]"]


def test_a_loss_that_stands_still():
    noise = 1 + 0.02 * np.random.default_rng(1).normal(size=60)
    assert Course.of(rows(noise), 100).stands_still
    assert not Course.of(rows(noise[:6]), 100).stands_still  # too few rows to tell
    assert not Course.of(rows(10 * 0.97 ** np.arange(60)), 100).stands_still


@pytest.mark.parametrize(
    ("changes", "said", "not_said"),
    [
        ({}, ["More --steps, or --zero_terminal_snr", "--horizontal_flip", "v in place of eps", "--label_dropout"], []),
        ({"learning_rate_decay": "cosine", "steps": 5000}, ["A new run of more --steps"], ["More --steps"]),
        ({"prediction": "v"}, ["More --steps, or --zero_terminal_snr"], ["--prediction"]),
        (
            {
                "horizontal_flip": True, "prediction": "v", "schedule": "cosine", "zero_terminal_snr": True,
                "label_dropout": 0.0,
            },
            [], ["--horizontal_flip", "--prediction=v", "--zero_terminal_snr", "--label_dropout"],
        ),
    ],
)  # fmt: skip
def test_advice_names_no_flag_that_is_set(changes, said, not_said):
    config = TrainConfig("digits", **{"label_dropout": 0.1, **changes})
    real = Looks(64, 0.2, np.zeros(1), 0.1, 0.0, 1.0, 0.1, 1.0)
    painted = Looks(64, 0.9, np.ones(1), 0.1, 0.9, 0.1, 0.1, 1.0)
    found = network_findings.of_pictures(painted, real, config)
    found += [network_findings.of_copies(1.0, 0.01, None, config), *network_findings.of_labels(0, 0, 0, config)]
    assert len(faults(found)) == 6
    advice = " ".join(each.advice for each in found)
    assert all(text in advice for text in said) and not any(text in advice for text in not_said)


def noised(x):
    return (x + 0.6 * np.random.default_rng(0).normal(size=x.shape)).clip(-1, 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x: x, []),
        (lambda x: np.roll(x, 1, axis=2), []),
        (noised, ["still noise"]),
        (lambda x: x + 0.3, ["tinted"]),
        (lambda x: np.where(x > 0, 1.0, -1.0), ["saturated"]),
        (lambda x: np.repeat(x[:8], len(x) // 8, axis=0), ["collapse"]),  # as varied as digits are
        (lambda x: np.repeat(x[6:7], len(x), axis=0), ["collapse", "collapse"]),
        (lambda x: 0 * x - 0.39, ["collapse", "collapse"]),
    ],
)
def test_pictures(digits, change, fault):
    painted, real = digits[:64], digits[64:]
    assert faults(network_findings.of_pictures(Looks.of(change(painted)), Looks.of(real), CONFIG)) == fault


def test_pictures_of_data_with_little_content_may_be_empty(digits):
    random = np.random.default_rng(0)
    data_set = np.where(random.random(len(digits))[:, None, None, None] < 0.03, digits, -0.39)
    for _ in range(20):
        painted = Looks.of(data_set[random.permutation(len(digits))[:64]])
        assert "collapse" not in faults(network_findings.of_pictures(painted, Looks.of(data_set[:1000]), CONFIG))


def test_too_much_guidance_is_named_first():
    real = Looks(64, 0.2, np.zeros(1), 0.1, 0.0, 1.0, 0.1, 1.0)
    guided = TrainConfig("digits", num_classes=10, label_dropout=0.1, guidance_scale=15.0)
    found = network_findings.of_pictures(dataclasses.replace(real, ends=0.9), real, guided)
    assert faults(found) == ["saturated"] and "A smaller --guidance_scale" in found[2].advice


def test_one_channel_is_tinted():
    real = np.random.default_rng(0).normal(0, 0.3, (400, 8, 8, 3)).cumsum(axis=1) / 3
    tinted = real[:64] + np.array([0.0, 0.0, 0.5])
    assert faults(network_findings.of_pictures(Looks.of(real[:64]), Looks.of(real[64:]), CONFIG)) == []
    assert "tinted" in faults(network_findings.of_pictures(Looks.of(tinted), Looks.of(real[64:]), CONFIG))


def test_noise_has_the_roughness_of_independent_pixels():
    x = np.random.default_rng(0).uniform(-1, 1, (50, 16, 16, 3))
    assert Looks.of(x).roughness == pytest.approx(1, abs=0.02)
    assert Looks.of(np.zeros((2, 4, 4, 1))).roughness == 0
    ramp = np.linspace(-1, 1, 5).reshape(1, 1, 5, 1)  # steps of 1/2, a variance of 1/2; one row has no other neighbours
    assert Looks.of(ramp).roughness == pytest.approx(0.25 / (2 * 0.5))


def test_the_report_begins_with_a_table_and_ends_with_a_verdict():
    well, sick = data_findings.of_range(images_from(0, 255)), data_findings.of_range(images_from(128, 255))
    assert list(doctor.report("A run", [well], is_over=False))[-1] == "healthy so far"
    lines = list(doctor.report("A run", [well]))
    assert lines[0] == "A run" and lines[-1] == "healthy"
    assert lines[2].split("  ")[1:3] == ["range of the pixels", "[-1, 1]"]
    lines = list(doctor.report("A run", [well, sick, sick]))
    assert [line[0] for line in lines[1:5]] == [" ", " ", "!", "!"]
    assert lines[5].startswith("inputs in [0, 1]: Nearly all pixels lie in [0, 1]")
    assert lines[-1].startswith("2 faults.")


def test_what_needs_no_network_is_judged_at_the_end_of_training(digits):
    source = data.load("digits", progress=False)
    config = presets.make_config("digits", steps=3000)
    found = doctor.without_network(config, source.digest, source, rows(usual()))
    assert faults(found) == [] and found[-1].what == "loss over the linear denoiser's"
    for changes in ({}, {"timestep_sampling": "log_normal"}):
        changed = dataclasses.replace(config, **changes)
        found = doctor.without_network(changed, "another", source, rows(np.full(60, 1.0)))
        assert faults(found) == ["other images", "no progress"]


def test_colour_images_are_of_one_colour_where_no_pixel_differs():
    random = np.random.default_rng(0)
    plain = np.broadcast_to(random.integers(0, 256, (100, 1, 1, 3)), (100, 8, 8, 3)).astype(np.uint8)
    source = data.ImageData(plain, None, (), "npz:plain.npz", "digest")
    config = presets.make_config("digits", channels=3)
    assert "constant images" in faults(doctor.without_network(config, "digest", source, []))
