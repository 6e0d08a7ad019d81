import numpy as np
import pytest

from mtlkit.errors import MissingError, MtlkitError, UsageError
from mtlkit.grid import spaces
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.spaces import (
    COLUMNS,
    LARGEST,
    MODEL,
    TRAINING,
    Axis,
    Dimension,
    settings_at,
    sobol_points,
    tpe_point,
)
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import TrainingSettings
from tests.toy import toy_schema

U = np.linspace(0, 1, 101)


def values(written, tasks=2):
    dimension = Dimension.read("x", written)
    return [dimension.at(np.full(tasks, u)) for u in U]


# --- dimensions


def test_a_float_is_spread_evenly_and_keeps_its_bounds():
    found = values({"float": [0.1, 0.5]})
    assert (min(found), max(found)) == (0.1, 0.5)
    assert found[50] == pytest.approx(0.3)


def test_a_logarithm_is_spread_evenly():
    found = values({"log": [1e-4, 1e-2]})
    assert (min(found), max(found)) == (1e-4, 1e-2)
    assert found[50] == pytest.approx(1e-3)


def test_values_can_be_typed():
    assert all(value == float(f"{value:.3g}") for value in values({"log": [1e-4, 1e-2]}))


def test_whole_numbers_are_equally_likely_with_both_ends():
    counts = np.bincount([values({"int": [1, 4]})[i] for i in range(100)])
    assert list(counts) == [0, 25, 25, 25, 25]


def test_choices_are_equally_likely():
    found = values({"choice": [[32], [64, 32]]})
    assert found.count([32]) == 50
    assert found.count([64, 32]) == 51


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_weights_lie_on_the_simplex(tasks):
    dimension = Dimension.read("w", {"simplex": 0.1})
    drawn = np.random.default_rng(0).random((2000, tasks))
    weights = np.array([dimension.at(point) for point in drawn])
    assert weights.sum(1) == pytest.approx(tasks, abs=0.01 * tasks)
    assert weights.min() >= 0.0999
    # uniform on the simplex: each weight has the mean 1, and the variance of a Dirichlet
    assert weights.mean(0) == pytest.approx(1, abs=0.06)
    variance = (tasks * 0.9) ** 2 * (tasks - 1) / tasks**2 / (tasks + 1)
    assert weights.var(0) == pytest.approx(variance, rel=0.15)


def test_a_dimension_is_written_as_it_is_read():
    for written in (
        {"float": [0.1, 0.5]},
        {"log": [1e-4, 1e-2]},
        {"int": [1, 4]},
        {"choice": [8, 16]},
        {"simplex": 0.1},
    ):
        assert Dimension.read("x", written).plain() == written


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"log": [0, 0.1]}, "no logarithm: it must begin above 0"),
        ({"log": [-1, 0.1]}, "no logarithm"),
        ({"float": [0.5, 0.5]}, "is empty: 0.5 is not below 0.5"),
        ({"float": [2, 1]}, "is empty"),
        ({"int": [1, 2.5]}, "whole numbers"),
        ({"int": [1]}, "cannot be int"),
        ({"float": ["a", 1]}, "cannot be float"),
        ({"float": [0, float("inf")]}, "cannot be float"),
        ({"float": [False, True]}, "cannot be float"),
        ({"choice": []}, "must be a list of choices, not empty"),
        ({"choice": 8}, "must be a list of choices"),
        ({"simplex": 0}, "between 0 and 1"),
        ({"simplex": 1}, "between 0 and 1"),
        (3, "needs one of float, log, int, choice, simplex"),
        ("log", "needs one of"),
        ({"normal": [0, 1]}, "needs one of"),
    ],
)
def test_what_is_no_range(written, message):
    with pytest.raises(UsageError, match=message) as caught:
        Dimension.read("lr", written)
    assert "lr" in caught.value.message
    assert "\n" not in caught.value.message
    assert "tune:" in caught.value.hint


def test_yaml_reads_small_numbers_as_texts():
    """YAML 1.1 has no number 1e-4."""
    assert Dimension.read("lr", {"log": ["1e-4", "1e-2"]}).values == (1e-4, 1e-2)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"trials": 0}, "greater than 0"),
        ({"trials": "many"}, "trials"),
        ({"sampler": "grid"}, "sobol"),
        ({"seeds": 0}, "greater than"),
        ({"space": {"lr": {"log": [0, 1]}}}, "no logarithm"),
        ({"space": {"mmoe": {"experts": {"int": [4, 2]}}}}, "mmoe.experts is empty"),
        ({"space": {"mmoe": 3}}, "mmoe needs one of"),
        ({"space": {"mmoe": {}}}, "mmoe needs one of"),
        ({"spaces": {}}, "space"),
    ],
)
def test_what_cannot_be_asked_for(tune, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_grid(None, {"tune": tune}, [])
    assert caught.value.hint


def test_the_settings_of_a_printed_file_can_be_overridden(tmp_path):
    from mtlkit.grid.grid_settings import write_grid

    file = tmp_path / "grid.yaml"
    file.write_text(write_grid(read_grid(None, {}, [])))
    assert read_grid(file, {"tune": {"trials": 5}}, []).tune.trials == 5
    assert read_grid(file, {}, ["tune.space.lr.log=1e-4:1e-2"]).tune.space == {
        "lr": {"log": [1e-4, 1e-2]}
    }


# --- points


def test_more_points_begin_with_the_same():
    many = sobol_points(100, seed=3)
    assert many.shape == (100, COLUMNS)
    for count in (1, 2, 7, 64):
        assert np.array_equal(sobol_points(count, seed=3), many[:count])
    assert not np.array_equal(sobol_points(8, seed=4), many[:8])


def test_points_fill_every_column():
    """Each half of a column holds half of the points; of independent ones it would not."""
    assert ((sobol_points(64, seed=0) < 0.5).sum(0) == 32).all()


# --- the spaces of the package


@pytest.mark.parametrize("registry", [MODELS, BALANCERS], ids=["models", "balancers"])
def test_every_space_is_a_literal_that_fits_its_options(registry):
    spaces_seen = 0
    for name in registry.names():
        entry = registry.load(name)
        if "search_space" in vars(entry):
            assert registry.facts(name).attributes["search_space"] == entry.search_space
            spaces_seen += 1
        for key, written in entry.search_space.items():
            dimension = Dimension.read(f"{name}.{key}", written)
            for u in (0.0, 0.3, 0.999):
                entry.Options.model_validate({key: dimension.at(np.full(3, u))})
    assert spaces_seen >= 15


def test_every_shared_dimension_exists():
    assert TRAINING.keys() <= TrainingSettings.model_fields.keys()
    for name in MODELS.names():
        assert MODELS.load(name).Options.model_fields.keys() >= MODEL.keys()


def dense_parameters(model_class, schema, options):
    from mtlkit.grid.build import build_model

    model = build_model(model_class, schema, model_class.Options.model_validate(options), seed=0)
    embedding = {id(parameter) for parameter in model.embedding.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in embedding)


@pytest.mark.parametrize("name", MODELS.names())
def test_the_largest_model_of_a_space_is_bounded(name):
    schema = toy_schema(ids=20)
    model_class = MODELS.load(name)
    if model_class.needs_funnel:
        schema = schema.model_copy(update={"funnel": ("t1", "t2")})
    if model_class.inapplicable(schema):
        pytest.skip("does not apply")
    largest = {}
    for key, written in (MODEL | model_class.search_space).items():
        dimension = Dimension.read(key, written)
        if dimension.kind == "choice":
            largest[key] = max(dimension.values, key=lambda v: (np.sum(v), np.size(v)))
        elif dimension.kind == "int":
            largest[key] = dimension.values[1]
    bound = LARGEST * dense_parameters(model_class, schema, {})
    assert dense_parameters(model_class, schema, largest) <= bound


# --- Optuna


def test_without_optuna_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingError, match="not installed") as caught:
        spaces.check_optuna()
    assert caught.value.hint == "pip install 'mtlkit[optuna]'"
    assert isinstance(caught.value, MtlkitError)


def test_tpe_follows_from_its_history_and_finds_the_optimum():
    pytest.importorskip("optuna")
    space = {"lr": Axis(Dimension.read("lr", {"float": [0, 1]}), 0)}
    points = list(sobol_points(9, seed=0))
    for _ in range(25):
        tried = np.stack(points)
        scores = [-((point[0] - 0.7) ** 2) for point in tried]
        scores[3] = None  # a failure
        point = tpe_point(space, 2, tried, scores, seed=0)
        assert np.array_equal(point, tpe_point(space, 2, tried, scores, seed=0))
        points.append(point)
    found = [settings_at(space, point, 2)["lr"] for point in points[9:]]
    assert min(abs(value - 0.7) for value in found) < 0.02
    assert np.median(np.abs(np.array(found[10:]) - 0.7)) < 0.2
