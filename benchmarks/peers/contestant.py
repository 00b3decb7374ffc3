"""What every peer does: train until its time is up, paint, measure the bits of test images, and write it all down."""

import json
import pathlib
import sys
import time

import numpy as np


def run(peers):
    """Run the peer that the command line names.

    Args:
        peers: {name: function of the images, what `peers.py` says, and the time at which to stop; it returns a
            `figures.Chain`, the steps taken and the number of parameters}.
    """
    name, path = sys.argv[1:]
    about = json.loads(pathlib.Path(path).read_text())
    with np.load(about["data"]) as arrays:
        images, held_out = arrays["x_train"][..., np.newaxis], chosen(arrays["x_test"][..., np.newaxis], about)
    chain, steps, parameters = peers[name](images, about, about["started"] + 60 * about["minutes"])
    made = {"steps": steps, "parameters": parameters, "seconds": time.time() - about["started"]}
    write(pathlib.Path(about["out"]), chain, held_out, about, **made)


def chosen(held_out, about):
    """The test images whose bits are measured, the same for all."""
    return held_out[np.random.default_rng(0).choice(len(held_out), about["num_held_out"], replace=False)]


def write(out, chain, held_out, about, **made):
    """Write `pictures.npz`, and `made.json` with the bits of held-out images, uint8 (N, H, W, C)."""
    bits, error = chain.bits_per_dim(held_out)
    np.savez(out / "pictures.npz", images=chain.paint(about["num_images"], held_out.shape[1:]))
    (out / "made.json").write_text(json.dumps(made | {"bits": bits, "bits_standard_error": error}))
