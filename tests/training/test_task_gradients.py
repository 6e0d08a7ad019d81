"""The shortcuts to task gradients: where they are taken, and that what a model says of itself is
not just believed.
"""

import dataclasses
import gc
import weakref

import pytest
import torch

from mtlkit.balancers._step import SharedGradient
from mtlkit.models import _tables
from mtlkit.models.mmoe import MMoE
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.shortcuts import StopAtCuts
from mtlkit.training.task_gradients import TaskGradients
from tests.models.build import build, doubled, known, task_losses
from tests.toy import toy_batch, toy_schema
from tests.training.steps import loop_step
from tests.training.test_step import (
    HEADS,
    SHARING,
    SMALL,
    WEIGHTS,
    applied,
    check,
    expected_gradient,
    make,
    shared_mask,
)

PARTED = ["mmoe", "shared-bottom", "cgc", "tabm"]
FORMS = ["folded", "looked up", "row-sparse", "folded numbers", "folded vectors"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """How the embedding is computed."""
    if not request.param.startswith("folded"):
        monkeypatch.setattr(_tables, "FOLD_VOCABULARY", 0)
    return request.param


def small(name, form, **options):
    schema = toy_schema(3, bags=1)
    model = build(name, schema, numbers="vector", **known(name, SMALL | options)).eval().double()
    model.use(
        dataclasses.replace(model.fast_paths, sparse_from=1 if form == "row-sparse" else None)
    )
    return model, doubled(toy_batch(schema, 40, missing=0.2))


def dense(found):
    return {name: grad.to_dense() for name, grad in found.items()}


@pytest.mark.parametrize("name", SHARING)
def test_every_table_is_reached_through_the_cuts(name, form):
    """All but those of a model that says nothing of its inputs."""
    model, batch = small(name, form)
    assert SharedParameters(model, batch).routes.cuts


@pytest.mark.parametrize("options", [{}, {"tower": (4, 3)}, {"norm": "layer"}], ids=str)
@pytest.mark.parametrize("name", PARTED)
def test_towers_are_passed_once(name, options, form, monkeypatch):
    model, batch = small(name, form, **options)
    sharing = SharedParameters(model, batch)
    shared = {item.name for item in sharing.scope("dense")}
    assert shared == sharing.routes.trunk
    assert all(part.startswith("gates.") for part in sharing.routes.gates)
    assert sharing.routes.first_layers
    # these would be a pass through all layers for each task
    monkeypatch.setattr(TaskGradients, "_pass_through", None)
    monkeypatch.setattr(StopAtCuts, "collect", None)
    for heads in HEADS:
        for weights in (
            WEIGHTS,
            torch.tensor([1.2, 0.0, 0.4]).double(),
            torch.tensor([1.2, -0.5, 0.4]).double(),
        ):
            step = loop_step(model, batch, sharing=sharing)
            step.gramian()
            assert step.backward_passes == 3
            check(
                dense(applied(step, weights, heads)),
                expected_gradient(model, batch, sharing, weights, heads),
            )
            assert step.backward_passes == 3


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", SHARING)
def test_tables_take_one_pass(name, heads, form, monkeypatch):
    """In every model whose tables are below dense shared layers, whatever the weights."""
    model, batch = small(name, form)
    sharing = SharedParameters(model, batch)
    if all(item.is_embedding for item in sharing.scope("dense")):
        pytest.skip("shares tables alone")
    asked, values = [], TaskGradients._values
    monkeypatch.setattr(
        TaskGradients,
        "_values",
        lambda self, item, grad: (asked.append(item.name), values(self, item, grad))[1],
    )
    step = loop_step(model, batch, sharing=sharing)
    step.gramian()
    assert not [name for name in asked if name.startswith("embedding.")]
    weights = torch.tensor([1.2, -0.5, 0.4]).double()
    check(
        dense(applied(step, weights, heads)),
        expected_gradient(model, batch, sharing, weights, heads),
    )
    assert (
        max(asked.count(i.name) for i in sharing.parameters if i.is_embedding) <= 2
    )  # shared rows, and rows of one task


@pytest.mark.parametrize("name", PARTED)
def test_directions_after_a_boundary(name, form):
    model, batch = small(name, form)
    step = loop_step(model, batch)
    vector = torch.tensor([1.0, -2.0, 0.5]).double() @ step.jacobian("dense")
    places = step.jacobian_columns("dense")
    expected = expected_gradient(model, batch, step.sharing, torch.ones(3).double(), "weighted")
    masks = {item.name: shared_mask(item) for item in step.sharing.parameters}
    for key, place in places.items():
        expected[key] = torch.where(
            masks[key] > 0, vector[place].view(expected[key].shape), expected[key]
        )
    check(dense(applied(step, SharedGradient(vector, "dense"), "weighted")), expected)


@pytest.mark.parametrize("name", PARTED)
def test_all_rows_after_dense_ones(name, form):
    """What was found first is kept, and the rest is found then."""
    model, batch = small(name, form)
    one, other = loop_step(model, batch), loop_step(model, batch)
    one.jacobian("dense")
    torch.testing.assert_close(one.jacobian("all"), other.jacobian("all"))
    torch.testing.assert_close(one.jacobian("dense"), other.jacobian("dense"))
    weights = expected_gradient(model, batch, one.sharing, WEIGHTS, "weighted")
    check(dense(applied(one, WEIGHTS, "weighted")), weights)
    check(dense(applied(other, WEIGHTS, "weighted")), weights)


class Crossed(MMoE):
    """Says that towers read their own mixture, while they read the next one's, too."""

    def forward(self, batch):
        self.towers.register_forward_pre_hook(
            lambda _, given: (given[0] + given[0].roll(1, 1),)
        ) if not len(self.towers._forward_pre_hooks) else None
        return super().forward(batch)


class Doubled(MMoE):
    """Says that a mixture's gradient means half of what it does for the experts."""

    def forward(self, batch):
        output = super().forward(batch)
        pull = output.boundary.vjp

        def halved(grad):
            found = pull(grad)
            return found / 2 if isinstance(found, torch.Tensor) else (found[0] / 2, found[1])

        return dataclasses.replace(
            output, boundary=dataclasses.replace(output.boundary, vjp=halved)
        )


class Secret(MMoE):
    """Reads its table beside the inputs that it speaks of."""

    def forward(self, batch):
        output = super().forward(batch)
        table = next(iter(self.embedding.parameters()))
        for prediction in output.predictions:
            prediction.logits = prediction.logits + table[batch.ids[:, 0]].sum(-1)
        return output


class Tied(MMoE):
    """Uses a layer that reads the embedding for something else, too."""

    def forward(self, batch):
        output = super().forward(batch)
        for prediction in output.predictions:
            prediction.logits = prediction.logits + self.experts.linears[0].weight.sum()
        return output


REFUSED = {
    Crossed: "share layers above the boundary",
    Doubled: "the boundary's gradients",
    Secret: "around the embedded batch",
    Tied: "first layers are used elsewhere",
}


@pytest.mark.parametrize("name", SHARING)
def test_a_refused_shortcut_is_told(name):
    model, batch = make(name)
    sharing = SharedParameters(model, batch)
    assert bool(sharing.refused) != sharing.has_boundary
    if name in PARTED:
        assert sharing.has_boundary
    elif sharing.routes.first_layers:
        reasons = ("names no boundary", "above the boundary", "gates are made of shared layers")
        assert any(reason in sharing.refused[0] for reason in reasons)


@pytest.mark.parametrize("fusable", [True, False])
@pytest.mark.parametrize("kind", [Crossed, Doubled, Secret, Tied])
def test_what_does_not_hold_is_not_believed(kind, fusable):
    torch.manual_seed(0)
    schema = toy_schema(3)
    model = kind(schema, MMoE.Options(experts=3, hidden=(5,), tower=(4,), embedding=3)).double()
    model.use(dataclasses.replace(model.fast_paths, fuse=fusable))
    batch = doubled(toy_batch(schema, 40))
    sharing = SharedParameters(model, batch)
    assert not sharing.has_boundary
    assert not sharing.routes.gates
    assert sharing.routes.cuts == (kind is not Secret)
    assert sharing.routes.first_layers == (kind not in {Secret, Tied})
    (reason,) = sharing.refused
    assert REFUSED[kind] in reason
    step = loop_step(model, batch, sharing=sharing)
    step.gramian()
    check(
        applied(step, WEIGHTS, "weighted"),
        expected_gradient(model, batch, sharing, WEIGHTS, "weighted"),
    )


def test_a_gate_that_all_tasks_share_is_no_boundary():
    model, batch = make("omoe")
    assert not SharedParameters(model, batch).has_boundary


@pytest.mark.parametrize("name", ["mmoe", "shared-bottom", "ple"])
@pytest.mark.parametrize("heads", ["weighted", "plain"])
def test_weights_of_zero_without_tables_to_train(name, heads):
    """Nothing was asked for before, and no table makes the passes go all the way down."""
    schema = toy_schema(tasks=3)
    model, batch = build(name, schema), toy_batch(schema, 24)
    sharing = SharedParameters(model, batch)
    for value in model.embedding.parameters():
        value.requires_grad_(False)
    sharing.routes.parameters = sharing.routes.dense
    loop_step(model, batch, sharing=sharing).apply(torch.tensor([1.0, 0.0, 0.0]), heads, 1.0)
    loss = task_losses(model, batch)[0]
    for item in sharing.parameters:
        if item.all_shared:
            (grad,) = torch.autograd.grad(loss, item.parameter, retain_graph=True)
            torch.testing.assert_close(item.parameter.grad, grad)


@pytest.mark.parametrize("fusable", [True, False])
@pytest.mark.parametrize("name", PARTED)
def test_nothing_of_a_step_outlives_it(name, fusable, form):
    """No cycle of references keeps graphs until the collector comes by."""
    model, batch = small(name, form)
    model.use(dataclasses.replace(model.fast_paths, fuse=fusable))
    sharing = SharedParameters(model, batch)
    gc.collect()
    gc.disable()
    try:
        step = loop_step(model, batch, sharing=sharing)
        kept = weakref.ref(step.output.embedded)
        step.gramian()
        step.apply(WEIGHTS, "weighted", 1.0)
        del step
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["mmoe", "cgc"])
def test_dropout_parts_elsewhere_than_the_trial(name, heads, form):
    """What was tried out without dropout is one kernel; with it there are layers, under the same
    boundary.
    """
    model, batch = small(name, form, dropout=0.4)
    sharing = SharedParameters(model, batch)
    model.train()
    torch.manual_seed(3)
    step = loop_step(model, batch, sharing=sharing)
    torch.manual_seed(3)
    expected = expected_gradient(model, batch, sharing, WEIGHTS, heads)
    step.gramian()
    check(dense(applied(step, WEIGHTS, heads)), expected)
