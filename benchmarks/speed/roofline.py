"""What a step must do by arithmetic and memory, what the machine can do, and how near the two come.

The dense part is everything above the embedded rows x: gates, experts, mixtures, towers and losses,
forward and backward, down to the gradient of x. Its least time is the larger of its floating-point
operations over the rate of a large single-precision matrix product and of its least bytes over the
rate of a stream triad; the fraction reached is that over the measured time. What eats the rest is
read off a profile, by kind of operation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from .common import Check, Record, Section, Setup, in_child, markdown, say, select, spread

SHAPES, BATCHES = ("census", "ali"), (1024, 4096)
LARGE, TRIAD = 1536, 1 << 26  # side of the large product; floats of an array of the triad
LARGE_TABLE = 100_000  # rows; from here on a step updates only the rows of its batch
LIMIT = 0.40
STEPS, PROFILED = 30, 20
OTHER, BETWEEN = "copies, sums and other element-wise", "between operations"
KINDS = {  # what an operation's name contains to what it is; the first that fits counts
    "Mix": "mixtures of experts",
    "mm": "matrix products",
    "softmax": "softmax of the gates",
    "cross_entropy": "losses",
    "log_sigmoid": "losses",
    "threshold": "activations",
    "relu": "activations",
    "clamp": "activations",
}


def collect(setup: Setup) -> list[Record]:
    """Rates of the machine, then the dense part and whole steps."""
    records = []
    for number in range(setup.rounds):
        say(f"roofline: round {number + 1} of {setup.rounds}")
        for shape in SHAPES:
            job = {"shape": shape, "home": str(setup.data)}
            records += [record | {"round": number} for record in in_child("roofline", job)]
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own."""
    from .data import WIDTHS, head, open_dataset

    shape = job["shape"]
    whole = open_dataset(shape, Path(job["home"]))
    dataset = head(whole, train=100_000, validation=2048, test=2048)
    records = []
    for batch in BATCHES:
        record = measure(dataset, WIDTHS[shape], batch)
        records.append(record | {"shape": shape, "batch": batch})
    return records


def measure(dataset: Any, width: int, batch: int) -> Record:
    """Rates, work and times at one batch size, measured together."""
    import torch

    from mtlkit.training.batches import DeviceSplit
    from mtlkit.training.cost import flops_per_row

    from . import models
    from .phases import timed_steps

    model = models.mmoe(dataset.schema, width)
    rows = DeviceSplit.load(dataset.splits["train"], models.CPU).take(torch.arange(batch))
    inputs, tasks = model.embedding.width, len(dataset.schema.tasks)
    outputs = models.EXPERTS * (models.HIDDEN + tasks)
    step, dense = dense_step(inputs, tasks, batch, models)
    step()  # a warm-up

    # In turn, as a neighbour may slow down any of them.
    large, shaped, triad, times = [], [], [], []
    for _ in range(5):
        large.append(matrix_rate(LARGE, LARGE, LARGE))
        shaped.append(matrix_rate(batch, inputs, outputs))
        triad.append(triad_rate())
        times.append(statistics.median(timed(step) for _ in range(STEPS)))
    whole = timed_steps(dataset, width, batch, STEPS)

    # A backward pass has twice the operations of a forward pass.
    forward = batch * flops_per_row(dense, dense_batch(inputs, tasks, batch))
    return {
        "operations": 3 * forward,
        "bytes": dense_bytes(batch, inputs, tasks, models),
        "step_bytes": step_bytes(rows, model, batch, inputs, tasks, models),
        "matrix_rate": statistics.median(large),
        "shaped_rate": statistics.median(shaped),
        "memory_rate": statistics.median(triad),
        "dense_seconds": statistics.median(times),
        "step_seconds": statistics.median(whole["sum"]) / 1000,
        "profile": profile(step),
    }


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def matrix_rate(rows: int, inner: int, columns: int) -> float:
    """Operations a second of a single-precision product (rows, inner) @ (inner, columns)."""
    import torch

    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    out = torch.empty(rows, columns)
    torch.mm(left, right, out=out)
    seconds = statistics.median(timed(lambda: torch.mm(left, right, out=out)) for _ in range(9))
    return 2 * rows * inner * columns / seconds


def triad_rate() -> float:
    """Bytes a second of a = b + 2 c on arrays beyond the caches."""
    import torch

    b, c, a = torch.ones(TRIAD), torch.ones(TRIAD), torch.empty(TRIAD)
    torch.add(b, c, alpha=2, out=a)
    seconds = statistics.median(timed(lambda: torch.add(b, c, alpha=2, out=a)) for _ in range(3))
    return 3 * 4 * TRIAD / seconds


def dense_batch(inputs: int, tasks: int, batch: int) -> Any:
    """A batch whose numbers stand in for the embedded rows."""
    import torch

    from mtlkit.models._types import Batch

    x, labels = torch.randn(batch, inputs), (torch.rand(batch, tasks) < 0.2).float()
    return Batch(torch.empty(batch, 0, dtype=torch.int32), x, labels)


def dense_step(inputs: int, tasks: int, batch: int, models: Any) -> tuple[Callable[[], None], Any]:
    """Forward and backward of the model's dense part on x (B, inputs), and that model."""
    import torch

    from mtlkit.data.types import Feature, Schema, Task

    # A model of numbers only has no table: its input is x itself.
    features = tuple(Feature(name=f"x{i}", kind="dense") for i in range(inputs))
    model = models.mmoe(
        Schema(features=features, tasks=tuple(Task(name=f"t{t}") for t in range(tasks))), 8
    )
    rows = dense_batch(inputs, tasks, batch)
    rows.dense.requires_grad_()

    def step() -> None:
        rows.dense.grad = None
        model.zero_grad(set_to_none=True)
        losses = [objective.loss for objective in model.objectives(model(rows), rows)]
        torch.stack(losses).sum().backward()

    return step, model


def dense_bytes(batch: int, inputs: int, tasks: int, models: Any) -> float:
    """The least traffic of the dense part: x is read twice and its gradient written, activations
    once each way.
    """
    hidden = models.EXPERTS * (models.HIDDEN + tasks) + tasks * (models.HIDDEN + models.TOWER + 1)
    weights = models.EXPERTS * (models.HIDDEN + tasks) * inputs
    return 4.0 * (batch * (3 * inputs + 4 * hidden) + 3 * weights)


def step_bytes(rows: Any, model: Any, batch: int, inputs: int, tasks: int, models: Any) -> float:
    """The least traffic of a whole step: columns, look-up, dense part, scatter, Adam on the rows
    that were touched.
    """
    embedded = sum(group.width * len(group.columns) for group in model.embedding.groups)
    touched = sum(touched_numbers(rows, model, group) for group in model.embedding.groups)
    columns = batch * (rows.ids.shape[1] + rows.dense.shape[1] + tasks)

    # Columns are read and written; a look-up reads and writes, a scatter reads again; Adam reads
    # and writes gradients, parameters and both of its moments.
    traffic = 2 * columns + 2 * batch * embedded + batch * embedded + 8 * touched
    return 4.0 * traffic + dense_bytes(batch, inputs, tasks, models)


def touched_numbers(rows: Any, model: Any, group: Any) -> int:
    """Numbers of a table that Adam updates: those of the batch's rows, or a small table's all."""
    import torch

    table = getattr(model.embedding, group.parameter)
    if len(table) < LARGE_TABLE:
        return len(table) * group.width
    offsets = getattr(model.embedding, f"{group.parameter}_offsets")
    distinct = torch.unique(rows.ids[:, list(group.columns)] + offsets)
    return len(distinct) * group.width


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Share of the dense part's time by kind of operation; what no operation takes is Python's and
    autograd's.
    """
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for _ in range(PROFILED):
            step()
        whole = time.perf_counter() - began

    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for name, kind in KINDS.items() if name in event.key), OTHER)
        seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total * 1e-6
    seconds[BETWEEN] = max(whole - sum(seconds.values()), 0.0)
    total = sum(seconds.values())
    return {kind: kind_seconds / total for kind, kind_seconds in seconds.items()}


def fractions(record: Record) -> dict[str, float]:
    """Least seconds and fractions reached, of the dense part and of the whole step."""
    compute = record["operations"] / record["matrix_rate"]
    least = max(compute, record["bytes"] / record["memory_rate"])
    shaped = record["operations"] / record["shaped_rate"]
    step = max(compute, record["step_bytes"] / record["memory_rate"])
    return {
        "least": least,
        "dense": least / record["dense_seconds"],
        "shaped": shaped / record["dense_seconds"],
        "step": step / record["step_seconds"],
    }


def table(records: list[Record]) -> str:
    """Rates, fractions, and what eats the rest."""
    rates, rest = [], []
    for shape, batch in product(SHAPES, BATCHES):
        same = select(records, shape=shape, batch=batch)
        if same:
            rates.append([shape, f"{batch}", *_rate_columns(same)])
            rest.append([shape, f"{batch}", _shares_of_time(same)])
    rest_head = ["data", "batch", "the dense part's time"]
    return f"{markdown(HEAD, rates)}\n\n{markdown(rest_head, rest)}"


HEAD = [
    "data",
    "batch",
    "dense part, Mflop",
    "its MB",
    "whole step, MB",
    "Gflop/s, large / own shape",
    "triad, GB/s",
    "dense part, ms",
    "% of the roofline",
    "% of own shape's rate",
    "whole step, % of the roofline",
]


def _rate_columns(records: list[Record]) -> list[str]:
    """Medians over rounds, and fractions with their extremes."""

    def median(field: str) -> float:
        return statistics.median(record[field] for record in records)

    def percent(field: str) -> str:
        return spread([100 * fractions(record)[field] for record in records], ".0f")

    return [
        f"{median('operations') / 1e6:.0f}",
        f"{median('bytes') / 1e6:.1f}",
        f"{median('step_bytes') / 1e6:.1f}",
        f"{median('matrix_rate') / 1e9:.0f} / {median('shaped_rate') / 1e9:.0f}",
        f"{median('memory_rate') / 1e9:.1f}",
        f"{1000 * median('dense_seconds'):.2f}",
        percent("dense"),
        percent("shaped"),
        percent("step"),
    ]


def _shares_of_time(records: list[Record]) -> str:
    """The kinds of operation with their median shares, the largest first."""
    kinds = sorted({kind for record in records for kind in record["profile"]})
    shares = {
        kind: statistics.median(record["profile"].get(kind, 0.0) for record in records)
        for kind in kinds
    }
    largest_first = sorted(shares, key=lambda kind: -shares[kind])
    return "; ".join(f"{kind} {shares[kind]:.0%}" for kind in largest_first)


def checks(records: list[Record]) -> list[Check]:
    """The fraction on the dense part at the larger batch."""
    batch = BATCHES[-1]
    judged = []
    for shape in SHAPES:
        same = select(records, shape=shape, batch=batch)
        if same:
            reached = statistics.median(fractions(record)["dense"] for record in same)
            asked = f">= {LIMIT:.0%} of the roofline on the dense part, {shape}, batch {batch}"
            judged.append(Check(asked, f"{reached:.0%}", reached >= LIMIT))
    return judged


SECTION = Section("roofline", "The roofline", 3, collect, table, checks)
