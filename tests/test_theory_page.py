"""docs/theory.md: what it names exists, what it shows is there, what it quotes is so."""

import importlib
import re

import numpy as np
import pytest
from helpers import normal_pixels
from helpers.places import ROOT
from matplotlib.mathtext import MathTextParser

from kddpm import toy
from kddpm.plots import __main__, theory
from kddpm.sampling import samplers
from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.parametrization import Objective

DOCS = ROOT / "docs"
PAGE = (DOCS / "theory.md").read_text()
BLOCKS = re.findall(r"^```math\n((?:(?!```).*\n)+)```\n(.*)$", PAGE, re.MULTILINE)
PROSE = re.sub(r"^```math\n(?:(?!```).*\n)+```\n", "", PAGE, flags=re.MULTILINE)
TEXT, REFERENCES = " ".join(PROSE.split("## References")[0].split()), PROSE.split("## References")[1]
INLINE = re.findall(r"\$([^$]+)\$", PROSE)
linear = schedules.linear(1000)


def named(dotted):
    """The object of a dotted name; the longest importable prefix is a module."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


def equations(body):
    """The equations of a block, a line each: the rows of an `aligned`, or all of it."""
    body = body.strip()
    if body.startswith(r"\begin{aligned}"):
        body = body.removeprefix(r"\begin{aligned}").removesuffix(r"\end{aligned}")
    return [row.replace("&", "").replace("\n", " ").strip() for row in body.split("\\\\\n")]


def test_every_equation_has_a_number_and_a_function():
    assert len(BLOCKS) == PAGE.count("```math") == PAGE.count("```") / 2 > 25
    for number, (_, below) in enumerate(BLOCKS, 1):
        assert below.startswith(f"({number}) "), f"below equation {number}: {below}"
        assert re.search(r"`kddpm\.[a-z_]+\.\w[\w.]*`", below), f"equation {number} names no function: {below}"


@pytest.mark.parametrize("dotted", sorted(set(re.findall(r"`(kddpm\.[\w.]+)`", PAGE))))
def test_what_is_named_exists(dotted):
    assert callable(named(dotted))


def test_every_choice_of_the_package_is_explained():
    for sampler in samplers.BY_NAME.values():
        assert f"`kddpm.samplers.{sampler.__name__}.rows`" in PAGE
    for name in parametrization.PREDICTIONS:
        assert f"| `{name}` |" in PAGE
    for name in (*parametrization.WEIGHTINGS, "small", "large"):
        assert f'"{name}"' in PAGE


@pytest.mark.parametrize("equation", [row for body, _ in BLOCKS for row in equations(body)] + sorted(set(INLINE)))
def test_equations_are_well_formed(equation):
    width, *_ = MathTextParser("path").parse(f"${equation}$")  # an error where it is not
    assert width > 0


@pytest.mark.parametrize("equation", sorted(set(INLINE)))
def test_formulas_in_a_line_survive_markdown(equation):
    """Markdown reads backslashes before punctuation, and underscores after it, before it reads mathematics."""
    assert "\n" not in equation
    assert not re.search(r"\\[^A-Za-z]", equation) and "}_" not in equation and "*" not in equation


def test_formulas_in_a_line_stand_apart():
    """GitHub looks for mathematics between a dollar after a space or bracket and a dollar before one, or a stop."""
    for line in PROSE.splitlines():
        assert line.count("$") % 2 == 0, line
        for opening, closing in re.findall(r"(^|.)\$[^$]+\$(.|$)", line):
            assert opening in "( -" and closing in ") ,.:;?-", line


def test_numbers_of_equations_and_sections_exist():
    sections = re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE)
    assert sections == [str(i) for i in range(1, len(sections) + 1)]
    assert set(re.findall(r"section (\d+)", TEXT)) <= set(sections)
    cited = {int(number) for number in re.findall(r"\((\d{1,2})\)", TEXT)}
    assert cited == set(range(1, len(BLOCKS) + 1))


def test_pictures_and_links_exist():
    pictures = re.findall(r"!\[(.+?)\]\((.*?)\)", PAGE)
    assert {path for _, path in pictures} == {f"figures/{file}" for file, _ in __main__.FIGURES.values()}
    assert all(len(text) > 20 for text, _ in pictures)
    for path in re.findall(r"\]\((.*?)\)", PAGE):
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", path) or (DOCS / path).is_file(), path
    for name, number in re.findall(r"\[arXiv:(.*?)\]\(https://arxiv.org/abs/(.*?)\)", PAGE):
        assert name == number


def test_figures_are_small():
    files = list((DOCS / "figures").iterdir())
    assert {file.name for file in files} == {file for file, _ in __main__.FIGURES.values()}
    assert sum(file.stat().st_size for file in files) < 1.5e6


def test_citations_and_references_are_the_same():
    work = r"[A-Z][\w-]+(?: et al\.| & [A-Z]\w+)? \(?(?:19|20)\d\d[ab]?\b"
    cited = {found.replace("(", "") for found in re.findall(work, TEXT)}
    listed = re.findall(rf"^- ({work})\. ", REFERENCES, re.MULTILINE)
    assert cited == set(listed)
    assert len(listed) == len(REFERENCES.strip().splitlines())
    keys = [(name.split()[0], name.split()[-1]) for name in listed]
    assert keys == sorted(keys)


def test_lines_are_short():
    for line in PAGE.splitlines():
        assert len(line) <= 120 or line.startswith(("| ", "- ")), line


# What it quotes.


def test_quotes_about_the_linear_schedule():
    assert "by 10 in all on the linear schedule" in TEXT
    assert round(linear.betas.sum()) == 10
    assert "spends its last third on the last tenth of the signal" in TEXT
    assert np.sqrt(linear.alpha_bars[667]) == pytest.approx(0.1, abs=0.006)
    assert "by a factor of 2.2 at t = 1 and by less than 2 % from t = 100" in TEXT
    ratio = linear.betas[1:] / linear.posterior_variances[1:]
    assert round(ratio[0], 1) == 2.2 and 1 < ratio[99:].max() < 1.02
    assert "falls from 0.6 at t = 1 to 0.01 at t = 100 and stays near there" in TEXT
    weights = parametrization.loss_weights(linear, Objective("eps", "vlb", "small"))
    assert round(weights[1], 1) == 0.6 and round(weights[100], 2) == 0.01
    assert np.all((weights[100:] > 0.0045) & (weights[100:] < 0.011))


@pytest.mark.parametrize("name", schedules.BY_NAME)
def test_identities_between_tables(name):
    """Equation (17), its second form, and the half of (24) from (22) and (23)."""
    schedule = schedules.by_name(name, 100)
    snr = schedule.alpha_bars / schedule.one_minus_alpha_bars
    weights = parametrization.loss_weights(schedule, Objective("x0", "vlb", "small"))
    np.testing.assert_allclose(weights[1:], (snr[:-1] - snr[1:]) / 2, rtol=1e-9)
    beta, alpha, variance = schedule.betas[1:], schedule.alphas[1:], schedule.posterior_variances[1:]
    before, lost = schedule.one_minus_alpha_bars_prev[1:], schedule.one_minus_alpha_bars[1:]
    halves = beta**2 / (2 * variance * alpha) * (alpha * before / (beta * lost))
    np.testing.assert_allclose(halves, 0.5, rtol=1e-9)


def test_quotes_about_gaussian_pixels():
    assert "more than a third of the bits lie in $L_0$, two thirds in the first 10 terms of 1000, and 97 %" in TEXT
    result = theory.gaussian_bits()
    shares = np.cumsum(result.terms) / result.total
    assert 0.34 < shares[0] < 0.38 and shares[9] == pytest.approx(2 / 3, abs=0.02)
    assert shares[99] == pytest.approx(0.97, abs=0.006)
    for excess in ("0.73 bits per dimension with", "0.12 with", "0.00 with the exact"):  # held by toy/test_gaussians.py
        assert f"by {excess}" in TEXT


def test_quotes_about_rate_and_distortion():
    assert "2 of the 6.7 bits leave an error of about 6 grey levels" in TEXT
    result = theory.gaussian_bits()
    assert result.total == pytest.approx(6.7, abs=0.1)
    assert round(np.interp(2, result.rates[::-1], result.distortions[::-1])) == round(127.5 * 0.2 / 2**2) == 6


def test_quotes_about_fewer_steps():
    assert "by 0.17, 0.12 and 0.13 bits in 30, 100 and 1000 steps with $\\beta_t$" in TEXT
    assert "and by 0.64, 1.06 and 0.77 with $\\tilde\\beta_t$" in TEXT
    probabilities = normal_pixels.pixel_probabilities(0.2, 0.3)
    for variance, excess in (("large", (0.17, 0.12, 0.13)), ("small", (0.64, 1.06, 0.77))):
        for steps, expected in zip((30, 100, 1000), excess, strict=True):
            schedule = linear.respace(schedules.timestep_grid(linear, steps))
            line = normal_pixels.best_line(schedule.alpha_bars)
            nats = normal_pixels.closed_form_nats(schedule, *line, variance).sum(axis=1) + np.log(probabilities)
            assert probabilities @ nats / np.log(2) == pytest.approx(expected, abs=0.006)


def test_quotes_about_estimators():
    """1,000 draws know a variance to 5 %, 100 trajectories to 15 %, their tails included; the ratios are 20 and 25."""
    assert "with a network that is 5 % off" in TEXT
    assert "about 20 times less variance at T = 100 than either of the others" in TEXT
    gradient = {name: row[1] for name, row in toy.estimator_variances(100, 1000, error=0.05).items()}
    assert 12 < gradient["pair"] / gradient["one_sample"] < 35
    assert 12 < 100 * gradient["trajectory"] / gradient["one_sample"] < 40


def test_quotes_about_two_points():
    quoted = r"$4.5 \cdot 10^{-3}$, $1.1 \cdot 10^{-4}$ and $1.6 \cdot 10^{-7}$ nats at $\beta_t$ = 0.5, 0.1 and 0.01"
    assert quoted in TEXT
    assert [f"{toy.gaussian_gap_nats(beta, 0.5):.1e}" for beta in (0.5, 0.1, 0.01)] == ["4.5e-03", "1.1e-04", "1.6e-07"]


def test_the_network_has_as_many_weights_as_it_says():
    assert f"a network of {round(toy.MLP().count_params(), -3):,} weights" in TEXT


def test_nothing_public_of_the_mathematics_is_left_out():
    """Every public function of `objectives` that is an equation stands on the page."""
    left_out = {"mean_squared_error"}  # arithmetic
    public = {
        name for name, value in vars(objectives).items() if getattr(value, "__module__", "") == objectives.__name__
    }
    for name in public - left_out:
        assert name.startswith("_") or f"`kddpm.objectives.{name}`" in PAGE, name
