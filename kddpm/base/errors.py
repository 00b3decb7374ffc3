"""The exceptions that a user is told in one line."""


class InputError(ValueError):
    """A value that a user gave and that cannot be used.

    The message is one line that names the argument, flag or file, what was expected and what came. The scripts print
    it and leave; anything else that goes wrong keeps its traceback.
    """


class WorkerLostError(RuntimeError):
    """Another worker of the group is gone; what was saved is not."""


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
