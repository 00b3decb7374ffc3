import json
import os
import pathlib
import shutil

import pytest

from export import site


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


@pytest.fixture(scope="session")
def sites(exported, needs, tmp_path_factory):
    """A folder of sites, `whole` and some with something missing; copies are links, LiteRT.js is 29 MB."""
    needs("node", "npm")
    folder = tmp_path_factory.mktemp("sites")
    site.build(exported(), folder / "whole")
    side_file = json.loads((folder / "whole" / "model.json").read_text())

    def copy(name, replaced, content):
        shutil.copytree(folder / "whole", folder / name, copy_function=os.link)
        (folder / name / replaced).unlink()
        if content is not None:
            (folder / name / replaced).write_text(content)

    copy("no_model", "model.tflite", None)
    copy("no_side_file", "model.json", None)
    copy("no_json", "model.json", "<html>")
    copy("no_runtime", "litert/index.js", None)
    copy("other_sha256", "model.json", json.dumps({**side_file, "sha256": "0" * 64}))
    copy("shorter", "model.json", json.dumps({**side_file, "bytes": side_file["bytes"] - 1}))
    older = {key: value for key, value in side_file.items() if key != "description_version"}
    copy("older", "model.json", json.dumps(older))
    copy("newer", "model.json", json.dumps({**side_file, "description_version": 3}))
    site.build(exported(classes=True), folder / "classes")
    site.build(exported(sampler="heun"), folder / "heun")
    return folder
