"""Experts that are silenced in a trained model."""

import numpy as np
import pytest
import torch

from mtlkit.registry import MODELS
from mtlkit.training.ablation import ablate
from tests.models.build import build, known
from tests.toy import toy_batch, toy_dataset, toy_schema

SCHEMA = toy_schema(tasks=3, bags=1)


def gated(name, **options):
    return build(name, SCHEMA, **known(name, {"experts": 3} | options)).eval()


GATED = [
    name
    for name in MODELS.names()
    if MODELS.load(name).inapplicable(SCHEMA) is None and gated(name).expert_names
]


def logits(model, batch):
    with torch.no_grad():
        output = model(batch)
    return torch.stack([prediction.logits for prediction in output.predictions], 1)


def test_the_mixtures_of_experts_are_covered():
    names = "mmoe omoe cgc ple stem adatt home dbmtl task-router task-embedding"
    assert set(names.split()) <= set(GATED)


@pytest.mark.parametrize("name", GATED)
def test_names_fit_the_gates(name):
    model = gated(name)
    for gate, experts in model.gate_experts.items():
        level = int(gate.partition("/")[0].removeprefix("level-")) - 1
        assert set(experts) <= set(model.expert_names[level]), gate


@pytest.mark.parametrize("name", GATED)
def test_a_silent_expert_is_one_whose_gate_is_shut(name):
    """Only tasks with a gate that weighs it can notice; each expert matters to some task."""
    model = gated(name, tower=())
    batch = toy_batch(SCHEMA, 40)
    whole = logits(model, batch)
    last = len(model.moe_layers)
    for layer in model.moe_layers:
        for k, expert in enumerate(layer.expert_names):
            with layer.ablate(k):
                moved = (logits(model, batch) != whole).any(0)
            assert moved.any(), (layer.level, expert)
            if layer.level == last and name != "dbmtl":  # whose tasks are related further up
                for t, task in enumerate(SCHEMA.task_names):
                    gate = f"level-{layer.level}/{task}"
                    if gate in model.gate_experts:
                        seen = expert in model.gate_experts[gate]
                        assert bool(moved[t]) == seen, (layer.level, expert, task)
    assert torch.equal(logits(model, batch), whole)


def test_the_change_is_that_of_the_metric(trainer):
    data = toy_dataset(toy_schema(tasks=2), rows=320)
    run = trainer(data, "mmoe[experts=3,hidden=5]", epochs=8, lr=0.02, ablation=True)
    result = run.fit()
    found = ablate(run.model, run.splits["validation"], 1000, "fp32")
    np.testing.assert_array_equal(result.probes["ablation/level-1"], found["ablation/level-1"])
    assert found["ablation/level-1"].shape == (3, 2)
    assert found["ablation/level-1/experts"].tolist() == ["expert 1", "expert 2", "expert 3"]
    assert found["ablation/level-1"].min() < -0.005, "some expert is good for something"
    assert not [hook for module in run.model.modules() for hook in module._forward_hooks]
    plain = trainer(data, "mmoe[experts=3,hidden=5]", probes=True).fit()
    assert "ablation/level-1" not in plain.probes


def test_a_model_without_experts_has_none(trainer):
    data = toy_dataset(toy_schema(tasks=2), rows=320)
    run = trainer(data, "shared-bottom")
    assert ablate(run.model, run.splits["validation"], 1000, "fp32") == {}
