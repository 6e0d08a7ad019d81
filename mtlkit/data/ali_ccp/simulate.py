"""Archives in the raw format of Ali-CCP from a planted model, so that what is learned is judged by
what was planted.

Users and items follow Zipf's law, rows come grouped by common features, a few rows are dirty,
profiles have gaps. A click's log-odds are a sum of effects of the profile, the item's category,
shop and brand, the scenario, matches with the user's past, and a taste for categories that differs
by age; so are those of a purchase once clicked. How well the true chances rank the test rows (the
AUC of the planted model, which no learner is expected to pass) is in ``simulated.json``, the first
member of each archive.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from mtlkit.data.ali_ccp import simulate_text as text
from mtlkit.data.ali_ccp.fields import FIELDS, OFFICIAL_SPLITS
from mtlkit.data.auc import auc
from mtlkit.data.datasets._source import Progress, no_progress
from mtlkit.data.storage import atomic_folder

MARK = "simulated.json"
VERSION = 1
SESSION_ROWS = 58  # mean, as in the real data
CHUNK_ROWS = 8192
COMMON_SESSIONS = 64  # of the common file at a time; they are long
THREADS = min(4, os.cpu_count() or 1)  # what is written does not depend on it
LEVEL = 1
CLICK_SPREAD, BUY_SPREAD = 0.5, 0.45
"""Deviations of the planted log-odds; the first gives a click AUC about .63."""
DIRTY = 5.4e-6


@dataclass(frozen=True)
class Simulation:
    """What decides every byte of the text."""

    rows: int  # training rows; the test archive has half as many
    purchase_rate: float = 0.0055  # purchases per click
    click_rate: float = 0.039  # clicks per row
    seed: int = 0  # of the world and of the draw

    def rows_of(self, split: str) -> int:
        """Skeleton rows of an official split."""
        return self.rows if split == "train" else max(self.rows // 2, 1)


def write_archives(
    folder: Path, simulation: Simulation, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write ``sample_train.tar.gz`` and ``sample_test.tar.gz`` into a folder, which appears when
    both are whole; returns what was planted, as it stands in ``simulated.json``.
    """
    with atomic_folder(folder) as partial:
        world = _World(simulation)
        texts = {split: _SplitText(world, split) for split in OFFICIAL_SPLITS}
        sizes: dict[str, dict[str, int]] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for split, split_text in texts.items():
                sizes[split] = _write_texts(partial, split_text, pool, progress)
        facts: dict[str, Any] = {"version": VERSION, **asdict(simulation)}
        facts["planted_auc"] = texts["test"].planted()
        facts["counts"] = {split: text.counts() for split, text in texts.items()}
        for split in texts:
            _assemble(partial / f"sample_{split}.tar.gz", sizes[split], json.dumps(facts).encode())
        (partial / MARK).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def _write_texts(
    folder: Path, split_text: _SplitText, pool: ThreadPoolExecutor, progress: Progress
) -> dict[str, int]:
    """Write both texts of a split, packed; returns the size of each before packing."""
    sizes = {}
    sessions = len(split_text.starts) - 1
    label = f"simulating sample_{split_text.split}.tar.gz"
    for half, name in enumerate(split_text.names):
        size = 0
        waiting: deque[tuple[int, Future[tuple[int, bytes]]]] = deque()
        with (folder / name).open("wb") as file:
            for first, last in split_text.parts(name):
                waiting.append((last, pool.submit(split_text.packed, name, first, last)))

                # A bounded number of pieces waits; at the end, all are written.
                most_waiting = 0 if last == sessions else 2 * THREADS
                if len(waiting) <= most_waiting:
                    continue
                while len(waiting) > most_waiting // 2:
                    done, future = waiting.popleft()
                    length, packed = future.result()
                    file.write(packed)
                    size += length
                    progress(label, half * sessions + done, 2 * sessions)
        sizes[name] = size
    return sizes


def _assemble(path: Path, sizes: dict[str, int], mark: bytes) -> None:
    """Put a tar together from texts that are packed already: gzip files are joined by writing one
    after another.

    Args:
        path: Of the archive; the texts lie beside it and are gone afterwards.
        sizes: Of each text before packing, which a tar states before the content.
        mark: Content of the first member.
    """
    with path.open("wb") as file:
        file.write(
            igzip.compress(_header(MARK, len(mark)) + mark + _padding(len(mark)), LEVEL, mtime=0)
        )
        for name, size in sizes.items():
            file.write(igzip.compress(_header(name, size), LEVEL, mtime=0))
            with path.with_name(name).open("rb") as packed:
                shutil.copyfileobj(packed, file, 1 << 20)
            path.with_name(name).unlink()
            file.write(igzip.compress(_padding(size), LEVEL, mtime=0))
        file.write(igzip.compress(bytes(2 * tarfile.BLOCKSIZE), LEVEL, mtime=0))


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


class _World:
    """Numbers of levels, where each field's ids begin, and biases that give the rates asked for."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        rows = simulation.rows
        sizes = {
            name: int(levels)
            for name, levels in zip(_PROFILE_NAMES, text.PROFILE_LEVELS, strict=True)
        }
        sizes |= {
            "101": max(50, rows // 116),
            "205": min(max(200, rows // 10), 4_300_000),
            "301": text.SCENARIOS,
        }
        levels = {
            "206": min(max(20, rows // 200), 7_000),
            "207": min(max(40, rows // 50), 500_000),
            "216": min(max(30, rows // 100), 200_000),
            "210": min(max(30, rows // 500), 20_000),
        }
        for name, count in levels.items():
            sizes |= dict.fromkeys((name, *_ALIKE[name]), count)
        self.sizes = np.array([sizes[field.name] for field in FIELDS], np.int64)
        self.bases = 100 + np.concatenate([[0], np.cumsum(self.sizes[:-1])])
        # A share alone would leave small sets without a dirty row.
        self.dirty = max(DIRTY, 4 / rows)
        self.bias = np.array([0.0, 0.0, 1.0, 1.0])
        self._calibrate()

    def planted(self) -> text.World:
        """All of it for compiled code."""
        return text.World(self.simulation.seed, self.sizes, self.bases, self.bias, self.dirty)

    def _calibrate(self) -> None:
        """Scale the planted logits, and shift them to the rates asked for, on a sample of rows."""
        sample = _SplitText(self, "train", most=40_000)
        for first, last in sample.parts(sample.names[0]):
            sample.piece(sample.names[0], first, last)
        click_logits, buy_logits = sample.chances.astype(np.float64).T
        click_scale = CLICK_SPREAD / max(float(click_logits.std()), 1e-9)
        buy_scale = BUY_SPREAD / max(float(buy_logits.std()), 1e-9)
        click_logits, buy_logits = click_logits * click_scale, buy_logits * buy_scale

        # Purchases are made on clicked rows.
        even = np.ones(len(click_logits))
        click_bias = _solve(click_logits, even, self.simulation.click_rate)
        chance_of_click = _sigmoid(click_logits + click_bias)
        buy_bias = _solve(buy_logits, chance_of_click, self.simulation.purchase_rate)
        self.bias = np.array([click_bias, buy_bias, click_scale, buy_scale])


_PROFILE_NAMES = [FIELDS[number].name for number in text.PROFILE]
_ALIKE = {
    "206": ("109_14", "508"),
    "207": ("110_14", "509"),
    "216": ("127_14", "702"),
    "210": ("150_14", "853"),
}
"""Fields with as many levels as an item field, because their ids mean the same things."""


class _SplitText:
    """The text of one official split, generated piece by piece as often as it is asked for."""

    def __init__(self, world: _World, split: str, most: int | None = None) -> None:
        self.world, self.split = world, split
        self.names = (f"sample_skeleton_{split}.csv", f"common_features_{split}.csv")
        self.salt = OFFICIAL_SPLITS.index(split)
        rows = world.simulation.rows_of(split)
        rows = min(rows, most) if most else rows
        rng = np.random.default_rng([world.simulation.seed, self.salt])
        lengths = 1 + rng.exponential(SESSION_ROWS - 1, size=rows).astype(np.int64)
        ends = np.cumsum(lengths)
        sessions = int(np.searchsorted(ends, rows)) + 1
        self.starts = np.concatenate([[0], np.minimum(ends[:sessions], rows)])
        self.chances = np.zeros((rows, 2), np.float32)
        self.labels = np.zeros((rows, 2), np.uint8)

    def parts(self, name: str) -> Iterator[tuple[int, int]]:
        """The sessions of each piece of a file: the first, and the one to stop before."""
        sessions = len(self.starts) - 1
        first = 0
        while first < sessions:
            last = int(np.searchsorted(self.starts, self.starts[first] + CHUNK_ROWS))
            last = min(max(last, first + 1), sessions)
            if name != self.names[0]:
                last = min(last, first + COMMON_SESSIONS)
            yield first, last
            first = last

    def piece(self, name: str, first: int, last: int) -> memoryview:
        """Some sessions of one of the two files; labels and chances are set for the skeleton's."""
        world, piece = self.world.planted(), text.Piece(self.salt, first, last)
        if name == self.names[0]:
            rows = slice(int(self.starts[first]), int(self.starts[last]))
            buffer = np.empty((rows.stop - rows.start) * text.ROW_BYTES, np.uint8)
            size = text.skeleton_text(
                world, piece, self.starts, buffer, self.chances[rows], self.labels[rows]
            )
        else:
            buffer = np.empty((last - first) * text.SESSION_BYTES, np.uint8)
            size = text.common_text(world, piece, buffer)
        return buffer[:size].data

    def packed(self, name: str, first: int, last: int) -> tuple[int, bytes]:
        """The size of a piece, and the piece as gzip; both let the interpreter go meanwhile."""
        piece = self.piece(name, first, last)
        return len(piece), igzip.compress(piece, LEVEL, mtime=0)

    def counts(self) -> dict[str, int]:
        """Rows, clicks, purchases and dirty rows as drawn; dirty ones are no purchases."""
        click, buy = self.labels.T.astype(bool)
        return {
            "rows": len(click),
            "clicks": int(click.sum()),
            "purchases": int((click & buy).sum()),
            "dirty": int((buy & ~click).sum()),
        }

    def planted(self) -> dict[str, float | None]:
        """AUC of the true chances on clean rows: of click, purchase, purchase on clicked rows."""
        click, buy = self.labels.T.astype(bool)
        clean = click | ~buy
        chance = _sigmoid(self.chances[clean].astype(np.float64))
        click, buy = click[clean], buy[clean]
        return {
            "click": auc(chance[:, 0], click),
            "purchase": auc(chance[:, 0] * chance[:, 1], buy),
            "purchase-given-click": auc(chance[click, 1], buy[click]),
        }


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _solve(logits: np.ndarray, weights: np.ndarray, rate: float) -> float:
    """The bias under which the weighted mean chance is ``rate``."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.average(_sigmoid(logits + middle), weights=weights) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
