"""Criteo attribution: 16.5 million banners; click, conversion, attribution, cost (criteo, 623 MB).

A row is a banner that was shown to a user, in 30 days of traffic; the earliest train, the latest
test. What is known only later is no input: the position and number of clicks before a conversion,
its time, its number and its price. A conversion need not follow a click on this banner, so the
tasks are no funnel.
"""

from __future__ import annotations

from mtlkit.data.datasets._log_table import LogTableSource, RawFiles
from mtlkit.data.table.join import with_clock
from mtlkit.data.table.read import Table
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

CATEGORIES = tuple(f"cat{n}" for n in range(1, 10))
LATER = ("conversion_timestamp", "conversion_id", "click_pos", "click_nb", "cpo")
"""What is known only after the banner was shown."""


class CriteoAttribution(LogTableSource):
    """The attribution data of Criteo."""

    title = "Criteo attribution modeling for bidding"
    licence = "CC BY-NC-SA 4.0"
    url = "https://ailab.criteo.com/criteo-attribution-modeling-bidding-dataset/"
    # Its page names the address with http, which nobody vouches for.
    address = "https://go.criteo.net/criteo-research-attribution-dataset.zip"
    citation = (
        "Diemert, Meynet et al., Attribution Modeling Increases Efficiency of Bidding in Display "
        "Advertising, AdKDD 2017"
    )
    unverified = (
        "no checksum is published; format as its README says; not compared with the real file here"
    )
    download_size = "623 MB"

    members = ("criteo_attribution_dataset.tsv",)

    def table(self, files: RawFiles) -> Table:
        """One row a banner."""
        columns = ("timestamp", "uid", "campaign", "click", "conversion", "attribution", "cost")
        more = (*LATER, "time_since_last_click", *CATEGORIES)
        log = files.read(*self.members, columns=(*columns, *more), separator="\t")
        return with_clock(log, "timestamp")

    def spec(self) -> TableSpec:
        """Four tasks, split by time."""
        return TableSpec(
            labels={
                "click": TaskSpec(description="the banner was clicked"),
                "conversion": TaskSpec(description="the user bought within 30 days"),
                "attribution": TaskSpec(description="the purchase is attributed to Criteo"),
                "cost": TaskSpec(kind="regression", description="price of the banner, transformed"),
            },
            ids=("uid", "campaign", "hour", "weekday", *CATEGORIES),
            dense=("time_since_last_click",),
            drop=LATER,
            roles={"user": "uid", "time": "timestamp"},
            split=SplitSpec(by="time"),
            transform={"time_since_last_click": "log"},
            min_counts={"uid": 2},
        )
