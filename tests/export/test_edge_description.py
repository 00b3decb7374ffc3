"""export/edge/description.py: an entry that no export writes is refused by name, before anything is painted."""

import copy
import hashlib
import json

import pytest

from export.edge import description

OTHERS = {
    "network_calls": [0, 7, True, "6", 1.5, 2**31],
    "image_shape": [[8, 8], [8, 8, "1"], None, 3],
    "file": [None, 3],
    "signatures": [None, ["denoise"]],
    "min_runtime_version": ["2.13", None, "newest"],
    "sampler.clip": [None, "yes", 3],
    "sampler.name": [None],
    "sampler.eta": [-1, 2, "0", None],
    "schedule": [{}, None, [], 3],
    "schedule.alpha_bars": [[], None, "x"],
    "schedule.alpha_bars.3": [-1, 0, 1, 2, 1e300, None, "x"],
    "schedule.timesteps": [[3], [0.5] * 20, list(range(20))[::-1], "x"],
    "steps": [{}, None, []],
    "steps.t": [[1, 2], None, "x"],
    "steps.t.0": [1.5, -1, 2**31, 20, None],
    "steps.from_x0": [None, [], [1.0]],
    "steps.from_xt.1": [1e300, None, "x"],
    "steps.noise_std.1": [10**400],
    "steps.from_memory": [[1.0] * 6],
    "steps.log_variance_low": [[1.0] * 6],
}


@pytest.fixture(scope="module")
def about(exported, described):
    """A description of an empty file, `written` below."""
    about = described(exported(sampler="ddim", signatures=("denoise", "noise")))
    return {**about, "sha256": hashlib.sha256(b"").hexdigest()}


def written(about, folder):
    (folder / "m.tflite").write_bytes(b"")
    text = about if isinstance(about, str) else json.dumps(about)
    (folder / "m.json").write_text(text)
    return folder / "m.tflite"


def test_what_an_export_writes_is_read(about, tmp_path):
    assert description.read(written(about, tmp_path)) == about
    respaced = {
        **about,
        "schedule": {"timesteps": about["steps"]["t"][::-1], "alpha_bars": [0.9, 0.5, 0.3, 0.2, 0.1, 0]},
    }
    assert description.read(written(respaced, tmp_path)) == respaced


@pytest.mark.parametrize("name", OTHERS)
def test_another_entry_is_refused_by_name(about, tmp_path, name):
    *path, last = name.split(".")
    for value in OTHERS[name]:
        changed = copy.deepcopy(about)
        place = changed
        for key in path:
            place = place[key]
        place[int(last) if last.isdigit() else last] = value
        with pytest.raises(description.InputError, match=r"^\S+m\.json must be the desc.* \((\w+)\)$") as refused:
            description.read(written(changed, tmp_path))
        named = "steps" if (name, value) == ("network_calls", 7) else name.split(".")[0]
        assert refused.value.args[0].endswith(f"({named})")


@pytest.mark.parametrize("text", ["", "[", "3", "[]", "[" * 100_000, '{"description_version": 3, "bytes": NaN}'])
def test_what_is_no_object_of_json_is_refused(tmp_path, text):
    with pytest.raises(description.InputError, match=r"m\.json must be the description .*\(no object of JSON\)$"):
        description.read(written(text, tmp_path))
