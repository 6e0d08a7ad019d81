"""How fast it is, and what that does to the metrics: one cell, stacks, peers, precision, a grid."""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed.common import HOME, child
from speed.data import ali_shaped, head
from speed.models import EXPERTS, HIDDEN, TOWER
from speed.training import PEERS, TWINS, train

from mtlkit.data.storage import write_dataset
from mtlkit.training.numerics import numerics
from mtlkit.training.stacked import StackedTrainer

from .common import MODEL, Job, Row, bench, census, opened, run_steps, seconds_of, trainer

Checks = Iterator[partial[Iterator[Row]]]
PLE = "ple[specific=2,shared=2,hidden=16,tower=8,embedding=8]"
SYSTEMS = ((MODEL, "uniform"), (MODEL, "uwl"), (PLE, "uwl"), (MODEL, "pcgrad"))
HANDED = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
"""Parts of the names of calls that hand work to the GPU."""
MARGIN = 0.003  # of AUC
STAND_INS = """import importlib.util, runpy, sys, types
class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
for name in ("polars", "ray"):
    if importlib.util.find_spec(name) is None:
        for part in ("", ".data", ".data.datasource", ".data.datasource.filename_provider"):
            sys.modules[name + part] = StandIn(name + part)
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script; FuxiCTR imports packages that no training of ours uses, and they are large."""


def speed(job: Job) -> Checks:
    """Rows a second of one cell: eager, compiled, as one CUDA graph."""
    name, data = census(job)
    with opened(job) as device:
        for batch in job.size((4096, 1024, 16384), (64,)):
            for model, balancer in SYSTEMS if batch == 4096 else SYSTEMS[:1]:
                yield partial(_forms, name, model, balancer, batch, data, device)
        ali = ali_shaped(500_000) if job.on_gpu else data
        yield partial(_forms, "Ali shape", MODEL, "uniform", job.size(4096, 64), ali, device)


def _forms(
    name: str, model: str, balancer: str, batch: int, data: Any, device: Any
) -> Iterator[Row]:
    on_gpu = device.type == "cuda"
    has_graph = on_gpu and balancer != "pcgrad" and name != "Ali shape"
    forms = ["off", *["graph"] * has_graph, *["on"] * on_gpu]
    what = f"{name}, {model.partition('[')[0]} + {balancer}, batch {batch}"
    rates: dict[str, float] = {}
    for form in forms:
        made = trainer(data, device, model, balancer, compile=form, batch_size=batch)
        count = 100 if on_gpu else 2
        seconds = seconds_of(partial(run_steps, made, 1), device, count, warm=count // 4 or 1)
        rates[form] = batch / seconds
        figure = {"rows/s": rates[form], "us a step": seconds * 1e6}
        yield Row(f"{what}, compile={form}", figure | (_profile(made) if on_gpu else {}))
    if has_graph and batch == 4096:
        factor, rate = rates["graph"] / rates["off"], rates["graph"]
        yield Row(f"{what}: graph / eager", factor, ">= 3", factor >= 3)
        if (model, balancer) == SYSTEMS[0]:
            yield Row(f"{what}: graph, rows/s", rate, ">= 15e6", rate >= 15e6)


def _profile(made: Any, steps: int = 5) -> dict[str, float]:
    """Launches of a step, and the time that the device works on them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run_steps(made, steps)
        torch.cuda.synchronize()
    events = profiler.key_averages()
    handed = sum(event.count for event in events if any(part in event.key for part in HANDED))
    busy = sum(event.self_device_time_total for event in events)
    return {"launches": handed / steps, "us on the device": busy / steps}


def stack(job: Job) -> Checks:
    """K cells as one program against one eager cell, their numbers, and cells in processes."""
    name, data = census(job)
    rates: dict[int, float] = {}
    with opened(job) as device:
        yield partial(_as_alone, data, device, job.size(4096, 64))
        for cells in job.size((1, 16, 4, 48), (1, 2)):
            yield partial(_stacked, cells, name, data, device, job.size(4096, 64), rates)
    for slots in job.size((1, 2, 4, 8), ()):
        yield partial(_slots, slots, name, job)


def _as_alone(data: Any, device: Any, batch: int, steps: int = 20) -> Iterator[Row]:
    """A cell of a stack beside the same cell alone; SGD does not enlarge what is rounding."""
    made = partial(trainer, data, device, batch_size=batch, optimizer="sgd", lr=0.1)
    stacked = StackedTrainer([made(seed=seed) for seed in range(3)])
    for index in range(steps):
        stacked._train_step(index)
    alone = made(seed=2)
    run_steps(alone, steps)
    weights = stacked.stack.parameters
    gaps = [
        float(((weights[name][2] - value).norm() / value.norm()).detach())
        for name, value in alone.model.named_parameters()
    ]
    what = f"weights of cell 3 of 3 after {steps} steps, beside the same cell alone"
    yield Row(what, max(gaps), "<= 1e-4", max(gaps) <= 1e-4)


def _stacked(
    cells: int, name: str, data: Any, device: Any, batch: int, rates: dict[int, float]
) -> Iterator[Row]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    made = [trainer(data, device, batch_size=batch)]
    made += [
        trainer(data, device, seed=seed, splits=made[0].splits, batch_size=batch)
        for seed in range(1, cells)
    ]
    step = partial(run_steps, made[0], 1)
    if cells > 1:
        step = partial(StackedTrainer(made)._train_step, 0)
    seconds = seconds_of(step, device, 50 if on_gpu else 2)
    rates[cells] = cells * batch / seconds
    figure = {"cell-rows/s": rates[cells], "ms a step": seconds * 1e3}
    if on_gpu:
        figure["GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    yield Row(f"{name}, mmoe + uniform, K = {cells}, batch {batch}", figure)
    if cells == 16:
        factor = rates[16] / rates[1]
        yield Row("K = 16 / K = 1", factor, ">= 6", factor >= 6)
        yield Row("K = 16, cell-rows/s", rates[16], ">= 50e6", rates[16] >= 50e6)


def _slots(slots: int, name: str, job: Job) -> Iterator[Row]:
    dataset = name if name.startswith("census[") else "synthetic[rows=200000]"
    flags = ["-d", dataset, "--models", MODEL, "--balancers", "uniform", "--seeds", str(slots)]
    flags += ["--epochs", "6", "--set", "batch_size=4096", "--set", f"slots_per_gpu={slots}"]
    with tempfile.TemporaryDirectory() as folder:
        _, records = bench(job, Path(folder), job.device, *flags)
    rate = sum(record.cost["train_rows_per_second"] for record in records)
    yield Row(f"{dataset}, {slots} processes at a time, eager, rows/s", rate)


def peers(job: Job) -> Checks:
    """Torch-RecHub and FuxiCTR on the same arrays, each beside its twin of mtlkit."""
    name, data = census(job)
    rows = job.size((200_000, 50_000), (640, 200))
    about = {"width": 8, "experts": EXPERTS, "hidden": HIDDEN, "tower": TOWER, "seed": 0}
    about |= {"rows": {"train": rows[0], "passes": 1, "test": rows[1]}}
    about |= {"batch": job.size(4096, 64), "device": job.cli_device}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "set"), data, {})
        about["folder"] = str(Path(folder, "set"))
        for peer in PEERS:
            yield partial(_pair, peer, name, head(data, train=rows[0], test=rows[1]), about)


def _pair(peer: str, name: str, data: Any, about: dict[str, Any]) -> Iterator[Row]:
    if importlib.util.find_spec(peer.replace("-", "_")) is None:
        yield Row(f"{name}, {peer}", "not installed")
        return
    script = str(HOME / "speed" / "peers" / PEERS[peer][1])
    theirs = child(["-c", STAND_INS, script], about)
    twin = about | {"system": TWINS[peer]}
    train(data, twin, epochs=2 * about["batch"] / about["rows"]["train"])  # loads what is compiled
    ours = train(data, twin, epochs=1)
    factor = ours.cost["train_rows_per_second"] / theirs["rows_per_second"]
    figure = {"rows/s": theirs["rows_per_second"], "mtlkit / it": factor}
    figure |= {"AUC": [round(area, 4) for area in theirs["auc"]]}
    figure |= {"mtlkit": [round(task["auc"], 4) for task in ours.metrics["test"].values()]}
    passed = factor >= 50 if about["device"] != "cpu" else None
    yield Row(f"{name}, {peer}, batch {about['batch']}", figure, ">= 50 x", passed)


def precision(job: Job) -> Checks:
    """What bf16 and tf32 do to the test AUC, seed by seed beside fp32."""
    name, data = census(job)
    with opened(job) as device:
        plain = _areas(data, device, {})
        for settings in ({"precision": "bf16"}, {"matmul": "tf32"}):
            form = "=".join(*settings.items())
            yield partial(_gaps, form, name, data, device, settings, plain)


def _areas(data: Any, device: Any, settings: dict[str, str]) -> list[list[float]]:
    """By seed, the AUC of each task."""
    on_gpu = device.type == "cuda"
    areas = []
    for seed in range(3 if on_gpu else 1):
        with numerics(settings, device):
            sizes = {"batch_size": 4096, "epochs": 3} if on_gpu else {"batch_size": 64, "epochs": 1}
            made = trainer(data, device, seed=seed, **sizes, **settings)
            areas.append([task["auc"] for task in made.fit().metrics["test"].values()])
    return areas


def _gaps(
    form: str, name: str, data: Any, device: Any, settings: dict[str, str], plain: Any
) -> Iterator[Row]:
    areas = torch.tensor(_areas(data, device, settings)), torch.tensor(plain)
    means = (areas[0] - areas[1]).mean(0).tolist()
    passed = max(map(abs, means)) < MARGIN if device.type == "cuda" else None
    figure = {"less fp32": means, "fp32": areas[1].mean(0).tolist()}
    yield Row(f"{name}, {form}, mean AUC", figure, f"within {MARGIN:g}", passed)


def grid(job: Job) -> Checks:
    """The default grid by the clock: stacked on the GPU, and one cell a core on the same machine."""
    yield partial(_both, job, census(job)[0])


def _both(job: Job, name: str) -> Iterator[Row]:
    dataset = name if name.startswith("census[") else "synthetic[rows=200000]"
    flags = ["benchmarks/quick.yaml", "-d", dataset, "--epochs", "3"]
    if not job.on_gpu:
        flags = ["-d", "synthetic[rows=600,d=4]", "--models", "mmoe", "--balancers", "uniform"]
        flags += ["--seeds", "2", "--epochs", "1"]
    seconds, means = [], []
    for device, cells in ((job.cli_device, job.size("auto", 2)), ("cpu", 1)):
        with tempfile.TemporaryDirectory() as folder:
            taken, records = bench(job, Path(folder), device, *flags, "--set", f"stack={cells}")
        good = [record for record in records if record.ok]
        areas = defaultdict(list)
        for record in good:
            for task, metrics in record.metrics["test"].items():
                areas[record.cell.model, record.cell.balancer, task].append(metrics["auc"])
        seconds.append(taken)
        means.append({key: statistics.mean(values) for key, values in areas.items()})
        figure = {"seconds": taken, "ok": len(good), "of": len(records)}
        what = f"the default grid, 3 epochs, {device}, stack={cells}, {os.cpu_count()} cores"
        yield Row(what, figure, "all ok", 0 < len(good) == len(records))
    factor = seconds[1] / seconds[0]
    yield Row("CPU / GPU, by the clock", factor, ">= 5", factor >= 5 if job.on_gpu else None)
    gap = max(abs(area - means[1][key]) for key, area in means[0].items())
    passed = gap < MARGIN if job.on_gpu else None
    yield Row("largest difference of a mean AUC", gap, f"< {MARGIN:g}", passed)
