"""Tenrec: 493 million videos shown; click, follow, like, share (--from, a form; also QK-video).

``table`` says which file: ``qk-video`` (QK-video.csv), ``qb-video`` (QB-video.csv), or ``ctr``
(ctr_data_1M.csv), a sample with the last ten videos of a user. How often a video was watched is
feedback like the labels, so ``watching_times`` is no input. The files have no time: rows are dealt
out at random, as in the paper, and the lint that finds users in two splits is right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtlkit.data.datasets._log_table import LogTableSource, RawFiles
from mtlkit.data.table.join import with_columns
from mtlkit.data.table.read import Columns, Table
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec
from mtlkit.settings import Settings

SIGNALS = {
    "click": "the video was clicked",
    "follow": "its author was followed",
    "like": "the video was liked",
    "share": "the video was shared",
}
LEVELS = ("user_id", "item_id", "video_category", "gender", "age")
HISTORY = tuple(f"hist_{n}" for n in range(1, 11))
FILES = {"qk-video": "QK-video.csv", "qb-video": "QB-video.csv", "ctr": "ctr_data_1M.csv"}


class Tenrec(LogTableSource):
    """The video tables of Tenrec."""

    class Options(Settings):
        """Which table."""

        table: Literal["qk-video", "qb-video", "ctr"] = Field(
            "qk-video", description="which file of Tenrec"
        )

    options: Options
    title = "Tenrec: videos of two apps of Tencent"
    licence = "CC BY-NC 4.0, and an agreement to accept before the download"
    url = "https://static.qblv.qq.com/qblv/h5/algo-frontend/tenrec_dataset.html"
    citation = (
        "Yuan et al., Tenrec: A Large-scale Multipurpose Benchmark Dataset for Recommender "
        "Systems, NeurIPS 2022, arXiv:2210.10629"
    )
    unverified = "header as public code reads it; not compared with the real files"
    download_size = "several GB, by a form"

    members = tuple(FILES.values())

    def needed(self, found: Collection[str]) -> Sequence[str]:
        """The file that was chosen."""
        return (FILES[self.options.table],)

    def table(self, files: RawFiles) -> Table:
        """One row a video that was shown."""
        history = HISTORY if self.options.table == "ctr" else ()
        columns = (*LEVELS, *SIGNALS, "watching_times", *history)
        rows = files.read(FILES[self.options.table], columns=columns)
        if not history:
            return rows
        return with_columns(rows, history, {"history": pa.list_(pa.int64())}, _history)

    def spec(self) -> TableSpec:
        """Four tasks, split at random."""
        has_history = self.options.table == "ctr"
        return TableSpec(
            labels={name: TaskSpec(description=text) for name, text in SIGNALS.items()},
            ids=LEVELS,
            bags=("history",) if has_history else (),
            drop=("watching_times", *(HISTORY if has_history else ())),
            roles={"user": "user_id", "item": "item_id"},
            split=SplitSpec(by="ratio"),
        )


def _history(batch: Columns) -> Columns:
    """The last videos of the user as a list; 0 stands for none."""
    columns = [batch[name].fill_null(0).to_numpy(zero_copy_only=False) for name in HISTORY]
    videos = np.column_stack(columns).astype(np.int64)
    is_some = videos > 0
    offsets = np.concatenate([[0], np.cumsum(is_some.sum(1))]).astype(np.int32)
    return {"history": pa.ListArray.from_arrays(pa.array(offsets), pa.array(videos[is_some]))}
