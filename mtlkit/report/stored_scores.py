"""The stored test scores of a run, whose arrays fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtlkit.record_check import UnreadableError
from mtlkit.store import ResultStore

FILE_LIMIT = 2**30  # bytes of the largest scores of a run that are read, unpacked
KINDS = {"score": "fiub", "label": "fiub", "observed": "b", "group": "iu"}
"""Kind of array to the letters of its types in numpy."""


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """The stored test scores of a run; empty if it has none.

    Returns:
        Of a score, ``label/NAME`` (N,), ``score/NAME`` (N,) or (N, C), and ``observed/NAME`` (N,)
        bool if some rows do not count; ``group/NAME`` (N,) codes, below 0 for rows of no group.

    Raises:
        UnreadableError: The file is damaged or too large, or its arrays do not fit together.
    """
    scores = ResultStore.arrays(folder, "scores", FILE_LIMIT)
    lengths = set()
    for name, array in scores.items():
        kinds = KINDS.get(name.partition("/")[0])
        if kinds is None:
            continue
        if array.dtype.kind not in kinds or not (array.ndim == 1 or name.startswith("score/")):
            raise UnreadableError(f"{name} is no column of numbers")
        lengths.add(array.shape[:1])
    if len(lengths) > 1:
        raise UnreadableError("its arrays are not of the same rows")
    return scores
