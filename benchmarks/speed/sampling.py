"""How many pictures a second are painted, and what does a step cost beside the network?

    .venv/bin/python benchmarks/speed/sampling.py --cases=digits,mnist --rounds=5

64 pictures by DDIM in 50 steps and by ancestral sampling in 250, kddpm's `generate` beside the `DDIMPipeline` and
`DDPMPipeline` of diffusers around an equal `UNet2DModel`. What compiles has done so before the first turn. At batch 1
the network is called alone as well: what a step of DDIM takes longer than that is the program around it.
"""

import contextlib

import cases
import contestants
import report
import results

from kddpm.cli import commands

PICTURES = 64
DDIM, ANCESTRAL = ("ddim", 50), ("ancestral", 250)
SAMPLERS = {"digits": (DDIM, ANCESTRAL), "mnist": (DDIM, ANCESTRAL), "mobile32": (DDIM, ANCESTRAL)}
FEWER = {("mnist", "ancestral"): 8, ("mobile32", "ancestral"): 4}  # pictures, where 64 would take minutes
CALLS, ONE_BY_ONE = 50, 4  # of the network alone, as many as there are steps; pictures at batch 1


def measure_case(case, forms, network, python, rounds):
    """All forms in turns; returns the rows of `painted` and of `overhead`."""
    running, rows = {}, []
    with contextlib.ExitStack() as stack:
        for form in forms:
            made_of = {**network, **form.options} if form.program == "torch" else cases.described(case, form)
            contestant = stack.enter_context(cases.start(form, python))
            try:
                contestant.ask("prepare_sampling", **made_of)
            except contestants.Failure as failure:
                print(f"  {failure}", flush=True)
            else:
                running[form.name] = contestant
        for sampler, num_steps in SAMPLERS.get(case.name, (DDIM,)):
            pictures = FEWER.get((case.name, sampler), PICTURES)
            rows += painted(case, running, pictures, sampler, num_steps, rounds)
        return rows, overhead(case, running, rounds)


def painted(case, running, pictures, sampler, num_steps, rounds):
    """Pictures/s of one sampler; returns a row for each form."""
    print(f" {pictures} pictures, {sampler} in {num_steps} steps", flush=True)
    how = {"batch": pictures, "sampler": sampler, "num_steps": num_steps}
    running = warmed_up(running, how)
    rows = []
    for name, rates in results.in_turns(asking(running, "sample", {"pictures": pictures, **how}), rounds).items():
        peak = running[name].ask("peak_gib")
        rows.append({"case": case.name, "form": name, **how, "rates": rates, "peak_gib": peak})
        print(f"  {name:34s}{report.spread(rates):>28s} pictures/s   {peak:5.2f} GiB", flush=True)
    return rows


def overhead(case, running, rounds):
    """Milliseconds at batch 1 of a step of DDIM, and of a call of the network; returns a row for each form."""
    how = {"batch": 1, "sampler": "ddim", "num_steps": CALLS}
    running = warmed_up(running, how)
    alone = results.in_turns(asking(running, "network_ms", {"batch": 1, "calls": CALLS}), rounds)
    painting = results.in_turns(asking(running, "sample", {"pictures": ONE_BY_ONE, **how}), rounds)
    rows = []
    print(" batch 1, ms a step: DDIM, the network alone", flush=True)
    for name in (name for name in painting if name in alone):
        step = [1e3 / rate / CALLS for rate in painting[name]]
        rows.append({"case": case.name, "form": name, "step_ms": step, "network_ms": alone[name]})
        print(f"  {name:34s}{report.spread(step):>28s}{report.spread(alone[name]):>28s}", flush=True)
    return rows


def warmed_up(running, how):
    """The contestants that can paint so, once they have done it."""
    return {name: running[name] for name in results.in_turns(asking(running, "warm_up", how), 1)}


def asking(running, method, arguments):
    """{name: function that asks this contestant}."""
    return {name: lambda it=it: it.ask(method, **arguments) for name, it in running.items()}


def measure():
    """The question's figures."""
    python, chosen = results.python(), results.chosen_cases(*SAMPLERS)
    forms = [form for form in cases.FORMS.values() if form.program != "keras"]  # Keras has no samplers
    networks, found = cases.networks(chosen, python), {"rows": [], "overhead": []}
    for case in chosen:
        print(f"\n{case.name}", flush=True)
        network = networks[case.name]
        rows, steps = measure_case(case, results.chosen_forms(case, forms), network, python, results.rounds(2))
        found["rows"] += rows
        found["overhead"] += steps
    return found


if __name__ == "__main__":
    commands.run(lambda: results.run("sampling", measure))
