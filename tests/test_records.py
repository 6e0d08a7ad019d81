import json

import pytest
from pydantic import ValidationError

from mtlkit.metrics.definitions import METRICS, PRIMARY_METRIC
from mtlkit.records import RECORD_VERSION, Cell, RunRecord
from tests.fakes import cell, failure, record


def test_a_seed_changes_the_key_and_not_the_group():
    one, two = cell(seed=0), cell(seed=1)
    assert one.group == two.group
    assert one.key != two.key
    assert one.key != one.group
    assert len(one.key) == len(one.group) == 64


@pytest.mark.parametrize(
    "other",
    [
        {"model": "ple"},
        {"balancer": "uwl"},
        {"balancer": "static[w=1:2]"},
        {"dataset": "synthetic"},
        {"protocol": "rechub"},
        {"tasks": ["marital", "income"]},
        {"training": {"precision": "bf16"}},
        {"training": {"lr": 0.0021}},
        {"model_options": {"experts": 4}},
    ],
    ids=str,
)
def test_whatever_moves_numbers_changes_key_and_group(other):
    assert cell(**other).key != cell().key
    assert cell(**other).group != cell().group


def test_what_was_typed_is_a_name_only():
    typed, short = cell(model="mmoe[experts=8]"), cell(model="mmoe")
    assert (typed.key, typed.group) == (short.key, short.group)
    assert typed.label == "mmoe[experts=8] + uniform, seed 0"


def test_the_order_of_settings_does_not_matter():
    one = cell()
    turned = {key: one.resolved[key] for key in reversed(one.resolved)}
    assert one.model_copy(update={"resolved": turned}).key == one.key


def test_the_version_belongs_to_the_identity(monkeypatch):
    before = cell().key
    monkeypatch.setattr("mtlkit.records.RECORD_VERSION", RECORD_VERSION + 1)
    assert cell().key != before


def test_a_cell_never_changes():
    with pytest.raises(ValidationError):
        cell().seed = 3


def test_a_record_is_plain_json_and_comes_back():
    one = record(cell())
    text = json.dumps(one.model_dump(mode="json"))
    assert RunRecord.model_validate_json(text) == one
    plain = json.loads(text)
    assert plain["cell"]["model"] == "mmoe"
    assert set("key group status metrics curve timing cost environment error".split()) <= set(plain)
    assert plain["metrics"]["test"]["income"]["auc"] == one.metrics["test"]["income"]["auc"]
    assert one.ok


def test_a_failure_is_a_record():
    lost = failure(cell())
    assert not lost.ok
    assert lost.error.step == 412
    assert RunRecord.model_validate_json(lost.model_dump_json()) == lost
    assert failure(cell(), timeout=True).status == "timeout"


def test_fields_of_later_versions_are_no_obstacle():
    plain = record(cell()).model_dump(mode="json")
    assert RunRecord.model_validate(plain | {"later": 1}) == record(cell())
    with pytest.raises(ValidationError):
        RunRecord.model_validate(plain | {"status": "odd"})


def test_every_kind_of_task_is_ranked_by_a_known_metric():
    assert set(PRIMARY_METRIC) == {"binary", "regression", "multiclass"}
    assert all(METRICS[name].higher_is_better for name in PRIMARY_METRIC.values())


def test_cells_travel_between_processes():
    one = cell()
    again = Cell.model_validate_json(one.model_dump_json())
    assert again == one
    assert again.key == one.key
