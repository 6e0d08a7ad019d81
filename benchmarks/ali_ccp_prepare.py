"""Preparation of Ali-CCP: speed, memory, and the ratio to the usual Python scripts, on simulated
archives.

    python benchmarks/ali_ccp_prepare.py --rows 1000000,4000000 --slow-rows 250000

Every measurement runs in a process of its own, in which a tiny set is prepared first: what that
costs once (loading the compiled code) has a column. Speed is unpacked text per second, from the
compressed archives to files ready for training, hashing included. Peak memory is the process's; it
is fitted by

    peak = a + b x skeleton rows

over the sizes measured, and extrapolated to the 85.3 million rows of the real data; what was
measured stands in ``benchmarks/README.md``.

Two slow sides do what AITM's public preprocessing does, written from its description, for the same
protocol:

1. unpack the archives (the script begins with text files; its own seconds without this are measured
too);
2. put every row of the common file into a dictionary of dictionaries;
3. read the skeleton line by line, drop purchases without a click, join, count the ids of 18 fields
   in dictionaries, write the joined rows as text;
4. keep ids met 12 times, save them compressed, load them again, number them;
5. read the joined text again, number every id, write one row in ten to a file for validation and
the others to train;
6. the same for test with the numbers of train.

``published`` handles features as that script does: a regular expression splits the whole list,
names and ids are picked out of an array of strings, and a dictionary of all fields is made of them.
``loop`` is the same passes with a leaner inner loop, which keeps only fields that are wanted. All
sides read the same archives in turn, so a machine that slows down slows all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import joblib
import numpy as np

FULL_ROWS = 85_316_975
SLOW = ("published", "loop")
FIELDS = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
FIELDS += ["205", "206", "207", "216", "508", "509", "702", "853", "301"]
SEPARATORS = re.compile("[\\x01\\x02\\x03]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", default="1000000,4000000", help="simulated training rows of each size"
    )
    parser.add_argument(
        "--slow-rows",
        type=int,
        default=250_000,
        help="rows at which all sides are compared; 0: none",
    )
    parser.add_argument("--protocols", default="aitm", help="protocols to prepare")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all sides")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where archives and results go meanwhile"
    )
    parser.add_argument("--json", type=Path, default=None, help="write all measurements there")
    parser.add_argument("--work", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        job = json.loads(arguments.work)
        work = {"mtlkit": prepare, "simulate": simulate}.get(job["what"], prepare_slowly)
        print(json.dumps(work(job)))
        return
    if arguments.folder is not None:
        Path(arguments.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ali-ccp-", dir=arguments.folder) as name:
        folder = Path(name)
        measured = measure(folder, [int(rows) for rows in arguments.rows.split(",")], arguments)
    print(table(measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


def measure(folder: Path, sizes: list[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements, one after the other."""
    protocols = arguments.protocols.split(",")
    warm = {
        "what": "simulate",
        "rows": 2000,
        "archives": str(folder / "warm"),
        "warm": str(folder / "warm"),
    }
    in_process(warm)
    in_process(
        {**warm, "what": "mtlkit", "protocol": "full", "out": str(folder / "out")}
    )  # compiles
    found = []
    for rows in (arguments.slow_rows, *sizes):
        if not rows:
            continue
        job = {
            "rows": rows,
            "archives": str(folder / str(rows)),
            "out": str(folder / "out"),
            "warm": warm["archives"],
        }
        found.append({"what": "simulate", **job, **in_process({"what": "simulate", **job})})
        jobs = [{"what": "mtlkit", "protocol": protocol, **job} for protocol in protocols]
        if rows == arguments.slow_rows:
            jobs = [{"what": what, "protocol": "aitm", **job} for what in ("mtlkit", *SLOW)]
        for one in jobs * arguments.rounds:
            found.append(one | in_process(one))
            print(json.dumps(found[-1]), file=sys.stderr)
    return found


def in_process(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a fresh process; what it prints, and its peak memory."""
    command = [sys.executable, __file__, "--work", json.dumps(job)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def simulate(job: dict[str, Any]) -> dict[str, Any]:
    from mtlkit.data.ali_ccp.simulate import Simulation, write_archives

    began, cpu = time.perf_counter(), time.process_time()
    write_archives(Path(job["archives"]), Simulation(job["rows"]))
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    from mtlkit.data.ali_ccp.archives import find_source
    from mtlkit.data.ali_ccp.prepare import prepare_archives
    from mtlkit.data.ali_ccp.protocols import PROTOCOLS, Request

    protocol = PROTOCOLS[job["protocol"]]
    request = Request(protocol, protocol.min_count, 1.0, 0)
    seconds = []
    for archives in (job["warm"], job["archives"]):
        with tempfile.TemporaryDirectory(dir=Path(job["out"]).parent) as out:
            began, cpu = time.perf_counter(), time.process_time()
            source = find_source(Path(archives), "")
            dataset, splits = prepare_archives(
                source, Path(out), "ali-ccp", request, lambda *told: None, ""
            )
            seconds.append(time.perf_counter() - began)
    return {
        "seconds": seconds[1],
        "start_seconds": seconds[0],
        "cpu_seconds": time.process_time() - cpu,
        "text_bytes": dataset.details["text bytes"],
        "skeleton_rows": sum(entry["rows"] for entry in splits.values()),
        "peak_bytes": peak(),
    }


def prepare_slowly(job: dict[str, Any]) -> dict[str, Any]:
    """The published way, for the aitm protocol; ``what`` says how features are taken apart."""
    read = {"published": all_fields, "loop": wanted_fields}[job["what"]]
    random.seed(2020)
    with tempfile.TemporaryDirectory(dir=Path(job["out"]).parent) as name:
        out = Path(name)
        began, cpu = time.perf_counter(), time.process_time()
        for split in ("train", "test"):
            with tarfile.open(Path(job["archives"]) / f"sample_{split}.tar.gz") as archive:
                archive.extractall(out, filter="data")
        unpacked = time.perf_counter() - began
        counts = join(out, "train", read)
        joblib.dump(
            {field: {id for id, n in seen.items() if n > 10} for field, seen in counts.items()},
            out / "kept",
            3,
        )
        rows = number(out, "train", {"train": 0.9, "dev": 1.0})
        join(out, "test", read)
        rows += number(out, "test", {"test": 1.0})
        return {
            "seconds": time.perf_counter() - began,
            "unpack_seconds": unpacked,
            "cpu_seconds": time.process_time() - cpu,
            "text_bytes": sum(path.stat().st_size for path in out.glob("*_*_t*.csv")),
            "skeleton_rows": rows,
            "peak_bytes": peak(),
        }


def join(
    folder: Path, split: str, read: Callable[[str], dict[str, str]]
) -> dict[str, dict[str, int]]:
    """Write the rows of a split as text, with the fields of both files; how often each id was met
    again.
    """
    users = {}
    with (folder / f"common_features_{split}.csv").open(encoding="utf-8") as file:
        for line in file:
            key, _, features = line.strip().split(",")
            users[key] = read(features)
    again: dict[str, dict[str, int]] = {field: {} for field in FIELDS}
    with (
        (folder / f"sample_skeleton_{split}.csv").open(encoding="utf-8") as file,
        (folder / f"joined.{split}").open("w", encoding="utf-8") as joined,
    ):
        joined.write(",".join(["click", "purchase", *FIELDS]) + "\n")
        for line in file:
            _, click, purchase, key, _, features = line.strip().split(",")
            if click == "0" and purchase == "1":
                continue
            row = read(features)
            row.update(users[key])
            joined.write(
                ",".join([click, purchase, *(row.get(field, "0") for field in FIELDS)]) + "\n"
            )
            if split == "train":
                for field, id in row.items():
                    if field in FIELDS:
                        again[field][id] = again[field].get(id, -1) + 1
    return again


def number(folder: Path, split: str, shares: dict[str, float]) -> int:
    """Write the joined rows with ids numbered, each to one of some files; how many they are."""
    kept = joblib.load(folder / "kept")
    numbers = {field: {id: n for n, id in enumerate(kept[field], 1)} for field in FIELDS}
    rows = 0
    with ExitStack() as stack:
        joined = stack.enter_context((folder / f"joined.{split}").open(encoding="utf-8"))
        files = {
            part: stack.enter_context((folder / f"ctr_cvr.{part}").open("w", encoding="utf-8"))
            for part in shares
        }
        header = joined.readline()
        for file in files.values():
            file.write(header)
        for line in joined:
            click, purchase, *ids = line.strip().split(",")
            row = [str(numbers[field].get(id, "0")) for field, id in zip(FIELDS, ids, strict=True)]
            drawn = random.random() if len(shares) > 1 else 0.0
            part = next(part for part, share in shares.items() if drawn < share)
            files[part].write(",".join([click, purchase, *row]) + "\n")
            rows += 1
    return rows


def all_fields(features: str) -> dict[str, str]:
    """The last id of every field, by way of an array of strings."""
    parts = np.array(SEPARATORS.split(features))
    return dict(zip(parts[range(0, len(parts), 3)], parts[range(1, len(parts), 3)], strict=False))


def wanted_fields(features: str) -> dict[str, str]:
    """The last id of each field of interest."""
    found = {}
    for feature in features.split("\x01"):
        field, _, rest = feature.partition("\x02")
        if field in FIELDS:
            found[field] = rest.split("\x03")[0]
    return found


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def table(measured: list[dict[str, Any]]) -> str:
    """Speed, ratios and memory as text."""
    lines = [
        "what          protocol   train rows    seconds   CPU s   MB/s of text   peak GB   once, s"
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in measured:
        groups.setdefault((one["rows"], one["what"], one.get("protocol", "-")), []).append(one)
    for (rows, what, protocol), group in groups.items():
        seconds, cpu = (
            statistics.median(one[clock] for one in group) for clock in ("seconds", "cpu_seconds")
        )
        line = f"{what:<13} {protocol:<8} {rows:>12,} {seconds:>10.2f} {cpu:>7.2f}"
        if what != "simulate":
            gb = max(one["peak_bytes"] for one in group) / 1e9
            line += f" {group[0]['text_bytes'] / 1e6 / seconds:>14.1f} {gb:>9.2f}"
        if what == "mtlkit":
            line += f" {statistics.median(one['start_seconds'] for one in group):>9.2f}"
        lines.append(line)
    for slow in SLOW:
        sides = [[one for one in measured if one["what"] == what] for what in ("mtlkit", slow)]
        pairs = list(zip(*sides, strict=False))  # the sides meet at the first size
        for what, ratios in (
            ("seconds", [b["seconds"] / a["seconds"] for a, b in pairs]),
            (
                "seconds without unpacking",
                [(b["seconds"] - b["unpack_seconds"]) / a["seconds"] for a, b in pairs],
            ),
            (
                "seconds, with what is paid once",
                [b["seconds"] / (a["seconds"] + a["start_seconds"]) for a, b in pairs],
            ),
            ("CPU seconds", [b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs]),
        ):
            if ratios:
                middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
                lines.append(f"{slow} / mtlkit, {what}: median {middle:.1f} ({low:.1f}-{high:.1f})")
    for protocol in dict.fromkeys(one["protocol"] for one in measured if one["what"] == "mtlkit"):
        own = [one for one in measured if one["what"] == "mtlkit" and one["protocol"] == protocol]
        if len({one["rows"] for one in own}) > 1:
            rows, peaks = [one["skeleton_rows"] for one in own], [one["peak_bytes"] for one in own]
            b, a = np.polyfit(rows, peaks, 1)
            lines.append(
                f"{protocol}: peak = {a / 1e9:.2f} GB + {b:.0f} bytes x rows; "
                f"at {FULL_ROWS:,} rows {(a + b * FULL_ROWS) / 1e9:.2f} GB"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
