"""Tasks, features and schemas that mean nothing cannot be made."""

import math

import pytest
from pydantic import ValidationError

from mtlkit.data.types import Feature, Schema, Task
from mtlkit.errors import UsageError

NO_NAMES = ["", "  ", "a\0b", "a\nb", "a\x1b[31m", "a\u202eb", "\ud800"]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_names_can_be_read(name):
    for kind in (Task, Feature):
        with pytest.raises(ValidationError, match="name"):
            kind(name=name)


@pytest.mark.parametrize("name", ["click", "click / buy", "\u00fcber", "\u8cfc\u8cb7", "task 1"])
def test_names_of_any_script(name):
    assert Task(name=name).name == Feature(name=name).name == name


@pytest.mark.parametrize(
    "field",
    [
        {"weight": math.nan},
        {"weight": math.inf},
        {"weight": -1},
        {"losses": ()},
        {"kind": "multiclass", "classes": 1},
    ],
    ids=str,
)
def test_tasks_that_mean_nothing(field):
    with pytest.raises(ValidationError):
        Task(name="click", **field)


def test_a_loss_that_does_not_exist():
    with pytest.raises(UsageError, match="There is no loss called 'hinge'"):
        Schema(features=(), tasks=(Task(name="click", losses=("hinge",)),))


@pytest.mark.parametrize("field", [{"vocab": -1}, {"dim": 0}], ids=str)
def test_features_that_mean_nothing(field):
    with pytest.raises(ValidationError):
        Feature(name="shop", **field)


def test_two_tasks_of_one_name():
    with pytest.raises(ValidationError, match="two tasks are called 'click'"):
        Schema(features=(), tasks=(Task(name="click"), Task(name="click", weight=2)))


def test_each_kind_of_task_has_losses_that_fit():
    """On logits (B,) of a binary or a real-valued label, or (B, C) of a class."""
    fit = {
        ("binary", "bce"),
        ("binary", "mse"),
        ("binary", "l1"),
        ("binary", "huber"),
        ("regression", "mse"),
        ("regression", "l1"),
        ("regression", "huber"),
        ("multiclass", "cross_entropy"),
    }
    for kind in ("binary", "regression", "multiclass"):
        for loss in ("bce", "mse", "l1", "huber", "cross_entropy"):
            task = Task(name="own", kind=kind, losses=(loss,))
            if (kind, loss) in fit:
                assert Schema(features=(), tasks=(task,)).tasks == (task,)
            else:
                with pytest.raises(ValidationError, match=f"{loss} is no loss of the {kind} task"):
                    Schema(features=(), tasks=(task,))


def test_the_text_of_a_schema_stays():
    """It enters the fingerprints of prepared data."""
    schema = Schema(features=(Feature(name="shop", vocab=3),), tasks=(Task(name="click"),))
    assert schema.model_dump_json() == (
        '{"features":[{"name":"shop","kind":"id","vocab":3,"dim":null,"role":null}],'
        '"tasks":[{"name":"click","kind":"binary","classes":2,"losses":["bce"],"weight":1.0,'
        '"given":null,"scale":null,"description":""}],"funnel":null}'
    )
