"""Public logs in files of their own: downloaded from their address, or brought by the user.

Archives and files stay where they are. They are unpacked and typed while they are prepared, and
need not fit in memory.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

from mtlkit.data.census_files import DAMAGED
from mtlkit.data.datasets._source import (
    DatasetSource,
    Progress,
    no_progress,
    read_source,
    write_source,
)
from mtlkit.data.download import DownloadError, download
from mtlkit.data.splits import Dataset
from mtlkit.data.storage import atomic_folder, read_dataset
from mtlkit.data.table.files import MOST_FILES
from mtlkit.data.table.join import check_columns
from mtlkit.data.table.prepare import prepare_table
from mtlkit.data.table.read import Table
from mtlkit.data.table.spec import MISSING_TEXTS, TableSpec
from mtlkit.data.table.stage import stage_text
from mtlkit.errors import MissingError, UsageError, one_line
from mtlkit.spec import digest

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


class RawFiles:
    """The raw files of a data set while it is prepared.

    Args:
        title: What messages call them.
        paths: Name of a file to where it lies.
        staging: A folder for typed columns.
        progress: Told of bytes read.
    """

    def __init__(
        self, title: str, paths: Mapping[str, Path], staging: Path, progress: Progress
    ) -> None:
        self.title, self.paths = title, paths
        self.staging, self.progress = staging, progress

    def read(self, *names: str, columns: Collection[str] = (), **text: Any) -> Table:
        """The rows of text files with one set of columns.

        Args:
            *names: The files.
            columns: Those that must be there.
            **text: How the text is written, as in :class:`TableSpec`.

        Raises:
            MissingError: It is another text than the one that is known.
        """
        folder = self.staging / str(len(list(self.staging.iterdir())))
        folder.mkdir()
        label = f"{names[0]} of {self.title}"
        missing = (*MISSING_TEXTS, "\\N")
        spec = TableSpec.model_validate({"missing": missing, **text})
        paths = [self.paths[name] for name in names]
        table = stage_text(paths, label, spec, folder, self.progress)
        check_columns(table, columns)
        return table


class LogTableSource(DatasetSource):
    """A data set that is made of text files of a known format.

    A subclass names the files, makes one table of them, and says what its columns mean.
    """

    address: ClassVar[str | None] = None
    """Of the archive; None where it takes a login or a form."""
    md5: ClassVar[str | None] = None
    """Of the archive, where that is known."""
    unverified: ClassVar[str] = ""
    """What of the format could not be compared with the real files, for the card."""

    @property
    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """Names of the files that are read, wherever they lie in an archive or folder."""

    @abstractmethod
    def table(self, files: RawFiles) -> Table:
        """One row an example, made of the files."""

    @abstractmethod
    def spec(self) -> TableSpec:
        """What the columns of the table mean."""

    def member(self, path: PurePosixPath) -> str | None:
        """The name of the file that a path in an archive or folder stands for."""
        name = path.name.removesuffix(".gz")
        return name if name in self.members else None

    def missing_members(self, names: Collection[str]) -> list[str]:
        """What is not there of what is needed."""
        return [name for name in self.members if name not in names]

    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Note where the user's files lie, or download the archive.

        Raises:
            MissingError: The files cannot be had, or are not those of this data set.
        """
        raw = home / self.name / "raw"
        noted = read_source(raw)
        if origin is None and noted is not None and not force:
            return None
        if origin is None and noted is not None and noted.get("kind") == "brought":
            origin = Path(noted["path"])
        if origin is not None:
            origin = origin.expanduser().resolve()
            is_one_of_several = self.member(PurePosixPath(origin.name)) and len(self.members) > 1
            origin = origin.parent if origin.is_file() and is_one_of_several else origin
            note = {"kind": "brought", "origin": str(origin), "path": str(origin)}
            return write_source(raw, note | {"files": self._look_at(origin)})
        if self.address is None:
            raise MissingError(f"{self.title} takes a login or a form to download.", self._by_hand)

        archive = raw / self.address.rpartition("/")[2]
        try:
            file = download(self.address, archive, md5=self.md5, progress=progress)
        except DownloadError as error:
            hint = f"{error.hint}; or {self._by_hand}"
            raise DownloadError(error.message, hint, error.status) from None
        note = {"kind": "downloaded", "origin": self.address, "sha256": file.sha256}
        return write_source(raw, note | {"path": str(archive), "files": self._look_at(archive)})

    def check_unasked(self, home: Path) -> None:
        """Refuse to download for a run that needs the data.

        Raises:
            MissingError: The data were not fetched.
        """
        if read_source(home / self.name / "raw") is None:
            message = f"{self.title} is not in the data folder {home}."
            raise MissingError(message, self._by_hand if self.address is None else self._fetch)

    def provenance(self, home: Path) -> str | None:
        """The archive or folder, and what of its format is not known for sure."""
        noted = read_source(home / self.name / "raw") or {}
        lines = [str(noted.get("origin")), self.unverified]
        return "\n".join(line for line in lines if line)

    def folder(self, home: Path) -> Path:
        """Where the prepared data of these options and of the raw files fetched last lie."""
        identity = [self.preparation, self.resolved_options(), self.raw_digest(home)]
        return home / self.name / "prepared" / digest(identity)[:12]

    def prepare(self, home: Path) -> Dataset:
        """Build the splits on disk and open them."""
        folder = self.folder(home)
        self.build(home, folder)
        return read_dataset(folder, self._command())

    def build(self, home: Path, folder: Path, progress: Progress = no_progress) -> None:
        """Write the splits straight into the folder: they need not fit in memory.

        Raises:
            MissingError: The raw files are not there, have changed, or are others.
        """
        noted = read_source(home / self.name / "raw")
        if noted is None:
            raise MissingError(f"{self.title} is not in the data folder {home}.", self._fetch)
        origin = Path(noted["path"])
        if self._look_at(origin) != noted["files"]:
            message = f"The files of {self.title} in {origin} have changed since they were fetched."
            raise MissingError(message, f"{self._fetch} --force")
        with atomic_folder(folder) as partial:
            unpacked, staging = partial / "unpacked", partial / "staging"
            unpacked.mkdir()
            staging.mkdir()
            paths = self._unpack(origin, unpacked, progress)
            table = self.table(RawFiles(self.title, paths, staging, progress))
            options = self.resolved_options()
            prepare_table(table, self.spec(), partial, self.name, options, progress)
            shutil.rmtree(unpacked)
            shutil.rmtree(staging)

    @property
    def _fetch(self) -> str:
        return f"mtlkit fetch {self.name}"

    @property
    def _by_hand(self) -> str:
        """The hint for those who must bring the files themselves."""
        return f"download it from {self.url}, then: {self._fetch} --from FILE"

    def _look_at(self, origin: Path) -> list[dict[str, Any]]:
        """Name, size and date of the files that are read, or of the archive that holds them.

        Raises:
            MissingError: One is not there, or the archive is damaged.
        """
        found: dict[str, Path] = {}
        with self._told_as_error(origin):
            for path, place, _ in _raw_files(origin):
                name = self.member(path)
                if name is not None:
                    found[name] = place
        missing = self.missing_members(found)
        if missing:
            raise MissingError(f"{origin} holds no {' and no '.join(missing)}.", self._by_hand)
        notes = []
        for place in sorted(set(found.values())):
            stat = place.stat()
            notes.append({"file": place.name, "bytes": stat.st_size, "changed": stat.st_mtime_ns})
        return notes

    def _unpack(self, origin: Path, folder: Path, progress: Progress) -> dict[str, Path]:
        """Name of a file to where it lies; those of an archive are unpacked into a folder."""
        paths: dict[str, Path] = {}
        with self._told_as_error(origin):
            for path, place, stream in _raw_files(origin):
                name = self.member(path)
                if name is None:
                    continue
                if stream is None:
                    paths[name] = place
                    continue
                # Under a name of our own: what an archive calls it may be a path to anywhere.
                suffix = ".gz" if path.name.endswith(".gz") else ""
                paths[name] = folder / (name.replace("/", "-") + suffix)
                progress(f"unpacking {name}", 0, None)
                with paths[name].open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
        return paths

    @contextmanager
    def _told_as_error(self, origin: Path) -> Iterator[None]:
        """Turn what a damaged archive raises into one sentence."""
        try:
            yield
        except DAMAGED as error:
            message = f"{origin} is truncated or damaged: {one_line(error)}."
            raise MissingError(message, self._by_hand) from None


def _raw_files(origin: Path) -> Iterator[tuple[PurePosixPath, Path, IO[bytes] | None]]:
    """Every file in a folder, in an archive, or in the archives of a folder; or the file itself.

    Yields:
        Its path within them, the file on disk, and a stream if that is an archive, which can be
        read until the next file is asked for. Links in archives are not followed.
    """
    if origin.is_dir():
        paths = list(islice(origin.rglob("*"), MOST_FILES + 1))
        if len(paths) > MOST_FILES:
            message = f"The folder {origin} holds more than {MOST_FILES:,} files and folders."
            raise UsageError(message, "give --from the folder of the raw files alone")
        for path in sorted(path for path in paths if path.is_file()):
            if path.name.endswith(ARCHIVES):
                yield from _raw_files(path)
            else:
                yield PurePosixPath(path.relative_to(origin).as_posix()), path, None
    elif origin.name.endswith(".zip"):
        with zipfile.ZipFile(origin) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as member:
                        yield PurePosixPath(entry.filename), origin, member
    elif origin.name.endswith(ARCHIVES):
        with tarfile.open(origin) as archive:
            for info in archive:
                stream = archive.extractfile(info) if info.isreg() else None
                if stream is not None:
                    yield PurePosixPath(info.name), origin, stream
    else:
        yield PurePosixPath(origin.name), origin, None
