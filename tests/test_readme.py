"""The README says only what is true: its files exist, its code runs, its commands are those of the
command line.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mtlkit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATASETS = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")


def marked(kind: str) -> list[tuple[str, str]]:
    """(argument, code) of the blocks that follow a ``<!-- kind: argument -->`` line."""
    pattern = rf"^<!-- {kind}(?:: ([^\n]*?))? -->\n```\w*\n(.*?)^```$"
    return re.findall(pattern, README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", README)))
)
def test_what_it_links_to_exists(target):
    assert (ROOT / target).exists()


def test_a_method_of_your_own_runs_as_shown(tmp_path):
    files, commands = marked("file"), marked("run")
    assert files
    assert commands
    for name, code in files:
        (tmp_path / name).write_text(code, encoding="utf-8")
    for _, command in commands:
        program = f"{sys.executable} -m mtlkit"
        command = (
            re.sub(r"^mtlkit\b", program, command.strip())
            + f" --epochs 0.5 --data-dir {tmp_path}/data"
        )
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "./softmax.py[temperature=0.5]" in done.stderr
    assert len(list((tmp_path / "results").glob("synthetic/mmoe/softmax/*/record.json"))) == 2


def commands() -> list[str]:
    """Every mtlkit command in a code block of the two READMEs."""
    text = "\n".join(
        re.findall(
            r"^(?:```sh\n.*?^```|    mtlkit [^\n]*)$", README + DATASETS, re.MULTILINE | re.DOTALL
        )
    )
    found = re.findall(r"(?:^|&& |\n) *(mtlkit (?:[^\n&#]*))", text)
    return sorted({command.strip() for command in found})


@pytest.mark.parametrize("command", commands())
def test_its_commands_have_options_that_exist(command):
    from typer.main import get_command

    from mtlkit.cli.app import app

    root = get_command(app)
    name = command.split()[1]
    assert name in root.commands
    options = {flag for parameter in root.commands[name].params for flag in parameter.opts}
    assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", command)) <= options


def test_it_lists_enough_commands():
    assert len(commands()) >= 8


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mtlkit.__version__
    assert {"cff-version", "title", "authors", "message"} <= set(citation)


def test_the_constraints_pin_every_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        re.findall(
            r"^([A-Za-z0-9_.-]+)==(\S+)$",
            (ROOT / "constraints.txt").read_text(encoding="utf-8"),
            re.M,
        )
    )
    pinned = {name.lower().replace("_", "-") for name in pins}
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    for requirement in project["dependencies"] + extras:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower()
        assert name in pinned | {"mtlkit"}, requirement
