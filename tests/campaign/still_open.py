"""Cases of the campaign that do not hold yet, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

OPEN: dict[str, str] = {}
"""Name of a case to what does not hold yet. An entry goes when it is mended."""


def mark(name: str, strict: bool = True) -> list[pytest.MarkDecorator]:
    """The mark of what is open; strict, it must fail."""
    return [pytest.mark.xfail(reason=OPEN[name], strict=strict)] if name in OPEN else []


def as_parameters(cases: Iterable[object], strict: bool = True) -> list[Any]:
    """Cases under their names, marked where they are open."""
    return [pytest.param(case, id=str(case), marks=mark(str(case), strict)) for case in cases]
