"""Whole runs on a GPU: steps, evaluation, probes, scores; every model and every balancer."""

import pytest

from mtlkit.registry import BALANCERS, MODELS
from tests.gpu.test_steps import _schema_for, build

SIZES = {"experts": 2, "hidden": 4, "bottom": 4, "tower": 3, "embedding": 2}
PAIRS = [(model, "uniform") for model in MODELS.names()]
PAIRS += [("mmoe", balancer) for balancer in BALANCERS.names()]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "balancer"), PAIRS)
def test_a_whole_run_stays_on_its_device(model, balancer, gpu):
    options = MODELS.load(model).Options.model_fields
    chosen = ",".join(f"{name}={size}" for name, size in SIZES.items() if name in options)
    trainer = build(f"{model}[{chosen}]", balancer, gpu, _schema_for(model))
    result = trainer.fit()
    assert trainer.steps == trainer.total_steps
    assert result.metrics["test"].keys() >= set(trainer.tasks)
