"""The page on reruns goes as shown."""

import importlib.util

import pytest

from tests.documents import ROOT, commands_of, run_well

PAGE = ROOT / "docs" / "rerun.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the results of the page's first commands."""
    folder = tmp_path_factory.mktemp("page")
    for command in commands_of(PAGE):
        said = run_well(command, folder)
        if "rerun" in command:
            assert said == "same digits: all metrics are the same to the last digit\n"
    return folder


@pytest.mark.slow
def test_its_commands_go_as_shown(folder):
    assert len(commands_of(PAGE)) == 3
    assert len(list(folder.glob("results/*/*/*/*/record.json"))) == 3


@pytest.mark.slow
def test_its_export_goes_as_shown(folder):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is an extra")
    (command,) = commands_of(PAGE, "tensorboard")
    run_well(command, folder)
    assert len(list(folder.glob("logs/**/events.*"))) == 3
