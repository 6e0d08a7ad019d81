import datetime
import io
import math
import zipfile

import numpy as np
import pandas as pd
import pytest

from mtlkit.data.datasets.flights import WEATHER
from tests.data.datasets.tables import by_time, check_values, counts, fetch_real, prepare_sample


def frame(rows=200):
    """Flights in the raw format, one every 17 minutes, of which some did not leave or arrive."""
    rng = np.random.default_rng(3)
    start = datetime.datetime(2013, 3, 1, 6, 0)
    flights = []
    for n in range(rows):
        local = start + datetime.timedelta(minutes=17 * n)
        cancelled, diverted = n % 11 == 3, n % 13 == 5
        departure = None if cancelled else int(rng.integers(-10, 60))
        arrival = None if cancelled or diverted else departure + int(rng.integers(-20, 20))
        utc = local.replace(minute=0) + datetime.timedelta(hours=5)
        flights.append(
            {
                "year": local.year,
                "month": local.month,
                "day": local.day,
                "dep_delay": departure,
                "arr_delay": arrival,
                "carrier": rng.choice(["UA", "AA", "DL"]),
                "flight": n,
                "tailnum": None if cancelled else "N1",
                "origin": rng.choice(["EWR", "JFK"]),
                "dest": rng.choice(["IAH", "MIA"]),
                "air_time": 100,
                "distance": int(rng.integers(100, 2000)),
                "hour": local.hour,
                "minute": local.minute,
                "time_hour": utc.strftime("%Y-%m-%dT%H:00:00Z"),
            }
        )
    return pd.DataFrame(flights)


def weather(flights):
    """An observation an hour at each airport; every ninth is missing, and some values."""
    rng = np.random.default_rng(4)
    hours = pd.date_range("2013-03-01T09:00Z", periods=70, freq="h")
    rows = []
    for n, hour in enumerate(hours):
        for origin in ("EWR", "JFK"):
            if n % 9:
                values = dict(zip(WEATHER, rng.uniform(0, 50, len(WEATHER)).round(2), strict=True))
                values["pressure"] = None if n % 5 == 0 else values["pressure"]
                stamp = hour.strftime("%Y-%m-%dT%H:00:00Z")
                rows.append({"origin": origin, "time_hour": stamp} | values)
    return pd.DataFrame(rows)


def or_none(value):
    return None if value is None or math.isnan(value) else value


def test_values(monkeypatch, tmp_path):
    flights = frame()
    observed = weather(flights)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("flights.csv", flights.to_csv(index=False))
    files = {
        "flights.csv.zip": packed.getvalue(),
        "weather.csv": observed.to_csv(index=False).encode(),
    }
    data = prepare_sample(monkeypatch, tmp_path, "flights", files)

    seen = {(row["origin"], row["time_hour"]): row for row in observed.to_dict("records")}
    rows = []
    for row in flights.to_dict("records"):
        departure, arrival = or_none(row["dep_delay"]), or_none(row["arr_delay"])
        hour = datetime.datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:00:00Z")
        before = (hour - datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:00:00Z")
        earlier = seen.get((row["origin"], before), dict.fromkeys(WEATHER))
        rows.append(
            {
                "departed": int(departure is not None),
                "late-departure": None if departure is None else int(departure > 15),
                "late-arrival": None if arrival is None else int(arrival > 15),
                "departure-delay": departure,
                "arrival-delay": arrival,
                "weekday": datetime.date(row["year"], row["month"], row["day"]).weekday(),
                **{name: row[name] for name in ("carrier", "origin", "dest", "hour")},
                **{name: row[name] for name in ("minute", "distance")},
                **{name: or_none(earlier[name]) for name in WEATHER},
            }
        )
    kinds = dict.fromkeys(("weekday", "carrier", "origin", "dest", "hour"), "id")
    kinds |= dict.fromkeys(("minute", "distance", *WEATHER), "dense")
    splits = by_time(list(range(200)), test=0.15)
    check_values(data, rows, splits, kinds, logs=("distance", "precip"))
    given = {task.name: task.given for task in data.schema.tasks}
    assert given.pop("departed") is None
    assert set(given.values()) == {"departed"}


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("flights", tmp_path)
    rows, tasks = counts(data)
    assert rows == {"train": 252_568, "validation": 33_690, "test": 50_518}
    assert tasks == {
        "departed": (336_776, 336_776 - 8_255),
        "late-departure": (328_521, 70_774),
        "late-arrival": (327_346, 77_630),
        "departure-delay": (328_521, None),
        "arrival-delay": (327_346, None),
    }
    times = [split.groups["time"] for split in data.splits.values()]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
