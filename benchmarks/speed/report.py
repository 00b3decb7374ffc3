"""`results.md` and the table of README.md, from the figures in `results.json`. Needs nothing but Python."""

import math
import statistics

BUSY = 0.1  # share of the processor; where others use more, the page says so
HEAD = """# Speed

Written by `make bench`; [results.json](results.json) has every round, and [README.md](README.md) says how each figure
comes about; those of a GPU are [there](README.md#on-a-gpu). Figures are medians, in brackets the smallest and the
largest of the rounds. Ratios are taken round by round; above 1 the first is the faster one.
"""
BEGIN, END = "<!-- the table of benchmarks/speed -->\n", "<!-- end of the table -->\n"


def quote(page, found):
    """Put the summary into a page, between its markers."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + summary(found) + END + rest.split(END, 1)[1])


def text(found):
    """The page."""
    parts = [HEAD, _machines(found)]
    if "training" in found or "sampling" in found:
        parts.append("## In short\n\n" + summary(found))
    parts += [write(found[name], found) for name, write in SECTIONS.items() if name in found]
    return "\n".join(parts)


def summary(found):
    """The table that README.md quotes: kddpm's fastest form beside PyTorch's, losses included."""
    rows = []
    for what, group in _contests(found):
        ours, theirs = fastest(group, "kddpm"), fastest(group, "torch")
        if ours and theirs:
            rows.append([
                what, _named(ours), _named(theirs), spread(ratios(ours["rates"], theirs["rates"])),
                f"{ours['peak_gib'] / theirs['peak_gib']:.2f}",
            ])  # fmt: skip
    for case, times in _starts(found.get("startup", {})).items():
        ours, theirs = times["kddpm"], times["torch"]
        rows.append(
            [f"from start to first step, `{case}`", f"{ours:.1f} s", f"{theirs:.1f} s", f"{theirs / ours:.2f}", ""]
        )
    return table(["", "kddpm", "PyTorch", "ratio", "memory, kddpm's over PyTorch's"], rows)


def _contests(found):
    """(what, rows) of each case, where the highest `rates` win."""
    contests = {}
    for row in found.get("training", {}).get("rows", ()):
        contests.setdefault(f"training, `{row['case']}`, batch {row['batch']}", []).append(row)
    for row in found.get("sampling", {}).get("rows", ()):
        contests.setdefault(f"{row['sampler']}-{row['num_steps']}, `{row['case']}`", []).append(row)
    return contests.items()


def _starts(startup):
    """{case: {program: seconds}} of the form that starts soonest, with nothing compiled beforehand."""
    found = {}
    for row in startup.get("rows", ()):
        if row["compiled_before"] == "nothing":
            program = "torch" if row["form"].startswith("PyTorch") else "kddpm"
            seconds, best = statistics.median(row["seconds"]["all"]), found.setdefault(row["case"], {})
            best[program] = min(best.get(program, seconds), seconds)
    return {case: best for case, best in found.items() if len(best) == 2}


def _named(row):
    form = row["form"].partition(" ")[2] or _chosen(row)
    return f"{rounded(statistics.median(row['rates']))}/s{f', {form}' if form else ''}"


def _chosen(row):
    """What a step of kddpm as it comes is computed in; "" where that is not known."""
    return f"{row['precision']}{' XLA' if row['is_xla'] else ''}" if "precision" in row else ""


def _machines(found):
    """A line for each question: commands and dates; and the machine, once where it is the same for all."""
    lines, machines = [], {}
    for name, question in found.items():
        machine, versions = question["machine"], question["machine"]["versions"]
        features = ", ".join(f"{feature} {'yes' if has else 'no'}" for feature, has in machine["features"].items())
        packages = ", ".join(f"{p} {v}" for program in versions.values() for p, v in program.items() if p != "numpy")
        about = (
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB; {features}. "
            f"{machine['system']}; {packages}."
        )
        machines.setdefault(about, []).append(name)
        busy = f", others used {100 * machine['busy']:.0f} % of the machine" if machine["busy"] > BUSY else ""
        quick = ", quick: not for figures" if question["quick"] else ""
        lines.append(
            f"- {name}: `{question['command']}`, {question['date']}, {question['minutes']:.0f} minutes{busy}{quick}"
        )
    for about, names in machines.items():
        lines.append(f"\n{'' if len(machines) == 1 else ', '.join(names) + ': '}{about}")
    return "\n".join(lines) + "\n"


def training(question, found):
    """Images/s, the way to the first step and memory; with the share of the ceiling where that was measured."""
    parts, operations = ["## Training step\n"], found.get("ceiling", {}).get("operations", {})
    for case in order(row["case"] for row in question["rows"]):
        rows = [row for row in question["rows"] if row["case"] == case]
        best, lines = fastest(rows, "torch"), []
        for row in rows:
            rate, share = statistics.median(row["rates"]), ""
            if case in operations and (peak := _ceiling(found["ceiling"], row)):
                share = f"{3 * rate * operations[case] / peak:.2f}"
            ratio = spread(ratios(row["rates"], best["rates"])) if best else ""
            form = f"kddpm: {_chosen(row)}" if row["form"] == "kddpm" else row["form"]
            lines.append([
                form, spread(row["rates"]), ratio, f"{row['first_step_s']:.1f} s", f"{row['peak_gib']:.2f} GiB",
                f"{row['peak_gib'] - row['imported_gib']:.2f} GiB", share,
            ])  # fmt: skip
        head = ["", "images/s", "over PyTorch's best", "first step", "peak memory", "beyond imports", "share"]
        parts += [f"`{case}`, {rows[0]['parameters']:,} parameters, batch {rows[0]['batch']}:\n", table(head, lines)]
    return "\n".join(parts)


def _ceiling(ceiling, row):
    """The most operations/s that an operator reaches in the precision of a row."""
    rates = [statistics.median(each["rates"]) for each in ceiling["rows"] if each["precision"] == row["precision"]]
    return max(rates, default=None)


def sampling(question, found):
    """Pictures/s, and what a step costs at batch 1."""
    parts = ["## Sampling\n"]
    for what, rows in _contests({"sampling": question}):
        best = fastest(rows, "torch")
        lines = [
            [row["form"], spread(row["rates"]), spread(ratios(row["rates"], best["rates"])) if best else "",
             f"{row['peak_gib']:.2f} GiB"]
            for row in rows
        ]  # fmt: skip
        head = ["", "pictures/s", "over diffusers' best", "peak memory so far"]
        parts += [f"{what}, {rows[0]['batch']} pictures:\n", table(head, lines)]
    lines = [
        [f"`{row['case']}`, {row['form']}", spread(row["step_ms"]), spread(row["network_ms"]),
         rounded(statistics.median(row["step_ms"]) - statistics.median(row["network_ms"]))]
        for row in question["overhead"]
    ]  # fmt: skip
    head = ["batch 1", "a step of DDIM, ms", "the network alone, ms", "between them, ms"]
    return "\n".join([*parts, table(head, lines)])


def startup(question, found):
    """Seconds of each phase, and of commands."""
    names = list(question["rows"][0]["seconds"]) if question["rows"] else []
    lines = [
        [f"`{row['case']}`, {row['form']}", row["compiled_before"], *map(spread, row["seconds"].values())]
        for row in question["rows"]
    ]
    commands = [[f"`{name}`", spread(seconds)] for name, seconds in question["commands"].items()]
    return "\n".join([
        "## Start-up\n\nSeconds from the start of Python to the end of the first training step.\n",
        table(["", "compiled before", *names], lines), table(["", "seconds"], commands),
    ])  # fmt: skip


def ceiling(question, found):
    """Operations/s of single operators."""
    columns = order((row["precision"], row["program"]) for row in question["rows"])
    cells = {(row["what"], row["precision"], row["program"]): row["rates"] for row in question["rows"]}

    def giga(what, column):
        return spread([rate / 1e9 for rate in cells[what, *column]]) if (what, *column) in cells else ""

    lines = [
        [what, *(giga(what, column) for column in columns)] for what in order(row["what"] for row in question["rows"])
    ]
    return "\n".join([
        "## The ceiling\n\nGFLOP/s of single operators. The share of a training step above is of the most in its "
        "precision, with three\ntimes the operations of a forward pass.\n",
        table(["", *(f"{program}, {precision}" for precision, program in columns)], lines),
    ])  # fmt: skip


def inputs(question, found):
    """Images/s of each kind of data set, beside what training takes, and how long training waits."""
    lines = [[row["kind"], rounded(row["load"]), spread(row["stream"])] for row in question["rows"]]
    waits = [
        [f"`{row['case']}`, {row['place']}", spread([100 * share for share in row["shares"]], 2)]
        for row in question["waiting"]
    ]
    return "\n".join([
        "## Input\n\nImages/s of pictures of 32x32x3 (`digits`: 8x8x1): to load them at the start, and in batches.\n",
        table(["", "load", "batches"], lines),
        "Training waits so long, in % of its time; below 0 is noise.\n", table(["", "%"], waits),
    ])  # fmt: skip


def growth(question, found):
    """Time and memory of each point, and bits per dimension."""
    lines = [
        [row["axis"].replace("_", " "), f"{row['value']:,}", spread(row["ms"]),
         f"{row['peak_gib']:.2f} GiB" if "peak_gib" in row else "", _giga_a_second(row)]
        for row in question["rows"]
    ]  # fmt: skip
    axes = [
        [row for row in question["rows"] if row["axis"] == axis] for axis in order(r["axis"] for r in question["rows"])
    ]
    times = [_times(rows) for rows in axes if "operations" in rows[0]]
    bits = [[f"`{row['case']}`, {row['terms']:,} terms", f"{row['seconds']:.2f} s"] for row in question["bits"]]
    return "\n".join([
        "## Growth\n\n![Time and memory of a training step](figures/growth.png)\n\n"
        "Dashed: the operations of the network at the rate of the best point.\n",
        table(["from the smallest to the largest", "operations, times", "time, times", "memory, times"], times),
        table(["", "", "ms a step", "peak memory", "GFLOP/s"], lines),
        table(["bits per dimension", "an image"], bits),
    ])  # fmt: skip


def _times(rows):
    """How many times as much the last point of an axis is as the first."""
    first, last = rows[0], rows[-1]
    work, seconds, memory = (
        rounded(of(last) / of(first))
        for of in (
            lambda row: row["operations"] * row["batch"],
            lambda row: statistics.median(row["ms"]),
            lambda row: row["peak_gib"],
        )
    )
    return [f"{first['axis'].replace('_', ' ')}, {first['value']:,} to {last['value']:,}", work, seconds, memory]


def _giga_a_second(row):
    """GFLOP/s of a training step, of three times the operations of a forward pass; "" where they were not counted."""
    if "operations" not in row:
        return ""
    return rounded(3 * row["operations"] * row["batch"] / statistics.median(row["ms"]) / 1e6)


SECTIONS = {
    "training": training,
    "sampling": sampling,
    "startup": startup,
    "ceiling": ceiling,
    "inputs": inputs,
    "growth": growth,
}


def fastest(rows, program):
    """The row of a program with the highest median rate, or None."""
    mine = [row for row in rows if row["form"].startswith("PyTorch" if program == "torch" else program)]
    return max(mine, key=lambda row: statistics.median(row["rates"]), default=None)


def ratios(ours, theirs):
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(figures, digits=3):
    """The median with the smallest and the largest, as text."""
    low, middle, high = (rounded(f(figures), digits) for f in (min, statistics.median, max))
    return middle if len(figures) == 1 else f"{middle} ({low} to {high})"


def rounded(figure, digits=3):
    """A number with that many digits, or all of those before the point where these are more."""
    if not figure:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{figure:.{digits}g}"))))
    return f"{figure:,.{max(0, digits - 1 - exponent)}f}"


def order(names):
    """Each name once, in the order of its first."""
    return list(dict.fromkeys(names))


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
