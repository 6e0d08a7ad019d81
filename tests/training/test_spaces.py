"""Every model is scored on all steps of a funnel in their spaces, predicted or derived, on both
splits.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from mtlkit.data.sources import open_source
from mtlkit.errors import UsageError
from mtlkit.models._funnel import MOST_LOGIT
from mtlkit.models._types import Batch
from mtlkit.registry import MODELS
from mtlkit.training import evaluation
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.metrics import auc
from mtlkit.training.scoring import Scores, complete
from mtlkit.training.scoring import metrics as score_metrics
from mtlkit.training.warm_start import WarmStart
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
        ("single-task", set()),
        ("single-task[cvr=derived]", {"purchase-given-click"}),
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
    own_networks = {"purchase-given-click"} if model == "single-task" else set()
    assert set(result.best) == {"click", "purchase"} | own_networks


def test_stored_scores_are_those_of_the_metrics_and_fit_fused(trainer, data):
    models = ("shared-bottom", "shared-bottom[cvr=clicked]", "esmm", "single-task[cvr=derived]")
    for model in models:
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
            model in ("shared-bottom", "single-task[cvr=derived]"),
        )  # a probability is cut at 1
        torch.testing.assert_close(
            purchase.clamp_max(click) if cut else purchase, expected, rtol=1e-3, atol=1e-5
        )


def test_single_task_combines_scores_of_each_tasks_own_best_point(trainer, data, monkeypatch):
    """A derived score is made of the models that were selected, not of two halves of one point."""
    run = trainer(data, sizes("single-task[cvr=derived]"), batch_size=100, epochs=3, evaluations=6)
    # click is best at point 1, purchase at point 4
    values = {
        "click": iter([0.1, 0.9, 0.2, 0.2, 0.2, 0.2]),
        "purchase": iter([0.1, 0.2, 0.3, 0.4, 0.9, 0.2]),
    }
    monkeypatch.setattr(
        evaluation,
        "selection_value",
        lambda rule, tasks, metrics, loss: next(values[next(iter(tasks))]),
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
        metrics = result.metrics[split]["purchase-given-click"]
        assert metrics["auc"] == pytest.approx(auc(quotient[clicked], labels[clicked, 1]), abs=1e-6)
        assert metrics["capped"] == pytest.approx(float((quotient[clicked] >= 1).double().mean()))
        for task, column in (("click", 0), ("purchase", 1)):
            assert result.metrics[split][task]["auc"] == pytest.approx(
                auc(logits[task], labels[:, column])
            )
    for task in ("click", "purchase"):  # and the predicted ones are those of their own points
        at_point = result.curve[result.best[task]["point"]]["validation"][task]
        assert at_point.items() <= result.metrics["validation"][task].items()


def test_selection_counts_what_a_group_of_tasks_settles(trainer, data):
    joint = trainer(data, sizes("shared-bottom"), batch_size=100).fit()
    point = joint.best["click"]["point"]
    # a mean over tasks, not scores: both scores of purchase count half
    means = [
        np.average([entry["validation"][name]["auc"] for name in NAMES], weights=[2, 1, 1])
        for entry in joint.curve
    ]
    assert joint.best["click"]["value"] == pytest.approx(means[point])
    assert means[point] == max(means)
    alone = trainer(data, sizes("single-task"), batch_size=100).fit()
    for task in NAMES:
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
        whole["t3"].logits.double().sigmoid(), p[0] * p[1] * p[2], rtol=1e-4, atol=1e-6
    )
    assert {name for name, score in whole.items() if score.derived} == {"t2", "t3"}
    back = complete(
        schema,
        Scores({name: whole[name].logits for name in ("t1", "t2", "t3")}, {}, torch.zeros(3)),
    )
    torch.testing.assert_close(
        back["t3-given-t2"].logits.double().sigmoid(), p[2], rtol=1e-3, atol=1e-3
    )
    assert {name for name, score in back.items() if score.derived} >= {"t2-given-t1", "t3-given-t2"}


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


def test_single_task_trains_a_network_for_every_score(trainer, data):
    """The loss of each, against scikit-learn's on the rows of its space; nothing is shared."""
    run = trainer(data, sizes("single-task"), batch_size=100, epochs=1)
    assert run.tasks == tuple(NAMES)
    assert run.sharing.components() == [[0], [1], [2]]
    batch = run.train.take(torch.arange(100))
    losses = [objective.loss for objective in run.model.objectives(run.model(batch), batch)]
    logits = [prediction.logits for prediction in run.model(batch).predictions]
    click, purchase = batch.labels.T.numpy()
    everybody = np.ones(100, dtype=bool)
    expected = ((click, everybody), (purchase, everybody), (purchase, click > 0))
    for loss, score, (label, rows) in zip(losses, logits, expected, strict=True):
        probability = score.sigmoid().detach().double().numpy()
        assert float(loss.detach()) == pytest.approx(log_loss(label[rows], probability[rows]))


def test_single_task_can_start_a_cross_stitch_by_the_names_of_its_networks(trainer, data):
    """Of the three networks of a funnel, the two that predict its tasks on all rows."""
    result = trainer(data, sizes("single-task"), batch_size=100, epochs=1).fit()
    start = WarmStart(result.weights, list(result.curve[0]["train_loss"]), ())
    stitched = trainer(data, sizes("cross-stitch[tables=own]"), warm=start)
    weights = dict(stitched.model.named_parameters())
    for name in ("bottom.linears.0.weight", "bottom.linears.0.bias"):
        np.testing.assert_array_equal(weights[name].detach(), result.weights[name][:2])


def test_a_funnel_of_three_steps_has_five_networks(trainer):
    schema = toy_schema(3)
    schema = schema.model_copy(update={"funnel": schema.task_names})
    dataset = toy_dataset(schema, rows=400)
    run = trainer(dataset, "single-task[bottom=6,tower=4,embedding=3]", batch_size=40, epochs=1)
    assert run.tasks == ("t1", "t2", "t3", "t2-given-t1", "t3-given-t2")
    result = run.fit()
    assert not any(values["derived"] for values in result.metrics["test"].values())


def test_a_quotient_above_one_ranks_by_its_size_and_counts_as_a_probability():
    """Ranks of the uncapped quotient; the log loss of the one capped at 1 - 1e-6."""
    random = np.random.default_rng(3)
    click, buy = random.uniform(0.05, 0.5, 400), random.uniform(0.02, 0.9, 400)
    taken, bought = random.random((2, 400)) < [[0.6], [0.3]]
    labels = torch.tensor(np.stack([taken, bought & taken], 1), dtype=torch.float32)
    schema = toy_schema(2).model_copy(update={"funnel": ("t1", "t2")})
    logits = {
        name: torch.tensor(np.log(p / (1 - p)), dtype=torch.float32)
        for name, p in (("t1", click), ("t2", buy))
    }
    split = DeviceSplit(Batch(torch.zeros(400, 0), torch.zeros(400, 0), labels))
    model = SimpleNamespace(schema=schema)
    measured = score_metrics(model.schema, Scores(logits, {}, torch.zeros(2)), split)["t2-given-t1"]

    quotient = (buy / click)[taken]
    label = bought[taken]
    assert 0.3 < (quotient > 1).mean() < 0.9  # many are above 1
    assert measured["auc"] == pytest.approx(roc_auc_score(label, quotient), abs=1e-6)
    assert measured["logloss"] == pytest.approx(log_loss(label, quotient.clip(0, 1 - 1e-6)))
    assert measured["capped"] == pytest.approx((quotient > 1 - 1e-6).mean())


def test_a_derived_score_is_no_constant_where_all_rows_are_capped():
    """All quotients above 1: the AUC is that of the quotients, not the .5 of one constant."""
    schema = toy_schema(2).model_copy(update={"funnel": ("t1", "t2")})
    t1, t2 = torch.full((50,), -4.0), torch.linspace(-3, -1, 50)
    conditional = complete(schema, Scores({"t1": t1, "t2": t2}, {}, torch.zeros(2)))["t2-given-t1"]
    assert (conditional.logits.diff() > 0).all()
    assert (conditional.logits > MOST_LOGIT).all()
