"""Packed splits on disk: one ``.npy`` file an array, and ``manifest.json``, which is written last.

Reading maps the arrays into memory, so a data set may be larger than the memory.
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
CHUNK_BYTES = 1 << 22  # read at a time for a hash
STALE_SECONDS = 86_400  # a folder unchanged for a day is no longer being written


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which moves to its final place when all went well.

    It lies beside the final place, and is removed if something fails. What an earlier process left
    there when it was killed is removed first.

    Raises:
        MissingError: The disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    replaced = partial.with_suffix(".replaced")
    partial.mkdir()
    try:
        yield partial

        # Moved away in one step: a folder that is half deleted could still hold its manifest.
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


def _remove_stale(folder: Path) -> None:
    """Remove unfinished folders of the same name that no process is writing any more."""
    for unfinished in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - unfinished.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_dataset(folder: Path, dataset: Dataset, options: dict[str, Any]) -> None:
    """Write a data set into a folder, which appears when it is whole.

    Raises:
        MissingError: The disk is full.
    """
    # The manifest comes last: a folder without one is unfinished.
    with atomic_folder(folder) as partial:
        splits: dict[str, Any] = {}
        for name in SPLITS:
            split = dataset.splits[name]
            for key, array in split.arrays().items():
                save_array(partial / f"{name}.{key}.npy", array)
            positives = dict(zip(dataset.schema.task_names, split.positives(), strict=True))
            splits[name] = {
                "rows": len(split),
                "positives": positives,
                "arrays": sorted(split.arrays()),
            }
        write_manifest(partial, dataset, options, splits)


def write_manifest(
    folder: Path, dataset: Dataset, options: dict[str, Any], splits: dict[str, Any]
) -> None:
    """Write the file that says what the other files of a folder are.

    Args:
        folder: Holds the arrays.
        dataset: Their data set; its arrays are not looked at.
        options: Those that the data was prepared with.
        splits: Split to its numbers of rows and positives, and the names of its arrays.
    """
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
        path: The file.
        dtype: The type of an element.
        shape: The shape of one row.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.rows = 0
        self.file = path.open("wb")
        self._write_header()

    def write(self, rows: np.ndarray) -> None:
        """Add rows at the end."""
        self.rows += len(rows)
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)

    def close(self) -> None:
        """Write the number of rows into the header of the file."""
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        # The format leaves room for the first axis to grow, so the header keeps its length.
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> Column:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``np.save`` does, but with the reason in the error if it fails."""
    with Column(path, array.dtype, array.shape[1:]) as column:
        column.write(array)


def fingerprint_folder(folder: Path, schema: Schema, arrays: Mapping[str, Sequence[str]]) -> str:
    """The :func:`mtlkit.data.splits.fingerprint` of the arrays of a folder, read in pieces.

    Args:
        folder: Holds ``<split>.<array>.npy`` files.
        schema: The schema of the data set.
        arrays: Split to the names of its arrays.

    Returns:
        A sha256 in hex.
    """
    sha = hashlib.sha256(schema.model_dump_json().encode())
    for name in SPLITS:
        for key in sorted(arrays[name]):
            with (folder / f"{name}.{key}.npy").open("rb") as file:
                np.lib.format.read_magic(file)
                # Exactly what the fingerprint of arrays in memory takes in.
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                sha.update(f"{name}/{key}/{dtype}/{shape}".encode())
                while chunk := file.read(CHUNK_BYTES):
                    sha.update(chunk)
    return sha.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder; None if it is unfinished or of another format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return manifest if is_ours else None


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
