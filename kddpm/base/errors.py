"""The exceptions that a user is told in one line."""

from collections.abc import Mapping

_NOTHING = object()


class InputError(ValueError):
    """A value that a user gave and that cannot be used.

    It reads as one line: the argument or file, what was expected and what came. The library names arguments as
    arguments, the scripts as flags (`as_flags`); anything else that goes wrong keeps its traceback.

    Args:
        argument: the argument's name; or, alone, the whole line, where the fault is a file's.
        expected: what it must be: "must be at least 1". Other arguments stand in braces: "must divide {batch_size}".
        received: what came; may name others in the same way.
        **others: the values of those others; `...` = the name says it all.

    Example:
        >>> error = InputError("accumulation", "must divide {batch_size}", 3, batch_size=64)
        >>> str(error)
        '`accumulation` must divide batch_size=64. Received: 3'
        >>> error.as_flags({"accumulation": "accumulation", "batch_size": "batch_size"})
        '--accumulation must divide --batch_size=64. Received: 3'
    """

    def __init__(self, argument: str, expected: str | None = None, received: object = _NOTHING, **others: object):
        self.argument = None if expected is None else argument
        self.expected = argument if expected is None else expected
        self.received = received
        self.others = others
        super().__init__(self._rendered({}))

    def as_flags(self, flags: Mapping[str, str]) -> str:
        """The same line for a command line.

        Args:
            flags: {argument: flag}; what is not among them is no flag, and named as an argument.
        """
        return self._rendered(flags)

    def _rendered(self, flags: Mapping[str, str]) -> str:
        text = self.expected
        if self.argument is not None:
            text = f"{_named(self.argument, ..., flags)} {text}"
        if self.received is not _NOTHING:
            text = f"{text}. Received: {self.received}"
        for name, value in self.others.items():
            text = text.replace(f"{{{name}}}", _named(name, value, flags))
        return text


def _named(name: str, value: object, flags: Mapping[str, str]) -> str:
    """An argument as a flag, or as itself where it is none; with its value, if there is one to say."""
    if (flag := flags.get(name)) is not None:
        return f"--{flag}" if value is ... else f"--{flag}={value}"
    return f"`{name}`" if value is ... else f"{name}={value!r}"


class WorkerLostError(RuntimeError):
    """Another worker of the group is gone; what was saved is not."""


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
