"""How many images a second does a training step take in, in what memory, and how long is the way to the first?

    .venv/bin/python benchmarks/speed/training.py --cases=digits,mnist --rounds=5
    .venv/bin/python benchmarks/speed/training.py --cases=mnist --only=XLA,compiled --quick

kddpm beside PyTorch and beside the same network of Keras's own layers. All take the same step: a batch of uint8 images
becomes floats, t, noise and dropout are drawn, the gradients are clipped by their norm, Adam and an average of the
weights follow. Only kddpm's can be resumed bit for bit, and leaves out steps that are not finite. A turn of a
contestant is as many steps as last about --seconds. Memory is the process's high-water mark.
"""

import contextlib
import functools

import cases
import contestants
import report
import results

from kddpm.cli import commands


def arguments_of(case, form, architecture):
    """The arguments of `prepare_training`."""
    if form.program != "torch":
        made_of = {"architecture": architecture} if form.program == "keras" else {}
        return {**cases.described(case, form), **made_of}
    config = case.config()
    names = ("batch_size", "learning_rate", "clip_norm", "ema_momentum", "dropout")
    training = {name: getattr(config, name) for name in names}
    training["alpha_bars"] = config.noise_schedule.alpha_bars.tolist()
    return {"architecture": architecture, "training": training, **form.options}


def start(case, contestant, form, architecture):
    """Let a contestant take its first steps; returns its row."""
    first = contestant.ask("prepare_training", **arguments_of(case, form, architecture))
    rate = contestant.ask("train", steps=2)  # not counted: the first steps still allocate
    row = {"case": case.name, "form": form.name, "program": form.program, "batch": case.config().batch_size}
    return row | {"first_step_s": first["ends"]["step"], **first, "estimate": rate}


def measure_case(case, forms, architecture, python, rounds, seconds):
    """All forms in turns; returns a row for each, with the images/s of each round."""
    rows, turns, running = {}, {}, {}
    with contextlib.ExitStack() as stack:
        for form in forms:
            running[form.name] = stack.enter_context(cases.start(form, python))
            try:
                row = rows[form.name] = start(case, running[form.name], form, architecture)
            except contestants.Failure as failure:
                print(f"  {failure}", flush=True)
                continue
            print(f"  {form.name}: first step after {row['first_step_s']:.1f} s", flush=True)
            steps = max(2, round(seconds * row.pop("estimate") / row["batch"]))
            turns[form.name] = functools.partial(running[form.name].ask, "train", steps=steps)
        for name, rates in results.in_turns(turns, rounds).items():
            rows[name] |= {"rates": rates, "peak_gib": running[name].ask("peak_gib")}
            print_row(rows[name])
    return [row for row in rows.values() if "rates" in row]


def print_row(row):
    print(
        f"  {row['form']:34s}{report.spread(row['rates']):>28s} images/s   first step {row['first_step_s']:5.1f} s"
        f"   {row['peak_gib']:5.2f} GiB",
        flush=True,
    )


def measure():
    """The question's figures."""
    python, chosen = results.python(), results.chosen_cases(*cases.CASES)
    networks, rows = cases.networks(chosen, python), []
    for case in chosen:
        forms = results.chosen_forms(case, cases.FORMS.values())
        print(f"\n{case.name}, batch {case.config().batch_size}", flush=True)
        found = measure_case(
            case, forms, networks[case.name]["architecture"], python, results.rounds(4), results.seconds(2.0)
        )
        rows += found
        print_ratio(found)
    return {"rows": rows}


def print_ratio(rows):
    """The fastest of kddpm over the fastest of PyTorch, round by round."""
    ours, theirs = report.fastest(rows, "kddpm"), report.fastest(rows, "torch")
    if ours and theirs:
        ratios = report.ratios(ours["rates"], theirs["rates"])
        print(f"  {ours['form']} over {theirs['form']}: {report.spread(ratios)}", flush=True)


if __name__ == "__main__":
    commands.run(lambda: results.run("training", measure))
