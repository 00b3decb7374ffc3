"""How far are the pictures of a solver from the exact ones, by spacing and number of network calls?

    python benchmarks/solvers.py                                  # data with a known best network, some seconds
    python benchmarks/solvers.py --run_dir=runs/digits            # a trained network, some minutes

The first prints the root mean square distance between what a solver makes of a noise and what the probability-flow ODE
makes of it, for data whose best network and quantiles are known; in one dimension the ODE leads quantiles to quantiles.
With churn the samples are sorted before they are compared. The second takes 300 steps of Heun with quadratic
spacing for the exact pictures of a trained network.
"""

import argparse
import math
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the project beside this script, installed or not

from kddpm.sampling import samplers
from kddpm.theory import schedules
from kddpm.theory.parametrization import Objective

SOLVERS = ("ddim", "dpm_solver", "heun")
CALLS = (5, 10, 20, 40)
STEPS = (5, 10, 20, 50)
SCHEDULES = ("linear", "cosine", "sigmoid")
DATA = {"N(0.1, 0.3^2)": ({0.1: 1.0}, 0.3), "two modes": ({-0.6: 0.3, 0.4: 0.7}, 0.05)}
POINTS, CHURNED_POINTS = 2000, 20_000
CHURNS, CHURNED_CALLS = (0.0, 10.0, 40.0), (20, 40, 80, 160)
PICTURES = 300
REFERENCE_STEPS = 300


def quantiles(modes, std, points=POINTS):
    """Quantiles of a mixture of normals {mean: weight}, (points,)."""
    grid = np.linspace(-4, 4, 200_001)
    below = sum(w * (1 + np.vectorize(math.erf)((grid - mean) / std / math.sqrt(2))) / 2 for mean, w in modes.items())
    return np.interp((np.arange(points) + 0.5) / points, below, grid)


def best_x0(schedule, modes, std):
    """The best x_0(x_t, t) for data from that mixture."""
    means, weights = (np.array(list(column)) for column in (modes.keys(), modes.values()))

    def predict(x, t):
        alpha_bar = schedule.alpha_bars[t]
        variance, apart = alpha_bar * std**2 + 1 - alpha_bar, x[:, np.newaxis] - math.sqrt(alpha_bar) * means
        logits = np.log(weights) - apart**2 / (2 * variance)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        x_0 = means + math.sqrt(alpha_bar) * std**2 / variance * apart
        return (shares * x_0).sum(axis=1) / shares.sum(axis=1)

    return predict


def walked(predict, table, x):
    """The picture at the end of a table that predicts x_0, in float64."""
    rows, memory, rng = table.rows, x, np.random.default_rng(0)
    for i, t in enumerate(table.timesteps):
        x_0 = np.clip(predict(x, t), -1, 1)
        after = rows.from_x0[i] * x_0 + rows.from_xt[i] * x
        if table.has_memory:
            after = after + rows.from_memory[i] * memory
            memory = rows.memory_from_x0[i] * x_0 + rows.memory_from_xt[i] * x + rows.memory_from_memory[i] * memory
        x = after + rows.noise_std[i] * rng.normal(size=x.shape) if rows.noise_std[i] else after
    return x


def rms(x, exact):
    """Root mean square distance."""
    return float(np.sqrt(np.mean((x - exact) ** 2)))


def steps_of(name, calls):
    """The most steps of a solver in that many network calls."""
    return (calls + 1) // 2 if name == "heun" else calls


def table_of(title, columns, cell):
    """Print a table with a row for each solver and spacing, the solver's own spacing in bold."""
    print(f"{title}\n\n| | {' | '.join(str(column) for column in columns)} |\n|---|{'---|' * len(columns)}")
    for name in SOLVERS:
        for spacing in schedules.SPACINGS:
            sampler = samplers.by_name(name, spacing=spacing)
            row = f"`{name}`, {spacing}"
            row = f"**{row}**" if sampler == samplers.by_name(name) else row
            print(f"| {row} | {' | '.join(f'{cell(sampler, column):.3f}' for column in columns)} |", flush=True)
    print()


def closed_form():
    """Print the tables of data whose best network is known."""
    noise = quantiles({0.0: 1.0}, 1.0)
    for title, (modes, std) in DATA.items():
        exact = quantiles(modes, std)
        for schedule_name in SCHEDULES:
            schedule = schedules.by_name(schedule_name)
            predict = best_x0(schedule, modes, std)

            def sample(sampler, steps, schedule=schedule, predict=predict):
                return walked(predict, samplers.step_table(sampler, schedule, steps, Objective("x0")), noise)

            def error(sampler, calls, sample=sample, exact=exact):
                return rms(sample(sampler, steps_of(samplers.name_of(sampler), calls)), exact)

            if len(modes) == 1:
                table_of(
                    f"{title}, {schedule_name}: std against steps",
                    STEPS,
                    lambda s, n, sample=sample: sample(s, n).std(),
                )
            table_of(f"{title}, {schedule_name}: error against network calls", CALLS, error)


def churned():
    """Print the errors of Heun with churn, for the best network and for one that is wrong where noise rules."""
    title, (modes, std) = next(iter(DATA.items()))
    noise, exact = (quantiles(*given, CHURNED_POINTS) for given in (({0.0: 1.0}, 1.0), (modes, std)))
    schedule = schedules.by_name("cosine")
    best, is_noise = best_x0(schedule, modes, std), schedule.log_sigmas > 0
    networks = {"best": best, "wrong": lambda x, t: best(x, t) / (2 if is_noise[t] else 1)}
    columns = [(name, calls) for name in networks for calls in CHURNED_CALLS]
    print(f"{title}, cosine\n\n| churn | {' | '.join(f'{name}, {calls}' for name, calls in columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for churn in CHURNS:
        sampler, cells = samplers.Heun(churn=churn), []
        for name, calls in columns:
            table = samplers.step_table(sampler, schedule, steps_of("heun", calls), Objective("x0"))
            cells.append(f"{rms(np.sort(walked(networks[name], table, noise)), exact):.3f}")
        print(f"| {churn:.0f} | {' | '.join(cells)} |", flush=True)


def trained(run_dir):
    """Print the table of a trained run."""
    from kddpm.runs import build
    from kddpm.sampling import generation

    denoiser = build.load_run(run_dir).denoiser

    def sample(sampler, steps):
        seeds = np.arange(PICTURES, dtype=np.int32)
        floats, _ = generation.paint(denoiser, denoiser.steps(sampler, steps), seeds, batch_size=PICTURES)
        return np.clip(floats, -1, 1)

    exact = sample(samplers.Heun(spacing="quadratic"), REFERENCE_STEPS)
    table_of(
        f"{run_dir}: error against network calls",
        CALLS,
        lambda sampler, calls: rms(sample(sampler, steps_of(samplers.name_of(sampler), calls)), exact),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run_dir", help="a run of train.py, without classes")
    arguments = parser.parse_args()
    if arguments.run_dir:
        trained(arguments.run_dir)
    else:
        closed_form()
        churned()


if __name__ == "__main__":
    main()
