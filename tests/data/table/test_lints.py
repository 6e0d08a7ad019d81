"""Each lint has a table that provokes it and one that nearly does."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtlkit import Dataset, load_dataset
from mtlkit.data.data_home import data_home
from mtlkit.data.lints import find_lints
from mtlkit.data.sources import open_source

ROWS = 2000


def clean(seed=0):
    """A table about which there is nothing to say, its split in a column."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "shop": rng.integers(0, 30, ROWS),
            "price": rng.normal(size=ROWS),
            "click": rng.random(ROWS) < 0.4,
            "part": np.repeat(["train", "val", "test"], [1200, 400, 400]),
        }
    )


def lints(frame, labels=("click",), split="column:part", **options):
    dataset = Dataset.from_frame(frame, labels=list(labels), split=split, **options)
    noted = [lint["name"] for lint in dataset.details["lints"]]
    assert noted == [lint.name for lint in find_lints(dataset)]
    return noted


def test_there_is_nothing_to_say_of_a_clean_table():
    assert lints(clean()) == []


def is_test(frame):
    return (frame.part == "test").to_numpy()


def change(frame, column, values):
    return frame.assign(**{column: values})


def leaky(noise):
    """A number that is the label, but for a share of the rows."""
    frame = clean()
    is_other = np.random.default_rng(5).random(ROWS) < noise
    return change(frame, "price", np.where(is_other, 1 - frame.click, frame.click) + 0.5)


def levels_that_leak(noise):
    frame = leaky(noise)
    return change(frame, "price", frame.price.map({0.5: "cold", 1.5: "warm"}))


def steps(count):
    """A funnel with so many rows that have the later step and not the earlier one."""
    frame = clean()
    frame["buy"] = frame.click & (np.arange(ROWS) % 3 == 0)
    frame.loc[frame.index[~frame.click][:count], "buy"] = True
    return frame


def in_order(more):
    """A second step that is more or less frequent than the first."""
    frame = clean()
    rng = np.random.default_rng(3)
    return frame.assign(buy=frame.click | (rng.random(ROWS) < 0.2) if more else frame.click)


def one_class(positives):
    frame = clean()
    frame.loc[is_test(frame), "click"] = False
    frame.loc[frame.index[is_test(frame)][:positives], "click"] = True
    return frame.assign(click=frame.click.where(frame.part != "val", frame.click))


def constant(others):
    frame = clean()
    shops = np.full(ROWS, "a", object)
    shops[:others] = "b"
    return change(frame, "shop", shops)


def unique(repeats):
    frame = clean()
    numbers = np.arange(ROWS) // repeats
    numbers[is_test(frame)] %= 100
    numbers[frame.part == "val"] %= 100
    return change(frame, "shop", [f"order {number}" for number in numbers])


def unseen(share):
    """So much of test has a shop that train does not hold."""
    frame = clean()
    fresh = frame.index[is_test(frame)][: int(share * 400)]
    frame.loc[fresh, "shop"] = 99
    return frame


def drifting(rate):
    frame = clean()
    rng = np.random.default_rng(7)
    frame.loc[is_test(frame), "click"] = rng.random(400) < rate
    return frame


def twins(count):
    """So many rows of test that are copies of rows of train."""
    frame = clean()
    columns = ["shop", "price", "click"]
    rows = frame.index[is_test(frame)][:count]
    frame.loc[rows, columns] = frame.loc[frame.index[:count], columns].to_numpy()
    return frame.assign(price=frame.price.astype(float), click=frame.click.astype(int))


def amounts(levels):
    rng = np.random.default_rng(2)
    return clean().assign(height=rng.integers(0, levels, ROWS))


CASES = {
    "leak of a number": (leaky, 0.0, 0.01, "leak", {}),
    "leak of a level": (levels_that_leak, 0.0, 0.01, "leak", {}),
    "step left out": (steps, 1, 0, "step left out", {"funnel": ["click", "buy"]}),
    "order of the funnel": (in_order, True, False, "order of the funnel", {"funnel": ["click", "buy"]}),
    "one class": (one_class, 0, 40, "one class", {}),
    "constant": (constant, 0, 20, "constant", {}),
    "all unique": (unique, 1, 2, "all unique", {}),
    "unseen ids": (unseen, 0.08, 0.04, "unseen ids", {}),
    "drift": (drifting, 0.7, 0.45, "drift", {}),
    "duplicated rows": (twins, 40, 4, "duplicated rows", {}),
    "ids that are numbers": (amounts, 200, 20, "ids that are numbers", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_table_that_provokes_it_and_one_that_nearly_does(case):
    make, much, little, name, options = CASES[case]
    labels = options.get("funnel", ["click"])
    provoked, nearly = (lints(make(amount), labels, **options) for amount in (much, little))
    assert name in provoked
    assert name not in nearly


def test_users_on_both_sides_of_a_random_split():
    frame = clean().drop(columns="part").assign(user_id=np.arange(ROWS) // 10)
    assert "user in two splits" in lints(frame, split="ratio")
    assert "user in two splits" not in lints(frame, split="group")

    # Hardly any user comes back.
    frame = frame.assign(user_id=np.arange(ROWS) % (ROWS - 5))
    assert "user in two splits" not in lints(frame, split="ratio")


def test_time_that_runs_backwards():
    times = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    frame = clean().assign(when=times)
    assert "time runs backwards" not in lints(frame)
    assert "time runs backwards" not in lints(frame.drop(columns="part"), split="time")
    assert "time runs backwards" in lints(frame.drop(columns="part"), split="ratio")
    assert "time runs backwards" in lints(frame.assign(when=times[::-1]))


def test_rows_that_are_equal_by_chance_are_no_copies():
    frame = clean().assign(price=0.5, shop=np.arange(ROWS) % 7)
    assert "duplicated rows" not in lints(frame)


def with_tags(noise):
    """Bags of two or three tags, of which one goes with the label, but for a share of the rows."""
    frame = clean()
    rng = np.random.default_rng(5)
    is_other = rng.random(ROWS) < noise
    tells = np.where(is_other, ~frame.click, frame.click)
    tags = rng.integers(0, 9, (ROWS, 2)).astype(str)
    return frame.assign(
        tags=["|".join([*pair, "hot"] if t else pair) for pair, t in zip(tags, tells, strict=True)]
    )


@pytest.mark.parametrize("is_turned", [False, True])
def test_an_id_of_a_bag_that_leaks(is_turned):
    frame = with_tags(0.0)
    frame["click"] ^= is_turned
    dataset = Dataset.from_frame(frame, labels="click", split="column:part")
    (lint,) = dataset.details["lints"]
    assert lint["name"] == "leak"
    assert lint["message"] == "id 10 in tags alone tells click (AUC 1.0000)"
    assert lints(with_tags(0.01)) == []


def test_rows_that_differ_in_a_bag_alone_are_no_copies():
    frame = clean().drop(columns="price")
    frame["shop"] = np.arange(ROWS) % 1200
    frame["click"] = np.random.default_rng(3).random(1200)[frame.shop] < 0.4
    frame.loc[1200::2, "click"] ^= True
    assert "duplicated rows" in lints(frame)
    tags = [f"{n % 11}|{n % 13}|{n % 17}" for n in range(ROWS)]
    assert "duplicated rows" not in lints(frame.assign(tags=tags))
    turned = [f"{n % 17}|{n % 11}|{n % 13}" for n in range(ROWS)]
    is_first = np.arange(ROWS) < 1200
    assert "duplicated rows" not in lints(frame.assign(tags=np.where(is_first, tags, turned)))


def test_a_lint_says_what_to_do():
    dataset = Dataset.from_frame(leaky(0.0), labels="click", split="column:part")
    (lint,) = [lint for lint in dataset.details["lints"] if lint["name"] == "leak"]
    assert lint["message"] == "price alone tells click (AUC 1.0000)"
    assert lint["mend"].startswith("--drop price")


@pytest.fixture(scope="module")
def census_home():
    home = data_home()
    if not (home / "census" / "raw").is_dir():
        pytest.skip(f"census is not in {home}: mtlkit fetch census, or set MTLKIT_DATA")
    return home


@pytest.mark.parametrize(
    "census", ["census", "census[tasks=education-marital]", "census[protocol=rechub]"]
)
def test_there_is_nothing_to_say_of_census(census, census_home):
    assert find_lints(load_dataset(census, census_home)) == []


@pytest.mark.parametrize("name", ["ali-ccp[simulate=300000]", "synthetic", "funnel"])
def test_there_is_nothing_to_say_of_built_in_sets(name):
    source = open_source(name)
    if not source.is_ready(data_home()):
        pytest.skip(f"{name} is not in {data_home()}")
    # simulated users see some items twice, which is no mistake
    expected = {"duplicated rows"} if name.startswith("ali-ccp") else set()
    assert {lint.name for lint in find_lints(source.load(data_home()))} <= expected


def test_built_in_sets_are_looked_at_as_well(tmp_path):
    assert load_dataset("synthetic[rows=300]", tmp_path).details["lints"] == []
    few = load_dataset("synthetic[rows=8,tasks=1]", tmp_path).details["lints"]
    assert [lint["name"] for lint in few] in ([], ["one class"], ["one class"] * 2)


def test_education_leaks_where_it_is_an_input_and_a_task(census_home):
    kept = load_dataset("census[protocol=rechub]", census_home)
    tasks = load_dataset("census[tasks=education-marital]", census_home)
    splits = {
        name: replace(split, labels=tasks.splits[name].labels, observed=tasks.splits[name].observed)
        for name, split in kept.splits.items()
    }
    schema = kept.schema.model_copy(update={"tasks": tasks.schema.tasks})
    leaks = find_lints(replace(kept, schema=schema, splits=splits))
    assert [(lint.name, lint.message.split()[0]) for lint in leaks] == [("leak", "education")]
