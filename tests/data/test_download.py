import hashlib
import itertools
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from mtlkit.data import download as module
from mtlkit.data.download import DownloadError, download, pip_download

from .server import answer, cut, serve, serving

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0.001)


@pytest.fixture
def server():
    with serving(CONTENT) as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "file.bin"


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_whole_file(server, target):
    calls = []
    got = download(
        server.url, target, sha256=SHA.upper(), progress=lambda *call: calls.append(call)
    )
    assert target.read_bytes() == CONTENT
    assert (got.path, got.bytes, got.sha256, got.url) == (target, len(CONTENT), SHA, server.url)
    assert leftovers(target) == []
    assert calls[0] == ("file.bin", 0, len(CONTENT))
    assert calls[-1] == ("file.bin", len(CONTENT), len(CONTENT))


def test_broken_connections_are_continued_where_they_broke(server, target):
    server.behaviours = [cut(300_000), cut(200_000), cut(100_000)]
    download(server.url, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    starts = [int(request["Range"][6:-1]) for request in server.requests[1:]]
    assert len(starts) == 3
    assert 0 < starts[0] < starts[1] < starts[2] <= 600_000
    assert all(request["If-Range"] == '"one"' for request in server.requests[1:])


def test_breaks_with_progress_may_outnumber_the_attempts(server, target):
    server.behaviours = [cut(100_000)] * (module.ATTEMPTS + 3)
    download(server.url, target, sha256=SHA)
    assert len(server.requests) == module.ATTEMPTS + 4


def test_a_later_call_continues(server, target, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.behaviours = [cut(500_000)]
    with pytest.raises(DownloadError):
        download(server.url, target)
    assert not target.exists()
    download(server.url, target, sha256=SHA)
    assert int(server.requests[-1]["Range"][6:-1]) > 0


def test_server_that_ignores_range_starts_over(server, target):
    server.behaviours = [cut(500_000), lambda handler: serve(handler, ranges=False)]
    download(server.url, target, sha256=SHA)
    assert "Range" in server.requests[-1]


def test_changed_file_starts_over(server, target):
    def change(handler):
        server.content, server.etag = b"new" * 1000, '"two"'
        serve(handler)

    server.behaviours = [cut(500_000), change]
    download(server.url, target)
    assert target.read_bytes() == b"new" * 1000


def test_nothing_is_continued_unless_the_server_vouches_for_it(server, target):
    server.behaviours = [cut(500_000, etag=False), cut(500_000, etag=False)]
    download(server.url, target, sha256=SHA)
    assert not any("Range" in request for request in server.requests)


def test_other_address_is_not_continued(server, target, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.behaviours = [cut(500_000)]
    with pytest.raises(DownloadError):
        download(f"{server.url}?version=1", target)
    download(f"{server.url}?version=2", target, sha256=SHA)
    assert "Range" not in server.requests[-1]


def test_continued_at_the_wrong_place_starts_over(server, target):
    wrong = answer(
        206, CONTENT[7:], Content_Range=f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}", ETag='"one"'
    )
    server.behaviours = [cut(500_000), wrong]
    download(server.url, target, sha256=SHA)


def test_refused_range_starts_over(server, target):
    server.behaviours = [cut(500_000), answer(416)]
    download(server.url, target, sha256=SHA)
    assert "Range" not in server.requests[-1]


def test_all_bytes_there_but_no_name_yet(server, target):
    target.parent.mkdir()
    part = module._PartFile(target, server.url)
    part.path.write_bytes(CONTENT)
    part.write_note('"one"', len(CONTENT))
    download(server.url, target, sha256=SHA)
    assert server.requests == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_retried(server, target, status):
    server.behaviours = [answer(status), answer(status)]
    download(server.url, target, sha256=SHA)
    assert len(server.requests) == 3


def test_retry_after_is_respected(server, target, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.behaviours = [answer(503, Retry_After="7"), answer(503, Retry_After="9999")]
    download(server.url, target)
    assert waits == [7.0, module.LONGEST_WAIT]


def test_lasting_failure_gives_up(server, target):
    server.behaviours = [answer(500)] * 20
    with pytest.raises(DownloadError, match="500"):
        download(server.url, target)
    assert len(server.requests) == module.ATTEMPTS


@pytest.mark.parametrize(("status", "hint"), [(404, "address"), (403, "expired")])
def test_final_answers_are_not_retried(server, target, status, hint):
    server.behaviours = [answer(status)]
    with pytest.raises(DownloadError, match=str(status)) as caught:
        download(server.url, target)
    assert caught.value.status == status
    assert hint in caught.value.hint
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_login_page_is_refused(server, target, kind):
    server.behaviours = [answer(200, b"\n <!DOCTYPE html><html>log in</html>", Content_Type=kind)]
    with pytest.raises(DownloadError, match="web page"):
        download(server.url, target)
    assert not target.exists()


def test_wrong_hash_leaves_nothing(server, target):
    with pytest.raises(DownloadError, match="sha256"):
        download(server.url, target, sha256="0" * 64)
    assert list(target.parent.iterdir()) == []


def test_short_body_never_gets_the_name(server, target):
    server.behaviours = [cut(10, ranges=False, etag=False)] * 20
    with pytest.raises(DownloadError):
        download(server.url, target)
    assert not target.exists()


def test_full_disk_is_said_before_anything_is_written(server, target, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 10, 1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match="GB free"):
        download(server.url, target)
    assert not list(target.parent.iterdir())


def test_unknown_host_fails_at_once(target, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("retried"))
    with pytest.raises(DownloadError, match=r"no-such-host\.invalid cannot be reached"):
        download("http://no-such-host.invalid/x.zip", target)


def test_bad_address(target):
    with pytest.raises(DownloadError, match="cannot be opened"):
        download("ftp://127.0.0.1/x.zip", target)


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
