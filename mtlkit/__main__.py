"""The command ``mtlkit``, also as ``python -m mtlkit``."""

from __future__ import annotations

from mtlkit.cli.app import main

if __name__ == "__main__":
    main()
