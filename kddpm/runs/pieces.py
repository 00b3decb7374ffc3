"""Arrays of many pictures in files of a few hundred each, so that what was interrupted goes on and what is known stays.

    FOLDER/<hash of what they are>/0000256_256.npz     rows 256 .. 511

A file that is damaged, or too short, is made again.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kddpm.base import archives
from kddpm.base.files import replacing
from kddpm.base.version import __version__
from kddpm.data import npz_files
from kddpm.distribution import workers

ROWS = 256  # of a file


class Pieces:
    """Rows of arrays, made a piece at a time.

    Args:
        folder: where the files are.
        facts: JSON values that are equal whenever the rows would be, of this version of kddpm.
        kinds: {name: (shape of a row, dtype)} of the arrays.
        strategy: of the workers that make them together; only the chief writes.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        facts: dict,
        kinds: Mapping[str, tuple[tuple[int, ...], str]],
        strategy: tf.distribute.Strategy,
    ):
        key = hashlib.sha256(json.dumps([__version__, facts, dict(kinds)], sort_keys=True).encode()).hexdigest()
        self._folder, self._kinds, self._strategy = folder / key[:16], kinds, strategy

    def get(self, count: int, make: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the first `count` rows, up to `ROWS` at a time.

        Args:
            count: number of rows.
            make: from the indices of rows, increasing, to arrays by name; it is asked for rows that no file has, in the
                scope of the strategy.
        """
        for first in range(0, count, ROWS):
            with workers.using(self._strategy):
                piece = self._piece(first, min(ROWS, count - first), make)
            yield piece

    def _piece(self, first: int, rows: int, make) -> dict[str, np.ndarray]:
        kept = self._read(first, rows)
        # A worker that cannot see the chief's files makes the rows again, and that takes all of them.
        whole = workers.total(self._strategy, kept is not None) == workers.num_workers(self._strategy)
        if kept is None or not whole:
            kept = make(np.arange(first, first + rows))
            if workers.is_chief(self._strategy):
                self._write(first, kept)
        return kept

    def _read(self, first: int, rows: int) -> dict[str, np.ndarray] | None:
        """Return rows of a file, None = there is none that can be used."""
        for path in sorted(self._folder.glob(f"{first:07d}_*.npz")):
            number = re.fullmatch(r"\d+_(\d{1,4})", path.stem)
            if number is None or not rows <= int(number[1]) <= ROWS:
                continue
            try:
                with archives.opened(path) as archive:
                    return {
                        name: npz_files.read_array(archive, name, (int(number[1]), *shape), dtype)[:rows]
                        for name, (shape, dtype) in self._kinds.items()
                    }
            except npz_files.ERRORS:
                continue
        return None

    def _write(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        rows = len(next(iter(arrays.values())))
        whole: dict[str, Any] = arrays
        with replacing(self._folder / f"{first:07d}_{rows}.npz") as temporary:
            np.savez(temporary, **whole)
