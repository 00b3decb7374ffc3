"""Progress of long work: one kind of bar for all of it."""

import sys

from tqdm.auto import tqdm


def bar(total: int, text: str | None, unit: str, shown: bool | str = True, **kwargs) -> tqdm:
    """A progress bar on stderr; where that is no terminal but a log, a line every 20 seconds.

    Args:
        total: number of units.
        text: what is being done.
        unit: its name.
        shown: True, False, or "auto" = once it has taken two seconds.
        **kwargs: of tqdm.
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
