"""Downloads that survive broken connections, and are checked before they get their name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from mtlkit.data.datasets._source import Progress, no_progress
from mtlkit.errors import MissingError, one_line

TIMEOUT = httpx.Timeout(30.0, connect=8.0)
ATTEMPTS = 5
BACKOFF = 0.5  # seconds before the second attempt, doubled for each one after
LONGEST_WAIT = 30.0  # seconds
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses that may pass
EXPIRED = frozenset({401, 403, 410})  # HTTP statuses of a link that needs a login or is too old
RESERVE = 64 << 20  # bytes left free on the disk
PAGE_STARTS = (b"<!doctype html", b"<html")
COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})  # content encodings that are understood
OTHER_MEANS = "try again later, or download it by other means"


class DownloadError(MissingError):
    """A file could not be downloaded."""

    def __init__(self, message: str, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True)
class Downloaded:
    """A finished download."""

    path: Path  # the file
    url: str  # where it came from
    bytes: int  # its size
    sha256: str  # the hash of its contents, in hex


@dataclass(frozen=True)
class _Request:
    """What a call of :func:`download` asks for; the fields are arguments of that function."""

    url: str
    shown_url: str
    progress: Progress


class _AttemptFailed(Exception):
    """This attempt failed in a way that the next one may not.

    Args:
        reason: What went wrong, for the message after the last attempt.
        wait: Seconds until the next attempt; None for the usual ones.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def download(
    url: str,
    destination: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress = no_progress,
    shown_url: str | None = None,
) -> Downloaded:
    """Download a file, continuing where an earlier attempt broke off.

    The earlier attempt may be one of this call or of an earlier one. The bytes are collected in
    ``<destination>.part``. They are continued only while the server vouches, through an ETag or a
    modification date, that the file is still the same.

    Args:
        url: An https address; http only where the user gave it.
        destination: The final name, which the file gets when it is complete and checked. Its folder
            is made.
        sha256: What the contents must hash to, in hex.
        md5: The same, where that is all that is known.
        progress: Told of (file name, bytes so far, bytes in all or None).
        shown_url: The address in messages and notes, where ``url`` carries a signature: a link that
            was signed again continues the same file.

    Raises:
        DownloadError: The file cannot be had, does not fit on the disk, is not the one expected, or
            is a web page, which a login or an expired link gives instead of a file.
    """
    request = _Request(url, shown_url or url, progress)
    partial = _PartialFile(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _complete(request, partial)

    # What is complete may still be another file than the expected one.
    size = partial.size
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        actual = file_digest(partial.path, algorithm)
        if actual != expected.lower():
            partial.discard()
            raise DownloadError(
                f"{request.shown_url} is not the file expected: "
                f"its {algorithm} is {actual}, not {expected.lower()}.",
                "try again; if it stays so, the file was replaced or tampered with",
            )

    # Only now does it get its name; what is left to discard is the note beside it.
    partial.path.replace(destination)
    partial.discard()
    actual = sha256.lower() if sha256 else file_digest(destination)
    return Downloaded(destination, request.shown_url, size, actual)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


class _PartialFile:
    """The unfinished file, and a note beside it of what the server said about it."""

    def __init__(self, destination: Path) -> None:
        self.name = destination.name
        self.path = destination.with_name(f"{destination.name}.part")
        self.note = destination.with_name(f"{destination.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read_note(self, url: str) -> tuple[str | None, int | None]:
        """The validator and the full size that were noted for an address; None where unknown."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            noted_url, validator, total = note["url"], note["validator"], note["total"]
        except (OSError, ValueError, KeyError, TypeError):
            return None, None
        return (validator, total) if noted_url == url else (None, None)

    def write_note(self, url: str, validator: str | None, total: int | None) -> None:
        """Note what is needed to continue the file later."""
        note = {"url": url, "validator": validator, "total": total}
        self.note.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        """Remove the file and its note."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _complete(request: _Request, partial: _PartialFile) -> None:
    """Make attempts until the partial file is complete.

    Raises:
        DownloadError: ``ATTEMPTS`` attempts in a row brought nothing, or one failed for good.
    """
    failures = 0
    most_bytes = partial.size
    with _client(request) as client:
        while True:
            try:
                return _attempt(client, request, partial)
            except _AttemptFailed as error:
                # A connection that breaks every few megabytes still gets there: only attempts that
                # bring nothing count.
                failures = 1 if partial.size > most_bytes else failures + 1
                most_bytes = max(most_bytes, partial.size)
                if failures >= ATTEMPTS:
                    message = f"{request.shown_url} could not be downloaded: {error}."
                    raise DownloadError(message, "try again later") from None

                # A server that is busy may say how long to wait.
                wait = BACKOFF * 2 ** (failures - 1) if error.wait is None else error.wait
                time.sleep(min(wait, LONGEST_WAIT))


def _client(request: _Request) -> httpx.Client:
    """The client; proxies and certificates are the environment's, https leads to https alone."""

    def refuse_plain(sent: httpx.Request) -> None:
        if request.url.lower().startswith("https:") and sent.url.scheme != "https":
            message = f"{request.shown_url} leads to an address without https, on {sent.url.host}."
            raise DownloadError(message, OTHER_MEANS)

    hooks = {"request": [refuse_plain]}
    try:
        return httpx.Client(timeout=TIMEOUT, follow_redirects=True, event_hooks=hooks)
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        reason = one_line(error)
        message = f"The proxy or the certificates of the environment cannot be used: {reason}."
        hint = "correct or unset HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        raise DownloadError(message, hint) from None


def _attempt(client: httpx.Client, request: _Request, partial: _PartialFile) -> None:
    """Ask for the bytes that are missing, and write them to the partial file."""
    # Without a validator nobody can say whether the bytes here belong to the same file.
    validator, total = partial.read_note(request.shown_url)
    if not validator:
        partial.discard()
    elif partial.size and partial.size == total:
        return

    # If-Range: a server whose file has changed sends the new one from its beginning.
    headers = {"Accept-Encoding": "identity"}
    if partial.size and validator:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": validator}

    with (
        _translated_errors(request.shown_url),
        client.stream("GET", request.url, headers=headers) as response,
    ):
        _check_status(response, request, partial)
        start = _start_of_body(response, partial)
        _receive(response, request, partial, start)


@contextmanager
def _translated_errors(shown_url: str) -> Iterator[None]:
    """Turn errors of the connection into a :class:`DownloadError`, or into another attempt."""
    try:
        yield
    except httpx.TooManyRedirects:
        message = f"{shown_url} cannot be opened: it leads from one address to another forever."
        raise DownloadError(message, "check the address") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        message = f"{shown_url} cannot be opened: {one_line(error)}."
        raise DownloadError(message, "check the address") from None
    except zlib.error:
        message = f"{shown_url} comes damaged: it is not compressed as the server says."
        raise DownloadError(message, OTHER_MEANS) from None
    except httpx.TransportError as error:
        _raise_if_final(error)
        raise _AttemptFailed(one_line(error)) from None


def _raise_if_final(error: httpx.TransportError) -> None:
    """Raise a :class:`DownloadError` for what will not be better in half a second."""
    # After a redirection this is not the host that was asked first.
    host = error.request.url.host
    if _caused_by(error, socket.gaierror):
        message = f"{host} cannot be reached: its name is not resolved, or that of a proxy."
        raise DownloadError(message, "check the network")
    if _caused_by(error, ssl.SSLCertVerificationError):
        raise DownloadError(
            f"{host} cannot be trusted: {one_line(error)}.",
            "check address and clock; SSL_CERT_FILE=FILE adds a certificate of your network",
        )


def _check_status(response: httpx.Response, request: _Request, partial: _PartialFile) -> None:
    """Raise unless the head of a response announces the file or the rest of it."""
    status = response.status_code
    answer = f"{status} {response.reason_phrase}"

    # Failures that may pass: the next attempt starts over, or comes later.
    if status == 416:
        partial.discard()
        raise _AttemptFailed("the server refuses to continue an earlier download", 0.0)
    if status in RETRIED:
        raise _AttemptFailed(f"the server answers {answer}", _retry_after(response))

    # Failures that stay.
    if status not in (200, 206):
        hint = "the link may have expired" if status in EXPIRED else "check the address"
        raise DownloadError(f"{request.shown_url} answers {answer}.", hint, status)
    content_type = response.headers.get("content-type", "").lower()
    if content_type.startswith(("text/html", "application/xhtml")):
        raise _web_page_error(request.shown_url)
    encoding = _encoding(response)
    if encoding != "identity" and encoding not in COMPRESSED:
        message = f"{request.shown_url} comes compressed as {encoding!r}, which is not understood."
        raise DownloadError(message, OTHER_MEANS)


def _encoding(response: httpx.Response) -> str:
    """How a server says that it compresses a body; ``identity`` if not at all."""
    return response.headers.get("content-encoding", "").strip().lower() or "identity"


def _start_of_body(response: httpx.Response, partial: _PartialFile) -> int:
    """The byte of the file at which the body of a response starts: 0, or where the file ends."""
    if response.status_code == 200:
        return 0
    content_range = response.headers.get("content-range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    if match is None or int(match[1]) != partial.size:
        partial.discard()
        raise _AttemptFailed("the server continues at the wrong place", 0.0)
    return partial.size


def _receive(
    response: httpx.Response, request: _Request, partial: _PartialFile, start: int
) -> None:
    """Write the body to the partial file from byte ``start`` on, and check its length."""
    # The stated length is that of the bytes sent, which is of no use if they are compressed.
    plain = _encoding(response) == "identity"
    stated = response.headers.get("content-length") if plain else None
    length = None if stated is None else int(stated)
    total = None if length is None else start + length
    _check_disk(partial.path.parent, length or 0, request.shown_url)

    # Noted before the first byte is written: the connection may break at any time.
    partial.write_note(request.shown_url, _validator(response) if plain else None, total)
    received = start
    request.progress(partial.name, received, total)
    with partial.path.open("ab" if start else "wb") as file:
        for chunk in response.iter_raw() if plain else _unpacked(response):
            # Some servers send a login page as if it were the file.
            if received == 0 and _is_web_page(chunk):
                raise _web_page_error(request.shown_url)
            file.write(chunk)
            received += len(chunk)
            request.progress(partial.name, received, total)

    if total is not None and received != total:
        raise _AttemptFailed(f"{received:,} bytes came instead of {total:,}")


def _unpacked(response: httpx.Response) -> Iterator[bytes]:
    """The body of a response that the server compresses, though it was asked not to.

    It is unpacked here, as the client does not notice when compressed data end too early.
    """
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # both gzip and deflate
    for chunk in response.iter_raw():
        yield unpacker.decompress(chunk)
    yield unpacker.flush()
    if not unpacker.eof or unpacker.unused_data:
        raise _AttemptFailed("its compressed data do not end where they should")


def _validator(response: httpx.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the modification date."""
    etag = response.headers.get("etag", "")
    validator = etag if etag.startswith('"') else response.headers.get("last-modified")
    # A request is ASCII, whatever servers send.
    return validator if validator is not None and validator.isascii() else None


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds that the server asks to wait, if it says so in seconds."""
    value = response.headers.get("retry-after", "")
    return float(value) if re.fullmatch("[0-9]+", value) else None


def _is_web_page(first_chunk: bytes) -> bool:
    beginning = first_chunk.lstrip()[:14].lower()
    return beginning.startswith(PAGE_STARTS)


def _web_page_error(shown_url: str) -> DownloadError:
    message = f"{shown_url} gives a web page instead of the file."
    return DownloadError(message, "the link may need a login or have expired")


def _check_disk(folder: Path, needed: int, shown_url: str) -> None:
    """Raise a :class:`DownloadError` unless the bytes needed fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        message = (
            f"{shown_url} needs {needed / 1e9:.1f} GB more, "
            f"but the disk of {folder} has {free / 1e9:.1f} GB free."
        )
        raise DownloadError(message, "choose a larger disk with --data-dir DIR")


def _caused_by(error: BaseException | None, cause: type[BaseException]) -> bool:
    """Whether an error, or one that led to it, is of a class."""
    while error is not None:
        if isinstance(error, cause):
            return True
        error = error.__cause__ or error.__context__
    return False
