"""Bad files: plugins and what they prepare, prepared data, records and probes, and downloads."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from mtlkit.data import download as download_module
from mtlkit.data.sources import open_source
from mtlkit.data.storage import MANIFEST
from mtlkit.store import RECORD, ResultStore
from tests.campaign.judge import EITHER, MISSING, USAGE, Act, Case, Place, bench, call, command
from tests.conftest import DATA
from tests.data.server import Behaviour, answer, cut, serve, serving
from tests.data.test_damage import DAMAGES
from tests.fakes import cell
from tests.report.test_damaged import DAMAGE
from tests.test_damaged_records import CONTRADICTIONS, FILES, SEALED, put, seal

# --- plugins that cannot be loaded

BASES = {"models": "Architecture", "balancers": "Balancer", "datasets": "GeneratedSource"}
BROKEN_PLUGINS: dict[str, str | bytes] = {
    "nothing": "",
    "only a comment": "# to do",
    "a syntax error": '"""P: p."""\nclass P(\n',
    "tabs and blanks": '"""P: p."""\nif True:\n\tx = 1\n        y = 2\n',
    "a zero byte": b'"""P: p."""\nx = 1\x00\n',
    "not UTF-8": b'"""P: p\xe9."""\n',
    "a binary file": bytes(range(256)),
    "a wrong coding line": "# -*- coding: klingon -*-\n",
    "deep brackets": "x = " + "(" * 300 + ")" * 300,
    "a missing package": "import no_such_package\n",
    "a missing name": "from mtlkit import NoSuchName\n",
    "a missing neighbour": "from . import neighbour\n",
    "raises": "raise ValueError('bad luck')\n",
    "raises without a word": "raise ValueError\n",
    "raises bytes": "raise ValueError(b'\\xff', '\\ud800')\n",
    "exits with 0": "import sys\nsys.exit(0)\n",
    "exits with a word": "raise SystemExit('gone')\n",
    "raises a base exception": "raise BaseException('odd')\n",
    "asserts": "assert False, 'never'\n",
    "divides by 0": "1 / 0\n",
    "runs without end": "def f():\n    f()\nf()\n",
    "no class": "x = 1\n",
    "a class of no kind": "class P:\n    pass\n",
    "a base class only imported": "from mtlkit import Architecture, Balancer, GeneratedSource\n",
    "two classes": "from mtlkit import {base}\nclass P({base}):\n    pass\nclass Q({base}):\n    pass\n",
    "options of no kind": "from mtlkit import {base}\nclass P({base}):\n    Options = 3\n",
    "a wrong default": (
        "from mtlkit import {base}\nclass P({base}):\n"
        "    class Options({base}.Options):\n        width: int = undefined\n"
    ),
    "a class that cannot be made": "from mtlkit import {base}\nclass P({base}, 3):\n    pass\n",
    "a class of another kind": (
        "from mtlkit import Balancer, GeneratedSource\nclass P({other}):\n    pass\n"
    ),
}


def plugin_cases() -> Iterator[Case]:
    """Every broken file, as a model, a balancer and a data set."""
    acts = {
        "models": bench("--models", "./plug.py"),
        "balancers": bench("--balancers", "./plug.py"),
        "datasets": bench(dataset="./plug.py"),
    }
    for kind, base in BASES.items():
        other = "Balancer" if kind == "datasets" else "GeneratedSource"
        for name, text in BROKEN_PLUGINS.items():
            if isinstance(text, str):
                text = text.replace("{base}", base).replace("{other}", other)
            yield Case(
                "plugins", f"{kind}: {name}", acts[kind], USAGE, "plug.py", {"plug.py": text}
            )
    no_forward = "from mtlkit import {base}\nclass P({base}):\n    pass\n"
    for kind in ("models", "balancers"):
        files = {"plug.py": no_forward.format(base=BASES[kind])}
        yield Case("plugins", f"{kind}: no forward", acts[kind], USAGE, "plug.py", files)
    yield Case("plugins", "info: exits", command("info", "./plug.py"), USAGE, "plug.py", EXITS)
    yield Case("plugins", "fetch: exits", fetch("./plug.py"), USAGE, "plug.py", EXITS)
    for kind, act in (("folder", _make_folder), ("pipe", _make_pipe), ("loop", _make_loop)):
        given = bench("--models", "./plug.py")
        yield Case("plugins", f"a {kind}", given, USAGE, "plug.py", set_up=act)


EXITS = {"plug.py": "import sys\nsys.exit(0)\n"}


def fetch(dataset: str) -> Act:
    return command("fetch", dataset, "--data-dir", "{home}")


def _make_folder(place: Place) -> None:
    (place.here / "plug.py").mkdir()


def _make_pipe(place: Place) -> None:
    os.mkfifo(place.here / "plug.py")


def _make_loop(place: Place) -> None:
    (place.here / "plug.py").symlink_to("plug.py")


# --- what a data set of the user's prepares

SOURCE = '''"""Mine: a data set of a test."""

import numpy as np

from mtlkit import Dataset, Feature, GeneratedSource, Schema, Split, Task, fingerprint


class Mine(GeneratedSource):
    def prepare(self, home):
        features = [Feature(name="shop", vocab=3), Feature(name="price", kind="dense")]
        tasks = [Task(name="click"), Task(name="spend", kind="regression", losses=("mse",))]
        name = "mine"
        splits = {}
        for split in ("train", "validation", "test"):
            ids = np.array([[0], [1], [2], [0]], np.int32)
            dense = np.array([[0.5], [1], [2], [0]], np.float32)
            labels = np.array([[0, 1.5], [1, -2], [0, 0], [1, 3]], np.float32)
            observed = np.ones((4, 2), bool)
            weight, groups = None, {}
            # change
            splits[split] = Split(ids, dense, labels, observed, weight=weight, groups=groups)
        # late change
        schema = Schema(features=tuple(features), tasks=tuple(tasks))
        return Dataset(name, schema, splits, fingerprint(schema, splits))
'''

# a change of one split to what the message names
BAD_DATA = {
    "ids[2] = 3": "'shop' in row 2",
    "ids[1] = -1": "'shop' in row 1",
    "ids = ids.astype(np.int64)": "ids of type int64",
    "ids = ids.astype(float)": "ids of type float64",
    "ids = ids[:3]": "ids of shape (3, 1)",
    "ids = ids[:, 0]": "ids of shape (4,)",
    "ids = np.hstack([ids, ids])": "2 id columns for 1 id feature",
    "ids = ids[:, :0]": "0 id columns for 1 id feature",
    "ids = ids.tolist()": "mine.py",
    "ids = None": "mine.py",
    "dense[3] = np.nan": "'price' in row 3",
    "dense[0] = np.inf": "'price' in row 0",
    "dense = dense.astype(np.float64)": "dense of type float64",
    "dense = dense.astype('>f4')": "dense of type >f4",
    "dense = dense[:0]": "dense of shape (0, 1)",
    "labels[0, 0] = 2": "label 2 of the task 'click' in row 0",
    "labels[:, 0] = 2 * labels[:, 0] - 1": "label -1 of the task 'click'",
    "labels[1, 0] = 0.5": "label 0.5 of the task 'click' in row 1",
    "labels[1, 0] = np.nan": "label nan of the task 'click' in row 1",
    "labels[2, 1] = np.nan": "label nan of the task 'spend' in row 2",
    "labels[2, 1] = -np.inf": "label -inf of the task 'spend' in row 2",
    "labels[:, 0] = 1": "one class only of the task 'click'",
    "labels[:, 0] = 0": "one class only of the task 'click'",
    "labels = labels[:, :1]": "labels of shape (4, 1)",
    "labels = labels[:0]": "no rows",
    "labels = labels.astype(bool)": "labels of type bool",
    "labels = labels.astype(object)": "labels of type object",
    "labels = 3": "mine.py",
    "observed[:, 0] = False": "no label of the task 'click'",
    "observed[:, 1] = False": "no label of the task 'spend'",
    "observed = observed.astype(np.float32)": "observed of type float32",
    "observed = observed[:, :1]": "observed of shape (4, 1)",
    "weight = np.zeros(4, np.float32)": "weights that are all 0",
    "weight = -np.ones(4, np.float32)": "weight -1.0 in row 0",
    "weight = np.full(4, np.nan, np.float32)": "weight nan in row 0",
    "weight = np.ones(3, np.float32)": "weight of shape (3,)",
    "weight = np.ones(4)": "weight of type float64",
    "groups = {'user': np.arange(3)}": "groups['user'] of shape (3,)",
    "groups = {'user': np.ones(4)}": "groups['user'] of type float64",
    "ids, dense, labels, observed = (a[:0] for a in (ids, dense, labels, observed))": "no rows",
}

# a change of what the splits are put into; these may be found by the classes themselves
BAD_SETS = {
    "del splits['test']": "'test'",
    "splits = {}": "'train'",
    "splits['test'] = None": "mine.py",
    "tasks = tasks[:1]": "labels of shape (4, 2), not (4, 1)",
    "tasks = []": "labels",
    "tasks = [tasks[0], tasks[0]]": "click",
    "features = []": "0 id features",
    "features = [features[0], features[0]]": "id features",
    "features = [Feature(name='shop', vocab=0), features[1]]": "shop",
    "features = [Feature(name='shop', vocab=2), features[1]]": "'shop' in row 2",
    "tasks = [Task(name='click', kind='ordinal'), tasks[1]]": "kind",
    "tasks = [Task(name=''), tasks[1]]": "name",
    "tasks = [Task(name='click', losses=('hinge',)), tasks[1]]": "hinge",
    "tasks = [Task(name='click', weight=float('nan')), tasks[1]]": "weight",
    "raise RuntimeError('bad luck')": "bad luck",
    "raise SystemExit(0)": "mine.py",
    "return None": "mine.py",
    "return 3": "mine.py",
    "open('/no/such/file')": "/no/such/file",
    "import no_such_package": "no_such_package",
    "1 / 0": "mine.py",
}


def packed_data_cases() -> Iterator[Case]:
    """Every wrong array, and every wrong data set."""
    for mark, changes in (("# change", BAD_DATA), ("# late change", BAD_SETS)):
        for change, word in changes.items():
            files = {"mine.py": SOURCE.replace(mark, change)}
            yield Case("packed data", change, fetch("./mine.py"), EITHER, word, files)


# --- prepared data that changed on the disk


def damage_array(name: str, damage: Callable[[Path], object]) -> Callable[[Place], object]:
    return lambda place: damage(prepared(place) / name)


def prepared(place: Place) -> Path:
    """The folder of the prepared data set."""
    return open_source(DATA).folder(place.home)


def edit_manifest(*path: str, value: object) -> Callable[[Place], None]:
    """Change one field of the manifest."""

    def edit(place: Place) -> None:
        file = prepared(place) / MANIFEST
        manifest = json.loads(file.read_text())
        put(manifest, *path, value=value)
        file.write_text(json.dumps(manifest))

    return edit


BAD_MANIFESTS = {
    ("schema",): None,
    ("schema", "tasks"): [],
    ("schema", "features"): 3,
    ("splits",): [],
    ("splits", "train"): None,
    ("splits", "train", "rows"): 7,
    ("splits", "train", "arrays"): ["ids"],
    ("splits", "test", "arrays"): ["../../x"],
    ("files",): [],
    ("fingerprint",): 3,
    ("name",): None,
    ("details",): [],
}


def prepared_data_cases() -> Iterator[Case]:
    """Every damage to an array, and every edited field of the manifest that is believed."""
    plan = bench()
    for name, (file, damage, _) in DAMAGES.items():
        # the synthetic data have no ids, so their numbers are damaged
        set_up = damage_array(file.replace(".ids.", ".dense."), damage)
        yield Case("prepared data", name, plan, MISSING, "what was written", set_up=set_up)
    for path, value in BAD_MANIFESTS.items():
        name = f"manifest: {'.'.join(path)} = {value}"
        set_up = edit_manifest(*path, value=value)
        yield Case("prepared data", name, plan, MISSING, "what was written", set_up=set_up)


# --- results


def run_folder(place: Place) -> Path:
    """A run of the results, which is to be damaged."""
    return ResultStore(place.out).folder(cell("mmoe", "uwl", 1))


def replace_record(make: Callable[[Path], object]) -> Callable[[Place], None]:
    def set_up(place: Place) -> None:
        file = run_folder(place) / RECORD
        file.unlink()
        make(file)

    return set_up


def edit_record(
    path: tuple[str | int, ...], value: object, sealed: bool
) -> Callable[[Place], None]:
    """Change one field of a record; sealed, with digests that follow from the content."""

    def set_up(place: Place) -> None:
        folder = run_folder(place)
        plain = json.loads((folder / RECORD).read_text())
        put(plain["cell"] if sealed else plain, *path, value=value)
        if sealed:
            seal(plain)
        (folder / RECORD).write_text(json.dumps(plain))
        if sealed:
            folder.rename(folder.with_name(f"seed-{plain['cell']['seed']}-{plain['key'][:8]}"))

    return set_up


def write_probes(content: bytes) -> Callable[[Place], None]:
    def set_up(place: Place) -> None:
        (run_folder(place) / "probes.npz").write_bytes(content)

    return set_up


def result_cases() -> Iterator[Case]:
    """Every damage to a record: the report goes on, and names the file."""

    def case(name: str, set_up: Callable[[Place], None]) -> Case:
        report = command("report", "{out}", "--json")
        return Case("records", name, report, 0, RECORD, set_up=set_up, with_results=True)

    for name, (make, _) in FILES.items():
        yield case(name, replace_record(make))
    for sealed, edits in ((False, CONTRADICTIONS), (True, SEALED)):
        for name, (path, value, _) in edits.items():
            keys = path if isinstance(path, tuple) else (path,)
            yield case(name, edit_record(keys, value, sealed))


def probe_cases() -> Iterator[Case]:
    """Every damage to probes. They are read for figures only, so a whole report is written."""
    for name, (content, _) in DAMAGE.items():
        report, set_up = command("report", "{out}"), write_probes(content)
        yield Case("probes", name, report, 0, "probes.npz", set_up=set_up, with_results=True)


# --- where a report cannot go


def _file_in_the_way(place: Place) -> None:
    (place.here / "file").write_text("")


def report_cases() -> Iterator[Case]:
    """Every place that is no folder."""
    for out in ("file", "file/report", "/dev/null", "/proc/report", "a" * 300, "loop/report"):
        act = command("report", "{out}", "--out", out)
        yield Case(
            "report folders",
            out[:40],
            act,
            MISSING,
            "report folder",
            {"file": ""},
            lambda place: (place.here / "loop").symlink_to("loop"),
            True,
        )


# --- downloads


def download_act(*behaviours: Behaviour, sha256: str | None = None) -> Act:
    """A download from a server of this machine that misbehaves."""

    def run(place: Place) -> object:
        with serving(b"content" * 1000) as server:
            server.behaviours = list(behaviours) * 50
            return download_from(server.url, place, sha256)

    return call(run)


def from_address(url: str) -> Act:
    return call(lambda place: download_from(url, place))


def download_from(url: str, place: Place, sha256: str | None = None) -> object:
    """A download that waits hardly at all between attempts."""
    with mock.patch.object(download_module, "BACKOFF", 0.001):
        return download_module.download(url, place.home / "file.bin", sha256=sha256)


PAGE = b"<!DOCTYPE html><html>please log in</html>"
DOWNLOADS = {
    **{
        f"status {status}": (download_act(answer(status)), str(status))
        for status in (204, 301, 304, 400, 401, 403, 404, 410, 418, 429, 451, 500, 503)
    },
    "a redirect in a circle": (download_act(answer(302, Location="/file.bin")), "forever"),
    "a redirect to a file": (download_act(answer(302, Location="file:///etc/passwd")), "file"),
    "a web page": (download_act(answer(200, PAGE, Content_Type="text/html")), "web page"),
    "a web page by another name": (download_act(answer(200, PAGE)), "web page"),
    "gzip that is none": (
        download_act(answer(200, b"no gzip", Content_Encoding="gzip")),
        "file.bin",
    ),
    "gzip that is cut": (
        download_act(answer(200, gzip.compress(b"a" * 9000)[:-9], Content_Encoding="gzip")),
        "file.bin",
    ),
    "another hash": (download_act(serve, sha256="0" * 64), "sha256"),
    "always cut at once": (download_act(cut(0)), "file.bin"),
    "always cut at the same byte": (download_act(cut(100, etag=False)), "file.bin"),
    "no answer": (download_act(lambda handler: None), "file.bin"),
    "an answer that is none": (
        download_act(lambda handler: handler.wfile.write(b"hello\r\n\r\n") and None),
        "file.bin",
    ),
    "a length that is a word": (
        download_act(lambda handler: handler.head(200, None, Content_Length="many")),
        "file.bin",
    ),
    "a length below 0": (
        download_act(lambda handler: handler.head(200, None, Content_Length="-5")),
        "file.bin",
    ),
    "a length that no disk has": (download_act(lambda handler: handler.head(200, 10**18)), "GB"),
    "a header that is not ASCII": (download_act(answer(404, b"", X_Name="caf\xe9")), "404"),
    "an address of no kind": (from_address("no address"), "no address"),
    "ftp": (from_address("ftp://127.0.0.1/x"), "ftp://127.0.0.1/x"),
    "a port that is none": (from_address("http://127.0.0.1:99999/x"), "99999"),
    "nobody listens": (from_address("http://127.0.0.1:9/x"), "127.0.0.1"),
    "no host": (from_address("http:///x"), "http:///x"),
}


def download_cases() -> Iterator[Case]:
    for name, (act, word) in DOWNLOADS.items():
        yield Case("downloads", name, act, MISSING, word)


def cases() -> Iterator[Case]:
    """All bad files that are told within a moment."""
    yield from plugin_cases()
    yield from packed_data_cases()
    yield from prepared_data_cases()
    yield from result_cases()
    yield from report_cases()
    yield from download_cases()
