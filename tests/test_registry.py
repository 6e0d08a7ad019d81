import os
import sys

import pytest

from mtlkit.errors import UsageError
from mtlkit.registry import BALANCERS, DATASETS, MODELS, REGISTRIES, plugin_folder_name

EVERY = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]
MINE = '''"""Mine: weighs nothing.

More.
"""
from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers.uniform import Uniform


class Mine(Balancer):
    def forward(self, step):
        return step.active.float()
'''


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_entry_is_one_class_of_its_kind_with_a_summary(kind, name):
    registry = REGISTRIES[kind]
    entry = registry.load(name)
    assert registry.base.partition(":")[2] in {base.__name__ for base in entry.__mro__}
    assert entry.__module__ == f"mtlkit.{registry.folder}.{name.replace('-', '_')}"
    summary = registry.summary(name)
    assert summary == registry.docstring(name).splitlines()[0]
    title, colon, rest = summary.partition(": ")
    assert title
    assert colon
    assert rest.endswith(".")


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_names_are_file_names(registry):
    files = {file.stem for file in registry.path.glob("*.py")}
    names = registry.names()
    assert names == sorted(set(names))
    assert {name.replace("-", "_") for name in names} == {
        file for file in files if not file.startswith("_")
    }
    assert not any("_" in name for name in names)


def test_known_names():
    first = {"single-task", "shared-bottom", "mmoe", "omoe", "cgc", "ple"}
    assert first <= set(MODELS.names())
    assert {"uniform", "static", "uwl", "dwa", "gradnorm", "mgda", "pareto", "pcgrad"} <= set(
        BALANCERS.names()
    )
    assert {"census", "synthetic"} <= set(DATASETS.names())


def test_wildcards():
    assert {"mmoe", "omoe"} <= set(MODELS.names("?moe"))
    assert "ple" not in MODELS.names("?moe")
    assert "single-task" in MODELS.names("*-*")
    assert MODELS.names("zz*") == []


@pytest.mark.parametrize(
    ("registry", "wrong", "meant"),
    [
        (MODELS, "mmo", "mmoe"),
        (MODELS, "shared_bottom", "shared-bottom"),
        (MODELS, "MMoE", "mmoe\\?"),
        (MODELS, "PLE", "ple\\?"),
        (MODELS, "Shared Bottom", "shared-bottom\\?"),
        (MODELS, "SHARED  BOTTOM", "shared-bottom\\?"),
        (DATASETS, "Census", "census\\?"),
        (BALANCERS, "pc-grad", "pcgrad"),
    ],
)
def test_did_you_mean(registry, wrong, meant):
    with pytest.raises(UsageError, match=f"Did you mean .*{meant}") as caught:
        registry.check(wrong)
    assert caught.value.hint == f"mtlkit list {registry.kind}s"
    assert caught.value.exit_code == 2


def test_no_guess_for_what_is_like_nothing():
    with pytest.raises(UsageError) as caught:
        MODELS.load("qqqqqqq")
    assert caught.value.message == "There is no model called 'qqqqqqq'."


@pytest.mark.parametrize("name", ["_architecture", "_layers", "__init__"])
def test_helpers_are_no_entries(name):
    with pytest.raises(UsageError):
        MODELS.check(name)


def test_docstrings_are_read_without_importing(monkeypatch):
    monkeypatch.delitem(sys.modules, "mtlkit.models.mmoe", raising=False)
    assert "Ma et al." in MODELS.docstring("mmoe")
    assert "mtlkit.models.mmoe" not in sys.modules


def test_a_file_is_an_entry(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    name = str(file)
    assert BALANCERS.check(name) == name
    assert BALANCERS.load(name).__name__ == "Mine"
    assert BALANCERS.load(name) is BALANCERS.load(name)
    assert BALANCERS.summary(name) == "Mine: weighs nothing."
    assert BALANCERS.holds(name)
    assert not MODELS.holds(name)
    assert name not in BALANCERS.names()


def test_files_of_one_name_are_two_entries_and_have_their_digests(tmp_path):
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mine.py"
        file.write_text(MINE.replace("Mine", f"Mine{folder}"))
        names.append(str(file))
    assert [BALANCERS.load(name).__name__ for name in names] == ["Minea", "Mineb"]
    digests = [BALANCERS.source_digest(name) for name in names]
    assert len(set(digests)) == 2
    assert BALANCERS.source_digest("uniform") is None


def test_an_edited_file_is_read_again_even_in_the_same_second_and_of_the_same_size(tmp_path):
    """Python's own cache of bytecode knows a file by its size and the second of its change."""
    file = tmp_path / "mine.py"
    for name in ("Mine", "Mind"):
        file.write_text(MINE.replace("Mine", name))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert BALANCERS.load(str(file)).__name__ == name
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_an_absolute_path_and_a_relative_one_are_one_file(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path / "a")
    assert BALANCERS.load("../mine.py") is BALANCERS.load(str(tmp_path / "mine.py"))
    assert plugin_folder_name("../mine.py") == plugin_folder_name(str(tmp_path / "mine.py"))


def test_a_method_that_changed_after_the_plan_is_not_run(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    planned = {"name": str(file), "source_sha256": BALANCERS.source_digest(str(file))}
    assert BALANCERS.load_planned(planned).__name__ == "Mine"
    file.write_text(MINE.replace("step.active.float()", "2 * step.active.float()"))
    with pytest.raises(UsageError, match=r"mine\.py has changed since the plan"):
        BALANCERS.load_planned(planned)


NULL_BYTE = "SyntaxError" if sys.version_info >= (3, 11, 4) else "ValueError"
FAILS_AT_IMPORT = {
    "syntax": ("x = 1\nclass Mine(:\n", "SyntaxError in line 2: invalid syntax."),
    "indentation": ("def f():\nx = 1\n", "IndentationError in line 2: expected an indented block"),
    "null byte": ("x = 1\0\n", f"{NULL_BYTE}: source code string cannot contain null bytes."),
    "not UTF-8": (b"x = 1\ny = '\xff'\n", "SyntaxError in line 2: (unicode error) 'utf-8' codec"),
    "missing package": (
        "\nimport no_such_package\n",
        "ModuleNotFoundError in line 2: No module named 'no_such_package'.",
    ),
    "missing name": ("from mtlkit import Nothing", "ImportError in line 1: cannot import name"),
    "raises": ("\n\nraise KeyError('colour')", "KeyError in line 3: 'colour'."),
    "raises in a function": (
        "def deep():\n    return 1 / 0\n\ndeep()\n",
        "ZeroDivisionError in line 2: division by zero.",
    ),
    "raises elsewhere": ("import json\njson.loads('{')\n", "JSONDecodeError in line 2: "),
    "two lines": ("raise ValueError('a\\n  b.')", "ValueError in line 1: a b."),
    "no text": ("raise RuntimeError", "RuntimeError in line 1: RuntimeError."),
    "exits": ("import sys\nsys.exit(0)", "SystemExit in line 2: 0."),
    "quits": ("raise SystemExit", "SystemExit in line 1: SystemExit."),
    "another kind of error": (
        "class Odd(BaseException): ...\n\nraise Odd('x')",
        "Odd in line 3: x.",
    ),
    "too deep": ("x = " + "(" * 5000, "SyntaxError in line 1: too many nested parentheses."),
}


@pytest.mark.parametrize("case", FAILS_AT_IMPORT)
@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_a_file_that_cannot_be_imported(tmp_path, registry, case):
    text, message = FAILS_AT_IMPORT[case]
    file = tmp_path / "my own.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for _ in range(2):  # what failed once leaves nothing behind
        with pytest.raises(UsageError) as caught:
            registry.load(str(file))
        assert caught.value.message.startswith(f"{file} raises {message}"), caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint == f"python '{file}' shows the whole of it"
        assert caught.value.exit_code == 2


def test_an_interrupt_in_a_file_is_one(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        MODELS.load(str(file))


def test_a_bug_of_the_package_is_not_told_as_one_of_the_user():
    with pytest.raises(ZeroDivisionError), MODELS.told_as_error_of("mmoe"):
        raise ZeroDivisionError


INCOMPLETE = {
    "no forward": (MODELS, "Architecture", "pass", "lacks the method forward"),
    "no answer": (BALANCERS, "Balancer", "pass", "lacks the method forward"),
    "no solve": (BALANCERS, "GramBalancer", "pass", "lacks the method solve"),
    "no data": (DATASETS, "GeneratedSource", "pass", "lacks the method prepare"),
    "no methods": (DATASETS, "DatasetSource", "pass", "lacks the method download and prepare"),
    "bare options": (
        BALANCERS,
        "Balancer",
        "def forward(self, step): ...\n    class Options: rate = 1",
        "has Options that are no subclass of Settings",
    ),
    "options of None": (
        BALANCERS,
        "Balancer",
        "def forward(self, step): ...\n    Options = None",
        "has Options that are no subclass of Settings",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_a_class_that_is_not_complete(tmp_path, case):
    registry, base, body, message = INCOMPLETE[case]
    file = tmp_path / "mine.py"
    file.write_text(f"from mtlkit import {base}\n\nclass Mine({base}):\n    {body}\n")
    with pytest.raises(UsageError) as caught:
        registry.load(str(file))
    assert caught.value.message == f"The {registry.kind} Mine in line 3 of {file} {message}."
    assert caught.value.hint.startswith("mtlkit info ")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1", 0),
        ("from mtlkit.balancers.uniform import Uniform", 0),
        (MINE + "\nclass Two(Mine): ...\n", 2),
    ],
)
def test_a_file_must_define_one_entry(tmp_path, text, found):
    file = tmp_path / "odd.py"
    file.write_text(text)
    names = {0: "0.", 2: "2: Mine, Two."}[found]
    with pytest.raises(UsageError, match=f"exactly one Balancer subclass, found {names}"):
        BALANCERS.load(str(file))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"There is no model file '.*/gone\.py'"):
        MODELS.load(str(tmp_path / "gone.py"))


def test_an_installed_package_adds_entries(tmp_path, monkeypatch):
    (tmp_path / "others_balancer.py").write_text(MINE)
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtlkit.balancers]\nothers = others_balancer\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "others" in BALANCERS.names()
    assert "others" not in MODELS.names()
    assert BALANCERS.load("others").__name__ == "Mine"
    assert BALANCERS.summary("others") == "Mine: weighs nothing."


FACTS = '''"""Mine: says something."""
from pydantic import Field
from mtlkit.balancers._balancer import Balancer

class Helper:
    pass

class Mine(Balancer):
    class Options(Balancer.Options):
        rate: float = Field(0.5, gt=0, description="a number")
        words: tuple[str, ...] = ("a",)
        made: list[int] = Field(default_factory=list)
        bare: int

    scale = "native"
    same_as = {"sum": {"rate": 1}}
    size = len("abc")

    def forward(self, step):
        return step.active.float()
'''


def test_facts_are_read_from_literals(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FACTS)
    facts = BALANCERS.facts(str(file))
    assert facts.docstring == "Mine: says something."
    assert facts.attributes == {"scale": "native", "same_as": {"sum": {"rate": 1}}}
    assert facts.defaults == {"rate": 0.5, "words": ("a",)}


def test_facts_are_read_again_after_a_change(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FACTS)
    assert BALANCERS.facts(str(file)).attributes["scale"] == "native"
    file.write_text(FACTS.replace('"native"', '"simplex"'))
    os.utime(file, ns=(1, 1))
    assert BALANCERS.facts(str(file)).attributes["scale"] == "simplex"


@pytest.mark.parametrize("text", ["class :", "\0", None])
def test_of_what_cannot_be_read_there_are_no_facts(tmp_path, text):
    file = tmp_path / "odd.py"
    if text is not None:
        file.write_text(text)
    for name in (str(file), "none", "gone", "_balancer", "a/b"):
        facts = BALANCERS.facts(name)
        assert (facts.docstring, facts.attributes, facts.defaults) == ("", {}, {})


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_facts_are_those_of_the_class(kind, name):
    registry = REGISTRIES[kind]
    entry, facts = registry.load(name), registry.facts(name)
    for key, value in facts.attributes.items():
        assert getattr(entry, key, value) == value  # some are of the layers in the same file
    for key, value in facts.defaults.items():
        assert entry.Options.model_fields[key].default == value


def test_what_a_method_is_stands_on_the_method():
    """As a class says it, so the source says it: nothing that a report needs is inherited."""
    for registry, keys in (
        (MODELS, ["is_reference"]),
        (BALANCERS, ["constant_weights", "weights_option", "same_as"]),
    ):
        for name in registry.names():
            if name == "scalarization":  # stands for other balancers
                continue
            entry, attributes = registry.load(name), registry.facts(name).attributes
            for key in keys:
                assert bool(getattr(entry, key)) == bool(attributes.get(key)), (name, key)
    assert [name for name in MODELS.names() if MODELS.load(name).is_reference] == ["single-task"]


def test_an_installed_package_that_fails(tmp_path, monkeypatch):
    (tmp_path / "failing_balancer.py").write_text("import sys\n\nsys.exit(0)\n")
    info = tmp_path / "failing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtlkit.balancers]\nfailing = failing_balancer\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        BALANCERS.load("failing")
    assert caught.value.message == "failing raises SystemExit in line 3: 0."
    assert caught.value.hint.endswith(": mtlkit list balancers")


def test_facts_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "factual_balancer.py").write_text(FACTS)
    info = tmp_path / "factual-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: factual\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtlkit.balancers]\nfactual = factual_balancer\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert BALANCERS.facts("factual").defaults["rate"] == 0.5
    assert "factual_balancer" not in sys.modules
