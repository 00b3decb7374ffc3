import json
import os
import pathlib
import shutil

import pytest


@pytest.fixture(scope="session")
def exported(trained_like, trained_like_with_classes, tmp_path_factory):
    """Exports of small models: a function of precision, classes and sampler, made once each."""
    made = {}

    def export(precision: str = "float32", classes: bool = False, sampler: str = "ancestral") -> pathlib.Path:
        key = precision, classes, sampler
        if key not in made:
            path = tmp_path_factory.mktemp("exported") / f"tiny_{precision}.tflite"
            model = trained_like_with_classes if classes else trained_like
            names = ["zero", "one", "two"] if classes else None
            model.export(
                path,
                sampler=sampler,
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


@pytest.fixture(scope="session")
def needs():
    """Skips where a program is missing; with KDDPM_REQUIRE_BROWSER=1 that is a failure."""

    def check(*programs):
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            message = f"needs {' and '.join(missing)} on PATH"
            (pytest.fail if os.environ.get("KDDPM_REQUIRE_BROWSER") == "1" else pytest.skip)(message)

    return check
