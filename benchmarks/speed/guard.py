"""A quick look whether something got slower: steps of some trainings over those of the same model
in plain PyTorch, against the ratios that are stored.

The plain form has no compiled kernel, no fold, no fused mixture and no row-sparse table; loop,
batches and optimiser are the same. Data are generated. A ratio depends on the machine and on what
else runs there, so that a finding is a reason to look, and no verdict.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .common import Record, in_child, markdown, ratios, say

STORED = Path(__file__).with_name("guard.json")
SLOWER = 1.2  # times the stored ratio from which on a case is named
ROUNDS, STEPS, BATCH = 9, 12, 1024
ROWS, TASKS = 40_000, 2
SMALL = (100, 52, 47, 43, 30, *[25] * 5, *[10] * 12, *[5] * 10)  # like Census: folded
LARGE = (60_000, 100, 14, 8, 100_000, 7_000, 60_000, 6_000, 50_000, 30_000, 3_000)
SHAPES = {"small": (SMALL, 8), "large": (LARGE, 16)}  # vocabularies, and width of embeddings
PLAIN = "plain"
SYSTEMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("small", "mmoe"): ("uniform", "upgrad", "upgrad, representation"),
    **{("small", name): ("uniform",) for name in ("home", "stem", "ple", "snr", "adatt")},
    ("large", "mmoe"): ("uniform", "upgrad"),
    ("large", "single-task"): ("uniform",),
}
"""Vocabularies and model to what trains it, each beside uniform weights in the plain form."""


def work(job: Record) -> dict[str, float]:
    """In a process of its own: case to the median of its steps over those of the plain form."""
    from .data import ali_shaped, head
    from .models import count_cpu_seconds
    from .turns import take_turns

    count_cpu_seconds()
    found = {}
    for (shape, model), systems in SYSTEMS.items():
        say(f"check: {model}, {shape} vocabularies")
        vocabularies, width = SHAPES[shape]
        dataset = head(ali_shaped(ROWS, TASKS, vocabularies), validation=256, test=256)
        runs = {name: training(dataset, model, width, name) for name in (PLAIN, *systems)}
        seconds = take_turns(runs)
        for name in systems:
            case = f"{model}, {name}, {shape} vocabularies"
            found[case] = statistics.median(ratios(seconds[name], seconds[PLAIN]))
    return found


def training(dataset: Any, model: str, width: int, system: str) -> Callable[[Any], None]:
    """A training that pauses after each window of steps."""
    import torch

    from mtlkit.models._tables import FastPaths
    from mtlkit.ops._dispatch import plain_operations
    from mtlkit.registry import MODELS
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from .models import CPU, EXECUTION, Windows, balancer, settings

    plain = system == PLAIN
    name, _, scope = system.partition(", ")
    more: dict[str, Any] = {"sparse_rows": 1_000_000_000} if plain else {}
    windows = Windows(ROUNDS, STEPS, BATCH).with_warm_up
    chosen = settings(dataset, windows, scope=scope or "dense", **more)

    def run(pause: Callable[[float], None]) -> None:
        kind = MODELS.load(model)
        torch.manual_seed(0)
        built = kind.build(dataset.schema, kind.Options(embedding=width))
        with plain_operations() if plain else nullcontext():
            if plain:
                built.use(FastPaths(fold=False, fuse=False))
            weighting = balancer("uniform" if plain else name, dataset.schema)
            setup = TrainingSetup(chosen, EXECUTION, 0, CPU)
            trainer = Trainer(built, weighting if kind.shares_parameters else None, dataset, setup)
            trainer.fit(lambda share: pause(trainer.timer.seconds["train_seconds"]))

    return run


def check(store: bool) -> None:
    """Print what got slower; or store what is measured, for later checks."""
    found = in_child("guard", {})
    if store:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(compare(found, json.loads(STORED.read_text(encoding="utf-8"))))


def compare(found: Mapping[str, float], stored: Mapping[str, float]) -> str:
    """The ratios beside those that are stored, and in words what got slower."""
    rows = []
    slower = []
    for case, ratio in found.items():
        before = stored.get(case)
        rows.append([case, "-" if before is None else f"{before:.3f}", f"{ratio:.3f}"])
        if before is not None and ratio > SLOWER * before:
            slower.append(f"slower: {case}, {ratio / before:.2f} times as long as it was")
    table = markdown(["case", "x plain, stored", "x plain, now"], rows)
    return "\n".join([table, "", *(slower or ["nothing got slower"])])
