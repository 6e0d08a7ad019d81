"""KuaiRand: logs of a video app, of which a part showed videos at random.

Inputs are what was known when a video was shown. All signals of the viewer are labels or left out:
the time played decides on ``long_view``, and the times in profile and comments on entering them.
So are the statistics of videos, which were counted over the whole month, and their state today.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from mtlkit.data.datasets._log_table import LogTableSource, RawFiles
from mtlkit.data.table.join import keep_rows, look_up, with_clock, with_columns
from mtlkit.data.table.read import Columns, Table
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec
from mtlkit.settings import Settings

LICENCE = "CC BY-SA 4.0"
USER_LEVELS = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{n}" for n in range(18)),
)
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_LEVELS = ("author_id", "video_type", "upload_type", "music_id")
UTC_HOURS = 8
SIGNALS = {
    "is_click": "clicked, or played 7 seconds or to the end",
    "is_like": "liked the video",
    "is_follow": "followed its author",
    "is_comment": "wrote a comment",
    "is_forward": "forwarded the video",
    "is_hate": "said not to like it",
    "long_view": "played 18 seconds or to the end",
    "is_profile_enter": "entered the profile of the author",
}
PERIODS = {
    "train": ("2022-04-08", "2022-04-21"),
    "validation": ("2022-04-22", "2022-04-28"),
    "test": ("2022-04-29", "2022-05-08"),
}
"""First and last day of a split."""
FIRST_TEST_DATE = 20220429
LOG_COLUMNS = ("user_id", "video_id", "date", "time_ms", "play_time_ms", "duration_ms", "tab")
MILLISECONDS = 1000


def members_of(version: str) -> tuple[str, ...]:
    """Two logs of recommended videos, users, videos, and the log of random ones."""
    names = (
        "log_standard_4_08_to_4_21",
        "log_standard_4_22_to_5_08",
        "user_features",
        "video_features_basic",
        "log_random_4_22_to_5_08",
    )
    return tuple(f"{name}_{version}.csv" for name in names)


class KuaiRand(LogTableSource):
    """One of the versions of KuaiRand."""

    class Options(Settings):
        """Which log is tested on."""

        test: Literal["standard", "random"] = Field(
            "standard", description="the log of the last days: as recommended, or shown at random"
        )

    options: Options
    licence = LICENCE
    url = "https://zenodo.org/records/10439422"
    citation = (
        "Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed "
        "Videos, CIKM 2022, doi:10.1145/3511808.3557624"
    )

    def needed(self, found: Collection[str]) -> Sequence[str]:
        """The log of random videos only where it is tested on."""
        return self.members if self.options.test == "random" else self.members[:-1]

    def table(self, files: RawFiles) -> Table:
        """One row a video that was shown to a user."""
        first, second, users, videos, *random = self.needed(())
        log = files.read(first, second, *random, columns=(*LOG_COLUMNS, *SIGNALS, "is_rand"))
        if random:
            log = keep_rows(log, ["date", "is_rand"], _is_split_log)

        # Who saw it, what it was, and when.
        log = look_up(log, "user_id", files.read(users), (*USER_LEVELS, *USER_NUMBERS))
        log = look_up(log, "video_id", files.read(videos), (*VIDEO_LEVELS, "tag"))
        log = with_clock(log, "time_ms", MILLISECONDS, UTC_HOURS)
        return with_columns(log, ["play_time_ms"], {"view_time": pa.float64()}, _view_time)

    def spec(self) -> TableSpec:
        """Eight signals and the time played, split by days."""
        labels = {name: TaskSpec(description=text) for name, text in SIGNALS.items()}
        labels["view_time"] = TaskSpec(kind="regression", description="log(1 + seconds played)")
        days = {
            split: tuple(day.strftime("%Y%m%d") for day in pd.date_range(*period))
            for split, period in PERIODS.items()
        }
        return TableSpec(
            labels=labels,
            ids=("user_id", "video_id", "tab", "hour", "weekday", *USER_LEVELS, *VIDEO_LEVELS),
            dense=("duration_ms", *USER_NUMBERS),
            bags=("tag",),
            separators={"tag": ","},
            drop=("hourmin", "play_time_ms", "profile_stay_time", "comment_stay_time", "is_rand"),
            roles={"user": "user_id", "item": "video_id", "time": "time_ms"},
            split=SplitSpec(by="column", column="date", values=days),
            transform=dict.fromkeys(("duration_ms", *USER_NUMBERS), "log"),
        )


def _is_split_log(batch: Columns) -> np.ndarray:
    """(n,) the days of test from the random log, and those before from the standard one."""
    is_test = batch["date"].to_numpy() >= FIRST_TEST_DATE
    is_random = batch["is_rand"].to_numpy() == 1
    return np.asarray(is_test == is_random)


def _view_time(batch: Columns) -> Columns:
    seconds = batch["play_time_ms"].cast(pa.float64()).to_numpy(zero_copy_only=False) / MILLISECONDS
    logs = np.log1p(np.maximum(seconds, 0))
    return {"view_time": pa.array(logs, from_pandas=True)}
