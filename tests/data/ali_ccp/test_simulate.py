import itertools
import json
import tarfile

import numpy as np
import pytest

from mtlkit.data.ali_ccp import simulate as module
from mtlkit.data.ali_ccp.simulate import MARK, Simulation, write_archives

from . import reference
from .conftest import SIMULATION


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("larger") / "simulated"
    facts = write_archives(folder, Simulation(rows=20_000, purchase_rate=0.2, seed=1))
    return facts, reference.texts_of(folder)


def labels(texts, split):
    rows = [
        line.split(b",", 3)[1:3]
        for line in reference.lines_of(texts[f"sample_skeleton_{split}.csv"])
    ]
    return np.array(rows, int).T


def test_every_line_is_well_formed_and_every_index_is_there(larger):
    _, texts = larger
    for split in ("train", "test"):
        keys = set()
        for line in reference.lines_of(texts[f"common_features_{split}.csv"]):
            _, key, features = reference.parse(line, skeleton=False)
            assert int(line.split(b",", 2)[1]) == len(features) <= 2706
            keys.add(key)
        for line in reference.lines_of(texts[f"sample_skeleton_{split}.csv"])[::97]:
            _, key, features = reference.parse(line, skeleton=True)
            assert int(line.split(b",", 5)[4]) == len(features)
            assert key in keys


def test_rates_rows_and_counts_are_as_asked_and_as_said(larger):
    facts, texts = larger
    for split, rows in (("train", 20_000), ("test", 10_000)):
        click, purchase = labels(texts, split)
        counts = facts["counts"][split]
        assert len(click) == counts["rows"] == rows
        assert click.sum() == counts["clicks"]
        assert (click & purchase).sum() == counts["purchases"]
        assert (purchase > click).sum() == counts["dirty"]
        assert click.mean() == pytest.approx(0.039, rel=0.12)
        assert (click & purchase).sum() / click.sum() == pytest.approx(0.2, rel=0.2)
    assert facts["counts"]["train"]["dirty"] > 0


def test_planted_click_auc_is_that_of_the_real_data(larger):
    facts, _ = larger
    assert 0.6 < facts["planted_auc"]["click"] < 0.66
    assert facts["planted_auc"]["purchase"] > facts["planted_auc"]["click"]


def test_shape_of_the_real_data(larger):
    """Grouped by common index, about 58 rows each; Zipf items; gaps; field order differs by row."""
    _, texts = larger
    rows = [
        reference.parse(line, True)
        for line in reference.lines_of(texts["sample_skeleton_train.csv"])[:10_000]
    ]
    keys = [key for _, key, _ in rows]
    changes = sum(a != b for a, b in itertools.pairwise(keys))
    assert changes + 1 == len(set(keys))
    assert 40 < len(keys) / len(set(keys)) < 80
    items = np.array([id for _, _, features in rows for field, id, _ in features if field == "205"])
    counts = np.sort(np.unique(items, return_counts=True)[1])[::-1]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.5)
    fields = [{field for field, _, _ in features} for _, _, features in rows]
    assert 0.8 < np.mean(["216" in own for own in fields]) < 0.97
    assert len({features[0][0] for _, _, features in rows}) > 5
    users = [
        {field for field, _, _ in reference.parse(line, False)[2]}
        for line in reference.lines_of(texts["common_features_train.csv"])
    ]
    for field, low, high in (("127", 0.3, 0.8), ("121", 0.02, 0.3), ("101", 0, 0.05)):
        assert low <= np.mean([field not in own for own in users]) < high


def test_archives_carry_their_mark_first(archives):
    facts = json.loads((archives / MARK).read_text())
    assert facts["rows"] == SIMULATION.rows
    for split in ("train", "test"):
        with tarfile.open(archives / f"sample_{split}.tar.gz") as archive:
            assert archive.getnames()[0] == MARK
            assert json.load(archive.extractfile(MARK)) == facts


def test_the_seed_decides_every_byte(archives, tmp_path):
    write_archives(tmp_path / "same", SIMULATION)
    assert reference.texts_of(tmp_path / "same") == reference.texts_of(archives)
    write_archives(
        tmp_path / "other", Simulation(SIMULATION.rows, SIMULATION.purchase_rate, seed=6)
    )
    assert reference.texts_of(tmp_path / "other") != reference.texts_of(archives)


def test_chunks_do_not_show(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 100)
    write_archives(tmp_path / "same", SIMULATION)
    assert reference.texts_of(tmp_path / "same") == reference.texts_of(archives)


def test_threads_do_not_show(archives, tmp_path, monkeypatch):
    for threads in (1, 3):
        monkeypatch.setattr(module, "THREADS", threads)
        write_archives(tmp_path / str(threads), SIMULATION)
        for name in ("sample_train.tar.gz", "sample_test.tar.gz"):
            assert (tmp_path / str(threads) / name).read_bytes() == (archives / name).read_bytes()


def test_interrupted_simulation_leaves_nothing(tmp_path):
    def stop(*told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archives(tmp_path / "out", SIMULATION, stop)
    assert list(tmp_path.iterdir()) == []
