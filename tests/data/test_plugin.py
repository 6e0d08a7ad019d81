"""A data-set file of the user's that prepares wrong data ends with a sentence, not a traceback."""

import pytest

from mtlkit.data.sources import open_source

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
