"""Data-set files of the user's: each has data of its own, and a wrong one ends with a sentence."""

import errno
import os

import pytest

from mtlkit.data import storage
from mtlkit.data.sources import open_source, prepare
from mtlkit.errors import MissingError, UsageError

PLUGIN = """
import numpy as np

from mtlkit.data.datasets._source import GeneratedSource
from mtlkit.data.splits import SPLITS, Dataset, Split, fingerprint
from mtlkit.data.types import Feature, Schema, Task


class Mine(GeneratedSource):
    def folder(self, home):
        return home / "mine"

    def prepare(self, home):
        schema = Schema(features=(Feature(name="shop", vocab=3),), tasks=(Task(name="click"),))
        splits = {{}}
        for name in SPLITS:
            ids = np.array([[0], [1], [2], [0]], np.int32)
            labels = np.array([[0], [1], [0], [1]], np.float32)
            observed = np.ones((4, 1), bool)
            {change}
            splits[name] = Split(ids, np.zeros((4, 0), np.float32), labels, observed)
        return Dataset("mine", schema, splits, fingerprint(schema, splits))
"""


def write_plugin(folder, change):
    file = folder / "mine.py"
    file.write_text(PLUGIN.format(change=change))
    return file


def test_good_plugin(cli, tmp_path):
    file = write_plugin(tmp_path, "pass")
    result = cli("fetch", file, "--data-dir", tmp_path / "data")
    assert (result.code, "Traceback" in result.err) == (0, False), result.err
    assert len(open_source(str(file)).load(tmp_path / "data").splits["test"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ids[2] = 3", "The train split holds the id 3 of 'shop' in row 2, outside its vocabulary"),
        ("labels = 2 * labels - 1", "holds the label -1 of the task 'click' in row 0, not 0 or 1"),
        ("labels = labels + 1", "holds the label 2 of the task 'click' in row 1, not 0 or 1"),
        ("labels[:] = 1", "has labels of one class only of the task 'click': all are 1"),
        ("observed[:] = False", "has no label of the task 'click'"),
        ("ids = ids.astype(float)", "has ids of type float64, not int32"),
        ("labels = labels[:, 0]", "has labels of shape (4,), not (4, 1)"),
    ],
)
@pytest.mark.parametrize("command", ["fetch", "bench"])
def test_wrong_plugin(cli, tmp_path, command, change, message):
    file = write_plugin(tmp_path, change)
    more = () if command == "fetch" else ("-o", tmp_path / "results")
    name = (file,) if command == "fetch" else ("-d", file)
    result = cli(command, *name, "--data-dir", tmp_path / "data", *more)
    text = " ".join((result.out + result.err).split())
    assert result.code == 3, text
    assert message in text
    assert "hint: correct what the data set mine prepares" in text
    assert "Traceback" not in text


COINS = """
import numpy as np

from mtlkit import Dataset, Feature, GeneratedSource, Schema, Settings, Split, Task, fingerprint


class Coins(GeneratedSource):
    class Options(Settings):
        rows: int = 4

    def prepare(self, home):
        schema = Schema(features=(Feature(name="x", kind="dense"),), tasks=(Task(name="heads"),))
        splits = {}
        for name in ("train", "validation", "test"):
            rows = self.options.rows
            labels = np.arange(rows, dtype=np.float32)[:, None] % 2
            splits[name] = Split(
                ids=np.zeros((rows, 0), np.int32),
                dense=labels + SHIFT,
                labels=labels,
                observed=np.ones((rows, 1), bool),
            )
        return Dataset("coins", schema, splits, fingerprint(schema, splits), simulated=True)
"""


def write_coins(file, shift):
    """A data set whose first number is ``shift``."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(COINS.replace("SHIFT", str(shift)))
    return file


def first_number(file, home):
    return float(prepare(str(file), home)[1].splits["train"].dense[0, 0])


def test_files_of_one_name_have_data_of_their_own(tmp_path):
    home = tmp_path / "home"
    one, two = (write_coins(tmp_path / name / "coins.py", i) for i, name in enumerate("ab"))
    assert [first_number(file, home) for file in (one, two, one, two)] == [0, 1, 0, 1]
    assert len(list(home.iterdir())) == 2

    # also where they are the same, for raw files of one are not those of the other
    write_coins(two, 0)
    names = [open_source(str(file)).name for file in (one, two)]
    assert names[0] != names[1]
    assert all(name.startswith("coins-") for name in names)


def test_an_edited_file_prepares_its_data_again(tmp_path):
    home = tmp_path / "home"
    file = write_coins(tmp_path / "coins.py", 0)
    assert first_number(file, home) == 0
    write_coins(file, 5)
    assert first_number(file, home) == 5

    # as it was, it finds what it prepared then
    write_coins(file, 0)
    assert open_source(str(file)).is_ready(home)
    assert first_number(file, home) == 0


def test_options_have_data_of_their_own(tmp_path):
    file = write_coins(tmp_path / "coins.py", 0)
    for rows in (4, 6, 4):
        dataset = prepare(f"{file}[rows={rows}]", tmp_path / "home")[1]
        assert len(dataset.splits["test"]) == rows


@pytest.mark.parametrize(
    "path", ["coins.py", "./coins.py", "../outside/coins.py", "{folder}/coins.py"]
)
def test_nothing_is_written_outside_the_data_home(cli, tmp_path, monkeypatch, path):
    folder = tmp_path / "outside"
    write_coins(folder / "coins.py", 0)
    monkeypatch.chdir(folder)
    path = path.format(folder=folder)
    arguments = ("--data-dir", tmp_path / "home")
    results = ("-o", tmp_path / "results", "--models", "shared-bottom", "--seeds", 1, "--dry-run")
    for command in (("fetch", path, *arguments), ("bench", "-d", path, *arguments, *results)):
        result = cli(*command)
        assert result.code == 0, result.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["home", "outside"]
    assert [file.name for file in folder.iterdir()] == ["coins.py"]
    folders = [file.name for file in (tmp_path / "home").iterdir() if file.is_dir()]
    assert folders == [open_source(path).name]


def test_the_next_command_and_the_card_name_the_file_as_typed(cli, tmp_path):
    file = write_coins(tmp_path / "my coins.py", 0)
    result = cli("fetch", f"{file}[rows=6]", "--data-dir", tmp_path / "my home")
    assert f"mtlkit bench -d '{file}[rows=6]' --data-dir '{tmp_path}/my home'" in result.err
    assert f"{file}[rows=6]" in result.out


FAILS = {
    "init": ("def __init__(self): ...", "raises TypeError"),
    "init without super": (
        "def __init__(self, name, options): ...",
        "raises AttributeError: 'Mine' object has no attribute 'options'",
    ),
    "prepare": ("def prepare(self, home): return home[1]", "raises TypeError in line 5"),
    "prepare exits": (
        "def prepare(self, home): raise SystemExit(0)",
        "raises SystemExit in line 5: 0",
    ),
    "prepare gives nothing": (
        "def prepare(self, home): ...",
        "The prepare of {file} gives a NoneType, not a Dataset",
    ),
    "prepare gives a frame": (
        "def prepare(self, home): return {}",
        "The prepare of {file} gives a dict, not a Dataset",
    ),
    "download": ("def download(self, *_): raise OSError('no')", "raises OSError in line 5: no"),
    "folder": ("def folder(self, home): return 3", "raises TypeError"),
    "presets": ("def presets(self): return None", "raises TypeError"),
    "title": ("title = 7", "raises "),
}


@pytest.mark.parametrize("case", FAILS)
def test_a_data_set_whose_code_fails(cli, tmp_path, case):
    """The base prepares what it should; the class that is tried out replaces one method of it."""
    body, message = FAILS[case]
    write_coins(tmp_path / "base_of_mine.py", 0)
    file = tmp_path / "mine.py"
    file.write_text(
        "from mtlkit.registry import DATASETS\n"
        f"Base = DATASETS.load({str(tmp_path / 'base_of_mine.py')!r})\n"
        "\n"
        "class Mine(Base):\n"
        f"    {body}\n"
    )
    result = cli("fetch", file, "--data-dir", tmp_path / "home")
    text = " ".join(result.err.split())
    assert result.code in (2, 3), text
    assert message.format(file=file) in text
    assert "mine.py" in text
    assert "hint: " in text


def test_errors_of_a_file_are_told_in_python_too(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise ValueError('x')")
    with pytest.raises(UsageError, match=r"mine\.py raises ValueError in line 1: x\."):
        prepare(str(file), tmp_path)


@pytest.mark.parametrize("command", ["fetch", "bench -d"])
def test_a_name_that_is_not_utf_8_is_refused(cli, tmp_path, command):
    """No record could hold it."""
    file = write_coins(tmp_path / os.fsdecode(b"caf\xe9.py"), 0)
    result = cli(*command.split(), file, "--data-dir", tmp_path / "home")
    assert result.code == 2
    assert "caf\\udce9.py': it is not UTF-8 text.\n\nhint: rename the file" in result.err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_without_room_is_no_fault_of_the_file(tmp_path, monkeypatch, number):
    def no_room(*args):
        raise OSError(number, os.strerror(number))

    file = write_plugin(tmp_path, "pass")
    monkeypatch.setattr(storage, "save_array", no_room)
    with pytest.raises(MissingError, match="what was written is gone again"):
        prepare(str(file), tmp_path / "data")


def test_a_wrong_task_is_told_in_one_sentence(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from mtlkit import Task\n\nTask(name='click', weight=-1)\n")
    with pytest.raises(UsageError) as caught:
        prepare(str(file), tmp_path)
    assert caught.value.message == (
        f"{file} makes a wrong Task in line 3: "
        "'weight' cannot be -1: input should be greater than or equal to 0."
    )


COPIED = """
import numpy as np

from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.splits import SPLITS, Dataset, Split, fingerprint
from mtlkit.data.types import Feature, Schema, Task


class Copied(DatasetSource):
    def download(self, home, origin=None, force=False, progress=None):
        if origin is not None:
            (home / "number.txt").write_text(origin.read_text())

    def prepare(self, home):
        number = int((home / "number.txt").read_text())
        schema = Schema(features=(Feature(name="shop", vocab=9),), tasks=(Task(name="click"),))
        ids = np.full((4, 1), number, np.int32)
        labels = np.array([[0], [1], [0], [1]], np.float32)
        split = Split(ids, np.zeros((4, 0), np.float32), labels, np.ones((4, 1), bool))
        splits = dict.fromkeys(SPLITS, split)
        return Dataset("copied", schema, splits, fingerprint(schema, splits))
"""


def test_what_a_plugin_is_brought_is_never_ignored(tmp_path):
    file, raw = tmp_path / "copied.py", tmp_path / "raw.txt"
    file.write_text(COPIED)
    for number in (1, 2, 2):
        raw.write_text(str(number))
        data = prepare(str(file), tmp_path / "home", origin=raw)[1]
        assert set(data.splits["train"].ids.flat) == {number}
    assert prepare(str(file), tmp_path / "home")[1].fingerprint == data.fingerprint
