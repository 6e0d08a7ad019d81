"""Faults: signals, disks and damage that meet a grid while it runs, or between two runs of it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtlkit.data.storage import MANIFEST
from mtlkit.store import CHECKPOINT, RECORD
from tests.campaign.processes import COMMAND, Grid, read_process, wait_until
from tests.conftest import CommandResult

INTERRUPTED, TERMINATED, KILLED = 130, 143, -9
OK, FAILED, USAGE, MISSING = 0, 1, 2, 3
MOMENTS = ("preparation", "training", "middle", "writing")
MOODS = ("raises", "nan", "hangs", "greedy")
"""Files that make the plugin fail; ``greedy`` meets a limit of memory."""
SOON = 0.3
"""Seconds in which a command starts to import, but has done nothing yet."""

Strike = Callable[[Grid, str], None]


class Reference:
    """A grid that ran undisturbed, and one that has not run.

    Args:
        folder: An empty folder, in which everything happens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.grid = Grid.new(folder / "reference")
        result = self.grid.run()
        assert result is not None
        assert result.code == OK, result.err
        self.numbers = self.grid.numbers()


@dataclass(frozen=True)
class Fault:
    """Something that happens to a grid, and how its command may end.

    Args:
        kind: A row of the table of the campaign.
        name: What happens, for people.
        codes: The exit codes with which the command may end.
        act: Brings it about: runs the command once, in its own way.
        after_a_run: Whether the grid has finished before.
        mended: Whether the next command is the one of the hint.
    """

    kind: str
    name: str
    codes: tuple[int, ...]
    act: Callable[[Grid], CommandResult | None]
    after_a_run: bool = False
    mended: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    def complaints(self, reference: Reference) -> list[str]:
        """What does not hold; nothing where all is well."""
        root = reference.folder / "".join(c if c.isalnum() else "-" for c in str(self))
        grid = reference.grid.copy(root) if self.after_a_run else Grid.new(root)
        try:
            wrong = self._judge_blow(grid)
            wrong += self._judge_resumption(grid, reference)
        finally:
            grid.kill_all()
            unmount(grid)
        if not wrong:
            shutil.rmtree(root)
        return wrong

    def _judge_blow(self, grid: Grid) -> list[str]:
        """What does not hold of the command that was struck."""
        try:
            result = self.act(grid)
        except NeverCameError as error:
            return [f"the command did not come to {error}"]
        if result is None:
            return ["hangs"]
        wrong = []
        _, sign, traceback = result.err.partition("Traceback")
        if sign:
            wrong.append(f"traceback: {traceback[-1500:]}")
        if result.code not in self.codes:
            wrong.append(f"exit {result.code}, not {self.codes}: {result.err[-300:]!r}")
        # where stderr is full, nothing can be told
        if result.code in (USAGE, MISSING) and result.err and "\n\nhint: " not in result.err:
            wrong.append(f"no hint in {result.err[-300:]!r}")
        orphans = grid.orphans()
        if orphans:
            wrong.append(f"orphans: {orphans}")

        after = grid.finished()
        if any(after.get(folder) != digest for folder, digest in grid.noted.items()):
            wrong.append("finished runs changed")
        if self.mended:
            wrong += follow_hint(grid, result)
        return wrong

    def _judge_resumption(self, grid: Grid, reference: Reference) -> list[str]:
        """What does not hold of the same command, run again without a fault."""
        for name in (*MOMENTS, *MOODS, "deaf"):
            (grid.place.here / name).unlink(missing_ok=True)
        grid.release()
        grid.note()
        grid.command = (*COMMAND, "--retry-failed")
        result = grid.run()
        if result is None:
            return ["resumed, it hangs"]
        wrong = []
        if result.code != OK or "Traceback" in result.err:
            wrong.append(f"resumed, exit {result.code}: {result.err[-300:]!r}")
        after = grid.finished()
        if any(after.get(folder) != digest for folder, digest in grid.noted.items()):
            wrong.append("resumed, finished runs changed")
        numbers = grid.numbers()
        if numbers.keys() != reference.numbers.keys():
            wrong.append(f"resumed, it has only {sorted(numbers)}")
        elif numbers != reference.numbers:
            wrong.append("resumed, its numbers are others")
        if grid.orphans():
            wrong.append("resumed, it leaves orphans")
        return wrong


class NeverCameError(Exception):
    """The moment of a fault never came."""


def follow_hint(grid: Grid, result: CommandResult) -> list[str]:
    """Run the command of a hint."""
    hint = result.err.partition("\n\nhint: ")[2].strip()
    words = shlex.split(hint)
    if not words or words[0] != "mtlkit":
        return [f"the hint is no command: {hint!r}"]
    mended = Grid(grid.place, grid.token, tuple(words[1:])).run()
    if mended is None or mended.code != OK:
        return [f"the hint does not help: {mended}"]
    return []


# --- signals


def struck(
    moment: str, strike: Callable[[Grid], object], held: bool = True, deaf: bool = False
) -> Callable[[Grid], CommandResult | None]:
    """Strike a grid at a moment.

    Args:
        moment: ``start``, ``import``, or one at which it can be held.
        strike: What is done then.
        held: Whether the grid is held until the command has ended.
        deaf: Whether the worker ignores SIGTERM.
    """

    def act(grid: Grid) -> CommandResult | None:
        if deaf:
            (grid.place.here / "deaf").touch()
        if moment in MOMENTS:
            grid.hold(moment)
        grid.start()
        wait_for_moment(grid, moment)
        grid.note()
        strike(grid)
        if not held:
            grid.release()
        return grid.end()

    return act


def wait_for_moment(grid: Grid, moment: str) -> None:
    if moment == "start":
        time.sleep(SOON)
    elif moment == "import":
        wait_until(lambda: is_importing(grid))
    elif not grid.wait_for(moment):
        grid.kill_all()
        raise NeverCameError(moment)


def is_importing(grid: Grid) -> bool:
    """Whether the process that imports for the workers has come to PyTorch."""
    others = [pid for pid in grid.family() if pid != grid.driver]
    return any(b"libtorch" in read_process(pid, "maps") for pid in others)


def to_driver(*signals: int) -> Callable[[Grid], None]:
    def strike(grid: Grid) -> None:
        for number in signals:
            os.kill(grid.driver, number)
            time.sleep(SOON if len(signals) > 1 else 0)

    return strike


def to_group(*signals: int) -> Callable[[Grid], None]:
    """As a terminal does."""

    def strike(grid: Grid) -> None:
        for number in signals:
            os.killpg(grid.driver, number)
            time.sleep(SOON if len(signals) > 1 else 0)

    return strike


def to_worker(moment: str, number: int) -> Callable[[Grid], None]:
    return lambda grid: os.kill(grid.worker(moment), number)


def to_server(moment: str, number: int) -> Callable[[Grid], None]:
    return lambda grid: os.kill(grid.server(moment), number)


def to_everyone(number: int) -> Callable[[Grid], None]:
    """As the end of a container does."""

    def strike(grid: Grid) -> None:
        for pid in grid.family():
            os.kill(pid, number)

    return strike


ENDS = {
    # Python ends itself by the signal where the interrupt met code that it runs from a text
    signal.SIGINT: (INTERRUPTED, -signal.SIGINT),
    signal.SIGTERM: (TERMINATED, INTERRUPTED),
    signal.SIGKILL: (KILLED,),
    signal.SIGHUP: (-signal.SIGHUP, 129, TERMINATED, INTERRUPTED),
}
ENDS_OF_TWO = (TERMINATED, INTERRUPTED, -signal.SIGINT)
"""The later one may come when Python has all but ended, and no longer listens to it."""


def signal_faults() -> Iterator[Fault]:
    # the command, alone and with all its processes; after one Ctrl-C running cells are finished
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for moment in ("import", "preparation", "training", "writing"):
            held = number != signal.SIGINT or moment == "preparation"
            act = struck(moment, to_driver(number), held=held)
            yield Fault("signals", f"{number.name} to the command in {moment}", ENDS[number], act)
        for moment in ("import", "training", "writing"):
            act = struck(moment, to_group(number), held=number != signal.SIGINT)
            yield Fault("signals", f"{number.name} to the group in {moment}", ENDS[number], act)
    act = struck("training", to_group(signal.SIGHUP))
    yield Fault("signals", "the terminal closes in training", ENDS[signal.SIGHUP], act)

    # before Python has set up anything, Ctrl-C is its own affair
    for number in (signal.SIGTERM, signal.SIGKILL):
        act = struck("start", to_driver(number))
        codes = (*ENDS[number], -number)
        yield Fault("signals", f"{number.name} to the command at its start", codes, act)

    # several of them, and workers that do not listen
    twice, thrice = (signal.SIGINT,) * 2, (signal.SIGINT,) * 3
    stopped = (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT)
    for name, numbers in (
        ("Ctrl-C twice", twice),
        ("Ctrl-C three times", thrice),
        ("SIGTERM, then Ctrl-C", (signal.SIGTERM, signal.SIGINT)),
        ("stopped, SIGTERM, continued", stopped),
    ):
        act = struck("training", surely(to_driver(*numbers)))
        yield Fault("signals", name, ENDS_OF_TWO, act)
    for name, numbers in (
        ("Ctrl-C", twice[:1]),
        ("Ctrl-C twice", twice),
        ("SIGTERM", stopped[1:2]),
    ):
        held = numbers != twice[:1]
        act = struck("training", surely(to_driver(*numbers)), held=held, deaf=True)
        yield Fault("signals", f"{name}, and a deaf worker", ENDS_OF_TWO, act)
    act = struck("training", to_driver(signal.SIGKILL), deaf=True)
    yield Fault("signals", "SIGKILL, and a deaf worker", (KILLED,), act)

    # a worker, or the process that it was forked from: one cell is lost at most
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
        for moment in ("training", "writing"):
            act = struck(moment, to_worker(moment, number), held=False)
            name = f"{number.name} to a worker in {moment}"
            yield Fault("signals", name, (OK, FAILED), act)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        act = struck("training", to_server("training", number), held=False)
        yield Fault("signals", f"{number.name} to the fork server", (OK, FAILED), act)
    for number in (signal.SIGTERM, signal.SIGKILL):
        act = struck("training", to_everyone(number))
        yield Fault("signals", f"{number.name} to everyone", ENDS[number], act)
    act = struck("training", stop_and_go, held=False)
    yield Fault("signals", "a worker is stopped, and continued", (OK,), act)


def surely(strike: Callable[[Grid], None]) -> Callable[[Grid], None]:
    def act(grid: Grid) -> None:
        with suppress(ProcessLookupError):
            strike(grid)

    return act


def stop_and_go(grid: Grid) -> None:
    worker = grid.worker("training")
    os.kill(worker, signal.SIGSTOP)
    time.sleep(SOON)
    os.kill(worker, signal.SIGCONT)


# --- disks


def mount(folder: Path, kilobytes: int) -> None:
    """A small disk of its own.

    Raises:
        NoMountError: Not here.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        raise NoMountError


class NoMountError(Exception):
    """This user mounts no disks."""


def unmount(grid: Grid) -> None:
    """Keep what is on the disks of a place, and take them away."""
    for folder in (grid.place.out, grid.place.home):
        if folder.is_dir() and not folder.is_symlink() and folder.is_mount():
            subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Leave no byte free on a disk."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def on_a_disk(
    which: str,
    moment: str | None,
    strike: Callable[[Path], object],
    after: Callable[[Path], object],
) -> Callable[[Grid], CommandResult | None]:
    """Run on a small disk to which something happens; all is well again before the next run.

    Args:
        which: ``out`` or ``home``.
        moment: When; None for before the start.
        strike: What happens to its folder.
        after: What mends it.
    """

    def act(grid: Grid) -> CommandResult | None:
        folder = grid.place.root / which
        mount(folder, 4096)
        if moment is None:
            strike(folder)
            result = grid.run()
        else:
            result = struck(moment, lambda _: strike(folder), held=False)(grid)
        after(folder)
        return result

    return act


def full_for_a_while(folder: Path) -> None:
    """Room is made while the grid tries."""
    filler = fill_up(folder)
    subprocess.Popen(["sh", "-c", 'sleep 3; rm -f "$0"', str(filler)])


def empty(folder: Path) -> None:
    (folder / "filler").unlink(missing_ok=True)


def limited(blocks: int) -> Callable[[Grid], CommandResult | None]:
    """Run where no file may have more blocks of 512 bytes than so many."""
    return lambda grid: grid.run("sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh")


def disk_faults() -> Iterator[Fault]:
    read_only, writable = (lambda f: remount(f, "ro")), (lambda f: remount(f, "rw"))
    ends = (FAILED, MISSING)
    for moment in (None, "training", "writing"):
        when = moment or "the beginning"
        full = on_a_disk("out", moment, fill_up, empty)
        yield Fault("disks", f"results full from {when}", ends, full)
    short = on_a_disk("out", "training", full_for_a_while, empty)
    yield Fault("disks", "results full for a while", (OK, *ends), short)
    for moment in (None, "training"):
        act = on_a_disk("out", moment, read_only, writable)
        when = moment or "the beginning"
        yield Fault("disks", f"results read-only from {when}", ends, act)
    yield Fault("disks", "data full", (MISSING,), on_a_disk("home", None, fill_up, empty))
    act = on_a_disk("home", "preparation", fill_up, empty)
    yield Fault("disks", "data full in preparation", (MISSING,), act)
    act = on_a_disk("home", None, read_only, writable)
    yield Fault("disks", "data read-only", (MISSING,), act)
    act = on_a_disk("home", "training", read_only, writable)
    yield Fault("disks", "data read-only in training", (OK,), act)

    # limits of a process
    for blocks in (4, 8):
        name = f"files of {512 * blocks:,} bytes at most"
        yield Fault("disks", name, ends, limited(blocks))

    # where the command talks to
    for stream in ("1", "2"):
        for name, where in (("full", f"{stream}>/dev/full"), ("closed", f"{stream}>&-")):
            act = redirected(where)
            yield Fault("disks", f"stream {stream} {name}", (OK, FAILED, MISSING, 120), act)
    yield Fault("disks", "no folder for temporary files", (OK, MISSING), in_temporary("nowhere"))
    long = "/".join(["long" * 20] * 3)
    yield Fault("disks", "a long name for temporary files", (OK, MISSING), in_temporary(long))


def redirected(where: str) -> Callable[[Grid], CommandResult | None]:
    return lambda grid: grid.run("sh", "-c", f'exec "$@" {where}', "sh")


def in_temporary(name: str) -> Callable[[Grid], CommandResult | None]:
    def act(grid: Grid) -> CommandResult | None:
        folder = grid.place.root / name
        if name != "nowhere":
            folder.mkdir(parents=True)
        return grid.run(TMPDIR=str(folder))

    return act


# --- cells that fail, and checkpoints that are damaged


def in_a_mood(mood: str) -> Callable[[Grid], CommandResult | None]:
    """The plugin behaves badly; what hangs is ended."""

    def act(grid: Grid) -> CommandResult | None:
        (grid.place.here / mood).touch()
        grid.command = (*grid.command, "--timeout", "20")
        return grid.run()

    return act


def with_checkpoint(damage: Callable[[Path], object]) -> Callable[[Grid], CommandResult | None]:
    """Killed in the middle of a cell whose checkpoint is damaged then; the same command goes on."""

    def act(grid: Grid) -> CommandResult | None:
        grid.command = (*grid.command, "--checkpoint-every", "0.1")
        struck("middle", to_driver(signal.SIGKILL))(grid)
        wait_until(lambda: not grid.family())
        for file in grid.place.out.rglob(CHECKPOINT):
            damage(file)
        (grid.place.here / "middle").unlink()
        grid.release()
        grid.note()
        return grid.run()

    return act


def cell_faults() -> Iterator[Fault]:
    for mood in MOODS:
        yield Fault("cells", f"the plugin: {mood}", (FAILED,), in_a_mood(mood))
    for damage in (*DAMAGES, Path.exists):
        act = with_checkpoint(damage)
        yield Fault("cells", f"checkpoint {damage.__name__}", (OK,), act)


# --- folders that go away, and others that use them


def remove(which: str) -> Callable[[Grid], None]:
    def strike(grid: Grid) -> None:
        shutil.rmtree(grid.place.root / which)
        grid.note()

    return strike


def remove_run_folder(grid: Grid) -> None:
    """The folder that is being written."""
    (folder,) = (grid.place.out / "coins" / "shared-bottom" / "waits").iterdir()
    shutil.rmtree(folder)


def put_a_file(grid: Grid) -> None:
    shutil.rmtree(grid.place.out)
    grid.place.out.write_text("")
    grid.note()


def take_the_file_away(act: Callable[[Grid], Any]) -> Callable[[Grid], Any]:
    def acts(grid: Grid) -> Any:
        result = act(grid)
        if not grid.place.out.is_dir():
            grid.place.out.unlink(missing_ok=True)
        return result

    return acts


def two_at_once(moment: str | None) -> Callable[[Grid], CommandResult | None]:
    """The same command twice; the second starts with the first, or while that is held."""

    def act(grid: Grid) -> CommandResult | None:
        second = replace(grid, token=uuid.uuid4().hex, process=None)
        if moment is not None:
            grid.hold(moment)
        grid.start()
        if moment is not None:
            wait_for_moment(grid, moment)
        second.start()
        if moment is not None:
            time.sleep(SOON)
        grid.release()
        results = [grid.end(), second.end()]
        if None in results:
            return None
        return next((result for result in results if result.code), results[0])

    return act


def folder_faults() -> Iterator[Fault]:
    ends = (OK, FAILED, MISSING)
    for which in ("out", "home"):
        for moment in ("training", "writing"):
            act = struck(moment, remove(which), held=False)
            yield Fault("folders", f"{which} is removed in {moment}", ends, act)
    act = struck("writing", remove_run_folder, held=False)
    yield Fault("folders", "the run's folder is removed in writing", ends, act)
    act = take_the_file_away(struck("training", put_a_file, held=False))
    yield Fault("folders", "out becomes a file in training", ends, act)
    act = struck("preparation", remove("home"), held=False)
    yield Fault("folders", "home is removed in preparation", ends, act)
    for moment in (None, "preparation", "training", "writing"):
        name = f"two grids at once, the second in {moment or 'the beginning'}"
        yield Fault("folders", name, (OK,), two_at_once(moment))


# --- between two runs


def runs(grid: Grid) -> list[Path]:
    return sorted(file.parent for file in grid.place.out.rglob(RECORD))


def prepared_files(grid: Grid, pattern: str) -> list[Path]:
    return sorted(grid.place.home.rglob(pattern))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def halved(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def removed(file: Path) -> None:
    file.unlink()


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def made_a_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def made_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES = (emptied, halved, flipped, zeroed, removed, made_a_folder, made_a_loop, made_a_pipe)


def damaged(
    find: Callable[[Grid], Path], damage: Callable[[Path], object]
) -> Callable[[Grid], Any]:
    def act(grid: Grid) -> CommandResult | None:
        damage(find(grid))
        grid.note()
        return grid.run()

    return act


def changed(change: Callable[[Grid], object]) -> Callable[[Grid], Any]:
    def act(grid: Grid) -> CommandResult | None:
        change(grid)
        grid.note()
        return grid.run()

    return act


def set_clock(seconds: float) -> Callable[[Grid], None]:
    """Every file has this date: the clock was wrong, or a copy lost the dates."""

    def change(grid: Grid) -> None:
        for path in grid.place.root.rglob("*"):
            os.utime(path, (seconds, seconds))

    return change


def leave_leftovers(grid: Grid) -> None:
    """What killed processes leave behind."""
    for folder in runs(grid):
        (folder / f".{RECORD}.999999").write_text("{")
    half = runs(grid)[0].with_name("seed-7-00000000")
    half.mkdir()
    (half / "probes.npz").write_bytes(b"PK")
    for folder in grid.place.home.rglob("prepared"):
        (folder / ".0123456789ab.01234567").mkdir()
        (folder / ".obtain-0123").mkdir()


def link_out(grid: Grid) -> None:
    grid.place.out.rename(grid.place.root / "elsewhere")
    grid.place.out.symlink_to("elsewhere")


def link_run(grid: Grid) -> None:
    folder = runs(grid)[0]
    target = folder.rename(grid.place.root / "moved")
    folder.symlink_to(target)


def loop_in_out(grid: Grid) -> None:
    (grid.place.out / "loop").symlink_to(grid.place.out)
    (grid.place.out / "coins" / "itself").symlink_to("itself")


def copy_run(grid: Grid) -> None:
    folder = runs(grid)[0]
    shutil.copytree(folder, folder.with_name(f"{folder.name}-backup"))


def swap_records(grid: Grid) -> None:
    """Two runs with the records of each other."""
    first, second = (folder / RECORD for folder in runs(grid)[:2])
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)


def edit_record(grid: Grid) -> None:
    file = runs(grid)[0] / RECORD
    plain = json.loads(file.read_text())
    plain["cell"]["resolved"]["training"]["lr"] = 0.5
    file.write_text(json.dumps(plain))


def record_file(grid: Grid) -> Path:
    return runs(grid)[0] / RECORD


def array_file(grid: Grid) -> Path:
    return prepared_files(grid, "train.dense.npy")[0]


def manifest_file(grid: Grid) -> Path:
    return prepared_files(grid, MANIFEST)[0]


def remove_run(grid: Grid) -> None:
    shutil.rmtree(runs(grid)[0])


CHANGES: dict[str, Callable[[Grid], object]] = {
    "all dates are of 1980": set_clock(315_532_800),
    "all dates are of 2100": set_clock(4_102_444_800),
    "leftovers of killed processes": leave_leftovers,
    "results behind a link": link_out,
    "a run behind a link": link_run,
    "links in a circle": loop_in_out,
    "a copy of a run": copy_run,
    "records swapped": swap_records,
    "a record edited": edit_record,
    "a run removed": remove_run,
}


def between_faults() -> Iterator[Fault]:
    # a record that does not hold: its cell runs again
    for damage in DAMAGES:
        act = damaged(record_file, damage)
        yield Fault("between runs", f"record.json {damage.__name__}", (OK,), act, True)
    for stem in ("probes.npz", "weights.npz", "log.txt"):
        act = damaged(lambda grid, stem=stem: runs(grid)[0] / stem, removed)
        yield Fault("between runs", f"{stem} removed", (OK,), act, True)

    # prepared data that are not what was written: refused, and the hint mends it
    for damage in DAMAGES:
        act = damaged(array_file, damage)
        name = f"train.dense.npy {damage.__name__}"
        yield Fault("between runs", name, (MISSING,), act, True, mended=True)
    # without a manifest they are unfinished, and prepared again
    for damage in (emptied, halved, zeroed, removed):
        act = damaged(manifest_file, damage)
        yield Fault("between runs", f"manifest {damage.__name__}", (OK,), act, True)

    for name, change in CHANGES.items():
        yield Fault("between runs", name, (OK,), changed(change), True)


def faults() -> Iterator[Fault]:
    """All of them."""
    yield from signal_faults()
    yield from disk_faults()
    yield from cell_faults()
    yield from folder_faults()
    yield from between_faults()
