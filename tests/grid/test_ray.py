"""Cells on a Ray cluster of two nodes on this machine: the same numbers, and a node may be lost."""

import os
import threading
from pathlib import Path
from unittest import mock

import pytest

# read when Ray is imported: nodes bind to the loopback address alone
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray")

import mtlkit
from mtlkit.data.sources import prepare
from mtlkit.errors import MissingError
from mtlkit.grid.engines.ray import RayEngine, _Running
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.settings import ExecutionSettings
from mtlkit.store import CHECKPOINT, ResultStore
from tests import fakes
from tests.conftest import DATA, run_cli, wait_for
from tests.grid.grids import numbers, run

pytestmark = pytest.mark.slow

ROOT = Path(mtlkit.__file__).parents[1]
MEMORY = 80 * 2**20
# says on which node it runs; on the second one it stays there until that is gone
STAYS = """
here = Path(__file__).parent
node = os.environ.get("TEST_NODE", "first")
with (here / "nodes").open("a") as file:
    file.write(node + "\\n")
while node == "second" and not (here / "go").exists():
    time.sleep(0.05)
return step.active.to(step.losses.dtype)
"""

# on the second node it is slow, and stays in the middle of the cell
STAYS_IN_THE_MIDDLE = """
here = Path(__file__).parent
if os.environ.get("TEST_NODE") == "second":
    time.sleep(0.3)
    while step.index == 6:
        (here / "nodes").write_text("second")
        time.sleep(0.05)
return step.active.to(step.losses.dtype)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes with a core each; the second one has a data home of its own, which is empty."""
    from ray.cluster_utils import Cluster

    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.delenv("MTLKIT_DATA", raising=False)
        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": MEMORY}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def second_node(cluster, tmp_path):
    import ray

    # the driver joins the first node: of two with one address, it would take either
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    home = tmp_path / "home-of-second"
    node = cluster.add_node(
        num_cpus=1,
        node_ip_address="127.0.0.1",
        object_store_memory=MEMORY,
        env_vars={"MTLKIT_DATA": str(home), "TEST_NODE": "second"},
    )
    cluster.wait_for_nodes()
    yield node
    ray.shutdown()
    if node in cluster.worker_nodes:
        cluster.remove_node(node, allow_graceful=False)


def plan(home, store, balancers, seeds=1):
    flags = {
        "dataset": DATA,
        "models": "shared-bottom",
        "balancers": balancers,
        "references": [],
        "seeds": seeds,
    }
    settings = read_grid(None, flags, ["epochs=2", "batch_size=50", "bottom=4"])
    return make_plan(settings, *prepare(DATA, home), store).to_run


def make_engine(cluster, store, home, **execution):
    settings = ExecutionSettings(engine="ray", address=cluster.address, device="cpu", **execution)
    return RayEngine(store, home, settings)


@pytest.mark.parametrize("shares_disk", [True, False])
def test_two_nodes_give_the_numbers_of_one_machine(
    cluster, second_node, tmp_path, home, plugin, shares_disk
):
    """Also of a plugin and of a cell that fails. The second node prepares the data itself."""
    names = ["uniform", "uwl", plugin(tmp_path, "says.py", STAYS)]
    names.append(plugin(tmp_path, "raises.py", "raise ValueError('bad luck')"))
    (tmp_path / "go").touch()
    here, there = ResultStore(tmp_path / "local"), ResultStore(tmp_path / "ray")
    cells = plan(home, here, names, seeds=2)
    run(cells, home, here)

    there.make()
    engine = make_engine(cluster, there, home)
    engine.marks_results = shares_disk
    started = set()
    records = list(engine.run(cells, lambda cell, share: started.add(cell.key)))
    assert {record.key for record in records} == {cell.key for cell in cells} == started
    assert {record.status for record in records} == {"ok", "failed"}
    for record in records:
        assert numbers(there.get(record.cell), there) == numbers(here.get(record.cell), here)
    assert (tmp_path / "home-of-second").exists(), "the second node ran some, on data of its own"
    assert not list((tmp_path / "ray").glob(".shared-*"))
    assert list(engine.run([])) == []


def test_a_node_is_lost_half_way(cluster, second_node, tmp_path, home, plugin):
    """Its cell runs again on the other one, and nothing is lost or there twice."""
    store = ResultStore(tmp_path / "results")
    store.make()
    cells = plan(home, store, [plugin(tmp_path, "stays.py", STAYS)], seeds=4)
    engine = make_engine(cluster, store, home)
    nodes = tmp_path / "nodes"

    def lose_node():
        wait_for(lambda: nodes.exists() and "second" in nodes.read_text())
        cluster.remove_node(second_node, allow_graceful=False)

    misfortune = threading.Thread(target=lose_node)
    misfortune.start()
    records = list(engine.run(cells))
    misfortune.join()
    assert sorted(record.key for record in records) == sorted(cell.key for cell in cells)
    assert {record.status for record in records} == {"ok"}

    reference = ResultStore(tmp_path / "local")
    (tmp_path / "go").touch()
    run(cells, home, reference)
    for record, _ in store.scan():
        assert numbers(record, store) == numbers(reference.get(record.cell), reference)
    assert len(list(store.scan())) == len(cells)


def test_a_cell_goes_on_from_its_checkpoint_on_another_node(
    cluster, second_node, tmp_path, home, plugin
):
    """Neither node sees the results folder."""
    here, there = ResultStore(tmp_path / "local"), ResultStore(tmp_path / "ray")
    cells = plan(home, here, [plugin(tmp_path, "stays.py", STAYS_IN_THE_MIDDLE)], seeds=2)
    run(cells, home, here)

    there.make()
    engine = make_engine(cluster, there, home, checkpoint_every="0.1")
    engine.marks_results = False

    def lose_node():
        wait_for((tmp_path / "nodes").exists)
        cluster.remove_node(second_node, allow_graceful=False)

    misfortune = threading.Thread(target=lose_node)
    misfortune.start()
    said = []
    records = list(engine.run(cells, tell=said.append))
    misfortune.join()
    assert len(said) == 1, "a node was lost"
    for record in records:
        assert numbers(record, there) == numbers(here.get(record.cell), here)
    logs = [(folder / "log.txt").read_text() for _, folder in there.scan()]
    assert ["resumed from a checkpoint at step" in log for log in logs].count(True) == 1
    assert list(there.root.rglob(CHECKPOINT)) == []


def test_tuning_chooses_the_same_there(cluster, tmp_path, home):
    stores = []
    for engine in (("local",), ("ray", "--address", cluster.address)):
        store = ResultStore(tmp_path / engine[0])
        ended = run_cli(
            *("bench", "-d", DATA, "--models", "shared-bottom", "--balancers", "uniform"),
            *("--references", "none", "--seeds", "1", "--epochs", "1", "--tune", "2"),
            *("--device", "cpu", "--data-dir", home, "--out", store.root, "--engine", *engine),
        )
        assert ended.code == 0, ended.err
        stores.append({record.key: numbers(record, store) for record, _ in store.scan()})
    assert stores[0] == stores[1]
    assert len(stores[0]) >= 2


def test_news_of_a_cell_that_starts_again():
    """A second start can only mean that the node of the first one was lost."""
    (cell,) = [fakes.cell()]
    shown, said = [], []
    news = [[(cell.key, 0.0), (cell.key, 0.5), "trouble"], [(cell.key, 0.0)]]
    fake = mock.Mock(get=lambda reference, timeout: news.pop(0), wait=lambda *_, **__: ([], []))
    running = _Running(fake, mock.Mock(), lambda _, share: shown.append(share), said.append)
    running.tasks["task"] = cell
    running.wait(stopping=False)
    running.wait(stopping=True)
    assert shown == [0.0, 0.5, 0.0]
    assert said == ["trouble", f"The node of {cell.label} was lost. The cell runs again."]
    assert not fake.cancel.called, "it runs, so it is finished"
    running.tasks["other"] = fakes.cell(seed=1)
    news.append([])
    running.wait(stopping=True)
    fake.cancel.assert_called_once_with("other", force=True)


def test_other_data_on_a_node_are_refused(cluster, tmp_path, home):
    (cell,) = plan(home, ResultStore(tmp_path), ["uniform"])
    dataset = cell.resolved["dataset"] | {"fingerprint": "0" * 64}
    other = cell.model_copy(update={"resolved": cell.resolved | {"dataset": dataset}})
    with pytest.raises(MissingError, match="are others than those of the driver"):
        list(make_engine(cluster, ResultStore(tmp_path), home).run([other]))


def test_a_cell_that_takes_too_long(cluster, tmp_path, home, plugin):
    store = ResultStore(tmp_path / "results")
    store.make()
    cells = plan(home, store, [plugin(tmp_path, "sleepy.py", "time.sleep(600)")])
    (record,) = make_engine(cluster, store, home, timeout=1).run(cells)
    assert (record.status, store.get(cells[0])) == ("timeout", record)


def test_what_the_cluster_does_not_have_is_said(cluster, tmp_path, home):
    cells = plan(home, ResultStore(tmp_path), ["uniform"])
    with pytest.raises(MissingError, match="has 7 cores and 0 GPUs"):
        list(make_engine(cluster, ResultStore(tmp_path), home, threads=7).run(cells))
    settings = ExecutionSettings(engine="ray", gpus_per_cell=0.25)
    engine = RayEngine(ResultStore(tmp_path), home, settings)
    engine.execution = settings.model_copy(update={"address": cluster.address})
    with pytest.raises(MissingError, match=r"has 1 cores and 0\.25 GPUs"):
        list(engine.run(cells))


def test_nobody_answers(tmp_path, home):
    cells = plan(home, ResultStore(tmp_path), ["uniform"])
    settings = ExecutionSettings(engine="ray", address="127.0.0.1:1")
    with pytest.raises(MissingError, match=r"No Ray cluster can be used at 127\.0\.0\.1:1"):
        list(RayEngine(ResultStore(tmp_path), home, settings).run(cells))
