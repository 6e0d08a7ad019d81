"""The ``name[key=value]`` notation, canonical JSON and digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from mtlkit.errors import UsageError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The sha256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Spec:
    """A name with options, as typed: ``mmoe[experts=16,hidden=64:32]``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}[{','.join(f'{key}={_show(value)}' for key, value in _flatten(self.options))}]"


def _flatten(options: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ":".join(_show(item) for item in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def split_list(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def parse_value(text: str) -> Any:
    """A number, boolean, ``none``, word, or a list with ``:`` between its items."""
    if ":" in text and "[" not in text:
        return [parse_value(part) for part in text.split(":")]
    lowered = text.strip().lower()
    if lowered in {"none", "null", ""}:
        return None
    if lowered in {"true", "false"}:
        return lowered == "true"
    for convert in (int, float):
        try:
            return convert(lowered)
        except ValueError:
            continue
    return text.strip()


def parse_spec(text: str) -> Spec:
    """Read ``name`` or ``name[key=value,...]``; a dot in a key opens a nested mapping.

    Raises:
        UsageError: The brackets or an option cannot be read.
    """
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", text, re.DOTALL)
    if match is None or text.count("[") != text.count("]"):
        raise UsageError(
            f"Cannot read {text!r}.",
            "write name or 'name[key=value,key=value]', quoted for the shell",
        )
    name, body = match.groups()
    options: dict[str, Any] = {}
    for item in split_list(body or ""):
        assign(options, item, f"in {text!r}")
    return Spec(name, options)


def assign(options: dict[str, Any], item: str, where: str) -> None:
    """Put one ``key=value`` (or ``a.b=value``) into a nested dictionary."""
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f"Cannot read the option {item!r} {where}.",
            "write options as key=value, lists as key=1:2",
        )
    *parents, last = key.strip().split(".")
    target = options
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UsageError(
                f"The option {parent!r} {where} is given both a value and parts.",
                "give one of the two",
            )
    target[last] = parse_value(value)
