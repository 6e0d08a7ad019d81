"""Starting from an earlier run's weights."""

import numpy as np
import pytest
import torch

from mtlkit.errors import UsageError
from mtlkit.registry import MODELS
from mtlkit.training.warm_start import WarmStart
from tests.toy import toy_dataset, toy_schema

TWO = toy_dataset(toy_schema(tasks=2), rows=320)
THREE = toy_dataset(toy_schema(tasks=3), rows=320)
SMALL = "[hidden=5,tower=4]"


def weights(run):
    return {name: value.detach().clone().numpy() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("model", MODELS.names())
def test_a_run_goes_on_from_all_its_weights(trainer, model):
    if MODELS.load(model).inapplicable(TWO.schema):
        pytest.skip("makes no sense on this data")
    first = trainer(TWO, model, epochs=1)
    result = first.fit()
    assert result.weights.keys() == first.model.state_dict().keys()
    second = trainer(TWO, model, seed=7, warm=WarmStart(result.weights, ("t1", "t2")))
    for name, value in second.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), result.weights[name], err_msg=name)
    assert not any("new beside" in text for text in second.warnings)


def test_weights_are_those_of_each_tasks_best_point(trainer):
    run = trainer(TWO, "single-task", epochs=2, evaluations=6)
    result = run.fit()
    states = {t: best.state for best in run.evaluator.bests for t in best.tasks}
    tables = result.weights["embedding.width_8"]  # (V, T, w)
    for t, state in states.items():
        np.testing.assert_array_equal(tables[:, t], state["embedding.width_8"][:, t].numpy())


@pytest.mark.parametrize(
    "model", ["mmoe[experts=6,hidden=5]", "ple[specific=2,shared=3,hidden=5]", "shared-bottom"]
)
def test_a_task_is_added(trainer, model):
    first = trainer(TWO, model)
    second = trainer(THREE, model, seed=5, warm=WarmStart(weights(first), ("t1", "t2")))
    fresh = trainer(THREE, model, seed=5)
    old, new, start = weights(first), weights(second), weights(fresh)
    for sliced in second.sharing.parameters:
        if sliced.name.startswith("shared_gates"):  # which see one expert more
            np.testing.assert_array_equal(new[sliced.name], start[sliced.name])
            continue
        if sliced.axis is None:
            np.testing.assert_array_equal(new[sliced.name], old[sliced.name], err_msg=sliced.name)
            continue
        sizes = {
            key: values[sliced.name].shape[sliced.axis]
            for key, values in (("old", old), ("new", new))
        }
        each = sizes["new"] - sizes["old"]  # layers of a task; those in common come last
        seen = [*range(2 * each), *range(3 * each, sizes["new"])]
        np.testing.assert_array_equal(
            new[sliced.name].take(seen, sliced.axis), old[sliced.name], err_msg=sliced.name
        )
        for s in range(2 * each, 3 * each):
            np.testing.assert_array_equal(
                new[sliced.name].take(s, sliced.axis), start[sliced.name].take(s, sliced.axis)
            )
    assert any("new beside the run" in text and "towers" in text for text in second.warnings)
    assert second.fit().metrics["test"]["t3"]


def test_tasks_are_matched_by_name(trainer):
    first = trainer(THREE, "mmoe[experts=6,hidden=5]")
    turned = THREE.select(["t3", "t1"])
    second = trainer(
        turned,
        "mmoe[experts=6,hidden=5]",
        seed=3,
        warm=WarmStart(weights(first), ("t1", "t2", "t3")),
    )
    for name in ("towers.heads.0.weight", "gates.linear.weight"):
        np.testing.assert_array_equal(weights(second)[name], weights(first)[name][[2, 0]])
    np.testing.assert_array_equal(
        weights(second)["experts.linears.0.weight"], weights(first)["experts.linears.0.weight"]
    )


def test_frozen_parts_stay(trainer):
    first = trainer(TWO, "mmoe[experts=3,hidden=5]")
    warm = WarmStart(weights(first), ("t1", "t2"), ("embedding.*", "experts.*"))
    run = trainer(
        TWO, "mmoe[experts=3,hidden=5]", "pcgrad", seed=2, epochs=2, l2_embedding=0.1, warm=warm
    )
    run.fit()
    for name, value in weights(run).items():
        same = np.array_equal(value, weights(first)[name])
        assert same == name.startswith(("embedding.", "experts.")), name


def test_what_does_not_fit_is_said(trainer):
    first = weights(trainer(TWO, "mmoe[experts=3,hidden=5]"))
    with pytest.raises(UsageError, match="No weight"):
        trainer(TWO, "single-task", warm=WarmStart({"other": np.zeros(3)}, ("t1", "t2")))
    with pytest.raises(UsageError, match="No parameter matches") as caught:
        trainer(TWO, "mmoe[experts=3,hidden=5]", warm=WarmStart(first, ("t1", "t2"), ("bottom.*",)))
    assert "experts.*" in caught.value.hint
    with pytest.raises(UsageError, match="nothing to train"):
        trainer(TWO, "mmoe[experts=3,hidden=5]", warm=WarmStart(first, ("t1", "t2"), ("*",)))
    run = trainer(
        TWO, "mmoe[experts=3,hidden=6]", warm=WarmStart(first, ("t1", "t2"))
    )  # another width of experts
    assert any("experts.linears.0.weight" in text for text in run.warnings)
    assert torch.equal(run.model.embedding.width_8, torch.from_numpy(first["embedding.width_8"]))
