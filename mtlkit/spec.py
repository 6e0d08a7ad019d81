"""The ``name[key=value]`` notation, canonical JSON and digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from mtlkit.errors import UsageError

MAX_DEPTH = 8  # names in a dotted key; settings need four at most (``training.task_lr.income``)
NAME_AND_BRACKETS = re.compile(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", re.DOTALL)


# --- identity: equal values have equal text, and equal digests


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The sha256 of a value's canonical JSON, in hex."""
    return digest_of_text(canonical_json(value))


def digest_of_text(text: str) -> str:
    """The sha256 of a text that is canonical JSON already, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


# --- writing


@dataclass(frozen=True)
class Spec:
    """A name with options, as typed: ``mmoe[experts=16,hidden=64:32]``."""

    name: str  # the name before the brackets
    # The values in the brackets; a dot in a key is a nested mapping here.
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        options = [f"{key}={show(value)}" for key, value in flatten(self.options)]
        return f"{self.name}[{','.join(options)}]"


def flatten(options: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The options of nested mappings under dotted keys: ``{"a": {"b": 1}}`` gives ``a.b``, 1."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def show(value: Any) -> str:
    """The text that :func:`parse_value` reads as this value, but for lists of one or of lists."""
    if isinstance(value, (list, tuple)):
        return ":".join(show(element) for element in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()

    # the short form of a number, where it is exact
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


# --- reading


def parse_spec(text: str) -> Spec:
    """Read ``name`` or ``name[key=value,...]``; a dot in a key opens a nested mapping.

    Raises:
        UsageError: The brackets or an option cannot be read, or an option is given twice, or the
            text, which records hold, is not UTF-8, or it is no text at all.
    """
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is no name.", "write name or 'name[key=value]'")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = f"Cannot read {text!r}: it is not UTF-8 text."
        raise UsageError(message, "rename the file: mv OLD NEW") from None
    match = NAME_AND_BRACKETS.fullmatch(text)
    problem = "" if match is None else _wrong_brackets(match[2] or "")
    if match is None or problem:
        raise UsageError(
            f"Cannot read {text!r}{problem}.",
            "write name or 'name[key=value,key=value]', quoted for the shell",
        )
    name, brackets = match.groups()

    assignments = split_list(brackets or "")
    _check_keys(assignments, text)
    options: dict[str, Any] = {}
    for assignment in assignments:
        assign(options, assignment, f"in {text!r}")
    return Spec(name, options)


def _wrong_brackets(inside: str) -> str:
    """What is wrong with the brackets of a spec, by the text inside them; empty if nothing is."""
    if inside.startswith("["):
        return ": it has brackets in brackets"
    depth = 0  # of open brackets
    for character in inside:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            return ": its options stand in more than one pair of brackets"
    return ": a bracket is not closed" if depth else ""


def _check_keys(assignments: list[str], text: str) -> None:
    """Raise a :class:`UsageError` for a key that brackets hold twice, or with a value and parts."""
    keys = [assignment.partition("=")[0].strip() for assignment in assignments]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(
                f"The option {key!r} is given twice in {text!r}.",
                f"mtlkit info {text.partition('[')[0].strip()} shows the options",
            )
        if any(other.startswith(f"{key}.") for other in keys):
            raise _value_and_parts(key, f"in {text!r}")


def _value_and_parts(key: str, where: str) -> UsageError:
    return UsageError(
        f"The option {key!r} {where} is given both a value and parts.", "give one of the two"
    )


def assign(options: dict[str, Any], assignment: str, where: str) -> None:
    """Put one ``key=value`` (or ``a.b=value``) into a nested dictionary.

    Args:
        options: The dictionary, changed in place.
        where: Where it was written, for messages: ``"given to --set"``.

    Raises:
        UsageError: It is no assignment, its key is nested too deep, or already has a value where it
            needs a mapping.
    """
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f"Cannot read the option {assignment!r} {where}.",
            "write options as key=value, lists as key=1:2",
        )

    # the mapping that a dotted key leads to
    *parents, last = key.strip().split(".")
    if len(parents) >= MAX_DEPTH:
        raise UsageError(
            f"The option {key[:40]!r}... {where} is nested too deep.",
            "mtlkit bench --print-config shows every setting",
        )
    target = options
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise _value_and_parts(parent, where)
    target[last] = parse_value(value)


def parse_value(text: str) -> Any:
    """A number, boolean, ``none``, word, or a list: with ``:`` between its elements, or in JSON."""
    if text.strip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    if ":" in text and "[" not in text:
        return [parse_value(element) for element in text.split(":")]
    lowered = text.strip().lower()
    if lowered in {"none", "null", ""}:
        return None
    if lowered in {"true", "false"}:
        return lowered == "true"

    # the first kind of number that it is; else it is a word, as are digits of other scripts, and
    # 109_14, which Python would read as a number
    is_plain = lowered.isascii() and "_" not in lowered
    for number in (int, float) if is_plain else ():
        try:
            return number(lowered)
        except ValueError:
            continue
    return text.strip()


def split_list(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    entries = [""]
    depth = 0  # of open brackets
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth <= 0:
            entries.append("")
        else:
            entries[-1] += character
    return [entry.strip() for entry in entries if entry.strip()]
