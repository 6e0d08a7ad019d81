"""Ceilings as somebody's file has them: numbers that can be one, or nothing."""

import math

import pytest

from mtlkit.cli.card import facts_table
from mtlkit.data.planted import ALL_SIMULATED_ROWS, ceilings, ceilings_of_all_rows
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Feature, Schema, Task

SCHEMA = Schema(
    features=(Feature(name="a", vocab=3),),
    tasks=(
        Task(name="click"),
        Task(name="purchase"),
        Task(name="spend", kind="regression", losses=("mse",)),
    ),
)


def dataset(simulation):
    return Dataset("some", SCHEMA, {}, "print", True, {"simulation": simulation})


def test_what_a_generator_noted():
    noted = {
        "planted_auc": {"click": 0.7, "purchase": 1, "spend": 0.2},
        "planted_r2": {"spend": -0.1, "click": 0.3},
    }
    assert ceilings(dataset(noted)) == {"click": 0.7, "purchase": 1.0, "spend": -0.1}
    assert ceilings_of_all_rows(dataset(noted)) == {}
    assert ceilings(dataset({ALL_SIMULATED_ROWS: noted})) == {}
    assert ceilings_of_all_rows(dataset({ALL_SIMULATED_ROWS: noted})) == ceilings(dataset(noted))


@pytest.mark.parametrize(
    "value", ["high", None, True, [0.7], {"x": 0.7}, math.nan, math.inf, -math.inf, 10**400, 1.5]
)
def test_what_is_no_ceiling(value):
    assert ceilings(dataset({"planted_auc": {"click": value, "purchase": 0.8}})) == {
        "purchase": 0.8
    }


@pytest.mark.parametrize(
    "simulation",
    [None, 1, "x", [], {}, {"planted_auc": 1}, {"planted_auc": [0.7]}, {ALL_SIMULATED_ROWS: 3}],
)
def test_facts_of_another_shape(simulation):
    assert ceilings(dataset(simulation)) == ceilings_of_all_rows(dataset(simulation)) == {}


@pytest.mark.parametrize(
    ("simulation", "expected"),
    [
        (
            {"planted_auc": {"click": 0.7}},
            "ceiling click 0.7000: the planted model on test, which none",
        ),
        (
            {ALL_SIMULATED_ROWS: {"planted_auc": {"click": 0.7}}},
            "near the ceiling click 0.7000: the planted model on all simulated test rows",
        ),
        ({"planted_auc": {"click": "high"}}, None),
    ],
)
def test_the_card_says_of_which_rows(tmp_path, simulation, expected):
    from rich.console import Console

    from mtlkit.data.sources import open_source

    console = Console(width=300)
    with console.capture() as captured:
        console.print(facts_table(open_source("synthetic"), dataset(simulation), [], None))
    text = " ".join(captured.get().split())
    assert (expected in text) if expected else "ceiling" not in text
