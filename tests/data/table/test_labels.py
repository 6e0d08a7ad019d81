"""What a label is follows from its values, and is said."""

import numpy as np
import pandas as pd
import pytest

from mtlkit import Dataset, UsageError

ROWS = 90


def dataset(values, given=None, **facts):
    # Each split has all values, for they come in turn.
    frame = pd.DataFrame({"x": np.arange(ROWS) / 7, "y": pd.Series(values * (ROWS // len(values)))})
    frame["part"] = np.repeat(["train", "val", "test"], ROWS // 3)
    return Dataset.from_frame(frame, labels={"y": facts}, split="column:part")


BINARY = {
    "0 and 1": ([0, 1, 1], [0, 1, 1], "y"),
    "truth values": ([True, False], [1, 0], "y"),
    "floats": ([1.0, 0.0], [1, 0], "y"),
    "yes and no": (["yes", "no"], [1, 0], "y is yes, not no"),
    "a word and no": (["no", "bought"], [0, 1], "y is bought, not no"),
    "classes 1 and 2": ([1, 2], [0, 1], "y is 2, not 1"),
    "signs": ([1, -1], [1, 0], "y is 1, not -1"),
    "the rarer word": (["stays", "stays", "leaves"], [0, 0, 1], "y is leaves, not stays"),
    "missing ones": ([0, None, 1], [0, None, 1], "y"),
}


@pytest.mark.parametrize("name", BINARY)
def test_two_values_are_a_binary_label(name):
    values, expected, description = BINARY[name]
    made = dataset(values)
    (task,) = made.schema.tasks
    assert (task.kind, task.losses, task.description) == ("binary", ("bce",), description)
    split = made.splits["train"]
    labels = [
        int(label) if seen else None
        for label, seen in zip(split.labels[:, 0], split.observed[:, 0], strict=True)
    ]
    assert labels == expected * (ROWS // 3 // len(expected))


def test_the_user_says_what_is_positive():
    made = dataset([1, 2, 3, 4, 5], positive=5)
    assert made.schema.tasks[0].kind == "binary"
    assert made.splits["train"].labels[:5, 0].tolist() == [0, 0, 0, 0, 1]
    assert made.schema.tasks[0].description == "y is 5"
    made = dataset(["stays", "stays", "leaves"], positive="stays")
    assert made.splits["train"].labels[:3, 0].tolist() == [1, 1, 0]


def test_numbers_are_a_regression_standardised_on_train():
    values = [1.5, 2.5, 4.0]
    made = dataset(values)
    (task,) = made.schema.tasks
    assert (task.kind, task.losses) == ("regression", ("mse",))
    assert task.scale == pytest.approx((np.mean(values), np.std(values)))
    expected = (np.array(values) - np.mean(values)) / np.std(values)
    assert made.splits["test"].labels[:3, 0] == pytest.approx(expected, abs=1e-6)


def test_few_integers_are_classes_only_if_asked():
    assert dataset([1, 2, 3, 4, 5]).schema.tasks[0].kind == "regression"
    made = dataset([1, 2, 3, 4, 5], kind="multiclass")
    (task,) = made.schema.tasks
    assert (task.kind, task.classes, task.losses) == ("multiclass", 5, ("cross_entropy",))
    assert made.splits["train"].labels[:5, 0].tolist() == [0, 1, 2, 3, 4]


def test_several_texts_are_classes():
    made = dataset(["b", "a", "c"])
    (task,) = made.schema.tasks
    assert (task.kind, task.classes, task.description) == ("multiclass", 3, "one of a, b, c")
    assert made.splits["train"].labels[:3, 0].tolist() == [1, 0, 2]


def test_a_label_that_is_given_another_exists_after_its_positives():
    frame = pd.DataFrame(
        {
            "x": np.arange(60) / 7,
            "click": [0, 1, 1, None, 1, 0] * 10,
            "minutes": [5.0, 2.0, None, 1.0, 4.0, 8.0] * 10,
            "part": np.repeat(["train", "val", "test"], 20),
        }
    )
    labels = {"click": {}, "minutes": {"given": "click"}}
    made = Dataset.from_frame(frame, labels=labels, split="column:part")
    observed = made.splits["train"].observed[:6]
    assert observed.tolist() == [
        [True, False],
        [True, True],
        [True, False],
        [False, False],
        [True, True],
        [True, False],
    ]

    # The scale is that of the labels that exist.
    task = made.schema.tasks[1]
    train = frame[:20]
    known = train.minutes[train.click == 1].dropna()
    assert task.given == "click"
    assert task.scale == pytest.approx((known.mean(), known.std(ddof=0)))


def test_bags_and_groups_of_odd_names_are_written_and_trained_on():
    import mtlkit

    tags = ["a|b", "b"] * 30
    odd = {
        "x": range(60),
        "click": [0, 1] * 30,
        "tags/of item.": tags,
        "../country": ["ch", "de"] * 30,
    }
    made = Dataset.from_frame(
        pd.DataFrame(odd), labels="click", groups=["../country"], drop=["../country"]
    )
    assert list(made.splits["test"].bags) == ["tags-of-item-"]
    assert list(made.splits["test"].groups) == ["-country"]
    assert mtlkit.fit("shared-bottom", made, epochs=1).metrics["test"]["click"]["auc"] is not None


def test_names_that_no_file_can_have_become_others():
    frame = pd.DataFrame({"x": np.arange(60) / 7, "is/click?": [0, 1] * 30})
    made = Dataset.from_frame(frame, labels=["is/click?"])
    assert made.schema.task_names == ("is-click-",)
    frame["is click "] = frame["is/click?"]
    with pytest.raises(UsageError, match="is-click-"):
        Dataset.from_frame(frame, labels=["is/click?", "is click "])
