"""Files of networks that predict EDM's F or a velocity, and of Heun with churn, in the Python client."""

import numpy as np
import pytest
from helpers.networks import one_conv_model

from export.edge import generator as edge
from kddpm.sampling import samplers

SEEDS, STEPS = [0, -3, 7], 8
SAMPLERS = {
    "ddim": samplers.DDIM(),
    "churn": samplers.Heun(churn=100.0, churn_max=30.0, churn_noise=1.003),
}


@pytest.mark.parametrize("signatures", [None, ["denoise", "noise"]], ids=["step", "denoise alone"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["edm", "velocity"])
def test_a_file_paints_what_keras_paints(prediction, name, signatures, tmp_path):
    model, sampler = one_conv_model(prediction=prediction), SAMPLERS[name]
    path = tmp_path / "m.tflite"
    given = {} if signatures is None else {"signatures": signatures}
    about = model.export(path, sampler=sampler, num_steps=STEPS, parity_seeds=2, verbose=False, **given)
    assert about["sampler"]["num_steps"] == STEPS and about["prediction"] == prediction
    assert about["network_calls"] == (STEPS if name == "ddim" else 2 * STEPS - 1)
    assert (sum(std > 0 for std in about["steps"]["noise_std"]) > STEPS / 2) == (name == "churn")
    painted = np.stack(list(edge.Generator(path).generate(SEEDS)))
    expected = model.generate(SEEDS, sampler, STEPS, verbose=False)
    assert painted.dtype == np.uint8 and np.abs(painted.astype(int) - expected).max() <= 1
    assert len({picture.tobytes() for picture in painted}) == len(SEEDS)
