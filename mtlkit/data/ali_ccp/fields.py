"""The fields of Ali-CCP: which file holds them, what they mean, whether a row may hold several ids
of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["row", "user"]
Role = Literal["user", "item", "domain", "context"]


@dataclass(frozen=True)
class RawField:
    """One field of the raw text."""

    name: str  # as written in the text
    side: Side  # ``row`` for the skeleton file, ``user`` for the common file
    meaning: str  # for cards
    role: Role  # the part it plays for models that ask
    multi: bool = False  # whether a row may hold several ids
    valued: bool = False  # whether its value says more than that it is there


FIELDS: tuple[RawField, ...] = (
    RawField("101", "user", "user", "user"),
    RawField("109_14", "user", "categories of the past", "user", multi=True, valued=True),
    RawField("110_14", "user", "shops of the past", "user", multi=True, valued=True),
    RawField("127_14", "user", "brands of the past", "user", multi=True, valued=True),
    RawField("150_14", "user", "intentions of the past", "user", multi=True, valued=True),
    RawField("121", "user", "profile category", "user"),
    RawField("122", "user", "profile group", "user"),
    RawField("124", "user", "gender", "user"),
    RawField("125", "user", "age", "user"),
    RawField("126", "user", "consumption level I", "user"),
    RawField("127", "user", "consumption level II", "user"),
    RawField("128", "user", "employed", "user"),
    RawField("129", "user", "geography", "user"),
    RawField("205", "row", "item", "item"),
    RawField("206", "row", "item category", "item"),
    RawField("207", "row", "item shop", "item"),
    RawField("210", "row", "item intentions", "item", multi=True),
    RawField("216", "row", "item brand", "item"),
    RawField("508", "row", "past categories x item category", "context", valued=True),
    RawField("509", "row", "past shops x item shop", "context", valued=True),
    RawField("702", "row", "past brands x item brand", "context", valued=True),
    RawField("853", "row", "past intentions x item intentions", "context", multi=True, valued=True),
    RawField("301", "row", "scenario", "domain"),
)
NUMBER = {field.name: number for number, field in enumerate(FIELDS)}
USER = NUMBER["101"]

SKELETON, COMMON = "skeleton", "common"
OFFICIAL_SPLITS = ("train", "test")
MEMBERS = {
    f"{stem}_{split}.csv": (split, kind)
    for split in OFFICIAL_SPLITS
    for stem, kind in (("sample_skeleton", SKELETON), ("common_features", COMMON))
}
"""The only file names that are read, with the official split and the kind of text each holds."""
FEATURE_END, FIELD_END, VALUE_BEGIN = 1, 2, 3
"""The control characters of a feature list: ``field 2 id 3 value``, features joined by 1."""
COMMA, LINE_FEED, CARRIAGE_RETURN = ord(","), ord("\n"), ord("\r")
