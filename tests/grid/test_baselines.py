"""Baselines: fitted as scikit-learn fits by hand, on the right rows, and cells like any other."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from mtlkit.baselines._baseline import Columns
from mtlkit.data.sources import prepare
from mtlkit.data.splits import SharedColumns
from mtlkit.errors import MissingError
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.grid.rerun import rerun
from mtlkit.grid.run_cell import run_cell
from mtlkit.grid.stacking import stacks
from mtlkit.grid.tuning import Tuning
from mtlkit.records import Cell
from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.settings import ExecutionSettings, RowWeights
from mtlkit.store import ResultStore
from mtlkit.training.fit_baseline import fit_baseline
from mtlkit.training.seeding import seed_for
from tests.conftest import DATA, run_cli
from tests.grid.test_tuning import Planted
from tests.toy import toy_dataset, toy_schema

NAMES = ("tree", "logistic", "base-rate")
KINDS = ("binary", "regression", "multiclass")


def fitted(name, dataset, seed=0, **options):
    """A baseline on a data set in memory."""
    method = {"name": name, "options": options}
    resolved = {"model": method, "balancer": {"name": "none"}, "training": {}}
    cell = Cell(dataset="toy", model=name, balancer="none", seed=seed, resolved=resolved)
    return fit_baseline(cell, dataset, ExecutionSettings(), lambda share: None)


def binary(split, column=0):
    return split.labels[:, column], split.observed[:, column]


# --- what they are, by hand


def test_the_base_rate_is_that_of_the_labelled_rows_of_train():
    schema = toy_schema(tasks=3, kinds=KINDS)
    dataset = toy_dataset(schema, missing=0.3)
    result = fitted("base-rate", dataset)
    train, test = dataset.splits["train"], dataset.splits["test"]
    seen = [train.labels[train.observed[:, t], t] for t in range(3)]
    asked = [test.labels[test.observed[:, t], t] for t in range(3)]
    found = result.metrics["test"]

    rate = seen[0].mean()
    assert found["t1"]["auc"] == 0.5
    assert found["t1"]["logloss"] == pytest.approx(log_loss(asked[0], np.full(len(asked[0]), rate)))
    assert found["t1"]["rows"] == len(asked[0])
    mean = np.full(len(asked[1]), seen[1].mean())
    assert found["t2"]["r2"] == pytest.approx(r2_score(asked[1], mean), abs=1e-6)
    shares = np.bincount(seen[2].astype(int), minlength=3) / len(seen[2])
    expected = -np.log(shares[asked[2].astype(int)]).mean()
    assert found["t3"]["logloss"] == pytest.approx(expected, rel=1e-5)


def test_row_weights_count():
    schema = toy_schema(tasks=2)
    weights = RowWeights(indicator="t2", inside=5.0, outside=1.0)
    schema = schema.model_copy(
        update={
            "tasks": (schema.tasks[0].model_copy(update={"row_weights": weights}), schema.tasks[1])
        }
    )
    dataset = toy_dataset(schema)
    rng = np.random.default_rng(0)
    train = replace(dataset.splits["train"], weight=rng.random(600).astype(np.float32))
    dataset = replace(dataset, splits={**dataset.splits, "train": train})
    each = np.where(train.labels[:, 1] > 0, 5.0, 1.0) * train.weight
    rate = (train.labels[:, 0] * each).sum() / each.sum()
    stored = fitted("base-rate", dataset).scores["score/t1"]
    assert stored == pytest.approx(np.full(300, math.log(rate / (1 - rate))), rel=1e-5)


def test_the_tree_is_the_one_of_scikit_learn():
    dataset = toy_dataset(toy_schema(tasks=1))
    train, validation, test = dataset.splits.values()

    def inputs(split):
        return np.concatenate([split.ids, split.dense], 1).astype(np.float32)

    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_leaf_nodes=31, max_iter=40, max_features=0.5,
        categorical_features=[0, 1, 2], early_stopping=False,
        random_state=seed_for(3, "rows") % 2**32,
    )  # fmt: skip
    model.fit(inputs(train), train.labels[:, 0])
    aucs = {
        stage: roc_auc_score(validation.labels[:, 0], p[:, 1])
        for stage, p in enumerate(model.staged_predict_proba(inputs(validation)), start=1)
        if stage in (1, 10, 20, 30, 40)
    }
    best = max(aucs, key=aucs.get)
    [*stages] = model.staged_predict_proba(inputs(test))
    result = fitted("tree", dataset, seed=3, trials=1, iterations=40)
    assert result.best["t1"]["stages"] == best
    assert result.best["t1"]["value"] == pytest.approx(aucs[best])
    expected = roc_auc_score(test.labels[:, 0], stages[best - 1][:, 1])
    assert result.metrics["test"]["t1"]["auc"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_the_linear_model_is_the_one_of_scikit_learn(kind):
    schema = toy_schema(tasks=1, kinds=(kind,), bags=1)
    dataset = toy_dataset(schema)
    splits = list(dataset.splits.values())
    vocabularies = [np.arange(f.vocab) for f in schema.of_kind("id")]
    one_hot = OneHotEncoder(categories=vocabularies, sparse_output=False)

    def inputs(split):
        bag = np.zeros((len(split), schema.of_kind("bag")[0].vocab))
        owner = np.repeat(np.arange(len(split)), np.diff(split.bags["bag1"].offsets))
        np.add.at(bag, (owner, split.bags["bag1"].values), split.bags["bag1"].weights)
        dense = (split.dense - splits[0].dense.mean(0)) / splits[0].dense.std(0)
        return np.concatenate([one_hot.fit_transform(split.ids), dense, bag], 1)

    result = fitted("logistic", dataset)
    c = result.best["t1"]["C"]
    model = Ridge(1 / c) if kind == "regression" else LogisticRegression(C=c, max_iter=300)
    model.fit(inputs(splits[0]), splits[0].labels[:, 0])
    x = inputs(splits[2])
    expected = model.predict(x) * 3 + 2 if kind == "regression" else model.decision_function(x)
    bound = 30 if kind == "binary" else math.inf  # further on, 1 - p is not told from 0
    found = np.minimum(result.scores["score/t1"], bound)
    assert found == pytest.approx(np.minimum(expected, bound), abs=2e-3)


# --- the right rows


@pytest.mark.parametrize("name", NAMES)
def test_all_kinds_with_missing_labels_and_bags(name):
    schema = toy_schema(tasks=3, kinds=KINDS, bags=1)
    result = fitted(name, toy_dataset(schema, missing=0.3))
    least = {"base-rate": 0.0}.get(name, 0.2)
    test = result.metrics["test"]
    assert test["t1"]["auc"] >= 0.5 + least / 2
    assert test["t2"]["r2"] >= least - 0.05
    assert test["t3"]["accuracy"] >= 0.3 + least / 4
    assert not result.warnings


@pytest.mark.parametrize("name", NAMES)
def test_a_conversion_is_fitted_on_clicked_rows(name):
    schema = toy_schema(tasks=2).model_copy(update={"funnel": ("t1", "t2")})
    dataset = toy_dataset(schema)
    result = fitted(name, dataset)
    assert set(result.metrics["test"]) == {"t1", "t2", "t2-given-t1"}
    assert not any(score["derived"] for score in result.metrics["test"].values())
    if name == "base-rate":
        train = dataset.splits["train"].labels
        rate = train[train[:, 0] > 0, 1].mean()
        logit = result.scores["score/t2-given-t1"][0]
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(rate, rel=1e-5)


def test_columns_that_rows_share_are_seen():
    schema = toy_schema(tasks=1, bags=2)
    plain = toy_dataset(schema, rows=50).splits["train"]
    shared_rows = np.random.default_rng(0).integers(0, 50, 80)
    shared = SharedColumns(
        shared_rows.astype(np.int32), plain.ids[:, 1:], plain.dense, {"bag2": plain.bags["bag2"]}
    )
    own = toy_dataset(schema, rows=80, seed=1).splits["train"]
    split = replace(
        own,
        ids=own.ids[:, :1],
        dense=own.dense[:, :0],
        bags={"bag1": own.bags["bag1"]},
        shared=shared,
    )
    rows = np.array([3, 70, 3, 11])
    found = Columns.of(schema, split, rows)
    assert (found.ids[:, 1:] == plain.ids[shared_rows[rows], 1:]).all()
    assert (found.ids[:, 0] == own.ids[rows, 0]).all()
    assert (found.dense == plain.dense[shared_rows[rows]]).all()
    bag, owner = plain.bags["bag2"], shared_rows[70]
    ids = slice(bag.offsets[owner], bag.offsets[owner + 1])
    expected = np.zeros(found.bags["bag2"].shape[1])
    np.add.at(expected, bag.values[ids], bag.weights[ids])
    assert found.bags["bag2"].toarray()[1] == pytest.approx(expected)
    assert found.bags["bag1"].shape == (4, 7)


@pytest.mark.parametrize("name", ["tree", "logistic"])
def test_of_many_rows_it_says_how_many_it_saw(name):
    result = fitted(name, toy_dataset(toy_schema(tasks=1)), rows=100)
    assert result.cost == {"fitted_rows": 100, "labelled_rows": 600}
    assert "100 of 600 training rows" in result.warnings[0]
    assert result.metrics["test"]["t1"]["rows"] == 300
    assert fitted(name, toy_dataset(toy_schema(tasks=1)), rows=None).cost == {}


def test_a_label_of_one_value_is_its_own_rate():
    dataset = toy_dataset(toy_schema(tasks=1))
    dataset.splits["train"].labels[:] = 0
    assert fitted("tree", dataset).metrics["test"]["t1"]["auc"] == 0.5
    dataset.splits["train"].observed[:] = False
    with pytest.raises(MissingError, match="No row of train has a label of t1"):
        fitted("tree", dataset)


@pytest.mark.parametrize("name", ["tree", "logistic"])
def test_where_validation_cannot_choose_train_does(name):
    dataset = toy_dataset(toy_schema(tasks=1))
    validation = dataset.splits["validation"]
    validation.labels[:] = 0
    one_class = fitted(name, dataset)
    validation.observed[:] = False
    none = fitted(name, dataset)
    assert none.warnings == ["validation has no two values of t1: train chose"]
    assert one_class.metrics["test"] == none.metrics["test"]
    assert none.metrics["test"]["t1"]["auc"] > 0.6
    dataset.splits["validation"] = dataset.splits["train"]
    assert fitted(name, dataset).best == none.best


def test_a_class_that_train_lacks():
    dataset = toy_dataset(toy_schema(tasks=1, kinds=("multiclass",)))
    labels = dataset.splits["train"].labels
    labels[labels == 1] = 0
    stored = fitted("tree", dataset, iterations=10).scores["score/t1"]
    assert stored.shape == (300, 3)
    assert (stored[:, 1] < stored[:, [0, 2]].min(1)).all()


# --- cells like any other


def plan(home, store, *assignments, **flags):
    grid = {"dataset": DATA, "models": "shared-bottom", "balancers": "uniform", "seeds": 1, **flags}
    return make_plan(read_grid(None, grid, list(assignments)), *prepare(DATA, home), store)


def keys(found):
    return {planned.cell.model: planned.cell.key for planned in found.cells}


def test_their_keys_hold_no_training_and_leave_other_keys_alone(tmp_path):
    store = ResultStore(tmp_path / "results")
    without = keys(plan(tmp_path, store))
    beside = keys(plan(tmp_path, store, references="single-task,tree,base-rate"))
    assert beside.items() >= without.items()
    later = keys(plan(tmp_path, store, "epochs=3", references="single-task,tree,base-rate"))
    assert later["tree"] == beside["tree"]
    assert later["single-task"] != beside["single-task"]
    weighted = keys(plan(tmp_path, store, "trials=2", references="tree"))
    assert weighted["tree"] != beside["tree"]
    alone = keys(plan(tmp_path, store, models="tree", references="none"))
    assert alone == {"tree": beside["tree"]}


def test_they_are_fitted_on_the_cpu_and_take_no_steps(tmp_path):
    store = ResultStore(tmp_path / "results")
    alone = plan(tmp_path, store, "batch_size=5000", models="base-rate", references="none")
    assert alone.notes == ()
    record = run_cell(alone.to_run[0], tmp_path, ExecutionSettings(device="cuda")).record
    assert record.ok, record.error
    assert record.environment["device_type"] == "cpu"


def test_they_are_not_stacked_and_not_tuned(tmp_path):
    store = ResultStore(tmp_path / "results")
    cells = plan(tmp_path, store, models="tree", references="none", seeds=3).to_run
    found, _ = stacks(cells, ExecutionSettings(stack=4), on_cpu=True)
    assert [len(stack) for stack in found] == [1, 1, 1]

    grid = {"models": "shared-bottom", "balancers": "uniform", "seeds": 2, "tune": {"trials": 3}}
    grid |= {"dataset": DATA, "references": "tree"}
    settings = read_grid(None, grid, ["dropout=0.1", "trials=2"])
    tuning = Tuning(settings, *prepare(DATA, tmp_path), store)
    assert tuning.trial_cells == 3
    assert tuning.chosen_cells == 4
    chosen = tuning.run_trials(Planted(store))
    assert [planned.cell.model for planned in chosen.cells].count("tree") == 2


def test_a_grid_with_all_of_them_and_its_report(tmp_path):
    out = tmp_path / "results"
    words = ["-d", DATA, "--models", "shared-bottom", "--balancers", "uniform,uwl", "--seeds", "2"]
    words += ["--references", "single-task,tree[rows=80],logistic,base-rate", "--epochs", "0.1"]
    ended = run_cli("bench", *words, "--set", "iterations=10", "--data-dir", tmp_path, "--out", out)
    assert ended.code == 0, ended.err
    frames = load(ResultStore(out))
    [block] = frames.blocks
    summary = summarise(frames, block)

    # Rows of their own, which no comparison of methods counts.
    labels = {row.group.label for row in summary.baselines}
    assert labels == {"tree[rows=80] (80 of 200 rows)", "logistic", "base-rate"}
    assert len(summary.rows) == 3
    assert set(summary.best.values()) <= {row.group.id for row in summary.rows}
    assert not any(row.on_front or row.reference_of for row in summary.baselines)
    assert "different settings" not in " ".join(summary.warnings)
    assert "No network reaches the logistic baseline on task-1" in " ".join(summary.warnings)

    # A baseline is compared with single-task, pair by pair.
    [base_rate] = [row for row in summary.baselines if row.group.model == "base-rate"]
    assert base_rate.delta["task-1"].known

    # One of them runs again to the same digits, and keeps nothing to predict with.
    [folder] = out.glob("*/logistic/*/seed-0*")
    record = ResultStore.record(folder)
    assert rerun(record, folder, tmp_path).verdict == "same digits"
    taken = run_cli("export", folder)
    assert taken.code == 2
    assert "logistic is a baseline, of which no weights are kept" in taken.err
