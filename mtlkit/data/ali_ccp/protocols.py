"""The three protocols of Ali-CCP: which fields become which inputs, which rows are held out, which
ids are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mtlkit.data.ali_ccp.fields import FIELDS, NUMBER
from mtlkit.data.ali_ccp.fields import Side as FileSide
from mtlkit.data.types import Feature, Task
from mtlkit.errors import UsageError

TASKS = (
    Task(name="click", description="the item shown was clicked"),
    Task(name="purchase", description="it was clicked and then bought"),
)
FUNNEL = ("click", "purchase")
HELD_OUT = 0.1  # share of train that is held out for validation
SPLIT_SALT = {"rows": 0xA117, "sessions": 0xF011, "test": 0x4EC4}


@dataclass(frozen=True)
class Protocol:
    """What a protocol takes from the raw data."""

    name: str  # as typed
    ids: tuple[str, ...]  # fields of which the last id of a row is an input
    bags: tuple[str, ...]  # fields of which all ids are an input, with their weights
    dense: tuple[str, ...]  # fields whose last value is an input, scaled to [0, 1] on train
    min_count: int  # how often an id must be seen to be kept; the others are 0, unknown
    order: Literal["raw", "seen"]  # how kept ids are numbered: by raw id, or as first seen on train
    # Where validation comes from: random ``rows`` of train, random ``sessions`` of train (all rows
    # of a common index), or one half of ``test``.
    held_out: Literal["rows", "sessions", "test"]
    counts_held_out: bool  # whether rows held out of train count for ``min_count``

    def select(self, names: Sequence[str]) -> Protocol:
        """The same with some of its fields.

        Raises:
            UsageError: A field is not among the protocol's.
        """
        known = {*self.ids, *self.bags, *self.dense}
        for name in names:
            if name not in known:
                in_order = [field.name for field in FIELDS if field.name in known]
                raise UsageError(
                    f"The protocol {self.name} has no field {name!r}.",
                    f"its fields are {', '.join(in_order)}",
                )
        return replace(
            self,
            ids=tuple(name for name in self.ids if name in names),
            bags=tuple(name for name in self.bags if name in names),
            dense=tuple(name for name in self.dense if name in names),
        )


_AITM = "205 206 207 216 508 509 702 853 301 101 121 122 124 125 126 127 128 129"
_RECHUB = "205 206 207 210 216 508 509 702 853 301 101 109_14 110_14 127_14 150_14"
_RECHUB += " 121 122 124 125 126 127 128 129"
_FULL = "205 206 207 216 508 509 702 301 101 121 122 124 125 126 127 128 129"

PROTOCOLS = {
    "aitm": Protocol("aitm", tuple(_AITM.split()), (), (), 12, "raw", "rows", True),
    "rechub": Protocol(
        "rechub",
        tuple(_RECHUB.split()),
        (),
        ("508", "509", "702", "853", "109_14", "110_14", "127_14", "150_14"),
        10,
        "seen",
        "test",
        True,
    ),
    "full": Protocol(
        "full",
        tuple(_FULL.split()),
        ("210", "853", "109_14", "110_14", "127_14", "150_14"),
        ("508", "509", "702"),
        10,
        "raw",
        "sessions",
        False,
    ),
}
"""``aitm``: Xi et al., https://doi.org/10.1145/3447548.3467071, and its public code. ``rechub``:
the columns of Torch-RecHub. ``full``: nothing thrown away. Fields of the skeleton stand before
those of the common file: that is the packed order."""


@dataclass(frozen=True)
class Request:
    """What to prepare."""

    protocol: Protocol  # with the fields that are wanted
    min_count: int  # how often an id must be seen on train to be kept
    sample: float  # share of users to keep
    max_bad_rows: int  # how many malformed rows are left out before giving up


@dataclass(frozen=True)
class FieldPlan:
    """The fields that a protocol takes from one file, by their numbers and in packed order."""

    ids: tuple[int, ...]  # fields of which the last id is an input
    bags: tuple[int, ...]  # fields of which all ids are an input
    dense: tuple[int, ...]  # fields whose value is an input


def field_plan(protocol: Protocol, side: FileSide) -> FieldPlan:
    """What a protocol takes from one file."""

    def of_this_file(names: Sequence[str]) -> tuple[int, ...]:
        numbers = (NUMBER[name] for name in names)
        return tuple(number for number in numbers if FIELDS[number].side == side)

    return FieldPlan(
        of_this_file(protocol.ids), of_this_file(protocol.bags), of_this_file(protocol.dense)
    )


def features(protocol: Protocol, vocab: dict[int, int]) -> tuple[Feature, ...]:
    """The schema's features: ids, bags and numbers, each with the skeleton's before the common
    file's.
    """
    plans = (field_plan(protocol, "row"), field_plan(protocol, "user"))
    features = []
    for plan in plans:
        for number in plan.ids:
            field = FIELDS[number]
            features.append(Feature(name=field.name, vocab=vocab[number], role=field.role))
    for plan in plans:
        for number in plan.bags:
            field = FIELDS[number]
            features.append(
                Feature(name=field.name, kind="bag", vocab=vocab[number], role=field.role)
            )
    for plan in plans:
        for number in plan.dense:
            field = FIELDS[number]
            features.append(Feature(name=f"D{field.name}", kind="dense", role=field.role))
    return tuple(features)
