import gc
import warnings

import numpy as np
import pytest
from helpers.places import ROOT
from helpers.processes import python
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import kddpm
from kddpm import data, toy
from kddpm.base.errors import InputError
from kddpm.plots import __main__, bits, chains, learned, pictures, processes, runs, style, theory
from kddpm.theory import schedules as kd_schedules


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws with a function of `plots` and gives the figure: every text is inside it and over no other text."""

    def draw(function, *arguments, **options):
        kept, save = [], style.save
        monkeypatch.setattr(style, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(*arguments, path=tmp_path / "figure.png", **options)
        (figure,) = kept
        with Image.open(tmp_path / "figure.png") as image:
            assert image.format == "PNG" and np.asarray(image.convert("L"))[0].min() == 255  # a light, clear border
        check_texts(figure)
        return figure

    return draw


def check_texts(figure):
    figure.canvas.draw()
    renderer, width, height = figure.canvas.get_renderer(), *figure.canvas.get_width_height()
    boxes = {}
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible()):
        if text.get_text().strip() and text.get_window_extent(renderer).width:
            boxes[text] = text.get_window_extent(renderer)
    for axes in figure.axes:  # matplotlib keeps tick labels beyond the axes, and draws none of them
        for axis in (axes.xaxis, axes.yaxis):
            shown = {tick.label1 for tick in axis._update_ticks()}
            for tick in [*axis.majorTicks, *axis.minorTicks]:
                if tick.label1 not in shown:
                    boxes.pop(tick.label1, None)
    texts = list(boxes)
    assert texts
    for i, text in enumerate(texts):
        box = boxes[text]
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        assert not [other for other in texts[:i] if boxes[other].overlaps(box)], text


def test_schedules_shows_them_all(drawn):
    signal, noise, snr = drawn(theory.schedules, num_timesteps=50).axes
    names = [line.get_label() for line in signal.lines]
    assert names == [*kd_schedules.BY_NAME, "linear, zero terminal SNR"]
    styles = [line.get_linestyle() for line in signal.lines]
    assert set(styles[:-1]) == {"-"} and styles[-1] != "-"
    assert len({line.get_color() for line in signal.lines}) == len(names)
    built = [kd_schedules.by_name(name, 50) for name in kd_schedules.BY_NAME]
    for i, schedule in enumerate([*built, kd_schedules.zero_terminal_snr(built[0])]):
        kept = schedule.alpha_bars
        np.testing.assert_allclose(signal.lines[i].get_ydata(), np.sqrt(kept))
        np.testing.assert_allclose(noise.lines[i].get_ydata(), np.sqrt(1 - kept), atol=1e-7)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(snr.lines[i].get_ydata(), np.log(kept / (1 - kept)), atol=1e-6)


def test_forward_shows_the_process(drawn):
    figure = drawn(theory.forward, image=7, names=("linear", "cosine"), timesteps=(100, 999))
    grid = np.reshape([axes.images[0].get_array() for axes in figure.axes], (2, 3, 8, 8))
    assert [axes.get_ylabel() for axes in figure.axes] == ["linear", "", "", "cosine", "", ""]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["$x_0$", "t = 100", "t = 999"]
    x_0 = data.load("digits").images[7, :, :, 0] / 127.5 - 1
    for row, name in zip(grid, ("linear", "cosine"), strict=True):
        np.testing.assert_allclose(row[0], x_0, atol=1e-6)
        kept = kd_schedules.by_name(name).alpha_bars[[100, 999]]
        noise = [(x - np.sqrt(k) * x_0) / np.sqrt(1 - k) for x, k in zip(row[1:], kept, strict=True)]
        np.testing.assert_allclose(noise[0], noise[1], atol=1e-3)  # the same all along
        assert 0.7 < np.std(noise[0]) < 1.3
    assert figure.axes[2].get_xlabel() == "0.6 %" and figure.axes[1].get_xlabel() == "95 %"


def test_reverse_conditional_shows_a_density_and_the_normal_of_its_moments(drawn):
    *panels, gap = drawn(processes.reverse_conditional, betas=(0.9, 0.1)).axes
    assert [axes.get_title() for axes in panels] == [r"$\beta$ = 0.9", r"$\beta$ = 0.1"]
    for axes, beta in zip(panels, (0.9, 0.1), strict=True):
        (area,), (line,) = axes.collections, axes.lines
        x, normal = line.get_data()
        true = np.exp(toy.reverse_conditional(0.5, beta).log_density(x[:, np.newaxis]))
        assert area.get_paths()[0].vertices[:, 1].max() == pytest.approx(true.max())
        for power in (0, 1, 2):  # both have the same moments, but for the tails beyond 3.5 deviations
            assert np.trapezoid(x**power * normal, x) == pytest.approx(np.trapezoid(x**power * true, x), abs=0.01)
    beta, found = gap.lines[0].get_data()
    assert found[-1] == pytest.approx(toy.gaussian_gap_nats(beta[-1]))
    np.testing.assert_allclose(gap.lines[1].get_ydata() / beta**3, found[0] / beta[0] ** 3)


def test_continuous_time_shows_three_kinds_of_paths(drawn):
    forward, reverse, ode = drawn(processes.continuous_time, count=6, steps=100).axes
    assert [axes.get_title()[:-2] for axes in (forward, reverse, ode)] == [
        "Forward SDE", "Reverse SDE", "Probability-flow ODE",
    ]  # fmt: skip
    for axes in (forward, reverse, ode):
        assert len(axes.lines) == 6
        for line in axes.lines:
            end = line.get_ydata()[np.argmin(line.get_xdata())]
            assert line.get_color() == (style.BLUE if end < 0 else style.RED)
    starts = [[line.get_ydata()[0] for line in axes.lines] for axes in (forward, reverse, ode)]
    assert sorted(set(starts[0])) == [-0.7, 0.6] and starts[1] == starts[2] and reverse.lines[0].get_xdata()[0] == 1
    rough = [np.abs(np.diff(axes.lines[0].get_ydata(), 2)).mean() for axes in (forward, reverse, ode)]
    assert min(rough[:2]) > 10 * rough[2]


def test_langevin_shows_points_and_the_bias_of_a_step(drawn):
    plain, annealed, bias = drawn(processes.langevin, count=60).axes
    for axes in (plain, annealed):
        blue, red = (np.asarray(dots.get_offsets()) for dots in axes.collections[-2:])
        assert len(blue) + len(red) == 60 and blue[:, 0].max() < 0 < red[:, 0].min()
        assert f"{100 * len(blue) / 60:.0f} % are blue" in axes.get_title()
    unadjusted, adjusted, curve, _ = (np.asarray(line.get_ydata()) for line in bias.lines)
    assert np.abs(adjusted - 1).max() < 0.15 < unadjusted[-1] - 1
    np.testing.assert_allclose(curve, 1 / (1 - bias.lines[2].get_xdata() / 2))


def test_five_models_beside_the_data(drawn):
    rows = [toy.Compared(f"model {k}", k + 1, 1000 * k, 0.1 * k, np.full((4, 2), k)) for k in range(5)]
    panels = drawn(chains.vae_to_diffusion, measured=(rows, -1.12)).axes
    assert [axes.get_title() for axes in panels] == ["the data", *(f"model {k}" for k in range(5))]
    assert "-1.12" in panels[0].get_xlabel()
    assert panels[1].get_xlabel() == "bound: 0.00\n1 network, 0 weights"
    assert panels[5].get_xlabel() == "bound: 0.40\n5 networks, 4,000 weights"
    np.testing.assert_array_equal(panels[3].collections[0].get_offsets(), np.full((4, 2), 2))


def test_learning_curves_are_above_the_exact_value(drawn):
    calls, plane = np.arange(0, 400, 100), toy.BY_NAME["points"]
    rows = np.array([[5.0, 2.0, 1.0, 0.5], [5.0, 3.0, 2.0, 0.7]])
    measured = calls, {name: rows + shift for shift, name in enumerate(("trajectory", "pair", "one_sample"))}
    (axes,) = drawn(chains.learning_curves, measured=measured).axes
    exact = toy.exact_nats(plane, plane.draw(500, seed=1))
    mean = axes.lines[2]
    np.testing.assert_allclose(mean.get_ydata(), [2.5 - exact, 1.5 - exact, 0.6 - exact])
    np.testing.assert_array_equal(mean.get_xdata(), calls[1:])
    assert len(axes.lines) == 9 and len(axes.get_legend().texts) == 3


def result_of(terms, prior=0.01, total=None):
    terms = np.array(terms)
    total = np.nansum(terms) + prior if total is None else total
    return kddpm.BitsPerDim(total, 0.1, 0.0, np.full(3, total), terms, prior, 1.0)


def test_bits_by_term_shows_every_term_and_their_sum(drawn):
    left, right = drawn(runs.bits_by_term, result_of([2.0, 0.5, 0.25, 0.24])).axes
    middle, first, last, _ = left.lines
    assert middle.get_xdata().tolist() == [1, 2, 3] and middle.get_ydata().tolist() == [0.5, 0.25, 0.24]
    assert (first.get_xydata().tolist(), last.get_xydata().tolist()) == ([[0, 2.0]], [[4, 0.01]])
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "$L_0$, the decoder: 2 bits", "$L_T$: 0.01 bits", "$L_t$, 0 < t < 4: 0.99 bits",
    ]  # fmt: skip
    assert (left.get_yscale(), left.get_xscale()) == ("log", "symlog")
    assert right.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.array([2, 2.5, 2.75, 2.99, 3.0]) / 0.03)
    assert "3.000 bits per dimension" in right.get_title()


def test_terms_that_were_not_drawn_are_left_out(drawn):
    terms = [2.0, np.nan, 0.3, np.nan, np.nan, 0.1]
    left, right = drawn(runs.bits_by_term, result_of(terms, total=3.01)).axes  # 1 bit of the five in the middle
    assert left.lines[0].get_xdata().tolist() == [2, 5] and left.lines[0].get_ydata().tolist() == [0.3, 0.1]
    assert right.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4, 5, 6]
    known = np.cumsum([0.3, 0.3, 0.7 / 3, 0.5 / 3, 0.1])  # what was not drawn lies between its neighbours
    np.testing.assert_allclose(right.lines[0].get_ydata(), [2 / 0.0301, *(2 + known / known[-1]) / 0.0301, 100])


@pytest.mark.parametrize("terms", [[1.0], [1.0, np.nan], np.geomspace(3, 1e-7, 4000)], ids=len)
@pytest.mark.parametrize("prior", [0.0, 3e-8])
def test_bits_by_term_of_any_length(drawn, terms, prior):
    left, right = drawn(runs.bits_by_term, result_of(terms, prior)).axes
    assert right.lines[0].get_ydata()[-1] == 100
    assert left.get_legend().get_texts()[1].get_text() == (r"$L_T$: $3\cdot10^{-8}$ bits" if prior else "$L_T$: 0 bits")


def test_bits_by_term_without_its_first_term_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`result` must have a finite first term, L_0. Received: \[nan\]"):
        runs.bits_by_term(result_of([np.nan, 1.0]), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_gaussian_bits_are_those_of_the_data():
    """log2(0.2 * 127.5 sqrt(2 pi e)), the entropy of N(0, 0.2^2) in steps of 1 / 127.5; 64 x 64 pixels, 0.02 each."""
    result = theory.gaussian_bits()
    assert result.total == pytest.approx(np.log2(0.2 * 127.5 * np.sqrt(2 * np.pi * np.e)), abs=0.08)
    assert len(result.terms) == 1000 and np.isfinite(result.terms).all()


def test_estimators_shows_what_was_measured(drawn, monkeypatch):
    """Values as they are; gradients times what a trajectory costs. Whether that is so, test_theory_page.py asks."""

    def measured(num_timesteps, images):
        assert images == 7
        return {"trajectory": (0.05, 0.2), "pair": (900.0, 3.0 * num_timesteps), "one_sample": (800.0, 1.0)}

    monkeypatch.setattr(toy, "estimator_variances", measured)
    left, right = drawn(theory.estimators, lengths=(10, 50), images=7).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[0.05, 0.05], [900, 900], [800, 800]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[2.0, 10.0], [30.0, 150.0], [1.0, 1.0]]
    labels = [line.get_label() for line in left.lines]
    assert [label.split(": ")[1] for label in labels] == ["T network calls", "1 network call", "1 network call"]
    assert labels[0].startswith("a whole trajectory") and "KL in closed form" in labels[2]


def test_rate_distortion_shows_both_and_the_whole(drawn):
    """Of x_t at t = 2, 1, 0: L_3 (the prior), then L_2 and L_1 more; the red square has L_0 too."""
    result = kddpm.BitsPerDim(
        3.5, 0.1, 0.0, np.full(3, 3.5), np.array([2.0, 1.0, 0.4]), 0.1, 1.0, distortions=np.array([2.0, 9.0, 20.0])
    )
    left, middle, right = drawn(bits.rate_distortion, result, std=0.2).axes
    curve, whole = left.lines
    assert curve.get_xydata().tolist() == [[0, 20.0], [1, 9.0], [2, 2.0]] and whole.get_xydata().tolist() == [[3, 0]]
    curve, whole = middle.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0, 0.1], [1, 0.5], [2, 1.5]])
    assert whole.get_xydata().tolist() == [[3, 3.5]]
    curve, whole, least = right.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0.1, 20], [0.5, 9], [1.5, 2]])
    np.testing.assert_allclose(least.get_ydata(), 127.5 * 0.2 / 2 ** least.get_xdata())
    assert len(drawn(bits.rate_distortion, result).axes[2].lines) == 2


def test_rate_distortion_of_missing_terms_is_refused(tmp_path):
    with pytest.raises(InputError, match="`result` must have all its terms and distortions. Received: 1 missing"):
        bits.rate_distortion(result_of([1.0, np.nan, 1.0], total=3), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_the_trajectory_bound_falls_to_the_exact_value(drawn):
    """Whether it is right, test_trajectories.py asks."""
    (axes,) = drawn(bits.trajectory_bound, num_timesteps=10, trajectories=4, images=16).axes
    *measured, exact = [line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_linestyle() != "None"]
    assert exact.get_ydata()[0] == 0 and len(measured) == 3
    for line in measured:
        assert line.get_xdata().tolist() == [1, 2, 4]
        values = line.get_ydata()
        assert values[0] > values[1] > values[2] > -0.05
    assert len({line.get_color() for line in measured}) == 3


def test_a_learned_schedule_is_beside_the_best(drawn):
    figure = drawn(learned.learned_schedule, steps=300)
    left, right = figure.axes
    straight, found, best = (line.get_ydata() for line in left.lines)
    for line in (straight, found, best):
        np.testing.assert_allclose(line[[0, -1]], [8, -4], atol=1e-3)
    assert np.abs(found - best)[:950].max() < 0.2 < 3 < np.abs(straight - best).max()
    (_, rising), (_, even), (_, level) = (line.get_data() for line in right.lines)
    # The bound, the area below, is the same: (log(1 + std^2 e^8) - log(1 + std^2 e^-4)) / 2.
    area = (np.log1p(0.0625 * np.exp(8)) - np.log1p(0.0625 * np.exp(-4))) / 2
    for loss in (rising, even, level):
        assert np.mean(loss) == pytest.approx(area, rel=1e-5)
    assert np.ptp(level) < 1e-6 and np.abs(even[:-1] / area - 1).max() < 0.12 and np.ptp(rising) > 2 * area
    assert [text.get_text() for text in figure.legends[0].get_texts()][1] == "learned"


def test_a_toy_animation_goes_to_noise_and_back(tmp_path):
    model = kddpm.DiffusionModel(toy.MLP(width=8, depth=1), kd_schedules.cosine(6))
    theory.toy("moons", tmp_path / "moons.gif", model, count=40, frames=4)
    with Image.open(tmp_path / "moons.gif") as animation:
        assert animation.n_frames == 2 * 4  # the rest at each end is one long frame
        shots, durations = [], []
        for i in range(animation.n_frames):
            animation.seek(i)
            shots.append(np.asarray(animation.convert("RGB")).astype(int))
            durations.append(animation.info["duration"])
    assert durations[0] == 90 and durations[3] == 7 * 90 and durations[-1] >= 1200
    assert min(shot[-1].min() for shot in shots) == 255  # white
    side = shots[0].shape[1]
    coloured = [np.argwhere(np.ptp(shot, axis=-1) > 60) for shot in shots]
    spread = [np.ptp(where[:, 0]) / side for where in coloured]
    assert spread[0] < 0.3 < 0.6 < spread[3]  # the moons are low and wide, noise is not
    hues = {tuple(pixel) for pixel in shots[0][np.ptp(shots[0], axis=-1) > 100]}
    assert {(0, 114, 178), (230, 159, 0)} <= hues  # a colour each
    with pytest.raises(InputError, match="`plane` must be one of points, moons. Received: 'stars'"):
        theory.toy("stars", tmp_path / "stars.gif")


def test_few_colours_change_little():
    ramp = np.linspace(0, 1, 64)[:, np.newaxis, np.newaxis]
    blue, white = np.array([0, 114, 178]), np.array([255, 255, 255])
    shot = np.round(ramp * blue + (1 - ramp) * white).astype(np.uint8).repeat(4, axis=1)
    (few,) = style.few_colours([shot], ("#0072B2",))
    assert few.shape == shot.shape and len(np.unique(few.reshape(-1, 3), axis=0)) < 24
    assert np.array_equal(few[[0, -1]], shot[[0, -1]])
    assert np.abs(few.astype(int) - shot).max() < 40


def test_progressive_shows_what_is_decided_when(drawn):
    """Guesses sharpen, sisters become one, and at the data the picture half way is the one between."""
    grid = np.array(drawn(pictures.progressive, timesteps=(999, 399, 3)).axes).reshape(6, 4)
    shown = [[axes.images[0].get_array().astype(float) if axes.images else None for axes in row] for row in grid]
    assert grid[0, 1].get_title() == "t = 399" and grid[1, 0].get_ylabel()
    end = shown[1][3]
    errors = [np.abs(shown[1][k] - end).mean() for k in range(3)]
    assert errors[0] > errors[1] > errors[2]
    apart = [np.abs(shown[2][k] - shown[3][k]).mean() for k in range(3)]
    assert apart[0] > 20 and apart[2] < 10


# The command.


def run(*flags, cwd=ROOT):
    return python("-m", "kddpm.plots", *flags, cwd=cwd)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--only=schedules,loops"], "--only must be among schedules, learned, forward, toy_points, toy_moons, vae, "),
        (["--only="], "--only must be among "),
        (["--out=taken"], "--out must be a folder. Received: taken"),
        (["schedules"], "flags must begin with --. Received: schedules"),
    ],
)
def test_bad_flags_end_in_one_line_before_tensorflow_starts(flags, line, tmp_path):
    (tmp_path / "taken").touch()
    result = run(*flags, cwd=tmp_path)
    assert result.returncode == 2 and "TensorFlow" not in result.stdout
    assert result.stderr.startswith("plots: ") and line in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_help_explains_the_flags_and_every_figure():
    text = run("--help").stdout
    for word in ("--only", "--out", *__main__.FIGURES):
        assert word in text


def test_the_command_draws_what_it_is_asked_for(tmp_path):
    out = tmp_path / "figures"
    result = run("--only=schedules, forward", f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in out.iterdir()} == {"schedules.png", "forward.png"}
    assert "1/2 schedules ..." in result.stdout and f"{out / 'forward.png'}, " in result.stdout


def test_importing_the_room_defines_no_flags():
    """`train.py` draws its loss with it."""
    program = "from absl import flags; import kddpm.plots; print({'out', 'only'} & set(flags.FLAGS))"
    result = python("-c", program, cwd=ROOT)
    assert result.stdout == "set()\n", result.stderr


def test_a_long_run_does_not_gather_figures(tmp_path):
    rows = [{"step": str(step), "loss": "0.1"} for step in range(1, 9)]
    gc.collect()
    gc.disable()  # Python itself looks for them late
    try:
        for _ in range(4):
            runs.loss_curve(rows, tmp_path / "loss.png")
        assert sum(isinstance(each, Figure) for each in gc.get_objects()) <= 1
    finally:
        gc.enable()


def test_the_curve_of_distances_rings_the_lowest(tmp_path):
    rows = [
        {"step": 500 * i, "frechet": value, "frechet_standard_error": 0.1 * value}
        for i, value in enumerate((30.0, 4.0, 0.0, 0.6), start=1)
    ]
    for some in (rows[:1], rows):
        runs.frechet_curve(some, some[-1], tmp_path / "frechet.png")
        with Image.open(tmp_path / "frechet.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        red = np.array([int(style.RED[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels - red).max(axis=-1) < 40).sum() > 20
    assert [p.name for p in tmp_path.iterdir()] == ["frechet.png"]


def test_the_loss_curve_is_a_picture_for_any_number_of_rows(tmp_path):
    for count in (1, 2, 200):
        some = [{"step": str(i + 1), "loss": str(1 / (i + 1))} for i in range(count)]
        runs.loss_curve(some, tmp_path / "loss.png")
        with Image.open(tmp_path / "loss.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert (pixels != 255).any(axis=-1).mean() > 0.005
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
