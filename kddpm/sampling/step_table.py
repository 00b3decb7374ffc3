"""A sampler as a table: the coefficients of every step, float64 NumPy, one row for each call of the network.

    (1)  x_0  = a x + b output,  clipped if wanted           a, b of what the network predicts (`kddpm.parametrization`)
    (2)  x'   = c x_0 + d x + e m + sigma z,  z ~ N(0, 1)
         m'   = f x_0 + g x + h m,                           a memory, for the samplers that have one

`kddpm.samplers` defines c to h and sigma; `kddpm.walks` runs the steps.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """The coefficients of equation (2) on a (respaced) schedule, arrays (rows,) in the order of the steps.

    Attributes:
        at: index into the schedule of the t at which the network is called.
        from_x0, from_xt, noise_std: c, d and sigma.
        from_memory: e; None = no memory.
        memory_from_x0, memory_from_xt, memory_from_memory: f, g and h; None = no memory.
        log_variance_range: for a learned sigma, the two ends of its log-variance, and `noise_std` is then a factor.
    """

    at: np.ndarray
    from_x0: np.ndarray
    from_xt: np.ndarray
    noise_std: np.ndarray
    from_memory: np.ndarray | None = None
    memory_from_x0: np.ndarray | None = None
    memory_from_xt: np.ndarray | None = None
    memory_from_memory: np.ndarray | None = None
    log_variance_range: tuple[np.ndarray, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class StepTable:
    """All coefficients of equations (1) and (2), float64 (rows,) each, in the order of the steps.

    Attributes:
        timesteps: t of each row as passed to the network, int64 (rows,).
        x0_from_xt, x0_from_output: a and b.
        rows: c to h and sigma.
        clip: whether x_0 is clipped: True, False, or "dynamic" thresholding.
    """

    timesteps: np.ndarray
    x0_from_xt: np.ndarray
    x0_from_output: np.ndarray
    rows: Rows
    clip: bool | str

    @property
    def num_rows(self) -> int:
        """The number of rows, each one network call; some samplers have several rows per step."""
        return len(self.timesteps)

    @property
    def has_memory(self) -> bool:
        """Whether the state is x and a memory, 2 C channels, instead of only x."""
        return self.rows.from_memory is not None

    @property
    def learned_variance(self) -> bool:
        """Whether the network must output 2 C channels, of which the last C are the variance."""
        return self.rows.log_variance_range is not None

    @property
    def is_noisy(self) -> bool:
        """Whether a step adds noise."""
        return bool(np.any(self.rows.noise_std))

    def row_from(self, t: int) -> int:
        """Return the row that starts from x_t, at the nearest t that is visited: of several rows there, the last."""
        nearest = self.timesteps[np.argmin(np.abs(self.timesteps - t))]
        return int(np.flatnonzero(self.timesteps == nearest)[-1])

    @property
    def fingerprint(self) -> tuple:
        """A hashable key, equal for tables with the same steps."""
        values = [self.timesteps, self.x0_from_xt, self.x0_from_output, *vars(self.rows).values()]
        return self.clip, *(None if value is None else np.asarray(value).tobytes() for value in values)

    def take(self, order: np.ndarray) -> "StepTable":
        """Return the table with its rows in this order, in which a row may occur several times."""

        def taken(value):
            if isinstance(value, tuple):
                return tuple(column[order] for column in value)
            return None if value is None else value[order]

        rows = Rows(**{field.name: taken(getattr(self.rows, field.name)) for field in dataclasses.fields(Rows)})
        timesteps, a, b = (column[order] for column in (self.timesteps, self.x0_from_xt, self.x0_from_output))
        return StepTable(timesteps, a, b, rows, self.clip)
