"""Taobao display ads: 26 million ads; click, and later cart, favourite, buy (--from, a login).

A row is an ad that was shown to a user, from 6 to 13 May 2017. Three labels are made of the log of
behaviour: whether the user puts an item of the ad's category into the cart, marks or buys one, from
the next second to the end of the same day (ours; the files have no such label). The last day is
test, the one before it validation, as in the papers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.datasets._log_table import LogTableSource, RawFiles
from mtlkit.data.table.join import look_up, with_clock, with_columns
from mtlkit.data.table.read import Columns, Table
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

DAY = 86_400  # seconds
UTC_HOURS = 8
FIRST_DAY = 17_292  # 6 May 2017 in Beijing, in days since 1970
FIRST_SECOND = (FIRST_DAY - 15) * DAY  # before anything in the log of behaviour
LATER = {"cart": "into the cart", "fav": "among the favourites", "buy": "bought"}
AD_LEVELS = ("cate_id", "campaign_id", "customer", "brand")
USER_LEVELS = (
    *("cms_segid", "cms_group_id", "final_gender_code", "age_level"),
    *("pvalue_level", "shopping_level", "occupation", "new_user_class_level"),
)


class TaobaoAd(LogTableSource):
    """Display ads of Taobao."""

    title = "Taobao display ads"
    licence = "not stated: research data of Tianchi, whose terms you accept there"
    url = "https://tianchi.aliyun.com/dataset/56"
    citation = (
        "Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018, "
        "doi:10.1145/3219819.3219823"
    )
    unverified = (
        "format as public READMEs say; not compared with the real files here; the log of behaviour "
        "takes about 50 GB of disk while it is prepared"
    )
    download_size = "6 GB [?], by a login"

    members = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv")

    def table(self, files: RawFiles) -> Table:
        """One row an ad that was shown to a user."""
        shown, ads, users, behaviour = self.members
        log = files.read(shown, columns=("user", "time_stamp", "adgroup_id", "pid", "clk"))
        log = look_up(log, "adgroup_id", files.read(ads), (*AD_LEVELS, "price"))
        people = _without_spaces(files.read(users))
        log = look_up(log, "user", people, USER_LEVELS, "userid")
        log = with_clock(log, "time_stamp", utc_hours=UTC_HOURS)
        log = with_columns(log, ["time_stamp"], {"day": pa.int64()}, _day)
        acts = _Acts(files.read(behaviour, columns=("user", "time_stamp", "btag", "cate")))
        needs = ["user", "time_stamp", "cate_id"]
        return with_columns(log, needs, dict.fromkeys(LATER, pa.int64()), acts.later)

    def spec(self) -> TableSpec:
        """Four tasks, split by days."""
        later = {
            name: TaskSpec(description=f"an item of this category {text} later that day")
            for name, text in LATER.items()
        }
        days = {"train": tuple("012345"), "validation": ("6",), "test": ("7",)}
        return TableSpec(
            labels={"clk": TaskSpec(description="the ad was clicked"), **later},
            ids=("user", "adgroup_id", "pid", "hour", *AD_LEVELS, *USER_LEVELS),
            dense=("price",),
            # Test is one day, whose weekday train has never seen.
            drop=("nonclk", "weekday"),
            roles={"user": "user", "item": "adgroup_id", "time": "time_stamp"},
            split=SplitSpec(by="column", column="day", values=days),
            transform={"price": "log"},
        )


def _without_spaces(table: Table) -> Table:
    """The file of users, whose last name in the first line ends in a space."""
    padded = {name.strip(): name for name in table.types if name != name.strip()}
    types = {name: table.types[original] for name, original in padded.items()}

    def rename(batch: Columns) -> Columns:
        return {name: batch[original] for name, original in padded.items()}

    return with_columns(table, list(padded.values()), types, rename) if padded else table


def _day(batch: Columns) -> Columns:
    """Days since the first one, in Beijing; what lies outside counts with the nearest."""
    days = (batch["time_stamp"].to_numpy() + UTC_HOURS * 3600) // DAY - FIRST_DAY
    return {"day": pa.array(days.clip(0, 7))}


class _Acts:
    """What users did in the shop, by user, category and time."""

    def __init__(self, log: Table) -> None:
        moments: dict[str, list[np.ndarray]] = {name: [] for name in LATER}
        for batch in log.batches(["user", "time_stamp", "btag", "cate"]):
            for name, parts in moments.items():
                is_act = pc.equal(batch["btag"], name)
                user, time, category = (
                    batch[column].filter(is_act).to_numpy()
                    for column in ("user", "time_stamp", "cate")
                )
                parts.append(_moment(user, category, time))
        self.moments = {name: np.sort(np.concatenate(parts)) for name, parts in moments.items()}

    def later(self, batch: Columns) -> Columns:
        """Whether each act follows on the same day in the category of the ad."""
        user, time = batch["user"].to_numpy(), batch["time_stamp"].to_numpy()
        category = batch["cate_id"].fill_null(-1).to_numpy()
        midnight = (time + UTC_HOURS * 3600) // DAY * DAY + DAY - UTC_HOURS * 3600
        first, last = _moment(user, category, time + 1), _moment(user, category, midnight)
        return {
            name: pa.array(
                (np.searchsorted(moments, last) > np.searchsorted(moments, first)).astype(np.int64)
            )
            for name, moments in self.moments.items()
        }


def _moment(user: np.ndarray, category: np.ndarray, time: np.ndarray) -> np.ndarray:
    """(n,) int64 that rise with user, then category, then time."""
    return (user * (1 << 18) + category + 1) * (1 << 22) + (time - FIRST_SECOND).clip(0, 4_000_000)
