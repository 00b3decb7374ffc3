"""Draw the figures of the theory.

    python -m kddpm.plots                                             # all of them, into docs/figures
    python -m kddpm.plots --only=schedules,forward --out=figures

schedules            signal, noise and log-SNR of every noise schedule
learned              a noise schedule that was learned, beside the best one, and the loss that it makes even
forward              a digit on its way to noise
toy_points           four points in the plane turning into noise, and noise into points again (GIF)
toy_moons            the same of two half moons (GIF)
vae                  points of five models from the VAE to diffusion, with the bound of each
estimators           the variances of three estimates of the variational bound, and of their gradients
learning             the bound as a network learns by each of those three
reverse_conditional  the way back over one step of two points, and the normal of its moments
progressive          how a digit comes about, and what is decided at which noise level
bits_by_term         the terms of the bits per dimension of Gaussian data; for those of a run, see evaluate.py
rate_distortion      the error of x_0 against the bits so far, of Gaussian data; for those of a run, see evaluate.py
trajectories         the bound of K trajectories on Gaussian data, and the exact bits
continuous_time      paths of the forward SDE, the reverse SDE and the probability-flow ODE
langevin             Langevin dynamics in the plane: plain, annealed, and corrected (MALA)
"""

import logging
import pathlib
from collections.abc import Callable

from absl import flags

from kddpm.base import extras
from kddpm.base.errors import InputError
from kddpm.base.files import check_output, expand
from kddpm.cli import commands
from kddpm.plots.bits import rate_distortion, trajectory_bound
from kddpm.plots.chains import learning_curves, vae_to_diffusion
from kddpm.plots.learned import learned_schedule
from kddpm.plots.pictures import progressive
from kddpm.plots.processes import continuous_time, langevin, reverse_conditional
from kddpm.plots.runs import bits_by_term
from kddpm.plots.theory import estimators, forward, gaussian_bits, schedules, toy

FIGURES: dict[str, tuple[str, Callable[[pathlib.Path], None]]] = {
    "schedules": ("schedules.png", schedules),
    "learned": ("learned.png", learned_schedule),
    "forward": ("forward.png", forward),
    "toy_points": ("toy_points.gif", lambda path: toy("points", path)),
    "toy_moons": ("toy_moons.gif", lambda path: toy("moons", path)),
    "vae": ("vae.png", vae_to_diffusion),
    "estimators": ("estimators.png", estimators),
    "learning": ("learning.png", learning_curves),
    "reverse_conditional": ("reverse_conditional.png", reverse_conditional),
    "progressive": ("progressive.png", progressive),
    "bits_by_term": ("bits_by_term.png", lambda path: bits_by_term(gaussian_bits(), path)),
    "rate_distortion": ("rate_distortion.png", lambda path: rate_distortion(gaussian_bits(), path, std=0.2)),
    "trajectories": ("trajectories.png", trajectory_bound),
    "continuous_time": ("continuous_time.png", continuous_time),
    "langevin": ("langevin.png", langevin),
}


def main() -> None:
    """Draw the figures that the flags ask for."""
    only, out = flags.FLAGS.only, pathlib.Path(expand(flags.FLAGS.out))
    names = list(FIGURES) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in FIGURES:
            raise InputError(f"--only must be among {', '.join(FIGURES)}. Received: {name!r}")
    check_output("out", out, is_folder=True)
    extras.need("plots", "A figure")
    commands.start_tensorflow()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of a loop that is traced for many step tables
    for number, name in enumerate(names, 1):
        file, draw = FIGURES[name]
        print(f"{number}/{len(names)} {name} ...", flush=True)
        draw(out / file)
        print(f"    {out / file}, {(out / file).stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", "docs/figures", "folder for the figures; those there of the same names are replaced")
    flags.DEFINE_string("only", None, f"some of {', '.join(FIGURES)}, with commas between; all if not given")
    commands.run(main)
