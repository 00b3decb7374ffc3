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
        images, (held_out, _) = arrays["x_train"][..., np.newaxis], chosen(arrays, about["num_held_out"])
    chain, steps, parameters = peers[name](images, about, about["started"] + 60 * about["minutes"])
    made = {"steps": steps, "parameters": parameters, "seconds": time.time() - about["started"]}
    write(pathlib.Path(about["out"]), chain, held_out, about["num_images"], **made)


def chosen(arrays, count):
    """The test images whose bits are measured, the same for all: uint8 (count, H, W, 1) and labels, int64 (count,)."""
    rows = np.random.default_rng(0).choice(len(arrays["x_test"]), count, replace=False)
    return arrays["x_test"][rows][..., np.newaxis], arrays["y_test"][rows].astype(np.int64)


def write(out, chain, held_out, num_images, labels=None, classes=None, **made):
    """Write `pictures.npz`, and `made.json` with the bits of held-out images, uint8 (N, H, W, C).

    A network with classes is told the labels of the images, int64 (N,), and paints its `classes` in turn.
    """
    bits, error = chain.bits_per_dim(held_out, labels)
    in_turn = None if classes is None else np.arange(num_images) % classes
    np.savez(out / "pictures.npz", images=chain.paint(num_images, held_out.shape[1:], in_turn))
    (out / "made.json").write_text(json.dumps(made | {"bits": bits, "bits_standard_error": error}))
