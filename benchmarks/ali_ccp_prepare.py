"""Preparation of Ali-CCP: speed, memory, and the ratio to a line loop with dictionaries, on simulated archives.

    python benchmarks/ali_ccp_prepare.py --rows 250000,1000000,4000000

Every measurement runs in a process of its own, after a small one that compiles. Speed is unpacked text per second, from
the compressed archives to the packed splits, hashing included. Peak memory is the process's; it is fitted by

    peak = a + b x skeleton rows

over the sizes measured, and extrapolated to the 85.3 million rows of the real data. The slow side is what the published
preprocessing does, written from its description: unpack, put every common row into a dictionary, read the skeleton line
by line and join, write the joined rows as text, count ids in dictionaries, read the joined rows again and number them.
Both sides read the same archives in turn, so a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

FULL_ROWS = 85_316_975
SIDES = ("mtlkit", "dictionaries")
FIELDS = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
FIELDS += ["205", "206", "207", "216", "508", "509", "702", "853", "301"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="250000,1000000,4000000", help="simulated training rows of each size")
    parser.add_argument("--protocols", default="aitm", help="protocols to prepare")
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds at the smallest size")
    parser.add_argument("--folder", type=Path, default=None, help="where archives and results go meanwhile")
    parser.add_argument("--json", type=Path, default=None, help="write all measurements there")
    parser.add_argument("--work", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        job = json.loads(arguments.work)
        print(json.dumps({"mtlkit": prepare, "dictionaries": prepare_slowly, "simulate": simulate}[job["what"]](job)))
        return
    with tempfile.TemporaryDirectory(prefix="ali-ccp-", dir=arguments.folder) as name:
        folder = Path(name)
        measured = measure(folder, [int(rows) for rows in arguments.rows.split(",")], arguments)
    print(table(measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


def measure(folder: Path, sizes: list[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements, one after the other."""
    protocols = arguments.protocols.split(",")
    warm = {"what": "simulate", "rows": 2000, "archives": str(folder / "warm")}
    in_process(warm)
    for protocol in protocols:
        in_process({**warm, "what": "mtlkit", "protocol": protocol, "out": str(folder / "out")})
    found = []
    for rows in sizes:
        job = {"rows": rows, "archives": str(folder / str(rows)), "out": str(folder / "out")}
        found.append({"what": "simulate", **job, **in_process({"what": "simulate", **job})})
        jobs = [{"what": "mtlkit", "protocol": protocol, **job} for protocol in protocols]
        if rows == min(sizes):
            slow = {"what": "dictionaries", "protocol": "aitm", **job}
            jobs = [one for _ in range(arguments.rounds) for one in (*jobs, slow)]
        for one in jobs:
            found.append(one | in_process(one))
            print(json.dumps(found[-1]), file=sys.stderr)
    return found


def in_process(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a fresh process; what it prints, and its peak memory."""
    command = [sys.executable, __file__, "--work", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


def simulate(job: dict[str, Any]) -> dict[str, Any]:
    from mtlkit.data.ali_ccp.simulate import Simulation, write_archives

    began = time.perf_counter()
    write_archives(Path(job["archives"]), Simulation(job["rows"]))
    return {"seconds": time.perf_counter() - began}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    from mtlkit.data.ali_ccp.archives import find_source
    from mtlkit.data.ali_ccp.prepare import prepare
    from mtlkit.data.ali_ccp.protocols import PROTOCOLS, Request

    protocol = PROTOCOLS[job["protocol"]]
    request = Request(protocol, protocol.min_count, 1.0, 0)
    with tempfile.TemporaryDirectory(dir=Path(job["out"]).parent) as out:
        began, cpu = time.perf_counter(), time.process_time()
        source = find_source(Path(job["archives"]), "")
        dataset, splits = prepare(source, Path(out), "ali-ccp", request, lambda *told: None, "")
        return {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "text_bytes": dataset.details["text bytes"],
            "skeleton_rows": sum(entry["rows"] for entry in splits.values()),
            "peak_bytes": peak(),
        }


def prepare_slowly(job: dict[str, Any]) -> dict[str, Any]:
    """The published way, for the aitm protocol."""
    with tempfile.TemporaryDirectory(dir=Path(job["out"]).parent) as name:
        began, cpu = time.perf_counter(), time.process_time()
        out, size, rows = Path(name), 0, 0
        for split in ("train", "test"):
            with tarfile.open(Path(job["archives"]) / f"sample_{split}.tar.gz") as archive:
                archive.extractall(out, filter="data")
            users = {}
            with (out / f"common_features_{split}.csv").open(encoding="utf-8") as file:
                for line in file:
                    key, _, features = line.strip().split(",")
                    users[key] = own_fields(features)
            with (
                (out / f"sample_skeleton_{split}.csv").open(encoding="utf-8") as file,
                (out / f"joined.{split}").open("w", encoding="utf-8") as joined,
            ):
                for line in file:
                    _, click, purchase, key, _, features = line.strip().split(",")
                    if click == "0" and purchase == "1":
                        continue
                    row = own_fields(features)
                    row.update(users[key])
                    joined.write(",".join([click, purchase, *(row.get(field, "0") for field in FIELDS)]) + "\n")
            size += sum(path.stat().st_size for path in out.glob(f"*_{split}.csv"))
        counts: dict[str, Counter[str]] = {field: Counter() for field in FIELDS}
        with (out / "joined.train").open(encoding="utf-8") as file:
            for line in file:
                for field, id in zip(FIELDS, line.strip().split(",")[2:], strict=True):
                    counts[field][id] += 1
        kept = {
            field: {id: number for number, id in enumerate((i for i, n in seen.items() if n >= 12 and i != "0"), 1)}
            for field, seen in counts.items()
        }
        for split in ("train", "test"):
            with (
                (out / f"joined.{split}").open(encoding="utf-8") as file,
                (out / f"ctr_cvr.{split}").open("w", encoding="utf-8") as numbered,
            ):
                for line in file:
                    click, purchase, *ids = line.strip().split(",")
                    row = [str(kept[field].get(id, 0)) for field, id in zip(FIELDS, ids, strict=True)]
                    numbered.write(",".join([click, purchase, *row]) + "\n")
                    rows += 1
        return {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "text_bytes": size,
            "skeleton_rows": rows,
            "peak_bytes": peak(),
        }


def own_fields(features: str) -> dict[str, str]:
    """The last id of each field of interest."""
    found = {}
    for feature in features.split("\x01"):
        field, _, rest = feature.partition("\x02")
        if field in FIELDS:
            found[field] = rest.split("\x03")[0]
    return found


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(measured: list[dict[str, Any]]) -> str:
    """Speed, ratio and memory as text."""
    import numpy as np

    lines = ["what          protocol   train rows    seconds   CPU s   MB/s of text   peak GB"]
    for one in measured:
        if one["what"] == "simulate":
            lines.append(f"simulate      -        {one['rows']:>12,} {one['seconds']:>10.1f}")
            continue
        speed = one["text_bytes"] / 1e6 / one["seconds"]
        lines.append(
            f"{one['what']:<13} {one['protocol']:<8} {one['rows']:>12,} {one['seconds']:>10.1f} "
            f"{one['cpu_seconds']:>7.1f} {speed:>14.1f} {one['peak_bytes'] / 1e9:>9.2f}"
        )
    smallest = [one for one in measured if one["rows"] == measured[0]["rows"] and one.get("protocol") == "aitm"]
    for clock in ("seconds", "cpu_seconds"):
        fast, slow = ([one[clock] for one in smallest if one["what"] == side] for side in SIDES)
        ratios = [b / a for a, b in zip(fast, slow, strict=False)]
        if ratios:
            middle = statistics.median(ratios)
            lines.append(f"ratio of {clock}: median {middle:.1f} ({min(ratios):.1f}-{max(ratios):.1f})")
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
