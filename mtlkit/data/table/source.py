"""A table as a data set: its files, what they mean, and where the prepared splits lie.

The prepared folder is keyed by what the user said and by a digest of what the files hold; their
names and places do not count. A file that changed is another data set.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from mtlkit.data.data_home import expand
from mtlkit.data.datasets._source import Progress, StreamedSource, no_progress
from mtlkit.data.storage import atomic_folder
from mtlkit.data.table.files import content_digest, find_files, kind_of
from mtlkit.data.table.prepare import prepare_table
from mtlkit.data.table.read import Table, open_parquet
from mtlkit.data.table.spec import TableSpec, Texts
from mtlkit.data.table.stage import stage_text
from mtlkit.errors import MissingError, UsageError
from mtlkit.settings import validate
from mtlkit.spec import Spec, digest
from mtlkit.yaml_files import read_yaml

FOLDER = "tables"  # where the prepared tables lie in the data home
YAML = (".yaml", ".yml")


class TableSource(StreamedSource):
    """A table of the user's."""

    class Options(TableSpec):
        """What a table means, and which table that is."""

        content: str = Field("", description="the digest of what the files hold")

    options: Options
    title: ClassVar[str] = "a table of your own"
    licence: ClassVar[str] = "yours"
    url: ClassVar[str] = "files on this machine"

    def __init__(
        self, name: str, options: Options, files: Sequence[Path] = (), typed: str | None = None
    ) -> None:
        super().__init__(name, options)
        self.files = list(files)
        self.typed = typed

    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Do nothing: the files are read where they lie.

        Raises:
            UsageError: An ``origin`` is given.
        """
        if origin is not None:
            raise UsageError(
                "A table is read where it lies, so it takes no --from.",
                f"mtlkit fetch {shlex.quote(str(origin))}",
            )

    def provenance(self, home: Path) -> str | None:
        """The files."""
        if not self.files:
            return None
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"

    def folder(self, home: Path) -> Path:
        """Where the prepared data lie; what the files hold is found out first."""
        if not self.options.content:
            content = content_digest(self.files, home / FOLDER / "files")
            self.options = self.options.model_copy(update={"content": content})
        key = digest([self.preparation, self.resolved_options()])[:12]
        return home / FOLDER / self.name / key

    def forget(self, home: Path) -> None:
        """Remove what was prepared of these files with these options."""
        shutil.rmtree(self.folder(home), ignore_errors=True)

    def build(self, home: Path, folder: Path, progress: Progress = no_progress) -> None:
        """Read the files and write the prepared data, which appear when they are whole.

        Raises:
            MtlkitError: A file cannot be read, or a column is not what the user said.
        """
        if not self.files:
            raise MissingError(
                f"The prepared data of {self.name} are gone from {folder}.", "run the command again"
            )
        with atomic_folder(folder) as partial:
            staging = partial / "staging"
            staging.mkdir()
            table = self._open(staging, progress)
            options = self.resolved_options()
            prepare_table(table, self.options, partial, self.name, options, progress)
            shutil.rmtree(staging)
        if content_digest(self.files, home / FOLDER / "files") != self.options.content:
            shutil.rmtree(folder)
            raise MissingError(f"{self.name} changed while it was read.", "run the command again")

    def _open(self, staging: Path, progress: Progress) -> Table:
        """The rows of the files."""
        label = self.provenance(staging) or self.name
        if kind_of(self.files[0]) == "parquet":
            return open_parquet(self.files, label, self.options.drop)
        return stage_text(self.files, label, self.options, staging, progress)

    def _command(self) -> str:
        """What prepares the data of these options again."""
        return f"mtlkit fetch {shlex.quote(self.typed or self.name)} --force"


class _TableFile(TableSpec):
    """What a YAML file holds: a table, and where it lies."""

    files: Texts = Field((), description="a file, a folder or a glob, from the YAML file's folder")


def open_table(spec: Spec) -> TableSource:
    """The table of a path, a folder, a glob or a YAML file, with options in brackets.

    Raises:
        UsageError: An option is wrong, or the YAML file is not valid.
        MissingError: There are no such files.
    """
    path = expand(Path(spec.name))
    typed = str(Spec(str(path.absolute()), spec.options))
    if path.suffix.lower() not in YAML:
        files = find_files(spec.name)
        described = validate(TableSpec, spec.options, f"table {spec.name}")
        return TableSource(_name(path, files), _options(described), files, typed)

    # Options in brackets win over those of the file.
    values = _read_file(path) | spec.options
    in_file = validate(_TableFile, values, f"table {spec.name}", "mtlkit init TABLE shows a file")
    if not in_file.files:
        raise UsageError(
            f"{spec.name} does not say where the table lies.", "add files: clicks.parquet"
        )
    files = [file for name in in_file.files for file in find_files(str(path.parent / name))]
    return TableSource(path.name, _options(in_file), files, typed)


def _options(described: TableSpec) -> TableSource.Options:
    """What a table means, as options of its source; what the files hold is not known yet."""
    return TableSource.Options(**described.model_dump(exclude={"files"}))


def reopen_table(name: str, options: Mapping[str, Any]) -> TableSource:
    """A table that was prepared before, from its name and options in a record."""
    return TableSource(name, TableSource.Options.model_validate(options))


def _name(path: Path, files: Sequence[Path]) -> str:
    """What a table is called: by its file, or by its folder and the kind of its files."""
    if not path.is_dir():
        return path.name
    suffix = ".parquet" if kind_of(files[0]) == "parquet" else ".csv"
    return path.resolve().name.removesuffix(suffix) + suffix


def _read_file(path: Path) -> dict[str, Any]:
    """The values of a YAML file; a :class:`UsageError` if it is not valid."""
    hint = "mtlkit init TABLE > table.yaml makes such a file"
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"Cannot read {path}: {reason}.", hint) from None
