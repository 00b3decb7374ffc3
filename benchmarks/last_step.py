"""How well is the x_0 trained with which sampling starts, for each floor of the min-SNR weight?

    python benchmarks/last_step.py     # 15 minutes on two cores

Trains on four points in the plane. Prints the root mean square error of x_0 at T - 1, where the mean of the data is the
best that a network can say, and how far generated points lie from the four, in units of the plane, which is 25 wide.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the project beside this script, installed or not

import keras
import numpy as np
import tensorflow as tf

import kddpm
from kddpm import toy
from kddpm.theory import parametrization, schedules

STEPS, STEPS_A_CALL, BATCH, POINTS = 2000, 50, 250, 20_000
SCHEDULES = {
    "zero terminal SNR, cosine, T = 10": schedules.zero_terminal_snr(schedules.cosine(10)),
    "zero terminal SNR, linear, T = 1000": schedules.zero_terminal_snr(schedules.linear(1000)),
    "cosine, T = 1000": schedules.cosine(1000),
}
FLOORS = (0.0, 0.01, 0.1, 1.0)


def trained(schedule, prediction, weighting, images):
    """A model of the points."""
    keras.utils.set_random_seed(0)
    model = kddpm.DiffusionModel(toy.MLP(), schedule, prediction=prediction, weighting=weighting, ema_momentum=0.99)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, STEPS)
    model.compile(keras.optimizers.Adam(rate), jit_compile=True, steps_per_execution=STEPS_A_CALL)
    batches = tf.data.Dataset.from_tensor_slices(images).shuffle(POINTS, 0).repeat().batch(BATCH, drop_remainder=True)
    model.fit(batches, steps_per_epoch=STEPS, verbose=0)
    return model


def measured(model, images):
    """Error of x_0 at T - 1, and distance of generated points from the four."""
    noise = np.random.default_rng(1).normal(size=(4000, *toy.IMAGE_SHAPE)).astype(np.float32)
    t = np.full(len(noise), model.schedule.num_timesteps - 1, np.int32)
    x_0 = model.diffusion.x0_from(noise, t, model.ema_network([noise, t]), model.objective.prediction)
    points = toy.to_points(model.generate(range(2000), verbose=False) / 127.5 - 1)
    error = np.sqrt(np.mean((np.asarray(x_0) - images.mean(axis=0)) ** 2))
    return f"{error:.3f}, {toy.BY_NAME['points'].nearest(points)[1].mean():.3f}"


def main():
    images = toy.to_images(toy.BY_NAME["points"].draw(POINTS))
    chosen = parametrization._MIN_SNR_FLOOR
    print(f"| | simple | {' | '.join(f'at least {floor:g}' for floor in FLOORS)} |\n|---|{'---|' * (1 + len(FLOORS))}")
    for name, schedule in SCHEDULES.items():
        for prediction in ("x0", "v"):
            cells = [measured(trained(schedule, prediction, "simple", images), images)]
            for floor in FLOORS:
                # A floor of 0 is refused at zero terminal SNR; 1e-30 trains as little.
                parametrization._MIN_SNR_FLOOR = floor or 1e-30
                cells.append(measured(trained(schedule, prediction, "min_snr", images), images))
            parametrization._MIN_SNR_FLOOR = chosen
            print(f"| {name}, `{prediction}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
