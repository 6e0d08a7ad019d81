"""Which fast forms a model may take, and that the choice of the caller is kept."""

from dataclasses import replace

import pytest

from mtlkit.registry import BALANCERS
from mtlkit.settings import TrainingSettings
from mtlkit.training.fast_paths import prepare_model
from tests.models.build import build
from tests.toy import toy_batch, toy_schema

SCHEMA = toy_schema(tasks=2)


def chosen(model, balancer, **settings):
    """The fast paths of a model after the choice for a balancer."""
    kind = BALANCERS.load(balancer)
    balancer = kind(SCHEMA.tasks, kind.Options())
    settings = TrainingSettings.model_validate(settings)
    prepare_model(model, balancer, settings, toy_batch(SCHEMA, 40))
    return model.fast_paths


@pytest.mark.parametrize("balancer", BALANCERS.names())
def test_experts_are_formed_for_balancers_that_ask_for_rows(balancer):
    paths = chosen(build("mmoe", SCHEMA), balancer)
    assert paths.fuse == (BALANCERS.load(balancer).needs != "rows")
    assert paths.fold


@pytest.mark.parametrize(
    ("model", "has_boundary"), [("shared-bottom", True), ("cross-stitch", False)]
)
def test_x_is_formed_where_it_is_what_tasks_share(model, has_boundary):
    assert chosen(build(model, SCHEMA), "mgda", scope="representation").fold == has_boundary
    assert chosen(build(model, SCHEMA), "mgda").fold


def test_tables_are_sparse_from_the_rows_of_the_settings():
    assert chosen(build("mmoe", SCHEMA), "uniform", sparse_rows=7).sparse_from == 7


@pytest.mark.parametrize("path", ["fold", "fuse"])
def test_a_form_that_was_refused_before_stays_refused(path):
    model = build("mmoe", SCHEMA)
    model.use(replace(model.fast_paths, **{path: False}))
    assert not getattr(chosen(model, "uniform"), path)
