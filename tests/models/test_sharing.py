"""The architectures that share in part: against naive twins, and the claims of their papers one by
one.
"""

import pytest
import torch

from mtlkit.data.types import Feature
from mtlkit.errors import UsageError
from mtlkit.models.snr import BETA, GAMMA, ZETA
from mtlkit.settings import TrainingSettings, validate
from mtlkit.spec import parse_spec
from mtlkit.training.optimizers import Optimizers
from mtlkit.training.sharing import SharedParameters
from tests.models.build import build, doubled, load, task_losses
from tests.models.sharing_twins import FORWARD
from tests.models.twins import Twin
from tests.toy import toy_batch, toy_schema

KINDS = ("binary", "regression", "multiclass")
ROWS = 30
RELU = {"activation": "relu", "norm": "none"}
GROUPS = {"t1": "a", "t2": "b", "t3": "a"}

TWINS = [
    ("task-router", {"experts": 3, "hidden": (7, 5), "router": (6, 4)}),
    ("task-embedding", {"experts": 3, "hidden": (7, 5), "task_width": 4, "heads": 3}),
    ("cross-stitch", {"bottom": (7, 5)}),
    ("cross-stitch", {"bottom": (7, 5), "channels": True, "tables": "own"}),
    ("stem", {}),
    ("stem", {"levels": 2, "specific": 2, "shared": 2, "gate_hidden": ()}),
    ("stem", {"levels": 3}),
    ("adatt", {"levels": 1}),
    ("adatt", {"levels": 3}),
    ("adatt", {"levels": 2, "specific": 1}),
    ("adatt", {"levels": 3, "shared": 2, "gate_bias": True}),
    ("adatt", {"levels": 2, "specific": 3, "shared": 1}),
    ("dbmtl", {}),
    ("dbmtl", {"experts": 3, "parents": {"t1": ("t3",), "t2": ("t3", "t1")}}),
    (
        "dbmtl",
        {"bottom": (), "mask": "parallel", "mask_blocks": 3, "experts": 2, "relation": (5, 4)},
    ),
    ("dbmtl", {"mask": "serial", "mask_blocks": 3, "parents": {"t1": ()}}),
    ("pepnet", {}),
    ("pepnet", {"tower": (6,), "gate_width": 3}),
    ("home", RELU),
    ("home", RELU | {"groups": GROUPS, "meta": 1, "specific": 2, "gate_parts": 1}),
    (
        "home",
        RELU | {"groups": GROUPS, "meta": 3, "specific": 1, "gate_parts": 3, "gate_hidden": (4,)},
    ),
    ("snr", {"l0": 0}),
    ("snr", {"l0": 0, "levels": 1, "connection": "aver"}),
    ("snr", {"l0": 0, "levels": 3, "subnets": 3}),
]


def deep(name, schema, seed=0, **options):
    """A model with weights large enough for gates to differ."""
    model = build(name, schema, seed, **options)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model


def slices_of(model, task, batch):
    """Parameter names to the set of slices that a task's loss reaches, by gradients of the model as
    it is.
    """
    values = dict(model.named_parameters())
    grads = torch.autograd.grad(
        task_losses(model, batch)[task], list(values.values()), allow_unused=True
    )
    axes = {
        f"{p}.{n}": a
        for p, m in model.named_modules()
        for n, a in getattr(m, "stack_axes", {}).items()
    }
    slices = {}
    for (name, value), grad in zip(values.items(), grads, strict=True):
        grad = torch.zeros_like(value) if grad is None else grad
        moved = grad.movedim(axes[name], 0).flatten(1) if name in axes else grad.reshape(1, -1)
        slices[name] = set(moved.abs().amax(1).nonzero().flatten().tolist())
    return slices


@pytest.mark.parametrize("tower", [(4,), {"t1": (4,), "t2": (3, 3), "t3": (4,)}, ()], ids=str)
@pytest.mark.parametrize(("name", "options"), TWINS, ids=str)
def test_batched_model_equals_its_naive_twin(name, options, tower):
    schema = toy_schema(3, KINDS)
    model = deep(name, schema, **{"tower": tower} | options).eval().double()
    batch = doubled(toy_batch(schema, ROWS, missing=0.2))
    twin = Twin(model, FORWARD[name])
    for one, other in zip(model(batch).predictions, twin(batch).predictions, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-9, atol=1e-9)
    losses, naive = task_losses(model, batch), twin.losses(batch)
    for t in range(3):  # task by task: a model may cut gradients between tasks
        model.zero_grad()
        twin.zero_grad()
        losses[t].backward(retain_graph=True)
        naive[t].backward(retain_graph=True)
        grads = {name: value.grad for name, value in model.named_parameters()}
        for (parameter, k), value in zip(twin.slices, twin.values, strict=True):
            axis, whole = twin.axes.get(parameter), grads[parameter]
            gradient = (
                torch.zeros_like(value)
                if whole is None
                else whole
                if axis is None
                else whole.select(axis, k)
            )
            expected = torch.zeros_like(value) if value.grad is None else value.grad
            torch.testing.assert_close(
                gradient, expected, rtol=1e-9, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}"
            )


def test_every_twin_is_used():
    assert {name for name, _ in TWINS} == FORWARD.keys()


# gates


@pytest.mark.parametrize("name", ["mmoe", "omoe", "cgc", "ple", "adatt", "stem", "home"])
def test_gates_may_have_hidden_layers_a_bias_and_a_norm(name):
    schema = toy_schema(2)
    model = deep(name, schema, gate_hidden=(5,), gate_bias=True, gate_norm="batch")
    parameters = {parameter.rpartition("gates.")[2] for parameter, _ in model.named_parameters()}
    names = {
        parameter.split(".", 1)[-1] if parameter[0].isdigit() else parameter
        for parameter in parameters
    }
    assert {"hidden.linears.0.weight", "linear.bias", "norm.scale", "norm.shift"} <= names
    assert SharedParameters(model, toy_batch(schema, ROWS)).unreached == []


def test_a_gate_is_one_bias_free_layer_unless_asked_otherwise():
    model = build("mmoe", toy_schema(2))
    assert [name for name, _ in model.gates.named_parameters()] == ["linear.weight"]


# stem


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_stem_isolates_tasks_at_any_depth(levels):
    schema = toy_schema(3)
    model, batch = deep("stem", schema, levels=levels, gate_hidden=()), toy_batch(schema, ROWS)
    for t in range(3):
        slices = slices_of(model, t, batch)
        assert slices["embedding.width_8"] == {t, 3}
        for level in range(levels):
            assert slices[f"experts.{level}.linears.0.weight"] == {t, 3}
            assert slices[f"gates.{level}.linear.weight"] == {t}
        for level in range(levels - 1):
            assert slices[f"shared_gates.{level}.linear.weight"] == {0}
    sharing = {parameter.name: parameter for parameter in SharedParameters(model, batch).parameters}
    assert sharing["embedding.width_8"].shared.tolist() == [False, False, False, True]


@pytest.mark.parametrize("levels", [1, 2])
def test_stem_lets_every_task_see_the_experts_of_all(levels):
    schema = toy_schema(2)
    model, batch = deep("stem", schema, levels=levels), toy_batch(schema, ROWS)
    before = model(batch).predictions[0].logits
    with torch.no_grad():
        model.embedding.width_8[:, 1] += 1  # the table of the other task
    assert not torch.allclose(model(batch).predictions[0].logits, before)


def test_stem_has_no_unread_shared_gate():
    for levels in (1, 2, 3):
        model = build("stem", toy_schema(2), levels=levels)
        assert len(model.shared_gates) == levels - 1
        assert sum(gate.endswith("/shared") for gate in model.gate_experts) == levels - 1


# cross-stitch


@pytest.mark.parametrize("channels", [False, True])
def test_stitches_start_near_the_identity(channels):
    model = build("cross-stitch", toy_schema(3), bottom=(7, 5), channels=channels)
    for stitch, width in zip(model.stitches, (7, 5), strict=True):
        expected = torch.full((3, 3), 0.05).fill_diagonal_(0.9)
        assert stitch.weight.shape == ((3, 3, width) if channels else (3, 3))
        torch.testing.assert_close(
            stitch.weight.detach(),
            expected[..., None].expand(3, 3, width) if channels else expected,
        )


def test_cross_stitch_takes_over_single_task_runs():
    """With own tables and stitches that are the identity it is single-task, parameter by parameter."""
    schema = toy_schema(3, KINDS)
    alone = build("single-task", schema, 1, bottom=(7, 5))
    stitched = build("cross-stitch", schema, 2, bottom=(7, 5), own=1.0, tables="own")
    missing, unexpected = stitched.load_state_dict(alone.state_dict(), strict=False)
    assert unexpected == []
    assert missing == ["stitches.0.weight", "stitches.1.weight"]
    batch = toy_batch(schema, ROWS)
    for one, other in zip(alone(batch).predictions, stitched(batch).predictions, strict=True):
        torch.testing.assert_close(one.logits, other.logits)


def test_the_last_stitches_belong_to_one_task_each():
    schema = toy_schema(3)
    model, batch = deep("cross-stitch", schema, bottom=(7, 5)), toy_batch(schema, ROWS)
    for t in range(3):
        slices = slices_of(model, t, batch)
        assert slices["stitches.1.weight"] == {t}
        assert slices["stitches.0.weight"] == slices["bottom.linears.0.weight"] == {0, 1, 2}
    assert SharedParameters(model, batch).last.name == "bottom.linears.1.weight"
    assert (
        SharedParameters(deep("cross-stitch", schema, channels=True), batch).last.name
        == "bottom.linears.0.weight"
    )


def test_stitches_have_their_own_learning_rate():
    model = build("cross-stitch", toy_schema(2), stitch_lr=7.0, bottom=(5, 4))
    settings = TrainingSettings(lr=0.1, embedding_lr=0.3, l2_dense=0.01)
    groups = Optimizers(model, settings, model.learning_rates()).param_groups
    rates = {
        id(value): (group["lr"], group["peak"], group["weight_decay"])
        for group in groups
        for value in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    for name, value in model.named_parameters():
        expected = (
            0.7 if name.startswith("stitches.") else 0.3 if name.startswith("embedding.") else 0.1
        )
        assert rates[id(value)] == pytest.approx(
            (expected, expected, 0 if name.startswith("embedding.") else 0.01)
        )


# dbmtl


def test_a_child_trains_its_parents_and_not_the_other_way_round():
    schema = toy_schema(3)
    model, batch = (
        deep("dbmtl", schema, parents={"t1": ("t3",), "t3": ("t2",)}),
        toy_batch(schema, ROWS),
    )
    for t, reached in enumerate(({0, 1, 2}, {1}, {1, 2})):
        slices = slices_of(model, t, batch)
        for module in ("towers", "relations"):
            assert {k for k in range(3) if slices[f"{module}.{k}.linears.0.weight"]} == reached
        assert {k for k in range(3) if slices[f"heads.{k}.weight"]} == {
            t
        }  # hidden vectors are passed, not logits


def test_parents_are_a_chain_by_default_along_the_funnel():
    schema = toy_schema(3)
    assert build("dbmtl", schema).parents == [[], [0], [1]]
    assert build("dbmtl", schema.model_copy(update={"funnel": ("t3", "t1")})).parents == [
        [2],
        [],
        [],
    ]
    assert build("dbmtl", schema, parents={"t2": ()}).parents == [[], [], []]


@pytest.mark.parametrize(
    "text", ["dbmtl[parents.t1=t3:t2,parents.t2=none]", "dbmtl[parents.t1=t3:t2]"]
)
def test_parents_are_written_in_brackets(text):
    kind = load("dbmtl")
    options = validate(kind.Options, parse_spec(text).options, "model dbmtl")
    assert options.parents["t1"] == ("t3", "t2")
    assert kind(toy_schema(3), options).parents == [[2, 1], [], []]


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"t1": ("t2",), "t2": ("t1",)}, "circle: t[12] -> t[12] -> t[12]"),
        ({"t1": ("t1",)}, "circle: t1 -> t1"),
        ({"t1": ("t2",), "t2": ("t3",), "t3": ("t1",)}, "circle"),
        ({"t1": ("click",)}, "'click', which the data set does not have"),
        ({"click": ("t1",)}, "'click', which the data set does not have"),
    ],
)
def test_parents_that_make_no_sense(parents, message):
    kind, schema = load("dbmtl"), toy_schema(3)
    with pytest.raises(UsageError, match=message):
        kind.check(schema, kind.Options(parents=parents))
    with pytest.raises(UsageError, match=message):
        kind(schema, kind.Options(parents=parents))


# pepnet


def test_gates_of_pepnet_train_the_embeddings_with_a_role_only():
    schema = toy_schema(2, ids=4)
    model, batch = deep("pepnet", schema), toy_batch(schema, ROWS)
    caught = {}
    model.epnet.register_forward_hook(lambda module, inputs, output: caught.update(domain=output))
    model.ppnet[0][1].register_forward_hook(
        lambda module, inputs, output: caught.update(prior=output)
    )
    model(batch)
    ends = torch.tensor([f.vocab for f in schema.of_kind("id")]).cumsum(0).tolist()
    for gate, features in (("domain", {2}), ("prior", {0, 1})):
        (grad,) = torch.autograd.grad(
            caught[gate].sum(), [model.embedding.width_8], retain_graph=True
        )
        moved_features = [grad[a:b].abs().max() > 0 for a, b in zip([0, *ends], ends, strict=False)]
        assert {k for k, moved in enumerate(moved_features) if moved} == features


def test_pepnet_with_gates_of_one_is_its_towers():
    schema = toy_schema(3, KINDS)
    model, batch = deep("pepnet", schema), toy_batch(schema, ROWS)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".spread." in name:
                value.zero_()  # 2 * sigmoid(0) = 1
    logits = model.towers(model.embedding(batch).tensor()[:, None].expand(-1, 3, -1))
    for prediction, expected in zip(model(batch).predictions, logits, strict=True):
        torch.testing.assert_close(prediction.logits, expected)


def test_gates_of_pepnet_see_what_they_do_not_train():
    schema = toy_schema(2, ids=4)
    model, batch = deep("pepnet", schema), toy_batch(schema, ROWS)
    caught = []
    model.epnet.register_forward_hook(lambda module, inputs, output: caught.append(output))
    model(batch)
    with torch.no_grad():
        model.embedding.width_8[-5:] += 1  # the last ids of the feature without a role
    model(batch)
    assert not torch.allclose(*caught)


def test_pepnet_needs_roles():
    schema = toy_schema(2)
    assert load("pepnet").inapplicable(schema) is None
    for index, role in enumerate(("user", "item", "domain")):
        features = list(schema.features)
        features[index] = Feature(name=features[index].name, vocab=features[index].vocab)
        reason = load("pepnet").inapplicable(
            schema.model_copy(update={"features": tuple(features)})
        )
        assert reason.startswith(f"has no feature with the role {role} (")


@pytest.mark.parametrize("kind", ["bag", "dense"])
def test_roles_may_be_played_by_any_kind_of_feature(kind):
    schema = toy_schema(2, ids=3, bags=1)
    features = [
        f.model_copy(
            update={"role": "domain" if f.kind == kind else None if f.role == "domain" else f.role}
        )
        for f in schema.features
    ]
    schema = schema.model_copy(update={"features": tuple(features)})
    model, batch = build("pepnet", schema), toy_batch(schema, ROWS)
    x = model.embedding(batch).tensor()
    expected = x[:, 24:32] if kind == "bag" else x[:, 32:]
    assert torch.equal(x[:, model.domain], expected)


# adatt


def test_adatt_of_single_experts_takes_its_own_once_more():
    schema = toy_schema(2)
    model, batch = deep("adatt", schema, specific=1, levels=1), toy_batch(schema, ROWS)
    outputs = model.experts[0](model.embedding(batch))
    with torch.no_grad():
        model.gates[0].linear.weight.zero_()
    logits = model.towers(outputs.mean(1, keepdim=True) + outputs)
    for prediction, expected in zip(model(batch).predictions, logits, strict=True):
        torch.testing.assert_close(prediction.logits, expected)


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_task_of_adatt_fuses_all_experts_of_all_levels(levels, shared):
    schema = toy_schema(3)
    model, batch = deep("adatt", schema, levels=levels, shared=shared), toy_batch(schema, ROWS)
    for t in range(3):
        slices = slices_of(model, t, batch)
        for level in range(levels):
            assert slices[f"experts.{level}.linears.0.weight"] == set(range(6 + shared))
            last = level == levels - 1
            assert slices[f"direct.{level}.weight"] == ({t} if last else {0, 1, 2})
            assert slices[f"gates.{level}.linear.weight"] == ({t} if last else {0, 1, 2})
    assert len(model.shared_gates) == (levels - 1 if shared else 0)


# home


def test_task_experts_of_home_stay_within_their_group():
    schema = toy_schema(3)
    model, batch = deep("home", schema, groups=GROUPS, specific=2), toy_batch(schema, ROWS)
    paths = {0: {0, 3, 5}, 1: {1, 4, 5}, 2: {2, 3, 5}}  # own, the group's, shared
    for t in range(3):
        slices = slices_of(model, t, batch)
        assert slices["experts.linears.0.weight"] == {
            2 * path + k for path in paths[t] for k in range(2)
        }
        assert slices["gates.linear.weight"] == slices["self_gates.linear.weight"] == {t}
        group = (0, 1, 0)[t]
        assert slices["meta_gates.linear.weight"] == {group}
        assert slices["meta_self.linear.weight"] == {group, 2}
        assert slices["meta_experts.linears.0.weight"] == set(range(6))  # others by the shared path


def test_gates_of_home_name_their_experts():
    model = build("home", toy_schema(3), groups=GROUPS, meta=1, specific=1)
    assert model.gate_experts == {
        "level-1/a": ("a 1", "shared 1"),
        "level-1/b": ("b 1", "shared 1"),
        "level-1/shared": ("a 1", "b 1", "shared 1"),
        "level-2/t1": ("t1 1", "group a 1", "shared 1"),
        "level-2/t2": ("t2 1", "group b 1", "shared 1"),
        "level-2/t3": ("t3 1", "group a 1", "shared 1"),
    }


@pytest.mark.parametrize(
    "groups", [{"t1": "a"}, {"t1": "a", "t2": "b", "t9": "b"}, {"t1": "a", "t2": "shared"}]
)
def test_groups_that_make_no_sense(groups):
    kind = load("home")
    with pytest.raises(UsageError, match="group"):
        kind.check(toy_schema(2), kind.Options(groups=groups))


def test_experts_of_home_are_normalised_and_swish():
    schema = toy_schema(2)
    model, batch = build("home", schema), toy_batch(schema, 500)
    out = model.meta_level.expert_outputs(model.meta_features(model.embedding(batch).tensor()))
    before = torch.linspace(-3, 3, 601)
    assert (
        out.min() >= torch.nn.functional.silu(before).min() - 1e-4
    )  # swish has a least value, and lets negatives pass
    assert (out < 0).float().mean() > 0.2
    spread = out.std(0)
    assert spread.min() > 0.3  # no expert is dead or drowned
    assert spread.max() / spread.min() < 3


# snr


def test_connections_are_hard_concrete_variables():
    model = build("snr", toy_schema(2), subnets=3, start=0.5)
    routing = model.routings[0]
    draws = torch.stack([routing.connections() for _ in range(4000)]).detach()
    assert draws.min() == 0
    assert draws.max() == 1
    opened = (draws > 0).float().mean()
    expected = torch.sigmoid(torch.tensor(0.5) - BETA * torch.log(torch.tensor(-GAMMA / ZETA)))
    assert float(opened) == pytest.approx(float(expected), abs=0.01)
    assert float((draws == 1).float().mean()) == pytest.approx(
        float(
            torch.sigmoid(
                torch.tensor(0.5) - BETA * torch.log(torch.tensor((1 - GAMMA) / (ZETA - 1)))
            )
        ),
        abs=0.01,
    )
    estimate = model.eval().routings[0].connections()
    assert torch.equal(estimate, routing.connections())
    torch.testing.assert_close(estimate.detach(), torch.full((3, 3), 0.5).sigmoid() * 1.2 - 0.1)


def test_a_closed_connection_passes_nothing_on():
    schema = toy_schema(2)
    model, batch = deep("snr", schema, subnets=2, levels=2, l0=0).eval(), toy_batch(schema, ROWS)
    with torch.no_grad():
        for routing in model.routings:
            routing.log_alpha.copy_(
                torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
            )  # two towers of their own
    for t in range(2):
        slices = slices_of(model, t, batch)
        assert slices["subnets.0.linears.0.weight"] == slices["subnets.1.linears.0.weight"] == {t}


def test_open_connections_have_a_price():
    schema = toy_schema(2)
    batch = toy_batch(schema, ROWS)
    free, priced = deep("snr", schema, l0=0).eval(), deep("snr", schema, l0=0.01).eval()
    shift = BETA * torch.log(torch.tensor(-GAMMA / ZETA))
    inner, last = ((routing.log_alpha - shift).sigmoid() for routing in priced.routings)
    for t, (one, other) in enumerate(
        zip(task_losses(free, batch), task_losses(priced, batch), strict=True)
    ):
        torch.testing.assert_close(
            other - one, 0.01 * (inner.sum() / 2 + last[t].sum()), rtol=1e-3, atol=1e-6
        )
        slices = slices_of(priced, t, batch)
        assert slices["routings.1.log_alpha"] == {t}


def test_a_task_without_a_label_pays_nothing():
    schema = toy_schema(2)
    model, batch = deep("snr", schema, l0=0.01), toy_batch(schema, ROWS, missing=0.1)
    batch.observed[:, 1] = False
    losses = task_losses(model, batch)
    assert losses[0] > 0
    assert losses[1] == 0


def test_only_trans_has_matrices():
    schema = toy_schema(3)
    trans, aver = (build("snr", schema, connection=kind, hidden=(5,)) for kind in ("trans", "aver"))
    assert [tuple(routing.weight.shape) for routing in trans.routings] == [
        (4, 5, 4, 5),
        (3, 5, 4, 5),
    ]
    assert [name for name, _ in aver.routings.named_parameters()] == ["0.log_alpha", "1.log_alpha"]


# task-router, task-embedding


def test_the_router_is_shared_and_its_last_layer_is_not():
    schema = toy_schema(3)
    model, batch = deep("task-router", schema), toy_batch(schema, ROWS)
    for t in range(3):
        slices = slices_of(model, t, batch)
        assert slices["router.linears.0.weight"] == {0}
        assert slices["routes.weight"] == slices["routes.bias"] == {t}


def test_mixtures_of_task_embeddings_are_the_same_for_all_rows():
    schema = toy_schema(3)
    model, batch = deep("task-embedding", schema), toy_batch(schema, ROWS)
    gates = model(batch).gates
    for weights in gates.values():
        assert torch.equal(weights, weights[:1].expand_as(weights))
    assert not torch.allclose(gates["level-1/t1"], gates["level-1/t2"])
    for t in range(3):
        assert slices_of(model, t, batch)["attention.tasks"] == {t}


def test_tasks_with_one_embedding_have_one_mixture():
    schema = toy_schema(2)
    model, batch = deep("task-embedding", schema), toy_batch(schema, ROWS)
    with torch.no_grad():
        model.attention.tasks[1] = model.attention.tasks[0]
    gates = model(batch).gates
    assert torch.equal(gates["level-1/t1"], gates["level-1/t2"])
