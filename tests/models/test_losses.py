"""Masked, weighted means of the losses of a task."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mtlkit.data.types import Task
from mtlkit.models._losses import mean_of_rows, task_loss
from mtlkit.models._types import Batch

PLAIN = {
    "bce": F.binary_cross_entropy_with_logits,
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels.long()),
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}
ROWS = 50


@pytest.fixture(params=PLAIN)
def setup(request):
    """A task with one loss, random logits and a batch whose second label column is its own."""
    torch.manual_seed(0)
    loss = request.param
    kind = {"bce": "binary", "cross_entropy": "multiclass"}.get(loss, "regression")
    task = Task(name="own", kind=kind, classes=3, losses=(loss,))
    logits = torch.randn((ROWS, 3) if kind == "multiclass" else (ROWS,), requires_grad=True)
    labels = {
        "binary": torch.randint(2, (ROWS, 2)).float(),
        "multiclass": torch.randint(3, (ROWS, 2)).float(),
        "regression": torch.randn(ROWS, 2),
    }[kind]
    return task, logits, Batch(torch.zeros(ROWS, 0), torch.zeros(ROWS, 0), labels)


def some(share=0.6):
    return torch.rand(ROWS, 2) < share


def loss_of(task, logits, batch, column):
    """The loss of a task whose labels stand in a column of a batch."""
    mask = None if batch.observed is None else batch.observed[:, column]
    loss = task_loss(task, logits, batch.labels[:, column], mask, batch.weight)
    return loss.mean, loss.active


def test_is_the_plain_mean_when_all_is_observed(setup):
    task, logits, batch = setup
    expected = PLAIN[task.losses[0]](logits, batch.labels[:, 1])
    loss, active = loss_of(task, logits, batch, 1)
    torch.testing.assert_close(loss, expected)
    assert active is None
    for same in (
        replace(batch, observed=torch.ones(ROWS, 2, dtype=torch.bool)),
        replace(batch, weight=torch.full((ROWS,), 7.0)),
    ):
        loss, active = loss_of(task, logits, same, 1)
        torch.testing.assert_close(loss, expected)
        assert bool(active)


def test_is_the_plain_mean_of_the_observed_rows(setup):
    task, logits, batch = setup
    observed = some()
    rows = observed[:, 1]
    loss, active = loss_of(task, logits, replace(batch, observed=observed), 1)
    torch.testing.assert_close(loss, PLAIN[task.losses[0]](logits[rows], batch.labels[rows, 1]))
    assert bool(active)


def test_labels_that_are_missing_are_never_looked_at(setup):
    task, logits, batch = setup
    observed = some()
    results = []
    for filler in (0.0, -1.0, torch.nan, torch.inf):
        labels = torch.where(observed, batch.labels, filler)
        loss, _ = loss_of(task, logits, replace(batch, labels=labels, observed=observed), 1)
        results.append((loss, *torch.autograd.grad(loss, [logits])))
    for loss, grad in results:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])
        assert not grad[~observed[:, 1]].any()


def test_a_row_of_weight_two_counts_twice(setup):
    task, logits, batch = setup
    weight = torch.randint(0, 3, (ROWS,)).float()
    for observed in (None, some()):
        times = weight if observed is None else weight * observed[:, 1]
        rows = torch.repeat_interleave(torch.arange(ROWS), times.long())
        loss, _ = loss_of(task, logits, replace(batch, weight=weight, observed=observed), 1)
        torch.testing.assert_close(loss, PLAIN[task.losses[0]](logits[rows], batch.labels[rows, 1]))


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_the_unit_of_weights_does_not_matter(setup, scale):
    task, logits, batch = setup
    weighted = replace(batch, weight=torch.rand(ROWS), observed=some())
    loss, _ = loss_of(task, logits, weighted, 1)
    other, active = loss_of(task, logits, replace(weighted, weight=weighted.weight * scale), 1)
    torch.testing.assert_close(loss, other)
    assert bool(active)


@pytest.mark.parametrize("how", ["observed", "weight", "both"])
def test_no_row_means_no_loss_and_idle(setup, how):
    task, logits, batch = setup
    if how != "weight":
        batch = replace(batch, observed=torch.zeros(ROWS, 2, dtype=torch.bool))
    if how != "observed":
        batch = replace(batch, weight=torch.zeros(ROWS))
    loss, active = loss_of(task, logits, batch, 1)
    (grad,) = torch.autograd.grad(loss, [logits])
    assert loss.item() == 0
    assert not bool(active)
    assert not grad.any()


def test_losses_of_a_task_add_up():
    torch.manual_seed(0)
    logits, labels = torch.randn(ROWS), torch.randn(ROWS, 1)
    batch = Batch(
        torch.zeros(ROWS, 0),
        torch.zeros(ROWS, 0),
        labels,
        weight=torch.rand(ROWS),
        observed=some()[:, :1],
    )
    single = [
        loss_of(Task(name="a", kind="regression", losses=(loss,)), logits, batch, 0)[0]
        for loss in ("mse", "l1")
    ]
    both, _ = loss_of(Task(name="a", kind="regression", losses=("mse", "l1")), logits, batch, 0)
    torch.testing.assert_close(both, sum(single))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_at_least_float32(setup, precision):
    task, logits, batch = setup
    labels = batch.labels.double() if precision == torch.float64 else batch.labels
    loss, _ = loss_of(task, logits.to(precision), replace(batch, labels=labels), 1)
    assert loss.dtype == torch.promote_types(precision, torch.float32)
    torch.testing.assert_close(
        loss.float(),
        PLAIN[task.losses[0]](logits.to(precision).float(), batch.labels[:, 1]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_no_rows_and_a_huge_task_weight_make_no_nan():
    logits = torch.randn(4, requires_grad=True)
    loss, some, _ = mean_of_rows(logits**2, torch.zeros(4, dtype=torch.bool), None)
    assert not some
    (1e30 * loss).backward()
    assert torch.equal(logits.grad, torch.zeros(4))
