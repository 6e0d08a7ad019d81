"""The numbers behind the figure of ``benchmarks/balancer_toys.py``."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mtlkit

FILE = Path(mtlkit.__file__).parents[1] / "benchmarks" / "balancer_toys.py"


@pytest.fixture(scope="module")
def toys():
    spec = importlib.util.spec_from_file_location("balancer_toys", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def ends(toys):
    """Panel to balancer to the ways; of the costly panels from the last start alone."""
    starts = {
        name: panel.starts[0 if name == "concave" else -1 :] for name, panel in toys.PANELS.items()
    }
    return {
        name: replace(panel, starts=starts[name]).paths() for name, panel in toys.PANELS.items()
    }


@pytest.mark.parametrize("name", ["barrier", "scales", "concave"])
def test_gradients_of_the_problems(toys, name):
    problem, step = toys.PANELS[name].problem, 1e-6
    for point in np.random.default_rng(0).uniform(-6, 6, (20, 2)):
        slopes = [
            (problem(point + d)[0] - problem(point - d)[0]) / (2 * step) for d in step * np.eye(2)
        ]
        np.testing.assert_allclose(problem(point)[1], np.stack(slopes, 1), rtol=1e-4, atol=1e-6)
        assert (problem(point)[0] > 0).all()


def test_barrier_stops_the_sum_only(toys, ends):
    found = {
        name: toys.stationarity(toys.barrier, ways[0][-1]) for name, ways in ends["barrier"].items()
    }
    assert found.pop("uniform") > 0.5
    assert len(found) == 2
    assert max(found.values()) < 0.01
    assert all(ways[0][-1][1] < -8 for name, ways in ends["barrier"].items() if name != "uniform")
    assert ends["barrier"]["uniform"][0][-1][1] > 1  # still on the slope


def test_scales_decide_where_the_sum_ends(toys, ends):
    found = {name: np.stack([way[-1] for way in ways]) for name, ways in ends["scales"].items()}
    centre = toys.SCALES @ toys.CENTRES / toys.SCALES.sum()
    np.testing.assert_allclose(found["uniform"], [centre], atol=0.01)
    for name in ("uwl[lr=0.05]", "imtl-l[lr=0.05]", "gls"):
        np.testing.assert_allclose(found[name], 0, atol=0.02)
    np.testing.assert_allclose(found["famo"], 0, atol=0.25)
    assert max(toys.stationarity(toys.scales, point) for point in found["famo"]) < 0.02


def test_scales_have_one_minimum_of_the_logarithms(toys):
    """Along the segment between the centres sum log L falls to the midpoint and rises after it."""
    logs = np.array(
        [np.log(toys.scales(np.array([a, 0.0]))[0]).sum() for a in np.linspace(-1, 1, 201)]
    )
    assert (np.diff(logs[:101]) < 0).all()
    assert (np.diff(logs[100:]) > 0).all()


def test_concave_front_is_reached_in_the_middle_by_the_smooth_maximum_only(toys, ends):
    for way in ends["concave"]["uniform"]:
        low, high = sorted(toys.concave(way[-1])[0])
        assert low < 0.01
        assert high > 0.97
    for way in ends["concave"]["stch[mu=0.05,warmup=5]"]:
        relative = (
            toys.concave(way[-1])[0] / toys.concave(way[4])[0]
        )  # to the last loss of the warm-up
        assert relative[0] == pytest.approx(relative[1], rel=0.02)
        assert toys.stationarity(toys.concave, way[-1]) < 0.01


def test_the_figure(toys, ends, tmp_path):
    toys.draw(ends).savefig(tmp_path / "toys.png", dpi=40)
    assert (tmp_path / "toys.png").stat().st_size > 5000
