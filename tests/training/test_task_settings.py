"""Losses, row weights and roles of tasks, from settings to metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import mtlkit
from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError
from mtlkit.models._losses import row_weight, task_loss
from mtlkit.models._types import Batch
from mtlkit.registry import MODELS
from mtlkit.settings import RowWeights, TrainingSettings
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.sampling import in_groups, row_stream
from mtlkit.training.task_settings import group_names, key_of, partners, with_task_settings
from tests.toy import toy_dataset, toy_schema

KINDS = ("binary", "binary", "regression", "multiclass")
CPU = torch.device("cpu")


def with_sessions(data, per_session=4):
    """Sessions of so many rows on average, in no order, and amounts of which a third is 0."""
    splits = {}
    for number, (name, split) in enumerate(data.splits.items()):
        rng = np.random.default_rng(number)
        sessions = rng.integers(0, max(1, len(split) // per_session), len(split))
        labels = split.labels.copy()
        for t, task in enumerate(data.schema.tasks):
            if task.kind == "regression":  # of mean 2 and deviation 3
                amounts = np.exp(labels[:, t]) * (rng.random(len(split)) > 1 / 3)
                labels[:, t] = (amounts - 2) / 3
        splits[name] = replace(split, groups={"session": sessions}, labels=labels)
    return replace(data, splits=splits)


def data_of(tasks=4, kinds=KINDS, rows=96, missing=0.0, funnel=False):
    schema = toy_schema(tasks, kinds)
    if funnel:
        schema = schema.model_copy(update={"funnel": ("t1", "t2")})
    return with_sessions(toy_dataset(schema, rows, missing))


def prepared(data, **training):
    return with_task_settings(data, TrainingSettings(**training))


SHORT = {"epochs": 0.5, "batch_size": 16, "evaluations": 1}
NATURAL = {"t1": "jrc", "t2": "bce,pairwise[weight=.5]", "t3": "ziln", "t4": "cross-entropy"}


# --- every model, any number of tasks


@pytest.mark.parametrize("model", MODELS.names())
def test_every_model_trains_losses_of_several_logits(model):
    data = data_of(funnel=MODELS.load(model).needs_funnel)
    if model in ("esmm", "escm2"):
        with pytest.raises(UsageError) as caught:
            mtlkit.fit(model, data, **SHORT, loss=NATURAL)
        assert caught.value.message == (
            f"{model} does not apply: toy trains t1 by jrc, which a product, of one logit a row, "
            "cannot."
        )
        wide = prepared(data, loss=NATURAL).schema
        with pytest.raises(UsageError, match="the data set trains t1 by jrc"):
            MODELS.load(model).check(wide, MODELS.load(model).Options())
        losses = NATURAL | {"t1": "focal", "t2": "bce,listwise"}
    else:
        losses = NATURAL
    result = mtlkit.fit(model, data, **SHORT, loss=losses)
    for metrics in result.metrics["test"].values():
        assert all(value is None or np.isfinite(value) for value in _numbers(metrics))
    assert result.scores["score/t1"].shape == result.scores["label/t1"].shape
    assert result.scores["score/t3"].shape == result.scores["label/t3"].shape


def _numbers(metrics):
    return [value for value in metrics.values() if not isinstance(value, (str, bool))]


def test_a_funnel_is_scored_by_the_probability_of_jrc():
    data = data_of(2, ("binary",), funnel=True)
    losses = {"t1": "jrc", "t2": "jrc[form=masked]"}
    result = mtlkit.fit("mmoe[cvr=clicked]", data, **SHORT, loss=losses)
    click, both = result.scores["score/t1"], result.scores["score/t2"]
    given = result.scores["score/t2-given-t1"]
    probability = 1 / (1 + np.exp(-np.stack([click, both, given]).astype(float)))
    np.testing.assert_allclose(probability[1], probability[0] * probability[2], rtol=1e-4)


@pytest.mark.parametrize("tasks", [1, 14, 100])
def test_any_number_of_tasks(tasks):
    data = data_of(tasks, rows=48, missing=0.5)
    names = data.schema.task_names
    losses = {name: NATURAL[f"t{t % 4 + 1}"] for t, name in enumerate(names)}
    result = mtlkit.fit(
        "shared-bottom[bottom=4,tower=none,embedding=2]", data, **SHORT, loss=losses
    )
    assert set(result.metrics["test"]) == set(names)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_with_idle_tasks_and_sessions_of_one_row(batch_size):
    data = with_sessions(toy_dataset(toy_schema(4, KINDS), 24, missing=0.8), per_session=1)
    how = SHORT | {"batch_size": batch_size}
    result = mtlkit.fit("shared-bottom[bottom=4,tower=none]", data, "mgda", **how, loss=NATURAL)
    assert all(np.isfinite(weights).all() for weights in result.weights.values())


def test_test_rows_of_unseen_ids_and_empty_bags():
    """They are scored by the vectors that their ids began with; one class in validation and test
    has no AUC.
    """
    data = toy_dataset(toy_schema(2, ("binary",), ids=1, dense=0, bags=1, vocab=100_000), 40)
    splits = {}
    for name, split in data.splits.items():
        unseen = 0 if name == "train" else 50_000
        ids = (split.ids % 50_000 + unseen).astype(np.int32)
        splits[name] = replace(split, ids=ids)
        if unseen:
            bag = replace(split.bags["bag1"], offsets=np.zeros(len(split) + 1, np.int64))
            bag = replace(bag, values=bag.values[:0], weights=bag.weights[:0])
            labels = np.ones_like(split.labels)
            splits[name] = replace(splits[name], bags={"bag1": bag}, labels=labels)
    data = replace(data, splits=splits)
    spec = MODELS.load("shared-bottom")
    torch.manual_seed(0)  # of few units, all may be dead for a batch
    model = spec(data.schema, spec.Options(bottom=(4,), tower=()))
    before = model.embedding.width_8.detach().clone()
    result = mtlkit.fit(model, data, **SHORT)
    after = model.embedding.width_8.detach()
    torch.testing.assert_close(after[50_000:], before[50_000:], rtol=0, atol=0)
    assert not torch.equal(after, before)

    x = torch.zeros(len(data.splits["test"]), model.embedding.width)
    x[:, :8] = after[data.splits["test"].ids[:, 0]]  # nothing of an empty bag
    with torch.no_grad():
        logits = model.towers(model.bottom(x[:, None]).expand(-1, 2, -1))
    for t, name in enumerate(("t1", "t2")):
        expected = logits[t].numpy().squeeze()
        np.testing.assert_allclose(result.scores[f"score/{name}"], expected, rtol=1e-5)
        assert result.metrics["test"][name]["auc"] is None


def test_a_plain_loss_by_its_name_changes_no_number():
    data = data_of(2, ("binary",))
    plain = mtlkit.fit("mmoe", data, **SHORT)
    named = mtlkit.fit("mmoe", data, **SHORT, loss={"t1": "bce"})
    for name, value in plain.weights.items():
        np.testing.assert_array_equal(value, named.weights[name])


# --- rows of a session in batches


def test_batches_carry_the_groups_that_losses_ask_for():
    data = data_of()
    split = data.splits["train"]
    assert group_names(data.schema.tasks) == []
    assert group_names(prepared(data, loss={"t1": "jrc"}).schema.tasks) == ["session"]
    assert DeviceSplit.load(split, CPU).take(torch.arange(3)).groups == {}
    batch = DeviceSplit.load(split, CPU, ["session"]).take(torch.tensor([5, 2]))
    assert batch.groups["session"].tolist() == split.groups["session"][[5, 2]].tolist()


def test_grouped_batches_hold_sessions_one_after_another():
    groups = torch.tensor([3, 0, 3, 1, 0, 2, 3, 1, 0])
    order = in_groups(groups, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(9))
    of_rows = groups[order]
    changes = int((of_rows[1:] != of_rows[:-1]).sum())
    assert changes == 3
    other = in_groups(groups, torch.Generator().manual_seed(1))
    assert other.tolist() != order.tolist()
    stream = row_stream(9, 3, torch.Generator().manual_seed(0), CPU, groups)
    assert torch.cat([next(stream) for _ in range(3)]).tolist() == order.tolist()


def test_a_row_that_meets_none_of_its_session_is_told():
    data = data_of(2, ("binary",), rows=400)
    split = data.splits["train"]
    sizes = np.unique(split.groups["session"], return_counts=True)[1]
    expected = float((sizes * (sizes - 1)).sum()) / 400 * 15 / 399
    assert partners(split, "session", 16) == pytest.approx(expected)
    told = mtlkit.fit("mmoe", data, **SHORT, loss={"t1": "jrc"}).warnings
    assert [text for text in told if "choose batches=grouped" in text]
    grouped = mtlkit.fit("mmoe", data, **SHORT, loss={"t1": "jrc"}, batches="grouped").warnings
    assert not [text for text in grouped if "grouped" in text]


# --- row weights

NAN = float("nan")


def batch_of(labels, observed=None, weight=None):
    labels = torch.tensor(labels)
    observed = None if observed is None else torch.tensor(observed)
    weight = None if weight is None else torch.tensor(weight)
    empty = torch.zeros(len(labels), 0)
    return Batch(empty, empty, labels, observed, weight)


def schema_of(weights):
    return Schema(features=(), tasks=(Task(name="click"), Task(name="buy", row_weights=weights)))


def test_row_weights_by_hand():
    weights = RowWeights(indicator="click", inside=2, outside=0.5)
    schema = schema_of(weights)
    batch = batch_of(
        [[1.0, 1.0], [0.0, 0.0], [NAN, 1.0], [1.0, NAN]],
        [[True, True], [True, True], [False, True], [True, False]],
        [1.0, 3.0, 1.0, 5.0],
    )
    assert row_weight(schema, schema.tasks[0], batch).tolist() == [1, 3, 1, 5]
    assert row_weight(schema, schema.tasks[1], batch).tolist() == [2, 1.5, 0.5, 10]

    # The batch's own mean: (2 a + 1.5 b + .5 c) / 4, over the rows with a label.
    logits = torch.tensor([0.3, -1.0, 2.0, 9.0])
    a, b, c, _ = torch.nn.functional.softplus(
        torch.tensor([-1.0, 1.0, -1.0, 0.0]) * logits
    ).tolist()
    mask = batch.observed[:, 1]
    weight = row_weight(schema, schema.tasks[1], batch)
    loss, active, _ = task_loss(schema.tasks[1], logits, batch.labels[:, 1], mask, weight)
    assert loss.item() == pytest.approx((2 * a + 1.5 * b + 0.5 * c) / 4)
    assert active

    # A mean of 4 over train: divided by 4, and by the three rows.
    filled = RowWeights(**weights.model_dump() | {"mean": "train", "train_mean": 4.0})
    task = schema_of(filled).tasks[1]
    loss, active, _ = task_loss(task, logits, batch.labels[:, 1], mask, weight)
    assert loss.item() == pytest.approx((2 * a + 1.5 * b + 0.5 * c) / 4 / 3)


def test_row_weights_of_single_tasks():
    schema = schema_of(None)
    batch = batch_of([[1.0, 1.0], [0.0, 0.0]], weight=[[1.0, 5.0], [2.0, 0.0]])
    assert row_weight(schema, schema.tasks[0], batch).tolist() == [1, 2]
    assert row_weight(schema, schema.tasks[1], batch).tolist() == [5, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.5, 3.0])),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([None, 0.7]),
)
def test_weighted_means_are_those_of_a_slow_loop(rows, inside, outside, train_mean):
    mean = "batch" if train_mean is None else "train"
    weights = RowWeights(
        indicator="click", inside=inside, outside=outside, mean=mean, train_mean=train_mean
    )
    schema = schema_of(weights)
    labels = [[float(click), float(buy)] for click, buy, _, _ in rows]
    observed = [[True, there] for _, _, there, _ in rows]
    batch = batch_of(labels, observed, [row[3] for row in rows])
    logits = torch.linspace(-2, 2, len(rows), requires_grad=True)
    task = schema.tasks[1]
    weight = row_weight(schema, task, batch)
    loss, active, _ = task_loss(task, logits, batch.labels[:, 1], batch.observed[:, 1], weight)
    loss.backward()

    total = weight_sum = count = 0.0
    for (click, buy, there, own), logit in zip(rows, logits.tolist(), strict=True):
        if there:
            w = own * (inside if click else outside)
            total += w * np.logaddexp(0, -logit if buy else logit)
            weight_sum += w
            count += 1
    divisor = weight_sum if train_mean is None else count * train_mean
    assert loss.item() == pytest.approx(total / divisor if weight_sum else 0.0, rel=1e-5, abs=1e-6)
    assert bool(active) == (weight_sum > 0)
    assert logits.grad.isfinite().all()


def test_the_mean_over_train_is_filled_in():
    data = data_of(2, ("binary",), missing=0.3)
    given = {"indicator": "t1", "inside": 3, "outside": 1, "mean": "train"}
    task = prepared(data, row_weights={"t2": given}).schema.tasks[1]
    split = data.splits["train"]
    total = count = 0
    for labels, there in zip(split.labels, split.observed, strict=True):
        if there[1]:
            total += 3 if there[0] and labels[0] > 0 else 1
            count += 1
    assert task.row_weights.train_mean == pytest.approx(total / count)
    result = mtlkit.fit("mmoe", data, **SHORT, row_weights={"t2": given})
    assert np.isfinite(result.metrics["test"]["t2"]["auc"])


# --- auxiliary tasks


def test_an_auxiliary_task_is_trained_and_not_reported():
    data = data_of()
    result = mtlkit.fit("mmoe", data, **SHORT, auxiliary="t2,t3")
    assert set(result.metrics["test"]) == set(result.metrics["validation"]) == {"t1", "t4"}
    assert set(result.curve[0]["train_loss"]) == {"t1", "t2", "t3", "t4"}
    assert not [name for name in result.scores if name.endswith(("t2", "t3"))]
    alone = mtlkit.fit("mmoe", data.select(["t1", "t4"]), **SHORT)
    assert result.metrics["test"]["t1"] != alone.metrics["test"]["t1"]


def test_an_auxiliary_task_of_single_task_models():
    result = mtlkit.fit("single-task", data_of(), **SHORT, auxiliary="t1")
    assert set(result.metrics["test"]) == {"t2", "t3", "t4"}


def test_an_auxiliary_step_of_a_funnel():
    data = data_of(2, ("binary",), funnel=True)
    for model in ("esmm", "single-task", "mmoe"):
        assert "t1" not in mtlkit.fit(model, data, **SHORT, auxiliary="t1").metrics["test"]
        assert set(mtlkit.fit(model, data, **SHORT, auxiliary="t2").metrics["test"]) == {"t1"}

    # what follows from it is measured on all rows, too, and stored
    result = mtlkit.fit("mmoe", data, **SHORT, auxiliary="t1", validation_rows=40)
    assert set(result.metrics["validation"]) == {"t2", "t2-given-t1"}
    assert {"score/t2", "score/t2-given-t1"} <= result.scores.keys()


# --- tasks that are reported and not trained


@pytest.mark.parametrize("model", ["mmoe", "single-task", "ple"])
def test_a_task_that_another_one_scores(model):
    data = data_of(3, ("binary",), missing=0.2)
    how = SHORT | {"scored_by": {"t2": "t1"}, "epochs": 6, "evaluations": 6}
    result = mtlkit.fit(model, data, "pcgrad", **how)
    assert not [warning for warning in result.warnings if "reaches" in warning]
    np.testing.assert_array_equal(result.scores["score/t2"], result.scores["score/t1"])
    there = result.scores["observed/t2"]
    expected = roc_auc_score(result.scores["label/t2"][there], result.scores["score/t1"][there])
    assert result.metrics["test"]["t2"]["auc"] == pytest.approx(expected)

    # its labels on train move nothing, and those on validation choose nothing
    splits = dict(data.splits)
    for name in ("train", "validation"):
        labels = splits[name].labels
        turned = np.where([False, True, False], 1 - labels, labels)
        splits[name] = replace(splits[name], labels=turned)
    again = mtlkit.fit(model, replace(data, splits=splits), "pcgrad", **how)
    assert again.metrics["test"] == result.metrics["test"]
    assert again.best == result.best
    assert data.splits["train"].observed[:, 1].any(), "the data stay as they are"

    # the other one need not be reported
    unseen = mtlkit.fit(model, data, "pcgrad", **how, auxiliary="t1", select="t2")
    expected = roc_auc_score(unseen.scores["label/t2"][there], unseen.scores["score/t2"][there])
    assert unseen.metrics["test"]["t2"]["auc"] == pytest.approx(expected)


def test_labels_that_say_where_another_task_is_trained_are_needed():
    data = data_of(2, ("binary",))
    given = data.schema.tasks[1].model_copy(update={"given": "t1"})
    tasks = (data.schema.tasks[0], given, data.schema.tasks[0].model_copy(update={"name": "t3"}))
    schema = data.schema.model_copy(update={"tasks": tasks})
    with pytest.raises(UsageError, match="rows count by the label of t1 for another task"):
        prepared(replace(data, schema=schema), scored_by={"t1": "t3"})


# --- identity, and what is wrong


def test_what_is_not_used_is_no_part_of_a_key():
    plain = key_of(TrainingSettings())
    assert not {"loss", "row_weights", "auxiliary", "scored_by"} & plain.keys()
    used = key_of(TrainingSettings(loss={"a": "focal"}, auxiliary="b"))
    assert used["loss"] == {"a": ["focal[weight=1,gamma=2,alpha=0.25,detach=false]"]}
    assert used["auxiliary"] == ["b"]
    assert key_of(TrainingSettings(loss={"a": "focal[gamma=2]"}))["loss"] == used["loss"]


def test_settings_leave_data_alone():
    data = data_of()
    changed = prepared(data, loss={"t1": "focal"}, auxiliary="t2")
    assert changed.fingerprint == data.fingerprint
    assert data.schema.tasks[0].losses == ("bce",)
    assert changed.schema.tasks[0].losses == ("focal",)


WRONG = {
    "scored by itself": (
        {"scored_by": {"t1": "t1"}},
        "t1 cannot be scored by t1: t1 is not trained itself.",
    ),
    "scored in a circle": (
        {"scored_by": {"t1": "t2", "t2": "t1"}},
        "t1 cannot be scored by t2: t2 is not trained itself.",
    ),
    "scored by a number": (
        {"scored_by": {"t1": "t3"}},
        "t1 cannot be scored by t3: both must be binary, so that a probability of one can be one "
        "of the other.",
    ),
    "scored and trained": (
        {"scored_by": {"t1": "t2"}, "auxiliary": "t1"},
        "t1 cannot be scored by t2: another setting trains t1, or makes it auxiliary.",
    ),
    "scored and an indicator": (
        {"scored_by": {"t1": "t2"}, "row_weights": {"t4": {"indicator": "t1"}}},
        "t1 cannot be scored by t2: rows count by the label of t1 for another task.",
    ),
    "no task": ({"loss": {"tt": "bce"}}, "There is no task 'tt' in this data set."),
    "no loss": ({"loss": {"t1": "hinge"}}, "There is no loss called 'hinge'."),
    "no option": ({"loss": {"t1": "bce[gamma=2]"}}, "The loss bce has no option 'gamma'."),
    "another kind": ({"loss": {"t1": "ziln"}}, "Ziln is no loss of the binary task 't1'."),
    "added": (
        {"loss": {"t3": "mse,poisson"}},
        "Poisson of the task 't3' cannot be added to another loss.",
    ),
    "no group": (
        {"loss": {"t1": "jrc[within=user]"}},
        "jrc[within=user] of the task 't1' compares rows of one user, but toy says of no row which "
        "user it belongs to.",
    ),
    "no indicator": (
        {"row_weights": {"t1": {"indicator": "t3"}}},
        "The row weights of 't1' go by 't3', which is no binary task.",
    ),
    "all auxiliary": (
        {"auxiliary": "t1,t2,t3,t4"},
        "All tasks are auxiliary, so there is nothing to report.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_one_sentence(case):
    training, message = WRONG[case]
    with pytest.raises(UsageError) as caught:
        prepared(data_of(), **training)
    assert caught.value.message == message
    assert caught.value.hint


def test_no_loss_is_no_setting():
    with pytest.raises(UsageError) as caught:
        mtlkit.fit("mmoe", data_of(), **SHORT, loss={"t1": None})
    assert caught.value.message.startswith("The option 'loss.t1' of the training cannot be None")


def test_amounts_below_zero_are_refused():
    data = toy_dataset(toy_schema(1, ("regression",)), 60)
    with pytest.raises(UsageError) as caught:
        prepared(data, loss={"t1": "poisson"})
    assert caught.value.message.startswith("poisson takes amounts of 0 or more, but train has")
    assert caught.value.hint == "--set loss.t1=mse"


def test_grouped_batches_need_groups():
    data = toy_dataset(toy_schema(2), 60)
    with pytest.raises(UsageError, match="batches=grouped brings the rows of a session together"):
        mtlkit.fit("mmoe", data, **SHORT, batches="grouped")
