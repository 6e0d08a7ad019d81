"""TabM against k small networks that are computed one by one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mtlkit.data.splits import NO_GROUP
from mtlkit.losses._build import prediction
from mtlkit.models._types import Prediction
from mtlkit.models.tabm import mean_prediction
from tests.models.build import build, doubled, task_losses
from tests.toy import toy_batch, toy_schema

KINDS = ("binary", "regression", "multiclass")
ROWS = 30


def spread(schema, **options):
    """A model in float64 whose adapters are far from their first values."""
    model = build("tabm", schema, **options).double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model


def separate_layers(model, member):
    """The weights and biases of one member's layers, each a leaf of its own."""
    layers = [
        (
            layer.output_scale[member, :, None] * layer.weight * layer.input_scale[member],
            layer.bias[member],
        )
        for layer in model.bottom.linears
    ]
    return [tuple(value.detach().clone().requires_grad_() for value in layer) for layer in layers]


def run(layers, x):
    for weight, bias in layers:
        x = F.relu(F.linear(x, weight, bias))
    return x


def tower(model, task, member, h):
    """The logits (B, C) of one member's tower for a task."""
    copy = task * model.members + member
    stack, k = next((s, m.index(copy)) for s, m in enumerate(model.towers.members) if copy in m)
    for linear in model.towers.hidden[stack].linears:
        h = F.relu(F.linear(h, linear.weight[k], linear.bias[k]))
    head = model.towers.heads[stack]
    return F.linear(h, head.weight[k], head.bias[k])


@pytest.mark.parametrize(
    "tower_layers", [(), (4,), {"t1": (4,), "t2": (3, 3), "t3": (4,)}], ids=str
)
@pytest.mark.parametrize("members", [1, 3])
def test_is_an_ensemble_of_separate_networks(members, tower_layers):
    schema = toy_schema(3, KINDS)
    model = spread(schema, members=members, bottom=(7, 5), tower=tower_layers)
    batch = doubled(toy_batch(schema, ROWS))
    x = model.embedding(batch).tensor().detach()
    networks = [separate_layers(model, member) for member in range(members)]
    # (k, B, C) for each task
    binary, number, classes = (
        torch.stack([tower(model, task, k, run(networks[k], x)) for k in range(members)])
        for task in range(3)
    )

    # The prediction is the mean probability of the members, or their mean.
    found = [p.logits for p in model(batch).predictions]
    torch.testing.assert_close(found[0].sigmoid(), binary.sigmoid().mean(0)[:, 0])
    torch.testing.assert_close(found[1], number.mean(0)[:, 0])
    torch.testing.assert_close(found[2].softmax(-1), classes.softmax(-1).mean(0))

    # Each member has a loss of its own, and the model the mean of them.
    labels = batch.labels.repeat(members, 1, 1)
    expected = [
        F.binary_cross_entropy_with_logits(binary[..., 0], labels[..., 0]),
        F.mse_loss(number[..., 0], labels[..., 1]),
        F.cross_entropy(classes.flatten(0, 1), labels[..., 2].flatten().long()),
    ]
    losses = task_losses(model, batch)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected))

    # A member's gradient reaches the shared weight through its adapters.
    sum(losses).backward()
    sum(expected).backward()
    for level, layer in enumerate(model.bottom.linears):
        own = torch.stack([network[level][0].grad for network in networks])  # (k, O, I)
        scales = layer.output_scale[:, :, None] * layer.input_scale[:, None]
        torch.testing.assert_close(layer.weight.grad, (own * scales).sum(0))
        by_member = own * layer.weight
        by_input = (by_member * layer.output_scale[:, :, None]).sum(1)
        torch.testing.assert_close(layer.input_scale.grad, by_input)
        by_output = (by_member * layer.input_scale[:, None]).sum(2)
        torch.testing.assert_close(layer.output_scale.grad, by_output)
        biases = torch.stack([network[level][1].grad for network in networks])
        torch.testing.assert_close(layer.bias.grad, biases)


def test_members_begin_as_one_network_with_a_sign_on_each_feature():
    schema = toy_schema(2, bags=1)
    model = build("tabm", schema, members=8, bottom=(7, 5))
    first, second = model.bottom.linears
    for columns in model.embedding.feature_columns.values():
        signs = first.input_scale[:, list(columns)]
        assert signs.eq(signs[:, :1]).all()
    assert first.input_scale.unique(dim=0).shape[0] > 4
    assert first.input_scale.abs().eq(1).all()
    for ones in (first.output_scale, second.input_scale, second.output_scale):
        assert ones.eq(1).all()
    assert first.bias.unique(dim=0).shape[0] == 1


def in_sessions(losses):
    schema = toy_schema(2)
    tasks = [task.model_copy(update={"losses": losses}) for task in schema.tasks]
    return schema.model_copy(update={"tasks": tuple(tasks)})


FUNNEL = toy_schema(2).model_copy(update={"funnel": ("t1", "t2")})


@pytest.mark.parametrize(
    ("schema", "options"),
    [
        (in_sessions(("bce", "listwise")), {}),
        (in_sessions(("jrc[form=masked]",)), {}),
        (in_sessions(("pairwise",)), {}),
        (FUNNEL, {"cvr": "clicked"}),
        (FUNNEL, {"cvr": "derived"}),
    ],
    ids=["listwise", "jrc", "pairwise", "clicked", "derived"],
)
def test_each_member_is_trained_by_itself(schema, options):
    """Sessions, spaces, missing labels and row weights mean for a member what they mean alone."""
    model = spread(schema, members=3, bottom=(5,), **options)
    batch = doubled(toy_batch(schema, ROWS, missing=0.2))
    sessions = torch.arange(ROWS) // 4
    sessions[-5:] = int(NO_GROUP)
    weight = torch.rand(ROWS, dtype=torch.float64)
    batch = replace(batch, groups={"session": sessions}, weight=weight)
    output = model(batch)
    found = model.objectives(output, batch)
    for objective, together, by_member in zip(found, output.predictions, output.extra, strict=True):
        alone = [model.objective(Prediction(together.task, logits), batch) for logits in by_member]
        losses = torch.stack([member.loss for member in alone])
        torch.testing.assert_close(objective.loss, losses.mean())
        torch.testing.assert_close(objective.total, alone[0].total)
        assert bool(objective.active)


def test_two_logits_a_row_have_the_mean_probability_too():
    task = in_sessions(("jrc",)).tasks[0]
    members = torch.randn(3, ROWS, 2, dtype=torch.float64)
    mean = members.softmax(-1)[..., 1].mean(0)
    torch.testing.assert_close(prediction(task, mean_prediction(task, members)).sigmoid(), mean)


def test_the_mean_of_certain_members_is_finite():
    task = toy_schema(1).tasks[0]
    members = torch.tensor([[800.0, -800.0, 0.0], [800.0, -800.0, 800.0]], requires_grad=True)
    logits = mean_prediction(task, members)
    torch.testing.assert_close(logits, torch.tensor([800.0, -800.0, torch.tensor(3.0).log()]))
    logits.sum().backward()
    assert members.grad.isfinite().all()
