"""Errors that a user is meant to read: one sentence, and a hint with a command that works."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_NAME = 100
"""Letters of a name that are compared with those of others."""

LONGEST_TEXT = 300
"""Letters of a foreign error's text that messages show."""


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

    The same letters are meant, and nothing else, whatever their case and what stands between words.
    """
    by_letters = {_letters(existing): existing for existing in names}
    letters = _letters(name)
    if letters in by_letters:
        return [by_letters[letters]]
    close = difflib.get_close_matches(letters[:LONGEST_NAME], by_letters, count, 0.5)
    return [by_letters[match] for match in close]


def _letters(name: str) -> str:
    """``Shared Bottom`` and ``shared_bottom`` are ``sharedbottom``."""
    return re.sub(r"[\s_-]", "", name.lower())


def did_you_mean(close: list[str]) -> str:
    """The second sentence of a message; empty where no name is close."""
    return f" Did you mean {' or '.join(close)}?" if close else ""


def one_line(error: object) -> str:
    """The text of an error, or its class where it has none, to stand inside a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}..."
    return text or type(error).__name__
