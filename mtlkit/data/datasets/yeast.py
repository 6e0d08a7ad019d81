"""Yeast: 2,417 genes with up to 14 functions each, which are 14 tasks (pip, 3 MB).

Inputs are 103 numbers of a gene: how active it was in experiments, and its relatives in other
species. Rows have no order in time; a fifth is validation and a fifth test, at random.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd

from mtlkit.data.datasets._pip_table import Files, PipPackage, PipTableSource
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

CLASSES = 14


class Yeast(PipTableSource):
    """The multi-label table of yeast genes."""

    title = "Yeast: functions of genes"
    licence = "package: BSD 3-Clause; it states none for the data, which Mulan lists"
    url = "https://mulan.sourceforge.net/datasets-mlc.html"
    citation = (
        "A. Elisseeff and J. Weston, A Kernel Method for Multi-Labelled Classification, NIPS 2001"
    )
    download_size = "3 MB"
    # Few rows: small batches, and many passes.
    training: ClassVar[dict[str, Any]] = {"batch_size": 64, "epochs": 20}
    package = PipPackage(
        "river==0.26.1", "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef"
    )
    members = ("river/datasets/yeast.csv.gz",)

    def table(self, files: Files) -> pd.DataFrame:
        """One row a gene."""
        return pd.read_csv(files["yeast.csv.gz"], compression="gzip")

    def spec(self) -> TableSpec:
        """Fourteen tasks, split at random."""
        numbers = range(1, CLASSES + 1)
        return TableSpec(
            labels={f"Class{n}": TaskSpec(description=f"function class {n}") for n in numbers},
            split=SplitSpec(validation=0.2, test=0.2),
        )
