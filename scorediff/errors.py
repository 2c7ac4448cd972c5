"""What a user can get wrong, and the exit code each kind of trouble ends with.

A `UserError` is shown as one line and nothing else; anything that is not a `UserError` is a bug of
ours, keeps its traceback and ends with 70. The codes follow sysexits where it has a fitting one, so
that a launcher can tell what is worth a retry: 2 and 65 never, 74 later, 75 at once.
"""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake that one line can explain: what, where, and what to do about it."""

    code = 2


class DivergedError(UserError):
    """Training stopped because its numbers were no longer finite."""

    code = 65


class StorageError(UserError):
    """A disk that is full, read-only or damaged."""

    code = 74


class Preempted(UserError):
    """Asked to stop (SIGTERM); everything is saved and the same command goes on from there."""

    code = 75


def check_choice(where: str, value: object, choices: Iterable[object]) -> None:
    """UserError where a named choice is none of `choices`; `where` says which option it is."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise UserError(f"{where} must be one of {names}, got {value!r}")
