"""What a training step asks of a GPU: the same numbers as a CPU, no waits, few operations.

The table is exact: a change that adds a wait, a copy or an operation fails here, and says where it
was asked for.
"""

import pytest
import torch

from mtlkit.grid.build import make_balancer, make_model
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.running_means import RunningMeans
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.trainer import Trainer
from tests.gpu.pretended import COUNTS
from tests.toy import toy_dataset, toy_schema

STEPS = 3
"""Steps before those that are counted: state is made in the first ones."""

LOSSES_ALONE = (0, 0)
GRAM = (1, 1)
"""Waits and copies a step: of a balancer that needs no gradients, and of one whose weights are
computed on the host from a Gram matrix.
"""

WAITS_AND_COPIES = {
    "gradvac": (2, 2),  # the matrix of target cosines goes to the host and back, too
    "graddrop": (0, 1),  # as many random numbers as there are shared parameters
    "moco": (1, 1),
    "sdmgrad": (1, 1),
}
"""Those that are neither."""


def build(model, balancer, device, schema=None, **training):
    """A trainer on toy data, with its model where ``device`` is."""
    dataset = toy_dataset(schema or toy_schema(2), rows=160)
    settings = TrainingSettings(batch_size=32, epochs=1, lr=0.01, evaluations=1, **training)
    network = make_model(model, dataset, 0)
    method = None
    if network.shares_parameters:
        method = make_balancer(balancer, dataset, settings.scope)
    setup = TrainingSetup(settings, ExecutionSettings(), 0, device)
    return Trainer(network, method, dataset, setup)


def run_steps(trainer, first, count):
    """The mean losses of some steps."""
    window = RunningMeans(len(trainer.tasks), trainer.device)
    trainer.model.train()
    torch.manual_seed(0)
    for index in range(first, first + count):
        trainer._train_step(index, window)
    return window


def is_pretended(device):
    return torch.cuda.get_device_name(device) == "pretended"


def expected(balancer):
    kind = BALANCERS.load(balancer)
    return WAITS_AND_COPIES.get(balancer, GRAM if kind.needs == "gram" else LOSSES_ALONE)


@pytest.mark.parametrize("balancer", BALANCERS.names())
def test_no_step_waits_but_for_a_gram_matrix(balancer, gpu):
    trainer = build("mmoe[experts=2,hidden=4,tower=3,embedding=2]", balancer, gpu)
    run_steps(trainer, 0, STEPS)
    if not is_pretended(gpu):
        _run_without_waits(trainer, expected(balancer))
        return
    COUNTS.clear()
    run_steps(trainer, STEPS, 1)
    _, waits, copies = COUNTS.totals
    assert (waits, copies) == expected(balancer), (COUNTS.waits, COUNTS.copies)


def test_a_batch_of_bags_waits_once_for_their_number(gpu):
    """Of all bag features together: how many values a batch has is known on the device alone."""
    if not is_pretended(gpu):
        pytest.skip("waits are counted on the pretended device")
    trainer = build("mmoe[experts=2,hidden=4,tower=3]", "uniform", gpu, toy_schema(2, bags=3))
    run_steps(trainer, 0, STEPS)
    COUNTS.clear()
    run_steps(trainer, STEPS, 1)
    _, waits, copies = COUNTS.totals
    assert (waits, copies) == (1, 0), (COUNTS.waits, COUNTS.copies)


def _run_without_waits(trainer, waits_and_copies):
    """On a real GPU, PyTorch itself raises for a wait."""
    if waits_and_copies[0]:
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_steps(trainer, STEPS, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("model", MODELS.names())
def test_a_model_trains_on_a_gpu_as_on_a_cpu(model, gpu):
    """The plain forms of all operations, on tensors of one device, give what the kernels give."""
    sizes = {"experts": 2, "hidden": 4, "bottom": 4, "tower": 3, "embedding": 2}
    options = MODELS.load(model).Options.model_fields
    chosen = ",".join(f"{name}={size}" for name, size in sizes.items() if name in options)
    if model == "snr" and not is_pretended(gpu):
        pytest.skip("its gates are drawn at random, and a GPU draws other numbers")
    schema = _schema_for(model)
    weights = []
    for device in (gpu, torch.device("cpu")):
        # Adam makes a whole step of what is no gradient but rounding
        trainer = build(f"{model}[{chosen}]", "uniform", device, schema, optimizer="sgd")
        run_steps(trainer, 0, STEPS)
        state = trainer.model.state_dict()
        weights.append({name: value.cpu() for name, value in state.items()})
    on_gpu, on_cpu = weights
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], value, rtol=1e-3, atol=1e-5, msg=name)


def _schema_for(model):
    """Two tasks, as a funnel where the model needs one."""
    schema = toy_schema(2)
    if MODELS.load(model).inapplicable(schema):
        schema = schema.model_copy(update={"funnel": schema.task_names})
    if MODELS.load(model).inapplicable(schema):
        pytest.skip("the toy data lack what it needs")
    return schema
