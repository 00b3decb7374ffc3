"""The progress bar of all long work."""

import sys

from tqdm.auto import tqdm


def bar(total: int, text: str | None, unit: str, shown: bool | str = True, **kwargs) -> tqdm:
    """Return a progress bar on stderr; if that is not a terminal, it prints a line every 20 seconds.

    Args:
        total: number of units.
        text: what is being done.
        unit: name of a unit.
        shown: True, False, or "auto" = only after two seconds.
        **kwargs: further arguments of tqdm.
    """
    return tqdm(
        total=total,
        desc=text,
        unit=unit,
        delay=2 if shown == "auto" else 0,
        disable=not shown,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        file=sys.stderr,
        **kwargs,
    )
