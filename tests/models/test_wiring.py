"""Who is connected to whom: batched models against naive twins, and the claims of the papers one by
one.
"""

import pytest
import torch

from tests.models.build import build, known, task_losses
from tests.models.twins import FORWARD, Twin
from tests.toy import toy_batch, toy_schema

KINDS = ("binary", "regression", "multiclass")
DEEP = {"hidden": (7, 5), "bottom": (9, 6), "specific": 2, "shared": 3, "experts": 3}
ROWS = 30

TWINS = [(name, {}) for name in FORWARD] + [
    ("ple", {"levels": 3}),
    ("cgc", {"specific": 1, "shared": 1}),
]


def deep(name, schema, seed=0, **options):
    """A model with several hidden layers and weights large enough for gates to differ."""
    model = build(name, schema, seed, **known(name, DEEP) | options)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model


@pytest.mark.parametrize("tower", [(4,), (), {"t1": (4,), "t2": (3, 3), "t3": (4,)}], ids=str)
@pytest.mark.parametrize(("name", "options"), TWINS, ids=str)
def test_batched_model_equals_its_naive_twin(name, options, tower):
    schema = toy_schema(3, KINDS)
    model, batch = deep(name, schema, tower=tower, **options), toy_batch(schema, ROWS, missing=0.2)
    twin = Twin(model, FORWARD[name])
    for one, other in zip(model(batch).predictions, twin(batch).predictions, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-6)
    sum(task_losses(model, batch)).backward()
    sum(twin.losses(batch)).backward()
    grads = {name: value.grad for name, value in model.named_parameters()}
    for (parameter, k), value in zip(twin.slices, twin.values, strict=True):
        axis = twin.axes.get(parameter)
        gradient = grads[parameter] if axis is None else grads[parameter].select(axis, k)
        torch.testing.assert_close(
            gradient, value.grad, rtol=1e-4, atol=1e-6, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def gradients_by_slice(model, batch, t, name):
    """Largest gradient of task t's loss in each slice of a stacked parameter."""
    value = dict(model.named_parameters())[name]
    (grad,) = torch.autograd.grad(task_losses(model, batch)[t], [value])
    return grad.abs().flatten(1).amax(1)


@pytest.mark.parametrize("name", ["cgc", "ple"])
def test_a_task_mixes_its_own_and_the_shared_experts_of_the_last_level(name):
    schema = toy_schema(3)
    model, batch = deep(name, schema), toy_batch(schema, ROWS)
    last = len(model.experts) - 1
    owner = model.levels[last].expert_paths
    for t in range(3):
        moved = gradients_by_slice(model, batch, t, f"experts.{last}.linears.0.weight") > 0
        expected = (owner == t) | (owner == 3)
        assert moved.tolist() == expected.tolist()


def test_ple_shares_all_experts_below_the_last_level():
    schema = toy_schema(2)
    model, batch = deep("ple", schema), toy_batch(schema, ROWS)
    moved = gradients_by_slice(model, batch, 1, "experts.0.linears.0.weight")
    assert bool(
        (moved[model.levels[0].expert_paths == 0] > 0).all()
    )  # level-1 experts of task 1 serve task 2 by the shared path
    assert bool((gradients_by_slice(model, batch, 1, "gates.0.linear.weight") > 0)[1])
    assert float(gradients_by_slice(model, batch, 1, "gates.0.linear.weight")[0]) == 0
    assert float(gradients_by_slice(model, batch, 1, "experts.1.linears.0.weight")[0]) == 0


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ple_has_no_shared_gate_in_its_last_level(levels):
    schema = toy_schema(2)
    model = build("ple", schema, levels=levels)
    shared = [name for name in model.gate_experts if name.endswith("/shared")]
    assert shared == [f"level-{level}/shared" for level in range(1, levels)]
    assert len(model.shared_gates) == levels - 1
    sum(task_losses(model, toy_batch(schema, ROWS))).backward()
    assert all(value.grad is not None for value in model.parameters())


def test_gates_of_ple_name_the_experts_they_mix():
    model = build("ple", toy_schema(2), specific=2, shared=1)
    specific = {t: (f"t{t} 1", f"t{t} 2") for t in (1, 2)}
    for level in (1, 2):
        for t in (1, 2):
            assert model.gate_experts[f"level-{level}/t{t}"] == (*specific[t], "shared 1")
    assert model.gate_experts["level-1/shared"] == (*specific[1], *specific[2], "shared 1")


def test_ple_of_one_level_is_cgc():
    schema = toy_schema(3)
    batch = toy_batch(schema, ROWS)
    cgc, ple = deep("cgc", schema, 1), deep("ple", schema, 2, levels=1)
    ple.load_state_dict(cgc.state_dict())
    assert ple.gate_experts == cgc.gate_experts
    for one, other in zip(cgc(batch).predictions, ple(batch).predictions, strict=True):
        assert torch.equal(one.logits, other.logits)


def test_omoe_is_mmoe_with_equal_gates():
    schema = toy_schema(3)
    batch = toy_batch(schema, ROWS)
    omoe, mmoe = deep("omoe", schema, 1), deep("mmoe", schema, 2)
    state = omoe.state_dict()
    state["gates.linear.weight"] = state["gates.linear.weight"].expand(3, -1, -1)
    mmoe.load_state_dict(state)
    for one, other in zip(omoe(batch).predictions, mmoe(batch).predictions, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-6)


def test_each_gate_chooses_for_its_own_task():
    schema = toy_schema(2, ids=0)
    model, batch = deep("mmoe", schema), toy_batch(schema, ROWS)
    batch.dense[:, 0] = 1  # a constant input, in place of the bias that gates do not have
    with torch.no_grad():
        model.gates.linear.weight.zero_()
        model.gates.linear.weight[0, 2, 0] = model.gates.linear.weight[1, 0, 0] = 100
    experts = model.experts(model.embedding(batch))
    logits = model.towers(experts[:, [2, 0]])
    for prediction, expected in zip(model(batch).predictions, logits, strict=True):
        torch.testing.assert_close(prediction.logits, expected)


def test_single_tasks_are_strangers():
    """Each task's predictions are those of a model that was built for it alone."""
    schema = toy_schema(3, KINDS)
    model, batch = deep("single-task", schema), toy_batch(schema, ROWS)
    for t, task in enumerate(schema.tasks):
        alone = build("single-task", schema.select([task.name]), bottom=DEEP["bottom"])
        stack, k = next((s, m.index(t)) for s, m in enumerate(model.towers.members) if t in m)
        state = {}
        for name, value in model.state_dict().items():
            if name.startswith("towers."):
                kind, stack_index, rest = name.removeprefix("towers.").split(".", 2)
                if int(stack_index) == stack:
                    state[f"towers.{kind}.0.{rest}"] = value[k : k + 1]
            elif name.startswith("embedding."):
                state[name] = value[:, t : t + 1]
            else:
                state[name] = value[t : t + 1]
        alone.load_state_dict(state)
        torch.testing.assert_close(
            alone(batch).predictions[0].logits, model(batch).predictions[t].logits
        )


FUNNEL = toy_schema(3).model_copy(update={"funnel": ("t1", "t2")})
MORE = {"levels": 2, "shared": 2, "experts": 2, "mask": "parallel"}
PARTS = {
    "adatt": "gates direct shared_gates shared_direct experts towers",
    "aitm": "bottom info transfer towers",
    "cgc": "gates experts towers",
    "cross-stitch": "stitches bottom towers",
    "dbmtl": "mask bottom gates experts towers relations heads",
    "escm2": "bottom towers",
    "esmm": "bottom towers",
    "home": "meta_features meta_experts meta_gates shared_gate meta_self features experts gates "
    "self_gates towers",
    "mmoe": "gates experts towers",
    "omoe": "gates experts towers",
    "pepnet": "epnet ppnet towers",
    "ple": "gates shared_gates experts towers",
    "shared-bottom": "bottom towers",
    "single-task": "bottom towers",
    "snr": "routings subnets towers",
    "stem": "gates shared_gates experts towers",
    "tabm": "bottom towers",
    "task-embedding": "attention experts towers",
    "task-router": "router routes experts towers",
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_model(name):
    """The first names of parameters, in their order: probes group them and users freeze them by
    these, and the last shared weight depends on the order.
    """
    model = build(name, FUNNEL, **known(name, MORE))
    parts = dict.fromkeys(parameter.partition(".")[0] for parameter, _ in model.named_parameters())
    assert list(parts) == ["embedding", *PARTS[name].split()]
    assert {key.partition(".")[0] for key in model.state_dict()} == parts.keys()
