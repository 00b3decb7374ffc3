"""Where things lie in the repository."""

import pathlib

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDENS = TESTS / "goldens"
