"""Packed splits without mtlkit: columns by name, and what the schema says of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def read(
    job: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The schema, and by split the columns and the labels (N, T); rows are cut as the job says."""
    folder = Path(job["folder"])
    schema = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["schema"]
    id_names = [f["name"] for f in schema["features"] if f["kind"] == "id"]
    dense_names = [f["name"] for f in schema["features"] if f["kind"] == "dense"]
    columns, labels = {}, {}
    for split in ("train", "test"):
        rows = slice(job["rows"][split])
        ids = np.load(folder / f"{split}.ids.npy", mmap_mode="r")[rows]
        dense = np.load(folder / f"{split}.dense.npy", mmap_mode="r")[rows]
        columns[split] = {name: ids[:, i].copy() for i, name in enumerate(id_names)}
        columns[split] |= {name: dense[:, i].copy() for i, name in enumerate(dense_names)}
        labels[split] = np.array(np.load(folder / f"{split}.labels.npy", mmap_mode="r")[rows])
    return schema, columns, labels


def seconds(job: dict[str, Any]) -> float:
    """CPU seconds of this process; on a GPU, by the clock once it has done what it was given."""
    if job.get("device", "cpu") == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def rate(
    job: dict[str, Any], train: Callable[[], Any], score: Callable[[], list[float]], rows: int
) -> dict[str, Any]:
    """Train for some passes over the rows; their rate, the memory, and the test AUCs at the end."""
    passes = job["rows"]["passes"]
    began = seconds(job)
    for _ in range(passes):
        train()
    spent = seconds(job) - began
    areas = score()
    return {"rows_per_second": passes * rows / spent, "memory": peak_memory(), "auc": areas}


def part_rows(job: dict[str, Any], rows: int) -> list[np.ndarray]:
    """The numbers of the training rows of each part of a pass, if it has parts; which one a row is
    in is drawn once.
    """
    order = np.random.default_rng(job["seed"]).permutation(rows)
    return np.array_split(order, job["parts"]) if "parts" in job else []


def follow(
    job: dict[str, Any],
    parts: Iterable[Any],
    train: Callable[[Any], Any],
    score: Callable[[], list[float]],
) -> dict[str, Any]:
    """Train part by part, and score the test split after each; ``curve`` holds the seconds of
    training so far and the AUCs.
    """
    curve: list[list[float]] = []
    spent = 0.0
    for part in [part for _ in range(job["passes"]) for part in parts]:
        began = seconds(job)
        train(part)
        spent += seconds(job) - began
        curve.append([spent, *score()])
        if is_over(curve, job["goals"]):
            break
    return {"curve": curve}


def is_over(curve: list[list[float]], goals: list[list[float]]) -> bool:
    """Whether each goal, AUCs and the seconds that they are worth, is reached or too late."""
    spent = curve[-1][0]
    return all(
        spent >= limit or any(reaches(areas, wanted) for _, *areas in curve)
        for *wanted, limit in goals
    )


def reaches(areas: Iterable[float], wanted: Iterable[float]) -> bool:
    """Whether every AUC is at least the one that is wanted."""
    return all(area >= goal for area, goal in zip(areas, wanted, strict=True))


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
