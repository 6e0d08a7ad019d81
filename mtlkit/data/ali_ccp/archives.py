"""Finding the four text files of Ali-CCP, and streaming them without unpacking to disk.

Nothing of an archive is ever written under a name that it gives, and only regular members of the
four known names (and the mark of the simulator) are read, in the order in which they come.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from isal import igzip, isal_zlib

from mtlkit.data.ali_ccp.fields import LINE_FEED, MEMBERS, OFFICIAL_SPLITS
from mtlkit.data.datasets._source import Progress
from mtlkit.errors import MissingError, UsageError
from mtlkit.files import reason_of

BLOCK = 4 << 20
"""Bytes handed on at a time; a longer line is no line of Ali-CCP (its longest has about 70 kB)."""
BLOCKS_AHEAD = 4
MAX_HEADER = 1 << 20  # a long name or extended header; a hostile one could claim gigabytes
MAX_TEXT = 200 << 30  # what one file may unpack to; all four real ones together have 41 GB
MARK = "simulated.json"
MOST_NOTED = 1e15  # far above every number that the simulator notes
ARCHIVE = re.compile(r"sample_(train|test)\.(tar\.gz|tgz|tar)")
_ISAL_ERROR: Any = isal_zlib.IsalError
DAMAGED = (EOFError, zlib.error, _ISAL_ERROR, igzip.BadGzipFile, tarfile.TarError)
_LONG_NAME, _EXTENDED = b"L", b"x"
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})  # links, devices, folders, pipes


@dataclass(frozen=True)
class RawSource:
    """The files to read, in order."""

    files: tuple[Path, ...]  # archives and CSV files

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files)

    def of(self, split: str) -> list[Path]:
        """The files of one split."""
        return [file for file in self.files if file.name.partition(".")[0].endswith(f"_{split}")]

    def unpacked_bytes(self) -> int:
        """A guess, on the high side, of the size of the text."""
        sizes = []
        for file in self.files:
            ratio = 5 if _is_gzip(file) else 1
            sizes.append(ratio * file.stat().st_size)
        return sum(sizes)


def find_source(origin: Path, hint: str) -> RawSource:
    """The official files in a folder, or beside a file that is one of them.

    For each split its archive ``sample_<split>.tar.gz`` (also ``.tgz``, ``.tar``) is taken, or its
    two CSV files, which may also lie one folder deeper or end in ``.gz``.

    Raises:
        UsageError: ``origin`` does not exist.
        MissingError: A file is not there.
    """
    if not origin.exists():
        raise UsageError(f"There is no file or folder {origin}.", hint)
    folder = origin if origin.is_dir() else origin.parent
    entries = sorted(folder.iterdir())
    near = [path for path in entries if path.is_file()]
    deeper = [path for sub in entries if sub.is_dir() for path in sorted(sub.iterdir())]
    files: list[Path] = []
    for split in OFFICIAL_SPLITS:
        files += _files_of(split, near, deeper, folder, hint)
    return RawSource(tuple(files))


def _files_of(
    split: str, near: list[Path], deeper: list[Path], folder: Path, hint: str
) -> list[Path]:
    """Both texts of a split, else its archive."""
    names = _member_names(split)
    texts = {}
    for path in (*deeper, *near):
        name = path.name.removesuffix(".gz")
        if path.is_file() and name in names:
            texts[name] = path
    if len(texts) == len(names):
        return [texts[name] for name in names]

    for path in near:
        match = ARCHIVE.fullmatch(path.name)
        if match and match[1] == split:
            return [path]

    missing = " and ".join(name for name in names if name not in texts)
    raise MissingError(f"{folder} holds neither sample_{split}.tar.gz nor {missing}.", hint)


def _member_names(split: str) -> list[str]:
    return [name for name, (member_split, _) in MEMBERS.items() if member_split == split]


@dataclass
class Text:
    """One of the four files, while it is read."""

    split: str  # ``train`` or ``test``
    kind: str  # ``skeleton`` or ``common``
    # Its text in blocks of whole lines, each ending in a line feed; each block is valid until the
    # next.
    blocks: Iterator[np.ndarray]


@dataclass
class Reading:
    """What is noted while files are read."""

    # One entry a file: name, bytes and sha256.
    hashes: list[dict[str, Any]] = field(default_factory=list)
    simulated: dict[str, Any] | None = None  # what the simulator noted, if it wrote the archives
    text_bytes: int = 0  # bytes of the four texts so far


def read_texts(
    source: RawSource, split: str, reading: Reading, progress: Progress, hint: str
) -> Iterator[Text]:
    """The two texts of a split in the order in which they lie; the blocks of each must be used up
    before the next.

    Raises:
        MissingError: A file is damaged, is not what it should be, fails its ``.md5``, or a text is
            missing or twice there.
    """
    names = _member_names(split)
    seen: set[str] = set()
    for path in source.of(split):
        with _open_hashed(path, reading, progress, hint) as stream:
            # A text of its own, or the members of an archive.
            text_name = path.name.removesuffix(".gz")
            if text_name in names:
                members = iter([(text_name, stream)])
            else:
                members = _members(stream, (*names, MARK))
            for name, member in members:
                if name == MARK:
                    reading.simulated = _mark(_exactly(member, min(member.left, MAX_HEADER)))
                    continue
                if name in seen:
                    raise MissingError(f"{name} is there twice: again in {path}.", hint)
                seen.add(name)
                with _ahead(_line_blocks(member, name), path, hint) as blocks:
                    yield Text(split, MEMBERS[name][1], _counted(blocks, reading))

    missing = [name for name in names if name not in seen]
    if missing:
        folder = source.files[0].parent
        raise MissingError(f"{' and '.join(missing)} is in none of the files of {folder}.", hint)


@contextmanager
def read_whole(
    path: Path, reading: Reading, progress: Progress, hint: str
) -> Iterator[Iterator[np.ndarray]]:
    """The blocks of one text file, plain or gzip, noted in ``reading`` when all are used up."""
    with (
        _open_hashed(path, reading, progress, hint) as stream,
        _ahead(_line_blocks(stream, path.name), path, hint) as blocks,
    ):
        yield _counted(blocks, reading)


@contextmanager
def _open_hashed(path: Path, reading: Reading, progress: Progress, hint: str) -> Iterator[Any]:
    """The unpacked bytes of a file, which is read to its end, checked and noted afterwards."""
    raw = _HashedFile(path, progress)
    with _damage(path, hint), path.open("rb") as file:
        raw.open(file)
        yield igzip.IGzipFile(fileobj=raw, mode="rb") if _is_gzip(path) else raw
        raw.read_rest()
    raw.check_md5(hint)
    reading.hashes.append({"file": path.name, "bytes": raw.done, "sha256": raw.sha256.hexdigest()})


def _counted(blocks: Iterator[np.ndarray], reading: Reading) -> Iterator[np.ndarray]:
    """The same blocks; their bytes are added up."""
    for block in blocks:
        reading.text_bytes += len(block)
        yield block


@contextmanager
def _damage(path: Path, hint: str) -> Iterator[None]:
    """What the readers raise on a damaged file, as an error that names it."""
    try:
        yield
    except DAMAGED as error:
        raise MissingError(
            f"{path} is truncated or damaged: {str(error).rstrip('.')}.", hint
        ) from None
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {reason_of(error)}.", hint) from None


def _is_gzip(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
    return False


def _mark(content: bytes) -> dict[str, Any] | None:
    """What the simulator noted: numbers and objects of them alone, for anybody may have done it."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return _numbers(facts, 2) if isinstance(facts, dict) else None


def _numbers(facts: dict[str, Any], deeper: int) -> dict[str, Any]:
    """The finite numbers of an object, and those of the objects in it."""
    numbers: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict) and deeper:
            numbers[name] = _numbers(value, deeper - 1)
        elif isinstance(value, int | float) and abs(value) < MOST_NOTED:  # false for NaN
            numbers[name] = value
    return numbers


class _HashedFile:
    """A file that is hashed and counted while it is read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path, self.progress = path, progress
        self.sha256 = hashlib.sha256()
        self.expected: list[str] = []
        md5_file = path.with_name(f"{path.name}.md5")
        if md5_file.is_file():
            self.expected = md5_file.read_text(encoding="utf-8", errors="replace").split()[:1]
        self.md5 = hashlib.md5(usedforsecurity=False) if self.expected else None
        self.done = 0

    def open(self, file: IO[bytes]) -> None:
        self.file, self.total = file, self.path.stat().st_size

    def read(self, size: int = -1) -> bytes:
        chunk = self.file.read(size)
        self._take(chunk)
        return chunk

    def readinto(self, buffer: memoryview) -> int:
        size = self.file.readinto(buffer)  # type: ignore[attr-defined]
        self._take(memoryview(buffer)[:size])
        return int(size)

    def _take(self, chunk: bytes | memoryview) -> None:
        self.sha256.update(chunk)
        if self.md5 is not None:
            self.md5.update(chunk)
        self.done += len(chunk)
        self.progress(f"preparing {self.path.name}", self.done, self.total)

    def read_rest(self) -> None:
        """Read what is left, so that the hash is that of the file."""
        while self.read(BLOCK):
            pass

    def check_md5(self, hint: str) -> None:
        if self.md5 is not None and self.md5.hexdigest() != self.expected[0].lower():
            raise MissingError(
                f"{self.path} is damaged: its md5 is not that of {self.path.name}.md5 beside it.",
                hint,
            )


class _Member:
    """The bytes of one member of a tar."""

    def __init__(self, stream: Any, size: int) -> None:
        self.stream, self.left = stream, size

    def readinto(self, buffer: memoryview) -> int:
        wanted = min(len(buffer), self.left)
        size = self.stream.readinto(buffer[:wanted]) if wanted else 0
        if wanted and not size:
            raise EOFError("it ends inside a member")
        self.left -= size
        return int(size)


def _members(stream: Any, wanted: tuple[str, ...]) -> Iterator[tuple[str, _Member]]:
    """The members of a tar that have one of some names; tarfile itself trusts header sizes."""
    long_name, extended = None, {}
    scratch = memoryview(bytearray(1 << 20))
    while True:
        header = _exactly(stream, tarfile.BLOCKSIZE)
        if not header or not header.strip(b"\0"):
            return

        # Long names and sizes stand in members of their own, before the one that they are about.
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        size = 0 if info.type in _WITHOUT_DATA else info.size
        if size < 0:
            raise tarfile.ReadError("it holds a member of negative size")
        if info.type in (_LONG_NAME, _EXTENDED):
            if size > MAX_HEADER:
                raise tarfile.ReadError(f"it holds a header of {size:,} bytes")
            content = _exactly(stream, size + -size % tarfile.BLOCKSIZE)[:size]
            if info.type == _LONG_NAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "replace")
            else:
                extended = _records(content)
            continue

        full_name = extended.get("path") or long_name or info.name
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not full_name.endswith("/")
        if is_file and "size" in extended:
            size = int(extended["size"])
        name = PurePosixPath(full_name).name
        long_name, extended = None, {}
        member = _Member(stream, size)
        if is_file and name in wanted:
            yield name, member

        # Skip what was not read, and what fills the last block.
        member.left += -size % tarfile.BLOCKSIZE
        while member.left:
            member.readinto(scratch)


def _records(content: bytes) -> dict[str, str]:
    """The two records of an extended header that matter: path and size."""
    records = {}
    for match in re.finditer(rb"\d+ (path|size)=([^\n]*)\n", content):
        records[match[1].decode()] = match[2].decode("utf-8", "replace")
    if not re.fullmatch("[0-9]{1,18}", records.get("size", "0")):
        raise tarfile.ReadError("it holds a member of strange size")
    return records


def _exactly(stream: Any, size: int) -> bytes:
    """``size`` bytes, or none at the end of the stream."""
    content = bytearray(size)
    done = _fill(stream, memoryview(content))
    if done == size:
        return bytes(content)
    if done:
        raise EOFError("it ends inside a header")
    return b""


def _fill(stream: Any, view: memoryview) -> int:
    """Read until the view is full or the stream ends; returns how many bytes were read."""
    filled = 0
    while filled < len(view):
        count = stream.readinto(view[filled:])
        if not count:
            break
        filled += count
    return filled


def _line_blocks(member: Any, name: str) -> Iterator[np.ndarray]:
    """Blocks of whole lines. A last line without a line feed gets one."""
    # One buffer is in use, some wait, one is filled: fresh memory for each would cost more than
    # filling it.
    most_buffers, buffers = BLOCKS_AHEAD + 3, list[bytearray]()
    begun_line = b""
    total, number = 0, 0
    while True:
        if len(buffers) < most_buffers:
            buffers.append(bytearray(BLOCK + 1))
        buffer = buffers[number % most_buffers]
        number += 1

        # The line that the block before has begun, then as much as there is.
        buffer[: len(begun_line)] = begun_line
        view = memoryview(buffer)
        count = _fill(member, view[len(begun_line) : BLOCK])
        filled = len(begun_line) + count
        total += count
        if total > MAX_TEXT:
            raise tarfile.ReadError(f"{name} unpacks to more than {MAX_TEXT >> 30} GiB")
        at_end = filled < BLOCK
        if at_end and filled and buffer[filled - 1] != LINE_FEED:
            buffer[filled] = LINE_FEED
            filled += 1

        # Hand on whole lines.
        end_of_lines = buffer.rfind(b"\n", 0, filled) + 1
        if not end_of_lines and filled:
            raise tarfile.ReadError(f"{name} has a line of more than {BLOCK >> 20} MiB")
        if end_of_lines:
            yield np.frombuffer(buffer, np.uint8, end_of_lines)
        if at_end:
            return
        begun_line = bytes(view[end_of_lines:filled])


@contextmanager
def _ahead(blocks: Iterator[np.ndarray], path: Path, hint: str) -> Iterator[Iterator[np.ndarray]]:
    """Run an iterator in a thread of its own, a few blocks ahead: unpacking and hashing release the
    lock of the interpreter.
    """
    thread = ThreadPoolExecutor(1, f"reading {path.name}")

    def take() -> Iterator[np.ndarray]:
        waiting = deque(thread.submit(next, blocks, None) for _ in range(BLOCKS_AHEAD))
        while True:
            with _damage(path, hint):
                block = waiting.popleft().result()
            if block is None:
                return
            waiting.append(thread.submit(next, blocks, None))
            yield block

    try:
        yield take()
    finally:
        thread.shutdown(cancel_futures=True)
