"""The contract of an encoder: it sees a column's training rows, and then encodes all rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mtlkit.data.table.plan import ColumnPlan
from mtlkit.data.types import Feature


class BadValueError(Exception):
    """A value that cannot be encoded.

    Args:
        position: Of the row in the batch.
        what: What is wrong, after "The column 'x' of t.csv".
        mend: What to do about it.
    """

    def __init__(self, position: int, what: str, mend: str) -> None:
        super().__init__(what)
        self.position, self.what, self.mend = position, what, mend


@dataclass(frozen=True)
class Encoded:
    """A column of a batch, encoded."""

    ids: list[np.ndarray] = field(default_factory=list)  # (n,) int32 arrays, one an id feature
    # (n,) float32 arrays, one a dense feature.
    dense: list[np.ndarray] = field(default_factory=list)
    # (n,) lengths and (m,) int32 ids of the one bag feature.
    bag: tuple[np.ndarray, np.ndarray] | None = None


class ColumnEncoder(ABC):
    """One input column: fitted on the training rows, then applied to all."""

    def __init__(self, plan: ColumnPlan) -> None:
        self.plan = plan

    @abstractmethod
    def see(self, values: pa.Array) -> None:
        """Take in values of training rows."""

    @abstractmethod
    def settle(self) -> None:
        """All training rows were seen."""

    @property
    @abstractmethod
    def features(self) -> list[Feature]:
        """What the column becomes; known once it is settled."""

    @abstractmethod
    def encode(self, values: pa.Array) -> Encoded:
        """Encode values of any rows.

        Raises:
            BadValueError: One cannot be.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What was found out when it was settled, as plain values of JSON."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Settle with what another encoder of the same plan has found out."""

    def _feature(self, suffix: str = "", **facts: Any) -> Feature:
        role = self.plan.role
        return Feature(name=self.plan.name + suffix, role=None if role == "time" else role, **facts)


def is_missing(values: pa.Array) -> np.ndarray:
    """(n,) bool."""
    return values.is_null().to_numpy(zero_copy_only=False)
