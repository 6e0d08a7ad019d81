"""The base class of baselines: models without a network, fitted to one score at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy import sparse

from mtlkit.data.splits import Bag, Split
from mtlkit.data.types import Schema, Task
from mtlkit.settings import Settings


@dataclass(frozen=True)
class Columns:
    """What models see of n rows, those columns included that rows share."""

    ids: np.ndarray  # (n, F)
    dense: np.ndarray  # (n, D)
    bags: dict[str, sparse.csr_matrix]  # of each bag feature (n, vocab), the weights of its ids

    @classmethod
    def of(cls, schema: Schema, split: Split, rows: np.ndarray) -> Columns:
        """The columns of some rows (n,) of a split."""
        ids, dense = [split.ids[rows]], [split.dense[rows]]
        bags = {name: (bag, rows) for name, bag in split.bags.items()}
        if split.shared is not None:
            owners = split.shared.row[rows]
            ids.append(split.shared.ids[owners])
            dense.append(split.shared.dense[owners])
            bags |= {name: (bag, owners) for name, bag in split.shared.bags.items()}
        vocab = {feature.name: feature.vocab for feature in schema.features}
        matrices = {name: _matrix(*bag, vocab[name]) for name, bag in bags.items()}
        return cls(np.concatenate(ids, 1), np.concatenate(dense, 1), matrices)


def _matrix(bag: Bag, rows: np.ndarray, vocab: int) -> sparse.csr_matrix:
    """(n, vocab) the weights of the ids of some rows."""
    starts = bag.offsets[rows]
    ends = np.concatenate([[0], np.cumsum(bag.offsets[rows + 1] - starts)])
    positions = np.repeat(starts - ends[:-1], np.diff(ends)) + np.arange(ends[-1])
    return sparse.csr_matrix(
        (bag.weights[positions], bag.values[positions], ends), (len(rows), vocab)
    )


class Baseline(ABC):
    """A model without a network, to see what the networks are worth.

    It is fitted to each score by itself, on the rows on which the score is defined. Its search is
    fixed, and validation decides.

    Args:
        schema: Features and tasks.
        options: Of the baseline.
        train: Rows of the training split, from which encodings may be learnt.
        seed: Source of all that is drawn, below 2**32.
    """

    class Options(Settings):
        """What all baselines take."""

        rows: int | None = Field(
            1_000_000, gt=0, description="most rows of train, and of validation, that it sees"
        )

    shares_parameters: ClassVar[bool] = False

    def __init__(self, schema: Schema, options: Any, train: Columns, seed: int) -> None:
        self.schema, self.options, self.seed = schema, options, seed

    @abstractmethod
    def encode(self, columns: Columns) -> Any:
        """The inputs of n rows."""

    @abstractmethod
    def trials(self, task: Task) -> Iterator[tuple[dict[str, Any], Any]]:
        """What is tried: settings, and an estimator of scikit-learn that has them. Of one that
        grows by stages the number of stages is chosen as well.
        """
