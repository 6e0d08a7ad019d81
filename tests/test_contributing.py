"""CONTRIBUTING.md: its files work, and its glossary has the public classes."""

import ast
import re
from pathlib import Path

import pytest

import mtlkit
from tests.documents import CONTRIBUTING, ROOT, run_commands, write_files

PACKAGE = Path(mtlkit.__file__).parent
GLOSSARY = CONTRIBUTING.read_text(encoding="utf-8").partition("## Glossary")[2]

# classes of which the whole code base speaks, though they stay within their part
CORE = set(
    "Boundary EmbeddedBatch FirstLayer MoELayer SlicedParameter RunningMeans SharedColumns "
    "SharedParameters StratifiedSampler TaskSchedule".split()
)
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}
CLASSES = {
    node.name
    for tree in TREES.values()
    for node in tree.body
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
}


def part(name: str) -> str:
    """``models`` of ``mtlkit.models.mmoe``."""
    return name.split(".")[1] if "." in name else ""


def crossing_classes() -> set[str]:
    """Classes that a part of the package takes from another."""
    crossing = set()
    for file, tree in TREES.items():
        own_part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mtlkit."):
                names = {alias.name for alias in node.names} & CLASSES
                crossing |= names if part(node.module) != own_part else set()
    return crossing


def test_a_model_a_balancer_and_a_data_set_run_as_shown(tmp_path):
    names = {file.name for file in write_files(CONTRIBUTING, tmp_path)}
    assert names == {"equal_lengths.py", "small_bottom.py", "small_mixture.py", "coins.py"}
    (ended,) = run_commands(CONTRIBUTING, tmp_path)
    assert ended.returncode == 0, ended.stderr
    for model in ("small_bottom", "small_mixture"):
        records = tmp_path.glob(f"results/coins/{model}/*/*/record.json")
        assert {record.parts[-3] for record in records} == {"equal_lengths", "uniform"}


def test_examples_import_the_public_face_alone(tmp_path):
    for file in write_files(CONTRIBUTING, tmp_path):
        text = file.read_text(encoding="utf-8")
        assert "from mtlkit import" in text
        assert "mtlkit." not in text


@pytest.mark.parametrize("name", sorted(crossing_classes() | CORE))
def test_the_glossary_has_every_class_that_parts_share(name):
    assert f"`{name}`" in GLOSSARY


def test_the_glossary_has_no_class_that_does_not_exist():
    names = set(re.findall(r"`([A-Z][A-Za-z]+)`", GLOSSARY))
    assert names - CLASSES == {"Sizes"}, "a type, not a class"


def test_the_public_face_is_in_the_glossary():
    public = {name for name in mtlkit.__all__ if name[0].isupper()}
    assert {name for name in public if f"`{name}`" not in GLOSSARY} == set()


def test_the_glossary_has_no_term_twice():
    terms = re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.MULTILINE)[2:]
    assert len(terms) >= 25
    assert len(set(terms)) == len(terms)


def test_folders_that_it_names_exist():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    folders = re.findall(r"^Folder: `([^`]+)`", text, re.MULTILINE)
    assert len(folders) == 4
    assert all((ROOT / folder).is_dir() for folder in folders)
