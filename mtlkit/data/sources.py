"""From what the user typed to a data set that is ready: the door that ``fetch`` and ``bench``
share.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from mtlkit.data.data_home import make_home
from mtlkit.data.datasets._source import DatasetSource, Progress, no_progress
from mtlkit.data.splits import Dataset
from mtlkit.registry import DATASETS
from mtlkit.settings import validate
from mtlkit.spec import parse_spec


def open_source(spec_text: str) -> DatasetSource:
    """Read ``name`` or ``name[key=value,...]`` and build that source.

    Raises:
        UsageError: The name or an option is wrong.
    """
    spec = parse_spec(spec_text)
    kind: type[DatasetSource] = DATASETS.load(spec.name)
    return kind(spec.name, validate(kind.Options, spec.options, f"data set {spec.name}"))


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
    """Bring a data set if it is not there, prepare it if it is not prepared, and load it.

    Args:
        spec_text: As typed, e.g. ``census[protocol=rechub]``.
        home: The data home; made when missing.
        origin: A file or folder of the user's to take the raw files from.
        force: Obtain and prepare again.
        progress: Told of bytes received.
        links: Addresses that the user has pasted, by part.
        asked: Whether the user asked for it to be obtained; a run only needs it.

    Raises:
        UsageError: The name, an option, a link or ``origin`` is wrong.
        MissingError: The raw files cannot be had or are not what they should be.
    """
    source = open_source(spec_text)
    source.use_links(dict(links or {}))
    if force or origin is not None or links or not source.is_ready(home):
        if not asked:
            source.check_unasked(home)
        make_home(home)
        source.download(home, origin, force, progress)
        if force:
            shutil.rmtree(home / source.name / "prepared", ignore_errors=True)
    return source, source.load(home, progress)
