import json
import pathlib

import pytest


@pytest.fixture(scope="session")
def exported(trained_like, trained_like_with_classes, tmp_path_factory):
    """Exports of small models: a function of their precision and of whether they have classes, made once each."""
    made = {}

    def export(precision: str = "float32", classes: bool = False) -> pathlib.Path:
        key = precision, classes
        if key not in made:
            path = tmp_path_factory.mktemp("exported") / f"tiny_{precision}.tflite"
            model = trained_like_with_classes if classes else trained_like
            names = ["zero", "one", "two"] if classes else None
            model.export(
                path,
                sampler="ancestral",
                num_steps=6,
                precision=precision,
                class_names=names,
                parity_seeds=1,
                verbose=False,
            )
            made[key] = path
        return made[key]

    return export


@pytest.fixture(scope="session")
def described():
    """Reads the side file of an export."""
    return lambda path: json.loads(path.with_suffix(".json").read_text())
