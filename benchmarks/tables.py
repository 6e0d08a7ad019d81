"""How fast a table of one's own becomes packed splits, and in how much memory.

Writes a table of Zipf ids, texts and numbers as CSV and as Parquet, prepares each in a process of
its own, and beside it runs a plain pandas script that does as much in memory. MB are those of the
CSV text, and of the decoded columns of Parquet.

    python benchmarks/tables.py --rows 2000000 --columns 40
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

CHUNK_ROWS = 250_000


def chunk(number: int, rows: int, columns: int) -> pa.Table:
    """Some rows: two labels, a fifth of the columns numbers, a fifth texts, else Zipf ids."""
    rng = np.random.default_rng(number)
    texts = pa.array([f"category {level}" for level in range(5000)])
    table = {}
    for position in range(columns - 2):
        if position % 5 == 0:
            table[f"number{position}"] = pa.array(rng.normal(size=rows).round(4))
        elif position % 5 == 1:
            picks = pa.array((rng.zipf(1.3, rows) % len(texts)).astype(np.int32))
            table[f"text{position}"] = texts.take(picks)
        else:
            levels = 10 ** (2 + position % 5)
            table[f"id{position}"] = pa.array(rng.zipf(1.2, rows) % levels)
    table["click"] = pa.array((rng.random(rows) < 0.2).astype(np.int64))
    table["buy"] = pa.array((rng.random(rows) < 0.05).astype(np.int64))
    return pa.table(table)


def write_tables(folder: Path, rows: int, columns: int, with_csv: bool) -> dict[Path, float]:
    """Write both files; returns each with its MB of text or of decoded columns."""
    csv, parquet = folder / "t.csv", folder / "t.parquet"
    decoded = 0
    parquet_writer = csv_writer = None
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        table = chunk(number, min(CHUNK_ROWS, rows - start), columns)
        decoded += table.nbytes
        parquet_writer = parquet_writer or pq.ParquetWriter(parquet, table.schema)
        parquet_writer.write_table(table)
        if with_csv:
            csv_writer = csv_writer or pyarrow.csv.CSVWriter(csv, table.schema)
            csv_writer.write_table(table)
    for writer in (parquet_writer, csv_writer):
        if writer is not None:
            writer.close()
    sizes = {parquet: decoded / 1e6}
    return sizes | ({csv: csv.stat().st_size / 1e6} if with_csv else {})


def prepare_with_mtlkit(file: Path, home: Path) -> None:
    from mtlkit.data.sources import prepare

    prepare(f"{file}[labels=click:buy]", home)


def prepare_with_pandas(file: Path, home: Path) -> None:
    """What a script does that has the memory: read, split, number levels, scale, save."""
    import pandas as pd

    frame = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    part = np.random.default_rng(0).choice(3, len(frame), p=[0.8, 0.1, 0.1])
    is_train = part == 0
    ids, dense = [], []
    for name in frame.columns[:-2]:
        column = frame[name]
        if column.dtype == np.float64:
            train = column[is_train]
            dense.append(((column - train.mean()) / train.std(ddof=0)).to_numpy(np.float32))
        else:
            levels = pd.Index(np.sort(column[is_train].unique()))
            ids.append((levels.get_indexer(column) + 1).astype(np.int32))
    labels = frame[["click", "buy"]].to_numpy(np.float32)
    arrays = {"ids": np.column_stack(ids), "dense": np.column_stack(dense), "labels": labels}
    home.mkdir(parents=True)
    for split in range(3):
        for name, array in arrays.items():
            np.save(home / f"{split}.{name}.npy", array[part == split])


METHODS = {"mtlkit": prepare_with_mtlkit, "pandas": prepare_with_pandas}


def memory() -> float:
    """MB of the process that are its own; pages of files that it has mapped are not."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1000


def run_one(method: str, file: Path, home: Path) -> None:
    """In a process of its own: print seconds, seconds of all cores, and the peak memory in MB."""
    peak = 0.0
    is_done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(0.02):
            peak = max(peak, memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started, cpu_started = time.perf_counter(), time.process_time()
    METHODS[method](file, home)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    is_done.set()
    watcher.join()
    print(seconds, cpu_seconds, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--columns", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go")
    parser.add_argument("--methods", default="mtlkit,pandas")
    parser.add_argument("--no-csv", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, file, home = arguments.one
        run_one(method, Path(file), Path(home))
        return

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        sizes = write_tables(folder, arguments.rows, arguments.columns, not arguments.no_csv)
        print(f"{arguments.rows:,} rows x {arguments.columns} columns")
        for file, megabytes in sizes.items():
            for method in arguments.methods.split(","):
                home = folder / "home"
                command = [sys.executable, __file__, "--one", method, str(file), str(home)]
                ended = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, cpu_seconds, peak = map(float, ended.stdout.split())
                print(
                    f"{file.suffix[1:]:8} {method:8} {megabytes:8,.0f} MB {seconds:7.1f} s "
                    f"{megabytes / seconds:6.0f} MB/s  {cpu_seconds:7.1f} s of CPU  "
                    f"{megabytes / cpu_seconds:5.0f} MB/s a core  peak {peak:7,.0f} MB",
                    flush=True,
                )
                shutil.rmtree(home)


if __name__ == "__main__":
    main()
