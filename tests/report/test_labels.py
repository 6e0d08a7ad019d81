"""Names of any kind in tables, pages and figures; and more balancers than there are colours."""

import csv
import io
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text

from mtlkit.report import write_report
from mtlkit.report.figures import cosine_end, draw_all
from mtlkit.report.figures.compact import compact
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.text import letters_without_font, shorten, text_width
from mtlkit.report.frame import load
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.summary import summarise
from mtlkit.report.tables import rows_to_csv
from tests.fakes import cell, fill, probes

ODD_NAMES = {
    "broken-math": r"a $\frac{1 b",
    "math": "$x^2$",
    "control": "bell\a\x1b[31mred\x7f",
    "lines": "one\ntwo\r\nthree",
    "spaces": "thin\u2009no-break\u00a0em\u2003",
    "direction": "left\u202eright",
    "wide": "点击率",
    "right-to-left": "שלום عليكم",
    "markup": "<b>&amp;\"'</b>",
    "tex": r"50 % of_a \& {b} ~ ^",
    "long": "a very long name " * 30,
    "formula": "=1+1",
}


def report(root, tasks, **values):
    fill(root, ("mmoe",), ("uniform", "uwl"), seeds=(0, 1), tasks=tasks, **values)
    return write_report(root)


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_any_name_can_be_a_task(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = report(tmp_path, [name, "plain"])
    for file in (*built.tables, *built.figures, built.page):
        if file.suffix in (".md", ".tex", ".svg", ".html"):
            text = file.read_text("utf-8")
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text), file
        if file.suffix == ".svg":
            ElementTree.parse(file)


def test_a_line_break_in_a_name_breaks_no_table(tmp_path):
    built = report(tmp_path, ["one\ntwo", "plain"])
    for file in built.tables:
        if file.suffix == ".md":
            rows = [line for line in file.read_text("utf-8").splitlines() if line.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert r"one\ntwo" in built.page.read_text("utf-8")


def test_dollar_signs_are_dollar_signs(tmp_path):
    name = r"$\frac{1"
    built = report(tmp_path, [name, "plain"])
    [svg] = [file for file in built.figures if file.name.endswith("metrics.svg")]
    texts = [text.text for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts


def test_letters_that_no_font_has_are_named(tmp_path):
    known = letters_without_font(["abc é ü Δ שלום"])
    assert known == ""
    unknown = letters_without_font(["a\U000f0000b"])  # a private letter, which nobody draws
    assert unknown == "\U000f0000"
    built = report(tmp_path, ["点", "plain"])
    assert built.letters_without_font == letters_without_font("点")
    [svg] = [file for file in built.figures if file.name.endswith("metrics.svg")]
    assert "点" in svg.read_text("utf-8")


def test_widths_grow_with_text_and_size():
    assert text_width("", 8) == text_width("   ", 8) * 0
    assert text_width("mm", 8) == pytest.approx(2 * text_width("m", 8), rel=0.1)
    assert text_width("name", 16) == pytest.approx(2 * text_width("name", 8))
    assert text_width(shorten("a long name " * 9, 8, 1.0), 8) <= 1.0


# --- fields of CSV files


def test_text_that_a_spreadsheet_would_compute_gets_an_apostrophe():
    fields = {
        "=cmd": "=1+1",
        "at": "@sum",
        "plus": "+a",
        "minus": "-a",
        "tab": "\t=1",
        "number": "-0.5",
        "plus number": "+1e-3",
        "float": -2.5,
        "plain": "mmoe",
        "empty": "",
    }
    head, line = csv.reader(io.StringIO(rows_to_csv([fields])))
    assert head[0] == "'=cmd"
    assert line == ["'=1+1", "'@sum", "'+a", "'-a", "'\t=1", "-0.5", "+1e-3", "-2.5", "mmoe", ""]


def test_names_in_csv_files_are_no_formulas(tmp_path):
    built = report(tmp_path, ['=HYPERLINK("http://x")', "@plain"])
    for file in built.tables:
        if file.suffix == ".csv":
            for line in csv.reader(io.StringIO(file.read_text("utf-8"))):
                for field in line:
                    assert not field.startswith(("=", "@", "\t", "\r")), field
                    if field.startswith(("+", "-")):
                        float(field)


# --- colours and markers


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A context with 45 balancers."""
    root = tmp_path_factory.mktemp("many")
    balancers = ["uniform", *(f"static[w={n}:1]" for n in range(2, 46))]
    store = fill(root, ("mmoe", "ple"), balancers, seeds=(0, 1))
    frames = load(store)
    summary = summarise(frames, frames.blocks[0])
    probes = load_probes(frames, frames.blocks[0]).by_group
    return Context(summary, probes, Look.of([summary]))


def test_no_two_balancers_share_a_look(many):
    looks = list(many.look.colours.values())
    assert len(looks) == len(set(looks)) == 16
    assert "uniform" in many.look.colours


def test_the_best_rows_have_a_colour_and_the_others_one_grey(many):
    best = next(row for row in many.summary.rows if row.group.has_balancer)
    assert best.group.balancer in many.look.colours
    legend = [entry.label for entry in many.legend(many.summary.rows)]
    assert legend.count("other balancers") == 1
    assert len(legend) == 2 + 16 + 1 + 3
    greys = {
        many.look.colour(row)
        for row in many.summary.rows
        if row.group.has_balancer and row.group.balancer not in many.look.colours
    }
    assert len(greys) == 1


def test_few_balancers_look_alike_whatever_their_ranks(tmp_path):
    looks = []
    for seeds in ((0,), (1,)):
        root = tmp_path / str(seeds)
        frames = load(fill(root, ("mmoe",), ("uwl", "uniform", "dwa"), seeds=seeds))
        looks.append(Look.of([summarise(frames, frames.blocks[0])]))
    assert looks[0] == looks[1]
    assert list(looks[0].colours) == ["uniform", "dwa", "uwl"]


def test_figures_of_many_rows_say_what_they_leave_out(many):
    drawings = {drawing.name: drawing for drawing in draw_all(many)}
    assert "Shown are 12 of 45 rows" in drawings["gates-mmoe"].caption
    assert "Shown are 30 of 88 rows" in drawings["weights"].caption
    assert "Shown are" not in drawings["cosine-end"].caption
    assert "Shown are" not in drawings["metrics"].caption
    names = {text.get_text() for text in drawings["gates-mmoe"].figure.findobj(Text)}
    assert "uniform" in names
    shown = {text.get_text() for text in drawings["metrics"].figure.findobj(Text)}
    assert {row.group.label for row in many.summary.rows} <= shown


def test_cosines_of_many_tasks_are_a_matrix_a_model(tmp_path):
    tasks = ["a", "b", "c", "d", "e", "f"]  # 15 pairs
    balancers, seeds = ("uniform", "uwl"), (0, 1)
    frames = load(fill(tmp_path, ("mmoe", "ple"), balancers, seeds=seeds, tasks=tasks))
    summary = summarise(frames, frames.blocks[0])
    found = load_probes(frames, frames.blocks[0]).by_group
    context = Context(summary, found, Look.of([summary]))

    names, [mmoe, ple] = cosine_end._by_model(cosine_end._cosines(context))
    runs = [cell("mmoe", one, seed, tasks=tasks) for one in balancers for seed in seeds]
    expected = np.mean([probes(run)["gradient_cosine"][-1, 0] for run in runs], axis=0)
    np.fill_diagonal(expected, np.nan)
    assert (names, mmoe.title, ple.title) == (tasks, "mmoe", "ple")
    np.testing.assert_allclose(mmoe.values, expected, atol=1e-6)
    [drawing] = cosine_end.draw(context)
    assert "averaged over its balancers" in drawing.caption


# --- compact SVG


def test_a_compact_drawing_has_the_same_texts_and_places():
    svg = (
        '<svg width="10pt"><g id="a"><g id="b"><text style="font-size: 8px; font-family: \'X\'; '
        'fill: #000" x="1.23456" y="2" transform="rotate(-0 1.2 2)">x="1.23456"; d</text></g></g>'
        '<g id="c">\n <path id="p" d="M 1.239 2 \nL 3.001 -4.5 \nz\n" style="fill: none"/></g>'
        '<g id="empty"/><g><use xlink:href="#p" x="1" y="2"/><use xlink:href="#p" x="3" y="2"/></g>'
        "</svg>"
    )
    assert compact(svg) == (
        '<svg width="10pt"><text style="font-size:8px;fill:#000" x="1.23" y="2">x="1.23456"; d</text>'
        '<path id="p" d="M1.24 2L3 -4.5z" style="fill:none"/><g id="empty"/>'
        '<g><use xlink:href="#p" x="1" y="2"/><use xlink:href="#p" x="3" y="2"/></g></svg>'
    )
