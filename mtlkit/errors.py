"""Errors that a user is meant to read: one sentence, and a hint with a command that works."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_NAME = 100  # letters of a name that are compared with those of others
LONGEST_VALUE = 200  # letters of a value that messages show
LONGEST_TEXT = 300  # letters of a foreign error's text that messages show


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


def short_repr(value: object) -> str:
    """A value as Python writes it, cut where it is long; of mappings only that they are some."""
    if isinstance(value, Mapping):
        return "key: value pairs"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
        return "a list with key: value pairs"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def first_problem(error: ValidationError) -> str:
    """The first field that is wrong, as a part of a sentence: ``'weight' cannot be -1: ...``."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        return f"{field!r} is missing"
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    return f"{field!r} cannot be {short_repr(first['input'])}: {reason}" if field else reason
