"""The table of ``benchmarks/funnel_bias.py``: the planted bias, and that models of the whole funnel
see through it.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

import mtlkit

FILE = Path(mtlkit.__file__).parents[1] / "benchmarks" / "funnel_bias.py"
ENTIRE = ("esmm", "escm2[estimator=ips]", "escm2[estimator=dr]")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("funnel_bias", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_the_table_states_the_bias_and_pairs_by_seed(script):
    outcome = script.compare("rows=2000,click_rate=.3,", range(2), (script.REFERENCE, "esmm"))
    gain = outcome.gain("esmm")
    aucs = [outcome.aucs[name]["purchase-if-click"] for name in ("esmm", script.REFERENCE)]
    assert gain.n == 2
    assert gain.mean == pytest.approx(sum(aucs[0][seed] - aucs[1][seed] for seed in (0, 1)) / 2)
    text = script.table("Title", outcome)
    assert "planted P(buy if clicked)" in text
    assert "| esmm | " in text
    assert f"{gain.half:.4f}" in text


@pytest.mark.slow
def test_entire_space_models_rank_all_rows_better_than_a_model_of_clicked_rows(script):
    outcome = script.compare("", range(5, 10), (script.REFERENCE, *ENTIRE))
    for name in ENTIRE:
        gain = outcome.gain(name)
        assert gain.mean > gain.half, (name, gain)
