"""The table of one data set block: the same cells as CSV, Markdown, LaTeX and for the page."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.statistics import Interval
from mtlkit.report.summary import Row, Summary

NA = "NA"
EMPTY = {"failed": "0", "kFLOP/row": NA}
"""Columns that are left out where every row says the same."""

NOTES = {
    "interval": "± is the half-width of the 95 % Student t-interval over seeds; with one seed there is none.",
    "best": "Bold is the best mean of a column.",
    "cost": "kFLOP/row: thousand floating-point operations of the matrix products of a forward pass, by row.",
    "†": "† not shown to be worse than the best: the intervals overlap, or one of them is unknown.",
    "delta": "Δ is the mean difference to single-task with the same seed and training settings, over common seeds "
    "(their number is given where it is smaller than the row's).",
    "*": "* the interval of the difference excludes 0.",
    "gain": "Δm is the mean over tasks of the change relative to single-task's distance from a useless model, in "
    "percent; above 0 is better.",
    "‡": "‡ derived: the model does not predict this task itself, its score is computed from those of other tasks.",
    "§": "§ the mean is over other seeds than in the most complete rows.",
    "ceiling": "Planted model: the rule by which the simulator drew the labels, scored on its test rows; no model "
    "passes it but by luck.",
}
PLANTED = ("planted model", "ceiling")


@dataclass(frozen=True)
class TableCell:
    """One field: its text, whether it is the best of its column, and the marks of its footnotes."""

    text: str
    best: bool = False
    marks: str = ""
    worse: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, rows of cells and the footnotes that the cells need.

    Args:
        title: What is compared, and whether it is simulated.
        columns: Their heads; the first two are names.
        rows: One a group of runs.
        notes: Below the table.
        ceiling: A last row, of what the planted model of simulated data reaches; none where nobody
            knows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...]
    ceiling: tuple[TableCell, ...] = ()

    @property
    def lines(self) -> tuple[tuple[TableCell, ...], ...]:
        """All rows with the ceiling."""
        return (*self.rows, self.ceiling) if self.ceiling else self.rows


def fixed(value: float, decimals: int, sign: bool = False) -> str:
    """A number with a real minus sign, ``NA`` for NaN."""
    if math.isnan(value):
        return NA
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def spread(interval: Interval, decimals: int, sign: bool = False) -> str:
    """``mean ± half-width``, the mean alone when there is no interval."""
    if not interval.bounded:
        return fixed(interval.mean, decimals, sign)
    if (
        0 < interval.half < 0.5 * 10**-decimals
    ):  # one digit more, lest a small width be printed as none
        decimals += 1
    return f"{fixed(interval.mean, decimals, sign)} ± {fixed(interval.half, decimals)}"


def whole(value: float) -> str:
    """A rounded number with spaces between thousands."""
    return NA if math.isnan(value) else f"{value:,.0f}".replace(",", "\u202f")


def build_table(summary: Summary) -> Table:
    """Lay out a block's rows."""
    tasks = summary.block.tasks
    columns = ["model", "balancer"]
    for task in tasks:
        columns += [f"{task.title} {task.reading.label}", f"Δ {task.title}"]
    columns += ["Δm, %", "seeds", "failed", "parameters", "kFLOP/row", "rows/s", "train s"]
    rows = tuple(_cells(summary, row) for row in summary.rows)
    empty = [
        name
        for name, text in EMPTY.items()
        if all(cells[columns.index(name)].text == text for cells in rows)
    ]
    kept = [place for place, name in enumerate(columns) if name not in empty]
    columns, rows = (
        [columns[i] for i in kept],
        tuple(tuple(cells[i] for i in kept) for cells in rows),
    )
    ceiling = ceiling_cells(tasks, 2, len(columns))
    used = "".join(cell.marks for cells in rows for cell in cells)
    notes = [NOTES["interval"], NOTES["best"], NOTES["delta"], NOTES["gain"]]
    notes += [NOTES[mark] for mark in "†*‡§" if mark in used]
    notes += [NOTES["cost"]] if "kFLOP/row" in columns else []
    notes += [f"{NOTES['ceiling']} {_shares(summary)}".rstrip()] if ceiling else []
    notes += [*(_space_note(summary, task) for task in tasks), *summary.warnings]
    return Table(summary.block.label, tuple(columns), rows, tuple(notes), ceiling)


def ceiling_cells(tasks: Sequence[TaskInfo], each: int, width: int) -> tuple[TableCell, ...]:
    """The row of the planted model.

    Args:
        tasks: In the order of the columns.
        each: Columns of a task, of which the first has its metric.
        width: Columns of the table.
    """
    if all(math.isnan(task.ceiling) for task in tasks):
        return ()
    cells = [TableCell("")] * width
    cells[:2] = [TableCell(text) for text in PLANTED]
    for place, task in enumerate(tasks):
        cells[2 + each * place] = TableCell(fixed(task.ceiling, task.reading.decimals))
    return tuple(cells)


def _shares(summary: Summary) -> str:
    """How near the best rows come to the planted model."""
    shares = {task.title: summary.recovered(task) for task in summary.block.tasks}
    known = [f"{name} {percent(share)}" for name, share in shares.items() if not math.isnan(share)]
    return (
        f"Of its distance from a useless model the best rows recover: {', '.join(known)}."
        if known
        else ""
    )


def percent(share: float) -> str:
    """A share as a whole number of percent; in words where there is none."""
    return f"{fixed(100 * share, 0)} %" if share >= 0.005 else "nothing"


def _space_note(summary: Summary, task: TaskInfo) -> str:
    direction = "higher" if task.reading.higher_is_better else "lower"
    start = (
        f"{task.title}: {task.reading.label} on the test split, {task.space}{counts(summary, task)}"
    )
    return f"{start}; {direction} is better."


def counts(summary: Summary, task: TaskInfo) -> str:
    """Positives and negatives, or else rows, of the test split, after a comma; nothing where they
    are unknown.
    """
    positives, rows = summary.counts[task.name]
    if math.isnan(rows):
        return ""
    if math.isnan(positives):
        return f", {rows:,.0f} rows"
    return f", n+ = {positives:,.0f}, n− = {rows - positives:,.0f}"


def _cells(summary: Summary, row: Row) -> tuple[TableCell, ...]:
    group = row.group
    most = max((len(other.group.seeds) for other in summary.rows), default=0)
    usual = {other.group.seeds for other in summary.rows if len(other.group.seeds) == most}
    odd = "§" if group.seeds and group.seeds not in usual else ""
    cells = [
        TableCell(group.model),
        TableCell("–" if group.balancer_name == "none" else group.balancer),
    ]
    for task in summary.block.tasks:
        cells += [_metric(summary, row, task), _delta(row, task)]
    return (
        *cells,
        _gain(row),
        TableCell(str(len(group.seeds)), marks=odd),
        TableCell(str(len(group.failed))),
        TableCell(whole(row.parameters)),
        TableCell(fixed(row.flops_per_row / 1000, 1)),
        TableCell(whole(row.rows_per_second)),
        TableCell(fixed(row.seconds, 1)),
    )


def _metric(summary: Summary, row: Row, task: TaskInfo) -> TableCell:
    metric = row.metric[task.name]
    if not metric.known:
        return TableCell(NA)
    best = summary.best.get(task.name) == row.group.id
    worse = summary.worse(task, row)
    marks = ("" if best or worse else "†") + ("‡" if task.name in row.derived else "")
    return TableCell(spread(metric, task.reading.decimals), best, marks, worse)


def _delta(row: Row, task: TaskInfo) -> TableCell:
    if row.group.is_reference and row.group.seeds:
        return TableCell("ref.")
    delta = row.delta.get(task.name, Interval())
    return difference(delta, task.reading.decimals, len(row.values[task.name]))


def _gain(row: Row) -> TableCell:
    if row.group.is_reference and row.group.seeds:
        return TableCell("ref.")
    percent = Interval(100 * row.gain.mean, 100 * row.gain.half, row.gain.n)
    return difference(percent, 2, len(row.group.seeds))


def difference(delta: Interval, decimals: int, seeds: int) -> TableCell:
    """A paired difference: a star where it is clear of 0, its number of seeds where they are fewer
    than ``seeds``.
    """
    few = f" (n={delta.n})" if delta.known and delta.n < seeds else ""
    return TableCell(
        spread(delta, decimals, sign=True) + few, marks="*" if delta.excludes_zero else ""
    )


def to_markdown(table: Table) -> str:
    """A Markdown table with its notes."""
    lines = [f"# {_md(table.title)}", "", _md_row(table.columns)]
    lines.append(
        "|" + "|".join("---" if place < 2 else "---:" for place in range(len(table.columns))) + "|"
    )
    for cells in table.lines:
        shown = [f"**{_md(cell.text)}**" if cell.best else _md(cell.text) for cell in cells]
        lines.append(
            _md_row(
                [text + _md(cell.marks) for text, cell in zip(shown, cells, strict=True)],
                escaped=True,
            )
        )
    return "\n".join([*lines, "", *(f"- {_md(note)}" for note in table.notes), ""])


def _md(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]#])", r"\\\1", text)


def _md_row(cells: tuple[str, ...] | list[str], escaped: bool = False) -> str:
    return "| " + " | ".join(cell if escaped else _md(cell) for cell in cells) + " |"


TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "§": r"$^{\S}$",
    "¶": r"$^{\P}$",
    "*": r"$^{*}$",
    "²": "$^{2}$",
    "–": "--",
    "…": r"\ldots{}",
    "\u202f": r"\,",
}


def tex(text: str) -> str:
    """Text for LaTeX."""
    return "".join(TEX.get(letter, letter) for letter in text)


def to_tex(table: Table) -> str:
    """A booktabs table, to be read in with ``\\input``; scaled down to the text width when it is
    wider.
    """
    head = " & ".join(tex(column) for column in table.columns)
    body = [
        " & ".join(
            (rf"\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text)) + tex(cell.marks)
            for cell in cells
        )
        for cells in table.lines
    ]
    if table.ceiling:
        body[-1] = rf"\midrule {body[-1]}"
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} and \usepackage{graphicx}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{ll{'r' * (len(table.columns) - 2)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *(line + r" \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}}\par\medskip",
            rf"{{\footnotesize\raggedright {tex(' '.join(table.notes))}\par}}",
            r"\end{table}",
            "",
        ]
    )


def to_csv(summary: Summary) -> str:
    """Numbers for further work: one line a row, an empty field for NA."""
    tasks = summary.block.tasks
    stem = [(f"{task.name}_{task.metric}", task) for task in tasks]
    header = [
        "dataset",
        "protocol",
        "simulated",
        "model",
        "balancer",
        "group",
        "seeds",
        "seeds_failed",
    ]
    for name, task in stem:
        header += [f"{name}_mean", f"{name}_low", f"{name}_high"]
        header += [f"{task.name}_delta{end}" for end in ("", "_low", "_high", "_seeds")]
        header += [] if math.isnan(task.ceiling) else [f"{name}_ceiling"]
    header += ["delta_m", "delta_m_low", "delta_m_high", "delta_m_seeds"]
    header += [
        "parameters",
        "flops_per_row",
        "train_rows_per_second",
        "train_seconds",
        "peak_memory_bytes",
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in summary.rows:
        group, block = row.group, summary.block
        fields: list[object] = [block.name, block.protocol or "", yes(block.simulated)]
        fields += [group.model, group.balancer, group.id]
        fields += [len(group.seeds), len(group.failed)]
        for task in tasks:
            metric, delta = row.metric[task.name], row.delta.get(task.name, Interval())
            fields += [_plain(metric.mean), _plain(metric.low), _plain(metric.high)]
            fields += [_plain(delta.mean), _plain(delta.low), _plain(delta.high), delta.n]
            fields += [] if math.isnan(task.ceiling) else [_plain(task.ceiling)]
        fields += [_plain(row.gain.mean), _plain(row.gain.low), _plain(row.gain.high), row.gain.n]
        costs = (
            row.parameters,
            row.flops_per_row,
            row.rows_per_second,
            row.seconds,
            row.peak_memory,
        )
        fields += [_plain(value) for value in costs]
        writer.writerow(fields)
    return out.getvalue()


def rows_to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def yes(value: bool) -> str:
    """A truth value in a CSV file."""
    return "yes" if value else "no"


def _plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}"
