"""Sharing is found by gradients; here it is compared with what naive twins say."""

import copy

import pytest
import torch

from mtlkit.models._types import Objective
from mtlkit.registry import MODELS
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.task_losses import owner_active, owner_losses
from tests.models.build import build, known, load
from tests.models.twins import FORWARD, Twin
from tests.toy import toy_batch, toy_schema
from tests.training.steps import Islands

KINDS = ("binary", "regression", "multiclass")
DEEP = {
    "hidden": (7, 5),
    "bottom": (9, 6),
    "specific": 2,
    "shared": 3,
    "experts": 3,
    "embedding": 3,
}


@pytest.fixture(params=MODELS.names())
def name(request):
    return request.param


def make(name, tasks=3, kinds=KINDS, **options):
    schema = toy_schema(tasks, kinds)
    return build(name, schema, **known(name, DEEP) | options), toy_batch(schema, 64)


def islands(tasks=3, **options):
    torch.manual_seed(0)
    schema = toy_schema(tasks)
    return Islands(schema, Islands.Options(**options)), toy_batch(schema, 64)


def table(sharing):
    """(parameter, slice) to the tasks that reach it."""
    return {
        (item.name, k): set(torch.nonzero(item.reached_by[:, k]).flatten().tolist())
        for item in sharing.parameters
        for k in range(item.reached_by.shape[1])
    }


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "options"), [*((n, {}) for n in FORWARD), ("ple", {"levels": 3})], ids=str
)
def test_is_that_of_an_unbatched_twin(name, options, tasks):
    model, batch = make(name, tasks, **options)
    twin = Twin(model, FORWARD[name])
    expected = {piece: set() for piece in twin.slices}
    for t, loss in enumerate(twin.losses(batch)):
        grads = torch.autograd.grad(loss, list(twin.values), retain_graph=True, allow_unused=True)
        for piece, grad in zip(twin.slices, grads, strict=True):
            if grad is not None:
                expected[piece].add(t)
    assert table(SharedParameters(model, batch)) == expected


@pytest.mark.parametrize("numbers", ["vector", "periodic"])
def test_every_stack_is_cut_along_its_axis(name, numbers):
    model, batch = make(name, norm="layer", numbers=numbers)
    axes = {
        f"{prefix}.{key}": axis
        for prefix, module in model.named_modules()
        for key, axis in getattr(module, "stack_axes", {}).items()
        if getattr(module, key, None) is not None
    }
    assert axes
    for item in SharedParameters(model, batch).parameters:
        assert item.axis == axes.pop(item.name, None)
        assert item.reached_by.shape == (
            3,
            1 if item.axis is None else item.parameter.shape[item.axis],
        )
        values = torch.arange(1.0, 1 + item.reached_by.shape[1])
        scaled = torch.ones_like(item.parameter) * item.expand(values)
        for k, value in enumerate(values):
            part = scaled if item.axis is None else scaled.select(item.axis, k)
            assert (part == value).all()
    assert not axes


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_layers_are_reached(name, width):
    """Two draws of random parameters used to leave some of them dead."""
    narrow = {"hidden": (8, width), "bottom": (8, width), "tower": (width,)}
    model, batch = make(name, **known(name, narrow))
    for seed in range(3):
        assert SharedParameters(model, batch, seed).unreached == []


def test_zero_initial_values_hide_nothing(name):
    model, batch = make(name)
    before = table(SharedParameters(model, batch))
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert table(SharedParameters(model, batch)) == before


def test_looking_leaves_no_trace(name):
    model, batch = make(name, norm="batch", dropout=0.5)
    model.train()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    SharedParameters(model, batch)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_scopes(name):
    model, batch = make(name)
    sharing = SharedParameters(model, batch)
    shared = [item.name for item in sharing.parameters if item.shared.any()]
    assert [item.name for item in sharing.scope("all")] == shared
    assert [item.name for item in sharing.scope("representation")] == shared
    dense = [key for key in shared if not key.startswith("embedding.")]
    assert [item.name for item in sharing.scope("dense")] == (dense or shared)
    assert bool(shared) == load(name).shares_parameters


def test_dense_scope_falls_back_on_the_embedding():
    model, batch = islands(groups=((0,), (1,), (2,)))
    assert [item.name for item in SharedParameters(model, batch).scope("dense")] == [
        "embedding.width_8"
    ]


LAST = {
    "shared-bottom": "bottom.linears.1.weight",
    "mmoe": "experts.linears.1.weight",
    "omoe": "experts.linears.1.weight",
    "cgc": "experts.0.linears.1.weight",
    "ple": "experts.1.linears.1.weight",
    "single-task": None,
    # what a calibrator or a product shares besides is no layer of the tasks' own
    "aitm": "bottom.linears.1.weight",
    "esmm": "embedding.width_4",
    "escm2": "embedding.width_4",
}


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("name", LAST)
def test_last_shared_weight(name, norm):
    """The output layer of the shared part: not its bias, which is a matrix in a stack, and not a
    norm.
    """
    model, batch = make(name, norm=norm)
    last = SharedParameters(model, batch).last
    assert (last and last.name) == LAST[name]


def test_last_shared_weight_is_a_weight_that_is_shared(name):
    model, batch = make(name)
    sharing = SharedParameters(model, batch)
    if not load(name).shares_parameters:
        assert sharing.last is None
        return
    last = sharing.last
    assert last.name.endswith("weight") or last.is_embedding
    assert last.any_shared

    # what comes later is shared by products and calibrators alone: own predictions do not reach it
    names = [sliced.name for sliced in sharing.parameters]
    reached = {key: set() for key in names[names.index(last.name) + 1 :] if key.endswith("weight")}
    for t, logits in enumerate(model.own_logits(model(batch))):
        grads = torch.autograd.grad(
            logits.sum(), [model.get_parameter(key) for key in reached], allow_unused=True,
            retain_graph=True,
        )  # fmt: skip
        for key, grad in zip(reached, grads, strict=True):
            axis = sharing.routes.by_name[key].axis
            if grad is None:
                continue
            slices = [grad] if axis is None else grad.unbind(axis)
            reached[key] |= {(t, s) for s, part in enumerate(slices) if part.any()}
    for key, pairs in reached.items():
        slices = [s for _, s in pairs]
        assert len(slices) == len(set(slices)), key


@pytest.mark.parametrize("levels", [1, 2])
def test_only_shared_experts_count_in_the_last_level_of_ple(levels):
    """Below the last level, task 1's experts reach task 2 by the shared path, which the last
    level does not have.
    """
    model, batch = make("ple", levels=levels)
    sharing = SharedParameters(model, batch)
    assert torch.equal(sharing.last.shared, model.levels[-1].expert_paths == 3)
    assert sharing.last.name.startswith(f"experts.{levels - 1}.")
    first = next(item for item in sharing.parameters if item.name == "experts.0.linears.0.weight")
    assert first.all_shared == (levels == 2)


def test_components(name):
    model, batch = make(name)
    whole = [[0, 1, 2]]
    assert SharedParameters(model, batch).components() == (
        whole if load(name).shares_parameters else [[0], [1], [2]]
    )


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (((0, 1), (2,)), [[0, 1], [2]]),
        (((0, 2), (1, 3)), [[0, 2], [1, 3]]),
        (((3,), (1, 2, 0)), [[0, 1, 2], [3]]),
        (((0,), (1,), (2,), (3,)), [[0], [1], [2], [3]]),
    ],
)
def test_components_of_islands(groups, expected):
    tasks = sum(map(len, groups))
    model, batch = islands(tasks, groups=groups, apart=True)
    assert SharedParameters(model, batch).components() == expected
    model, batch = islands(tasks, groups=groups)
    assert SharedParameters(model, batch).components() == [
        list(range(tasks))
    ]  # through the embedding


def test_unreached_parameters_are_named():
    assert SharedParameters(*islands(unused=True)).unreached == ["unused.weight", "unused.bias"]
    assert SharedParameters(*islands()).unreached == []


def objective(loss, owner, active=None):
    return Objective(
        torch.tensor(loss, requires_grad=True),
        owner,
        None if active is None else torch.tensor(active),
    )


def test_objectives_are_summed_by_owner():
    made = [objective(1.0, "b"), objective(2.0, "a"), objective(4.0, "b")]
    losses = owner_losses(made, ("a", "b", "c"))
    assert [loss.item() for loss in losses] == [2, 5, 0]
    assert [loss.requires_grad for loss in losses] == [True, True, False]


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_broken_loss_stays_with_its_task(broken):
    losses = owner_losses([objective(broken, "a"), objective(1.0, "b")], ("a", "b"))
    assert losses[1].item() == 1


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([("a", None), ("b", None)], [True, True]),
        ([("a", None)], [True, False]),
        ([("a", True), ("b", False)], [True, False]),
        ([("a", False), ("a", True), ("b", False), ("b", False)], [True, False]),
        ([("a", False), ("a", None), ("b", True)], [True, True]),
    ],
)
def test_a_task_is_active_if_any_of_its_objectives_is(made, expected):
    objectives = [objective(1.0, owner, active) for owner, active in made]
    assert (
        owner_active(objectives, ("a", "b"), torch.ones(2, dtype=torch.bool)).tolist() == expected
    )
