"""Errors that a user is meant to read: one sentence, and a hint with a command that works."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MtlkitError(Exception):
    """A failure that has a clear cause outside the program.

    Args:
        message: One sentence that says what is wrong.
        hint: What to do about it, best a command that works.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class UsageError(MtlkitError):
    """The command, a setting or a configuration file is wrong (exit code 2)."""

    exit_code = 2


class MissingError(MtlkitError):
    """Data, a package or a device is missing (exit code 3)."""

    exit_code = 3


def nearest_names(name: str, names: Iterable[str], count: int = 1) -> list[str]:
    """The existing names that a wrong one may have meant, the likeliest first.

    The same letters in another case are meant, and nothing else.
    """
    by_lower = {existing.lower(): existing for existing in names}
    lower = name.lower()
    if lower in by_lower:
        return [by_lower[lower]]
    return [by_lower[match] for match in difflib.get_close_matches(lower, by_lower, count, 0.5)]


def did_you_mean(close: list[str]) -> str:
    """The second sentence of a message; empty where no name is close."""
    return f" Did you mean {' or '.join(close)}?" if close else ""
