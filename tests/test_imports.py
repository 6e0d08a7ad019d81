import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mtlkit
from tests.fakes import fill

PACKAGE = Path(mtlkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = {file: file.read_text(encoding="utf-8") for file in MODULES}

# --- the layers: imports only go up


ORDER = [
    {"errors", "_version"},
    {"metrics", "spec"},
    {"registry", "settings", "yaml_files"},
    {"records", "equivalences"},
    {"record_check", "commands"},
    {"files", "array_files"},
    {"store"},
    {"studies", "agreement"},
    {"ops"},
    {"data"},
    {"losses", "baselines"},
    {"models", "balancers"},
    {"training"},
    {"grid"},
    {"api", "cli"},
    {"__init__", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
RANK["report"] = RANK["studies"] + 0.5
REPORT_READS = {name for name in RANK if RANK[name] <= RANK["studies"]}
READ_THE_REPORT = {"api", "cli", "__init__"}
WITHOUT_TORCH = set(
    "__init__ _version errors registry settings yaml_files spec records record_check files array_files metrics "
    "equivalences commands store studies agreement data baselines report cli".split()
)


def imports(source: str) -> set[str]:
    """Dotted names of all that a source imports, in functions and for type checkers, too.

    ``from a import b`` gives both ``a`` and ``a.b``, for b may be a module.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_arrows(part: str, source: str) -> list[str]:
    """The imports of a source in a part of the package (``training``) that go down or sideways."""
    wrong = []
    for name in sorted(imports(source) - {"mtlkit"}):
        top, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if top == "torch" and part in WITHOUT_TORCH:
            wrong.append(name)
        if top != "mtlkit" or imported == part:
            continue
        if imported not in RANK:
            allowed = False
        elif part == "report":
            allowed = imported in REPORT_READS
        elif imported == "report":
            allowed = part in READ_THE_REPORT
        else:
            allowed = RANK[imported] < RANK[part]
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_only_go_up(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in RANK, f"{part} has no rank in the order of imports"
    assert wrong_arrows(part, SOURCES[file]) == []


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_inside_imports_the_public_face(file):
    """The face is for users; inside, every name is imported from where it is."""
    nodes = list(ast.walk(ast.parse(SOURCES[file])))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert "mtlkit" not in plain
    assert all(node.module != "mtlkit" for node in nodes if isinstance(node, ast.ImportFrom))


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
        ("grid", "from mtlkit.api import fit", True),
        ("cli", "from mtlkit.api import fit", True),
        ("training", "from mtlkit import fit", True),
        ("report", "import torch.nn", True),
        ("store", "from torch import Tensor", True),
        ("data", "from mtlkit.strange import x", True),
        ("cli", "from mtlkit.report.frame import load", False),
        ("api", "from mtlkit.report.frame import load\nfrom mtlkit.grid.plan import Plan", False),
        ("training", "import torch, mtlkit\nfrom mtlkit.models._architecture import Batch", False),
    ],
)
def test_the_walk_sees_wrong_arrows(part, source, wrong):
    assert bool(wrong_arrows(part, source)) == wrong


# --- no circle, of packages or of files


def file_graph(sources: dict[Path, str], package: Path) -> dict[str, set[str]]:
    """File to the files of the package that it imports, all relative to the package.

    Importing ``mtlkit.a.b`` also runs ``mtlkit/__init__.py`` and ``mtlkit/a/__init__.py``; these
    are left out, for they import nothing when they run.
    """
    files = {_dotted(file, package): str(file.relative_to(package)) for file in sources}
    graph: dict[str, set[str]] = {}
    for file, source in sources.items():
        name = str(file.relative_to(package))
        graph[name] = {files[imported] for imported in imports(source) if imported in files}
        graph[name] -= {name, "__init__.py"}
    return graph


def _dotted(file: Path, package: Path) -> str:
    parts = [package.name, *file.relative_to(package).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The largest sets of nodes that all reach each other, of two nodes and more."""
    reached = {node: reachable(graph, node) for node in graph}
    rings = {
        frozenset(other for other in reached[node] if node in reached[other])
        for node in graph
        if node in reached[node]
    }
    return [set(ring) for ring in rings]


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """The nodes that a path of one arrow or more leads to."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for node in graph[waiting.pop()] - reached:
            reached.add(node)
            waiting.append(node)
    return reached


def test_no_circle_of_files():
    assert circles(file_graph(SOURCES, PACKAGE)) == []


def test_no_circle_of_packages():
    files = file_graph(SOURCES, PACKAGE)
    packages: dict[str, set[str]] = {}
    for name, imported in files.items():
        package = _top(name)
        packages.setdefault(package, set()).update(_top(other) for other in imported)
        packages[package].discard(package)
    assert circles(packages) == []


def _top(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def test_the_walk_sees_circles():
    package = Path("p")
    sources = {
        package / "a.py": "def f():\n    from p.b import g",
        package / "b.py": "if TYPE_CHECKING:\n    from p import c",
        package / "c.py": "import p.a",
        package / "d.py": "from p.a import f",
    }
    graph = file_graph(sources, package)
    assert graph["d.py"] == {"a.py"}
    assert circles(graph) == [{"a.py", "b.py", "c.py"}]
    assert circles({"a": {"b"}, "b": set()}) == []


# --- one place decides between kernels and plain operations


# Folders whose files leave that question to mtlkit/ops/_dispatch.py.
ASK_NOTHING = {"models", "training", "data"}

# (file, question) to the reason why it is asked there nevertheless.
QUESTIONS_ALLOWED = {
    (
        "models/_boundary.py",
        "is_compiling",
    ): "a compiled graph returns nothing on the way to losses",
    ("models/_layers.py", "is_autocast_enabled"): "the bias stays in full precision",
}


def questions(source: str) -> set[str]:
    """What a source asks about where it runs: compiled, under autocast, on the CPU."""
    asked = set()
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "attr", getattr(node, "id", None))
        if name in {"is_compiling", "is_autocast_enabled"}:
            asked.add(name)
        if name == "is_cpu" or (isinstance(node, ast.Compare) and _compares_with_cpu(node)):
            asked.add("device is cpu")
    return asked


def _compares_with_cpu(node: ast.Compare) -> bool:
    """Whether it is ``x.device.type == "cpu"``, or ``!=``, or in a set."""
    sides = [node.left, *node.comparators]
    values = {
        leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)
    }
    types = [side for side in sides if isinstance(side, ast.Attribute) and side.attr == "type"]
    return bool(types) and "cpu" in values


def test_one_place_decides_between_kernels_and_plain_operations():
    asked = set()
    for file, source in SOURCES.items():
        name = file.relative_to(PACKAGE)
        if name.parts[0] in ASK_NOTHING:
            asked |= {(str(name), question) for question in questions(source)}
    assert asked == set(QUESTIONS_ALLOWED)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("if torch.compiler.is_compiling():\n    pass", {"is_compiling"}),
        (
            "from torch import is_autocast_enabled as f\nis_autocast_enabled()",
            {"is_autocast_enabled"},
        ),
        ("on = x.weight.device.type == 'cpu' and y", {"device is cpu"}),
        ("on = 'cpu' != device.type", {"device is cpu"}),
        ("on = x.is_cpu", {"device is cpu"}),
        ("gpu = device.type == 'cuda'\nkind = task.type == 'binary'", set()),
    ],
)
def test_the_walk_sees_questions(source, asked):
    assert questions(source) == asked


# --- what is never imported


def test_nothing_is_pickled():
    for file, source in SOURCES.items():
        assert not {"pickle", "dill", "joblib", "shelve"} & imports(source), file


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
    "diagnose FOLDER",
]
DRIVER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from mtlkit.cli.app import main

results = []
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command.split()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    results.append([code, bool(out.getvalue()), sorted({"torch", "numba", "sklearn"} & set(sys.modules))])
print(json.dumps(results))
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


def test_the_public_face_imports_nothing_slow():
    driver = (
        "import sys, mtlkit\nassert dir(mtlkit)\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'pydantic', 'yaml', 'numba'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr
