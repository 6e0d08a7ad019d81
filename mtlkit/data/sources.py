"""From what the user typed to a data set that is ready to train on.

``fetch``, ``bench`` and the Python interface all come through here.
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlkit.data.data_home import expand, make_home
from mtlkit.data.datasets._source import DatasetSource, Progress, no_progress
from mtlkit.data.splits import Dataset
from mtlkit.data.table.files import is_table_name
from mtlkit.errors import UsageError
from mtlkit.registry import DATASETS
from mtlkit.settings import validate
from mtlkit.spec import Spec, parse_spec


def open_source(spec_text: str) -> DatasetSource:
    """Read ``name`` or ``name[key=value,...]`` and build that source.

    Raises:
        UsageError: The name or an option is wrong.
    """
    spec = parse_spec(spec_text)
    if spec.name not in DATASETS.names() and is_table_name(spec.name):
        return _open_table(spec)
    source_class: type[DatasetSource] = DATASETS.load(spec.name)
    with DATASETS.told_as_error_of(spec.name):
        options = validate(source_class.Options, spec.options, f"data set {spec.name}")
        return source_class(spec.name, options)


def open_planned(name: str, options: Mapping[str, Any]) -> DatasetSource:
    """The source of a data set whose name and options stand in a record.

    Raises:
        UsageError: There is no such data set any more.
    """
    if "content" in options:
        from mtlkit.data.table.source import reopen_table

        return reopen_table(name, options)
    source_class: type[DatasetSource] = DATASETS.load(name)
    return source_class(name, source_class.Options.model_validate(options))


def _open_table(spec: Spec) -> DatasetSource:
    # Imported here: it brings Arrow, which only tables need.
    from mtlkit.data.table.source import open_table

    return open_table(spec)


def prepare(
    spec_text: str,
    home: Path,
    *,
    origin: Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    links: Mapping[str, str] | None = None,
    asked: bool = False,
) -> tuple[DatasetSource, Dataset]:
    """Download a data set if it is not there, prepare it if it is not prepared, and load it.

    Args:
        spec_text: As typed, e.g. ``census[protocol=rechub]``.
        origin: A file or folder of the user's to take the raw files from, which is looked at even
            if there are prepared data: of other files, they are prepared anew.
        links: Official split to an address that the user has pasted.
        asked: Whether the user asked for the download; a run only needs the data.

    Raises:
        UsageError: The name, an option, a link or ``origin`` is wrong, or a plugin fails.
        MissingError: The raw files cannot be had or are not what they should be.
    """
    source = open_source(spec_text)
    if origin is not None:
        origin = expand(origin)
        if not origin.exists():
            hint = "give --from the file or folder that holds the raw files"
            raise UsageError(f"There is no file or folder {origin}.", hint)
    with DATASETS.told_as_error_of(parse_spec(spec_text).name):
        source.use_links(dict(links or {}))

        # Prepared data need no raw files, unless the user wants other ones.
        wants_raw_files = force or origin is not None or bool(links)
        if wants_raw_files or not source.is_ready(home):
            if not asked and origin is None:
                source.check_unasked(home)
            make_home(home)
            before = source.raw_digest(home), source.folder(home)
            source.download(home, origin, force, progress)

            # What the user brings may be other files than those that were prepared, in a folder
            # that does not tell them apart. Removed after the download only: one that fails leaves
            # what there was.
            after = source.raw_digest(home), source.folder(home)
            is_same = after[0] is not None and after == before
            if force or (origin is not None and not is_same and after[1] == before[1]):
                source.forget(home)
        return source, source.load(home, progress)


def prepare_planned(name: str, options: Mapping[str, Any], home: Path) -> Dataset:
    """Load a data set whose name and options stand in a record, on a machine that may not have it:
    then its source brings and prepares it, once, whoever else asks for it at the same time.

    Raises:
        UsageError: There is no such data set, or a plugin fails.
        MissingError: The raw files cannot be had or are not what they should be.
    """
    source = open_planned(name, options)
    with DATASETS.told_as_error_of(name):
        if not source.is_ready(home):
            with (make_home(home) / ".preparing").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not source.is_ready(home):
                    source.check_unasked(home)
                    source.download(home)
                return source.load(home)
        return source.load(home)
