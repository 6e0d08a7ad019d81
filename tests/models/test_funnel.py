"""Products and quotients along a funnel, labels in spaces, and the models that train a funnel as
one.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mtlkit.data.types import ALL_ROWS, Schema, Task
from mtlkit.errors import UsageError
from mtlkit.models._funnel import MOST, labels_in, product, ratio, running_products
from mtlkit.models._types import Batch
from mtlkit.models.escm2 import corrected_error
from mtlkit.training.sharing import SharedParameters
from tests.models.build import build, load, small, task_losses
from tests.toy import toy_batch, toy_schema

FUNNEL_MODELS = {"esmm": {}, "escm2": {}, "escm2-dr": {"estimator": "dr"}, "aitm": {}}
EXTREMES = torch.tensor([-80.0, -30.0, -1.0, 0.0, 1.0, 30.0, 80.0])


def funnel(steps=2, more=0):
    """Steps t1, t2, ... of a funnel, and tasks beside it."""
    schema = toy_schema(steps + more)
    return schema.model_copy(update={"funnel": schema.task_names[:steps]})


def make(name, schema, **options):
    """A small model by its name here, with weights large enough for rows to differ."""
    kind, extra = name.partition("-")[0], FUNNEL_MODELS.get(name, {})
    model = small(kind, schema, embedding_std=1.0, **extra | options)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.5)
    return model


def owned(model, batch, output=None):
    """The objectives of a batch, by owner."""
    by_owner = {}
    for objective in model.objectives(output or model(batch), batch):
        by_owner.setdefault(objective.owner, []).append(objective)
    return by_owner


def reached(model, loss):
    """Names of the parameters with a gradient that is not zero, stacked ones by slice."""
    axes = {
        f"{prefix}.{name}": axis
        for prefix, module in model.named_modules()
        for name, axis in getattr(module, "stack_axes", {}).items()
    }
    values = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True, retain_graph=True)
    names = set()
    for name, grad in zip(values, grads, strict=True):
        if grad is None:
            continue
        if name in axes:
            moved = grad.movedim(axes[name], 0).flatten(1).abs().sum(1)
            names |= {f"{name}[{k}]" for k in torch.nonzero(moved).flatten().tolist()}
        elif grad.abs().sum() > 0:
            names.add(name)
    return names


# --- products and quotients
# ------------------------------------------------------------------------------------------


def test_product_and_ratio_are_those_of_probabilities():
    a, b = torch.randn(2, 200, dtype=torch.float64) * 3
    torch.testing.assert_close(product(a, b).sigmoid(), a.sigmoid() * b.sigmoid())
    torch.testing.assert_close(ratio(product(a, b), a), b, rtol=1e-6, atol=1e-6)
    three = running_products([a, b, a - b])
    torch.testing.assert_close(three[0], a)
    torch.testing.assert_close(three[2].sigmoid(), a.sigmoid() * b.sigmoid() * (a - b).sigmoid())


def test_a_quotient_above_one_is_taken_for_one():
    bounded = ratio(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(bounded.sigmoid(), torch.full((2,), MOST, dtype=torch.float64))
    assert ratio(EXTREMES, EXTREMES.flip(0)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_product_is_stable_in_value_and_gradient(dtype, label):
    a, b = (
        x.flatten().to(dtype).requires_grad_()
        for x in torch.meshgrid(EXTREMES, EXTREMES, indexing="ij")
    )
    z = product(a, b)
    loss = F.binary_cross_entropy_with_logits(z, torch.full_like(z, label), reduction="none")
    grads = torch.autograd.grad(loss.sum(), [a, b])
    assert z.isfinite().all()
    assert loss.isfinite().all()
    assert all(grad.isfinite().all() and grad.abs().max() <= 1.01 for grad in grads)
    p, q = a.double().sigmoid(), b.double().sigmoid()
    slope = torch.where(
        torch.tensor(label > 0), q - 1, p * q * (1 - q) / (1 - p * q).clamp_min(1e-300)
    )
    sound = (1 - p * q) > 1e-12  # elsewhere the naive form above cancels
    torch.testing.assert_close(grads[1].double()[sound], slope[sound], rtol=0.02, atol=1e-6)
    assert float(grads[1][-1]) == pytest.approx(
        0.5 if label == 0 else 0, abs=1e-6
    )  # both at 80: each gets half


def test_at_thousands_nothing_overflows():
    a = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    b = torch.tensor([-1e4, -1e4, 1e4, 1e4], requires_grad=True)
    z = product(a, b)
    torch.testing.assert_close(z, torch.tensor([-2e4, -1e4, -1e4, 1e4 - math.log(2)]))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(z.sum(), [a, b]))


# --- labels and spaces
# -----------------------------------------------------------------------------------------------

STEPS = ("click", "buy", "pay")
PATH = Schema(features=(), tasks=tuple(Task(name=step) for step in STEPS), funnel=STEPS)
ROWS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]


def path_batch(observed=None, labels=ROWS):
    labels = torch.tensor(labels, dtype=torch.float32)
    empty = torch.zeros(len(labels), 0)
    return Batch(
        empty, empty, labels, None if observed is None else torch.tensor(observed, dtype=torch.bool)
    )


def test_labels_of_a_step_on_all_rows_and_on_those_that_came_to_it():
    batch = path_batch()
    labels, mask = labels_in(PATH, PATH.tasks[2], ALL_ROWS, batch)
    assert labels.tolist() == [0, 0, 0, 1]
    assert mask is None
    _, mask = labels_in(PATH, PATH.tasks[1], "clicked rows", batch)
    assert mask.tolist() == [False, True, True, True]
    _, mask = labels_in(PATH, PATH.tasks[2], "rows with buy", batch)
    assert mask.tolist() == [False, False, True, True]


def test_a_step_that_was_not_reached_did_not_happen():
    """Labels of later steps may exist on rows with the earlier one only; on all rows they are 0
    elsewhere.
    """
    gone = float("nan")
    batch = path_batch(
        [(1, 0, 0), (1, 1, 0), (1, 1, 1), (0, 0, 0)],
        [(0, gone, gone), (1, 0, gone), (1, 1, 1), (gone, gone, gone)],
    )
    labels, mask = labels_in(PATH, PATH.tasks[2], ALL_ROWS, batch)
    assert mask.tolist() == [True, True, True, False]
    assert labels[mask].tolist() == [0, 0, 1]
    _, mask = labels_in(PATH, PATH.tasks[1], "clicked rows", batch)
    assert mask.tolist() == [False, True, True, False]


def test_scores_of_a_click_to_purchase_funnel():
    schema = Schema(
        features=(), tasks=(Task(name="click"), Task(name="purchase")), funnel=("click", "purchase")
    )
    shown = [(s.label, s.name, s.space) for s in schema.scores() if not s.hidden]
    assert shown == [
        ("CTR", "click", "all rows"),
        ("CTCVR", "purchase", "all rows"),
        ("CVR", "purchase-given-click", "clicked rows"),
    ]
    assert [s.name for s in PATH.scores() if not s.hidden] == [
        "click",
        "buy",
        "buy-given-click",
        "pay",
        "pay-given-buy",
    ]
    assert [s.name for s in schema.select(["purchase"]).scores()] == ["purchase"]
    assert PATH.select(["pay", "click"]).funnel == ("click", "pay")


@pytest.mark.parametrize(
    "steps", [("click",), ("click", "click"), ("click", "cart"), ("click", "spent")]
)
def test_a_funnel_has_two_binary_tasks_or_more(steps):
    tasks = (
        Task(name="click"),
        Task(name="buy"),
        Task(name="spent", kind="regression", losses=("mse",)),
    )
    with pytest.raises(ValueError, match="funnel"):
        Schema(features=(), tasks=tasks, funnel=steps)


@pytest.mark.parametrize("name", ["shared-bottom", "mmoe", "single-task"])
def test_any_model_can_train_conversion_on_clicked_rows(name):
    schema = funnel()
    model, batch = small(name, schema, cvr="clicked"), toy_batch(schema, 60)
    output = model(batch)
    assert [model.space(p) for p in output.predictions] == ["all rows", "rows with t1"]
    clicked = batch.labels[:, 0] > 0
    assert 0 < clicked.sum() < 60
    losses = task_losses(model, batch)
    expected = F.binary_cross_entropy_with_logits(
        output.predictions[1].logits[clicked], batch.labels[clicked, 1]
    )
    torch.testing.assert_close(losses[1], expected)
    plain = small(name, schema)
    everywhere = F.binary_cross_entropy_with_logits(
        plain(batch).predictions[1].logits, batch.labels[:, 1]
    )
    torch.testing.assert_close(task_losses(plain, batch)[1], everywhere)


def test_without_a_click_conversion_is_idle():
    schema = funnel()
    model, batch = small("shared-bottom", schema, cvr="clicked"), toy_batch(schema, 20)
    quiet = replace(batch, labels=torch.zeros_like(batch.labels))
    click, buy = model.objectives(model(quiet), quiet)
    assert click.active is None
    assert not bool(buy.active)
    assert buy.loss.item() == 0
    click, buy = model.objectives(model(batch), batch)
    assert bool(buy.active)


# --- what all funnel models share
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNNEL_MODELS)
def test_funnel_models_need_a_funnel_or_tasks_to_take_for_one(name):
    kind = load(name.partition("-")[0])
    assert kind.inapplicable(toy_schema(2)) == "has no funnel (click -> purchase)"
    assert kind.inapplicable(funnel()) is None
    options = kind.Options.model_validate(FUNNEL_MODELS[name])
    forced = kind(toy_schema(2), options)
    losses = task_losses(forced, toy_batch(toy_schema(2), 40))
    assert all(loss.isfinite() and loss > 0 for loss in losses)
    assert forced.steps == [0, 1]  # as declared
    for schema in (toy_schema(1), toy_schema(2, ("binary", "regression"))):
        with pytest.raises(UsageError, match="all binary"):
            kind(schema, options)


@pytest.mark.parametrize("name", FUNNEL_MODELS)
def test_they_have_no_option_for_what_they_do_themselves(name):
    assert "cvr" not in load(name.partition("-")[0]).Options.model_fields
    assert "cvr" in load("mmoe").Options.model_fields


@pytest.mark.parametrize("name", FUNNEL_MODELS)
@pytest.mark.parametrize("steps", [2, 3])
def test_every_parameter_of_a_funnel_model_is_reached(name, steps):
    schema = funnel(steps, more=1)
    sharing = SharedParameters(make(name, schema), toy_batch(schema, 60))
    assert sharing.unreached == []


@pytest.mark.parametrize("name", FUNNEL_MODELS)
def test_the_funnel_gives_the_order_not_the_declaration(name):
    forward, backward = funnel(2), funnel(2).select(["t2", "t1"])
    backward = backward.model_copy(update={"funnel": ("t1", "t2")})
    one, other = make(name, forward), make(name, backward)
    assert one.steps == [0, 1]
    assert other.steps == [1, 0]
    batch = toy_batch(forward, 30)
    turned = replace(batch, labels=batch.labels[:, [1, 0]])
    state = one.state_dict()
    for key, value in state.items():
        if key.startswith(("bottom.", "towers.")):
            order = [1, 0, *range(2, len(value))]
            state[key] = value[order]
    other.load_state_dict(state)
    torch.testing.assert_close(sum(task_losses(one, batch)), sum(task_losses(other, turned)))


@pytest.mark.parametrize("name", FUNNEL_MODELS)
def test_losses_and_gradients_survive_extreme_logits(name):
    schema = funnel()
    model, batch = make(name, schema), toy_batch(schema, 49)
    with torch.no_grad():
        for head in model.towers.heads:
            head.weight.zero_()
            head.bias.zero_()
    values = torch.stack(torch.meshgrid(EXTREMES, EXTREMES, indexing="ij")).flatten(1)  # (2, 49)
    shift = values.clone().requires_grad_()
    towers = model.towers.forward
    model.towers.forward = lambda h: [*(towers(h)[t] + shift[t] for t in (0, 1)), *towers(h)[2:]]
    for flip in (0, 1):
        flipped = replace(batch, labels=(batch.labels - flip).abs())
        total = sum(task_losses(model, flipped))
        (grad,) = torch.autograd.grad(total, [shift])
        assert total.isfinite()
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


# --- esmm
# ------------------------------------------------------------------------------------------------------------


def test_esmm_trains_click_and_click_times_conversion_on_all_rows():
    schema = funnel()
    model, batch = make("esmm", schema), toy_batch(schema, 50)
    output = model(batch)
    click, both = (p.logits.sigmoid() for p in output.predictions)
    (conversion,) = output.further
    assert conversion.space == "rows with t1"
    torch.testing.assert_close(both, click * conversion.logits.sigmoid())
    by_task = owned(model, batch, output)
    assert [len(by_task[task]) for task in ("t1", "t2")] == [1, 1]
    y, z = batch.labels.T
    torch.testing.assert_close(by_task["t1"][0].loss, F.binary_cross_entropy(click, y))
    torch.testing.assert_close(by_task["t2"][0].loss, F.binary_cross_entropy(both, z))


def test_esmm_has_no_direct_conversion_loss():
    """Where nobody could click, the conversion network learns nothing: its only way is through the
    product.
    """
    schema = funnel()
    model, batch = make("esmm", schema), toy_batch(schema, 50)
    click, both = task_losses(model, batch)
    assert not {name for name in reached(model, click) if name.endswith("[1]")}
    assert {"bottom.linears.0.weight[0]", "bottom.linears.0.weight[1]"} <= reached(model, both)
    with torch.no_grad():
        model.towers.heads[0].bias[0] = -200.0
    quiet = replace(batch, labels=torch.zeros_like(batch.labels))
    _, both = task_losses(model, quiet)
    assert not {
        name for name in reached(model, both) if name.startswith("towers") and name.endswith("[1]")
    }


def test_esmm_shares_the_embedding_and_through_the_product_the_click_network():
    schema = funnel()
    sharing = SharedParameters(make("esmm", schema), toy_batch(schema, 60))
    shared = {parameter.name: parameter.shared.tolist() for parameter in sharing.parameters}
    assert all(all(flags) for name, flags in shared.items() if name.startswith("embedding."))
    assert all(
        flags == [True, False]
        for name, flags in shared.items()
        if not name.startswith("embedding.")
    )


def test_esmm_of_three_steps_is_a_chain():
    schema = funnel(3)
    model, batch = make("esmm", schema), toy_batch(schema, 30)
    output = model(batch)
    first, second, third = (p.logits.sigmoid() for p in output.predictions)
    two, three = (p.logits.sigmoid() for p in output.further)
    torch.testing.assert_close(second, first * two)
    torch.testing.assert_close(third, second * three)
    assert [p.space for p in output.further] == ["rows with t1", "rows with t2"]


# --- escm2
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["escm2", "escm2-dr"])
def test_escm2_is_the_formula_of_the_paper(name, weighted):
    schema = funnel()
    options = {"lc": 0.3, "lg": 0.7, "clip": 0.4}
    model, batch = make(name, schema, **options), toy_batch(schema, 80)
    if weighted:
        batch = replace(batch, weight=torch.rand(80) + 0.1)
    output = model(batch)
    weight = torch.ones(80) if batch.weight is None else batch.weight

    def mean(rows):
        return (rows * weight).sum() / weight.sum()

    click, both = (p.logits.sigmoid() for p in output.predictions)
    conversion = output.further[0].logits.sigmoid()
    o, y = batch.labels.T
    p = click.detach().clamp(min=0.4)
    assert (click < 0.4).any()
    assert (click > 0.4).any()
    e = -(y * conversion.log() + (1 - y) * (1 - conversion).log())
    if name == "escm2":
        corrected = mean(o * e / p)
    else:
        guess = F.softplus(output.extra[0])
        corrected = mean(guess + o * (e - guess) / p) + mean(o * (e - guess) ** 2 / p)
    by_task = owned(model, batch, output)
    click_loss = mean(F.binary_cross_entropy(click, o, reduction="none"))
    both_loss = mean(F.binary_cross_entropy(both, y, reduction="none"))
    torch.testing.assert_close(sum(x.loss for x in by_task["t1"]), click_loss)
    torch.testing.assert_close(
        sum(x.loss for x in by_task["t2"]), 0.7 * both_loss + 0.3 * corrected
    )


@pytest.mark.parametrize("name", ["escm2", "escm2-dr"])
def test_the_propensity_of_escm2_is_not_trained_by_the_conversion_loss(name):
    schema = funnel()
    model, batch = make(name, schema), toy_batch(schema, 60)
    assert type(model).detaches
    corrected = owned(model, batch)["t2"][1].loss
    names = reached(model, corrected)
    assert not {parameter for parameter in names if parameter.endswith("[0]")}
    assert "bottom.linears.0.weight[1]" in names
    assert ("bottom.linears.0.weight[2]" in names) == (name == "escm2-dr")
    assert any(parameter.startswith("embedding.") for parameter in names)


def test_the_estimates_of_escm2_are_unbiased_where_the_propensity_is_right():
    """Over the draw of clicks, both estimates have the mean error of all rows; dr also with a wrong
    propensity.
    """
    torch.manual_seed(0)
    rows = 400
    p, e = torch.rand(rows) * 0.8 + 0.1, torch.rand(rows)
    clicks = (torch.rand(4000, rows) < p).float()
    ips = corrected_error(e, clicks / p, None)
    assert float(ips.mean()) == pytest.approx(float(e.mean()), rel=0.01)
    right = torch.log(torch.expm1(e))  # softplus of it is e
    dr = corrected_error(e, clicks / p.sqrt(), right)
    assert float(dr.mean()) == pytest.approx(float(e.mean()), rel=1e-4)
    assert float(dr.mean(1).std()) < float(ips.mean(1).std()) / 100


def test_escm2_looks_at_rows_whose_click_and_purchase_are_known():
    schema = funnel()
    model, batch = make("escm2", schema), toy_batch(schema, 60)
    observed = torch.rand(60, 2) < 0.6
    partly = replace(
        batch, observed=observed, labels=torch.where(observed, batch.labels, torch.nan)
    )
    corrected = owned(model, partly)["t2"][1]
    known = observed[:, 0] & ((batch.labels[:, 0] == 0) | observed[:, 1])
    some = replace(
        batch, ids=batch.ids[known], dense=batch.dense[known], labels=batch.labels[known]
    )
    torch.testing.assert_close(corrected.loss, owned(model, some)["t2"][1].loss)
    none = replace(partly, observed=torch.zeros_like(observed))
    assert not any(bool(objective.active) for objective in model.objectives(model(none), none))


def test_escm2_without_its_correction_is_esmm():
    schema = funnel()
    batch = toy_batch(schema, 40)
    esmm, escm2 = make("esmm", schema), make("escm2", schema, lc=0.0)
    escm2.load_state_dict(esmm.state_dict())
    for one, other in zip(task_losses(esmm, batch), task_losses(escm2, batch), strict=True):
        torch.testing.assert_close(one, other)


# --- aitm
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3])
def test_aitm_is_the_wiring_of_the_paper(steps):
    """Against the formula, step by step and without stacks."""
    schema = funnel(steps, more=1)
    model, batch = make("aitm", schema), toy_batch(schema, 30)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    output = model(batch)
    q = model.bottom(model.embedding(batch))
    d = q.shape[-1]
    z = [q[:, 0]]
    attention = model.transfer
    for t in range(1, steps):
        p = F.relu(F.linear(z[-1], model.info[t - 1].weight, model.info[t - 1].bias))
        scores = torch.stack(
            [(attention.h1(u) * attention.h2(u)).sum(-1) / math.sqrt(d) for u in (p, q[:, t])], -1
        )
        weights = scores.softmax(-1)
        torch.testing.assert_close(output.gates[f"level-1/t{t + 1}"], weights)
        z.append(weights[:, :1] * attention.h3(p) + weights[:, 1:] * attention.h3(q[:, t]))
    z.append(q[:, steps])  # outside of the funnel
    for prediction, logit in zip(output.predictions, model.towers(torch.stack(z, 1)), strict=True):
        torch.testing.assert_close(prediction.logits, logit)
    assert all(layer.bias is None for layer in (attention.h1, attention.h2, attention.h3))


def test_aitm_transfers_from_click_to_purchase_and_not_back():
    schema = funnel(3)
    model, batch = make("aitm", schema, weight=0.0), toy_batch(schema, 40)
    losses = task_losses(model, batch)
    for t, loss in enumerate(losses):
        names = reached(model, loss)
        assert {k for k in range(3) if f"bottom.linears.0.weight[{k}]" in names} == set(
            range(t + 1)
        )
        assert {k for k in range(2) if f"info.{k}.weight" in names} == set(range(t))
        assert {k for k in range(3) if f"towers.heads.0.weight[{k}]" in names} == {t}
    assert "transfer.h1.weight" not in reached(model, losses[0])


def test_the_calibrator_acts_on_probabilities_and_is_charged_to_the_later_step():
    schema = funnel()
    model, batch = make("aitm", schema, weight=0.6), toy_batch(schema, 40)
    output = model(batch)
    by_task = owned(model, batch, output)
    click, buy = (p.logits.sigmoid() for p in output.predictions)
    assert 0 < (buy > click).sum() < 40
    assert [len(by_task[task]) for task in ("t1", "t2")] == [1, 2]
    calibrator = by_task["t2"][1].loss
    torch.testing.assert_close(calibrator, 0.6 * (buy - click).clamp(min=0).mean())
    lower = replace(
        output, predictions=[output.predictions[0], replace(output.predictions[0], task="t2")]
    )
    assert owned(model, batch, lower)["t2"][1].loss.item() == 0
    assert len(owned(make("aitm", schema, weight=0.0), batch)["t2"]) == 1
    assert {"towers.heads.0.weight[0]", "towers.heads.0.weight[1]"} <= reached(model, calibrator)


def test_a_step_without_a_label_is_idle_whatever_the_calibrator_says():
    schema = funnel()
    model, batch = make("aitm", schema), toy_batch(schema, 40)
    observed = torch.ones(40, 2, dtype=torch.bool)
    observed[:, 1] = False
    batch = replace(batch, observed=observed, labels=torch.ones_like(batch.labels))  # all clicked
    assert not any(bool(objective.active) for objective in owned(model, batch)["t2"])


def test_gates_name_what_is_handed_on():
    assert build("aitm", funnel(3)).gate_experts == {
        "level-1/t2": ("from t1", "own"),
        "level-1/t3": ("from t2", "own"),
    }
