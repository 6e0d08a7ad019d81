import numpy as np
import pandas as pd
import pytest

from mtlkit.data.datasets.movielens_100k import GENRES
from tests.data.datasets.tables import check_values, counts, fetch_real, parquet, prepare_sample


def frames():
    rng = np.random.default_rng(2)
    pairs = [(user, film) for user in (1, 2, 3) for film in range(10, 10 + 15 * user)]
    ratings = pd.DataFrame(pairs, columns=["user_id", "movie_id"])
    ratings["rating"] = rng.integers(1, 6, len(ratings))
    ratings["timestamp"] = 880_000_000 + rng.permutation(len(ratings))
    users = pd.DataFrame(
        {
            "user_id": [1, 2, 3],
            "age": [24, 53, 33],
            "gender": ["M", "F", "M"],
            "occupation": ["writer", "other", "writer"],
            "zip_code": ["85711", "94043", "T8H1N"],
        }
    )
    films = pd.DataFrame({"movie_id": range(10, 60)})
    films["release_date"] = [f"01-Jan-{1950 + film % 40}" for film in films["movie_id"]]
    films.loc[3, "release_date"] = None
    for genre in GENRES:
        films[genre] = rng.integers(0, 2, len(films))
    return ratings.sample(frac=1, random_state=0), users, films


def test_values(monkeypatch, tmp_path):
    ratings, users, films = frames()
    files = {
        f"MovieLens100k_{name}.parquet.brotli": parquet(frame)
        for name, frame in zip(("data", "users", "items"), (ratings, users, films), strict=True)
    }
    data = prepare_sample(monkeypatch, tmp_path, "movielens-100k", files)

    rows, splits = [], []
    people = {row["user_id"]: row for row in users.to_dict("records")}
    titles = {row["movie_id"]: row for row in films.to_dict("records")}
    for user in (1, 2, 3):
        own = [row for row in ratings.to_dict("records") if row["user_id"] == user]
        own.sort(key=lambda row: row["timestamp"])
        for position, row in enumerate(own):
            film, person = titles[row["movie_id"]], people[user]
            date = film["release_date"]
            row["year"] = int(date[-4:]) if isinstance(date, str) else None
            row["genres"] = [genre for genre in GENRES if film[genre]]
            row["region"] = person["zip_code"][0]
            row |= {name: person[name] for name in ("age", "gender", "occupation")}
            row["liked"], row["loved"] = int(row["rating"] >= 4), int(row["rating"] == 5)
            rows.append(row)

            # One in ten from the end, and the one in ten before it.
            left = len(own) - 1 - position
            part = "test" if left < len(own) / 10 else "validation"
            splits.append(part if left < len(own) / 5 else "train")

    kinds = dict.fromkeys(("user_id", "movie_id", "gender", "occupation", "region"), "id")
    kinds |= {"age": "dense", "year": "dense", "genres": "bag"}
    check_values(data, rows, splits, kinds)
    roles = {feature.name: feature.role for feature in data.schema.features}
    assert (roles["user_id"], roles["movie_id"]) == ("user", "item")


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("movielens-100k", tmp_path)
    rows, tasks = counts(data)
    assert rows == {"train": 79_619, "validation": 9_942, "test": 10_439}
    assert tasks == {
        "liked": (100_000, 55_375),
        "loved": (100_000, 21_201),
        "rating": (100_000, None),
    }

    # Every person is in every split.
    users = [np.unique(split.groups["user"]) for split in data.splits.values()]
    assert [len(own) for own in users] == [943, 943, 943]
