"""What a table's YAML says of the training of its labels."""

import numpy as np
import pandas as pd
import pytest

import mtlkit
from mtlkit.data.table.spec import TableSpec, TaskSpec
from mtlkit.errors import MtlkitError, UsageError
from mtlkit.settings import validate


def frame(rows=200):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=rows),
            "session_id": rng.integers(0, 30, rows),
            "w": rng.random(rows).round(2),
            "w_buy": rng.integers(0, 3, rows),
            "click": rng.integers(0, 2, rows),
            "buy": rng.integers(0, 2, rows),
            "spent": np.where(rng.random(rows) < 0.5, 0, rng.lognormal(size=rows).round(2)),
            "colour": rng.choice(["red", "blue", "green"], rows),
        }
    )


def prepare(labels, **options):
    return mtlkit.Dataset.from_frame(frame(), labels, **{"drop": "colour"} | options)


def test_all_that_can_be_said_of_a_label():
    data = prepare(
        {
            "click": {"losses": ["bce", "jrc[alpha=.3]"], "report": False},
            "buy": {"row_weights": {"indicator": "click", "outside": 0.1}},
            "spent": {"losses": "ziln", "target": "none"},
        },
        roles={"session": "session_id"},
    )
    click, buy, spent = data.schema.tasks
    assert click.losses == ("bce", "jrc[alpha=.3]")
    assert (click.report, buy.report, click.outputs, spent.outputs) == (False, True, 2, 3)
    assert buy.row_weights.outside == 0.1
    assert spent.target == "none"
    result = mtlkit.fit("mmoe", data, epochs=0.5, batch_size=32, batches="grouped")
    assert set(result.metrics["test"]) == {"buy", "spent"}


def test_row_weights_of_one_label():
    """The weight of a row, times that of its label."""
    data = prepare({"click": {}, "buy": {"row_weight": "w_buy"}}, weight="w")
    by_hand = frame()
    for split in data.splits.values():
        assert split.weight.shape == (len(split), 2)
        assert split.weight.dtype == np.float32
    together = np.concatenate([split.weight for split in data.splits.values()])
    expected = np.column_stack([by_hand.w, by_hand.w * by_hand.w_buy]).astype(np.float32)
    assert sorted(map(tuple, together)) == sorted(map(tuple, expected))
    assert {feature.name for feature in data.schema.features} == {"x", "session_id", "spent"}
    only_buy = data.select(["buy"])
    assert only_buy.splits["train"].weight.shape[1] == 1
    assert mtlkit.fit("mmoe", data, epochs=0.5, batch_size=32).metrics["test"].keys() == {
        "click",
        "buy",
    }


def test_weights_of_a_label_alone():
    data = prepare({"click": {"row_weight": "w"}, "buy": {}}, drop="colour,w_buy")
    assert all((split.weight[:, 1] == 1).all() for split in data.splits.values())


WRONG = {
    "a loss that does not exist": ({"click": {"losses": "hinge"}}, "no loss called 'hinge'"),
    "a loss of another kind": (
        {"click": {"losses": "ziln"}},
        "Ziln is no loss of the binary task 'click', of frame.",
    ),
    "a target of no regression": (
        {"colour": {"target": "log1p"}},
        "The label 'colour' of frame is multiclass, and target is for regressions.",
    ),
    "a target and a loss": (
        {"spent": {"losses": "poisson", "target": "quantile"}},
        "Poisson reads the task 'spent' as it came, so target=quantile means nothing there, of",
    ),
    "an indicator that is no label": (
        {"buy": {"row_weights": {"indicator": "click"}}},
        "the row weights of 'buy' go by 'click', which is no label",
    ),
    "a weight that is below 0": ({"click": {"row_weight": "x"}}, "The weight 'x' of frame is no"),
    "a column that is not there": ({"click": {"row_weight": "ww"}}, "'ww'"),
    "a target that does not exist": ({"spent": {"target": "log"}}, "'log'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence(case):
    labels, message = WRONG[case]
    with pytest.raises(MtlkitError) as caught:
        mtlkit.Dataset.from_frame(frame(), labels)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_what_is_not_said_leaves_no_trace_in_the_options():
    """They are part of the keys of runs."""
    dumped = validate(TableSpec, {"labels": "click"}, "table").model_dump(mode="json")
    assert list(dumped["labels"]["click"]) == ["kind", "positive", "given", "weight", "description"]
    said = TaskSpec(losses="bce,focal[gamma=1]").model_dump(mode="json")
    assert said["losses"] == ["bce", "focal[gamma=1]"]
    assert TaskSpec.model_validate(said) == TaskSpec(losses=("bce", "focal[gamma=1]"))


def test_a_session_loss_without_sessions():
    data = mtlkit.Dataset.from_frame(frame()[["x", "click"]], {"click": {"losses": "listwise"}})
    with pytest.raises(UsageError) as caught:
        mtlkit.fit("mmoe", data, epochs=0.5)
    assert caught.value.message.startswith("listwise of the task 'click' compares rows of one ses")
    assert caught.value.hint.startswith("name it in a YAML file: roles: {session: COLUMN}")
