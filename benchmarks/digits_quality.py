"""Are generated digits digits? A classifier trained on the real ones looks at them.

    python sample.py --run_dir=demo/run --seeds=0-499 --out=demo/samples.npz
    python benchmarks/digits_quality.py demo/samples.npz

Prints how many pictures a small MLP names with probability above 0.9, for generated and for real digits (those by
five-fold cross-validation, so that no picture is judged by a classifier that saw it), how often each class occurs, with
--labels how often it is the one that was asked for, and how far each generated picture is from the nearest real one.
Needs benchmarks/requirements.txt.
"""

import argparse
import pathlib

import numpy as np
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neural_network import MLPClassifier

DIGITS = pathlib.Path(__file__).parents[1] / "kddpm" / "assets" / "digits.npz"


class Judge:
    """A small MLP that has seen all real digits."""

    def __init__(self):
        with np.load(DIGITS) as archive:
            self.real, self.labels = archive["images"].reshape(-1, 64).astype(np.float64), archive["labels"]
        self.classifier = MLPClassifier((256,), max_iter=400, random_state=0).fit(self.real / 255, self.labels)

    def probabilities(self, images):
        """(N, 10) for uint8 images (N, 8, 8, 1)."""
        return self.classifier.predict_proba(images.reshape(-1, 64) / 255)

    def __call__(self, images):
        """The share of images that are named with p > 0.9, and how many of 10 classes occur, as exp(entropy) / 10."""
        judged = self.probabilities(images)
        shares = np.bincount(judged.argmax(1), minlength=10) / len(images)
        entropy = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
        return (judged.max(axis=1) > 0.9).mean(), np.exp(entropy) / 10

    def cross_validated(self):
        """Probabilities of the real digits, each by a classifier that did not see it."""
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        classifier = MLPClassifier((256,), max_iter=400, random_state=0)
        return cross_val_predict(classifier, self.real / 255, self.labels, cv=folds, method="predict_proba")


def nearest(images, references, exclude_self=False):
    """Root-mean-square distance, in grey levels, of each image (N, D) to the nearest reference (M, D)."""
    squares = (images**2).mean(1)[:, None] + (references**2).mean(1) - 2 * images @ references.T / images.shape[1]
    if exclude_self:
        np.fill_diagonal(squares, np.inf)
    return np.sqrt(np.maximum(squares.min(axis=1), 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("samples", help=".npz with uint8 `images` (N, 8, 8, 1), as sample.py writes it")
    parser.add_argument("--labels", help="the classes that were asked for: 3, or 0-9 in turns")
    arguments = parser.parse_args()
    judge = Judge()
    real, labels = judge.real, judge.labels
    samples = np.load(arguments.samples)["images"].reshape(-1, 64).astype(np.float64)
    judged, judged_real = judge.probabilities(samples), judge.cross_validated()
    print(f"{'':28s}{'generated':>10s}{'real':>10s}")
    print(f"{'pictures':28s}{len(samples):10d}{len(real):10d}")
    confident = [(p.max(axis=1) > 0.9).mean() for p in (judged, judged_real)]
    print(f"{'named with p > 0.9':28s}{confident[0]:10.1%}{confident[1]:10.1%}")
    right = [f"{(judged_real.argmax(1) == labels).mean():.1%}"]
    if arguments.labels:
        first, _, last = arguments.labels.partition("-")
        asked = np.resize(np.arange(int(first), int(last or first) + 1), len(samples))
        right.insert(0, f"{(judged.argmax(1) == asked).mean():.1%}")
    print(f"{'named as asked, or right':28s}{right[0] if len(right) > 1 else '':>10s}{right[-1]:>10s}")
    for digit in range(10):
        print(f"{f'named {digit}':28s}{(judged.argmax(1) == digit).mean():10.1%}{(labels == digit).mean():10.1%}")
    distances, real_distances = nearest(samples, real), nearest(real, real, exclude_self=True)
    for name, function in {"smallest": np.min, "median": np.median, "largest": np.max}.items():
        print(f"{f'to nearest real: {name}':28s}{function(distances):10.1f}{function(real_distances):10.1f}")
    copies = (distances < 8).sum()
    print(f"copies (closer than half of one of the 16 grey steps of the originals, 8 of 255): {copies}")


if __name__ == "__main__":
    main()
