"""``python -m tests.campaign``: every bad input and every fault, and a table of what held."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.campaign import files, plugins, words
from tests.campaign.clusters import cluster_faults
from tests.campaign.faults import Fault, NoMountError, Reference, faults
from tests.campaign.judge import Ground

Outcome = tuple[str, str, list[str] | None]
"""Kind, name, and what did not hold; None where it could not be tried."""


def main() -> int:
    """Run what is asked for; return 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose kind or name holds this text")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    arguments = parser.parse_args()
    # what is started in the background ignores it, and so would the commands that are struck
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        outcomes = []
        for outcome in run(Path(folder), arguments.only, arguments.jobs):
            outcomes.append(outcome)
            kind, name, wrong = outcome
            for complaint in wrong or ():
                print(f"{kind}: {name}\n    {complaint}", flush=True)
    print_table(outcomes)
    return int(any(wrong for _, _, wrong in outcomes))


def run(folder: Path, only: str, jobs: int) -> Iterator[Outcome]:
    """All that is asked for, as it ends."""
    # in this process
    ground = Ground(folder / "inputs")
    for case in (*words.cases(), *words.option_cases(), *files.cases(), *files.probe_cases()):
        if only in str(case):
            yield case.kind, case.name, case.complaints(ground)

    # in processes of their own
    if only in plugins.KIND:
        for name, wrong in plugins.complaints(folder / "plugins").items():
            yield plugins.KIND, name, wrong
    chosen = [fault for fault in (*faults(), *cluster_faults()) if only in str(fault)]
    if chosen:
        reference = Reference(folder / "faults")
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(lambda fault: try_fault(fault, reference), chosen)


def try_fault(fault: Fault, reference: Reference) -> Outcome:
    try:
        return fault.kind, fault.name, fault.complaints(reference)
    except NoMountError:
        return fault.kind, fault.name, None
    except ProcessLookupError as error:  # what was to be struck had ended by itself
        return fault.kind, fault.name, [f"nothing was struck: {error}"]


def print_table(outcomes: list[Outcome]) -> None:
    """Kind, cases, held, broken; and how many could not be tried."""
    cases = Counter(kind for kind, _, _ in outcomes)
    broken = Counter(kind for kind, _, wrong in outcomes if wrong)
    skipped = Counter(kind for kind, _, wrong in outcomes if wrong is None)
    print(f"\n{'kind':<18}{'cases':>7}{'held':>7}{'broken':>8}{'skipped':>9}")
    for kind, count in (*cases.items(), ("all", cases.total())):
        bad, left_out = (
            (broken.total(), skipped.total()) if kind == "all" else (broken[kind], skipped[kind])
        )
        print(f"{kind:<18}{count:>7}{count - bad - left_out:>7}{bad:>8}{left_out:>9}")


if __name__ == "__main__":
    sys.exit(main())
