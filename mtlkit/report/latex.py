r"""Tables for a paper: ``\footnotesize`` on one column's width, numbers aligned at the point.

A table that is wider than the column comes in parts, and one that is longer than a page breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from string import ascii_uppercase

from mtlkit.errors import UsageError
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import NAME_COLUMNS, Table, TableCell, build_table

WIDTH = 345  # points of a text column, as that of an article of one column has them
LETTER, DIGIT, NARROW, BROAD, CAPITAL = 4.8, 4.3, 2.6, 7.1, 6.7
"""Points of most letters at footnotesize, a digit, a narrow sign, a broad one, and a capital."""
GAP = 6  # points between columns
NAMES_SHARE = 0.4  # of the width, what names have at least beside numbers; longer ones are broken
LONG_HEAD = 8  # letters of the longest head that is not broken
PAGE = 45  # rows of the longest table that stays in one piece
COSTS = ("parameters", "kFLOP/row", "rows/s", "train s")
SPREAD = re.compile(r"([+−]?\d+)(\.\d+)(?: ± 0?(\S+))?( \(n=\d+\))?")
"""A number with a point, its half-width and its number of seeds."""
BREAKS = re.compile(r"([,/=+:\]-])")  # after these a name or a command may be broken
MARKS = {
    "†": "not shown to be worse than the best",
    "*": "the interval of the difference excludes 0",
    "≈": "equivalent within the margin",
    "‡": "derived from predictions of other tasks",
    "§": "over other seeds than most rows",
}
"""What the marks of the main table mean, as briefly as can be."""

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
    "≈": r"$^{\approx}$",
    "²": "$^{2}$",
    "–": "--",
    "…": r"\ldots{}",
    "\u202f": r"\,",
}


def tex(text: str) -> str:
    """Text for LaTeX."""
    return "".join(TEX.get(letter, letter) for letter in text)


def paper_tables(summary: Summary, patterns: Sequence[str] = (), top: int | None = None) -> str:
    """The metrics of a block with the mean gain, and its costs as a table of their own.

    Args:
        patterns: Labels of the rows that are shown, with ``*`` and ``?`` for letters; all if empty.
        top: How many of these at most, the best first. References and baselines always stay.
    """
    rows = summary.all_rows
    stays = [bool(row.reference_of) or row.group.is_baseline for row in rows]
    chosen = [
        index
        for index, row in enumerate(rows)
        if not stays[index] and (not patterns or any(_matches(row, one) for one in patterns))
    ][:top]
    shown = [index for index in range(len(rows)) if stays[index] or index in chosen]
    table = build_table(summary)
    table = replace(table, rows=tuple(table.rows[index] for index in shown))
    costs = [i for i, head in enumerate(table.columns) if head in COSTS]
    metrics = [
        i
        for i, head in enumerate(table.columns)
        if i >= NAME_COLUMNS and head not in COSTS and not head.startswith("Δ ")
    ]
    marks = "".join(row[i].marks for row in table.rows for i in metrics)
    explained = "; ".join(f"{mark} {said}" for mark, said in MARKS.items() if mark in marks)
    notes = (
        "Mean over seeds ± half of the 95 % interval; bold: the best mean. Δm: mean change "
        "relative to single-task's distance from a useless model.",
        *([f"{explained}."] if explained else []),
        *([f"Shown are {len(shown)} of {len(rows)} rows."] if len(shown) < len(rows) else []),
    )
    title = summary.block.label
    return to_tex(_select(table, metrics, title, notes)) + to_tex(
        _select(table, costs, f"{title}: costs", ())
    )


def _matches(row: Row, pattern: str) -> bool:
    """Whether a row's label is as a pattern says; spaces do not count, and brackets are letters."""
    label, pattern = (text.replace(" ", "") for text in (row.group.label, pattern))
    return fnmatchcase(label, pattern.replace("[", "[[]"))


def check_patterns(patterns: Sequence[str], summaries: Sequence[Summary]) -> None:
    """Each pattern must match a row of some data set.

    Raises:
        UsageError: One does not.
    """
    rows = [row for summary in summaries for row in summary.all_rows]
    for pattern in patterns:
        if not any(_matches(row, pattern) for row in rows):
            labels = sorted({row.group.label for row in rows})
            raise UsageError(f"No row matches {pattern!r}.", f"the rows are {', '.join(labels)}")


def _select(table: Table, columns: Sequence[int], title: str, notes: tuple[str, ...]) -> Table:
    """The names and some columns of a table."""
    kept = [*range(NAME_COLUMNS), *columns]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    ceiling = tuple(table.ceiling[i] for i in kept) if table.ceiling else ()
    if not any(cell.text for cell in ceiling[NAME_COLUMNS:]):
        ceiling = ()
    heads = tuple(table.columns[i] for i in kept)
    return Table(title, heads, rows, notes, ceiling, table.texts, table.commands)


def to_tex(table: Table) -> str:
    r"""A table to be read in with ``\input``, in as many parts as its width needs."""
    if table.aside:
        kept = [i for i, head in enumerate(table.columns) if head not in table.aside]
        table = _select(table, kept[NAME_COLUMNS:], table.title, table.notes)
    parts = list(_parts(table))
    lines = [r"% Needs \usepackage{booktabs,longtable}; on two columns, say before it:"]
    lines += [r"% \newcommand{\mtlkittable}{table*}", r"\providecommand{\mtlkittable}{table}"]
    for number, columns in enumerate(parts, 1):
        of_parts = f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
        caption = rf"\caption{{{tex(table.title + of_parts)}}}"
        notes = tex(" ".join(table.notes)) if number == len(parts) else ""
        lines += _part(table, columns, caption, notes)
    return "\n".join([*lines, ""])


def _parts(table: Table) -> Iterator[list[int]]:
    """The columns of each part: all of text, and of numbers as many as fit."""
    texts = [i for i in range(len(table.columns)) if table.is_text(i)]
    numbers = [i for i in range(len(table.columns)) if not table.is_text(i)]
    room = WIDTH - sum(_text_widths(table).values()) - GAP * len(texts)
    part, left = list(texts), room
    for column in numbers:
        width = _width(table, column) + GAP
        if width > left + 1 and len(part) > len(texts):
            yield part
            part, left = list(texts), room
        part.append(column)
        left -= width
    yield part


def _width(table: Table, column: int) -> float:
    """Points of the widest text of a column, whose head may break."""
    cells = [row[column] for row in table.lines]
    bodies = [cell.text.replace(" ± 0", "±") + cell.marks for cell in cells]
    return max(map(_points, [*_head(table.columns[column]), *bodies]))


def _points(text: str) -> float:
    """About how wide a text is."""
    sizes = dict.fromkeys(".,:;()[]/ iljt†‡*§", NARROW) | dict.fromkeys("mw±−+%", BROAD)
    sizes |= dict.fromkeys("0123456789", DIGIT) | dict.fromkeys(ascii_uppercase, CAPITAL)
    return sum(sizes.get(letter, LETTER) for letter in text)


def _head(head: str) -> list[str]:
    """A head in one line, or in two that are as short as can be."""
    breaks = [i for i, letter in enumerate(head) if letter == " "]
    if len(head) <= LONG_HEAD or not breaks:
        return [head]
    middle = min(reversed(breaks), key=lambda i: abs(2 * i + 1 - len(head)))
    return [head[:middle], head[middle + 1 :]]


def _text_widths(table: Table) -> dict[int, float]:
    """Points of each column of text: what its longest cell needs, or a share of what is there."""
    columns = [i for i in range(len(table.columns)) if table.is_text(i)]
    needed = {i: _width(table, i) for i in columns}
    numbers = [i for i in range(len(table.columns)) if not table.is_text(i)]
    rest = WIDTH - sum(_width(table, i) + GAP for i in numbers)
    room = max(rest, NAMES_SHARE * WIDTH) - GAP * len(columns)
    if sum(needed.values()) <= room:
        return needed

    # Short columns keep what they need; long ones share the rest.
    widths: dict[int, float] = {}
    for taken, i in enumerate(sorted(columns, key=lambda i: needed[i])):
        fair = (room - sum(widths.values())) / (len(columns) - taken)
        widths[i] = min(needed[i], fair)
    return widths


def _part(table: Table, columns: Sequence[int], caption: str, notes: str) -> Iterator[str]:
    """The lines of one part."""
    widths = _text_widths(table)
    formats = [rf"p{{{widths[i]:.0f}pt}}" if i in widths else "r@{}l" for i in columns]
    commands = {i for i in columns if table.columns[i] in table.commands}
    heads = [
        tex(table.columns[i]) if i in widths else _number_head(table, i, i == columns[-1])
        for i in columns
    ]
    first = [r"\toprule", " & ".join(heads) + r" \tabularnewline", r"\midrule"]
    body = [
        " & ".join(_cell(cells[i], i in widths, i in commands) for i in columns)
        + r" \tabularnewline"
        for cells in table.lines
    ]
    # The ceiling is no result, so a rule sets it apart.
    if table.ceiling:
        body.insert(-1, r"\midrule")

    layout = "@{}" + "".join(formats) + "@{}"
    small = r"\footnotesize\setlength{\tabcolsep}{3pt}"
    below = rf"{{\scriptsize\raggedright {notes}\par}}" if notes else ""
    if len(body) > PAGE:
        yield rf"{{{small}"
        yield rf"\begin{{longtable}}{{{layout}}}"
        yield rf"{caption}\tabularnewline"
        yield from [*first, r"\endhead", *body, r"\bottomrule", r"\end{longtable}", f"{below}}}"]
        return
    yield rf"\begin{{\mtlkittable}}\centering{small}"
    yield rf"{caption}\smallskip"
    yield rf"\begin{{tabular}}{{{layout}}}"
    yield from [*first, *body, r"\bottomrule", r"\end{tabular}\par\smallskip", below]
    yield r"\end{\mtlkittable}"


def _number_head(table: Table, column: int, is_last: bool) -> str:
    """The head of a column of numbers, flush right over both of their halves. It has no width, as
    what spans two columns would widen the second one; the first one is made wide enough for it.
    """
    numbers = [SPREAD.fullmatch(cells[column].text) for cells in table.lines]
    tails = ["".join(part or "" for part in number.groups()[1:]) for number in numbers if number]
    lines = _head(table.columns[column])
    room = max(map(_points, lines)) - max(map(_points, tails), default=0)
    stacked = r"\\".join(map(tex, lines))
    head = rf"\llap{{\shortstack[r]{{{stacked}}}}}"
    place = "r@{}" if is_last else "r"  # no space after the last column
    return rf"\hspace{{{max(room, 0):.0f}pt}} & \multicolumn{{1}}{{{place}}}{{{head}}}"


def _cell(cell: TableCell, is_text: bool, is_command: bool) -> str:
    """A cell: text that may break, or a number in two halves that meet before the point."""
    bold = r"\textbf{%s}" if cell.best else "%s"
    marks = tex(cell.marks)
    if is_text:
        text = tex(BREAKS.sub("\\1\0", cell.text)).replace("\0", r"\allowbreak{}")
        if is_command:
            straight = text.replace("'", r"\textquotesingle{}")
            text = rf"\texttt{{{straight}}}"
        return rf"\raggedright {bold % text}{marks}"
    number = SPREAD.fullmatch(cell.text)
    if number is None:
        return rf"\multicolumn{{2}}{{r}}{{{bold % tex(cell.text)}{marks}}}"
    whole, fraction, half, seeds = number.groups()
    spread = rf"${{\pm}}${half}" if half else ""
    return f"{bold % tex(whole)} & {bold % fraction}{spread}{marks}{tex(seeds or '')}"
