import math
from itertools import chain, cycle

import numpy as np
import pytest
import torch

from mtlkit.errors import UsageError
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import TrainingSettings
from mtlkit.training import evaluation, finish
from mtlkit.training.result import DivergedError
from mtlkit.training.scoring import Scores
from tests.toy import toy_dataset, toy_schema

SMALL = {
    "embedding": "3",
    "tower": "4",
    "bottom": "6",
    "hidden": "5",
    "experts": "3",
    "specific": "2",
    "shared": "1",
    "levels": "2",
}


def small(model):
    """A model with small options, as many of them as it has."""
    fields = MODELS.load(model).Options.model_fields
    return f"{model}[{','.join(f'{key}={value}' for key, value in SMALL.items() if key in fields)}]"


def covering():
    """Data set, model and balancer: every model on both data sets, every balancer on the harder
    one.
    """
    models = [name for name in MODELS.names() if MODELS.load(name).shares_parameters]
    every = [("mixed", *pair) for pair in zip(cycle(models), BALANCERS.names(), strict=False)]
    every += [("mixed", model, "uniform") for model in models[len(every) :]]
    every += [("pair", *pair) for pair in zip(models, cycle(BALANCERS.names()), strict=False)]
    alone = [name for name in MODELS.names() if name not in models]
    return every + [(data, name, "uniform") for name in alone for data in ("pair", "mixed")]


@pytest.fixture(scope="module")
def pair():
    return toy_dataset(toy_schema(tasks=2), rows=320)


@pytest.fixture(scope="module")
def mixed():
    """Three kinds of tasks with so few labels that some batches have none for a task."""
    schema = toy_schema(tasks=3, kinds=("binary", "regression", "multiclass"), bags=1)
    return toy_dataset(schema, rows=320, missing=0.9)


@pytest.fixture(scope="module")
def pair_funnel():
    return toy_dataset(funnel_schema(2), rows=320)


@pytest.fixture(scope="module")
def mixed_funnel():
    return toy_dataset(funnel_schema(3), rows=320, missing=0.9)


def funnel_schema(steps):
    schema = toy_schema(tasks=steps)
    return schema.model_copy(update={"funnel": schema.task_names})


def parameters(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def difference(one, two):
    """The largest difference between two sets of parameters."""
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def numbers(tree):
    if isinstance(tree, dict):
        return list(chain.from_iterable(numbers(value) for value in tree.values()))
    return [] if tree is None or isinstance(tree, str) else [tree]


# --- everything trains
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "model", "balancer"), covering())
def test_everything_trains(trainer, request, data, model, balancer):
    dataset = request.getfixturevalue(data)
    if MODELS.load(model).inapplicable(dataset.schema):
        dataset = request.getfixturevalue(f"{data}_funnel")
    run = trainer(
        dataset, small(model), balancer, batch_size=16, epochs=0.5, evaluations=3, probes=True
    )
    idle, step = [], run._step
    run._step = lambda *arguments: (made := step(*arguments), idle.append(not made.active.all()))[0]
    before = parameters(run)
    result = run.fit()
    assert any(idle) == (data == "mixed"), "batches without a label of some task"
    assert result.cost["steps"] == 10
    assert difference(before, parameters(run)) > 1e-4
    assert all(
        math.isfinite(value)
        for value in numbers({str(i): entry for i, entry in enumerate(result.curve)})
    )
    assert set(result.metrics) == {"validation", "test"}
    for found in result.metrics.values():
        assert list(found) == [of.name for of in run.schema.scores() if not of.hidden]
        assert all(math.isfinite(value) for value in numbers(found))
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


@pytest.mark.parametrize("balancer", ["uniform", "pcgrad"])
def test_a_seed_decides_every_bit(trainer, mixed, balancer):
    def fit(seed):
        run = trainer(
            mixed,
            "mmoe[experts=3,hidden=5,dropout=.3,norm=batch]",
            balancer,
            seed=seed,
            probes=True,
        )
        return run.fit(), run

    (one, first), (two, second), (other, _) = fit(3), fit(3), fit(4)
    assert one.curve == two.curve
    assert one.metrics == two.metrics
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(r.model.state_dict().values() for r in (first, second)), strict=True)
    )
    assert one.probes.keys() == two.probes.keys()
    for key, value in one.probes.items():
        np.testing.assert_array_equal(value, two.probes[key])
    assert one.metrics != other.metrics


def test_training_learns(trainer, pair):
    result = trainer(pair, epochs=12, lr=0.02).fit()
    assert min(result.metrics["test"][task]["auc"] for task in ("t1", "t2")) > 0.8


def test_cost_and_timing(trainer, pair):
    run = trainer(pair, balancer="pcgrad", epochs=2)
    result = run.fit()
    assert result.cost["parameters"] == sum(value.numel() for value in run.model.parameters())
    tables = sum(
        value.numel()
        for name, value in run.model.named_parameters()
        if name.startswith("embedding.")
    )
    assert result.cost["embedding_parameters"] == tables > 0
    assert result.cost["steps"] == 20
    assert result.cost["backward_passes_per_step"] == 2
    rate = result.cost["train_rows_per_second"]
    assert rate == pytest.approx(20 * 32 / result.timing["train_seconds"])
    parts = sum(result.timing[f"{name}_seconds"] for name in ("train", "evaluation", "probe"))
    assert 0 < parts <= result.timing["total_seconds"] * 1.001
    assert trainer(pair).fit().cost["backward_passes_per_step"] == 1


def test_scores_are_kept_for_later(trainer, mixed, pair):
    run = trainer(mixed)
    scores = run.fit().scores
    split = mixed.splits["test"]
    parts = ("score", "label", "observed", "space", "derived")
    assert set(scores) == {f"{what}/{task}" for what in parts for task in run.tasks}
    assert scores["score/t1"].shape == (160,)
    assert scores["score/t3"].shape == (160, 3)
    assert (scores["label/t2"] == split.labels[:, 1]).all()
    assert (scores["observed/t2"] == split.observed[:, 1]).all()
    assert scores["score/t1"].dtype == "float32"
    assert "observed/t1" not in trainer(pair).fit().scores
    run = trainer(pair)
    run.execution = run.execution.model_copy(update={"save_scores": False})
    assert run.fit().scores == {}


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


def test_scores_of_large_splits_are_kept_only_if_asked_for(trainer, pair, monkeypatch):
    monkeypatch.setattr(finish, "KEPT_SCORES_ROWS", 10)
    run = trainer(pair)
    assert run.fit().scores == {}
    run = trainer(pair)
    run.execution = run.execution.model_copy(update={"save_scores": True})
    assert "score/t1" in run.fit().scores


# --- evaluation points, selection, stopping
# ---------------------------------------------------------------------------


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
        monkeypatch.setattr(evaluation, "score", self.score)
        for module in (evaluation, finish):
            monkeypatch.setattr(module, "metrics", self.metrics)

    def score(self, model, split, batch_size, precision):
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
        return Scores(logits, {}, torch.tensor(losses))

    def metrics(self, model, scores, split):
        row = self.table[len(self.points) - 1]
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


# --- the step
# ---------------------------------------------------------------------------------------------------------

SGD = {"optimizer": "sgd", "lr": 0.5, "schedule": "constant"}


def one_step(trainer, data, batch_size=64, **settings):
    """The change of the parameters in one optimiser step."""
    accumulate = settings.get("accumulate", 1)
    share = batch_size * accumulate / len(data.splits["train"])
    run = trainer(data, batch_size=batch_size, epochs=share, **(SGD | settings))
    before = parameters(run)
    assert run.fit().cost["steps"] == 1
    after = parameters(run)
    return {name: after[name] - before[name] for name in before}


def length(change):
    return float(torch.cat([value.flatten() for value in change.values()]).norm())


def test_clipping_bounds_the_whole_gradient(trainer, pair):
    free = one_step(trainer, pair)
    clipped = one_step(trainer, pair, clip_norm=0.01)
    loose = one_step(trainer, pair, clip_norm=1e3)
    assert length(free) > 0.02
    assert length(clipped) == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert difference(free, loose) == 0
    factor = length(clipped) / length(free)
    assert difference({k: v * factor for k, v in free.items()}, clipped) < 1e-6


@pytest.mark.parametrize(
    "balancer", ["uniform", "static[w=1:3]", lambda step: (step.gramian(), step.active.float())[1]]
)
@pytest.mark.parametrize("heads", ["weighted", "plain"])
def test_accumulated_batches_equal_one_large_batch(trainer, pair, balancer, heads):
    large = one_step(trainer, pair, 64, balancer=balancer, heads=heads)
    for accumulate in (2, 4):
        parts = one_step(
            trainer, pair, 64 // accumulate, balancer=balancer, heads=heads, accumulate=accumulate
        )
        assert length(parts) > 0.02
        assert difference(large, parts) < 1e-6


def test_accumulation_over_a_whole_run(trainer, pair):
    def trained(**settings):
        run = trainer(pair, epochs=3, **(SGD | {"lr": 0.1} | settings))
        run.fit()
        return parameters(run)

    assert difference(trained(batch_size=64), trained(batch_size=32, accumulate=2)) < 1e-5
    assert difference(trained(batch_size=64), trained(batch_size=32)) > 1e-3


@pytest.mark.parametrize("scope", ["dense", "all", "representation"])
@pytest.mark.parametrize("model", ["mmoe", "cgc", "shared-bottom", "ple"])
def test_gradients_are_compared_in_bf16(trainer, mixed, model, scope):
    found = trainer(mixed, model, "mgda", epochs=1.0, precision="bf16", scope=scope).fit()
    assert all(value is not None for value in found.curve[-1]["train_loss"].values())


@pytest.mark.parametrize(
    "model",
    ["shared-bottom[bottom=8,tower=4]", "mmoe[experts=3,hidden=5]", "single-task[bottom=6]"],
)
def test_bf16(trainer, mixed, model):
    exact = trainer(mixed, model, evaluations=4).fit()
    run = trainer(mixed, model, evaluations=4, precision="bf16", probes=True)
    rough = run.fit()
    assert {value.dtype for value in run.model.parameters()} == {torch.float32}
    for one, two in zip(
        numbers(exact.curve[-1]["train_loss"]), numbers(rough.curve[-1]["train_loss"]), strict=True
    ):
        assert two == pytest.approx(one, rel=0.1)
        assert two != one, "bf16 is not at work"


def test_task_weights_scale_losses(trainer, pair):
    plain = one_step(trainer, pair)
    heavier = one_step(trainer, pair, task_weights={"t1": 3.0})
    for name, value in plain.items():
        if name.startswith("towers."):
            torch.testing.assert_close(heavier[name][0], 3 * value[0], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(heavier[name][1], value[1], atol=1e-6, rtol=1e-4)
    seen = []
    trainer(
        pair,
        balancer=lambda s: (seen.append(s.losses), s.active.float())[1],
        task_weights={"t2": 2.0},
    ).fit()
    bare = []
    trainer(pair, balancer=lambda s: (bare.append(s.losses), s.active.float())[1]).fit()
    torch.testing.assert_close(seen[0], bare[0] * torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "settings", [{"task_weights": {"t9": 1}}, {"select_weights": {"t9": 1}}, {"select": "t9"}]
)
def test_settings_name_tasks_that_exist(trainer, pair, settings):
    with pytest.raises(UsageError, match="no task 't9'") as caught:
        trainer(pair, **settings)
    assert caught.value.hint == "its tasks are t1, t2"


@pytest.mark.parametrize("scope", ["dense", "all", "representation"])
@pytest.mark.parametrize("heads", ["weighted", "plain"])
def test_scopes_and_heads_train(trainer, pair, scope, heads):
    result = trainer(
        pair, "mmoe[experts=3,hidden=5]", "mgda", scope=scope, heads=heads, epochs=2
    ).fit()
    assert all(math.isfinite(value) for value in numbers(result.metrics["test"]))


# --- divergence
# -------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_is_an_error(trainer, pair):
    with pytest.raises(DivergedError, match=r"the loss of t1 and t2 is not finite") as caught:
        trainer(pair, optimizer="sgd", lr=1e30, schedule="constant").fit()
    assert 1 <= caught.value.step <= 3


def test_weights_that_are_nan(trainer, pair):
    with pytest.raises(DivergedError):
        trainer(pair, balancer=lambda step: step.losses * math.nan).fit()


def test_a_last_step_that_breaks_the_model_is_no_result(trainer, pair):
    """All training losses are finite; the model is not."""

    def late(step):
        return step.active * (math.nan if step.index == step.total - 1 else 1.0)

    with pytest.raises(DivergedError) as caught:
        trainer(pair, balancer=late).fit()
    assert caught.value.step == 10


def test_one_task_alone_may_break(trainer, pair):
    with pytest.raises(DivergedError, match="the loss of t2 is not finite"):
        trainer(
            pair, "single-task[bottom=6]", optimizer="sgd", lr=1e20, task_weights={"t1": 1e-25}
        ).fit()


# --- what a balancer may ask for
# --------------------------------------------------------------------------------------


class Watched:
    """Remembers the batches that a model is given."""

    def __init__(self, run):
        self.batches = []
        run.model.register_forward_pre_hook(lambda _, inputs: self.batches.append(inputs[0]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_after_gives_the_new_losses_on_the_same_batch(trainer, pair, accumulate):
    calls = []

    def famo(step):
        batch = watched.batches[-1]

        def callback(losses):
            with torch.no_grad():
                now = [o.loss for o in run.model.objectives(run.model(batch), batch)]
            calls.append((step.index, step.losses, losses, torch.stack(now)))
            assert watched.batches[-2] is batch, "asked about another batch"

        step.after_step(callback)
        return step.active.float()

    run = trainer(pair, balancer=famo, accumulate=accumulate, **SGD)
    watched = Watched(run)
    result = run.fit()
    assert len(calls) == accumulate * result.cost["steps"]
    for index, old, new, now in calls:
        torch.testing.assert_close(new, now)
        assert not torch.allclose(old, new, atol=1e-6), (
            f"step {index}: the optimiser had not stepped"
        )
    assert sum(float((new - old).sum()) for _, old, new, _ in calls) < 0, (
        "a step lowers the loss of its own batch"
    )


def test_after_does_not_disturb_training(trainer, pair):
    def asks(step):
        step.after_step(lambda losses: None)
        return step.active.float()

    runs = [
        trainer(pair, "mmoe[experts=3,hidden=5,dropout=.4,norm=batch]", b)
        for b in ("uniform", asks)
    ]
    one, two = (run.fit() for run in runs)
    assert one.metrics == two.metrics
    assert difference(*map(parameters, runs)) == 0


def test_a_fresh_batch_is_independent(trainer, pair):
    taken = []

    def asks(step):
        own, fresh = watched.batches[-1], step.fresh_batch()
        taken.append((own, watched.batches[-1], step, fresh))
        assert fresh.gramian().shape == (2, 2)
        return step.active.float()

    run = trainer(pair, balancer=asks)
    watched = Watched(run)
    run.fit()
    for own, other, step, fresh in taken:
        assert other is not own
        assert len(other) == len(own) == 32
        assert not torch.equal(other.dense, own.dense)
        assert not torch.equal(fresh.losses, step.losses)
    seen = torch.cat([other.dense for _, other, _, _ in taken])
    assert len(seen.unique(dim=0)) == 320, "its own stream passes over every row once"


def test_backward_passes_of_fresh_batches_count(trainer, pair):
    def asks(step):
        step.fresh_batch().gramian()
        return step.active.float()

    assert trainer(pair, balancer=asks).fit().cost["backward_passes_per_step"] == 3


def test_progress_of_the_run_is_visible(trainer, pair):
    seen = []
    trainer(
        pair,
        balancer=lambda s: (seen.append((s.index, s.total, s.seed)), s.active.float())[1],
        seed=5,
    ).fit()
    assert [index for index, _, _ in seen] == list(range(10))
    assert {total for _, total, _ in seen} == {10}
    assert len({seed for _, _, seed in seen}) == 1
