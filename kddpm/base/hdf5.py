"""Checks of HDF5 files of weights that may be untrusted: HDF5 can link to other files, and claim any size."""

import os

import h5py

_MOST_DEPTH = 50
_SLACK_BYTES = 2**20  # for what Keras stores besides the weights


def check_content(path: str | os.PathLike, expected_bytes: int) -> None:
    """Check that all values are in the file itself, and no more of them than the network can hold.

    Args:
        path: the file.
        expected_bytes: of the weights of the network.

    Raises:
        OSError: it is missing, or no HDF5 file.
        ValueError: links, external values, values that are not numbers, or too many of them.
    """
    left = 2 * expected_bytes + _SLACK_BYTES
    with h5py.File(path, "r") as file:
        groups = [(file, 0)]
        while groups:
            group, depth = groups.pop()
            if depth > _MOST_DEPTH:
                raise ValueError("its groups lie too deep")
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name} is a link to somewhere else")
                item = group[name]
                if isinstance(item, h5py.Group):
                    groups.append((item, depth + 1))
                    left -= 64  # so that endlessly many groups exceed the limit too
                elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
                    if item.external or item.is_virtual:
                        raise ValueError(f"{name} has its values in another file")
                    left -= item.nbytes
                else:
                    raise ValueError(f"{name} holds no numbers")
                if left < 0:
                    raise ValueError(f"it holds more than the {expected_bytes} bytes of the network")
