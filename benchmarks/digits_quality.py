"""Are generated digits digits? A classifier trained on the real ones looks at them.

    python sample.py --run_dir=demo/run --seeds=0-499 --out=demo/samples.npz
    python benchmarks/digits_quality.py demo/samples.npz

Prints how many pictures a small MLP names with probability above 0.9, for generated and for real digits (those by
five-fold cross-validation, so that no picture is judged by a classifier that saw it), how often each class occurs, with
--labels how often it is the one that was asked for, how far the statistics of their pixels are from those of real
digits, and how far each generated picture is from the nearest real one. Needs benchmarks/requirements.txt.
"""

import argparse
import pathlib

import numpy as np

DIGITS = pathlib.Path(__file__).parents[1] / "kddpm" / "assets" / "digits.npz"


class Judge:
    """A small MLP that has seen all real digits."""

    def __init__(self):
        from sklearn.neural_network import MLPClassifier

        with np.load(DIGITS) as archive:
            self.real, self.labels = archive["images"].reshape(-1, 64).astype(np.float64), archive["labels"]
        self.classifier = MLPClassifier((256,), max_iter=400, random_state=0).fit(self.real / 255, self.labels)

    def probabilities(self, images):
        """(N, 10) for uint8 images (N, 8, 8, 1)."""
        return self.classifier.predict_proba(images.reshape(-1, 64) / 255)

    def named(self, images):
        """The share of images that are named with p > 0.9."""
        return (self.probabilities(images).max(axis=1) > 0.9).mean()

    def balance(self, images):
        """How many of the 10 classes occur, as exp(entropy) / 10."""
        shares = np.bincount(self.probabilities(images).argmax(1), minlength=10) / len(images)
        return np.exp(-np.sum(shares[shares > 0] * np.log(shares[shares > 0]))) / 10

    def cross_validated(self):
        """Probabilities of the real digits, each by a classifier that did not see it."""
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        return cross_val_predict(self.classifier, self.real / 255, self.labels, cv=folds, method="predict_proba")


def frechet(images, references):
    """Between normal distributions with the means and covariances of both, (N, D) and (M, D), root mean square over D.

    Dowson & Landau 1982, eq. 4; the same formula, over features of another network, is the FID.
    """
    a, b = (np.cov(x, rowvar=False) for x in (images, references))
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    square = np.sum((images.mean(0) - references.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * overlap
    return np.sqrt(max(square, 0) / images.shape[1])


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
    # Both are 500 beside other real ones, as the distance shrinks with the number of pictures.
    order = np.random.default_rng(0).permutation(len(real))
    chance = frechet(real[order[:500]], real[order[500:]])
    print(f"{'pixel statistics apart by':28s}{frechet(samples, real):10.1f}{chance:10.1f}")
    distances, real_distances = nearest(samples, real), nearest(real, real, exclude_self=True)
    for name, function in {"smallest": np.min, "median": np.median, "largest": np.max}.items():
        print(f"{f'to nearest real: {name}':28s}{function(distances):10.1f}{function(real_distances):10.1f}")
    copies = (distances < 8).sum()
    print(f"copies (closer than half of one of the 16 grey steps of the originals, 8 of 255): {copies}")


if __name__ == "__main__":
    main()
