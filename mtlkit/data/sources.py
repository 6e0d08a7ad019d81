"""From what the user typed to a data set that is ready: the door that ``fetch`` and ``bench`` share."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtlkit.config import parse_spec, validate
from mtlkit.data.datasets.base import DatasetSource, Progress, no_progress
from mtlkit.data.home import make_home
from mtlkit.data.schema import Dataset
from mtlkit.registry import DATASETS


def open_source(spec_text: str) -> DatasetSource:
    """Read ``name`` or ``name[key=value,...]`` and build that source.

    Raises:
        UsageError: The name or an option is wrong.
    """
    spec = parse_spec(spec_text)
    kind: type[DatasetSource] = DATASETS.load(spec.name)
    return kind(spec.name, validate(kind.Options, spec.options, f"data set {spec.name}"))


def ensure(
    spec_text: str,
    home: Path,
    *,
    origin: Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> tuple[DatasetSource, Dataset]:
    """Bring a data set if it is not there, prepare it if it is not prepared, and load it.

    Args:
        spec_text: As typed, e.g. ``census[protocol=rechub]``.
        home: The data home; made when missing.
        origin: A file or folder of the user's to take the raw files from.
        force: Obtain and prepare again.
        progress: Told of bytes received.

    Raises:
        UsageError: The name, an option or ``origin`` is wrong.
        MissingError: The raw files cannot be had or are not what they should be.
    """
    source = open_source(spec_text)
    if force or not source.is_ready(home):
        make_home(home)
        source.obtain(home, origin, force, progress)
        if force:
            shutil.rmtree(home / source.name / "prepared", ignore_errors=True)
    return source, source.load(home)
