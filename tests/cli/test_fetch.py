import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from mtlkit.cli.downloads import show_downloads
from mtlkit.cli.fetch import _typed, fetch
from mtlkit.data.data_home import last_fetched
from mtlkit.data.sources import open_source

SPEC = "synthetic[p=0.9,tasks=3,kind=mixed,rows=80,d=4]"


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(fetch)
    return app


def test_card_to_stdout_talk_to_stderr(app, tmp_path):
    result = CliRunner().invoke(app, [SPEC, "--data-dir", str(tmp_path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for text in (
        "SIMULATED",
        "ceiling",
        "the planted model on test",
        "task-1 0.",
        "task-2 0.",
        "task-3 0.",
        "4 numbers",
        "80 rows",
        "20 rows",
        "task-1",
        "40 (50.00%)",
        "regression",
        SPEC,
    ):
        assert text in result.stdout
    assert f"mtlkit bench -d '{SPEC}' --data-dir {tmp_path}" in result.stderr
    assert "mtlkit bench" not in result.stdout
    assert last_fetched(tmp_path) == SPEC


def test_failure_remembers_nothing(app, tmp_path):
    result = CliRunner().invoke(
        app, ["census", "--from", str(tmp_path / "nowhere"), "--data-dir", str(tmp_path)]
    )
    assert result.exit_code != 0
    assert last_fetched(tmp_path) is None


def test_one_line_a_download_without_a_terminal(capsys):
    with show_downloads() as progress:
        for done in range(0, 3_000_000, 1_000_000):
            progress("a.zip", done, 3_000_000)
        progress("b", 0, None)
    assert capsys.readouterr() == ("", "fetching a.zip (3.0 MB)\nfetching b\n")


@pytest.mark.parametrize(
    "text",
    [
        "census",
        "census[protocol=rechub]",
        "census[numeric=dense]",
        "census[bins=8]",
        "synthetic[p=0.9]",
    ],
)
def test_shortest_text_gives_the_same_options(text):
    assert _typed(open_source(text)) == text


def test_options_without_effect_are_not_typed():
    assert _typed(open_source("census[protocol=rechub,bins=7]")) == "census[protocol=rechub]"


def test_imports_are_light():
    code = "import sys, mtlkit.cli.fetch; print({'torch', 'numpy', 'pandas', 'httpx', 'pydantic'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "set()"
    )


def test_fetching_needs_no_torch(tmp_path):
    code = (
        "import sys, typer; from mtlkit.cli.fetch import fetch\n"
        f"fetch('synthetic[rows=8,d=2]', __import__('pathlib').Path({str(tmp_path)!r}), None, False)\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip().endswith("False"), result.stderr
