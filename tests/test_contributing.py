"""CONTRIBUTING.md: its files work, and its glossary has the public classes."""

import ast
import re
from pathlib import Path

import pytest

import mtlkit
from tests.documents import CONTRIBUTING, ROOT, run_commands, write_files

PACKAGE = Path(mtlkit.__file__).parent
GLOSSARY = CONTRIBUTING.read_text(encoding="utf-8").partition("## Glossary")[2]

# classes of which the whole code base speaks, though few files import them
CORE = {
    "EmbeddedBatch",
    "FirstLayer",
    "Boundary",
    "FastPaths",
    "SharedParameters",
    "ParameterSlices",
    "TaskSchedule",
    "RunningMeans",
    "StratifiedSampler",
    "SharedColumns",
    "Cell",
    "ResultStore",
}


def classes() -> dict[str, Path]:
    """Public class to the file that defines it, of the whole package."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {
            node.name: file
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        }
    return found


def public_classes() -> set[str]:
    return {name for name in mtlkit.__all__ if name in classes()}


def test_a_model_a_balancer_and_a_data_set_run_as_shown(tmp_path):
    names = {file.name for file in write_files(CONTRIBUTING, tmp_path)}
    assert names == {"equal_lengths.py", "small_bottom.py", "coins.py"}
    (ended,) = run_commands(CONTRIBUTING, tmp_path)
    assert ended.returncode == 0, ended.stderr
    records = tmp_path.glob("results/coins/small_bottom/*/*/record.json")
    assert {record.parts[-3] for record in records} == {"equal_lengths", "uniform"}


def test_examples_import_the_public_face_alone(tmp_path):
    for file in write_files(CONTRIBUTING, tmp_path):
        text = file.read_text(encoding="utf-8")
        assert "from mtlkit import" in text
        assert "mtlkit." not in text


@pytest.mark.parametrize("name", sorted(public_classes() | CORE))
def test_the_glossary_has_every_public_class(name):
    assert f"`{name}`" in GLOSSARY


def test_the_core_exists():
    assert set(classes()) >= CORE


def test_the_glossary_has_no_term_twice():
    terms = re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.MULTILINE)[2:]
    assert len(terms) >= 25
    assert len(set(terms)) == len(terms)


def test_folders_that_it_names_exist():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    folders = re.findall(r"^Folder: `([^`]+)`", text, re.MULTILINE)
    assert len(folders) == 3
    assert all((ROOT / folder).is_dir() for folder in folders)
