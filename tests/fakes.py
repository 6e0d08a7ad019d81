"""Realistic fake records: plausible numbers, probes and gates, made without training anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.records import Cell, Failure, RunRecord
from mtlkit.spec import digest, parse_spec
from mtlkit.store import ResultStore

BASE = {"income": 0.9450, "marital": 0.9941}
MODEL_SHIFT = {
    "single-task": 0.0,
    "shared-bottom": -0.0012,
    "mmoe": 0.0008,
    "omoe": 0.0002,
    "cgc": 0.0011,
    "ple": 0.0014,
}
BALANCER_SHIFT = {
    "uniform": 0.0,
    "uwl": 0.0005,
    "dwa": 0.0001,
    "gradnorm": 0.0003,
    "mgda": -0.0010,
    "pcgrad": 0.0002,
}
GATED = {"mmoe": 1, "omoe": 1, "cgc": 1, "ple": 2}
POINTS = 10


def noise(*parts: Any) -> np.random.Generator:
    """A generator of its own for every combination of names."""
    return np.random.default_rng(int(digest([str(part) for part in parts])[:12], 16))


def cell(
    model: str = "mmoe",
    balancer: str = "uniform",
    seed: int = 0,
    dataset: str = "census",
    tasks: Sequence[str] = ("income", "marital"),
    protocol: str | None = "mmoe",
    simulated: bool = False,
    training: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    ceiling: dict[str, float] | None = None,
) -> Cell:
    model_spec, balancer_spec = parse_spec(model), parse_spec(balancer)
    options: dict[str, Any] = {"protocol": protocol} if protocol else {}
    return Cell(
        dataset=dataset,
        model=model,
        balancer=balancer,
        seed=seed,
        resolved={
            "dataset": {
                "name": parse_spec(dataset).name,
                "options": options,
                "tasks": list(tasks),
                "fingerprint": digest([dataset, protocol, list(tasks)]),
                "simulated": simulated,
            },
            "model": {
                "name": model_spec.name,
                "options": {"experts": 8, **model_spec.options, **(model_options or {})},
            },
            "balancer": {"name": balancer_spec.name, "options": balancer_spec.options},
            "training": {"epochs": 6.0, "lr": 0.002, **(training or {})},
        },
        ceiling=ceiling or {},
    )


def record(
    for_cell: Cell, kinds: dict[str, str] | None = None, missing: Collection[str] = ()
) -> RunRecord:
    """A finished run. ``missing`` names tasks whose metrics are NA."""
    model, balancer = parse_spec(for_cell.model).name, parse_spec(for_cell.balancer).name
    names = for_cell.resolved["dataset"]["tasks"]
    kinds = {name: (kinds or {}).get(name, "binary") for name in names}
    metrics: dict[str, dict[str, Any]] = {"validation": {}, "test": {}}
    for position, name in enumerate(names):
        gap = noise(for_cell.dataset, name).normal()
        base = BASE.get(name, 0.72 + 0.02 * gap)
        tilt = (-1) ** position * 0.0006 * noise(for_cell.model, for_cell.balancer, "tilt").normal()
        shift = MODEL_SHIFT.get(model, 0.0) + BALANCER_SHIFT.get(balancer, 0.0) + tilt
        luck = (
            noise(name, for_cell.seed).normal() * 0.0004
            + noise(for_cell.key, name).normal() * 0.0003
        )
        value = base + (shift + luck) * (0.5 if name == "marital" else 1)
        for split in metrics:
            metrics[split][name] = _numbers(
                kinds[name], value + (0.0006 if split == "validation" else 0)
            )
            if name in missing:
                metrics[split][name].update(auc=None, logloss=None)
    speed = (
        9e4 * (1 + 0.1 * noise(for_cell.key, "speed").normal()) / (1 + 0.4 * GATED.get(model, 0))
    )
    return RunRecord(
        key=for_cell.key,
        group=for_cell.group,
        status="ok",
        cell=for_cell,
        tasks=[
            {
                "name": name,
                "kind": kinds[name],
                "space": "all rows",
                "metric": "r2" if kinds[name] == "regression" else "auc",
                "description": "",
            }
            for name in names
        ],
        metrics=metrics,
        best={name: {"point": 8, "step": 800, "epoch": 4.8, "value": 0.9} for name in names},
        timing={
            "train_seconds": 1.2e6 / speed,
            "evaluation_seconds": 1.0,
            "probe_seconds": 0.4,
            "total_seconds": 16.0,
        },
        cost={
            "parameters": 60_000 + 25_000 * GATED.get(model, 0),
            "flops_per_row": 40_000.0 + 20_000 * GATED.get(model, 0),
            "train_rows_per_second": speed,
            "peak_memory_bytes": 4.2e8,
            "backward_passes_per_step": 2 if balancer in {"mgda", "pcgrad", "gradnorm"} else 1,
        },
        environment={
            "mtlkit": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0",
            "device": "cpu",
            "threads": 1,
        },
    )


def failure(for_cell: Cell, timeout: bool = False) -> RunRecord:
    """A run that gave no numbers."""
    reason = (
        Failure(type="Timeout", message="stopped after 600 seconds")
        if timeout
        else Failure(
            type="Diverged",
            message="the loss of task income is not finite <nan> & cannot recover",
            step=412,
        )
    )
    return RunRecord(
        key=for_cell.key,
        group=for_cell.group,
        status="timeout" if timeout else "failed",
        cell=for_cell,
        error=reason,
    )


def probes(for_cell: Cell) -> dict[str, np.ndarray]:
    """Cosines that fall, norms, weights of the balancer's character, and gates that specialise."""
    model, balancer = parse_spec(for_cell.model).name, parse_spec(for_cell.balancer).name
    names = for_cell.resolved["dataset"]["tasks"]
    count, random = len(names), noise(for_cell.key, "probes")
    steps = np.arange(1, POINTS + 1) * 100
    parts = ["shared", "embedding"] + (["experts"] if model in GATED else ["bottom"])
    level = noise(for_cell.model, for_cell.balancer, "cosine").normal(
        0.0, 0.15, (len(parts), count, count)
    )
    level = (level + level.transpose(0, 2, 1)) / 2
    drift = np.linspace(0.35, -0.05, POINTS)[:, None, None, None]
    cosine = np.clip(
        level[None] + drift + random.normal(0, 0.03, (POINTS, len(parts), count, count)), -1, 1
    )
    cosine = (cosine + cosine.transpose(0, 1, 3, 2)) / 2
    cosine[..., np.arange(count), np.arange(count)] = 1.0
    arrays = {
        "steps": steps,
        "epochs": steps / steps[-1] * 6.0,
        "tasks": np.array(names),
        "parts": np.array(parts),
        "gradient_cosine": cosine,
        "gradient_norm": np.abs(random.normal(0.1, 0.02, (POINTS, len(parts), count))),
        "weights": _weights(balancer, count, random),
    }
    for number in range(1, GATED.get(model, 0) + 1):
        arrays |= _gates(model, number, GATED[model], names, random)
    return arrays


def fill(
    root: Path,
    models: Sequence[str] = ("shared-bottom", "mmoe", "ple"),
    balancers: Sequence[str] = ("uniform", "uwl", "pcgrad"),
    seeds: Sequence[int] = (0, 1, 2),
    failures: Collection[tuple[str, str, int]] = (),
    reference: bool = True,
    with_probes: bool = True,
    kinds: dict[str, str] | None = None,
    **cell_values: Any,
) -> ResultStore:
    """Write a whole grid of fake records; ``failures`` lists (model, balancer, seed)."""
    store = ResultStore(root)
    pairs = [(model, balancer) for model in models for balancer in balancers]
    for model, balancer in ([("single-task", "none")] if reference else []) + pairs:
        for seed in seeds:
            one = cell(model, balancer, seed, **cell_values)
            if (model, balancer, seed) in failures:
                store.save(failure(one, timeout=seed % 2 == 1))
            else:
                shared = with_probes and model != "single-task"
                store.save(record(one, kinds), {"probes": probes(one)} if shared else None)
    return store


def _numbers(kind: str, value: float) -> dict[str, Any]:
    common = {"space": "all rows", "derived": False, "rows": 49881}
    if kind == "regression":
        return common | {"r2": value - 0.3, "mse": 1.3 - value, "mae": 0.4, "positives": None}
    return common | {"auc": value, "logloss": 1.05 - value, "positives": 3060, "calibration": 1.01}


def _weights(balancer: str, count: int, random: np.random.Generator) -> np.ndarray:
    wave = np.cumsum(random.normal(0, 0.08, (POINTS, count)), axis=0) + 0.2 * np.arange(count)
    if balancer == "uniform":
        return np.ones((POINTS, count))
    if balancer == "uwl":
        return np.exp(
            np.linspace(0, 1, POINTS)[:, None] * (1.5 + 1.6 * np.arange(count) % 4) + 0.1 * wave
        )
    weights = np.exp(wave)
    weights *= count / weights.sum(axis=1, keepdims=True)
    if balancer == "mgda":
        weights[3, -1] = np.nan
    return weights


def _gates(
    model: str, number: int, last: int, names: Sequence[str], random: np.random.Generator
) -> dict[str, np.ndarray]:
    task_experts = {name: [f"{name} 1", f"{name} 2"] for name in names}
    shared = ["shared 1", "shared 2"]
    if model in {"mmoe", "omoe"}:
        seen = {
            name: [f"expert {i}" for i in range(1, 9)]
            for name in (names if model == "mmoe" else ["all tasks"])
        }
    else:
        seen = {name: task_experts[name] + shared for name in names}
        if number < last:
            seen["shared"] = [expert for name in names for expert in task_experts[name]] + shared
    arrays = {}
    for name, experts in seen.items():
        sharp = np.linspace(0.1, 1.0, POINTS)[:, None] * random.normal(0, 0.8, len(experts))
        mean = np.exp(sharp) / np.exp(sharp).sum(axis=1, keepdims=True)
        arrays[f"gate/level-{number}/{name}/mean"] = mean
        arrays[f"gate/level-{number}/{name}/entropy"] = -(mean * np.log(mean)).sum(axis=1) * 0.9
        arrays[f"gate/level-{number}/{name}/experts"] = np.array(experts)
    return arrays
