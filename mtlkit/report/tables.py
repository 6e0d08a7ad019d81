"""The table of one data set block: the same cells as CSV, Markdown, LaTeX and for the page."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mtlkit.report.blocks import Block, RunGroup, TaskInfo
from mtlkit.report.statistics import Interval
from mtlkit.report.summary import Row, Summary

NA = "NA"
OPTIONAL_COLUMNS = {"failed": "0", "kFLOP/row": NA, "weighted mean": NA}
"""Columns that are left out where every row has this text."""

NOTES = {
    "interval": (
        "± is the half-width of the 95 % Student t-interval over seeds; "
        "with one seed there is none."
    ),
    "best": "Bold is the best mean of a column.",
    "cost": (
        "kFLOP/row: thousand floating-point operations of the matrix products of a forward pass, "
        "by row."
    ),
    "†": (
        "† not shown to be worse than the best: the intervals overlap, or one of them is unknown."
    ),
    "delta": (
        "Δ is the mean difference to a single-task model that was trained for the same score, with "
        "the same seed and training settings, over "
        "common seeds (their number is given where it is smaller than the row's)."
    ),
    "weighted": (
        "Weighted mean: of the metrics of the scores, by select_weights; where lower values are "
        "better, with their sign turned."
    ),
    "*": "* the interval of the difference excludes 0.",
    "gain": (
        "Δm is the mean over tasks of the change relative to single-task's distance from a useless "
        "model, in percent; above 0 is better. A task with several scores counts once, by their "
        "mean."
    ),
    "‡": (
        "‡ derived: the model does not predict this task itself, its score is computed from those "
        "of other tasks."
    ),
    "§": "§ the mean is over other seeds than in the most complete rows.",
    "baseline": (
        "Baselines, which are no networks, stand below the methods; no mean of theirs counts as "
        "the best, and no method is judged by them."
    ),
    "ceiling": (
        "Planted model: the rule by which the simulator drew the labels, scored on its test rows; "
        "no model passes it but by luck."
    ),
}
PLANTED = ("planted model", "ceiling")
"""The first two cells of the ceiling's row."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # with these a spreadsheet begins to compute

NAME_COLUMNS = 2  # the model and the balancer; all other columns hold numbers


@dataclass(frozen=True)
class TableCell:
    """One field of a table."""

    text: str  # what it says
    best: bool = False  # whether it is the best of its column
    marks: str = ""  # the marks of its footnotes
    worse: bool = False  # whether it is shown to be worse than the best


@dataclass(frozen=True)
class Table:
    """Columns, rows of cells and the footnotes that the cells need."""

    title: str  # what is compared, and whether it is simulated
    columns: tuple[str, ...]  # their heads; the first two are names
    rows: tuple[tuple[TableCell, ...], ...]  # one a group of runs
    notes: tuple[str, ...]  # below the table
    # A last row, of what the planted model of simulated data reaches; none where nobody knows.
    ceiling: tuple[TableCell, ...] = ()
    texts: tuple[str, ...] = ()  # heads of columns of text besides the names
    commands: tuple[str, ...] = ()  # heads of those columns that hold commands to type
    aside: tuple[str, ...] = ()  # heads of columns for which a paper has no room
    # Names by which links reach the rows; none for tables without links.
    anchors: tuple[str, ...] = ()
    # Sentences above the table, each with a command to type about it, or "".
    lead: tuple[tuple[str, str], ...] = ()

    def is_text(self, column: int) -> bool:
        """Whether a column holds names or sentences, not numbers."""
        return column < NAME_COLUMNS or self.columns[column] in self.texts

    @property
    def lines(self) -> tuple[tuple[TableCell, ...], ...]:
        """All rows with the ceiling."""
        return (*self.rows, self.ceiling) if self.ceiling else self.rows


# --- numbers as text ------------------------------------------------------------------------------


def fixed(value: float, decimals: int, sign: bool = False) -> str:
    """A number with a real minus sign, ``NA`` for NaN."""
    if math.isnan(value):
        return NA
    plus = "+" if sign else ""
    rounded = round(value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{plus}.{decimals}f}".replace("-", "−")


def spread(interval: Interval, decimals: int, sign: bool = False) -> str:
    """``mean ± half-width``, the mean alone when there is no interval."""
    if not interval.bounded:
        return fixed(interval.mean, decimals, sign)

    # A small width gets one digit more, so that it is not printed as 0.
    if 0 < interval.half < 0.5 * 10**-decimals:
        decimals += 1
    return f"{fixed(interval.mean, decimals, sign)} ± {fixed(interval.half, decimals)}"


def whole(value: float) -> str:
    """A rounded number with spaces between thousands."""
    return NA if math.isnan(value) else f"{value:,.0f}".replace(",", "\u202f")


def percent(share: float, decimals: int = 0) -> str:
    """A share in percent; in words where there is none."""
    return f"{fixed(100 * share, decimals)} %" if share >= 0.005 / 10**decimals else "nothing"


def are(number: int) -> str:
    """The verb that goes with a number."""
    return "is" if number == 1 else "are"


# --- the cells ------------------------------------------------------------------------------------


def build_table(summary: Summary) -> Table:
    """Lay out a block's rows."""
    tasks = summary.block.tasks
    columns = ["model", "balancer"]
    for task in tasks:
        columns += [f"{task.title} {task.reading.label}", f"Δ {task.title}"]
    columns += ["weighted mean", "Δm, %", "seeds", "failed"]
    columns += ["parameters", "kFLOP/row", "rows/s", "train s"]
    rows = [_row_cells(summary, row) for row in summary.all_rows]

    # Leave out the columns that say nothing here.
    kept = [
        index
        for index, name in enumerate(columns)
        if not _says_nothing(name, [cells[index].text for cells in rows])
    ]
    columns = [columns[index] for index in kept]
    rows = [tuple(cells[index] for index in kept) for cells in rows]

    ceiling = ceiling_cells(tasks, 2, len(columns))
    marks = "".join(cell.marks for cells in rows for cell in cells)
    notes = _notes(summary, columns, marks, has_ceiling=bool(ceiling))
    anchors = tuple(f"row-{row.group.id[:12]}" for row in summary.all_rows)
    title = summary.block.label
    return Table(title, tuple(columns), tuple(rows), tuple(notes), ceiling, anchors=anchors)


def _says_nothing(column: str, texts: Sequence[str]) -> bool:
    """Whether a column may be left out: no run failed, or no cost was counted."""
    return column in OPTIONAL_COLUMNS and all(text == OPTIONAL_COLUMNS[column] for text in texts)


def ceiling_cells(tasks: Sequence[TaskInfo], each: int, width: int) -> tuple[TableCell, ...]:
    """The row of the planted model; none where no task has a ceiling.

    Args:
        tasks: The tasks in the order of the columns.
        each: Columns of a task, of which the first has its metric.
        width: Columns of the table.
    """
    if all(math.isnan(task.ceiling) for task in tasks):
        return ()
    cells = [TableCell("")] * width
    cells[:NAME_COLUMNS] = [TableCell(text) for text in PLANTED]
    for index, task in enumerate(tasks):
        cells[NAME_COLUMNS + each * index] = TableCell(fixed(task.ceiling, task.reading.decimals))
    return tuple(cells)


def _row_cells(summary: Summary, row: Row) -> tuple[TableCell, ...]:
    # What was trained. Single-task has no balancer.
    group = row.group
    cells = [TableCell(group.model), TableCell(group.balancer if group.has_balancer else "–")]

    # What it reached, task by task and together; then on how many seeds, and at what cost.
    for task in summary.block.tasks:
        cells += [_metric_cell(summary, row, task), _delta_cell(row, task)]
    cells += [
        TableCell(spread(row.weighted, 4)),
        _gain_cell(row),
        TableCell(str(len(group.seeds)), marks=_seed_mark(summary, row)),
        TableCell(str(len(group.failed))),
        TableCell(whole(row.parameters)),
        TableCell(fixed(row.flops_per_row / 1000, 1)),
        TableCell(whole(row.rows_per_second)),
        TableCell(fixed(row.seconds, 1)),
    ]
    return tuple(cells)


def _seed_mark(summary: Summary, row: Row) -> str:
    """A mark where a row's seeds are not those of one of the most complete rows."""
    most = max((len(other.group.seeds) for other in summary.rows), default=0)
    complete = {other.group.seeds for other in summary.rows if len(other.group.seeds) == most}
    return "§" if row.group.seeds and row.group.seeds not in complete else ""


def _metric_cell(summary: Summary, row: Row, task: TaskInfo) -> TableCell:
    metric = row.metric[task.name]
    if not metric.known:
        return TableCell(NA)

    best = summary.best.get(task.name) == row.group.id
    is_compared = row in summary.rows
    worse = is_compared and summary.worse(task, row)
    marks = "†" if is_compared and not (best or worse) else ""
    if task.name in row.derived:
        marks += "‡"
    return TableCell(spread(metric, task.reading.decimals), best, marks, worse)


def _delta_cell(row: Row, task: TaskInfo) -> TableCell:
    if task.name in row.reference_of:
        return TableCell("ref.")
    delta = row.delta.get(task.name, Interval())
    return difference(delta, task.reading.decimals, len(row.values[task.name]))


def _gain_cell(row: Row) -> TableCell:
    if row.reference_of:
        return TableCell("ref.")
    cell = difference(row.gain.scaled(100), 2, len(row.group.seeds))
    return replace(cell, marks=cell.marks + "≈") if row.word == "equivalent" else cell


def difference(delta: Interval, decimals: int, seeds: int) -> TableCell:
    """A paired difference, with a star where its interval excludes 0."""
    text = spread(delta, decimals, sign=True)
    if delta.known and delta.n < seeds:
        text += f" (n={delta.n})"
    return TableCell(text, marks="*" if delta.excludes_zero else "")


# --- the notes ------------------------------------------------------------------------------------


def equivalence_note(margin: float) -> str:
    """What equivalent means."""
    return (
        "Equivalent means that the difference lies within ± "
        f"{100 * margin:g} % by two one-sided tests at 5 %, and so does not matter, even where it "
        "is clear of 0; not told apart, that it may be 0 and may be more than that."
    )


def both_noises_note(summary: Summary) -> str:
    """Which noises the intervals of differences hold."""
    if summary.noise.too_many:
        return "Intervals of differences are over seeds alone: there are too many test scores."
    compared = [row.gain for row in summary.rows if row.gain.bounded]
    if summary.noise.influence and not any(math.isnan(gain.row_error) for gain in compared):
        return "Intervals of differences hold both noises, of the seeds and of the test rows."
    return (
        "Intervals of differences hold the noise of the seeds, and of the test rows only where the "
        "test scores of both rows were kept and their metric is AUC, log loss, R² or an error."
    )


def _notes(summary: Summary, columns: Sequence[str], marks: str, has_ceiling: bool) -> list[str]:
    """The footnotes of a table: those that always stand, and those that its cells need."""
    notes = [NOTES[name] for name in ("interval", "best", "delta", "gain")]
    notes += [NOTES[mark] for mark in "†*‡§" if mark in marks]
    if "≈" in marks:
        notes.append(f"≈ equivalent to single-task. {equivalence_note(summary.margin)}")
    if any(row.gain.bounded for row in summary.rows):
        notes.append(both_noises_note(summary))
    if summary.baselines:
        notes.append(NOTES["baseline"])
    if "weighted mean" in columns:
        notes.append(NOTES["weighted"])
    if "kFLOP/row" in columns:
        notes.append(NOTES["cost"])
    if has_ceiling:
        notes.append(f"{NOTES['ceiling']} {_recovered_note(summary)}".rstrip())
    notes += [_task_note(summary, task) for task in summary.block.tasks]
    notes += summary.block.budget
    return [*notes, *summary.warnings]


def _recovered_note(summary: Summary) -> str:
    """How near the best rows come to the planted model."""
    shares = {task.title: summary.recovered(task) for task in summary.block.tasks}
    listed = [f"{name} {percent(share)}" for name, share in shares.items() if not math.isnan(share)]
    if not listed:
        return ""
    return f"Of its distance from a useless model the best rows recover: {', '.join(listed)}."


def _task_note(summary: Summary, task: TaskInfo) -> str:
    """What a task's column shows, on which rows, and which direction is better."""
    measured = f"{task.title}: {task.reading.label} on the test split, {task.space}"
    return f"{measured}{counts(summary, task)}; {task.reading.direction}."


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


# --- Markdown -------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A Markdown table with its notes."""
    rule = ["---" if table.is_text(index) else "---:" for index in range(len(table.columns))]
    lines = [
        f"# {_escape_markdown(table.title)}",
        "",
        *(line for sentence in table.lead for line in (_markdown_sentence(*sentence), "")),
        _markdown_line(_escape_markdown(column) for column in table.columns),
        f"|{'|'.join(rule)}|",
    ]
    are_commands = [head in table.commands for head in table.columns]
    for cells in table.lines:
        texts = map(_markdown_cell, cells, are_commands)
        lines.append(_markdown_line(texts))
    notes = [f"- {_escape_markdown(note)}" for note in table.notes]
    return "\n".join([*lines, "", *notes, ""])


def _markdown_sentence(sentence: str, command: str) -> str:
    text = _escape_markdown(sentence)
    return f"{text} Type: {_markdown_code(command)}" if command else text


def _markdown_cell(cell: TableCell, is_command: bool) -> str:
    if is_command:
        return _markdown_code(cell.text).replace("|", r"\|")
    text = _escape_markdown(cell.text)
    if cell.best:
        text = f"**{text}**"
    return text + _escape_markdown(cell.marks)


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_code(text: str) -> str:
    """A code span, whose marks are longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    mark, space = "`" * (longest + 1), " " if longest else ""
    return f"{mark}{space}{text}{space}{mark}"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]#])", r"\\\1", text)


# --- CSV ------------------------------------------------------------------------------------------


def to_csv(summary: Summary) -> str:
    """Numbers for further work: one line a row, an empty field for NA."""
    return rows_to_csv([_csv_row(summary, row) for row in summary.all_rows])


def rows_to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as CSV; no field is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for fields in (rows[0], *(row.values() for row in rows)):
        writer.writerow([_no_formula(field) for field in fields])
    return text.getvalue()


def _no_formula(field: object) -> object:
    """A field with an apostrophe before it where a spreadsheet would compute it; numbers stay."""
    if not isinstance(field, str) or not field.startswith(FORMULA_STARTS):
        return field
    try:
        float(field)
    except ValueError:
        return f"'{field}"
    return field


def _csv_row(summary: Summary, row: Row) -> dict[str, object]:
    # Every line says where its numbers come from, so that files can be joined.
    fields = csv_key(summary.block, row.group) | {
        "group": row.group.id,
        "seeds": len(row.group.seeds),
        "seeds_failed": len(row.group.failed),
    }

    # Numbers keep eight digits; rounding is for readers.
    for task in summary.block.tasks:
        measured = f"{task.name}_{task.metric}"
        for end, number in csv_interval(row.metric[task.name]).items():
            fields[f"{measured}_{end}"] = number
        fields |= _csv_difference(f"{task.name}_delta", row.delta.get(task.name, Interval()))
        if not math.isnan(task.ceiling):
            fields[f"{measured}_ceiling"] = csv_number(task.ceiling)
    if any(other.weighted.known for other in summary.rows):
        fields |= {
            f"weighted_mean_{end}": number for end, number in csv_interval(row.weighted).items()
        }
    fields |= _csv_difference("delta_m", row.gain)
    return fields | {
        "parameters": csv_number(row.parameters),
        "flops_per_row": csv_number(row.flops_per_row),
        "train_rows_per_second": csv_number(row.rows_per_second),
        "train_seconds": csv_number(row.seconds),
        "peak_memory_bytes": csv_number(row.peak_memory),
    }


def csv_key(block: Block, group: RunGroup) -> dict[str, object]:
    """The fields with which every line begins: the data, and what ran on them."""
    return csv_block(block) | {"model": group.model, "balancer": group.balancer}


def csv_block(block: Block) -> dict[str, object]:
    """The fields that name the data."""
    return {
        "dataset": block.name,
        "protocol": block.protocol or "",
        "simulated": "yes" if block.simulated else "no",
    }


def _csv_difference(name: str, delta: Interval) -> dict[str, object]:
    return {
        name: csv_number(delta.mean),
        f"{name}_low": csv_number(delta.low),
        f"{name}_high": csv_number(delta.high),
        f"{name}_row_error": csv_number(delta.row_error),
        f"{name}_seeds": delta.n,
    }


def csv_interval(interval: Interval) -> dict[str, object]:
    """Mean and ends of an interval as fields; empty where unknown."""
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: csv_number(value) for name, value in values.items()}


def csv_number(value: float) -> str:
    """A number as a field; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.8g}"
