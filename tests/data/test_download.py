import gzip
import hashlib
import zlib
from collections import namedtuple
from pathlib import Path

import pytest

from mtlkit.data import download as module
from mtlkit.data.download import DownloadError, download

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
    partial = module._PartialFile(target)
    partial.path.write_bytes(CONTENT)
    partial.write_note(server.url, '"one"', len(CONTENT))
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


# --- servers and networks that do odd things


def test_what_is_not_compressed_as_the_server_says(server, target):
    server.behaviours = [answer(200, CONTENT, Content_Encoding="gzip")]
    with pytest.raises(DownloadError, match="not compressed as the server says") as caught:
        download(server.url, target)
    assert caught.value.hint
    assert not target.exists()
    assert len(server.requests) == 1


def test_a_compressed_body_is_unpacked(server, target):
    packed = gzip.compress(CONTENT)
    server.behaviours = [answer(200, packed, Content_Encoding="gzip")]
    download(server.url, target, sha256=SHA)
    assert target.read_bytes() == CONTENT


def test_deflate_is_unpacked(server, target):
    server.behaviours = [answer(200, zlib.compress(CONTENT), Content_Encoding="deflate")]
    download(server.url, target, sha256=SHA)


PACKED = gzip.compress(CONTENT)


@pytest.mark.parametrize(
    "body", [PACKED[:-1], PACKED[:-9], PACKED[: len(PACKED) // 2], b"", PACKED + PACKED], ids=len
)
def test_a_compressed_body_ends_where_it_should(server, target, body):
    """The stated length is that of what came, so only the compressed data tell."""
    wrong = answer(200, body, Content_Encoding="gzip")
    server.behaviours = [wrong]
    download(server.url, target, sha256=SHA)
    assert len(server.requests) == 2

    target.unlink()
    server.behaviours = [wrong] * module.ATTEMPTS
    with pytest.raises(DownloadError, match="compressed data do not end where they should"):
        download(server.url, target)
    assert not target.exists()


def test_a_compression_that_is_not_understood(server, target):
    server.behaviours = [answer(200, CONTENT, Content_Encoding="br")]
    with pytest.raises(DownloadError, match="comes compressed as 'br', which is not understood"):
        download(server.url, target)
    assert not target.exists()


def test_a_web_page_is_one_when_it_is_compressed(server, target):
    page = gzip.compress(b"<html>log in</html>")
    server.behaviours = [answer(200, page, Content_Encoding="gzip")]
    with pytest.raises(DownloadError, match="web page"):
        download(server.url, target)


@pytest.mark.parametrize(
    "headers",
    [{"ETag": '"\u00e9"'}, {"Last_Modified": "21 f\u00e9vrier"}, {"X_Author": "Andr\u00e9"}],
    ids=str,
)
def test_headers_with_letters_outside_of_ascii(server, target, headers):
    """They say nothing that a request may repeat, so the file is fetched from its beginning."""

    def cut_short(handler):
        handler.head(200, len(CONTENT), **headers)
        handler.wfile.write(CONTENT[:300_000])

    server.behaviours = [cut_short, cut_short]
    download(server.url, target, sha256=SHA)
    assert len(server.requests) == 3
    assert not any("Range" in request for request in server.requests)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_circle_of_addresses(server, target, status):
    server.behaviours = [answer(status, Location=server.url)] * 100
    with pytest.raises(DownloadError, match="from one address to another forever"):
        download(server.url, target)


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://[", "http://", "gopher:x"])
def test_an_address_that_leads_nowhere(server, target, location):
    server.behaviours = [answer(302, Location=location)] * 20
    with pytest.raises(DownloadError) as caught:
        download(server.url, target)
    assert "cannot be" in caught.value.message or "could not be" in caught.value.message
    assert caught.value.hint


def test_a_body_that_is_longer_than_it_says(server, target):
    def send_more(handler):
        handler.head(200, 1000)
        handler.wfile.write(CONTENT)

    server.behaviours = [send_more]
    got = download(server.url, target)
    assert (got.bytes, target.read_bytes()) == (1000, CONTENT[:1000])


@pytest.mark.parametrize("length", ["-1", "many", "1e3", ""])
def test_a_length_that_is_none(server, target, length):
    server.behaviours = [answer(200, CONTENT, Content_Length=length)] * 20
    with pytest.raises(DownloadError, match=r"could not be downloaded: bad Content-Length\."):
        download(server.url, target)
    assert len(server.requests) == module.ATTEMPTS


@pytest.mark.parametrize("value", ["soon", "\u00b2", "-5", "1.5"])
def test_a_wait_that_is_no_number_of_seconds(server, target, value):
    server.behaviours = [answer(503, Retry_After=value)]
    download(server.url, target, sha256=SHA)


def test_no_answer_in_http(server, target):
    server.behaviours = [lambda handler: handler.wfile.write(b"SSH-2.0-hello\r\n\r\n")] * 20
    with pytest.raises(DownloadError, match="could not be downloaded"):
        download(server.url, target)


def test_a_certificate_that_nobody_vouches_for(target):
    with serving(CONTENT, encrypted=True) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(DownloadError, match=r"localhost cannot be trusted: .*certificate") as e:
            download(url, target)
    assert server.requests == []
    assert "SSL_CERT_FILE" in e.value.hint


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "nonsense://127.0.0.1:1"), ("SSL_CERT_FILE", "/no/such/file.pem")],
)
def test_an_environment_that_is_wrong(server, target, monkeypatch, variable, value):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(DownloadError, match="proxy or the certificates") as caught:
        download(server.url, target)
    assert variable in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http://[",
        "http://a b/",
        "http://\udcff/",
        "x",
        "http://a\0b/",
        "http://é\n/",
    ],
)
def test_what_is_no_address(target, url):
    with pytest.raises(DownloadError) as caught:
        download(url, target)
    assert caught.value.hint
