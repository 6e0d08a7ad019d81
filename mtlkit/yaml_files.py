"""YAML as the user writes it: what is no mapping, ambiguous or huge is refused in words."""

from __future__ import annotations

from typing import Any

import yaml

from mtlkit.errors import LONGEST_VALUE, UsageError

MAX_YAML_DEPTH = 20  # of lists and mappings in each other; a grid needs four
MAX_YAML_VALUES = 100_000


class _GridLoader(yaml.SafeLoader):
    """Refuses what PyYAML lets pass, or fails at with an error of its own."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count how deep nodes are in each other."""
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > MAX_YAML_DEPTH:
            raise _RefusedYAMLError(
                problem="is nested too deep", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that a mapping has twice, of which PyYAML takes the last."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            # mappings may be merged in (<<) more than once
            is_merge = key.tag == "tag:yaml.org,2002:merge"
            if not isinstance(key, yaml.ScalarNode) or is_merge:
                continue
            if (key.tag, key.value) in keys:
                raise _RefusedYAMLError(
                    problem=f"has the key {key.value[:LONGEST_VALUE]!r} twice",
                    problem_mark=key.start_mark,
                )
            keys.add((key.tag, key.value))
        return node


class _RefusedYAMLError(yaml.MarkedYAMLError):
    """Valid YAML that no grid means; the problem is the verb of a sentence about the file."""


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping.

    Args:
        text: The YAML text; empty for an empty mapping.
        where: Where it is from, for messages: the name of the file.

    Raises:
        UsageError: The text is no YAML mapping, has a key twice, or holds far more than a grid.
    """
    hint = "mtlkit bench --print-config shows a valid file"
    try:
        value = yaml.load(text, _GridLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, _RefusedYAMLError) else "is not valid YAML"
        raise UsageError(f"{where} {problem}{line}.", hint) from None
    except (ValueError, OverflowError):  # such as an integer of 5,000 digits, or February 30
        raise UsageError(f"{where} holds a number or a date that cannot be read.", hint) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where} must hold key: value pairs.", hint)
    _check_size(value, where, hint)
    return value


def _check_size(value: dict[Any, Any], where: str, hint: str) -> None:
    """Raise a :class:`UsageError` for more values than a grid holds. Aliases (``*name``) can stand
    for billions, or for a mapping within itself.
    """
    count = 0
    waiting: list[Any] = [value]
    while waiting:
        container = waiting.pop()
        values = container.values() if isinstance(container, dict) else container
        count += len(container)
        if count > MAX_YAML_VALUES:
            raise UsageError(f"{where} holds more than {MAX_YAML_VALUES:,} values.", hint)
        waiting += [child for child in values if isinstance(child, (dict, list))]
