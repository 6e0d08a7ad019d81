"""Packed splits on disk: one ``.npy`` file an array, ``manifest.json`` written last. Reading memory-maps."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.schema import SPLITS, Dataset, Schema, Split

MANIFEST = "manifest.json"
FORMAT = 1


def write_dataset(folder: Path, dataset: Dataset, options: dict[str, Any]) -> None:
    """Write a data set beside its final place and move it there, so that a half-written one never looks finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    replaced = partial.with_suffix(".replaced")
    partial.mkdir()
    try:
        splits: dict[str, Any] = {}
        for name in SPLITS:
            split = dataset.splits[name]
            for key, array in split.arrays().items():
                np.save(partial / f"{name}.{key}.npy", np.ascontiguousarray(array), allow_pickle=False)
            positives = dict(zip(dataset.schema.task_names, split.positives(), strict=True))
            splits[name] = {"rows": len(split), "positives": positives, "arrays": sorted(split.arrays())}
        manifest = {
            "format": FORMAT,
            "name": dataset.name,
            "options": options,
            "fingerprint": dataset.fingerprint,
            "simulated": dataset.simulated,
            "schema": dataset.schema.model_dump(mode="json"),
            "splits": splits,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)  # in one step: a folder that is half deleted could still hold its manifest
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, or None when it is not finished or of another format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def read_dataset(folder: Path) -> Dataset:
    """Load a prepared folder; arrays are memory-mapped and read-only.

    Raises:
        FileNotFoundError: The folder holds no finished data set.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(folder)
    schema = Schema.model_validate(manifest["schema"])
    splits = {}
    for name in SPLITS:
        arrays = {
            key: np.load(folder / f"{name}.{key}.npy", mmap_mode="r", allow_pickle=False)
            for key in manifest["splits"][name]["arrays"]
        }
        splits[name] = Split.from_arrays(arrays)
    return Dataset(manifest["name"], schema, splits, manifest["fingerprint"], manifest["simulated"])
