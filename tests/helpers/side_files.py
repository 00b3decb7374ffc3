"""NAME.json of an export in which an entry is what no export writes."""

import copy
import json

# Of the export of a sampler with 20 timesteps and 6 network calls, by DDIM unless the entry says otherwise.
WRONG = {
    "network_calls": [0, True, "6", 1.5, 2**31, None],
    "state_channels": [0, "x", None],
    "batch_size": [0, 2**40, "1"],
    "bytes": [-1, "7", None],
    "num_classes": [0, "x", True, [3]],
    "image_shape": [[8, 8], [8, 8, "1"], [8, 8, 0], None, 3, {}],
    "file": [None, 3],
    "precision": [None, []],
    "sha256": [None, 7],
    "min_runtime_version": ["2.13", None, "newest", 2.13, "2.13.0.1"],
    "schedule.alpha_bars": [[], None, "x", {}],
    "schedule.alpha_bars.3": [-1, 1, 2, 1e300, None, "x", []],
    "schedule.timesteps": [[3], "x", 3, {}],
    "steps.t": [[1, 2], None, "x"],
    "steps.t.0": [-1, 20, 2**31, 1e300, None],
    "steps.from_x0": [None, [], [1.0], {}],
    "steps.from_xt.1": [1e300, None, "x", True, [1.0]],
    "sampler.name": [None, 3, []],
    "sampler.num_steps": [0, None, "6"],
    "sampler.clip": [None, "yes", 3],
    "sampler.eta": [-1, 2, "0", None],
}


def with_entry(about: dict, name: str, value) -> dict:
    """A side file with another value of an entry, which is named as in `WRONG`."""
    changed = copy.deepcopy(about)
    *path, last = name.split(".")
    place = changed
    for key in path:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    return changed


def describe(model, **changes):
    """Write other entries into the side file of an export."""
    side = model.with_suffix(".json")
    side.write_text(json.dumps({**json.loads(side.read_text()), **changes}))
