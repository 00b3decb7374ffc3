"""What a user is told on a command line."""

import contextlib
import re

import pytest

from kddpm.base.errors import InputError


@contextlib.contextmanager
def raises_in_flags(message):
    """An `InputError` whose line, with every argument named as a flag, matches the message."""
    with pytest.raises(InputError) as caught:
        yield caught
    error = caught.value
    line = error.as_flags({name: name for name in (error.argument, *error.others) if name})
    assert re.search(message, line), line
