"""Which cells are trained as one program, and how a stack of them becomes records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from mtlkit.grid.machine import peak_memory, reset_peak_memory, resolve_device
from mtlkit.grid.run_cell import (
    Outcome,
    build_trainer,
    environment_of,
    failure,
    load_planned_dataset,
    run_cell,
    success,
)
from mtlkit.records import Cell
from mtlkit.registry import BALANCERS, is_baseline
from mtlkit.settings import ExecutionSettings
from mtlkit.training.cuda_graph import StackGraph
from mtlkit.training.numerics import numerics
from mtlkit.training.stacked import StackedTrainer
from mtlkit.training.trainer import Trainer

LARGEST = 64  # most cells of a stack on a GPU by default; halved where memory does not hold them

OWN = ("lr", "embedding_lr")  # training settings of which each cell of a stack may have its own


def stacks(
    cells: Sequence[Cell], execution: ExecutionSettings, on_cpu: bool
) -> tuple[list[list[Cell]], str]:
    """Cells in stacks, each in the place of its first cell; a cell that fits no other is alone.

    Returns:
        The stacks, and a sentence on what the settings do not allow; empty without any.
    """
    most = execution.stack if execution.stack != "auto" else 1 if on_cpu else LARGEST
    hindrance = ""
    if execution.checkpoint_every is not None:
        hindrance = "checkpoint_every keeps the state of single cells"
    elif execution.processes > 1:
        hindrance = "several processes train a single cell"
    elif execution.compile not in ("off", "graph"):
        hindrance = "compile takes the model of a single cell"
    if most == 1 or hindrance:
        note = f"Cells are not stacked: {hindrance}." if most > 1 else ""
        return [[cell] for cell in cells], note

    found: list[list[Cell]] = []
    open_stacks: dict[str, list[Cell]] = {}
    for cell in cells:
        form = _form(cell)
        members = open_stacks.get(form, [])
        if not members or len(members) == most:
            members = open_stacks[form] = []
            found.append(members)
        members.append(cell)
    return found, ""


def _form(cell: Cell) -> str:
    """What the cells of a stack have in common, as text."""
    resolved = cell.resolved
    training = {name: value for name, value in resolved["training"].items() if name not in OWN}
    name = resolved["balancer"]["name"]
    kind: object = name
    # code of others may do anything, and a baseline has no parameters to stack
    if cell.plugin_files or is_baseline(resolved["model"]["name"]):
        kind = cell.key
    elif name in BALANCERS.names():
        balancer = BALANCERS.load(name)
        kind = [balancer.needs, balancer.signed] if balancer.needs != "rows" else cell.key
    parts = [resolved["dataset"], resolved["model"], resolved.get("losses"), training, kind]
    return json.dumps(parts, sort_keys=True)


def run_stack(
    cells: Sequence[Cell],
    home: Path,
    execution: ExecutionSettings,
    on_progress: Callable[[float], None],
    folder_of: Callable[[Cell], Path],
) -> Iterator[Outcome]:
    """Run cells as one program on this process's threads; where that does not work, one by one, and
    half of them at a time where memory does not hold all.

    Args:
        cells: A stack, or a single cell.
        home: The data home.
        execution: How to run it.
        on_progress: Called with the share of steps done.
        folder_of: Where the checkpoints of a cell are written.

    Yields:
        The outcome of each cell, as soon as it is there.
    """
    if len(cells) == 1:
        yield run_cell(cells[0], home, execution, on_progress, folder_of(cells[0]))
        return
    hindrance = None
    try:
        with numerics(cells[0].resolved["training"], resolve_device(execution.device)):
            outcomes = _train(cells, home, execution, on_progress)
        yield from outcomes
        return
    except torch.OutOfMemoryError:
        pass
    except Exception as error:
        hindrance = str(error)

    # what the failed stack held is free again by now
    if hindrance is None:
        torch.cuda.empty_cache()
        half = len(cells) // 2
        yield from run_stack(cells[:half], home, execution, on_progress, folder_of)
        yield from run_stack(cells[half:], home, execution, on_progress, folder_of)
        return
    for cell in cells:
        outcome = run_cell(cell, home, execution, on_progress, folder_of(cell))
        outcome.record.warnings.append(f"not stacked: {hindrance}")
        yield outcome


def _train(
    cells: Sequence[Cell],
    home: Path,
    execution: ExecutionSettings,
    on_progress: Callable[[float], None],
) -> list[Outcome]:
    """The outcomes of cells that are trained as one program.

    Raises:
        ValueError: They cannot be.
    """
    device = resolve_device(execution.device)
    started = datetime.now(UTC)
    reset_peak_memory(device)
    failures: dict[str, Exception] = {}

    # Build every cell by itself: one that cannot be built fails alone.
    trainers: dict[str, Trainer] = {}
    try:
        dataset = load_planned_dataset(cells[0], home)
    except Exception as error:
        return [failure(cell, error) for cell in cells]
    for cell in cells:
        splits = next((trainer.splits for trainer in trainers.values()), None)
        try:
            trainers[cell.key] = build_trainer(cell, dataset, execution, device, splits)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failures[cell.key] = error

    # Train them, and make a record of each.
    if trainers:
        stack = StackedTrainer(list(trainers.values()))
        if execution.compile == "graph":
            stack.graph = StackGraph(stack)
        stack.fit(on_progress)
        results = dict(zip(trainers, stack.results, strict=True))
        failures |= {
            key: error
            for key, error in zip(trainers, stack.errors, strict=True)
            if error is not None
        }
    outcomes = []
    for cell in cells:
        environment = environment_of(cell, execution, device, started)
        environment["stacked"] = len(trainers)
        if cell.key in failures:
            outcomes.append(failure(cell, failures[cell.key], environment))
            continue
        result = results[cell.key]
        assert result is not None, "a cell without an error has a result"
        result.cost["peak_memory_bytes"] = peak_memory(device)
        result.notes.append(f"trained as one program with {len(trainers) - 1} other cells")
        outcomes.append(success(cell, dataset, result, environment))
    return outcomes
