import datetime

import numpy as np
import pandas as pd
import pytest

from tests.data.datasets.tables import (
    by_time,
    check_values,
    counts,
    fetch_real,
    parquet,
    prepare_sample,
)

DAY = datetime.timedelta(days=1)
DEMOGRAPHICS = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
CATEGORIES = {1: "SOUP", 2: "SOUP", 3: "BEEF", 4: None, 5: "MILK", 6: "MILK"}


def transactions():
    """Lines of baskets in winter and in summer, two of them on most days of a household."""
    rng = np.random.default_rng(5)
    lines, basket = [], 900
    for start in (datetime.datetime(2017, 1, 3), datetime.datetime(2017, 7, 1)):
        for n in range(60):
            basket -= 1
            # Hours of Greenwich, so that some evenings are of the day before.
            time = start + DAY * (n // 2) + datetime.timedelta(minutes=int(rng.integers(0, 1439)))
            time += datetime.timedelta(seconds=basket % 60)
            # Nothing at all was bought in one basket of 50, though it is booked.
            for product in rng.choice(6, rng.integers(1, 5), replace=False) + 1:
                lines.append(
                    {
                        "household_id": int(n % 7) % 4 + 1,
                        "store_id": int(basket % 3),
                        "basket_id": basket,
                        "product_id": int(product) if basket % 40 else 77,
                        "quantity": int(rng.integers(0, 4)) if basket % 50 else 0,
                        "sales_value": round(float(rng.uniform(0.5, 9)), 2),
                        "coupon_disc": float(rng.choice([0, 0, 0, 0.55])),
                        "transaction_timestamp": time,
                    }
                )
    return pd.DataFrame(lines)


def tables():
    products = pd.DataFrame(
        {"product_id": list(CATEGORIES), "product_category": list(CATEGORIES.values())}
    )
    who = {name: ["A", "B"] for name in DEMOGRAPHICS} | {"home_ownership": ["Renter", None]}
    campaigns = {"campaign_id": [1, 1, 2, 3], "household_id": [1, 2, 1, 9]}
    dates = {
        "campaign_id": [1, 2, 3],
        "start_date": pd.to_datetime(["2017-01-10", "2017-01-05", "2017-01-01"]),
        "end_date": pd.to_datetime(["2017-01-15", "2017-07-09", "2017-12-31"]),
    }
    return {
        "transactions": transactions(),
        "products": products,
        "demographics": pd.DataFrame({"household_id": [1, 2]} | who),
        "campaigns": pd.DataFrame(campaigns),
        "campaign_descriptions": pd.DataFrame(dates),
    }


def local(time):
    """New York is five hours behind Greenwich in winter, and four in summer."""
    return time.to_pydatetime() - datetime.timedelta(hours=4 if time.month == 7 else 5)


def baskets_of(lines):
    """The facts of each basket, line by line."""
    baskets = {}
    for line in lines.to_dict("records"):
        basket = baskets.setdefault(
            line["basket_id"],
            {
                "household_id": line["household_id"],
                "store_id": line["store_id"],
                "time": local(line["transaction_timestamp"]),
                "lines": 0,
                "value": 0.0,
                "coupon": 0,
                "products": [],
                "categories": [],
            },
        )
        basket["value"] += line["sales_value"]
        basket["coupon"] |= int(line["coupon_disc"] > 0)
        if line["quantity"] == 0:
            continue
        basket["lines"] += 1
        basket["products"].append(line["product_id"])
        basket["categories"].append(CATEGORIES.get(line["product_id"]) or "unknown")
    return sorted(baskets.values(), key=lambda basket: (basket["household_id"], basket["time"]))


def describe(basket, baskets, frames):
    """What is known of a basket from all others, and from the other tables."""
    day = basket["time"].date()
    own = [other for other in baskets if other["household_id"] == basket["household_id"]]
    before = [other for other in own if other["time"] < basket["time"]]
    last = before[-1] if before else None
    later_days = [(other["time"].date() - day).days for other in own]
    basket["returned"] = int(any(1 <= days <= 7 for days in later_days))
    basket["hour"], basket["weekday"] = basket["time"].hour, basket["time"].weekday()
    basket["days-since-last"] = (basket["time"] - last["time"]) / DAY if last else None
    basket["last-value"] = last["value"] if last else None
    basket["value-before"] = np.mean([b["value"] for b in before]) if before else None
    basket["coupons-before"] = np.mean([b["coupon"] for b in before]) if before else None

    running = 0
    dates = {row["campaign_id"]: row for row in frames["campaign_descriptions"].to_dict("records")}
    for sent in frames["campaigns"].to_dict("records"):
        campaign = dates[sent["campaign_id"]]
        runs = campaign["start_date"].date() <= day <= campaign["end_date"].date()
        running += sent["household_id"] == basket["household_id"] and runs
    basket["running-campaigns"] = running

    people = {row["household_id"]: row for row in frames["demographics"].to_dict("records")}
    person = people.get(basket["household_id"], {})
    for name in DEMOGRAPHICS:
        value = person.get(name)
        basket[name] = value if isinstance(value, str) else None


def test_values(monkeypatch, tmp_path):
    frames = tables()
    files = {f"{name}.parquet": parquet(frame) for name, frame in frames.items()}
    data = prepare_sample(monkeypatch, tmp_path, "complete-journey", files)

    baskets = baskets_of(frames["transactions"])
    for basket in baskets:
        describe(basket, baskets, frames)
    last_day = max(basket["time"] for basket in baskets).date()
    rows = [basket for basket in baskets if (last_day - basket["time"].date()).days >= 7]
    assert 0 < len(rows) < len(baskets)

    ids = ("household_id", "store_id", "hour", "weekday", *DEMOGRAPHICS)
    logs = ("lines", "days-since-last", "last-value", "running-campaigns")
    kinds = dict.fromkeys(ids, "id") | dict.fromkeys(("products", "categories"), "bag")
    kinds |= dict.fromkeys((*logs, "value-before", "coupons-before"), "dense")
    splits = by_time([row["time"] for row in rows])
    check_values(data, rows, splits, kinds, logs, {"products": 10})


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("complete-journey", tmp_path)
    rows, tasks = counts(data)
    assert rows == {"train": 122_642, "validation": 15_330, "test": 15_330}
    assert tasks["coupon"] == (153_302, 9_681)
    assert tasks["returned"] == (153_302, 122_321)
    times = [split.groups["time"] for split in data.splits.values()]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
    assert len(np.unique(np.concatenate([s.groups["user"] for s in data.splits.values()]))) == 2_468

    # Coupons are booked as products, too; no product may tell that one was used.
    train = data.splits["train"]
    bag, used = train.bags["products"], train.labels[:, 0] > 0
    products = pd.DataFrame(
        {"id": bag.values, "row": np.repeat(np.arange(len(train)), np.diff(bag.offsets))}
    )
    products["used"] = used[products["row"]]
    rates = products.drop_duplicates().groupby("id")["used"].agg(["mean", "size"])
    assert rates.query("size >= 100")["mean"].max() < 0.5
