"""The verdicts of ``benchmarks/relations.py`` on a few planted pairs."""

import importlib.util
import sys

import pytest

from tests.documents import ROOT


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("relations", ROOT / "benchmarks" / "relations.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["related", "opposing", "independent"])
def test_a_planted_pair_gets_its_verdict(script, name):
    planted = script.PAIRS[name]
    outcomes = script.repeat(planted, [3])
    assert outcomes[0].verdict in planted.right
    assert f"| {name} | {planted.p:g} | {planted.bottom} |" in script.line(name, outcomes)
    assert "1 of 1" in script.line(name, outcomes)
