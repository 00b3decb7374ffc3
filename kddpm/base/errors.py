"""The exceptions that the scripts report to the user in one line."""

import contextlib
from collections.abc import Iterator, Mapping


class InputError(ValueError):
    """A user's value that cannot be used.

    The message is one line: the argument or file, what was expected and what was received. The library names arguments
    as arguments, the scripts as flags (`as_flags`); all other errors keep their traceback.

    Args:
        argument: the argument's name; or, if `expected` is None, the whole message, as for a faulty file.
        expected: what it must be: "must be at least 1". Names other arguments in braces: "must divide {batch_size}".
        received: the value received; may name other arguments in the same way.
        **others: the values of those other arguments; `...` = show the name without a value.

    Example:
        >>> error = InputError("accumulation", "must divide {batch_size}", 3, batch_size=64)
        >>> str(error)
        '`accumulation` must divide batch_size=64. Received: 3'
        >>> error.as_flags({"accumulation": "accumulation", "batch_size": "batch_size"})
        '--accumulation must divide --batch_size=64. Received: 3'
    """

    def __init__(self, argument: str, expected: str | None = None, received: object = ..., **others: object):
        self.argument = None if expected is None else argument
        self.expected = argument if expected is None else expected
        self.received = received
        self.others = others
        super().__init__(self._rendered({}))

    def as_flags(self, flags: Mapping[str, str]) -> str:
        """Return the message with arguments named as flags.

        Args:
            flags: {argument: flag}; an argument that is missing here has no flag and keeps its name.
        """
        return self._rendered(flags)

    def renamed(self, old: str, new: str) -> "InputError":
        """Return the error with an argument under another name."""
        expected, others = self.expected, {new if name == old else name: value for name, value in self.others.items()}
        expected = expected.replace(f"{{{old}}}", f"{{{new}}}")
        if self.argument is None:
            return InputError(expected, None, self.received, **others)
        return InputError(new if self.argument == old else self.argument, expected, self.received, **others)

    def _rendered(self, flags: Mapping[str, str]) -> str:
        text = self.expected
        if self.argument is not None:
            text = f"{_named(self.argument, ..., flags)} {text}"
        if self.received is not ...:
            text = f"{text}. Received: {self.received}"
        for name, value in self.others.items():
            text = text.replace(f"{{{name}}}", _named(name, value, flags))
        return text


def _named(name: str, value: object, flags: Mapping[str, str]) -> str:
    """Return an argument as its flag, or as itself if it has none; with its value, unless that is `...`."""
    if (flag := flags.get(name)) is not None:
        return f"--{flag}" if value is ... else f"--{flag}={value}"
    return f"`{name}`" if value is ... else f"{name}={value!r}"


@contextlib.contextmanager
def named_as(new: str, old: str) -> Iterator[None]:
    """Have errors of what is called within the block name its argument `old` as `new`, from which it came."""
    try:
        yield
    except InputError as error:
        raise error.renamed(old, new) from None


class WorkerLostError(RuntimeError):
    """Another worker of the group ended or cannot be reached; saved checkpoints are intact."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
