"""Train a classifier whose features judge pictures, for the metrics of evaluate.py.

    python -m kddpm.evaluation.extractor --dataset=folder:photos/ --image_size=32 --out=photos_judge
    python evaluate.py --run_dir=runs/photos --metrics=fid,kid --extractor=photos_judge

The data set needs labels. The accuracy is that on --held_out, or on a fifth of the images, which it is not trained on.
"""

from absl import flags

from kddpm.base.errors import InputError
from kddpm.base.files import check_output
from kddpm.base.version import __version__
from kddpm.cli import commands

FLAGS = flags.FLAGS
_HELD_OUT_SHARE = 5  # one image in so many is held out


def define_flags() -> None:
    """Define the flags of the training."""
    flags.DEFINE_string("dataset", None, "images with labels: digits, npz:FILE, folder:DIR, zip:FILE or tfds:NAME")
    flags.DEFINE_string("held_out", None, "the same, to measure the accuracy on; a fifth of --dataset if not given")
    flags.DEFINE_list(
        "also",
        [],
        "specs of the same data from elsewhere, for which evaluate.py may take it too",
    )
    flags.DEFINE_integer("image_size", None, "side of the images in pixels; as they are if not given")
    flags.DEFINE_integer("epochs", 10, "passes over the images")
    flags.DEFINE_integer("batch_size", 128, "images a step")
    flags.DEFINE_integer("seed", 0, "of the weights, the order, the shifts, and which images are held out")
    flags.DEFINE_string("out", None, "NAME, for NAME.npz and NAME.json")
    commands.define_data_flags()
    flags.adopt_module_key_flags(commands)  # so that --help shows them


def train() -> None:
    """Train a classifier as the flags say, and write it."""
    spec = commands.needed("dataset", "images with labels")
    out = commands.needed("out", "a name for the weights and their description")
    commands.check_least(image_size=1, epochs=1, batch_size=1, seed=0)
    check_output("out", f"{out}.npz", is_folder=False)
    commands.start_tensorflow()

    import numpy as np

    from kddpm import data
    from kddpm.evaluation import classifier

    source = data.load(spec, FLAGS.image_size, **commands.data_options())
    images, labels = source.images, _labels(source)
    digests = [source.digest]
    if FLAGS.held_out:
        others = data.load(FLAGS.held_out, source.images.shape[1:3], source.images.shape[3], **commands.data_options())
        test, held_out = (others.images, _labels(others)), FLAGS.held_out
        digests.append(others.digest)
    else:
        order = np.random.default_rng(FLAGS.seed).permutation(len(images))
        chosen, kept = np.split(order, [len(images) // _HELD_OUT_SHARE])
        test, held_out = (images[chosen], labels[chosen]), f"one in {_HELD_OUT_SHARE} of {spec}"
        images, labels = images[kept], labels[kept]
    options = {"epochs": FLAGS.epochs, "batch_size": FLAGS.batch_size, "seed": FLAGS.seed}
    network = classifier.train(images, labels, len(source.class_names), verbose=True, **options)
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


def _labels(source):
    if source.labels is None:
        raise InputError("dataset", "must have labels", source.source)
    return source.labels


def main() -> None:
    """Run the command."""
    define_flags()
    commands.run(train)


if __name__ == "__main__":
    main()
