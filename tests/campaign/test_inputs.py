"""Bad inputs, by kind: an exit code, one sentence that names the cause, a hint, and no harm done."""

import contextlib
import os
import subprocess
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtlkit.errors import MtlkitError, UsageError
from mtlkit.grid.grid_settings import GridSettings, read_grid
from mtlkit.record_check import UnreadableError, read_record
from mtlkit.spec import parse_spec
from mtlkit.yaml_files import read_yaml
from tests.campaign import files, judge, plugins, words
from tests.campaign.judge import Ground
from tests.campaign.processes import REPOSITORY
from tests.conftest import CommandResult

QUICK = [*words.cases(), *files.cases()]
SLOW = [*words.option_cases(), *files.probe_cases()]
BY_COMMAND = [case for case in words.cases() if case.kind in ("commands", "grid files")]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_bad_input(ground, case):
    assert case.complaints(ground) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_bad_input_that_takes_longer(ground, case):
    assert case.complaints(ground) == []


def run_process(*typed):
    """The command line in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "mtlkit", *typed],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    return CommandResult(result.returncode, result.stdout, result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("case", BY_COMMAND[::8], ids=str)
def test_a_process_answers_as_its_function_does(ground, case):
    with mock.patch.object(judge, "run_cli", run_process):
        assert case.complaints(ground) == []


@pytest.mark.slow
def test_plugins_that_go_wrong_at_work(tmp_path):
    wrong = plugins.complaints(tmp_path / "grid")
    assert {name: complaints for name, complaints in wrong.items() if complaints} == {}


# --- any text at all

anything = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
spec_like = st.text(st.sampled_from("mo[]=,:.-1e *?'\"\\\n\0é"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@anything
@given(st.text(max_size=40) | spec_like)
def test_any_text_is_a_spec_or_refused(text):
    with contextlib.suppress(UsageError):
        spec = parse_spec(text)
        assert parse_spec(str(spec)).name == spec.name


@anything
@given(st.text(max_size=60) | st.text(st.sampled_from("a: [{}]&*!|>-\n#'\"%@`1"), max_size=40))
def test_any_text_is_yaml_or_refused(text):
    with contextlib.suppress(UsageError):
        assert isinstance(read_yaml(text, "text"), dict)


@anything
@given(st.dictionaries(st.sampled_from(sorted(GridSettings.model_fields)), values, max_size=3))
def test_any_values_are_a_grid_or_refused(flags):
    with contextlib.suppress(MtlkitError):
        assert isinstance(read_grid(None, flags, []), GridSettings)


@anything
@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]":,key1e9.-'), max_size=60))
def test_any_bytes_are_a_record_or_refused(content):
    with contextlib.suppress(UnreadableError):
        read_record(content if isinstance(content, bytes) else content.encode())
