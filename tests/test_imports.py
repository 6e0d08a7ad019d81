import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mtlkit
from tests.fakes import fill

PACKAGE = Path(mtlkit.__file__).parent
ORDER = [
    {"errors"},
    {"spec"},
    {"registry", "settings"},
    {"records", "equivalences"},
    {"store"},
    {"ops"},
    {"data"},
    {"models", "balancers"},
    {"training"},
    {"grid"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
REPORT_READS = {"errors", "registry", "settings", "spec", "records", "equivalences", "store"}
WITHOUT_TORCH = {
    "errors",
    "registry",
    "settings",
    "spec",
    "records",
    "equivalences",
    "store",
    "data",
    "report",
    "cli",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str) -> set[str]:
    """Dotted names of all that a source imports, in functions and for type checkers, too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            # `from mtlkit import x` imports mtlkit.x
            found |= (
                {f"mtlkit.{alias.name}" for alias in node.names}
                if node.module == "mtlkit"
                else {node.module}
            )
    return found


def wrong_arrows(part: str, source: str) -> list[str]:
    """The imports of a source in a part of the package (``training``) that go down or sideways."""
    wrong = []
    for name in sorted(imports(source)):
        top, _, rest = name.partition(".")
        to = rest.partition(".")[0]
        if top == "torch" and part in WITHOUT_TORCH:
            wrong.append(name)
        if top != "mtlkit" or not to or to == part or to == "__version__":
            continue
        if part == "report":
            allowed = to in REPORT_READS
        elif to == "report":
            allowed = part == "cli"
        else:
            allowed = to in RANK and RANK[to] < RANK[part]
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_only_go_up(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    source = file.read_text(encoding="utf-8")
    if part == "__init__":
        assert imports(source) == set()
    else:
        assert part in RANK or part == "report", f"{part} has no place in the order of imports"
        assert wrong_arrows(part, source) == []


@pytest.mark.parametrize(
    ("part", "source", "wrong"),
    [
        ("models", "import mtlkit.balancers._balancer", True),
        ("balancers", "from mtlkit.models._architecture import Output", True),
        ("balancers", "from mtlkit import models", True),
        ("settings", "def f():\n    from mtlkit.registry import MODELS", True),
        ("training", "if TYPE_CHECKING:\n    from mtlkit.grid.plan import Plan", True),
        ("report", "from mtlkit.training.metrics import auc", True),
        ("report", "from mtlkit.data.types import Task", True),
        ("grid", "from mtlkit.report import rows", True),
        ("report", "import torch.nn", True),
        ("store", "from torch import Tensor", True),
        ("data", "from mtlkit.strange import x", True),
        ("cli", "from mtlkit.report.frame import load", False),
        ("training", "import torch, mtlkit\nfrom mtlkit.models._architecture import Batch", False),
    ],
)
def test_the_walk_sees_wrong_arrows(part, source, wrong):
    assert bool(wrong_arrows(part, source)) == wrong


def test_nothing_is_pickled():
    for file in MODULES:
        assert not {"pickle", "dill", "joblib", "shelve"} & imports(
            file.read_text(encoding="utf-8")
        ), file


COMMANDS = [
    "--help",
    "--version",
    "bench --help",
    "list models",
    "list balancers --json",
    "bench --print-config",
    "fetch synthetic[rows=8,d=2] --data-dir FOLDER/data",
    "report FOLDER --json",
    "report FOLDER",
]
DRIVER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from mtlkit.cli.app import main

found = []
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command.split()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    found.append([code, bool(out.getvalue()), sorted({"torch", "numba", "sklearn"} & set(sys.modules))])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def after_each(tmp_path_factory):
    """Command to its exit code, whether it printed something, and the heavy modules that are loaded
    after it.
    """
    folder = fill(
        tmp_path_factory.mktemp("results"), ["mmoe"], ["uniform"], seeds=[0], with_probes=False
    ).root
    commands = json.dumps([command.replace("FOLDER", str(folder)) for command in COMMANDS])
    ended = subprocess.run([sys.executable, "-c", DRIVER, commands], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return dict(zip(COMMANDS, json.loads(ended.stdout), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_need_no_torch(command, after_each):
    assert after_each[command] == [0, True, []]


def test_help_imports_nothing_slow():
    driver = (
        "import sys, mtlkit.cli.app\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'pydantic', 'yaml', 'matplotlib', 'httpx'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True).stdout
        == "[]\n"
    )
