"""Packed splits on disk: one ``.npy`` file an array, and ``manifest.json``, which is written last.

Reading maps the arrays into memory, so a data set may be larger than the memory. What is written is
checked value by value, and the manifest notes the hash of all contents, and size and date of each
file. What is read must have these sizes and dates, or else this hash: looking costs nothing, and a
copy of a folder, whose dates are new, is hashed once.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtlkit.data.checks import check_contents, check_layout
from mtlkit.data.lints import find_lints
from mtlkit.data.splits import SPLITS, Dataset, Split
from mtlkit.data.types import Schema
from mtlkit.errors import MissingError, first_problem
from mtlkit.files import replacing

MANIFEST = "manifest.json"
ENCODERS = "encoders.json"
FORMAT = 1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK_BYTES = 1 << 22  # read at a time for a hash
STALE_SECONDS = 86_400  # a folder unchanged for a day is no longer being written


class _Manifest(BaseModel):
    """The fields of a manifest that are read, with their types."""

    model_config = ConfigDict(strict=True)

    name: str = Field(min_length=1)
    fingerprint: str = Field(min_length=1)
    simulated: bool
    columns: Schema = Field(alias="schema")
    splits: dict[str, _SplitNote]
    details: dict[str, Any] = {}

    # A manifest of an earlier version has no notes of files; there the fingerprint is the hash.
    contents: str | None = None
    files: dict[str, dict[str, int]] = {}


class _SplitNote(BaseModel):
    """What a manifest notes of a split."""

    model_config = ConfigDict(strict=True)

    rows: int
    arrays: list[str]


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which moves to its final place when all went well.

    It lies beside the final place, and is removed if something fails. What an earlier process left
    there when it was killed is removed first.

    Raises:
        MissingError: The disk is full, or a file larger than this user or disk may have.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent, f".{folder.name}.*")
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    replaced = partial.with_suffix(".replaced")
    partial.mkdir()
    try:
        yield partial

        # On the disk before it gets its name, so that a crash leaves no half of a data set.
        for path in [*partial.rglob("*"), partial]:
            _sync(path)

        # Moved away in one step: a folder that is half deleted could still hold its manifest.
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _no_room(folder.parent, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _no_room(parent: Path, error: OSError) -> MissingError:
    """What is said where prepared data do not fit, into a disk or into the limit for a file."""
    problem = f"The disk of {parent} became full"
    hint = "make room, or choose a larger disk with --data-dir DIR"
    if error.errno == errno.EFBIG:
        problem = f"A file in {parent} became larger than the system allows"
        hint = "lift the limit: ulimit -f unlimited; or choose another disk with --data-dir DIR"
    return MissingError(f"{problem} while data was prepared; what was written is gone again.", hint)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(parent: Path, pattern: str) -> None:
    """Remove unfinished folders that no process is writing any more."""
    for unfinished in parent.glob(pattern):
        if time.time() - unfinished.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_dataset(folder: Path, dataset: Dataset, options: dict[str, Any]) -> None:
    """Write a data set into a folder, which appears when it is whole.

    Raises:
        MissingError: The disk is full, or the data cannot be trained on.
    """
    check_layout(dataset.schema, dataset.splits, _mend_hint(dataset.name))

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

        # What a data set says of its contents need not be their hash.
        contents = fingerprint_folder(partial, dataset.schema, splits)
        write_manifest(partial, dataset, options, splits, contents)


def write_manifest(
    folder: Path,
    dataset: Dataset,
    options: dict[str, Any],
    splits: dict[str, Any],
    contents: str | None = None,
) -> None:
    """Check the arrays of a folder, and write the file that says what they are.

    Args:
        folder: Holds the arrays.
        dataset: Their data set; the arrays are those of the folder, not its own.
        splits: Split to its numbers of rows and positives, and the names of its arrays.
        contents: The hash of the arrays as :func:`fingerprint_folder` gives it; the fingerprint of
            the data set by default.

    Raises:
        MissingError: The data cannot be trained on.
    """
    arrays = map_splits(folder, splits)
    check_layout(dataset.schema, arrays, _mend_hint(dataset.name))
    check_contents(dataset.schema, arrays, _mend_hint(dataset.name))

    # What looks like a mistake is noted, for the card and for every run.
    lints = [asdict(lint) for lint in find_lints(replace(dataset, splits=arrays))]
    manifest = {
        "format": FORMAT,
        "name": dataset.name,
        "options": options,
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.simulated,
        "details": dataset.details | {"lints": lints},
        "schema": dataset.schema.model_dump(mode="json"),
        "splits": splits,
        "contents": contents or dataset.fingerprint,
        "files": _note_files(folder, _array_files(splits)),
    }
    if isinstance(dataset.encoders, dict):
        (folder / ENCODERS).write_text(json.dumps(dataset.encoders), encoding="utf-8")
    text = json.dumps(manifest, indent=1)
    _check_manifest(json.loads(text), _mend_hint(dataset.name))
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _check_manifest(manifest: dict[str, Any], hint: str) -> _Manifest:
    """The fields of a manifest; a :class:`MissingError` names the first wrong one."""
    try:
        return _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise MissingError(f"In {MANIFEST}, {first_problem(error)}.", hint) from None


def _mend_hint(name: str) -> str:
    """What to do about data that cannot be trained on."""
    return (
        f"correct what the data set {name} prepares, or give it more rows, "
        "and run the command again"
    )


def _array_files(splits: Mapping[str, Any]) -> list[str]:
    """The names of the files of all arrays that a manifest names."""
    return [f"{name}.{key}.npy" for name in SPLITS for key in splits[name]["arrays"]]


def map_splits(folder: Path, splits: Mapping[str, Any]) -> dict[str, Split]:
    """The splits that a manifest names, memory-mapped and read-only."""
    mapped = {}
    for name in SPLITS:
        arrays = {key: _map_array(folder / f"{name}.{key}.npy") for key in splits[name]["arrays"]}
        mapped[name] = Split.from_arrays(arrays)
    return mapped


def _map_array(file: Path) -> np.ndarray:
    """One array, memory-mapped and read-only. A pipe would be waited for, forever."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise MissingError(f"{file.name} is no regular file.")
    array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


class Column:
    """A ``.npy`` file that grows by rows of one shape, so that no array need fit in memory."""

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


class BagColumns:
    """The three growing files of a bag."""

    def __init__(self, stack: ExitStack, folder: Path, prefix: str, name: str) -> None:
        dtypes = {"offsets": np.int64, "values": np.int32, "weights": np.float32}
        self.files = {
            array: stack.enter_context(Column(folder / f"{prefix}-{array}-{name}.npy", dtype))
            for array, dtype in dtypes.items()
        }
        kind = prefix.partition(".")[2]
        self.arrays = [f"{kind}-{array}-{name}" for array in dtypes]
        self.end = 0
        self.files["offsets"].write(np.zeros(1, np.int64))

    def write(self, lengths: np.ndarray, values: np.ndarray, weights: np.ndarray) -> None:
        """Add rows of (n,) lengths with their (m,) entries."""
        offsets = self.end + np.cumsum(lengths, dtype=np.int64)
        self.files["offsets"].write(offsets)
        self.files["values"].write(values)
        self.files["weights"].write(weights)
        if len(offsets):
            self.end = int(offsets[-1])


class SplitFiles:
    """The growing files of one split; ``shapes``: of each array the type and the shape of a row."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        name: str,
        shapes: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]],
        bags: Sequence[str] = (),
    ) -> None:
        self.columns = {
            array: stack.enter_context(Column(folder / f"{name}.{array}.npy", dtype, shape))
            for array, (dtype, shape) in shapes.items()
        }
        self.bags = [BagColumns(stack, folder, f"{name}.bag", bag) for bag in bags]
        self.positives = np.zeros(shapes["labels"][1], np.int64)

    def write(
        self,
        arrays: Mapping[str, np.ndarray],
        bags: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        is_here: np.ndarray,
    ) -> None:
        """Add those of n rows that belong to this split.

        Args:
            arrays: (n, ...) of each array.
            bags: Of each bag (n,) lengths, (m,) ids and (m,) weights.
            is_here: (n,) bool.
        """
        if not is_here.any():
            return
        is_whole = bool(is_here.all())
        rows = slice(None) if is_whole else np.flatnonzero(is_here)
        for array, column in self.columns.items():
            column.write(arrays[array][rows])
        self.positives += ((arrays["labels"][rows] > 0) & arrays["observed"][rows]).sum(0)
        for bag, (lengths, ids, weights) in zip(self.bags, bags, strict=True):
            entries = slice(None) if is_whole else np.flatnonzero(np.repeat(is_here, lengths))
            bag.write(lengths[rows], ids[entries], weights[entries])

    def entry(self, tasks: Sequence[str]) -> dict[str, Any]:
        """What the manifest says of the split, whose tasks have these names."""
        arrays = [*self.columns, *(array for bag in self.bags for array in bag.arrays)]
        return {
            "rows": self.columns["labels"].rows,
            "positives": dict(zip(tasks, self.positives.tolist(), strict=True)),
            "arrays": sorted(arrays),
        }


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``np.save`` does, but with the reason in the error if it fails."""
    with Column(path, array.dtype, array.shape[1:]) as column:
        column.write(array)


def fingerprint_folder(folder: Path, schema: Schema, splits: Mapping[str, Any]) -> str:
    """The :func:`mtlkit.data.splits.fingerprint` of the arrays that a manifest names, which lie as
    ``<split>.<array>.npy`` in a folder; they are read in pieces.
    """
    sha = hashlib.sha256(schema.model_dump_json().encode())
    for name in SPLITS:
        for key in sorted(splits[name]["arrays"]):
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
    file = folder / MANIFEST
    try:
        # A pipe would be waited for, forever.
        manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError):
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return manifest if is_ours else None


def read_dataset(folder: Path, command: str | None = None) -> Dataset:
    """Load a prepared folder; arrays are memory-mapped and read-only.

    ``command`` prepares it again: errors tell of it.

    Raises:
        FileNotFoundError: The folder holds no finished data set.
        MissingError: Its files are not what was written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(folder)

    # A file that is damaged in any way is told in the same words.
    hint = command or "remove this folder, and prepare the data again"
    try:
        noted = _check_manifest(manifest, hint)
        splits = map_splits(folder, manifest["splits"])
        dataset = Dataset(
            noted.name, noted.columns, splits, noted.fingerprint, noted.simulated, noted.details
        )
        if (folder / ENCODERS).is_file():
            dataset = replace(dataset, encoders=folder / ENCODERS)
        check_layout(dataset.schema, splits, hint)
        damage = _damage(folder, manifest, dataset)
    except MissingError as error:
        damage = error.message.rstrip(".")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = f"{type(error).__name__}: {error}".rstrip(".")
    if damage is not None:
        message = f"The prepared data in {folder} are not what was written: {damage}."
        raise MissingError(message, hint)
    return dataset


def _damage(folder: Path, manifest: dict[str, Any], dataset: Dataset) -> str | None:
    """What differs from the notes in the manifest; None if nothing does. Dates that moved while
    contents did not are noted anew.
    """
    splits = manifest["splits"]
    for name in SPLITS:
        rows, noted = len(dataset.splits[name]), splits[name]["rows"]
        if rows != noted:
            return f"the {name} split has {rows:,} rows, not {noted:,}"

    # A manifest of an earlier version has no notes of files; there the fingerprint is the hash.
    notes = manifest.get("files", {})
    current = _note_files(folder, _array_files(splits))
    moved = [name for name, note in current.items() if notes.get(name) != note]
    if not moved:
        return None
    files = tuple((name, note["bytes"], note["mtime_ns"]) for name, note in current.items())
    expected = manifest.get("contents", dataset.fingerprint)
    if _hash_contents(folder, dataset.schema, files) != expected:
        if not notes:
            return "their fingerprint is another one"
        more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        return f"{moved[0]}{more} changed"
    _renew_notes(folder, manifest | {"contents": expected, "files": current})
    return None


def _note_files(folder: Path, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """File name to its size and the time of its last change."""
    notes = {}
    for name in names:
        stat = (folder / name).stat()
        notes[name] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return notes


@functools.lru_cache(maxsize=64)
def _hash_contents(folder: Path, schema: Schema, files: tuple[tuple[str, int, int], ...]) -> str:
    """The :func:`fingerprint_folder` of files of these names, sizes and dates."""
    splits: dict[str, dict[str, list[str]]] = {name: {"arrays": []} for name in SPLITS}
    for file, _, _ in files:
        split, _, array = file.removesuffix(".npy").partition(".")
        splits[split]["arrays"].append(array)
    return fingerprint_folder(folder, schema, splits)


def _renew_notes(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace a manifest in one step, where the folder can be written to."""
    # Read-only data are as good; they are compared again the next time.
    with suppress(OSError), replacing(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())
