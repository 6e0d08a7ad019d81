"""What a training step asks of a GPU: the same numbers as a CPU, no waits, few operations.

The table is exact: a change that adds a wait, a copy or an operation fails here, and says where it
was asked for.
"""

import pytest
import torch

from mtlkit.grid.build import make_balancer, make_model
from mtlkit.models import _tables
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.cuda_graph import StepGraph
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.trainer import Trainer
from tests.gpu.pretended import COUNTS
from tests.toy import toy_dataset, toy_schema

STEPS = 3
"""Steps before those that are counted: state is made in the first ones."""

PER_STEP = {
    "aligned": (86, 1, 1),
    "alternating": (70, 0, 0),
    "cagrad": (85, 1, 1),
    "config": (86, 1, 1),
    "db-mtl": (110, 0, 0),
    "dualproj": (85, 1, 1),
    "dwa": (70, 0, 0),
    "excessmtl": (112, 0, 0),
    "fairgrad": (85, 1, 1),
    "famo": (128, 0, 0),
    "gls": (67, 0, 0),
    "graddrop": (92, 0, 1),
    "gradnorm": (164, 0, 0),
    "gradvac": (85, 1, 1),
    "imtl": (124, 1, 1),
    "imtl-g": (86, 1, 1),
    "imtl-l": (86, 0, 0),
    "metabalance": (114, 0, 0),
    "mgda": (85, 1, 1),
    "moco": (124, 1, 1),
    "nash": (85, 1, 1),
    "pareto": (85, 1, 1),
    "pcgrad": (85, 1, 1),
    "rlw": (61, 0, 0),
    "scalarization": (55, 0, 0),
    "sdmgrad": (199, 1, 1),
    "static": (62, 0, 0),
    "stch": (59, 0, 0),
    "uniform": (55, 0, 0),
    "upgrad": (85, 1, 1),
    "uwl": (88, 0, 0),
}
"""Operations, waits and copies of a step of mmoe under each balancer.

One that needs the losses alone waits for nothing. One whose weights are computed on the host from a
Gram matrix waits once, and copies once; graddrop draws as many random numbers as there are shared
parameters. A number that falls is good news: write it down. One that rises costs every step of every
run.
"""


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
    """Some steps."""
    trainer.model.train()
    torch.manual_seed(0)
    for index in range(first, first + count):
        trainer._train_step(index, trainer.window)


def is_pretended(device):
    return torch.cuda.get_device_name(device) == "pretended"


@pytest.mark.parametrize("balancer", BALANCERS.names())
def test_a_step_asks_no_more_of_a_gpu_than_the_table_says(balancer, gpu):
    trainer = build("mmoe[experts=2,hidden=4,tower=3,embedding=2]", balancer, gpu)
    run_steps(trainer, 0, STEPS)
    if not is_pretended(gpu):
        _run_without_waits(trainer, PER_STEP[balancer][1])
        return
    COUNTS.clear()
    run_steps(trainer, STEPS, 1)
    assert COUNTS.totals == PER_STEP[balancer], COUNTS


@pytest.mark.parametrize(
    ("model", "balancer"),
    [("mmoe", "uniform"), ("mmoe", "pcgrad"), ("mmoe", "gradvac"), ("aitm", "pcgrad")],
)
def test_a_step_on_static_memory_asks_no_more(model, balancer, gpu):
    """What graphs would hold waits for nothing; between two of them, one copy goes each way."""
    if not is_pretended(gpu):
        pytest.skip("waits are counted on the pretended device")
    schema = toy_schema(3)
    schema = schema.model_copy(update={"funnel": schema.task_names})
    trainer = build(f"{model}[tower=3,embedding=2]", balancer, gpu, schema)
    graph = StepGraph(trainer, record=False)
    for index in range(STEPS + 1):
        COUNTS.clear()
        graph(trainer, index, trainer.window)
    _, waits, copies = COUNTS.totals
    assert waits == PER_STEP[balancer][1], COUNTS.waits
    # row numbers and learning rates are written as well
    assert copies <= PER_STEP[balancer][2] + 2, COUNTS.copies


@pytest.mark.parametrize("on_static_memory", [False, True])
def test_a_batch_of_bags_waits_for_nothing(on_static_memory, gpu):
    """How many ids it has is counted on the host, where its rows are drawn and sent from."""
    if not is_pretended(gpu):
        pytest.skip("waits are counted on the pretended device")
    weights = []
    for device in (gpu, torch.device("cpu")):
        schema = toy_schema(2, bags=3)
        trainer = build(
            "mmoe[experts=2,hidden=4,tower=3]", "uniform", device, schema, optimizer="sgd"
        )
        graph = StepGraph(trainer, record=False) if on_static_memory else Trainer._train_step
        for index in range(STEPS + 1):
            COUNTS.clear()
            graph(trainer, index, trainer.window)
            _, waits, copies = COUNTS.totals
        if device == gpu:  # row numbers are sent
            assert (waits, copies) == (0, 1), (COUNTS.waits, COUNTS.copies)
        state = trainer.model.state_dict()
        weights.append({name: value.cpu() for name, value in state.items()})
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("balancer", "settings"),
    [
        ("uniform", {}),
        ("uniform", {"l2_embedding": 0.1, "clip_norm": 0.1, "accumulate": 2}),
        ("uwl", {"optimizer": "adamw", "l2_embedding": 0.1}),
        ("pcgrad", {"scope": "all", "l2_embedding": 0.1}),
        ("uniform", {"optimizer": "sgd", "clip_norm": 0.1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["mmoe[experts=2,hidden=4]", "stem[specific=2,hidden=4]"])
def test_row_sparse_tables_wait_for_nothing_on_a_gpu(model, balancer, settings, gpu, monkeypatch):
    """How many rows of a table a batch holds is known on the device alone."""
    monkeypatch.setattr(_tables, "FOLD_VOCABULARY", 0)
    weights = []
    for device in (gpu, torch.device("cpu")):
        trainer = build(model, balancer, device, sparse_rows=1, **settings)
        assert trainer.optimizer.lazy is not None
        run_steps(trainer, 0, STEPS)
        COUNTS.clear()
        run_steps(trainer, STEPS, 1)
        if device == gpu and is_pretended(gpu) and trainer.settings.optimizer != "sgd":
            waits = int(balancer == "pcgrad")
            assert COUNTS.totals[1:] == (waits, waits), (COUNTS.waits, COUNTS.copies)
        state = trainer.model.state_dict()
        weights.append({name: value.cpu() for name, value in state.items()})
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-3, atol=1e-5, msg=name)


def _run_without_waits(trainer, waits):
    """On a real GPU, PyTorch itself raises for a wait."""
    if waits:
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


@pytest.mark.parametrize("numbers", ["piecewise", "periodic"])
def test_encoded_numbers_wait_for_nothing_on_a_gpu(numbers, gpu):
    model = f"mmoe[experts=2,hidden=4,tower=3,embedding=2,numbers={numbers}]"
    weights = []
    for device in (gpu, torch.device("cpu")):
        trainer = build(model, "uniform", device, optimizer="sgd")
        run_steps(trainer, 0, STEPS)
        COUNTS.clear()
        run_steps(trainer, STEPS, 1)
        if is_pretended(gpu):
            assert COUNTS.totals[1:] == (0, 0), (COUNTS.waits, COUNTS.copies)
        state = trainer.model.state_dict()
        weights.append({name: value.cpu() for name, value in state.items()})
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-3, atol=1e-5, msg=name)


def _schema_for(model):
    """Two tasks, as a funnel where the model needs one."""
    schema = toy_schema(2)
    if MODELS.load(model).inapplicable(schema):
        schema = schema.model_copy(update={"funnel": schema.task_names})
    if MODELS.load(model).inapplicable(schema):
        pytest.skip("the toy data lack what it needs")
    return schema
