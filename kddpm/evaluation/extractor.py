"""Train a classifier whose features judge pictures, for the metrics of evaluate.py.

    python -m kddpm.evaluation.extractor --dataset=folder:photos/ --image_size=64 --channels=3 --out=photos_judge
    python evaluate.py --run_dir=runs/photos --metrics=fid,kid --extractor=photos_judge

The data set needs labels. The accuracy is that on --held_out, or on a fifth of the images, which it is not trained on.
"""

from typing import TYPE_CHECKING

from absl import flags

from kddpm.base.errors import InputError, named_as
from kddpm.base.version import __version__
from kddpm.cli import commands
from kddpm.data import labels
from kddpm.evaluation import SHIPPED

if TYPE_CHECKING:
    from kddpm import data

FLAGS = flags.FLAGS
_HELD_OUT_SHARE = 5  # one image in so many is held out


def define_flags() -> None:
    """Define the flags of the training."""
    flags.DEFINE_string("dataset", None, "images with labels: digits, npz:FILE, folder:DIR, zip:FILE or tfds:NAME")
    flags.DEFINE_string("held_out", None, "the same, to measure the accuracy on; a fifth of --dataset if not given")
    flags.DEFINE_list(
        "also",
        [],
        "other specs of the same data, such as tfds:mnist; by these an extractor that comes with kddpm is chosen",
    )
    flags.DEFINE_string("image_size", None, "pixels: one number, or HEIGHTxWIDTH; as they are if not given")
    flags.DEFINE_integer("channels", None, "1 = grey, 3 = RGB; as they are if not given")
    flags.DEFINE_integer("epochs", 10, "passes over the images")
    flags.DEFINE_integer("batch_size", 128, "images a step")
    flags.DEFINE_integer("seed", 0, "of the weights, the order, the shifts, and which images are held out")
    flags.DEFINE_string("out", None, "NAME, for NAME.npz and NAME.json")
    commands.define_data_flags()
    flags.adopt_module_key_flags(commands)  # so that --help shows them


def train() -> None:
    """Train a classifier as the flags say, and write it."""
    spec = commands.needed("dataset", "images with labels")
    out = _name()
    commands.check_least(epochs=1, batch_size=1, seed=0)
    size = _size()
    commands.start_tensorflow()

    import numpy as np

    from kddpm import data
    from kddpm.evaluation import classifier

    classifier.check_output("out", out)
    source = data.load(spec, size, FLAGS.channels, **commands.data_options())
    others = None
    if FLAGS.held_out:
        height, width, channels = source.images.shape[1:]
        with named_as("held_out", "dataset"):
            others = data.load(FLAGS.held_out, (height, width), channels, **commands.data_options())
        if others.changes:
            print(f"Images of {others.source}: {others.changes}", flush=True)
    check(source, others)
    images, classes = source.images, np.asarray(source.labels)
    digests = [source.digest]
    if others is not None:
        test, held_out = (others.images, np.asarray(others.labels)), FLAGS.held_out
        digests.append(others.digest)
    else:
        order = np.random.default_rng(FLAGS.seed).permutation(len(images))
        chosen, kept = np.split(order, [len(images) // _HELD_OUT_SHARE])
        test, held_out = (images[chosen], classes[chosen]), f"one in {_HELD_OUT_SHARE} of {spec}"
        images, classes = images[kept], classes[kept]
    options = {"epochs": FLAGS.epochs, "batch_size": FLAGS.batch_size, "seed": FLAGS.seed}
    network = classifier.train(images, classes, len(source.class_names), verbose=True, **options)
    about = classifier.About(
        kddpm=__version__,
        image_shape=list(map(int, images.shape[1:])),
        class_names=list(source.class_names),
        dataset=spec,
        data_sets=[*FLAGS.also, *digests],
        images=len(images),
        held_out=held_out,
        held_out_images=len(test[0]),
        accuracy=classifier.accuracy(network, *test),
        **options,
    )
    classifier.save(network, about, out)
    print(f"{100 * about.accuracy:.2f} % of {len(test[0]):,} held-out images are named right")
    print(f"{out}.npz and {out}.json")


def _name() -> str:
    name = commands.needed("out", "a name for the weights and their description")
    name = name.removesuffix(".npz").removesuffix(".json")
    if name in SHIPPED:
        raise InputError("out", "must be another name: --extractor takes this for one that comes with kddpm", name)
    return name


def _size() -> tuple[int, int] | None:
    """Return --image_size as (height, width)."""
    if FLAGS.image_size is None:
        return None
    sides = FLAGS.image_size.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise InputError("image_size", "must be one number of pixels, or HEIGHTxWIDTH", FLAGS.image_size)
    return int(sides[0]), int(sides[-1])


def check(source: "data.ImageData", held_out: "data.ImageData | None") -> None:
    """Check that a classifier can be trained on images, and tested on others or on a part of them.

    Args:
        source: to train on.
        held_out: others; None = a part of `source`.

    Raises:
        InputError: fewer than two classes, or too few images; others that are the same, or of other classes.
    """
    if source.labels is None or len(source.class_names) < 2:
        raise InputError("dataset", "must have labels of two classes or more", source.source)
    if held_out is None:
        if len(source.images) < _HELD_OUT_SHARE:
            expected = f"must have {_HELD_OUT_SHARE} images or more, as a part is held out; or name {{held_out}}"
            received = f"{source.source}, with {len(source.images)}"
            raise InputError("dataset", expected, received, held_out=...)
    elif held_out.digest == source.digest:
        raise InputError("held_out", "must be other images than {dataset}", held_out.source, dataset=...)
    elif held_out.labels is None or held_out.class_names != source.class_names:
        expected = f"must have the classes of {{dataset}}, {labels.shown(source.class_names)}"
        received = f"{held_out.source}, with {labels.shown(held_out.class_names)}"
        raise InputError("held_out", expected, received, dataset=...)


def main() -> None:
    """Run the command."""
    define_flags()
    commands.run(train)


if __name__ == "__main__":
    main()
