"""The pages say only what is true: files exist, code runs, commands are those of the command line."""

import re

import pytest
import yaml

import mtlkit
from tests.documents import (
    DATASETS,
    PAGES,
    README,
    ROOT,
    marked_blocks,
    run_commands,
    run_python,
    write_files,
)


def links() -> list[tuple[str, str]]:
    """(page, target) of every link to a file."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", text)
        found |= {(str(page.relative_to(ROOT)), target) for target in targets}
    return sorted(found)


@pytest.mark.parametrize(("page", "target"), links())
def test_what_pages_link_to_exists(page, target):
    assert ((ROOT / page).parent / target).exists()


def test_the_code_that_it_explains_exists():
    page = ROOT / "docs" / "code.md"
    text = page.read_text(encoding="utf-8").partition("## One step of pcgrad on MMoE")[2]
    files = set(re.findall(r"`([a-z]+/[a-z_]+\.py)`", text))
    assert len(files) >= 6
    sources = [(ROOT / "mtlkit" / file).read_text(encoding="utf-8") for file in files]
    names = re.findall(r"`(?:step\.)?([A-Za-z]+(?:_[a-z]+)*)(?:\(\))?`", text)
    assert {"LoopStep", "gramian", "one_pass_per_task", "apply"} <= set(names)
    for name in names:
        assert any(re.search(rf"\b{name}\b", source) for source in sources), name


def test_a_run_from_python_goes_as_shown(tmp_path):
    blocks = [code for argument, code in marked_blocks(README, "python") if not argument]
    assert blocks
    for code in blocks:
        ended = run_python(code, tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert 0 < float(ended.stdout) < 1


def test_a_table_of_ones_own_runs_as_shown(tmp_path):
    ((_, code),) = [block for block in marked_blocks(README, "python") if block[0] == "table"]
    assert run_python(code, tmp_path).returncode == 0
    ended = run_commands(README, tmp_path, "table", "--models mmoe --balancers uniform --seeds 1")
    assert [result.returncode for result in ended] == [0], ended[0].stderr
    assert len(list((tmp_path / "results").glob("clicks/*/*/*/record.json"))) == 2


@pytest.mark.slow
def test_a_public_table_runs_as_shown(tmp_path):
    flags = "--models mmoe --balancers uniform --seeds 1"
    (ended,) = run_commands(README, tmp_path, "complete-journey", flags)
    if ended.returncode and "network" in ended.stderr:
        pytest.skip("no network")
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "results").glob("complete-journey/*/*/*/record.json"))) == 2


def test_a_balancer_in_a_loop_of_ones_own_goes_as_shown(tmp_path):
    ((_, code),) = marked_blocks(ROOT / "docs" / "python.md", "python")
    ended = run_python(code, tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_a_method_of_your_own_runs_as_shown(tmp_path):
    assert write_files(README, tmp_path)
    ended = run_commands(README, tmp_path)
    assert ended
    for result in ended:
        assert result.returncode == 0, result.stderr
        assert "./softmax.py[temperature=0.5]" in result.stderr
    assert len(list((tmp_path / "results").glob("synthetic/mmoe/softmax/*/record.json"))) == 2


def commands() -> list[str]:
    """Every mtlkit command in a code block of the pages."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, DATASETS])
    blocks = re.findall(r"^(?:```sh\n.*?^```|    mtlkit [^\n]*)$", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"(?:^|&& |\n) *(mtlkit (?:[^\n&#]*))", "\n".join(blocks))
    return sorted({command.strip() for command in found})


@pytest.mark.parametrize("command", commands())
def test_its_commands_have_options_that_exist(command):
    from typer.main import get_command

    from mtlkit.cli.app import app

    root = get_command(app)
    name = command.split()[1]
    assert name in root.commands
    takes = [name, "bench"] if name == "plan" else [name]
    options = {
        flag for one in takes for parameter in root.commands[one].params for flag in parameter.opts
    }
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
