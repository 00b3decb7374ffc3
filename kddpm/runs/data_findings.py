"""What figures of images and labels mean, as in `findings`."""

import numpy as np

from kddpm.runs.findings import Finding, judged, percent

_ENDS = (0.001, 0.999)  # of the pixels, in order: some beyond may be of files that were compressed or resized
_DARKEST, _BRIGHTEST = -0.98, -0.02  # the bright end of black images; the dark end where all lie in [0, 1]
FLAT_RANGE = 3  # grey levels, of an image without content
_FLAT = 0.05  # share of images of one colour; digits: 0
_REPEATED = 0.1  # share of images that are there before; digits, MNIST: 0
_ALIKE = 0.05  # standard deviation over images, 6 grey levels; digits: 0.54
_LEAST_NEGATIVES, _FEWEST_NEGATIVES = 0.02, 10  # share of the images, and their number
_BIMODAL = 2.5  # distance of two kinds of means over the sum of their deviations; 1.7 where means are uniform
_SCALED = 0.95  # share of the brighter kind that lies in [0, 1]
_RARE = 0.02  # of a class, over the mean of all


def of_range(pixels: np.ndarray) -> Finding:
    """Judge where nearly all pixels lie, from images (N, H, W, C), uint8."""
    counts = sum(np.bincount(image.ravel(), minlength=256) for image in pixels)
    low, high = np.searchsorted(np.cumsum(counts) / pixels.size, _ENDS) / 127.5 - 1
    return judged(
        "range of the pixels", high - low, f"[{low:.3g}, {high:.3g}]", "most of [-1, 1]",
        (
            high < _DARKEST, "black inputs",
            "All images are black: pixels in [0, 1] were taken for 0 .. 255. Write 255 x as uint8 into --dataset "
            "and train anew",
        ),
        (
            low > _BRIGHTEST, "inputs in [0, 1]",
            "Nearly all pixels lie in [0, 1] instead of [-1, 1]: they were scaled twice. Write uint8 from 0 to 255 "
            "into --dataset and train anew",
        ),
    )  # fmt: skip


def of_flat_images(share: float) -> Finding:
    """Judge the share of images that are of one colour."""
    advice = "Many images are of one colour: files without content. Leave them out of --dataset"
    fault = (share > _FLAT, "constant images", advice)
    return judged("images of one colour", share, percent(share), f"up to {percent(_FLAT)}", fault)


def of_repeats(pixels: np.ndarray) -> Finding:
    """Judge the share of images that are there more than once, the first of each apart, from (N, H, W, C), uint8."""
    share = 1 - len({image.tobytes() for image in pixels}) / len(pixels)
    advice = (
        "Some images are in --dataset again and again: a network sees them more often than the others, and learns them "
        "by heart. Leave each in once"
    )
    fault = (share > _REPEATED, "repeated images", advice)
    return judged("images that repeat another", share, percent(share), f"up to {percent(_REPEATED)}", fault)


def of_variety(std: float) -> Finding:
    """Judge how much images differ: the standard deviation of a pixel over them, root mean square over the pixels."""
    advice = "The images hardly differ: --dataset has one image many times, or its files lost their contents"
    fault = (std < _ALIKE, "images all alike", advice)
    return judged("deviation over the images", std, f"{std:.3f}", f"{_ALIKE} or more", fault)


def of_kinds(x_0: np.ndarray) -> Finding:
    """Judge whether some images are negatives of the others, or scaled otherwise, from (N, H, W, C) in [-1, 1].

    The brightness of images is then of two kinds, far apart for their widths. Negatives are as far from grey as the
    others, on its other side, and dark where these are bright; what was scaled to [0, 1] lies there.
    """
    brightness = x_0.mean(axis=(1, 2, 3))
    bright = brightness > 0
    share = float(min(bright.mean(), 1 - bright.mean()))
    are_negatives = are_scaled = False
    if share > _LEAST_NEGATIVES and round(share * len(brightness)) >= _FEWEST_NEGATIVES:
        high, low = brightness[bright], brightness[~bright]
        apart = high.mean() - low.mean()
        are_apart = apart > _BIMODAL * (high.std() + low.std())
        one, other = (x_0[rows].mean(axis=0) for rows in (bright, ~bright))
        is_opposite = float(((one - one.mean()) * (other - other.mean())).sum()) < 0
        are_negatives = are_apart and is_opposite and abs(high.mean() + low.mean()) < apart / 4
        lie_above = (x_0[bright].min(axis=(1, 2, 3)) > _BRIGHTEST).mean() > _SCALED
        are_scaled = are_apart and not is_opposite and lie_above
    share = share if are_negatives or are_scaled else 0.0
    return judged(
        "images unlike the others in scale", share, percent(share), "none",
        (
            are_negatives, "inverted images",
            "Some images are negatives of the others, with black and white exchanged: invert those of --dataset",
        ),
        (
            are_scaled, "inputs in [0, 1]",
            "The pixels of some images lie in [0, 1] instead of [-1, 1]: they were scaled twice. Write uint8 from 0 to "
            "255 into --dataset and train anew",
        ),
    )  # fmt: skip


def of_classes(counts: np.ndarray) -> Finding:
    """Judge how many images each class has, (num_classes,)."""
    there = int(np.count_nonzero(counts))
    return judged(
        "classes with images", there, f"{there} of {len(counts)}", "all",
        (
            there == 1, "labels of one class",
            "All images have one label, which then says nothing: give each class its folder in --dataset, or train "
            "without --num_classes",
        ),
        (
            there < len(counts), "classes without images",
            "Pictures of classes without images will be arbitrary: number the classes without gaps, and give "
            "--num_classes as many as there are",
        ),
        (
            counts.min() < _RARE * counts.mean(), "classes with few images",
            f"The smallest class has {counts.min():,} images, and a class {counts.mean():,.0f} on average: its "
            "pictures will be copies of these. More images of it, or a data set without it",
        ),
    )  # fmt: skip


def of_digest(is_same: bool) -> Finding:
    """Judge whether the images are those that the run was trained on."""
    advice = "The run's images or labels changed since it began: bring the old ones back, or train anew"
    said = "yes" if is_same else "no"
    return judged("images are the run's", is_same, said, "yes", (not is_same, "other images", advice))
