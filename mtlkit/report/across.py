"""Methods across data sets: mean ranks with their critical difference, and how often each wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlkit.report.run_warnings import listed
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import Table, TableCell, are, fixed

FEWEST_BLOCKS = 6  # with fewer blocks no rank test is made
Method = tuple[str, str]  # a model and a balancer
NONE = "–"  # in place of a balancer, where there is none


@dataclass(frozen=True)
class Across:
    """The methods that ran on all data sets, best mean rank first."""

    # (methods, 3) ``rank``, the mean over blocks; ``wins``, the share of blocks whose mean is
    # better than single-task's; ``improvement``, the probability that one run is better than one of
    # single-task, mean over blocks.
    standings: pd.DataFrame
    blocks: int  # how many: each task of each data set is one, and seeds are none
    p_value: float  # of Friedman's test that all ranks are the same; NaN if it was not made
    # The difference of mean ranks that outlasts chance, by Nemenyi's test at 5 %; NaN if it was not
    # made.
    critical: float
    elsewhere: tuple[str, ...]  # methods that ran on some of the data sets only
    skipped: tuple[str, ...]  # tasks of data sets on which no seed finished under all methods
    title: str  # what is compared, and whether it is simulated

    @property
    def near(self) -> int:
        """How many methods are not told apart from the best."""
        ranks = self.standings["rank"]
        if not self.p_value < 0.05:
            return len(ranks) - 1
        return int((ranks - ranks.min() <= self.critical).sum()) - 1

    @property
    def sentences(self) -> list[str]:
        """What the ranks say, on what they rest, and what is left out."""
        skipped = ""
        if self.skipped:
            skipped = f"Left out, as no seed finished under all methods: {listed(self.skipped)}."
        if not self.blocks:
            return [f"No ranks across data sets. {skipped}"]
        best, rank = label(self.standings.index[0]), self.standings["rank"].iloc[0]
        text = (
            f"Over {self.blocks} blocks, each a task of a data set, {best} has the best mean rank, "
            f"{fixed(rank, 2)} of {len(self.standings)} methods."
        )
        if math.isnan(self.p_value):
            why = f"There are fewer than {FEWEST_BLOCKS} blocks or 3 methods, too few for a test."
        else:
            why = (
                f"{self.near} of the others {are(self.near)} not told apart from it, by "
                f"Friedman's test (p = {self.p_value:.2g}) and Nemenyi's critical difference of "
                f"{fixed(self.critical, 2)}."
            )
        left_out = f"Not on all data sets: {listed(self.elsewhere)}." if self.elsewhere else ""
        return [text, why, *filter(None, [left_out, skipped])]


def compare_across(summaries: Sequence[Summary]) -> Across | None:
    """The standings of a folder of several data sets; None without two that share two methods.

    Means are over the seeds that all of these methods finished on a data set; without any, the data
    set is skipped.
    """
    usable = [summary for summary in summaries if summary.finished and summary.block.comparable]
    by_dataset = [{_method(row): row for row in summary.finished} for summary in usable]
    shared = set[Method].intersection(*map(set, by_dataset)) if len(by_dataset) > 1 else set()
    if len(shared) < 2:
        return None
    methods = sorted(shared)
    single = [key for key in methods if by_dataset[0][key].group.is_reference]

    # A line a block: the mean of each method, and how often a run of it beats single-task's.
    means, improvements, skipped = [], [], []
    for summary, rows in zip(usable, by_dataset, strict=True):
        for task in summary.block.comparable:
            values = [rows[key].values[task.name] for key in methods]
            seeds = set[int].intersection(*map(set, values))
            if not seeds:
                skipped.append(f"{task.title} of {summary.block.label}")
                continue
            runs = [[task.reading.goodness(by_seed[s]) for s in seeds] for by_seed in values]
            means.append(np.mean(runs, axis=1))
            others = runs[methods.index(single[0])] if single else []
            improvements.append([_share_won(of_method, others) for of_method in runs])

    # Without a block there are no ranks, but a reader is told why.
    scores = np.array(means).reshape(-1, len(methods))  # (blocks, methods)
    standings = pd.DataFrame()
    if means:
        of_single = scores[:, [methods.index(single[0])]] if single else np.nan
        standings = pd.DataFrame(
            {
                "rank": pd.DataFrame(-scores).rank(axis=1).mean().to_numpy(),
                "wins": (np.sign(scores - of_single).mean(axis=0) + 1) / 2,
                "improvement": np.mean(improvements, axis=0),
            },
            index=pd.MultiIndex.from_tuples(methods, names=["model", "balancer"]),
        ).sort_values("rank", kind="stable")
    p_value, critical = _rank_tests(scores)
    some = {key for rows in by_dataset for key in rows} - shared
    elsewhere = tuple(label(key) for key in sorted(some))
    simulated = [summary.block.simulated for summary in usable]
    which = "simulated data" if all(simulated) else "some of them simulated"
    title = "Across data sets" + (f" ({which})" if any(simulated) else "")
    return Across(standings, len(scores), p_value, critical, elsewhere, tuple(skipped), title)


def _method(row: Row) -> Method:
    return row.group.model, row.group.balancer if row.group.has_balancer else NONE


def label(method: Method) -> str:
    """A method in one name."""
    return " + ".join(name for name in method if name != NONE)


def _share_won(runs: Sequence[float], others: Sequence[float]) -> float:
    """The probability that one of some runs is better than one of others, a tie counting half: the
    statistic of Mann and Whitney over the number of pairs. NaN without others.
    """
    if not others:
        return math.nan
    return float(np.sign(np.subtract.outer(runs, others)).mean() + 1) / 2


def _rank_tests(scores: np.ndarray) -> tuple[float, float]:
    """Friedman's p-value and Nemenyi's critical difference of mean ranks (Demsar, 2006, JMLR 7):
    q · √(k (k + 1) / (6 n)) for k methods on n blocks, where q is the quantile of the studentised
    range over √2.

    Args:
        scores: (n, k) higher is better.

    Returns:
        NaN twice for too few blocks or methods.
    """
    from scipy import stats  # takes longer to import than all else that a report needs

    blocks, methods = scores.shape
    if blocks < FEWEST_BLOCKS or methods < 3:
        return math.nan, math.nan
    quantile = stats.studentized_range.ppf(0.95, methods, math.inf) / math.sqrt(2)
    critical = quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))
    return float(stats.friedmanchisquare(*scores.T).pvalue), float(critical)


def across_table(across: Across) -> Table:
    """The standings as a table."""
    columns = ("model", "balancer", "mean rank", "beats single-task, %", "P(improvement), %")
    cells: list[tuple[TableCell, ...]] = []
    for model, balancer, rank, wins, improvement in across.standings.reset_index().to_numpy():
        shares = [TableCell(fixed(100 * share, 0)) for share in (wins, improvement)]
        mean = TableCell(fixed(rank, 2), best=not cells)
        cells.append((TableCell(model), TableCell(balancer), mean, *shares))
    notes = (
        "Mean rank: over each task of each data set, 1 being best, by means over common seeds. "
        "Tasks of one data set are not independent, so the test is a little too sure.",
        "Beats single-task: the share of these whose mean is better; P(improvement): the "
        "probability that one run is better than one of single-task, by the pairs of runs. A tie "
        "counts half.",
    )
    return Table(across.title, columns, tuple(cells), notes)
