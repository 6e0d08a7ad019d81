"""The command ``mtlkit``, also as ``python -m mtlkit``."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run a command. Imports take a moment, in which it may be interrupted, too."""
    try:
        from mtlkit.cli.app import main as run
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
