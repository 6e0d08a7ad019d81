"""Small data sets that many tests of training use."""

import pytest

from tests.toy import toy_dataset, toy_schema


@pytest.fixture(scope="module")
def pair():
    """Two binary tasks with all labels."""
    return toy_dataset(toy_schema(tasks=2), rows=320)


@pytest.fixture(scope="module")
def mixed():
    """Three kinds of tasks with so few labels that some batches have none for a task."""
    schema = toy_schema(tasks=3, kinds=("binary", "regression", "multiclass"), bags=1)
    return toy_dataset(schema, rows=320, missing=0.9)
