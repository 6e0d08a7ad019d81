"""Every model is scored on all steps of a funnel in their spaces, predicted or derived, on both
splits.
"""

import numpy as np
import pytest
import torch

from mtlkit.data.sources import open_source
from mtlkit.errors import UsageError
from mtlkit.registry import MODELS
from mtlkit.training import evaluation
from mtlkit.training.metrics import auc
from mtlkit.training.scoring import Scores, complete
from tests.toy import toy_dataset, toy_schema

NAMES = ["click", "purchase", "purchase-given-click"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small funnel with many clicks and purchases."""
    spec = "funnel[rows=1200,click_rate=.3,buy_rate=.4,bias=1,users=40,items=20]"
    return open_source(spec).prepare(tmp_path_factory.mktemp("funnel"))


def sizes(model):
    """Small options, as many as the model has."""
    fields = MODELS.load(model.partition("[")[0]).Options.model_fields
    options = [option for option in model.partition("[")[2].rstrip("]").split(",") if option]
    wanted = {"bottom": 8, "hidden": 6, "tower": 4, "embedding": 3, "experts": 3}
    return f"{model.partition('[')[0]}[{','.join(options + [f'{k}={v}' for k, v in wanted.items() if k in fields])}]"


@pytest.mark.parametrize(
    ("model", "derived"),
    [
        ("shared-bottom", {"purchase-given-click"}),
        ("mmoe", {"purchase-given-click"}),
        ("aitm", {"purchase-given-click"}),
        ("shared-bottom[cvr=clicked]", {"purchase"}),
        ("esmm", set()),
        ("escm2", set()),
        ("escm2[estimator=dr]", set()),
        ("single-task", {"purchase-given-click"}),
        ("single-task[cvr=clicked]", {"purchase"}),
    ],
)
def test_every_model_is_scored_in_every_space(trainer, data, model, derived):
    result = trainer(data, sizes(model), batch_size=100, epochs=2).fit()
    if derived:  # what follows from a CVR follows for all rows as well
        derived = derived | ({"purchase-if-click"} if "purchase-given-click" in derived else set())
    assert list(result.metrics["validation"]) == NAMES
    assert list(result.metrics["test"]) == [*NAMES, "purchase-if-click"]
    for name, split in (("validation", data.splits["validation"]), ("test", data.splits["test"])):
        click, purchase = split.labels.T
        metrics = result.metrics[name]
        assert {
            key for key, values in metrics.items() if values["derived"]
        } == derived & metrics.keys()
        assert [metrics[key]["space"] for key in NAMES] == ["all rows", "all rows", "clicked rows"]
        assert [metrics[key]["rows"] for key in NAMES] == [len(split), len(split), click.sum()]
        assert [metrics[key]["positives"] for key in NAMES] == [
            click.sum(),
            purchase.sum(),
            purchase.sum(),
        ]
        assert all(0 < values["auc"] < 1 for values in metrics.values())
        assert all(values["logloss"] > 0 for values in metrics.values())
    assert result.metrics["test"]["purchase-if-click"]["rows"] == len(data.splits["test"])
    assert (
        list(result.curve[0]["validation"]) == NAMES
    )  # hidden labels are for the test split alone
    assert set(result.best) == {"click", "purchase"}


def test_stored_scores_are_those_of_the_metrics_and_fit_fused(trainer, data):
    for model in ("shared-bottom", "shared-bottom[cvr=clicked]", "esmm", "single-task"):
        result = trainer(data, sizes(model), batch_size=100, epochs=2).fit()
        stored = {
            key: torch.tensor(value)
            for key, value in result.scores.items()
            if not key.startswith("space")
        }
        for name, metrics in result.metrics["test"].items():
            score, label = stored[f"score/{name}"], stored[f"label/{name}"]
            rows = stored.get(f"observed/{name}", torch.ones(len(label), dtype=torch.bool))
            assert auc(score[rows], label[rows]) == pytest.approx(metrics["auc"])
            assert str(result.scores[f"space/{name}"]) == metrics["space"]
            assert bool(stored[f"derived/{name}"]) == metrics["derived"]
        click, purchase, given = (stored[f"score/{name}"].double().sigmoid() for name in NAMES)
        expected, cut = (
            click * given,
            model in ("shared-bottom", "single-task"),
        )  # their quotient is cut at 1
        torch.testing.assert_close(
            purchase.clamp_max(click) if cut else purchase, expected, rtol=1e-3, atol=1e-5
        )


def test_single_task_combines_scores_of_each_tasks_own_best_point(trainer, data, monkeypatch):
    """A derived score is made of the models that were selected, not of two halves of one point."""
    run = trainer(data, sizes("single-task"), batch_size=100, epochs=3, evaluations=6)
    # click is best at point 1, purchase at point 4
    values = {
        "click": iter([0.1, 0.9, 0.2, 0.2, 0.2, 0.2]),
        "purchase": iter([0.1, 0.2, 0.3, 0.4, 0.9, 0.2]),
    }
    monkeypatch.setattr(
        evaluation,
        "selection_value",
        lambda settings, tasks, metrics, loss: next(values[next(iter(tasks))]),
    )
    result = run.fit()
    assert [result.best[task]["point"] for task in ("click", "purchase")] == [1, 4]
    parts = {}
    for best, task in zip(run.evaluator.bests, ("click", "purchase"), strict=True):
        run.model.load_state_dict(best.state)
        for split in ("validation", "test"):
            parts.setdefault(split, {})[task] = run.evaluator.score(run.splits[split]).logits[task]
    for split, logits in parts.items():
        labels = torch.tensor(data.splits[split].labels)
        clicked = labels[:, 0] > 0
        quotient = logits["purchase"].double().sigmoid() / logits["click"].double().sigmoid()
        quotient = quotient.clamp_max(1 - 1e-6).float()
        metrics = result.metrics[split]["purchase-given-click"]
        assert metrics["auc"] == pytest.approx(auc(quotient[clicked], labels[clicked, 1]), abs=1e-3)
        for task, column in (("click", 0), ("purchase", 1)):
            assert result.metrics[split][task]["auc"] == pytest.approx(
                auc(logits[task], labels[:, column])
            )
    for task in ("click", "purchase"):  # and the predicted ones are those of their own points
        assert (
            result.metrics["validation"][task]
            == result.curve[result.best[task]["point"]]["validation"][task]
        )


def test_selection_counts_what_a_group_of_tasks_settles(trainer, data):
    joint = trainer(data, sizes("shared-bottom"), batch_size=100).fit()
    point = joint.best["click"]["point"]
    means = [np.mean([entry["validation"][name]["auc"] for name in NAMES]) for entry in joint.curve]
    assert joint.best["click"]["value"] == pytest.approx(means[point])
    assert means[point] == max(means)
    alone = trainer(data, sizes("single-task"), batch_size=100).fit()
    for task in ("click", "purchase"):
        values = [entry["validation"][task]["auc"] for entry in alone.curve]
        assert alone.best[task]["value"] == pytest.approx(max(values))
    named = trainer(
        data, sizes("shared-bottom"), batch_size=100, select="purchase-given-click"
    ).fit()
    values = [entry["validation"]["purchase-given-click"]["auc"] for entry in named.curve]
    assert named.best["click"]["value"] == pytest.approx(max(values))
    with pytest.raises(UsageError, match="purchase-if-click"):
        trainer(data, sizes("shared-bottom"), select="purchase-if-click")


def test_all_steps_of_a_longer_funnel_are_completed():
    schema = toy_schema(3)
    schema = schema.model_copy(update={"funnel": schema.task_names})
    a, b, c = torch.randn(3, 50).double()
    p = [x.sigmoid() for x in (a, b, c)]
    whole = complete(
        schema, Scores({"t1": a, "t2-given-t1": b, "t3-given-t2": c}, {}, torch.zeros(3))
    )
    torch.testing.assert_close(
        whole["t3"][0].double().sigmoid(), p[0] * p[1] * p[2], rtol=1e-4, atol=1e-6
    )
    assert {name for name, (_, derived) in whole.items() if derived} == {"t2", "t3"}
    back = complete(
        schema, Scores({name: whole[name][0] for name in ("t1", "t2", "t3")}, {}, torch.zeros(3))
    )
    torch.testing.assert_close(
        back["t3-given-t2"][0].double().sigmoid(), p[2], rtol=1e-3, atol=1e-3
    )
    assert {name for name, (_, derived) in back.items() if derived} >= {
        "t2-given-t1",
        "t3-given-t2",
    }


def test_conversion_on_clicked_rows_trains_through_batches_without_a_click(trainer):
    schema = toy_schema(2).model_copy(update={"funnel": ("t1", "t2")})
    dataset = toy_dataset(schema, rows=320)
    dataset.splits["train"].labels[:290] = 0  # few clicks
    run = trainer(dataset, "shared-bottom[cvr=clicked,bottom=6,tower=4]", "pcgrad", batch_size=8)
    idle, step = [], run._step
    run._step = lambda *arguments: (made := step(*arguments), idle.append(not made.active.all()))[0]
    result = run.fit()
    assert any(idle)
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    assert result.metrics["test"]["t2-given-t1"]["auc"] is not None
