"""KuaiRec: 12.5 million videos watched, 2 signals and the watch ratio (zenodo.org, 432 MB).

A row is a video of the big matrix that a user watched; the earliest train, the latest test. With
``test=small`` test is the small matrix, in which 1,411 users saw nearly all of 3,327 videos: it is
without the bias of a recommender, but of the same days as train. The time played is no input, and
of the daily file of videos only what does not change is read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtlkit.data.datasets._kuairand import (
    LICENCE,
    USER_LEVELS,
    USER_NUMBERS,
    UTC_HOURS,
    VIDEO_LEVELS,
)
from mtlkit.data.datasets._log_table import LogTableSource, RawFiles
from mtlkit.data.table.join import look_up, stack_tables, with_clock, with_columns, with_constant
from mtlkit.data.table.read import Columns, Table
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec
from mtlkit.settings import Settings

LOG_COLUMNS = ("user_id", "video_id", "video_duration", "timestamp", "watch_ratio")


class KuaiRec(LogTableSource):
    """KuaiRec 2.0."""

    class Options(Settings):
        """What is tested on."""

        test: Literal["latest", "small"] = Field(
            "latest", description="the latest rows of the big matrix, or the small matrix"
        )

    options: Options
    title = "KuaiRec 2.0"
    licence = LICENCE
    url = "https://zenodo.org/records/18164998"
    address = "https://zenodo.org/records/18164998/files/KuaiRec.zip"
    md5 = "261550d472c48eff4990fb13c0e5bcf7"
    citation = (
        "Gao et al., KuaiRec: A Fully-observed Dataset and Insights for Evaluating Recommender "
        "Systems, CIKM 2022, doi:10.1145/3511808.3557220"
    )
    download_size = "432 MB"

    members = (
        "user_features.csv",
        "item_categories.csv",
        "item_daily_features.csv",
        "big_matrix.csv",
        "small_matrix.csv",
    )

    def needed(self, found: Collection[str]) -> Sequence[str]:
        """The small matrix only where it is tested on."""
        return self.members if self.options.test == "small" else self.members[:-1]

    def table(self, files: RawFiles) -> Table:
        """One row a video that a user watched."""
        users, tags, days, *matrices = self.needed(())
        parts = [
            with_constant(files.read(name, columns=LOG_COLUMNS), "matrix", name.partition("_")[0])
            for name in matrices
        ]
        log = stack_tables(parts)
        log = look_up(log, "user_id", files.read(users), (*USER_LEVELS, *USER_NUMBERS))
        log = look_up(log, "video_id", files.read(tags), ("feat",))
        log = look_up(log, "video_id", files.read(days), VIDEO_LEVELS)
        log = with_clock(log, "timestamp", utc_hours=UTC_HOURS)
        types = {"finished": pa.int64(), "replayed": pa.int64(), "watched": pa.float64()}
        return with_columns(log, ["watch_ratio"], types, _labels)

    def spec(self) -> TableSpec:
        """Three tasks made of one ratio, which is no input."""
        by_matrix = SplitSpec(
            by="column", column="matrix", values={"train": ("big",), "test": ("small",)}
        )
        is_small = self.options.test == "small"
        left_out = ("play_duration", "time", "date", "watch_ratio")
        return TableSpec(
            labels={
                "finished": TaskSpec(description="watched for the length of the video or longer"),
                "replayed": TaskSpec(description="watched for more than twice its length"),
                "watched": TaskSpec(
                    kind="regression", description="log(1 + time watched / length of the video)"
                ),
            },
            ids=("user_id", "video_id", "hour", "weekday", *USER_LEVELS, *VIDEO_LEVELS),
            dense=("video_duration", *USER_NUMBERS),
            bags=("feat",),
            # Some rows of the small matrix have no time.
            drop=(*left_out, "timestamp") if is_small else (*left_out, "matrix"),
            roles={"user": "user_id", "item": "video_id"}
            | ({} if is_small else {"time": "timestamp"}),
            split=by_matrix if is_small else SplitSpec(by="time"),
            transform=dict.fromkeys(("video_duration", *USER_NUMBERS), "log"),
        )


def _labels(batch: Columns) -> Columns:
    ratio = batch["watch_ratio"].to_numpy(zero_copy_only=False)
    is_missing = np.isnan(ratio)
    return {
        "finished": pa.array((ratio >= 1).astype(np.int64), mask=is_missing),
        "replayed": pa.array((ratio > 2).astype(np.int64), mask=is_missing),
        "watched": pa.array(np.log1p(ratio), from_pandas=True),
    }
