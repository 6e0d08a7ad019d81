"""Evaluation points: where they are, what they see, which one is selected, when a run stops."""

import pytest
import torch

from mtlkit.settings import TrainingSettings
from mtlkit.training import evaluation, finish
from mtlkit.training.scoring import Scores
from tests.toy import toy_dataset, toy_schema


def test_points_are_scored_on_a_sample_and_the_best_one_on_all_rows(trainer, pair):
    rows = len(pair.splits["validation"])
    whole = trainer(pair).fit()
    result = trainer(pair, validation_rows=rows // 2).fit()
    for point in result.curve:
        assert point["validation"]["t1"]["rows"] == rows // 2
    assert result.metrics["validation"]["t1"]["rows"] == rows
    assert result.curve[-1]["train_loss"] == whole.curve[-1]["train_loss"], "training is the same"
    assert trainer(pair, validation_rows=rows).fit().metrics == whole.metrics


def test_as_many_rows_are_scored_as_cost_little(trainer, pair, monkeypatch):
    rows = len(pair.splits["train"])

    def rows_at_a_point(run):
        points = len(run.evaluator.points)
        return evaluation.eval_rows(run.settings, len(run.train), points)

    assert rows_at_a_point(trainer(pair)) == evaluation.EVAL_ROWS
    monkeypatch.setattr(evaluation, "EVAL_ROWS", 1)
    assert rows_at_a_point(trainer(pair, epochs=2, evaluations=4)) == int(0.3 * 2 * rows / 4)
    run = trainer(pair, epochs=1, evaluations=10)
    assert len(run.evaluator.eval_split) == int(0.3 * rows / 10) < len(pair.splits["validation"])


class Script:
    """Stands in for scoring: validation takes the next row of a table, and remembers the weights it
    saw.

    Args:
        table: An evaluation point to the AUC of each task; None where it is not defined.
        losses: An evaluation point to the validation loss of each task.
    """

    def __init__(self, run, monkeypatch, table, losses=None):
        self.run, self.table, self.losses = run, table, losses
        self.points, self.tests = [], []
        monkeypatch.setattr(evaluation, "score_split", self.score_split)
        for module in (evaluation, finish):
            monkeypatch.setattr(module, "metrics", self.metrics)

    def score_split(self, model, split, batch_size, precision):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        if split is self.run.splits["test"]:
            self.tests.append(state)
        else:
            assert split is self.run.splits["validation"]
            self.points.append(state)
        losses = (
            [1.0] * len(self.run.tasks)
            if self.losses is None
            else self.losses[len(self.points) - 1]
        )
        logits = {task: torch.zeros(len(split)) for task in self.run.tasks}
        return Scores(logits, {"point": len(self.points) - 1}, torch.tensor(losses))

    def metrics(self, model, scores, split, further):
        row = self.table[scores.derived["point"]]
        if split is self.run.splits["test"]:
            return {task: {"auc": 0.5, "pass": len(self.tests)} for task in self.run.tasks}
        return {task: {"auc": value} for task, value in zip(self.run.tasks, row, strict=True)}

    def same(self, one, two):
        return all(torch.equal(one[name], two[name]) for name in one)


TABLE = [(0.6, 0.90), (0.7, 0.80), (0.8, 0.85), (0.9, 0.60), (0.7, 0.70)]
LOSSES = [(0.5, 0.5), (0.4, 0.4), (0.6, 0.6), (0.7, 0.7), (0.1, 0.8)]


@pytest.mark.parametrize(
    ("settings", "point", "value"),
    [
        ({}, 2, 0.825),
        ({"select": "mean"}, 2, 0.825),
        ({"select": "t1"}, 3, 0.9),
        ({"select": "t2"}, 0, 0.9),
        ({"select": "loss"}, 1, -0.8),
        ({"select": "weighted", "select_weights": {"t1": 1, "t2": 9}}, 0, 0.87),
        ({"select": "weighted", "select_weights": {"t1": 5, "t2": 1}}, 3, 0.85),
        ({"select": "weighted", "select_weights": {"t1": 0, "t2": 1}}, 0, 0.9),
        ({"select": "weighted"}, 2, 0.825),
    ],
    ids=str,
)
def test_the_selected_point_is_restored_and_test_scored_there_once(
    trainer, pair, monkeypatch, settings, point, value
):
    run = trainer(pair, evaluations=5, **settings)
    script = Script(run, monkeypatch, TABLE, LOSSES)
    result = run.fit()
    assert len(script.points) == 5
    assert len(script.tests) == 1
    assert script.same(script.tests[0], script.points[point])
    assert not any(
        script.same(script.tests[0], state) for p, state in enumerate(script.points) if p != point
    )
    for t, task in enumerate(("t1", "t2")):
        assert result.best[task] == {
            "point": point,
            "step": 2 * (point + 1),
            "epoch": pytest.approx(0.2 * (point + 1)),
            "value": pytest.approx(value),
        }
        assert result.metrics["validation"][task] == {"auc": TABLE[point][t]}
        assert result.metrics["test"][task] == {"auc": 0.5, "pass": 1}


def test_the_best_state_stays_in_its_memory(trainer, pair, monkeypatch):
    run = trainer(pair, evaluations=3)
    script = Script(run, monkeypatch, [(0.5, 0.5), (0.7, 0.7), (0.6, 0.6)])
    (best,) = run.evaluator.bests
    run._train_until(run.evaluator.points[0], None)
    run._evaluate(run.evaluator.points[0])
    places = {name: value.data_ptr() for name, value in best.state.items()}
    run.fit()
    assert {name: value.data_ptr() for name, value in best.state.items()} == places
    assert script.same(best.state, script.points[1])


def test_of_equal_points_the_first_is_kept(trainer, pair, monkeypatch):
    run = trainer(pair, evaluations=4)
    Script(run, monkeypatch, [(0.5, 0.5), (0.7, 0.7), (0.7, 0.7), (0.6, 0.6)])
    assert run.fit().best["t1"]["point"] == 1


def test_tasks_without_a_metric_do_not_vote(trainer, pair, monkeypatch):
    run = trainer(pair, evaluations=3)
    Script(run, monkeypatch, [(None, 0.6), (None, 0.8), (None, 0.7)])
    best = run.fit().best
    assert best["t1"] == best["t2"]
    assert (best["t1"]["point"], best["t1"]["value"]) == (1, 0.8)


def test_without_any_metric_the_loss_decides(trainer, pair, monkeypatch):
    run = trainer(pair, evaluations=3)
    Script(run, monkeypatch, [(None, None)] * 3, [(3.0, 1.0), (1.0, 1.0), (1.0, 2.0)])
    assert run.fit().best["t1"]["point"] == 1


def test_a_task_without_any_label_in_validation_and_test(trainer):
    data = toy_dataset(toy_schema(tasks=2), rows=320)
    for name in ("validation", "test"):
        data.splits[name].observed[:, 1] = False
    result = trainer(data).fit()
    assert result.metrics["test"]["t2"]["rows"] == 0
    assert result.best["t1"]["value"] == result.metrics["validation"]["t1"]["auc"]


def test_single_task_selects_by_task(trainer, pair, monkeypatch):
    run = trainer(pair, "single-task[bottom=6,tower=4]", evaluations=5)
    script = Script(run, monkeypatch, TABLE, LOSSES)
    result = run.fit()
    assert run.balancer is None
    assert [result.best[task]["point"] for task in ("t1", "t2")] == [3, 0]
    assert len(script.tests) == 2
    assert script.same(script.tests[0], script.points[3])
    assert script.same(script.tests[1], script.points[0])
    assert [result.metrics["test"][task]["pass"] for task in ("t1", "t2")] == [1, 2]
    assert [result.metrics["validation"][task]["auc"] for task in ("t1", "t2")] == [0.9, 0.9]


def test_single_task_by_loss_looks_at_its_own_loss(trainer, pair, monkeypatch):
    run = trainer(pair, "single-task[bottom=6,tower=4]", evaluations=5, select="loss")
    Script(run, monkeypatch, TABLE, LOSSES)
    assert [entry["point"] for entry in run.fit().best.values()] == [4, 1]


FALLING = [(v, v) for v in (0.6, 0.8, 0.7, 0.79, 0.75, 0.9, 0.5, 0.5, 0.5, 0.5)]


@pytest.mark.parametrize(
    ("patience", "points", "best"), [(1, 3, 1), (2, 4, 1), (3, 5, 1), (4, 10, 5), (None, 10, 5)]
)
def test_early_stopping(trainer, pair, monkeypatch, patience, points, best):
    run = trainer(pair, patience=patience, evaluations=10)
    Script(run, monkeypatch, FALLING)
    result = run.fit()
    assert len(result.curve) == points
    assert result.cost["steps"] == result.curve[-1]["step"] == points
    assert result.best["t1"]["point"] == best


def test_single_task_stops_when_no_task_gets_better(trainer, pair, monkeypatch):
    table = [
        (0.9, 0.5),
        (0.8, 0.6),
        (0.7, 0.7),
        (0.7, 0.8),
        (0.7, 0.7),
        (0.7, 0.7),
        *[(0.1, 0.1)] * 4,
    ]
    run = trainer(pair, "single-task[bottom=6,tower=4]", patience=2, evaluations=10)
    Script(run, monkeypatch, table)
    assert len(run.fit().curve) == 6


@pytest.mark.parametrize(
    ("settings", "steps", "points"),
    [
        ({"epochs": 1, "batch_size": 8}, 40, 10),
        ({"epochs": 1, "batch_size": 8, "evaluations": 13}, 40, 13),
        ({"epochs": 12, "batch_size": 64}, 60, 12),
        ({"epochs": 1, "batch_size": 64}, 5, 5),
        ({"epochs": 0.5, "batch_size": 8, "evaluations": 4}, 20, 4),
        ({"epochs": 2.5, "batch_size": 32}, 25, 10),
        ({"epochs": 0.001, "batch_size": 32}, 1, 1),
        ({"epochs": 1, "batch_size": 1000, "evaluations": 1}, 1, 1),
        ({"epochs": 1, "batch_size": 8, "accumulate": 4}, 10, 10),
    ],
    ids=str,
)
def test_evaluation_points(trainer, pair, settings, steps, points):
    shares = []
    result = trainer(pair, **({"evaluations": TrainingSettings().evaluations} | settings)).fit(
        shares.append
    )
    assert result.cost["steps"] == steps
    assert [entry["point"] for entry in result.curve] == list(range(points))
    at = [entry["step"] for entry in result.curve]
    assert at == sorted(set(at))
    assert at[-1] == steps
    gaps = [b - a for a, b in zip([0, *at], at, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert shares == pytest.approx([step / steps for step in at])
    rows = settings["batch_size"] * settings.get("accumulate", 1)
    assert result.curve[-1]["epoch"] == pytest.approx(steps * rows / 320, abs=1e-3)


def test_train_losses_of_a_point_are_means_since_the_last(trainer, pair):
    seen = []
    result = trainer(
        pair,
        balancer=lambda step: (seen.append(step.losses), step.active.float())[1],
        evaluations=5,
    ).fit()
    for entry, pairs in zip(result.curve, zip(seen[::2], seen[1::2], strict=True), strict=True):
        expected = torch.stack(pairs).mean(0).tolist()
        assert list(entry["train_loss"].values()) == pytest.approx(expected)
