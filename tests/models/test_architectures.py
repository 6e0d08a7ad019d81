"""What every architecture must satisfy; a new file in mtlkit/models is tested here without further
ado.
"""

import re

import pytest
import torch

from mtlkit.models._tables import FOLD_VOCABULARY
from mtlkit.registry import MODELS
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.sharing import SharedParameters
from tests.models.build import build, doubled, gradients, load, task_losses
from tests.toy import toy_batch, toy_schema

KINDS = ("binary", "regression", "multiclass")
PAPER = re.compile(r"doi:10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5}")

CASES = {
    "one task": (toy_schema(1), {}),
    "two tasks": (toy_schema(2), {}),
    "three kinds": (toy_schema(3, KINDS), {}),
    "funnel": (toy_schema(2).model_copy(update={"funnel": ("t1", "t2")}), {}),
    "towers by task": (
        toy_schema(4, KINDS),
        {"tower": {"t1": (16,), "t2": (6, 4), "t3": ()}, "activation": "leaky_relu"},
    ),
    "no tower layers": (toy_schema(3), {"tower": ()}),
    "widths and bags": (
        toy_schema(2, bags=2),
        {"embedding_dims": {"id1": 3, "id2": 12, "bag1": 5}},
    ),
    "dense only": (toy_schema(2, ids=0, dense=4), {}),
    "ids only": (toy_schema(2, dense=0), {}),
    "bags only": (toy_schema(2, ids=0, dense=0, bags=2), {}),
    "large vocabulary": (toy_schema(2, vocab=FOLD_VOCABULARY + 1), {}),
    "batch norm": (toy_schema(3, KINDS), {"norm": "batch"}),
    "layer norm": (toy_schema(3, KINDS), {"norm": "layer"}),
    "dropout": (toy_schema(3, KINDS), {"dropout": 0.5}),
    "activation": (toy_schema(2), {"activation": "gelu"}),
    "numbers as vectors": (toy_schema(3, KINDS, bags=1), {"numbers": "vector", "init": "xavier"}),
    "piecewise linear numbers": (toy_schema(3, KINDS), {"numbers": "piecewise", "init": "xavier"}),
    "periodic numbers": (toy_schema(3, KINDS, bags=1), {"numbers": "periodic"}),
}


@pytest.fixture(params=MODELS.names())
def name(request):
    return request.param


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_forward_and_backward(name, case):
    schema, options = case
    model, batch = build(name, schema, **options), toy_batch(schema, 40, missing=0.1)
    output = model(batch)
    assert tuple(prediction.task for prediction in output.predictions) == model.schema.task_names
    for task, prediction in zip(model.tasks, output.predictions, strict=True):
        assert prediction.logits.shape == (
            (40, task.classes) if task.kind == "multiclass" else (40,)
        )
        assert prediction.logits.isfinite().all()
        assert (
            prediction.logits.std(0).min() > 0
        )  # the rows differ, so must what is said about them
    losses = task_losses(model, batch)
    assert all(loss.shape == () and loss > 0 for loss in losses)
    sum(losses).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter


@pytest.mark.parametrize(
    "case", sorted(CASES.keys() - {"funnel", "activation", "dropout", "ids only", "batch norm"})
)
def test_every_parameter_is_reached(name, case):
    schema, options = CASES[case]
    sharing = SharedParameters(build(name, schema, **options), toy_batch(schema, 40))
    assert sharing.unreached == []
    assert all(
        parameter.reached_by.shape == (len(schema.tasks), len(parameter.shared))
        for parameter in sharing.parameters
    )
    assert bool(sharing.scope("all")) == (load(name).shares_parameters and len(schema.tasks) > 1)


@pytest.mark.parametrize("case", ["one task", "three kinds", "funnel", "large vocabulary"])
def test_gates_are_distributions_over_named_experts(name, case):
    schema, options = CASES[case]
    model, batch = build(name, schema, **options), toy_batch(schema, 40)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value))  # far from the even weights of small initial values
    gates = model(batch).gates
    assert gates.keys() == model.gate_experts.keys()
    for gate, weights in gates.items():
        assert weights.shape == (40, len(model.gate_experts[gate]))
        assert len(set(model.gate_experts[gate])) == len(model.gate_experts[gate])
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(40))


@pytest.mark.parametrize("case", ["three kinds", "funnel", "widths and bags", "batch norm"])
def test_rows_do_not_see_each_other(name, case):
    schema, options = CASES[case]
    model, batch = build(name, schema, **options).eval(), toy_batch(schema, 40)
    rows = torch.tensor([31, 2, 2, 17])
    whole, some = model(batch), model(DeviceSplit(batch).take(rows))
    for one, other in zip(whole.predictions, some.predictions, strict=True):
        torch.testing.assert_close(one.logits[rows], other.logits)
    for gate, weights in whole.gates.items():
        torch.testing.assert_close(weights[rows], some.gates[gate])


def test_the_seed_decides_everything(name):
    schema = toy_schema(3, KINDS, bags=1)
    batch = toy_batch(schema, 40)
    runs = []
    for seed in (1, 1, 2):
        model = build(name, schema, seed, dropout=0.3)
        torch.manual_seed(seed)
        runs.append(
            [p.logits for p in model(batch).predictions] + list(gradients(model, batch).values())
        )
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True) if a.any())


def test_dropout_and_batch_norm_know_when_training_is_over(name):
    schema = toy_schema(2)
    batch = toy_batch(schema, 40)
    for options in ({"dropout": 0.5}, {"norm": "batch"}):
        model = build(name, schema, **options)
        trained, scored = model(batch), model.eval()(batch)
        for one, other in zip(trained.predictions, scored.predictions, strict=True):
            assert not torch.allclose(one.logits, other.logits)
        again = model(batch)
        for one, other in zip(again.predictions, scored.predictions, strict=True):
            assert torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("case", ["three kinds", "widths and bags", "batch norm"])
def test_state_round_trip(name, case):
    schema, options = CASES[case]
    batch = toy_batch(schema, 40)
    model, other = build(name, schema, 1, **options), build(name, schema, 2, **options)
    model(batch)  # moves the statistics of batch norm
    other.load_state_dict(model.state_dict())
    for one, two in zip(
        model.eval()(batch).predictions, other.eval()(batch).predictions, strict=True
    ):
        assert torch.equal(one.logits, two.logits)


def test_float32_is_float64_rounded(name):
    schema = toy_schema(3, KINDS, bags=1)
    model, batch = build(name, schema), toy_batch(schema, 40, missing=0.1)
    torch.manual_seed(1)  # for models that draw
    single = gradients(model, batch)
    torch.manual_seed(1)
    double = gradients(model.double(), doubled(batch))
    for parameter, value in single.items():
        torch.testing.assert_close(value.double(), double[parameter], rtol=1e-4, atol=1e-6)


def test_docstring_names_paper_uses_and_cost(name):
    text = MODELS.docstring(name)
    assert PAPER.search(text)
    assert all(f"\n{line}:" in text for line in ("When to use", "When not", "Cost"))
    assert len(MODELS.summary(name)) < 100
    assert load(name).__doc__
