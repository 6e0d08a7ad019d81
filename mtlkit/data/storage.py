"""Packed splits on disk: one ``.npy`` file an array, ``manifest.json`` written last.

Arrays are memory-mapped when they are read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtlkit.data.splits import SPLITS, Dataset, Split
from mtlkit.data.types import Schema
from mtlkit.errors import MissingError

MANIFEST = "manifest.json"
FORMAT = 1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
HASHED = 1 << 22  # bytes read at a time
STALE_SECONDS = 86_400  # after a day without a change, nobody is writing any more


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder to write to, beside the final one; it gets the final name when all went well, and is
    removed otherwise.

    What an earlier process left when it was killed while writing the same folder is removed first.

    Raises:
        MissingError: The disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)

    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    replaced = partial.with_suffix(".replaced")
    partial.mkdir()
    try:
        yield partial
        # In one step: a folder that is half deleted could still hold its manifest.
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise MissingError(
            f"The disk of {folder.parent} became full while data was prepared; "
            "what was written is gone again.",
            "make room, or choose a larger disk with --data-dir DIR",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_dataset(folder: Path, dataset: Dataset, options: dict[str, Any]) -> None:
    """Write a data set to a folder, which appears when all is there."""
    with written(folder) as partial:
        splits: dict[str, Any] = {}
        for name in SPLITS:
            split = dataset.splits[name]
            arrays = split.arrays()
            for key, array in arrays.items():
                save_array(partial / f"{name}.{key}.npy", array)
            positives = dict(zip(dataset.schema.task_names, split.positives(), strict=True))
            splits[name] = {
                "rows": len(split),
                "positives": positives,
                "arrays": sorted(arrays),
            }
        write_manifest(partial, dataset, options, splits)


def write_manifest(
    folder: Path, dataset: Dataset, options: dict[str, Any], splits: dict[str, Any]
) -> None:
    """Write the file that says what the other files of a folder are."""
    manifest = {
        "format": FORMAT,
        "name": dataset.name,
        "options": options,
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.simulated,
        "details": dataset.details,
        "schema": dataset.schema.model_dump(mode="json"),
        "splits": splits,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


class Column:
    """A ``.npy`` file that grows row by row, so that no array need fit in memory.

    Args:
        path: Of the file.
        dtype: Of the array.
        shape: Of one row.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.shape, self.rows = np.dtype(dtype), shape, 0
        self.file = path.open("wb")
        self._write_header()

    def write(self, rows: np.ndarray) -> None:
        """Add rows at the end."""
        self.rows += len(rows)
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)

    def close(self) -> None:
        """Write the number of rows into the head of the file."""
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        # The format leaves room for the first axis to grow, so the head keeps its length.
        shape = (self.rows, *self.shape)
        head = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self.file, head)

    def __enter__(self) -> Column:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def save_array(path: Path, array: np.ndarray) -> None:
    """Like ``np.save``, which however does not say why it cannot write."""
    with Column(path, array.dtype, array.shape[1:]) as column:
        column.write(array)


def fingerprint_folder(folder: Path, schema: Schema, arrays: Mapping[str, Sequence[str]]) -> str:
    """What :func:`mtlkit.data.splits.fingerprint` gives for the arrays of a folder, read in pieces.

    Args:
        folder: Holds ``<split>.<array>.npy`` files.
        schema: Of the data set.
        arrays: Names of the arrays of each split.
    """
    sha = hashlib.sha256(schema.model_dump_json().encode())
    for name in SPLITS:
        for key in sorted(arrays[name]):
            with (folder / f"{name}.{key}.npy").open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                sha.update(f"{name}/{key}/{dtype}/{shape}".encode())
                while piece := file.read(HASHED):
                    sha.update(piece)
    return sha.hexdigest()


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
    details = manifest.get("details", {})
    return Dataset(
        manifest["name"], schema, splits, manifest["fingerprint"], manifest["simulated"], details
    )
