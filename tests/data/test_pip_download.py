import hashlib
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlkit.data import pip_download as module
from mtlkit.data.download import DownloadError
from mtlkit.data.pip_download import pip_download

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


def fake_pip(monkeypatch, returncode=0, stderr="", content=None):
    """Stand in for the pip process; returns the commands and requirements it was given."""
    seen = []

    def run(command, **options):
        after = dict(itertools.pairwise(command))
        seen.append((command, Path(after["--requirement"]).read_text()))
        if content is not None:
            folder = Path(after["--dest"])
            folder.mkdir()
            (folder / "thing-1.0.tar.gz").write_bytes(content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_pip_gets_the_hash_to_check(tmp_path, monkeypatch):
    seen = fake_pip(monkeypatch, content=CONTENT)
    path = pip_download("thing==1.0", SHA, tmp_path / "new")
    assert path == tmp_path / "new" / "thing-1.0.tar.gz"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    command, requirements = seen[0]
    assert requirements == f"thing==1.0 --hash=sha256:{SHA}\n"
    assert {"--require-hashes", "--no-deps", "--no-input"} <= set(command)


@pytest.mark.parametrize("wheel", [False, True])
def test_a_wheel_is_one_file_for_every_machine(tmp_path, monkeypatch, wheel):
    seen = fake_pip(monkeypatch, content=CONTENT)
    pip_download("thing==1.0", SHA, tmp_path, wheel=wheel)
    after = dict(itertools.pairwise(seen[0][0]))
    assert after.get("--only-binary") == (":all:" if wheel else None)
    assert after.get("--no-binary") == (None if wheel else "thing")
    assert after.get("--platform") == ("manylinux_2_28_x86_64" if wheel else None)
    assert after.get("--python-version") == ("3.11" if wheel else None)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("/usr/bin/python: No module named pip", "missing"),
        (
            "WARNING: x\nERROR: first\nERROR: No matching distribution.\nWARNING: y",
            "failed: No matching distribution",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  Got abc",
            "sha256 differs",
        ),
        ("", "it says nothing"),
    ],
)
def test_pip_failures_are_one_sentence(tmp_path, monkeypatch, stderr, message):
    fake_pip(monkeypatch, 1, stderr)
    with pytest.raises(DownloadError, match=message):
        pip_download("thing==1.0", SHA, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pip_is_not_trusted_blindly(tmp_path, monkeypatch):
    fake_pip(monkeypatch, content=b"other")
    with pytest.raises(DownloadError, match="another file"):
        pip_download("thing==1.0", SHA, tmp_path)


def test_pip_that_hangs(tmp_path, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DownloadError, match="did not finish"):
        pip_download("thing==1.0", SHA, tmp_path)


def test_real_pip_refuses_a_wrong_hash(tmp_path, monkeypatch):
    """The package is a local file whose setup would leave a trace if it ran."""
    trace, links = tmp_path / "ran", tmp_path / "links"
    package = tmp_path / "evil-1.0"
    package.mkdir()
    (package / "setup.py").write_text(
        f"open({str(trace)!r}, 'w')\nimport setuptools\nsetuptools.setup(name='evil')\n"
    )
    (package / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    links.mkdir()
    shutil.make_archive(str(links / "evil-1.0"), "gztar", tmp_path, "evil-1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    with pytest.raises(DownloadError, match="sha256 differs"):
        pip_download("evil==1.0", "0" * 64, tmp_path / "out")
    assert not trace.exists()


def test_what_pip_says_need_not_be_utf_8(tmp_path, monkeypatch):
    code = "import os, sys; os.write(2, b'ERROR: caf\\xe9 closed.\\n'); sys.exit(1)"
    monkeypatch.setattr(module, "_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(DownloadError, match="failed: caf\ufffd closed"):
        pip_download("thing==1.0", SHA, tmp_path)
