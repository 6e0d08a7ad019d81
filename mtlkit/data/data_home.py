"""The data home: where downloads and prepared data live, and which data set was fetched last."""

from __future__ import annotations

import os
from pathlib import Path

from mtlkit.errors import MissingError, UsageError
from mtlkit.files import replacing

VARIABLE = "MTLKIT_DATA"
LAST = "last-fetched.txt"
OTHER_FOLDER = f"choose another folder with --data-dir DIR or the variable {VARIABLE}"
"""The hint where the data home cannot be used."""


def data_home(path: Path | None = None) -> Path:
    """The folder given, else ``$MTLKIT_DATA``, else ``./datasets``. It need not exist yet.

    Raises:
        UsageError: It is in the home of a user who does not exist.
    """
    return expand(Path(path or os.environ.get(VARIABLE) or "datasets"))


def expand(path: Path) -> Path:
    """The path with the home of a user in the place of ``~``.

    Raises:
        UsageError: There is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        message = f"{path} is in the home of a user who does not exist."
        raise UsageError(message, "give another file or folder") from None


def make_home(home: Path) -> Path:
    """Create the data home, and return it.

    Raises:
        MissingError: It cannot be created or written to.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MissingError(
            f"The data folder {home} cannot be made: {reason}.", OTHER_FOLDER
        ) from None
    if not os.access(home, os.W_OK | os.X_OK):
        raise MissingError(f"The data folder {home} is not writable.", OTHER_FOLDER)
    return home


def remember(home: Path, spec_text: str) -> None:
    """Note the data set that was fetched last, e.g. ``synthetic[p=0.5]``."""
    with replacing(make_home(home) / LAST) as file:
        file.write(f"{spec_text.strip()}\n".encode())


def last_fetched(home: Path) -> str | None:
    """What :func:`remember` was told last, or None."""
    try:
        return (home / LAST).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
