"""Operations of a forward pass, against counts by hand."""

import pytest

from mtlkit.training.cost import flops_per_row
from tests.models.build import build
from tests.toy import toy_batch, toy_dataset, toy_schema

WIDTH = 3 * 4 + 2  # of x: three ids of width 4, two dense values


@pytest.mark.parametrize(
    ("name", "options", "multiplications"),
    [
        ("shared-bottom", {"bottom": (6,), "tower": (3,)}, WIDTH * 6 + 2 * (6 * 3 + 3)),
        ("single-task", {"bottom": (6,), "tower": (3,)}, 2 * (WIDTH * 6 + 6 * 3 + 3)),
        (
            "mmoe",
            {"experts": 3, "hidden": (5,), "tower": ()},
            WIDTH * 3 * 2 + 3 * WIDTH * 5 + 2 * 5,
        ),
    ],
)
def test_two_operations_for_each_multiplication(name, options, multiplications):
    schema = toy_schema(tasks=2)
    model = build(name, schema, embedding=4, **options)
    for rows in (1, 7):
        assert flops_per_row(model, toy_batch(schema, rows)) == 2 * multiplications
    assert model.training


def test_it_is_recorded(trainer):
    run = trainer(toy_dataset(toy_schema(tasks=2), rows=320), "mmoe[experts=3,hidden=5]")
    assert run.fit().cost["flops_per_row"] > 0
