"""Reading of archives of many small arrays, much faster than zipfile and numpy do it.

A file that is not of the usual form is left to them.
"""

from __future__ import annotations

import io
import math
import zlib
from functools import lru_cache
from typing import Any
from zipfile import ZIP_DEFLATED, ZipInfo

import numpy as np

from mtlkit.record_check import UnreadableError

ZIP_START = b"PK"
MEMBER_START = b"PK\x03\x04"
MEMBER_HEADER = 30  # bytes of the header of a member of an archive, before its name
NPY_START = b"\x93NUMPY\x01\x00"
HEADER_START = len(NPY_START) + 2
"""Bytes before the header of an array's file; the last two hold its length."""


def read_archive(packed: bytes, limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` archive.

    Args:
        packed: The file.
        limit: The most bytes that the arrays may have, if there is a limit.

    Raises:
        UnreadableError: It is damaged, too large, or no archive of arrays.
    """
    if not packed.startswith(ZIP_START):
        raise UnreadableError("it is no archive of arrays")

    # Damage has many names: of numpy, of zipfile, of every kind of compression.
    try:
        return _read_members(packed, limit)
    except UnreadableError:
        raise
    except Exception as error:
        detail = str(error) or type(error).__name__
        raise UnreadableError(f"it is damaged: {detail}") from error


def _read_members(packed: bytes, limit: int | None) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        # the size unpacked, before anything is
        size = sum(member.file_size for member in archive.zip.infolist())
        if limit is not None and size > limit:
            raise UnreadableError(f"it unpacks to more than {limit >> 20} MiB")
        named_arrays = {
            info.filename.removesuffix(".npy"): _read_member(archive, info, packed)
            for info in archive.zip.infolist()
        }
    for name, array in named_arrays.items():
        if not isinstance(array, np.ndarray):
            raise UnreadableError(f"{name} in it is no array")
    return named_arrays


def _read_member(archive: Any, info: ZipInfo, packed: bytes) -> Any:
    """One array of an archive; unless it is of the usual form, by numpy's own slow reader."""
    content = _unpacked(info, packed)
    if content is None:
        content = archive.zip.read(info)
    start = HEADER_START + int.from_bytes(content[len(NPY_START) : HEADER_START], "little")
    if content.startswith(NPY_START) and start < len(content):
        kind = _array_kind(content[:start])
        if kind is not None and kind[0].itemsize * math.prod(kind[1]) == len(content) - start:
            dtype, shape = kind
            return np.frombuffer(content, dtype, offset=start).reshape(shape)
    return archive[info.filename]


def _unpacked(info: ZipInfo, packed: bytes) -> bytes | None:
    """The content of a member of an archive; None unless it is packed in the usual way and whole.
    ``zipfile`` takes ten times as long, most of it to find out what can be packed in another way.
    """
    # the header of the member repeats its name, and ends with the lengths of two fields after it
    header = packed[info.header_offset : info.header_offset + MEMBER_HEADER]
    name_length = int.from_bytes(header[-4:-2], "little")
    name_end = info.header_offset + MEMBER_HEADER + name_length
    name = packed[info.header_offset + MEMBER_HEADER : name_end]
    is_usual = info.compress_type == ZIP_DEFLATED and not info.flag_bits
    if not is_usual or not header.startswith(MEMBER_START) or name != info.filename.encode():
        return None

    # no more is unpacked than was announced
    start = name_end + int.from_bytes(header[-2:], "little")
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = decompressor.decompress(
            packed[start : start + info.compress_size], info.file_size + 1
        )
    except zlib.error:
        return None
    is_whole = len(content) == info.file_size and zlib.crc32(content) == info.CRC
    return content if is_whole else None


@lru_cache(maxsize=1024)
def _array_kind(header: bytes) -> tuple[np.dtype, tuple[int, ...]] | None:
    """Type and shape of an array, from the start of its file; None unless it is of a usual form.
    Runs of a grid share their headers.
    """
    stream = io.BytesIO(header[len(NPY_START) :])
    try:
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError:
        return None
    is_usual = not by_columns and not dtype.hasobject and min(shape, default=1) > 0
    return (dtype, shape) if is_usual else None
