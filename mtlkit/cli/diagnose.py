"""``mtlkit diagnose``: what the records of a results folder say went wrong, and what to type."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what went wrong in the runs of a results folder, with numbers and commands.

    Only records, curves and probes are read: nothing is trained. The report has the same findings.
    """
    from mtlkit.report.build import open_results
    from mtlkit.report.findings import find
    from mtlkit.report.probe_frames import load_probes
    from mtlkit.report.summary import summarise

    frames = open_results(results)
    rows = []
    unreadable = [*frames.unreadable]
    for block in frames.blocks:
        summary, probes = summarise(frames, block), load_probes(frames, block)
        found = find(frames, summary, probes.by_group, results)
        unreadable += [*probes.unreadable, *summary.noise.unreadable]
        rows += [{"dataset": block.label, **asdict(finding)} for finding in found]
        if json:
            continue

        # what the report warns of besides has no command
        typer.echo(f"{block.label}: {len(found)} findings in {len(summary.rows)} rows\n")
        for finding in found:
            typer.echo(f"{finding.rule}: {finding.sentence}\n  {finding.command}\n")
        said = {finding.sentence for finding in found}
        for warning in summary.warnings:
            if warning not in said:
                typer.echo(f"note: {warning}\n")
    for left_out in unreadable:
        typer.echo(f"warning: could not be read: {left_out}", err=True)
    if json:
        typer.echo(json_module.dumps(rows, indent=1))
