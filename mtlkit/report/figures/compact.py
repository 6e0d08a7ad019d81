"""A smaller text of an SVG file that looks the same: a report may hold megabytes of them."""

from __future__ import annotations

import re
from itertools import pairwise

TAG = re.compile(r"<(?:text|use|path|rect|line|g|svg)\b[^>]*>")
PLACES = re.compile(r' (d|x|y|width|height|transform)="([^"]*)"')
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
LINE = re.compile(r"M-?[\d.]+ -?[\d.]+(?:L-?[\d.]+ -?[\d.]+)+")
NO_TURN = re.compile(r' transform="rotate\(-?0 [^"]*\)"')
FONT = re.compile(r"font-family: ([^;\"]*); ")
ALONE = re.compile(
    r'<g(?: id="[^"]*")?>\s*(<text[^>]*>[^<]*</text>|<(?:use|path)\b[^>]*/>)?\s*</g>'
)
"""A group of one element, or of none."""
RULES = "*{stroke-linejoin: round; stroke-linecap: butt}"  # the style sheet that matplotlib writes
DEPTH = 3  # groups around one element, at most


def compact(svg: str) -> str:
    """Leave out groups of one element, repeated fonts, spaces, and digits that nobody can see."""
    svg = TAG.sub(_compact_tag, svg)
    for _ in range(DEPTH):
        svg = ALONE.sub(r"\1", svg)
    svg = svg.replace(RULES, f"{RULES} text{{font-family:'DejaVu Sans',sans-serif}}", 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", svg)


def _compact_tag(match: re.Match[str]) -> str:
    """Only what stands inside of a tag is changed; a label may hold any text."""
    tag = NO_TURN.sub("", match.group())
    tag = PLACES.sub(_compact_places, tag)
    tag = FONT.sub("", tag)
    return tag.replace("; ", ";").replace(": ", ":")


def _compact_places(match: re.Match[str]) -> str:
    name, value = match.groups()
    value = LONG_NUMBER.sub(_rounded, value)
    if name == "d":
        value = re.sub(r"\s*([A-Za-z])\s*", r"\1", value)
        value = LINE.sub(_straight, value)
    return f' {name}="{value}"'


def _straight(match: re.Match[str]) -> str:
    """A polyline whose level and upright pieces are said by one number each."""
    points = [point.split(" ") for point in match.group()[1:].split("L")]
    pieces = [f"M{points[0][0]} {points[0][1]}"]
    for (x_before, y_before), (x, y) in pairwise(points):
        if y == y_before:
            pieces.append(f"H{x}")
        elif x == x_before:
            pieces.append(f"V{y}")
        else:
            pieces.append(f"L{x} {y}")
    return "".join(pieces)


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
