"""A data set of TensorFlow Datasets from a folder of pictures: `python tfds_pictures.py PICTURES DATA_DIR`."""

import pathlib
import sys

import tensorflow_datasets as tfds
from PIL import Image


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The pictures, with the names of their folders as classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        folder = pathlib.Path(sys.argv[1])
        self._names = sorted(path.name for path in folder.iterdir())
        with Image.open(next(folder.rglob("*.png"))) as picture:
            shape = (picture.height, picture.width, 3)
        features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(names=self._names)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.png")):
            yield str(path), {"image": path, "label": path.parent.name}


if __name__ == "__main__":
    Pictures(data_dir=sys.argv[2]).download_and_prepare()
