"""A folder with all that the metrics of pictures need; `judged` of tests/runs/conftest.py is one."""

import numpy as np

from helpers.image_samples import random_pixels
from helpers.small_runs import make_run
from kddpm import data
from kddpm.evaluation import classifier, features

COUNT = 24  # pictures that tests paint
LABELS = np.arange(60) % 3


def make(folder):
    """Sixty images of three classes, untrained runs of them with classes, without and mirrored, and an extractor."""
    np.savez(folder / "images.npz", images=random_pixels(60, 8, 8), labels=LABELS)
    np.savez(folder / "others.npz", images=random_pixels(30, 8, 8, seed=1), labels=LABELS[:30])
    np.savez(folder / "unlabelled.npz", images=random_pixels(30, 8, 8, seed=1))
    np.savez(folder / "few.npz", images=random_pixels(2, 8, 8, seed=2), labels=LABELS[:2])
    digest = data.load(f"npz:{folder}/images.npz").digest
    make_run(folder / "run", f"npz:{folder}/images.npz", digest, class_names="012")
    make_run(folder / "mirrored", f"npz:{folder}/images.npz", digest, class_names="012", horizontal_flip=True)
    make_run(folder / "classes", f"npz:{folder}/images.npz", digest, class_names="012", num_classes=3)
    about = classifier.About("0", [8, 8, 1], ["0", "1", "2"], "x", [], 1, "y", 1, 0.5, 1, 1, 0)
    classifier.save(classifier.build((8, 8, 1), 3), about, folder / "judge")
    return folder


def seen(judged, images):
    """What the extractor gives for images: float64 features, and probabilities."""
    found, probabilities = features.load(str(judged / "judge"), (8, 8, 1)).features()(images)
    return found.astype(np.float64), probabilities
