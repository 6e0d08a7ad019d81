"""Ali-CCP with all its fields, six of them weighted bags: mtlkit against the same model, trainer and
batches with ``torch.nn.EmbeddingBag`` for the bags.

Rows of a session share four of the bags, about 505 of their 510 values. A data loader hands them
out with every row, so that is what ``EmbeddingBag`` is measured on; a second form gets each of them
once a batch, as mtlkit does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .common import (
    Check,
    Record,
    Section,
    Setup,
    in_child,
    markdown,
    peak_memory,
    ratios,
    say,
    select,
    spread,
)

DATA = "ali-ccp[protocol=full,simulate=100000]"
TARGETS = {"mmoe": 120_000, "stem": 60_000}  # rows per CPU second
FASTER, MEMORY = 3.0, 1.2e9
BATCH, STEPS = 4096, 4
OURS, PEER, PEER_ONCE = "mtlkit", "EmbeddingBag", "EmbeddingBag, shared bags once"
SYSTEMS = (OURS, PEER, PEER_ONCE)


def collect(setup: Setup) -> list[Record]:
    """Milliseconds a step by model and system, and the peak memory of mtlkit alone."""
    records = []
    for model in TARGETS:
        say(f"bags: {model}")
        job = {"model": model, "rounds": setup.rounds, "home": str(setup.data)}
        records += in_child("bags", job | {"systems": SYSTEMS})
        (alone,) = in_child("bags", job | {"systems": [OURS]})
        select(records, model=model, system=OURS)[0]["memory"] = alone["memory"]
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own: trainings of all systems that take turns."""
    from pathlib import Path

    from mtlkit.data.sources import prepare

    from .models import count_cpu_seconds
    from .turns import take_turns

    count_cpu_seconds()
    dataset = prepare(DATA, Path(job["home"]))[1]
    runs = {name: run(dataset, job["model"], name, job["rounds"]) for name in job["systems"]}
    return [
        {
            "model": job["model"],
            "system": system,
            "ms": [1000 * seconds / STEPS for seconds in windows],
            "memory": peak_memory(),
        }
        for system, windows in take_turns(runs).items()
    ]


def run(dataset: Any, model: str, system: str, windows: int) -> Callable[[Any], None]:
    """A training of a model with its default options; the first window is a warm-up."""
    import torch

    from mtlkit.registry import MODELS
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from .models import CPU, EXECUTION, Windows, balancer, settings

    timed = Windows(windows, STEPS, BATCH).with_warm_up

    def train(pause: Callable[[float], None]) -> None:
        torch.manual_seed(0)
        architecture = MODELS.load(model)
        network = architecture.build(dataset.schema, architecture.Options())
        if system != OURS:
            use_embedding_bag(network, shared_once=system == PEER_ONCE)
        setup = TrainingSetup(settings(dataset, timed), EXECUTION, 0, CPU)
        trainer = Trainer(network, balancer("uniform", dataset.schema), dataset, setup)
        trainer.fit(lambda share: pause(trainer.timer.seconds["train_seconds"]))

    return train


def use_embedding_bag(network: Any, shared_once: bool) -> None:
    """Let a model sum its bags as ``torch.nn.EmbeddingBag`` does."""
    import torch.nn.functional as F
    from torch import Tensor

    from mtlkit.ops.bags import Bags, take_bags

    def sum_bags(name: str, bags: Bags) -> Tensor:
        row = bags.row
        if row is not None and not shared_once:
            bags, row = take_bags({name: bags}, row.long())[name], None
        table = getattr(network.embedding, name)
        sums = F.embedding_bag(
            bags.values.long(),
            table.flatten(1),
            bags.offsets[:-1],
            mode="sum",
            per_sample_weights=bags.weights,
        ).unflatten(1, table.shape[1:])
        return sums if row is None else sums.index_select(0, row)

    network.embedding.sum_bags = sum_bags


def rates(record: Record) -> list[float]:
    """Rows per CPU second."""
    return [1000 * BATCH / ms for ms in record["ms"]]


def table(records: list[Record]) -> str:
    """A row a model and system."""
    rows = []
    for record in records:
        (ours,) = select(records, model=record["model"], system=OURS)
        thousands = [rate / 1000 for rate in rates(record)]
        slower = spread(ratios(record["ms"], ours["ms"]), ".1f")
        rows.append([record["model"], record["system"], spread(thousands, ".1f"), slower])
    return markdown(["model", "bags by", "thousand rows per second", "time / mtlkit's"], rows)


def checks(records: list[Record]) -> list[Check]:
    """Speed, the distance to EmbeddingBag, and memory."""
    judged = []
    for model, target in TARGETS.items():
        (ours,) = select(records, model=model, system=OURS)
        (peer,) = select(records, model=model, system=PEER)
        rate = statistics.median(rates(ours))
        asked = f"{model} on Ali-CCP with all fields: {target:,} rows per CPU second"
        judged.append(Check(asked, f"{rate:,.0f}", rate >= target))
        factor = statistics.median(ratios(peer["ms"], ours["ms"]))
        asked = f"{model} there: {FASTER:g}x the same model on EmbeddingBag"
        judged.append(Check(asked, f"{factor:.1f}x", factor >= FASTER))
        asked = f"{model} there: less than {MEMORY / 1e9:g} GB"
        judged.append(Check(asked, f"{ours['memory'] / 1e9:.2f} GB", ours["memory"] < MEMORY))
    return judged


SECTION = Section("bags", "Weighted bags of ids", 8, collect, table, checks)
