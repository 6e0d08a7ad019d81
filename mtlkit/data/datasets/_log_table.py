"""Public logs in files of their own: downloaded from their address, or brought by the user.

Archives and files stay where they are. They are unpacked and typed while they are prepared, and
need not fit in memory.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from mtlkit.data.datasets._source import (
    Progress,
    StreamedSource,
    no_progress,
    note_files,
    read_source,
    write_source,
)
from mtlkit.data.download import DownloadError, download
from mtlkit.data.raw_files import DAMAGED, raw_files
from mtlkit.data.storage import atomic_folder
from mtlkit.data.table.join import check_columns
from mtlkit.data.table.prepare import prepare_table
from mtlkit.data.table.read import Table
from mtlkit.data.table.spec import MISSING_TEXTS, TableSpec
from mtlkit.data.table.stage import stage_text
from mtlkit.errors import MissingError, one_line
from mtlkit.spec import digest


@dataclass
class RawFiles:
    """The raw files of a data set while it is prepared."""

    title: str  # of the data set
    paths: Mapping[str, Path]  # by the names that the data set gives them
    staging: Path  # a folder for what is staged
    progress: Progress

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


class LogTableSource(StreamedSource):
    """A data set that is made of text files of a known format.

    A subclass names the files, makes one table of them, and says what its columns mean.
    """

    address: ClassVar[str | None] = None  # of the archive; None where it takes a login or a form
    md5: ClassVar[str | None] = None  # of the archive, where that is known
    unverified: ClassVar[str] = "format as its README says; not compared with the real files here"
    """What could not be verified, for the card."""
    training: ClassVar[dict[str, Any]] = {"epochs": 1, "batch_size": 4096}

    members: ClassVar[tuple[str, ...]]
    """Names of the files that any options read, wherever they lie in an archive or folder."""

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

    def needed(self, found: Collection[str]) -> Sequence[str]:
        """The files that these options read, given those that there are; without any, at most."""
        return self.members

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
        if origin is None and noted is not None:
            if not force:
                return None
            # The user's files are looked at again.
            is_brought = Path(noted["path"]).is_absolute()
            origin = Path(noted["path"]) if is_brought else None
        if origin is not None:
            return write_source(raw, self._note(origin.expanduser().resolve()))
        if self.address is None:
            raise MissingError(f"{self.title} takes a login or a form to download.", self._by_hand)

        archive = raw / self.address.rpartition("/")[2]
        try:
            file = download(self.address, archive, md5=self.md5, progress=progress)
        except DownloadError as error:
            hint = f"{error.hint}; or {self._by_hand}"
            raise DownloadError(error.message, hint, error.status) from None
        files = [{"file": archive.name, "bytes": file.bytes, "sha256": file.sha256}]
        return write_source(raw, {"origin": self.address, "path": archive.name, "files": files})

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
        return f"{noted.get('origin')}\n{self.unverified}"

    def folder(self, home: Path) -> Path:
        """Where the prepared data of these options and of the raw files fetched last lie."""
        identity = [self.preparation, self.resolved_options(), self.raw_digest(home)]
        return home / self.name / "prepared" / digest(identity)[:12]

    def build(self, home: Path, folder: Path, progress: Progress = no_progress) -> None:
        """Write the splits straight into the folder: they need not fit in memory.

        Raises:
            MissingError: The raw files are not there, have changed, or are others.
        """
        raw = home / self.name / "raw"
        noted = read_source(raw)
        if noted is None:
            raise MissingError(f"{self.title} is not in the data folder {home}.", self._fetch)
        # An archive that was downloaded has a name in the folder, all else a path of its own.
        origin = raw / noted["path"]
        if not origin.exists():
            message = f"The files of {self.title} are gone from {origin}."
            raise MissingError(message, self._by_hand)
        with atomic_folder(folder) as partial:
            unpacked, staging = partial / "unpacked", partial / "staging"
            unpacked.mkdir()
            staging.mkdir()
            paths, places = self._gather(origin, unpacked, progress)
            if _have_changed(noted["files"], places):
                what = f"The files of {self.title} in {origin}"
                hint = f"{self._fetch} --force"
                raise MissingError(f"{what} have changed since they were fetched.", hint)
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

    def _note(self, origin: Path) -> dict[str, Any]:
        """What is noted of the user's files: where they lie, and what tells them from others."""
        if origin.is_file() and self.member(PurePosixPath(origin.name)):
            origin = origin.parent
        files = note_files(self._gather(origin)[1])
        return {"origin": str(origin), "path": str(origin), "files": files}

    def _gather(
        self, origin: Path, unpack_to: Path | None = None, progress: Progress = no_progress
    ) -> tuple[dict[str, Path], list[Path]]:
        """Name of a file to where it lies, and the files and archives that they lie in.

        Args:
            origin: A folder or an archive.
            unpack_to: A folder for what lies in an archive; by default it stays there.

        Raises:
            MissingError: A file is not there, or the archive is damaged.
        """
        paths: dict[str, Path] = {}
        places = set()
        try:
            for path, place, stream in raw_files(origin, self.member):
                name = self.member(path) or ""
                paths[name] = place
                places.add(place)
                if stream is not None and unpack_to is not None and name in self.needed(()):
                    # Under a name of our own: what an archive calls it may be a path to anywhere.
                    suffix = ".gz" if path.name.endswith(".gz") else ""
                    paths[name] = unpack_to / (name.replace("/", "-") + suffix)
                    progress(f"preparing {name}", 0, None)
                    with paths[name].open("wb") as file:
                        shutil.copyfileobj(stream, file, 1 << 20)
        except DAMAGED as error:
            message = f"{origin} is truncated or damaged: {one_line(error)}."
            raise MissingError(message, self._by_hand) from None
        missing = [name for name in self.needed(paths) if name not in paths]
        if missing:
            raise MissingError(f"{origin} holds no {' and no '.join(missing)}.", self._by_hand)
        return paths, sorted(places)


def _have_changed(noted: Sequence[Mapping[str, Any]], places: Sequence[Path]) -> bool:
    """Whether files differ in what was noted of them; of a download the date was not."""
    now = note_files(places)
    return len(now) != len(noted) or any(
        note.get(key, value) != value
        for note, current in zip(noted, now, strict=True)
        for key, value in current.items()
    )
