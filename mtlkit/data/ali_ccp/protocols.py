"""The three protocols of Ali-CCP: which fields become which inputs, which rows are held out, which
ids are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtlkit.data.ali_ccp.fields import FIELDS, NUMBER
from mtlkit.data.ali_ccp.fields import Side as FileSide
from mtlkit.data.types import Feature
from mtlkit.errors import UsageError

HELD_OUT = 0.1
SPLIT_SALT = {"rows": 0xA117, "sessions": 0xF011, "test": 0x4EC4}


@dataclass(frozen=True)
class Protocol:
    """What a protocol takes from the raw data.

    Args:
        name: As typed.
        ids: Fields of which the last id of a row is an input.
        bags: Fields of which all ids are an input, with their weights.
        dense: Fields whose last value is an input, scaled to [0, 1] on train.
        min_count: How often an id must be seen to be kept; the others are 0, unknown.
        order: How kept ids are numbered: by raw id, or as first seen on train.
        held_out: Where validation comes from: random ``rows`` of train, random ``sessions`` of
            train (all rows of a common index), or one half of ``test``.
        counts_held_out: Whether rows held out of train count for ``min_count``.
    """

    name: str
    ids: tuple[str, ...]
    bags: tuple[str, ...]
    dense: tuple[str, ...]
    min_count: int
    order: Literal["raw", "seen"]
    held_out: Literal["rows", "sessions", "test"]
    counts_held_out: bool

    def select(self, names: Sequence[str]) -> Protocol:
        """The same with some of its fields.

        Raises:
            UsageError: A field is not among the protocol's.
        """
        own = [field.name for field in FIELDS if field.name in {*self.ids, *self.bags, *self.dense}]
        for name in names:
            if name not in own:
                raise UsageError(
                    f"The protocol {self.name} has no field {name!r}.",
                    f"its fields are {', '.join(own)}",
                )
        kept = frozenset(names)
        ids, bags, dense = (
            tuple(name for name in chosen if name in kept)
            for chosen in (self.ids, self.bags, self.dense)
        )
        return Protocol(
            self.name,
            ids,
            bags,
            dense,
            self.min_count,
            self.order,
            self.held_out,
            self.counts_held_out,
        )


_AITM = "205 206 207 216 508 509 702 853 301 101 121 122 124 125 126 127 128 129"
_RECHUB = "205 206 207 210 216 508 509 702 853 301 101 109_14 110_14 127_14 150_14 121 122 124 125 126 127 128 129"
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
    """What to prepare.

    Args:
        protocol: With the fields that are wanted.
        min_count: How often an id must be seen on train to be kept.
        sample: Share of users to keep.
        max_bad_rows: Malformed rows that are put up with.
    """

    protocol: Protocol
    min_count: int
    sample: float
    max_bad_rows: int


@dataclass(frozen=True)
class SidePlan:
    """The part of a protocol that one file answers for, in packed order.

    Args:
        ids: Numbers of fields.
        bags: Numbers of fields.
        dense: Numbers of fields.
    """

    ids: tuple[int, ...]
    bags: tuple[int, ...]
    dense: tuple[int, ...]


def side_plan(protocol: Protocol, side: FileSide) -> SidePlan:
    """What one file answers for."""

    def of(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(NUMBER[name] for name in names if FIELDS[NUMBER[name]].side == side)

    return SidePlan(of(protocol.ids), of(protocol.bags), of(protocol.dense))


def features(protocol: Protocol, vocab: dict[int, int]) -> tuple[Feature, ...]:
    """The schema's features: ids, bags and numbers, each with the skeleton's before the common
    file's.
    """
    sides: tuple[FileSide, ...] = ("row", "user")
    plans = [side_plan(protocol, side) for side in sides]
    found = [
        Feature(name=FIELDS[n].name, vocab=vocab[n], role=FIELDS[n].role)
        for plan in plans
        for n in plan.ids
    ]
    found += [
        Feature(name=FIELDS[n].name, kind="bag", vocab=vocab[n], role=FIELDS[n].role)
        for plan in plans
        for n in plan.bags
    ]
    found += [
        Feature(name=f"D{FIELDS[n].name}", kind="dense", role=FIELDS[n].role)
        for plan in plans
        for n in plan.dense
    ]
    return tuple(found)
