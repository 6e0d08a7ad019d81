"""How fast it is, and what that does to the metrics: one cell, stacks, peers, precision, a grid."""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed.common import HOME, child
from speed.data import ali_shaped, head
from speed.models import EXPERTS, HIDDEN, TOWER
from speed.training import PEERS, TWINS, train

from mtlkit.data.storage import write_dataset
from mtlkit.training.cuda_graph import StackGraph
from mtlkit.training.numerics import numerics
from mtlkit.training.stacked import StackedTrainer

from .common import MODEL, Job, Row, Site, bench, census, census_site, run_steps, seconds_of

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
    with census_site(job) as site:
        for model, balancer in job.size(SYSTEMS, SYSTEMS[:1]):
            yield partial(_forms, model, balancer, site)
        ali = ali_shaped(500_000) if job.on_gpu else site.data
        yield partial(_forms, *SYSTEMS[0], replace(site, name="Ali shape", data=ali))
        for batch in job.size((1024, 16384), ()):
            yield partial(_forms, *SYSTEMS[0], replace(site, batch=batch))
        if job.on_gpu:  # last, as it compiles for long
            yield partial(_forms, *SYSTEMS[0], site, ("on",))


def _forms(
    model: str, balancer: str, site: Site, forms: tuple[str, ...] = ("off", "graph")
) -> Iterator[Row]:
    forms = forms if site.on_gpu else forms[:1]
    what = f"{site.name}, {model.partition('[')[0]} + {balancer}, batch {site.batch}"
    rates: dict[str, float] = {}
    for form in forms:
        made = site.trainer(model, balancer, compile=form)
        count = 100 if site.on_gpu else 2
        seconds = seconds_of(partial(run_steps, made, 1), site.device, count, warm=count // 4 or 1)
        rates[form] = site.batch / seconds
        figure = {"rows/s": rates[form], "us a step": seconds * 1e6}
        yield Row(f"{what}, compile={form}", figure | (_profile(made) if site.on_gpu else {}))
    judged = balancer != "pcgrad" and site.name != "Ali shape"
    if "graph" in rates and judged and site.batch == 4096:
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
    rates: dict[int, float] = {}
    with census_site(job) as site:
        for as_graph in job.size((False, True), (False,)):
            yield partial(_as_alone, site, as_graph)
        for cells in job.size((1, 16, 4, 48), (1, 2)):
            yield partial(_stacked, cells, site, rates)
        for cells in job.size((16, 48), ()):
            yield partial(_stacked, cells, site, rates, as_graph=True)
        for slots in job.size((1, 2, 4, 8), ()):
            yield partial(_slots, slots, job, site)


def _as_alone(site: Site, as_graph: bool, steps: int = 20) -> Iterator[Row]:
    """A cell of a stack beside the same cell alone; SGD does not enlarge what is rounding."""
    made = partial(site.trainer, optimizer="sgd", lr=0.1)
    stacked = StackedTrainer([made(seed=seed) for seed in range(3)])
    step = partial(StackGraph(stacked), stacked) if as_graph else stacked._train_step
    for index in range(steps):
        step(index)
    alone = made(seed=2)
    run_steps(alone, steps)
    weights = stacked.stack.parameters
    gap = max(
        float(((weights[name][2] - value).norm() / value.norm()).detach())
        for name, value in alone.model.named_parameters()
    )
    form = " as a graph" if as_graph else ""
    what = f"weights of cell 3 of 3{form} after {steps} steps, beside the same cell alone"
    yield Row(what, gap, "<= 1e-4", gap <= 1e-4)


def _stacked(
    cells: int, site: Site, rates: dict[int, float], as_graph: bool = False
) -> Iterator[Row]:
    if site.on_gpu:
        torch.cuda.reset_peak_memory_stats(site.device)
    first = site.trainer()
    step = partial(run_steps, first, 1)
    if cells > 1:
        others = [site.trainer(seed=seed, splits=first.splits) for seed in range(1, cells)]
        together = StackedTrainer([first, *others])
        step = partial(together._train_step, 0)
        if as_graph:
            step = partial(StackGraph(together), together, 0)
    seconds = seconds_of(step, site.device, 50 if site.on_gpu else 2)
    rate = cells * site.batch / seconds
    figure = {"cell-rows/s": rate, "ms a step": seconds * 1e3}
    if site.on_gpu:
        figure["GiB"] = torch.cuda.max_memory_allocated(site.device) / 2**30
    form = ", graph" if as_graph else ""
    yield Row(f"{site.name}, mmoe + uniform, K = {cells}{form}, batch {site.batch}", figure)
    if not as_graph:
        rates[cells] = rate
    if cells == 16:
        factor = rate / rates[1]
        yield Row(f"K = 16{form} / K = 1", factor, ">= 6", factor >= 6)
        yield Row(f"K = 16{form}, cell-rows/s", rate, ">= 50e6", rate >= 50e6)


def _slots(slots: int, job: Job, site: Site) -> Iterator[Row]:
    flags = ["-d", _for_bench(site.name), "--models", MODEL, "--balancers", "uniform"]
    flags += ["--seeds", str(slots), "--set", f"slots_per_gpu={slots}"]
    with tempfile.TemporaryDirectory() as folder:
        _, records = bench(job, Path(folder), job.device, *flags, "--set", "batch_size=4096")
    rate = sum(record.cost["train_rows_per_second"] for record in records)
    yield Row(f"{slots} processes at a time, eager, rows/s", rate)


def _for_bench(name: str) -> str:
    return name if name.startswith("census[") else "synthetic[rows=200000]"


def peers(job: Job) -> Checks:
    """Torch-RecHub and FuxiCTR on the same arrays, each beside its twin of mtlkit."""
    rows = job.size((200_000, 50_000), (640, 200))
    about = {"width": 8, "experts": EXPERTS, "hidden": HIDDEN, "tower": TOWER, "seed": 0}
    about |= {"rows": {"train": rows[0], "passes": 1, "test": rows[1]}, "device": job.cli_device}
    with census_site(job) as site, tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "set"), site.data, {})
        about |= {"folder": str(Path(folder, "set")), "batch": site.batch}
        cut = replace(site, data=head(site.data, train=rows[0], test=rows[1]))
        for peer in PEERS:
            yield partial(_pair, peer, cut, about)


def _pair(peer: str, site: Site, about: dict[str, Any]) -> Iterator[Row]:
    if importlib.util.find_spec(peer.replace("-", "_")) is None:
        yield Row(peer, "not installed")
        return
    script = str(HOME / "speed" / "peers" / PEERS[peer][1])
    theirs = child(["-c", STAND_INS, script], about)
    twin = about | {"system": TWINS[peer]}
    for _ in range(2):  # the first run loads what is compiled
        ours = train(site.data, twin, epochs=1)
    factor = ours.cost["train_rows_per_second"] / theirs["rows_per_second"]
    figure = {"rows/s": theirs["rows_per_second"], "mtlkit / it": factor}
    figure |= {"AUC": [round(area, 4) for area in theirs["auc"]]}
    figure |= {"mtlkit": [round(task["auc"], 4) for task in ours.metrics["test"].values()]}
    passed = factor >= 50 if site.on_gpu else None
    yield Row(f"{site.name}, {peer}, batch {site.batch}", figure, ">= 50 x", passed)


def precision(job: Job) -> Checks:
    """What bf16 and tf32 do to the test AUC, seed by seed beside fp32."""
    with census_site(job) as site:
        plain = _areas(site)
        yield partial(_gaps, site, plain, precision="bf16")
        yield partial(_gaps, site, plain, matmul="tf32")


def _areas(site: Site, **settings: str) -> torch.Tensor:
    """(seeds, T) test AUC."""
    areas = []
    for seed in range(3 if site.on_gpu else 1):
        with numerics(settings, site.device):
            result = site.trainer(seed=seed, epochs=3 if site.on_gpu else 1, **settings).fit()
        areas.append([task["auc"] for task in result.metrics["test"].values()])
    return torch.tensor(areas)


def _gaps(site: Site, plain: torch.Tensor, **settings: str) -> Iterator[Row]:
    means = (_areas(site, **settings) - plain).mean(0).tolist()
    passed = max(map(abs, means)) < MARGIN if site.on_gpu else None
    figure = {"less fp32": means, "fp32": plain.mean(0).tolist()}
    yield Row(f"{site.name}, {settings}, mean AUC", figure, f"within {MARGIN:g}", passed)


def compile_kernels(job: Job) -> None:
    """Long before the grid is timed, so that CPU cells find their kernels compiled."""
    flags = ["-d", "synthetic[rows=2000,d=8]", "--models", "shared-bottom,mmoe,ple", "--seeds", "1"]
    with tempfile.TemporaryDirectory() as folder:
        bench(job, Path(folder), "cpu", *flags, "--balancers", "uniform,uwl", "--epochs", "1")


def grid(job: Job) -> Checks:
    """The default grid by the clock: stacked on the GPU, and one cell a core on the same machine."""
    yield partial(_both, job)


def _both(job: Job) -> Iterator[Row]:
    flags = ["-d", "synthetic[rows=600,d=4]", "--models", "mmoe", "--balancers", "uniform"]
    flags += ["--seeds", "2", "--epochs", "1"]
    if job.on_gpu:
        flags = ["benchmarks/quick.yaml", "-d", _for_bench(census(job)[0]), "--epochs", "3"]
    seconds, areas = [], []
    for device, cells in ((job.cli_device, job.size("auto", 2)), ("cpu", 1)):
        with tempfile.TemporaryDirectory() as folder:
            taken, records = bench(job, Path(folder), device, *flags, "--set", f"stack={cells}")
        ok = [record for record in records if record.ok]
        seconds.append(taken)
        areas.append(defaultdict(list))
        for cell, metrics in ((record.cell, record.metrics["test"]) for record in ok):
            for task, found in metrics.items():
                areas[-1][cell.model, cell.balancer, task].append(found["auc"])
        figure = {"seconds": taken, "ok": len(ok), "of": len(records)}
        what = f"the default grid, 3 epochs, {device}, stack={cells}, {os.cpu_count()} cores"
        yield Row(what, figure, "all ok", 0 < len(ok) == len(records))
    factor, mean = seconds[1] / seconds[0], statistics.mean
    yield Row("CPU / GPU, by the clock", factor, ">= 5", factor >= 5 if job.on_gpu else None)
    gap = max(abs(mean(found) - mean(areas[1][key])) for key, found in areas[0].items())
    passed = gap < MARGIN if job.on_gpu else None
    yield Row("largest difference of a mean AUC", gap, f"< {MARGIN:g}", passed)
