"""Errors as the scripts print them."""

import collections
import contextlib
import re

import pytest

from kddpm.base.errors import InputError


class _EveryFlag(collections.UserDict):
    """Every argument is the flag of its name."""

    def get(self, name, default=None):
        return name


@contextlib.contextmanager
def refused(pattern):
    """Whether the block ends in an `InputError` whose line, with flags for arguments, matches."""
    with pytest.raises(InputError) as caught:
        yield caught
    assert re.search(pattern, caught.value.as_flags(_EveryFlag()))
