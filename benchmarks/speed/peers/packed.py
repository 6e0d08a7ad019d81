"""Packed splits without mtlkit: columns by name, and what the schema says of them."""

from __future__ import annotations

import json
import time
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


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
