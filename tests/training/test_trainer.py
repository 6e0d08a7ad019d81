import math
from itertools import chain, cycle

import numpy as np
import pytest
import torch

from mtlkit.balancers._step import SharedGradient
from mtlkit.errors import MtlkitError, UsageError
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.training.result import DivergedError
from tests.toy import toy_dataset, toy_schema
from tests.training.runs import difference, parameters, watch_steps

SMALL = {
    "embedding": "3",
    "tower": "4",
    "bottom": "6",
    "hidden": "5",
    "experts": "3",
    "specific": "2",
    "shared": "1",
    "levels": "2",
}


def small(model):
    """A model with small options, as many of them as it has."""
    fields = MODELS.load(model).Options.model_fields
    return f"{model}[{','.join(f'{key}={value}' for key, value in SMALL.items() if key in fields)}]"


def covering():
    """Data set, model and balancer: every model on both data sets, every balancer on the harder
    one.
    """
    models = [name for name in MODELS.names() if MODELS.load(name).shares_parameters]
    every = [("mixed", *pair) for pair in zip(cycle(models), BALANCERS.names(), strict=False)]
    every += [("mixed", model, "uniform") for model in models[len(every) :]]
    every += [("pair", *pair) for pair in zip(models, cycle(BALANCERS.names()), strict=False)]
    alone = [name for name in MODELS.names() if name not in models]
    return every + [(data, name, "uniform") for name in alone for data in ("pair", "mixed")]


@pytest.fixture(scope="module")
def pair_funnel():
    return toy_dataset(funnel_schema(2), rows=320)


@pytest.fixture(scope="module")
def mixed_funnel():
    return toy_dataset(funnel_schema(3), rows=320, missing=0.9)


def funnel_schema(steps):
    schema = toy_schema(tasks=steps)
    return schema.model_copy(update={"funnel": schema.task_names})


def numbers(tree):
    if isinstance(tree, dict):
        return list(chain.from_iterable(numbers(value) for value in tree.values()))
    return [] if tree is None or isinstance(tree, str) else [tree]


@pytest.mark.parametrize(("data", "model", "balancer"), covering())
def test_everything_trains(trainer, request, data, model, balancer):
    dataset = request.getfixturevalue(data)
    if MODELS.load(model).inapplicable(dataset.schema):
        dataset = request.getfixturevalue(f"{data}_funnel")
    run = trainer(
        dataset, small(model), balancer, batch_size=16, epochs=0.5, evaluations=3, probes=True
    )
    steps = watch_steps(run)
    before = parameters(run)
    result = run.fit()
    idle = any(not step.active.all() for step in steps)
    assert idle == (data == "mixed"), "batches without a label of some task"
    assert result.cost["steps"] == 10
    assert difference(before, parameters(run)) > 1e-4
    assert all(
        math.isfinite(value)
        for value in numbers({str(i): entry for i, entry in enumerate(result.curve)})
    )
    assert set(result.metrics) == {"validation", "test"}
    for metrics in result.metrics.values():
        assert list(metrics) == [score.name for score in run.schema.scores() if not score.hidden]
        assert all(math.isfinite(value) for value in numbers(metrics))
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


@pytest.mark.parametrize("balancer", ["uniform", "pcgrad"])
def test_a_seed_decides_every_bit(trainer, mixed, balancer):
    def fit(seed):
        run = trainer(
            mixed,
            "mmoe[experts=3,hidden=5,dropout=.3,norm=batch]",
            balancer,
            seed=seed,
            probes=True,
        )
        return run.fit(), run

    (one, first), (two, second), (other, _) = fit(3), fit(3), fit(4)
    assert one.curve == two.curve
    assert one.metrics == two.metrics
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(r.model.state_dict().values() for r in (first, second)), strict=True)
    )
    assert one.probes.keys() == two.probes.keys()
    for key, value in one.probes.items():
        np.testing.assert_array_equal(value, two.probes[key])
    assert one.metrics != other.metrics


def test_training_learns(trainer, pair):
    result = trainer(pair, epochs=12, lr=0.02).fit()
    assert min(result.metrics["test"][task]["auc"] for task in ("t1", "t2")) > 0.8


SGD = {"optimizer": "sgd", "lr": 0.5, "schedule": "constant"}


def one_step(trainer, data, batch_size=64, **settings):
    """The change of the parameters in one optimiser step."""
    accumulate = settings.get("accumulate", 1)
    share = batch_size * accumulate / len(data.splits["train"])
    run = trainer(data, batch_size=batch_size, epochs=share, **(SGD | settings))
    before = parameters(run)
    assert run.fit().cost["steps"] == 1
    after = parameters(run)
    return {name: after[name] - before[name] for name in before}


def length(change):
    return float(torch.cat([value.flatten() for value in change.values()]).norm())


def test_clipping_bounds_the_whole_gradient(trainer, pair):
    free = one_step(trainer, pair)
    clipped = one_step(trainer, pair, clip_norm=0.01)
    loose = one_step(trainer, pair, clip_norm=1e3)
    assert length(free) > 0.02
    assert length(clipped) == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert difference(free, loose) == 0
    factor = length(clipped) / length(free)
    assert difference({k: v * factor for k, v in free.items()}, clipped) < 1e-6


@pytest.mark.parametrize(
    "balancer", ["uniform", "static[w=1:3]", lambda step: (step.gramian(), step.active.float())[1]]
)
@pytest.mark.parametrize("heads", ["weighted", "plain"])
def test_accumulated_batches_equal_one_large_batch(trainer, pair, balancer, heads):
    large = one_step(trainer, pair, 64, balancer=balancer, heads=heads)
    for accumulate in (2, 4):
        parts = one_step(
            trainer, pair, 64 // accumulate, balancer=balancer, heads=heads, accumulate=accumulate
        )
        assert length(parts) > 0.02
        assert difference(large, parts) < 1e-6


def test_accumulation_over_a_whole_run(trainer, pair):
    def trained(**settings):
        run = trainer(pair, epochs=3, **(SGD | {"lr": 0.1} | settings))
        run.fit()
        return parameters(run)

    assert difference(trained(batch_size=64), trained(batch_size=32, accumulate=2)) < 1e-5
    assert difference(trained(batch_size=64), trained(batch_size=32)) > 1e-3


@pytest.mark.parametrize("scope", ["dense", "all", "representation"])
@pytest.mark.parametrize("model", ["mmoe", "cgc", "shared-bottom", "ple"])
def test_gradients_are_compared_in_bf16(trainer, mixed, model, scope):
    result = trainer(mixed, model, "mgda", epochs=1.0, precision="bf16", scope=scope).fit()
    assert all(value is not None for value in result.curve[-1]["train_loss"].values())


@pytest.mark.parametrize(
    "model",
    ["shared-bottom[bottom=8,tower=4]", "mmoe[experts=3,hidden=5]", "single-task[bottom=6]"],
)
def test_bf16(trainer, mixed, model):
    exact = trainer(mixed, model, evaluations=4).fit()
    run = trainer(mixed, model, evaluations=4, precision="bf16", probes=True)
    rough = run.fit()
    assert {value.dtype for value in run.model.parameters()} == {torch.float32}
    for one, two in zip(
        numbers(exact.curve[-1]["train_loss"]), numbers(rough.curve[-1]["train_loss"]), strict=True
    ):
        assert two == pytest.approx(one, rel=0.1)
        assert two != one, "bf16 is not at work"


def test_task_weights_scale_losses(trainer, pair):
    plain = one_step(trainer, pair)
    heavier = one_step(trainer, pair, task_weights={"t1": 3.0})
    for name, value in plain.items():
        if name.startswith("towers."):
            torch.testing.assert_close(heavier[name][0], 3 * value[0], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(heavier[name][1], value[1], atol=1e-6, rtol=1e-4)
    seen = []
    trainer(
        pair,
        balancer=lambda s: (seen.append(s.losses), s.active.float())[1],
        task_weights={"t2": 2.0},
    ).fit()
    bare = []
    trainer(pair, balancer=lambda s: (bare.append(s.losses), s.active.float())[1]).fit()
    torch.testing.assert_close(seen[0], bare[0] * torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "settings", [{"task_weights": {"t9": 1}}, {"select_weights": {"t9": 1}}, {"select": "t9"}]
)
def test_settings_name_tasks_that_exist(trainer, pair, settings):
    with pytest.raises(UsageError, match="no task 't9'") as caught:
        trainer(pair, **settings)
    assert caught.value.hint == "its tasks are t1, t2"


@pytest.mark.parametrize("scope", ["dense", "all", "representation"])
@pytest.mark.parametrize("heads", ["weighted", "plain"])
def test_scopes_and_heads_train(trainer, pair, scope, heads):
    result = trainer(
        pair, "mmoe[experts=3,hidden=5]", "mgda", scope=scope, heads=heads, epochs=2
    ).fit()
    assert all(math.isfinite(value) for value in numbers(result.metrics["test"]))


def test_a_run_that_diverges_is_an_error(trainer, pair):
    with pytest.raises(DivergedError, match=r"the loss of t1 and t2 is not finite") as caught:
        trainer(pair, optimizer="sgd", lr=1e30, schedule="constant").fit()
    assert 1 <= caught.value.step <= 3


def test_weights_that_are_nan(trainer, pair):
    with pytest.raises(MtlkitError, match="gave a task the weight nan"):
        trainer(pair, balancer=lambda step: step.losses * math.nan).fit()


def test_a_last_step_that_breaks_the_model_is_no_result(trainer, pair):
    """All training losses are finite; the model is not."""

    def late(step):
        factor = math.nan if step.index == step.total - 1 else 1.0
        return SharedGradient(step.jacobian().sum(0) * factor)

    with pytest.raises(DivergedError) as caught:
        trainer(pair, balancer=late).fit()
    assert caught.value.step == 10


def test_one_task_alone_may_break(trainer, pair):
    with pytest.raises(DivergedError, match="the loss of t2 is not finite"):
        trainer(
            pair, "single-task[bottom=6]", optimizer="sgd", lr=1e20, task_weights={"t1": 1e-25}
        ).fit()


class Watched:
    """Remembers the batches that a model is given."""

    def __init__(self, run):
        self.batches = []
        run.model.register_forward_pre_hook(lambda _, inputs: self.batches.append(inputs[0]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_after_gives_the_new_losses_on_the_same_batch(trainer, pair, accumulate):
    calls = []

    def famo(step):
        batch = watched.batches[-1]

        def callback(losses):
            with torch.no_grad():
                now = [o.loss for o in run.model.objectives(run.model(batch), batch)]
            calls.append((step.index, step.losses, losses, torch.stack(now)))
            assert watched.batches[-2] is batch, "asked about another batch"

        step.after_step(callback)
        return step.active.float()

    run = trainer(pair, balancer=famo, accumulate=accumulate, **SGD)
    watched = Watched(run)
    result = run.fit()
    assert len(calls) == accumulate * result.cost["steps"]
    for index, old, new, now in calls:
        torch.testing.assert_close(new, now)
        assert not torch.allclose(old, new, atol=1e-6), (
            f"step {index}: the optimiser had not stepped"
        )
    assert sum(float((new - old).sum()) for _, old, new, _ in calls) < 0, (
        "a step lowers the loss of its own batch"
    )


def test_after_does_not_disturb_training(trainer, pair):
    def asks(step):
        step.after_step(lambda losses: None)
        return step.active.float()

    runs = [
        trainer(pair, "mmoe[experts=3,hidden=5,dropout=.4,norm=batch]", b)
        for b in ("uniform", asks)
    ]
    one, two = (run.fit() for run in runs)
    assert one.metrics == two.metrics
    assert difference(*map(parameters, runs)) == 0


def test_a_fresh_batch_is_independent(trainer, pair):
    taken = []

    def asks(step):
        batch = watched.batches[-1]
        fresh = step.fresh_batch()
        taken.append((batch, watched.batches[-1], step, fresh))
        assert fresh.gramian().shape == (2, 2)
        return step.active.float()

    run = trainer(pair, balancer=asks)
    watched = Watched(run)
    run.fit()
    for batch, other, step, fresh in taken:
        assert other is not batch
        assert len(other) == len(batch) == 32
        assert not torch.equal(other.dense, batch.dense)
        assert not torch.equal(fresh.losses, step.losses)
    seen = torch.cat([other.dense for _, other, _, _ in taken])
    assert len(seen.unique(dim=0)) == 320, "its own stream passes over every row once"


def test_backward_passes_of_fresh_batches_count(trainer, pair):
    def asks(step):
        step.fresh_batch().gramian()
        return step.active.float()

    assert trainer(pair, balancer=asks).fit().cost["backward_passes_per_step"] == 3


def test_progress_of_the_run_is_visible(trainer, pair):
    seen = []
    trainer(
        pair,
        balancer=lambda s: (seen.append((s.index, s.total, s.seed)), s.active.float())[1],
        seed=5,
    ).fit()
    assert [index for index, _, _ in seen] == list(range(10))
    assert {total for _, total, _ in seen} == {10}
    assert len({seed for _, _, seed in seen}) == 1
