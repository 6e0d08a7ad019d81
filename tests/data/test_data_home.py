from pathlib import Path

import pytest

from mtlkit.data.data_home import LAST, data_home, last_fetched, make_home, remember
from mtlkit.errors import MissingError


def test_precedence(monkeypatch, tmp_path):
    monkeypatch.delenv("MTLKIT_DATA", raising=False)
    assert data_home() == Path("datasets")
    monkeypatch.setenv("MTLKIT_DATA", str(tmp_path / "variable"))
    assert data_home() == tmp_path / "variable"
    assert data_home(tmp_path / "given") == tmp_path / "given"


def test_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert data_home(Path("~/data")) == Path("/somewhere/data")


def test_last_fetched(tmp_path):
    home = tmp_path / "not" / "there"
    assert last_fetched(home) is None
    remember(home, "census")
    remember(home, "synthetic[p=0.5]")
    assert last_fetched(home) == "synthetic[p=0.5]"
    assert [path.name for path in home.iterdir()] == [LAST]


def test_home_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match="cannot be made") as caught:
        make_home(tmp_path / "file" / "below")
    assert "--data-dir" in caught.value.hint
