"""The contract of a data set: download raw files, prepare packed splits, load those."""

from __future__ import annotations

import json
import shlex
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mtlkit.data.splits import Dataset
from mtlkit.data.storage import read_dataset, read_manifest, write_dataset
from mtlkit.errors import UsageError
from mtlkit.files import replacing
from mtlkit.registry import DATASETS, plugin_folder_name
from mtlkit.settings import Settings
from mtlkit.spec import Spec, digest

SOURCE_FILE = "source.json"
"""Note among the raw files of where they come from, for the data sets that keep one."""

Progress = Callable[[str, int, int | None], None]
"""Called with (label, bytes or rows done, total or None)."""


def no_progress(label: str, done: int, total: int | None) -> None:
    """The progress callback that shows nothing."""


def write_source(raw: Path, source: Mapping[str, Any]) -> None:
    """Note where raw files lie or come from, in one step."""
    raw.mkdir(parents=True, exist_ok=True)
    with replacing(raw / SOURCE_FILE) as file:
        file.write(json.dumps(source, indent=1).encode())


def read_source(raw: Path) -> dict[str, Any] | None:
    """The note, or None if there is none that can be read."""
    try:
        source = json.loads((raw / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return source if isinstance(source, dict) else None


def note_files(places: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and date of files, which tell them from others."""
    stats = [(place.name, place.stat()) for place in places]
    return [
        {"file": name, "bytes": stat.st_size, "changed": stat.st_mtime_ns} for name, stat in stats
    ]


class DatasetSource(ABC):
    """One data set: its raw files, and the packed splits that are prepared from them.

    A subclass lives in a file of its own, whose name is the name of the data set. It downloads raw
    files into ``<home>/<name>/raw`` (:meth:`download`) and builds the splits from them
    (:meth:`prepare`); this class keeps what was prepared in ``<home>/<name>/prepared``.

    Args:
        entry: The registry name; of a plugin, its path.
        options: Validated options; every value that changes the prepared data is one of them.

    Attributes:
        name: The name of its folder in the data home: the registry name, or one that no other
            plugin has.
    """

    class Options(Settings):
        """What the user may choose in brackets."""

    title: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    url: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    download_size: ClassVar[str] = "nothing"
    simulated: ClassVar[bool] = False
    training: ClassVar[dict[str, Any]] = {}
    """Training settings that suit these data where the user says nothing."""
    preparation: ClassVar[int] = 1
    """Version of :meth:`prepare`; raise it when the same raw files give other data from now on."""
    typed: str | None = None  # what gives this source, where that is no name of the registry

    def __init__(self, entry: str, options: Settings) -> None:
        self.entry = entry
        self.name = plugin_folder_name(entry)
        self.options = options

    def presets(self) -> list[Settings]:
        """The options that ``fetch`` prepares at once; these options by default."""
        return [self.options]

    @abstractmethod
    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Make the raw files available under ``home``, unless they are there already.

        Args:
            home: The data home.
            origin: A file or folder of the user's to take them from, instead of the network.
            force: Download them again, even if they are there.
            progress: Told of bytes received.

        Raises:
            MissingError: They cannot be had; the message says what was tried.
        """

    def use_links(self, links: dict[str, str]) -> None:
        """Take raw files from addresses that the user has pasted.

        Args:
            links: Official split (``train``, ``test``) to the address of its file.

        Raises:
            UsageError: This data set has no use for them.
        """
        if links:
            command = f"mtlkit fetch {shlex.quote(self.entry)}"
            raise UsageError(f"{self.entry} takes no links.", command)

    def check_unasked(self, home: Path) -> None:
        """Refuse to download for a run that needs the data, where ``fetch`` was not called.

        Raises:
            MissingError: The raw files are too large to be downloaded unasked.
        """
        return

    def provenance(self, home: Path) -> str | None:
        """Where the raw files under ``home`` were taken from, for the card; None if unknown."""
        return None

    @abstractmethod
    def prepare(self, home: Path) -> Dataset:
        """Build the data set from raw files, encoders fitted on the training split only.

        Raises:
            MissingError: The raw files are not there.
        """

    def resolved_options(self) -> dict[str, Any]:
        """All options with their values, as recorded and hashed."""
        return self.options.model_dump(mode="json")

    def folder(self, home: Path) -> Path:
        """Where the prepared data of these options lie; those of an edited plugin lie elsewhere."""
        identity = [self.preparation, self.resolved_options()]
        source_digest = DATASETS.source_digest(self.entry)
        if source_digest is not None:
            identity.append(source_digest)
        return home / self.name / "prepared" / digest(identity)[:12]

    def raw_digest(self, home: Path) -> str | None:
        """What tells the raw files under ``home`` from others; None if that is not known."""
        source = read_source(home / self.name / "raw") or {}
        files = source.get("files") or source.get("sha256")
        return digest(files) if files else None

    def forget(self, home: Path) -> None:
        """Remove all that was prepared of this data set."""
        shutil.rmtree(home / self.name / "prepared", ignore_errors=True)

    def is_ready(self, home: Path) -> bool:
        """Whether the data can be loaded without the network."""
        return read_manifest(self.folder(home)) is not None

    def load(self, home: Path, progress: Progress = no_progress) -> Dataset:
        """The prepared data, memory-mapped; prepared first when the raw files are there.

        Raises:
            MissingError: The data set has not been fetched, or its files are not what was written.
        """
        folder = self.folder(home)
        if read_manifest(folder) is None:
            self.build(home, folder, progress)
        return read_dataset(folder, self._command())

    def _command(self) -> str:
        """What prepares the data of these options again."""
        chosen = self.options.model_dump(mode="json", exclude_defaults=True)
        return f"mtlkit fetch {shlex.quote(str(Spec(self.entry, chosen)))} --force"

    def build(self, home: Path, folder: Path, progress: Progress = no_progress) -> None:
        """Write the prepared data into a folder, which appears when it is whole.

        Raises:
            UsageError: The method ``prepare`` of a plugin gives no data set.
        """
        dataset = self.prepare(home)
        if not isinstance(dataset, Dataset):
            raise UsageError(
                f"The prepare of {self.entry} gives a {type(dataset).__name__}, not a Dataset.",
                f"correct it, and prepare again: {self._command()}",
            )
        write_dataset(folder, dataset, self.resolved_options())


class StreamedSource(DatasetSource):
    """Data whose :meth:`build` writes straight into the folder: they need not fit in memory."""

    def prepare(self, home: Path) -> Dataset:
        """The prepared data, which are written while they are read."""
        return self.load(home)


class GeneratedSource(DatasetSource):
    """Data that is made on this machine."""

    licence: ClassVar[str] = "none needed: generated on this machine"
    simulated: ClassVar[bool] = True

    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Do nothing: there is nothing to download.

        Raises:
            UsageError: An ``origin`` is given.
        """
        if origin is not None:
            command = f"mtlkit fetch {shlex.quote(self.entry)}"
            raise UsageError("Synthetic data is generated, so it takes no --from.", command)
