"""The pages for users, and the blocks of code that are marked in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mtlkit

ROOT = Path(mtlkit.__file__).parents[1]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
DATASETS = ROOT / "datasets" / "README.md"


def marked_blocks(page: Path, mark: str) -> list[tuple[str, str]]:
    """(argument, code) of the blocks that follow a ``<!-- mark: argument -->`` line."""
    pattern = rf"^<!-- {mark}(?:: ([^\n]*?))? -->\n```\w*\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def write_files(page: Path, folder: Path) -> list[Path]:
    """Write the files that a page shows into a folder."""
    written = []
    for name, code in marked_blocks(page, "file"):
        (folder / name).write_text(code, encoding="utf-8")
        written.append(folder / name)
    return written


def commands_of(page: Path, argument: str = "") -> list[str]:
    """The lines of a page's commands that have this argument."""
    blocks = [code for own, code in marked_blocks(page, "run") if own == argument]
    return [line for code in blocks for line in code.splitlines() if line]


def run_well(command: str, folder: Path) -> str:
    """Run a command of mtlkit in a folder, which must go well; returns its output."""
    program = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", command, flags=re.MULTILINE)
    ended = run_shell(program, folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def run_commands(
    page: Path, folder: Path, argument: str = "", flags: str = ""
) -> list[subprocess.CompletedProcess[str]]:
    """Run the commands of a page that have this argument as shown, but shorter, in a folder."""
    results = []
    for own, command in marked_blocks(page, "run"):
        if own != argument:
            continue
        program = re.sub(
            r"\bmtlkit (?=fetch|bench)", f"{sys.executable} -m mtlkit ", command.strip()
        )
        shorter = f"{program} --epochs 0.5 --data-dir {folder}/data {flags}"
        results.append(run_shell(shorter, folder))
    return results


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of Python in a folder."""
    return _run([sys.executable, "-c", code], folder)


def run_shell(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in a folder."""
    return _run(["bash", "-ec", program], folder)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(folder / "data")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
