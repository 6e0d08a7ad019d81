import math

import numpy as np
import pytest
import torch

from mtlkit.registry import MODELS
from tests.toy import toy_dataset, toy_schema

MMOE = "mmoe[experts=4,hidden=5,tower=4,dropout=.3,norm=batch]"
PLE = "ple[specific=2,shared=1,hidden=5,tower=4]"


@pytest.fixture(scope="module")
def data():
    return toy_dataset(toy_schema(tasks=3, kinds=("binary", "regression")), rows=320)


@pytest.fixture(scope="module")
def fitted(trainer, data):
    """Model to the finished run and its trainer, probes recorded."""
    done = {}
    for model in ("shared-bottom[bottom=6,tower=4]", MMOE, PLE, "single-task[bottom=6,tower=4]"):
        run = trainer(data, model, "static[w=1:2:3]", probes=True, evaluations=5)
        done[model.partition("[")[0]] = run.fit(), run
    return done


@pytest.mark.parametrize("model", ["shared-bottom", "mmoe", "ple"])
def test_keys_and_shapes(fitted, model):
    result, run = fitted[model]
    probes = result.probes
    parts = probes["parts"].tolist()
    assert parts[:2] == ["shared", "embedding"]
    assert set(parts[2:]) <= {name for name, _ in run.model.named_children()}
    assert len(parts) == len(set(parts)) >= 3
    assert "towers" not in parts, "towers are nobody else's"
    assert probes["tasks"].tolist() == ["t1", "t2", "t3"]
    assert probes["gradient_cosine"].shape == (5, len(parts), 3, 3)
    assert probes["gradient_norm"].shape == (5, len(parts), 3)
    assert probes["weights"].shape == (5, 3)
    assert probes["steps"].tolist() == [entry["step"] for entry in result.curve]
    np.testing.assert_allclose(probes["epochs"], [entry["epoch"] for entry in result.curve])
    gates = {
        f"gate/{gate}/{what}"
        for gate in run.model.gate_experts
        for what in ("mean", "entropy", "experts")
    }
    rest = {"parts", "tasks", "gradient_cosine", "gradient_norm", "weights", "steps", "epochs"}
    assert set(probes) == gates | rest
    assert all(value.dtype.kind in "fU" for value in probes.values()), "no pickle"


@pytest.mark.parametrize(("model", "gates"), [("mmoe", 3), ("ple", 7)])
def test_gates(fitted, model, gates):
    result, run = fitted[model]
    assert len(run.model.gate_experts) == gates
    for gate, experts in run.model.gate_experts.items():
        mean, entropy = result.probes[f"gate/{gate}/mean"], result.probes[f"gate/{gate}/entropy"]
        assert result.probes[f"gate/{gate}/experts"].tolist() == list(experts)
        assert mean.shape == (5, len(experts))
        np.testing.assert_allclose(mean.sum(1), 1, atol=1e-5)
        assert (mean > 0).all()
        assert (entropy > 0).all()
        assert (entropy <= math.log(len(experts)) + 1e-5).all()
        assert (entropy <= -(mean * np.log(mean)).sum(1) + 1e-5).all(), "entropy is concave"


@pytest.mark.parametrize("model", ["shared-bottom", "mmoe", "ple"])
def test_cosines(fitted, model):
    cosine = fitted[model][0].probes["gradient_cosine"]
    assert np.isfinite(cosine).all()
    assert (np.abs(cosine) <= 1).all()
    np.testing.assert_allclose(cosine, cosine.swapaxes(2, 3))
    np.testing.assert_allclose(np.diagonal(cosine, axis1=2, axis2=3), 1, atol=1e-6)
    assert (
        np.abs(cosine[:, 0][:, np.triu_indices(3, 1)[0], np.triu_indices(3, 1)[1]]) < 0.999
    ).all()
    norms = fitted[model][0].probes["gradient_norm"]
    np.testing.assert_allclose(norms[:, 0] ** 2, (norms[:, 1:] ** 2).sum(1), rtol=1e-4)


def test_cosines_and_norms_by_hand(trainer, data):
    """After a run of one evaluation point, the model is the one that was probed."""
    run = trainer(data, "shared-bottom[bottom=6,tower=4]", probes=True, evaluations=1)
    probes = run.fit().probes
    run.model.eval()
    batch = run.probe_batch
    losses = [objective.loss for objective in run.model.objectives(run.model(batch), batch)]
    groups = {
        "embedding": list(run.model.embedding.parameters()),
        "bottom": list(run.model.bottom.parameters()),
    }
    groups["shared"] = groups["embedding"] + groups["bottom"]
    for position, module in enumerate(probes["parts"]):
        rows = [torch.autograd.grad(loss, groups[module], retain_graph=True) for loss in losses]
        flat = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows]).double()
        np.testing.assert_allclose(
            probes["gradient_norm"][0, position], flat.norm(dim=1), rtol=1e-5
        )
        unit = flat / flat.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(probes["gradient_cosine"][0, position], unit @ unit.T, atol=1e-5)


def test_only_shared_experts_count(trainer, data):
    """PLE's own experts are reached by one task and are no part of the norms."""
    run = trainer(data, "cgc[specific=2,shared=1,hidden=5,tower=4]", probes=True, evaluations=1)
    probes = run.fit().probes
    run.model.eval()
    batch = run.probe_batch
    weight = run.model.experts[0].linears[0].weight
    bias = run.model.experts[0].linears[0].bias
    for t, objective in enumerate(run.model.objectives(run.model(batch), batch)):
        grads = torch.autograd.grad(objective.loss, [weight, bias], retain_graph=True)
        shared = torch.cat(
            [grad[-1].flatten() for grad in grads]
        )  # experts: own of t1, t2, t3, then the shared one
        position = probes["parts"].tolist().index("experts")
        np.testing.assert_allclose(
            probes["gradient_norm"][0, position, t], shared.norm(), rtol=1e-5
        )


def test_task_weights_are_those_in_effect(fitted, trainer, data):
    np.testing.assert_allclose(
        fitted["mmoe"][0].probes["weights"], np.tile([0.5, 1.0, 1.5], (5, 1)), rtol=1e-6
    )

    def rising(step):
        return torch.tensor([1.0, step.index, 0.0])

    weights = trainer(data, balancer=rising, probes=True, evaluations=5).fit().probes["weights"]
    np.testing.assert_allclose(weights, [[1, 0.5 + 2 * point, 0] for point in range(5)])


def test_weights_count_only_while_a_task_is_active(trainer):
    data = toy_dataset(toy_schema(tasks=2), rows=320)
    observed = data.splits["train"].observed
    observed[:, 1] = np.arange(320) < 8

    def weigh(step):
        return torch.tensor([1.0, 5.0]) * step.active

    run = trainer(data, balancer=weigh, probes=True, batch_size=8, evaluations=10)
    weights = run.fit().probes["weights"]
    assert set(weights[:, 0]) == {1.0}
    seen = weights[:, 1]
    assert set(seen[~np.isnan(seen)]) == {5.0}
    assert np.isnan(seen).any(), "some windows held no label of the task"


def test_single_task_has_no_shared_gradient(fitted):
    probes = fitted["single-task"][0].probes
    assert not {"gradient_cosine", "gradient_norm"} & set(probes)
    assert probes["parts"].tolist() == []
    np.testing.assert_array_equal(probes["weights"], 1)


@pytest.mark.parametrize(
    ("model", "balancer"),
    [(MMOE, "uniform"), (PLE, "pcgrad"), ("single-task[bottom=6,dropout=.3]", "uniform")],
)
def test_probes_do_not_change_training(trainer, data, model, balancer):
    assert MODELS.load(model.partition("[")[0])
    (one, first), (two, second) = (
        (run.fit(), run)
        for run in (trainer(data, model, balancer, probes=probes) for probes in (True, False))
    )
    assert one.metrics == two.metrics
    assert one.curve == two.curve
    states = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    assert two.probes == {}
    assert one.cost["backward_passes_per_step"] == two.cost["backward_passes_per_step"]


def test_the_probe_batch_holds_positives_of_a_rare_task(trainer):
    data = toy_dataset(toy_schema(tasks=2), rows=2000)
    labels = data.splits["train"].labels
    labels[:, 1] = 0
    labels[:90, 1] = 1
    batch = trainer(data).probe_batch
    assert int((batch.labels[:, 1] > 0).sum()) >= 64
    assert len(batch) < 700
