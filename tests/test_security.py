"""What SECURITY.md says, line by line."""

import ast
import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from mtlkit.errors import MtlkitError
from mtlkit.registry import PACKAGE
from mtlkit.report.build import write_report
from mtlkit.report.submissions import Board, pack
from mtlkit.store import ResultStore, UnreadableError
from tests import fakes
from tests.conftest import DATA, files, run_cli
from tests.documents import ROOT

SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in SOURCES}
PICKLES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
HOSTILE = "<script>alert(1)</script>"


def imports():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield file, node.module
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


def calls():
    """(file, what is called as text, node)."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func), node


def keyword(node, name):
    return next((ast.unparse(word.value) for word in node.keywords if word.arg == name), None)


# --- 1 and 2: no pickle, no text that becomes code


def test_no_pickle_is_imported():
    found = {(file.name, name) for file, name in imports() if set(str(name).split(".")) & PICKLES}
    assert not found


def test_arrays_and_states_are_read_as_data():
    loads = [(file, name, node) for file, name, node in calls() if name.endswith(".load")]
    arrays = [node for _, name, node in loads if name in ("np.load", "numpy.load")]
    assert arrays
    assert all(keyword(node, "allow_pickle") == "False" for node in arrays)
    states = [node for _, name, node in loads if name == "torch.load"]
    assert all(keyword(node, "weights_only") == "True" for node in states)
    assert not [name for _, name, _ in calls() if name.endswith("read_pickle")]


def test_text_becomes_code_in_one_place_alone():
    names = {"eval", "exec", "compile", "__import__"}
    places = {(file.name, name) for file, name, _ in calls() if name in names}
    assert places == {("registry.py", "exec"), ("registry.py", "compile")}


def test_no_shell_is_used():
    for _, name, node in calls():
        assert name not in ("os.system", "os.popen", "subprocess.getoutput")
        assert keyword(node, "shell") in (None, "False")


def test_a_pickle_in_the_place_of_an_array_is_refused(tmp_path):
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(touched),))

    with (tmp_path / "weights.npz").open("wb") as file:
        np.savez(file, evil=np.array([Evil()], dtype=object))
    with pytest.raises(UnreadableError):
        ResultStore.arrays(tmp_path, "weights")
    assert not touched.exists()


# --- 3: YAML


def test_yaml_is_read_by_a_safe_loader(tmp_path):
    readers = {
        (file.name, ast.unparse(node)) for file, name, node in calls() if name == "yaml.load"
    }
    assert readers == {("yaml_files.py", "yaml.load(text, _GridLoader)")}
    from mtlkit.yaml_files import _GridLoader

    assert issubclass(_GridLoader, yaml.SafeLoader)
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"models: !!python/object/apply:os.mkdir ['{tmp_path}/touched']\n")
    ended = run_cli("bench", grid, "--dry-run")
    assert ended.code == 2
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 100 + "]" * 100, "#" * 10_000_001], ids=["deep", "large"]
)
def test_yaml_has_limits(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    assert run_cli("bench", tmp_path / "grid.yaml", "--dry-run").code == 2


# --- 4 and 5: names


def hostile_store(root):
    """Two runs whose every name is hostile."""
    for balancer in ("uniform", HOSTILE):
        cell = fakes.cell(balancer=balancer, model=HOSTILE, dataset=HOSTILE, tasks=[HOSTILE, "b"])
        run = fakes.record(cell).model_copy(update={"warnings": [HOSTILE]})
        ResultStore(root).save(run)
    failed = fakes.failure(fakes.cell(model=HOSTILE, dataset=HOSTILE, tasks=[HOSTILE, "b"], seed=1))
    ResultStore(root).save(failed)


def test_names_are_escaped_on_the_page(tmp_path):
    hostile_store(tmp_path)
    page = write_report(tmp_path).page.read_text(encoding="utf-8")
    assert HOSTILE not in page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    assert [f"'sha256-{digest}'" for digest in digests] == re.findall(r"script-src (\S+);", page)
    assert "default-src 'none'" in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("name", ["../../../../evil", "/tmp/evil", "..", "a/../../../b"])
def test_names_become_no_paths(tmp_path, name):
    root = tmp_path / "results"
    cell = fakes.cell(model=name, balancer=name, dataset=name, tasks=[name, "b"])
    folder = ResultStore(root).save(fakes.record(cell))
    assert root.resolve() in folder.resolve().parents
    write_report(root)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("program", ["tensorboard", "mlflow"])
def test_names_become_no_paths_of_logs(tmp_path, program):
    pytest.importorskip(program, reason=f"{program} is an extra")
    root = tmp_path / "results"
    name = "../../../../evil"
    cell = fakes.cell(model=name, balancer=name, dataset=name, tasks=[name, ".."])
    ResultStore(root).save(fakes.record(cell))
    before = files(root)
    ended = run_cli("export", root, "--to", program, "--out", tmp_path / "logs")
    assert ended.code == 0, ended.err
    assert {path.name for path in tmp_path.iterdir()} == {"results", "logs"}
    assert files(root) == before


def test_links_lead_to_no_leaderboard(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    runs = [(fakes.record(fakes.cell()), ResultStore(elsewhere).save(fakes.record(fakes.cell())))]
    for name in ("ada", "bob"):
        pack(runs, tmp_path / "board" / name, name)
    (tmp_path / "board" / "ada" / "census").rename(tmp_path / "secret")
    (tmp_path / "board" / "ada" / "census").symlink_to(tmp_path / "secret")
    board = Board(tmp_path / "board")
    assert [board.sender[run].name for _, run in board.all_runs] == ["bob"]
    assert "is a link" in str(board.unreadable[0])


# --- plugins that records name


def test_records_start_no_code(tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    root = tmp_path / "results"
    folder = ResultStore(root).save(fakes.record(fakes.cell(model=str(evil))))
    write_report(root)
    assert run_cli("report", root, "--json").code == 0
    refused = run_cli("rerun", folder, "--data-dir", tmp_path / "data")
    assert refused.code == 2
    assert "--plugins" in refused.err
    assert not (tmp_path / "touched").exists()


# --- 6: what is written


@pytest.fixture
def temporary():
    """A folder whose path is short enough for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


def test_nothing_is_written_outside_of_the_homes(tmp_path, temporary):
    work, user = tmp_path / "work", tmp_path / "user"
    for folder in (work, user):
        folder.mkdir()
    own = {"HOME": str(user), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    left_out = {"MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NUMBA_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | own
    data, results = tmp_path / "data", tmp_path / "results"

    def run(*arguments):
        command = [sys.executable, "-m", "mtlkit", *map(str, arguments)]
        ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    run("fetch", DATA, "--data-dir", data)
    grid = ["--models", "shared-bottom", "--balancers", "uniform", "--references", "none"]
    grid += ["--seeds", "1", "--epochs", "1", "--device", "cpu", "--set", "batch_size=50"]
    run("bench", "-d", DATA, *grid, "--data-dir", data, "--out", results)
    run("report", results)
    (record,) = results.glob("*/*/*/*/record.json")
    run("rerun", record, "--data-dir", data)

    assert not list(work.iterdir())
    written = {path.relative_to(user).parts[1] for path in user.rglob("*") if path.is_file()}
    assert written <= {"matplotlib", "fontconfig"}
    assert not [path for path in temporary.rglob("*") if path.is_file()]


# --- 7: archives


def test_nothing_unpacks_an_archive_to_its_own_names():
    unpackers = [name for _, name, _ in calls() if name.endswith((".extractall", ".extract"))]
    assert not unpackers
    assert not [name for _, name, _ in calls() if name.endswith("unpack_archive")]


def test_links_in_an_archive_are_not_followed(tmp_path):
    from mtlkit.data.census_files import MEMBERS
    from mtlkit.data.sources import prepare

    (tmp_path / "secret").write_text("1, 2, 3\n")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        for name in MEMBERS:
            for kind, target in ((tarfile.SYMTYPE, tmp_path / "secret"), (tarfile.LNKTYPE, name)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, str(target)
                archive.addfile(member)
    with pytest.raises(MtlkitError):
        prepare("census", tmp_path / "home", origin=tmp_path / "evil.tar.gz", asked=True)
    assert not list((tmp_path / "home").rglob("*.gz"))


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros(8 << 20, np.uint8))
    with zipfile.ZipFile(tmp_path / "probes.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", array.getvalue())
    assert (tmp_path / "probes.npz").stat().st_size < 1 << 17
    with pytest.raises(UnreadableError, match="unpacks to more than"):
        ResultStore.arrays(tmp_path, "probes", limit=1 << 20)


# --- 8: downloads


def test_sources_name_https_addresses_alone():
    texts = [
        node.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert any("https://" in text for text in texts)
    assert not [text for text in texts if re.search(r"\bhttp://[a-z]", text)]


def test_one_file_alone_speaks_http():
    network = {"httpx", "requests", "urllib.request", "urllib3", "http.client", "ftplib", "aiohttp"}
    users = {file.name for file, name in imports() if name in network}
    assert users == {"download.py"}


def test_https_leads_to_https_alone(tmp_path, monkeypatch):
    import httpx

    from mtlkit.data import download as module

    asked = []

    def serve(request):
        asked.append(str(request.url))
        target = {"https://a/1": "https://b/2", "https://b/2": "http://b/3"}.get(str(request.url))
        if target:
            return httpx.Response(302, headers={"Location": target})
        return httpx.Response(200, stream=httpx.ByteStream(b"plain"))

    client = httpx.Client
    monkeypatch.setattr(
        module.httpx,
        "Client",
        lambda **options: client(transport=httpx.MockTransport(serve), **options),
    )
    with pytest.raises(MtlkitError, match="without https"):
        module.download("https://a/1", tmp_path / "file")
    assert asked == ["https://a/1", "https://b/2"]
    assert not (tmp_path / "file").exists()

    # what the user typed is theirs to decide
    assert module.download("http://b/3", tmp_path / "file").path.read_bytes() == b"plain"


def test_the_page_counts_what_holds():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d)\. \*\*", text, re.MULTILINE) == list("12345678")
    assert json.dumps(text).isascii()
