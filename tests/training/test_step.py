"""A step as balancers see it, against separate autograd calls; and how decisions become gradients."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from mtlkit.balancers._step import SharedGradient
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.training.sharing import SharedParameters
from tests.balancers.fakes import load as load_balancer
from tests.models.build import build, doubled, known, load, task_losses
from tests.toy import toy_batch, toy_schema
from tests.training.steps import Islands, loop_step

KINDS = ("binary", "regression", "multiclass")
SMALL = {
    "hidden": (7, 5),
    "bottom": (9, 6),
    "specific": 2,
    "shared": 3,
    "experts": 3,
    "embedding": 3,
}
SHARING = [name for name in MODELS.names() if load(name).shares_parameters]
HEADS = ("weighted", "plain")
WEIGHTS = torch.tensor([0.7, 1.9, 0.4], dtype=torch.float64)


@cache
def make(name, idle=(), tasks=3):
    """A model and a batch in float64, so that equal means equal; ``idle`` tasks have no label. Kept
    for all tests.
    """
    schema = toy_schema(tasks, KINDS, bags=1)
    model = (
        build(name, schema, **known(name, SMALL)).eval().double()
    )  # some models draw in training
    batch = doubled(toy_batch(schema, 40, missing=0.2))
    batch.observed[:, list(idle)] = False
    return model, batch


@cache
def islands():
    """Tasks 1 and 2 share a bottom, task 3 has one of its own."""
    torch.manual_seed(0)
    schema = toy_schema(3, KINDS)
    return Islands(schema, Islands.Options()).double(), doubled(toy_batch(schema, 40, missing=0.2))


@pytest.fixture(params=[*MODELS.names(), "islands"])
def setup(request):
    return islands() if request.param == "islands" else make(request.param)


def separate(model, batch):
    """A gradient for each task and parameter, by one call of autograd a task; zeros where there is
    none.
    """
    names, values = zip(*model.named_parameters(), strict=True)
    out = []
    for loss in task_losses(model, batch):
        grads = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(v) if g is None else g.to_dense()
            for v, g in zip(values, grads, strict=True)
        ]
        out.append(dict(zip(names, filled, strict=True)))
    return out


def shared_mask(item):
    """1 in the shared slices of a parameter, 0 in the others."""
    mask = torch.zeros_like(item.parameter)
    for k in range(item.reached_by.shape[1]):
        if item.reached_by[:, k].sum() > 1:
            (mask if item.axis is None else mask.select(item.axis, k)).fill_(1)
    return mask


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scope", ["dense", "all"])
def test_rows_are_the_shared_parts_of_separate_gradients(setup, scope):
    model, batch = setup
    step, grads = loop_step(model, batch, scope=scope), separate(model, batch)
    rows, parts = step.jacobian(), step.jacobian_columns()
    items = {item.name: item for item in step.sharing.scope(scope)}
    assert parts.keys() == items.keys()
    assert rows.shape == (3, sum(item.parameter.numel() for item in items.values()))
    for name, place in parts.items():
        mask = shared_mask(items[name])
        assert mask.any()
        for t in range(3):
            close(rows[t, place], (grads[t][name] * mask).flatten())
    close(step.gramian(), rows @ rows.T)
    assert step.gramian().dtype == torch.float64
    other = (
        "all" if scope == "dense" else "dense"
    )  # a scope that is asked for goes before the default
    assert step.jacobian(other).shape == loop_step(model, batch, scope=other).jacobian().shape


@pytest.mark.parametrize("after_rows", [False, True])
def test_norms_are_those_of_the_rows(setup, after_rows):
    """Whether or not the gradients are there already."""
    model, batch = setup
    step, other = loop_step(model, batch), loop_step(model, batch)
    rows, parts = other.jacobian("all"), other.jacobian_columns("all")
    if after_rows:
        step.jacobian()
    for name, place in parts.items():
        close(step.grad_norms(name), rows[:, place].norm(dim=1))
    last = step.sharing.last
    close(
        step.grad_norms("last"),
        rows[:, parts[last.name]].norm(dim=1) if last else torch.zeros(3).double(),
    )


def unfused(name, monkeypatch):
    """A model whose representation is a tensor in the graph: what the tasks share where they part,
    else x.
    """
    model, batch = make(name)
    model.use(replace(model.fast_paths, fuse=False))
    if not SharedParameters(model, batch).has_boundary:
        model.use(replace(model.fast_paths, fold=False))
    return model, batch


def representation(step):
    return (
        step.output.boundary.trunk_output
        if step.sharing.has_boundary
        else step.output.representation
    )


@pytest.mark.parametrize("name", SHARING)
def test_representation_rows_are_gradients_by_what_the_tasks_share(name, monkeypatch):
    model, batch = unfused(name, monkeypatch)
    step = loop_step(model, batch, scope="representation")
    assert bool(step.sharing.has_boundary) == (name in {"mmoe", "shared-bottom", "cgc", "tabm"})
    rows = step.jacobian()
    assert step.jacobian_columns() == {"representation": slice(0, rows.shape[1])}
    for t, loss in enumerate(step.task_losses):
        (grad,) = torch.autograd.grad(loss, [representation(step)], retain_graph=True)
        assert grad.any()
        close(rows[t], grad.flatten())
    close(step.gramian(), rows @ rows.T)
    monkeypatch.undo()
    if step.sharing.has_boundary:  # without the tensors themselves
        fused = loop_step(
            model, batch, scope="representation", sharing=SharedParameters(model, batch)
        )
        close(fused.gramian(), rows @ rows.T)
        assert fused.backward_passes == 0  # none below the towers


@pytest.mark.parametrize("heads", ["weighted", "plain"])
@pytest.mark.parametrize("name", ["mmoe", "shared-bottom", "cgc"])
def test_weights_of_the_representation_take_one_pass_below_it(name, heads):
    model, batch = make(name)
    step = loop_step(model, batch, scope="representation")
    step.gramian()
    expected = expected_gradient(model, batch, step.sharing, WEIGHTS, heads)
    check(applied(step, WEIGHTS, heads), expected)
    assert step.backward_passes == (1 if heads == "weighted" else 3)
    ones = torch.ones(3, dtype=torch.float64)
    check(
        applied(loop_step(model, batch), ones, heads),
        expected_gradient(model, batch, step.sharing, ones, heads),
    )


def expected_gradient(model, batch, sharing, weights, heads):
    """By parameter: weighted sums of separate gradients.

    What one task owns has weight 1 with ``plain`` heads, and else its task's weight, but none below
    0.
    """
    grads = separate(model, batch)
    out = {}
    for item in sharing.parameters:
        mask = shared_mask(item)
        weighted = sum(w * grad[item.name] for w, grad in zip(weights, grads, strict=True))
        own = weights.clamp_min(0) if heads == "weighted" else torch.ones_like(weights)
        alone = sum(w * grad[item.name] for w, grad in zip(own, grads, strict=True))
        out[item.name] = mask * weighted + (1 - mask) * alone
    return out


def applied(step, decision, heads, share=1.0):
    """The gradient that a step leaves in the parameters."""
    for item in step.sharing.parameters:
        item.parameter.grad = None
    step.apply(
        decision,
        heads,
        share,
        signed=not isinstance(decision, SharedGradient) and bool(decision.min() < 0),
    )
    return {
        i.name: torch.zeros_like(i.parameter) if (g := i.parameter.grad) is None else g
        for i in step.sharing.parameters
    }


def check(found, expected):
    for name, grad in expected.items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "weights", [WEIGHTS, torch.tensor([1.2, 0.0, 0.4]), torch.tensor([1.2, -0.5, 0.4])], ids=str
)
def test_weights_mean_the_same_by_one_backward_and_by_combination(setup, weights):
    model, batch = setup
    weights = weights.double()
    for heads in HEADS:
        one, many = loop_step(model, batch), loop_step(model, batch)
        expected = expected_gradient(model, batch, one.sharing, weights, heads)
        check(applied(one, weights, heads), expected)
        many.jacobian()
        check(applied(many, weights, heads), expected)
        assert many.backward_passes == 3 or not many.sharing.scope("dense")
        if weights.min() > 0 or (heads == "weighted" and weights.min() == 0):
            assert one.backward_passes == 1


def test_accumulated_steps_are_averaged(setup):
    model, batch = setup
    sharing = loop_step(model, batch).sharing
    other = doubled(toy_batch(model.schema, 40, seed=5))
    batches = [(batch, WEIGHTS), (other, WEIGHTS.flip(0))]
    for heads, rows_first in product(HEADS, (False, True)):
        parts = [
            expected_gradient(model, rows, sharing, weights, heads) for rows, weights in batches
        ]
        for item in sharing.parameters:
            item.parameter.grad = None
        for rows, weights in batches:
            step = loop_step(model, rows)
            if rows_first:
                step.jacobian()
            assert torch.equal(step.apply(weights, heads, 0.5), weights)
        check(
            {item.name: item.parameter.grad for item in sharing.parameters},
            {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]},
        )


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("scope", ["dense", "all"])
@pytest.mark.parametrize("name", [*SHARING, "islands"])
def test_a_direction_replaces_the_shared_slices_of_its_scope(name, scope, heads):
    model, batch = islands() if name == "islands" else make(name)
    sharing, share = loop_step(model, batch).sharing, 0.5
    plain = expected_gradient(model, batch, sharing, torch.ones(3), "plain")
    step = loop_step(model, batch, sharing=sharing)
    vector = torch.randn(step.jacobian(scope).shape[1], dtype=torch.float64)
    parts = step.jacobian_columns(scope)
    expected = {}
    for item in sharing.parameters:
        mask = shared_mask(item) if item.name in parts else torch.zeros_like(item.parameter)
        directed = vector[parts[item.name]].view(item.parameter.shape) if item.name in parts else 0
        expected[item.name] = share * (mask * directed + (1 - mask) * plain[item.name])
    check(applied(step, SharedGradient(vector, scope), heads, share), expected)
    assert step.apply(SharedGradient(vector, scope), heads, share).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", SHARING)
def test_a_direction_of_the_representation_goes_down_to_the_embedding(name, monkeypatch):
    model, batch = unfused(name, monkeypatch)
    step = loop_step(model, batch, scope="representation")
    vector = torch.randn(step.jacobian().shape[1], dtype=torch.float64)
    values = dict(model.named_parameters())
    of, upstream = [representation(step)], [vector.view_as(representation(step))]
    if (
        step.sharing.has_boundary and step.output.boundary.gate_output is not None
    ):  # the gates go on with a weight of 1
        of.append(step.output.boundary.gate_output)
        upstream += torch.autograd.grad(sum(step.task_losses), of[1:], retain_graph=True)
    grads = torch.autograd.grad(
        of, list(values.values()), upstream, retain_graph=True, allow_unused=True
    )
    directed = {key: grad for key, grad in zip(values, grads, strict=True) if grad is not None}
    assert {key.startswith("embedding.") for key in directed} == (
        {True, False} if step.sharing.has_boundary else {True}
    )
    plain = expected_gradient(model, batch, step.sharing, torch.ones(3), "plain")
    masks = {
        item.name: shared_mask(item) for item in step.sharing.parameters
    }  # a table of one task keeps its gradient
    expected = {
        k: 0.5 * (masks[k] * directed.get(k, grad) + (1 - masks[k]) * grad)
        for k, grad in plain.items()
    }
    check(applied(step, SharedGradient(vector), "weighted", 0.5), expected)
    check(
        applied(step, SharedGradient(step.jacobian().sum(0)), "weighted"), plain
    )  # the sum of the rows is the uniform step


def test_the_sum_of_the_rows_is_a_direction_like_any_other(setup):
    """As a direction it is the uniform step."""
    model, batch = setup
    sharing = loop_step(model, batch).sharing
    if not sharing.scope("all"):
        pytest.skip("shares nothing")
    step = loop_step(model, batch, sharing=sharing)
    uniform = expected_gradient(model, batch, sharing, torch.ones(3), "weighted")
    check(applied(step, SharedGradient(step.jacobian("all").sum(0), "all"), "weighted"), uniform)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("name", MODELS.names())
def test_idle_tasks_leave_no_trace(name, rows_first, heads):
    model, batch = make(name, idle=(1,))
    sharing = SharedParameters(
        model, doubled(toy_batch(model.schema, 40))
    )  # of rows in which no task is idle
    step = loop_step(model, batch, sharing=sharing)
    assert step.active.tolist() == [True, False, True]
    assert step.losses[1] == 0
    if rows_first:
        assert not step.jacobian()[1].any()
        assert not step.gramian()[1].any()
    assert step.grad_norms("last")[1] == 0
    weights = torch.tensor([0.7, 0.0, 1.3]).double()
    found = applied(step, weights, heads)
    check(found, expected_gradient(model, batch, sharing, weights, heads))
    for item in sharing.parameters:
        alone = (item.reached_by.sum(0) == 1) & item.reached_by[1]  # the slices of the idle task
        for k in torch.nonzero(alone).flatten().tolist():
            own = found[item.name] if item.axis is None else found[item.name].select(item.axis, k)
            assert not own.any()


@pytest.mark.parametrize("name", MODELS.names())
def test_a_batch_without_any_label_moves_nothing(name):
    model, _ = make(name)
    batch = doubled(toy_batch(model.schema, 40))
    sharing = SharedParameters(model, batch)
    step = loop_step(
        model,
        replace(batch, observed=torch.zeros_like(batch.labels, dtype=torch.bool)),
        sharing=sharing,
    )
    assert not step.active.any()
    assert not step.gramian().any()
    assert not any(
        grad.any() for grad in applied(step, torch.zeros(3).double(), "weighted").values()
    )


def test_gradients_are_computed_once_and_counted():
    model, batch = make("mmoe")
    step = loop_step(model, batch)
    assert step.backward_passes == 0
    first = step.jacobian()
    step.gramian()
    step.grad_norms("last")
    step.apply(WEIGHTS, "weighted", 1.0)
    assert step.backward_passes == 3
    second = step.jacobian("all")
    assert step.backward_passes == 6  # down to the embedding this time
    assert first.shape[1] < second.shape[1]
    step.jacobian("all")
    step.apply(WEIGHTS, "weighted", 1.0)
    assert step.backward_passes == 6
    fresh = step.fresh_batch()
    fresh.jacobian()
    fresh.fresh_batch().gramian()
    assert step.backward_passes == 6
    assert step.all_backward_passes() == 12


def test_norms_of_one_part_do_not_need_all_gradients():
    model, batch = make("mmoe")
    step = loop_step(model, batch)
    step.grad_norms("last")
    step.apply(WEIGHTS, "weighted", 1.0)
    assert (
        step.backward_passes == 4
    )  # one a task, through the layers above; and the one that trains


def test_fresh_batches_are_drawn_and_callbacks_kept():
    model, batch = make("mmoe")
    other = doubled(toy_batch(model.schema, 40, seed=9))
    step = loop_step(model, batch, draw=lambda: loop_step(model, other))
    fresh = step.fresh_batch()
    assert torch.equal(fresh.losses, loop_step(model, other).losses)
    assert not torch.equal(fresh.losses, step.losses)
    step.after_step(print)
    assert step.callbacks == [print]
    assert fresh.callbacks == []


@pytest.mark.parametrize("balancer", BALANCERS.names())
@pytest.mark.parametrize(("name", "tasks"), [("mmoe", 3), ("mmoe", 1), ("single-task", 2)])
def test_every_balancer_can_answer(balancer, name, tasks):
    """Also where there is no gradient to compare, because nothing is shared."""
    model, batch = make(name, tasks=tasks)
    kind = load_balancer(balancer)
    method = kind(model.tasks, kind.Options())
    step = loop_step(model, batch)
    if name == "single-task" or tasks == 1:
        assert step.jacobian().shape == (tasks, 0)
        assert not step.gramian().any()
        assert not step.grad_norms("last").any()
    decision = method(step)
    for heads in ("weighted", "plain"):
        assert all(
            grad.isfinite().all()
            for grad in applied(loop_step(model, batch), decision, heads).values()
        )
