"""A run over two or three processes ends where one process with the same batches does."""

import importlib.util
import multiprocessing
import os
from dataclasses import dataclass, field, replace
from multiprocessing.pool import Pool

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mtlkit.errors import UsageError
from mtlkit.grid.build import build_model
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training import batches
from mtlkit.training.parallel import ParallelTrainer
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.trainer import Trainer
from tests.toy import toy_dataset, toy_schema

SMALL = {
    "embedding": 3,
    "tower": (4,),
    "bottom": (6,),
    "hidden": (5,),
    "experts": 3,
    "specific": 2,
    "shared": 1,
    "levels": 2,
}
TRAINING = {"epochs": 2, "batch_size": 31, "evaluations": 3, "schedule": "constant"}


@dataclass(frozen=True)
class Case:
    """One run: a model under a balancer."""

    model: str = "mmoe"
    balancer: str = "uniform"
    data: str = "mixed"
    options: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    double: bool = True
    tolerance: float = 1e-9
    shard_rows: int | None = None


CASES = {
    f"{balancer} {precision}": Case(balancer=balancer, double=double, tolerance=tolerance)
    for balancer in ("uniform", "uwl", "pcgrad")
    for precision, double, tolerance in (("float32", False, 1e-5), ("float64", True, 1e-9))
}
CASES |= {
    # a balancer of each kind, and each thing that it may ask for
    "norms": Case(balancer="gradnorm"),
    "directions": Case("ple", "graddrop"),
    "fresh batches": Case("ple", "sdmgrad"),
    "losses after the step": Case(balancer="famo"),
    "signed weights": Case(balancer="imtl-g"),
    "representation": Case(balancer="mgda", settings={"scope": "representation"}),
    "representation without a boundary": Case(
        "aitm", "cagrad", "funnel", settings={"scope": "representation"}
    ),
    "tables": Case(balancer="pcgrad", settings={"scope": "all"}),
    # losses with denominators of their own
    "clicked rows": Case("aitm", "uwl", "funnel"),
    "corrected losses": Case("escm2", "pcgrad", "funnel"),
    "price of connections": Case("snr", "uniform", options={"l0": 0.1}),
    "row weights": Case(
        balancer="uwl",
        data="funnel",
        settings={"row_weights": {"t2": {"indicator": "t1", "inside": 3, "outside": 0.5}}},
    ),
    "row weights by train": Case(
        balancer="pcgrad",
        data="funnel",
        settings={"row_weights": {"t2": {"indicator": "t1", "inside": 3, "mean": "train"}}},
    ),
    # what a step does besides
    "plain heads": Case(balancer="pcgrad", settings={"heads": "plain"}),
    "accumulated and clipped": Case(settings={"accumulate": 2, "clip_norm": 0.1}),
    "rare tasks": Case(  # their weights are in single precision
        balancer="uwl", settings={"batches": "covering", "cover": 2}, tolerance=1e-7
    ),
    "row-sparse tables": Case(balancer="pcgrad", settings={"sparse_rows": 1, "l2_embedding": 0.01}),
    "task by task": Case(settings={"task_every": {"t2": 2}, "task_lr": {"t1": 0.5}}),
    "early stop": Case(settings={"patience": 1, "lr": 1.0, "epochs": 4, "evaluations": 8}),
}

LARGE = {"sparse_rows": 2, "l2_embedding": 0.01}
IN_SINGLE = {"data": "large", "double": False, "tolerance": 1e-5}  # TorchRec sends no other
SHARDED = {
    f"sharded {balancer}": Case(balancer=balancer, settings=LARGE, shard_rows=500, **IN_SINGLE)
    for balancer in ("uniform", "uwl", "pcgrad")
}
SHARDED |= {
    # passes of single tasks go through the tables, and a table has copies
    "sharded copies": Case("stem", "cagrad", settings=LARGE, shard_rows=500, **IN_SINGLE),
    "sharded adagrad": Case(
        settings=LARGE | {"optimizer": "adagrad", "accumulate": 2, "task_lr": {"t1": 0.5}},
        shard_rows=500,
        **IN_SINGLE,
    ),
    "sharded fresh batches": Case(
        "ple",
        "sdmgrad",
        settings=LARGE | {"optimizer": "sgd", "momentum": 0},
        shard_rows=500,
        **IN_SINGLE,
    ),
    "sharded losses after the step": Case(
        "home", "famo", options={"norm": "layer"}, settings=LARGE, shard_rows=500, **IN_SINGLE
    ),
    "none is large": Case(settings=LARGE, shard_rows=5000, **IN_SINGLE),
}
if importlib.util.find_spec("torchrec"):
    CASES |= SHARDED


def dataset(case):
    if case.data == "large":
        # most rows of the table are in no batch, and those of one process in few
        return toy_dataset(toy_schema(tasks=2, bags=1, vocab=300), rows=160, missing=0.3)
    if case.data == "mixed":
        kinds = ("binary", "regression", "multiclass")
        return toy_dataset(toy_schema(tasks=3, kinds=kinds, bags=1), rows=160, missing=0.7)
    if case.data == "sessions":
        data = toy_dataset(toy_schema(), rows=160)
        for split in data.splits.values():
            split.groups["session"] = np.arange(len(split), dtype=np.int32) // 8
        return data
    schema = toy_schema(tasks=3, bags=1)
    schema = schema.model_copy(update={"funnel": schema.task_names})
    return toy_dataset(schema, rows=160, missing=0.2)


def run(case, trainer_type):
    """What a run ends with: parameters, the curve, and the metrics of the best points."""
    from mtlkit.training.task_settings import with_task_settings

    dtype = torch.float64 if case.double else torch.float32
    keep = batches._tensor, torch.rand
    torch.set_default_dtype(dtype)
    batches._tensor = lambda array: _as_type(torch.from_numpy(np.array(array)), dtype)
    torch.rand = lambda *size, **rest: torch.full(*size, 0.4)  # the noise of snr
    try:
        settings = TrainingSettings(**(TRAINING | case.settings))
        data = with_task_settings(dataset(case), settings)
        model_class, balancer_class = MODELS.load(case.model), BALANCERS.load(case.balancer)
        fields = model_class.Options.model_fields
        options = {name: value for name, value in (SMALL | case.options).items() if name in fields}
        model = build_model(model_class, data.schema, model_class.Options(**options), 3)
        balancer = balancer_class(data.schema.tasks, balancer_class.Options())
        processes = dist.get_world_size() if dist.is_initialized() else 1
        execution = ExecutionSettings(
            eval_batch_size=50, processes=processes, shard_rows=case.shard_rows
        )
        setup = TrainingSetup(settings, execution, 3, torch.device("cpu"))
        trainer = trainer_type(model, balancer, data, setup)
        result = trainer.fit()
    finally:
        batches._tensor, torch.rand = keep
        torch.set_default_dtype(torch.float32)
    weights = {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}
    if dist.is_initialized() and case.shard_rows == 500:
        assert trainer.tables.names
        for name in trainer.tables.names:
            shards = [None] * processes
            dist.all_gather_object(shards, weights[name])
            weights[name] = np.concatenate(shards)
    return {
        "weights": weights,
        "parameters": result.cost["parameters"],
        "curve": result.curve,
        "metrics": result.metrics,
        "cosines": {name: value for name, value in result.probes.items() if "cosine" in name},
    }


def _as_type(value, dtype):
    return value.to(dtype) if value.is_floating_point() else value


# --- groups of processes, each of which runs all cases once


def join(numbers, processes, address):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=numbers.get(), world_size=processes)


class Group:
    """Processes that run one function at a time together."""

    def __init__(self, processes, folder):
        context = multiprocessing.get_context("spawn")
        numbers = context.Queue()
        for number in range(processes):
            numbers.put(number)
        self.processes = processes
        address = f"file://{folder}/group"
        # one pool a process, so that each gets one task of every round
        self.pools = [
            Pool(1, join, (numbers, processes, address), context=context) for _ in range(processes)
        ]

    def __call__(self, function, *arguments):
        waiting = [pool.apply_async(function, arguments) for pool in self.pools]
        return [found.get(120) for found in waiting]

    def close(self):
        for pool in self.pools:
            pool.terminate()


@pytest.fixture(scope="module", params=[2, 3])
def group(request, tmp_path_factory):
    made = Group(request.param, tmp_path_factory.mktemp("group"))
    yield made
    made.close()


def flat(value):
    """Numbers in nested mappings and lists, in one row."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [number for entry in value for number in flat(entry)]
    if isinstance(value, np.ndarray):
        return value.astype(float).ravel().tolist()
    return [] if value is None or isinstance(value, str) else [float(value)]


@pytest.mark.parametrize("name", CASES)
def test_equal_to_one_process(group, name):
    case = CASES[name]
    alone = run(case, Trainer)
    for together in group(run, case, ParallelTrainer):
        for part, expected in alone.items():
            np.testing.assert_allclose(
                flat(together[part]), flat(expected), rtol=0, atol=case.tolerance, err_msg=part
            )


LOSS_OVER_ROWS = '''"""A model whose loss is the largest one of a batch."""

from dataclasses import replace

from mtlkit.models.shared_bottom import SharedBottom


class Largest(SharedBottom):
    def objectives(self, output, batch):
        largest = output.predictions[0].logits.exp().max()
        return [replace(o, loss=largest) for o in super().objectives(output, batch)]
'''
WITHIN = {"loss": {"t1": ["bce", "pairwise"]}, "batches": "grouped"}
REFUSED = {
    "A batch of 1 rows has none": Case(settings={"batch_size": 1, "epochs": 0.1}),
    "The batch norm ": Case(options={"norm": "batch"}),
    "A loss compares the rows of a session": Case(data="sessions", settings=WITHIN),
    "The balancer asks for the representation": Case(
        "ple", "graddrop", settings={"scope": "representation"}
    ),
    "The balancer compares gradients of the rows of embedding.": Case(
        balancer="pcgrad", settings={"scope": "all", "sparse_rows": 1}
    ),
    "A loss of the model is no mean over the rows": Case("largest.py", data="funnel", double=False),
    "scope=all and clip_norm ask for all gradients of embedding.": Case(
        data="large", settings=LARGE | {"clip_norm": 1.0}, shard_rows=500
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_needs_all_rows_is_refused(group, message, tmp_path):
    case = REFUSED[message]
    if case.model.endswith(".py"):
        file = tmp_path / case.model
        file.write_text(LOSS_OVER_ROWS)
        case = replace(case, model=str(file))
    for error in group(refusal, case):
        assert error.message.startswith(message)
        assert "--processes" in error.hint or "shard_rows" in error.hint


def refusal(case):
    with pytest.raises(UsageError) as caught:
        run(case, ParallelTrainer)
    return caught.value
