"""How wide figures are in a paper."""

from __future__ import annotations

import math

from mtlkit.errors import UsageError

WIDTHS = {"column": 3.3, "text": 7.0}
"""Inches of one column of a paper of two, and of a whole page of text."""
NARROWEST, WIDEST = 3.0, 20.0
"""Inches between which figures can be drawn."""


def paper_width(asked: str | float) -> float:
    """Inches from what was asked for: ``column``, ``text``, or a number.

    Raises:
        UsageError: It is none of these, or no figure can be so narrow or wide.
    """
    hint = "mtlkit report results --width column --format pdf"
    try:
        inches = WIDTHS[asked] if isinstance(asked, str) and asked in WIDTHS else float(asked)
    except ValueError:
        inches = math.nan
    if not NARROWEST <= inches <= WIDEST:
        raise UsageError(
            f"Figures cannot be {asked!r} wide: it is {', '.join(WIDTHS)}, or inches from "
            f"{NARROWEST:g} to {WIDEST:g}.",
            hint,
        )
    return inches
