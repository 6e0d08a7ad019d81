"""The metrics of one task's predictions that are computed once, at the end of a run.

SciPy and pandas take a third of a second to import, which a plan of a grid need not pay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mtlkit.metrics.definitions import MetricName
from mtlkit.metrics.grouped import RankedRows

ECE_BINS = 15


@dataclass
class TaskRows:
    """The rows of one score that count, and its metrics on them."""

    scores: np.ndarray  # (N,) float32 logits of a binary task, or predictions
    labels: np.ndarray  # (N,)
    # Name of a group to its (N,) codes, below 0 where a row belongs to none.
    groups: Callable[[str], np.ndarray]
    known: Mapping[str, Any]  # metrics that are computed already
    # Larger ones rank their rows, and count as this one where the probability counts.
    largest_logit: float = math.inf
    _ranked: dict[str | None, RankedRows] = field(default_factory=dict)

    def metrics(self, names: Iterable[MetricName]) -> dict[str, float | None]:
        """Metrics by name; None where one is not defined on the rows."""
        defined = len(self.labels) > 0 and not bool(np.isnan(self.scores).any())
        return {str(name): self._value(name) if defined else None for name in names}

    def _value(self, name: MetricName) -> float | None:
        if name.number is None and name.name in self.known:
            return self.known[name.name]
        value: float | None = getattr(self, f"_{name.name}")(name)
        return value

    def ranked(self, group: str | None) -> RankedRows:
        """The rows in the order of their scores within a group; those of no group are left out."""
        if group not in self._ranked:
            scores, is_positive = self.scores, self.labels > 0
            codes = None if group is None else self.groups(group)
            if codes is not None and codes.min(initial=0) < 0:
                has_group = codes >= 0
                scores, is_positive = scores[has_group], is_positive[has_group]
                codes = codes[has_group]
            self._ranked[group] = RankedRows(scores, is_positive, codes)
        return self._ranked[group]

    # --- ranks

    def _gauc(self, name: MetricName) -> float | None:
        return self.ranked(name.group).gauc()

    def _gauc_unweighted(self, name: MetricName) -> float | None:
        return self.ranked(name.group).gauc(weighted=False)

    def _ndcg(self, name: MetricName) -> float | None:
        return self.ranked(name.group).ndcg(name.cut)

    def _recall(self, name: MetricName) -> float | None:
        return self.ranked(name.group).recall(name.cut)

    def _average_precision(self, name: MetricName) -> float | None:
        return self.ranked(None).average_precision()

    # --- probabilities

    @cached_property
    def _probabilities(self) -> np.ndarray:
        from scipy.special import expit

        logits = np.minimum(self.scores.astype(np.float64), self.largest_logit)
        return np.asarray(expit(logits))

    def _ece(self, name: MetricName) -> float:
        """The mean distance of predicted and observed rates in bins of equal width."""
        probabilities = self._probabilities
        bins = np.minimum((probabilities * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        surplus = np.bincount(bins, probabilities - (self.labels > 0))
        return float(np.abs(surplus).sum() / len(bins))

    def _accuracy(self, name: MetricName) -> float:
        is_yes = self._probabilities >= name.threshold
        return float((is_yes == (self.labels > 0)).mean())

    def _f1(self, name: MetricName) -> float | None:
        is_positive = self.labels > 0
        if not is_positive.any():
            return None
        is_yes = self._probabilities >= name.threshold
        hits = np.count_nonzero(is_yes & is_positive)
        return float(2 * hits / (np.count_nonzero(is_yes) + np.count_nonzero(is_positive)))

    # --- numbers

    def _rmse(self, name: MetricName) -> float | None:
        mse = self.known.get("mse")
        return None if mse is None else math.sqrt(mse)

    def _spearman(self, name: MetricName) -> float | None:
        """The correlation of ranks, which needs no original scale; None of a constant."""
        import pandas as pd

        ranks = pd.DataFrame({"score": self.scores, "label": self.labels}).rank().to_numpy()
        if (ranks == ranks[0]).all(axis=0).any():
            return None
        return float(np.corrcoef(ranks, rowvar=False)[0, 1])
