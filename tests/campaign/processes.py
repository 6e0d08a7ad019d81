"""A small grid in real processes: started, held at a moment, struck, and run again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlkit.store import RECORD, ResultStore
from tests.campaign.judge import Place
from tests.conftest import CommandResult, parent

REPOSITORY = Path(__file__).parents[2]
MARK = "MTLKIT_CAMPAIGN"
"""The variable by which the processes of a grid are told from all others."""

PATIENCE = 120.0
"""Seconds after which a command hangs: undisturbed, it takes some five, on a busy machine more."""

ORPHAN_SECONDS = 5.0
"""Seconds after the end of a command in which its workers may live."""

WAITS = '''"""Waits: every task counts as much; waits where a fault is to strike."""

import os
import resource
import signal
import time
from pathlib import Path

from mtlkit import Balancer

HERE = Path(__file__).parent
plain_fsync = os.fsync


def reach(moment):
    hold = HERE / f"hold-{moment}"
    if hold.exists():
        (HERE / "new").write_text(str(os.getpid()))
        (HERE / "new").rename(HERE / moment)
    while hold.exists():
        time.sleep(0.02)


def fsync(handle):
    reach("writing")
    plain_fsync(handle)


class Waits(Balancer):
    def forward(self, step):
        if step.index == 0:
            os.fsync = fsync
            if (HERE / "deaf").exists():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reach("training")
        if (HERE / "raises").exists():
            raise ValueError("bad luck")
        if (HERE / "nan").exists():
            return step.losses * float("nan")
        while (HERE / "hangs").exists():
            time.sleep(0.1)
        if (HERE / "greedy").exists():
            resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))
            bytearray(2**32)
        if step.index == 4:
            reach("middle")
        return step.active.to(step.losses.dtype)
'''

COINS = '''"""Coins: two tasks; waits while it prepares, where a fault is to strike."""

import importlib.util
from pathlib import Path

import numpy as np

from mtlkit import Dataset, Feature, GeneratedSource, Schema, Split, Task, fingerprint

spec = importlib.util.spec_from_file_location("waits", Path(__file__).with_name("waits.py"))
waits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(waits)


class Coins(GeneratedSource):
    def prepare(self, home):
        waits.reach("preparation")
        schema = Schema(
            features=(Feature(name="x", kind="dense"),),
            tasks=(Task(name="heads"), Task(name="tails")),
        )
        splits = {}
        for seed, name in enumerate(("train", "validation", "test")):
            rng = np.random.default_rng(seed)
            x = rng.normal(size=(400, 1)).astype(np.float32)
            labels = (x + rng.normal(size=(400, 2)) > 0).astype(np.float32)
            ids = np.zeros((400, 0), np.int32)
            splits[name] = Split(ids=ids, dense=x, labels=labels, observed=labels > -1)
        return Dataset("coins", schema, splits, fingerprint(schema, splits), simulated=True)
'''

BALANCERS = ("uniform", "./waits.py", "uwl", "pcgrad")
COMMAND = (
    *("bench", "-d", "./coins.py", "--models", "shared-bottom", "--references", "none"),
    *("--balancers", ",".join(BALANCERS), "--seeds", "1", "--epochs", "1", "--batch-size", "50"),
    *("--jobs", "2", "--device", "cpu", "--out", "../out", "--set", "disk_wait=8"),
)
"""Four cells. Without room for results they wait for seconds only."""


@dataclass
class Grid:
    """A grid of four cells in a place of its own.

    Args:
        place: Its folders.
        token: By which its processes are found.
        command: What is typed.
        process: The command, once it was started.
        noted: What had finished when :meth:`note` was called last.
        orphan_seconds: How long its processes may outlive the command.
        variables: What else is in the environment of the command.
    """

    place: Place
    token: str
    command: tuple[str, ...] = COMMAND
    process: subprocess.Popen[bytes] | None = None
    noted: dict[str, str] = field(default_factory=dict)
    orphan_seconds: float = ORPHAN_SECONDS
    variables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, root: Path) -> Grid:
        """A grid that has not run yet."""
        place = Place(root)
        place.here.mkdir(parents=True)
        place.home.mkdir()
        (place.here / "waits.py").write_text(WAITS)
        (place.here / "coins.py").write_text(COINS)
        return cls(place, uuid.uuid4().hex)

    def copy(self, root: Path) -> Grid:
        """The same grid with all it has left, elsewhere; dates are kept."""
        shutil.copytree(self.place.root, root, symlinks=True)

        # the data of a plugin belong to its file: another one would have to prepare its own
        file = root / "here" / "coins.py"
        file.unlink()
        file.symlink_to(self.place.here.resolve() / "coins.py")
        return Grid(Place(root), uuid.uuid4().hex)

    # --- running it

    def start(self, *prefix: str, **environment: str) -> None:
        """Start the command; it answers into files. Words of ``prefix`` stand before it."""
        variables = {
            MARK: self.token,
            "MTLKIT_DATA": "../home",
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "200",
        }
        out, err = (self._stream(name).open("wb") for name in ("stdout", "stderr"))
        with out, err:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "mtlkit", *self.command],
                cwd=self.place.here,
                env={**os.environ, **variables, **self.variables, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def end(self) -> CommandResult | None:
        """How the command ended; None if it hangs, and then all of it is killed."""
        assert self.process is not None
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.process.wait()
            return None
        out, err = (self._stream(name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return CommandResult(code, out, err)

    def _stream(self, name: str) -> Path:
        """Where the answer of the command goes: commands of other grids may run beside it."""
        return self.place.root / f"{name}-{self.token}"

    def run(self, *prefix: str, **environment: str) -> CommandResult | None:
        self.start(*prefix, **environment)
        return self.end()

    # --- its moments

    def hold(self, moment: str) -> None:
        """Have the grid wait when it comes to a moment."""
        (self.place.here / f"hold-{moment}").touch()

    def release(self) -> None:
        """Let it go on."""
        for hold in self.place.here.glob("hold-*"):
            hold.unlink()

    def wait_for(self, moment: str) -> bool:
        """Wait until the grid is held, and until another cell has finished where it trains."""
        assert self.process is not None
        process, marker = self.process, self.place.here / moment

        def has_come() -> bool:
            others = moment == "preparation" or any(self.place.out.rglob(RECORD))
            return marker.exists() and others

        wait_until(lambda: has_come() or process.poll() is not None)
        return has_come()

    # --- its processes

    @property
    def driver(self) -> int:
        assert self.process is not None
        return self.process.pid

    def worker(self, moment: str) -> int:
        """The process that is held at a moment."""
        return int((self.place.here / moment).read_text())

    def server(self, moment: str) -> int:
        """The process from which that one was forked."""
        return parent(self.worker(moment))

    def family(self) -> list[int]:
        """All processes of this grid that live."""
        token = f"{MARK}={self.token}".encode()
        return [
            pid for pid in processes() if token in read_process(pid, "environ") or self._is_in(pid)
        ]

    def _is_in(self, pid: int) -> bool:
        """Whether a process is in the folder of the command, as cells on a cluster are."""
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == self.place.here.absolute()
        return False

    def orphans(self) -> list[str]:
        """The command lines of processes that live on too long after the command has ended; they
        are killed.
        """
        wait_until(lambda: not self.family(), self.orphan_seconds)
        lines = [read_process(pid, "cmdline").replace(b"\0", b" ") for pid in self.family()]
        self.kill_all()
        return [line[:100].decode(errors="replace") for line in lines]

    def kill_all(self) -> None:
        for pid in self.family():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue

    # --- what it left

    def finished(self) -> dict[str, str]:
        """Folder of a finished run to a hash of its files."""
        hashes = {}
        for file in self.place.out.rglob(RECORD):
            folder = file.parent
            record = ResultStore.record(folder)
            if record is not None and record.ok and folder.name.endswith(f"-{record.key[:8]}"):
                hashes[str(folder)] = hash_folder(folder)
        return hashes

    def note(self) -> None:
        """Note what has finished: none of it may change from now on."""
        self.noted = self.finished()

    def numbers(self) -> dict[str, Any]:
        """Balancer to all the numbers of its run that do not depend on time."""
        numbers = {}
        for record, folder in ResultStore(self.place.out).scan():
            scores = ResultStore.arrays(folder, "scores")
            arrays = {name: hash_bytes(array.tobytes()) for name, array in scores.items()}
            name = Path(record.cell.balancer).stem
            numbers[name] = (record.status, record.metrics, record.best, arrays)
        return numbers


# --- helpers


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Look again and again; whether it came true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def processes() -> list[int]:
    """All processes that are no zombies."""
    pids = []
    for folder in Path("/proc").iterdir():
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if folder.name.isdigit() and state != "Z":
            pids.append(int(folder.name))
    return pids


def read_process(pid: int, name: str) -> bytes:
    """What the system says of a process; nothing where that has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hash_folder(folder: Path) -> str:
    """A hash of the names and contents of all files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hash_bytes(b"".join(file.name.encode() + file.read_bytes() for file in files))
