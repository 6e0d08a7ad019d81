"""Simulated data: said in every file of a report, with what the planted model reaches."""

import csv
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text

from mtlkit.cli.results import results_table
from mtlkit.metrics.definitions import METRICS
from mtlkit.report import rows, write_report
from mtlkit.report.build import WRITTEN
from mtlkit.report.figures import FIGURES, draw_all
from mtlkit.report.figures.axes import ceiling_text, with_ceiling
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.style import CEILING_COLOUR
from mtlkit.report.frame import load
from mtlkit.report.latex import to_tex
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.statistics import recovered
from mtlkit.report.summary import summarise
from mtlkit.report.tables import build_table, to_markdown
from mtlkit.store import ResultStore
from tests.fakes import cell, fill, record

CEILING = {"income": 0.95, "marital": 0.9961}
WEIGHTS = ("uniform", "static[w=1:3]", "static[w=3:1]", "uwl")


def grid(root, simulated):
    """A grid with every figure and every table that there is."""
    store = fill(
        root,
        ("mmoe",),
        WEIGHTS,
        seeds=(0, 1),
        simulated=simulated,
        ceiling=CEILING if simulated else {},
    )
    for run, folder in store.scan():
        if "mmoe" in run.cell.model:
            with np.load(folder / "probes.npz") as saved:
                arrays = dict(saved)
            arrays |= {
                "ablation/level-1": np.full((2, 2), -0.01),
                "ablation/level-1/experts": np.array(["expert 1", "expert 2"]),
            }
            np.savez_compressed(folder / "probes.npz", **arrays)
    return store


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated")
    return grid(root, True)


@pytest.fixture(scope="module")
def files(simulated):
    """Every file of its report."""
    built = write_report(simulated.root, formats=["png"])
    return sorted(file for file in built.page.parent.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def summary(simulated):
    frames = load(simulated)
    return summarise(frames, frames.blocks[0])


@pytest.fixture(scope="module")
def drawings(simulated, summary):
    frames = load(simulated)
    return list(
        draw_all(Context(summary, load_probes(frames, summary.block).by_group, Look.of([summary])))
    )


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


# --- that it is simulated
# ---------------------------------------------------------------------------------------------


def test_the_grid_has_every_kind_of_figure_and_table(files, drawings):
    names = {drawing.name.removesuffix("-mmoe") for drawing in drawings}
    # No scores were kept that would be calibrated, nothing was tuned, and the runs have no points;
    # there is one pair of tasks, with too few seeds for a rate; nobody publishes simulated numbers.
    assert len(names) == len(FIGURES) - 6
    assert {file.suffix for file in files} == set(".html .csv .md .tex .svg .png .json".split())
    assert any("verdicts" in file.name for file in files)


def test_every_text_file_says_so(files):
    for file in files:
        if file.suffix in (".md", ".tex", ".svg", ".html"):
            assert "(simulated data)" in file.read_text(encoding="utf-8"), file
    for file in (file for file in files if file.suffix == ".csv"):
        lines = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
        assert lines
        assert {line["simulated"] for line in lines} == {"yes"}


def test_titles_and_captions_say_so(files):
    for file in files:
        text = file.read_text(encoding="utf-8") if file.suffix in (".md", ".tex") else ""
        if file.suffix == ".md":
            assert "(simulated data)" in text.splitlines()[0]
        if file.suffix == ".tex":
            assert re.search(r"\\caption\{.*\(simulated data\)", text)


def test_every_figure_says_so_in_the_picture(files, drawings):
    assert {file.stem.partition("marital-")[2] for file in files if file.suffix == ".png"} == {
        d.name for d in drawings
    }
    for drawing in drawings:
        assert any("(simulated data)" in text for text in texts(drawing.figure)), drawing.name


def test_the_page_says_so_from_its_title_on(files):
    page = next(file for file in files if file.suffix == ".html").read_text(encoding="utf-8")
    assert "<title>mtlkit report (simulated data)</title>" in page
    assert "<h1>Multi-task methods compared (simulated data)</h1>" in page
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    assert len(headings) == 13
    assert all("(simulated data)" in heading for heading in headings)


def test_one_of_several_data_sets_is_named(built):
    page = built.page.read_text(encoding="utf-8")
    assert "<title>mtlkit report (simulated: synthetic)</title>" in page
    assert ">synthetic (simulated data)</a>" in page
    assert ">census, protocol mmoe</a>" in page
    assert built.simulated == ("synthetic",)


def test_real_data_is_not_called_simulated(tmp_path):
    built = write_report(grid(tmp_path, False).root)
    for file in (*built.tables, *built.figures, built.page):
        text = (
            ""
            if file.suffix == ".png"
            else file.read_text(encoding="utf-8").replace(",simulated,", ",")
        )
        assert "simulated" not in text, file
        assert "planted" not in text, file
        assert "<td>ceiling" not in text, file
    lines = csv.DictReader(io.StringIO(built.tables[0].read_text(encoding="utf-8")))
    assert {line["simulated"] for line in lines} == {"no"}


def test_the_command_says_so(tmp_path, cli):
    fill(tmp_path, ("mmoe",), (), seeds=(0,), simulated=True, with_probes=False)
    said = cli("report", tmp_path)
    assert "note: census, protocol mmoe is simulated data\n" in said.err


# --- the ceiling
# ------------------------------------------------------------------------------------------------------


def test_the_ceiling_is_no_part_of_a_cells_identity():
    plain, known = cell(simulated=True), cell(simulated=True, ceiling=CEILING)
    assert (plain.key, plain.group) == (known.key, known.group)
    assert (
        record(known).model_validate_json(record(known).model_dump_json()).cell.ceiling == CEILING
    )


@pytest.mark.parametrize(
    ("value", "ceiling", "metric", "share"),
    [
        (0.62, 0.64, "auc", 0.12 / 0.14),
        (0.5, 0.64, "auc", 0),
        (0.3, 0.6, "r2", 0.5),
        (0.45, 0.6, "auc", -0.5),
    ],
)
def test_the_share_recovered(value, ceiling, metric, share):
    assert recovered(value, ceiling, METRICS[metric]) == pytest.approx(share)


def test_no_share_of_an_unknown_or_useless_ceiling():
    assert math.isnan(recovered(0.6, math.nan, METRICS["auc"]))
    assert math.isnan(recovered(0.6, 0.5001, METRICS["auc"]))


def test_the_table_ends_with_the_ceiling(summary):
    table = build_table(summary)
    cells = dict(zip(table.columns, (cell.text for cell in table.ceiling), strict=True))
    assert (cells["model"], cells["balancer"]) == ("planted model", "ceiling")
    assert (cells["income AUC"], cells["marital AUC"]) == ("0.9500", "0.9961")
    assert {
        text
        for name, text in cells.items()
        if name[:6] not in ("model", "balanc", "income", "marita")
    } == {""}
    assert len(table.rows) == len(summary.rows), "it is no row of the ranking"
    [note] = [note for note in table.notes if note.startswith("Planted model")]
    share = (max(row.metric["income"].mean for row in summary.rows) - 0.5) / 0.45
    assert f"income {100 * share:.0f} %" in note
    assert "| planted model | ceiling | 0.9500 |" in to_markdown(table)
    assert "planted model & \\raggedright ceiling & 0 & .9500 &" in to_tex(table)


def test_the_other_tables_hold_what_was_to_be_won(files):
    text = next(
        file for file in files if "verdicts-mmoe" in file.name and file.suffix == ".md"
    ).read_text("utf-8")
    line = next(
        line for line in text.splitlines() if line.startswith("| planted model | ceiling |")
    )
    gaps = [float(field) for field in line.replace("−", "-").split("|")[3:6]]
    assert all(gap > 0 for gap in gaps)
    assert "- Planted model: how far" in text


def test_the_page_and_the_notes_have_it(files, summary):
    page = next(file for file in files if file.suffix == ".html").read_text(encoding="utf-8")
    assert page.count('<tr class="ceiling">') == 2
    share = 100 * (max(row.metric["income"].mean for row in summary.rows) - 0.5) / 0.45
    recovered = "Of its distance from a useless model the best rows recover: "
    assert f"{recovered}income {share:.0f} %" in page


def test_who_is_no_better_than_chance_recovers_nothing(tmp_path):
    store = fill(
        tmp_path,
        ("mmoe",),
        ("uniform",),
        ceiling={"income": 0.3},
        simulated=True,
        with_probes=False,
    )
    frames = load(store)
    notes = " ".join(build_table(summarise(frames, frames.blocks[0])).notes)
    assert "the best rows recover: income nothing" in notes


def test_the_terminal_has_it(simulated):
    from rich.console import Console

    console = Console(width=140, file=io.StringIO())
    groups = {run.group for run, _ in simulated.scan()}
    console.print(results_table(simulated.root, groups, 140))
    said = console.file.getvalue()
    assert "(simulated data)" in said
    assert re.search(r"planted model +ceiling +0\.9500 +0\.9961", said)
    assert "Planted model: the rule" in said


def test_json_has_it(simulated):
    all_rows = rows(ResultStore(simulated.root))
    assert all(row["simulated"] for row in all_rows)
    known = {
        (row["split"], row["task"], row["metric"]): row["ceiling"]
        for row in all_rows
        if row["ceiling"] is not None
    }
    assert known == {("test", name, "auc"): value for name, value in CEILING.items()}


def test_figures_draw_it(drawings):
    for drawing in drawings:
        lines = [
            line
            for axes in drawing.figure.axes
            for line in axes.lines
            if line.get_color() == CEILING_COLOUR
        ]
        drawn = {
            round(float(value), 6)
            for line in lines
            for value in (*line.get_xdata(), *line.get_ydata())
        }
        if drawing.name in ("metrics", "pareto"):
            assert set(CEILING.values()) <= drawn, drawing.name
            assert any("ceiling 0.9500" in text for text in texts(drawing.figure)), drawing.name
            assert "brown" in drawing.caption
        else:
            assert not lines


def test_an_old_record_without_it_takes_it_from_its_block(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,), simulated=True, with_probes=False)
    fill(
        tmp_path,
        ("ple",),
        ("uniform",),
        seeds=(0,),
        simulated=True,
        with_probes=False,
        ceiling=CEILING,
    )
    for file in store.root.rglob("record.json"):
        saved = json.loads(file.read_text())
        if not saved["cell"]["ceiling"]:
            del saved["cell"]["ceiling"]
            file.write_text(json.dumps(saved))
    [block] = load(store).blocks
    assert {task.name: task.ceiling for task in block.tasks} == CEILING


def test_axes_grow_for_a_near_ceiling_only():
    low, high = with_ceiling((0.6, 0.7), 0.75, 1.0)
    assert low == 0.6
    assert 0.75 < high < 0.8
    assert with_ceiling((0.6, 0.7), 0.9, 1.0) == (0.6, 0.7)
    assert with_ceiling((0.6, 0.7), 0.65, 1.0) == (0.6, 0.7)
    assert with_ceiling((0.6, 0.7), math.nan, 1.0) == (0.6, 0.7)
    below, high = with_ceiling((0.6, 0.7), 0.58, 1.0)
    assert below < 0.58
    assert high == 0.7


def test_an_arrow_points_at_a_ceiling_outside(summary):
    income = summary.block.tasks[0]
    assert ceiling_text(income, (0.9, 0.96)) == "ceiling 0.9500"
    assert ceiling_text(income, (0.9, 0.94)) == "ceiling 0.9500 ▶"
    assert ceiling_text(income, (0.97, 0.96), "▼▲") == "▼ ceiling 0.9500"


# --- neighbours
# -------------------------------------------------------------------------------------------------------


def test_few_positives_are_said(tmp_path):
    run = record(cell())
    run.metrics["test"]["marital"] |= {"positives": 3, "rows": 9998}
    store = ResultStore(tmp_path)
    store.save(run)
    frames = load(store)
    [said] = summarise(frames, frames.blocks[0]).warnings
    assert said.startswith(
        "Few positives in the test split: marital 3. With 3 of them the standard error"
    )
    assert "about 0.17" in said


def test_the_standard_error_is_that_of_useless_scores():
    generator = np.random.default_rng(0)
    labels = np.arange(300) < 12
    from mtlkit.data.auc import auc

    areas = [auc(generator.random(300), labels) for _ in range(3000)]
    assert np.std(areas) == pytest.approx(math.sqrt(301 / (12 * 12 * 288)), rel=0.05)


def test_files_of_an_earlier_report_are_removed_and_no_others(tmp_path):
    store = fill(tmp_path / "results", ("mmoe",), ("uniform",), seeds=(0,))
    first = write_report(store.root, tmp_path / "out")
    mine = [
        tmp_path / "out" / name
        for name in ("notes.md", "files.json", "figures/mine.py", "tables/mine.csv")
    ]
    outside = tmp_path / "outside.csv"
    for file in (*mine, outside):
        file.write_text("mine")
    for file in store.root.rglob("probes.npz"):
        file.unlink()
    listed = tmp_path / "out" / WRITTEN
    noted = json.loads(listed.read_text())
    others = [
        "../outside.csv",
        str(outside),
        "figures/../notes.md",
        7,
        "figures",
        "notes.md",
        "figures/mine.py",
        WRITTEN,
    ]
    listed.write_text(
        json.dumps({**noted, "files": [*noted["files"], *others, "tables/../../outside.csv"]})
    )
    second = write_report(store.root, tmp_path / "out")
    gone = {*first.figures, *first.tables} - {*second.figures, *second.tables}
    assert len(gone) == 2 * 4 + 3, "four figures as SVG and PNG, and the table of expert use"
    assert not any(file.exists() for file in gone)
    assert all(
        file.exists() for file in (second.page, *second.figures, *second.tables, *mine, outside)
    )
    listed.write_text("{broken")
    third = write_report(store.root, tmp_path / "out")
    files = [
        str(file.relative_to(tmp_path / "out"))
        for file in (third.page, *third.tables, *third.figures)
    ]
    assert json.loads(listed.read_text()) == {"mtlkit": 1, "files": files}


@pytest.mark.parametrize(
    "noted",
    [
        ["index.md", "tables/mine.csv"],
        {"files": ["tables/mine.csv"]},
        {"mtlkit": 2, "files": ["tables/mine.csv"]},
        {"mtlkit": 1, "files": {"tables/mine.csv": 1}},
        {"mtlkit": 1, "files": ["index.md", "./tables/mine.csv", ["tables/mine.csv"]]},
        {"mtlkit": 1},
        7,
    ],
)
def test_a_list_of_another_shape_removes_nothing(tmp_path, noted):
    """Neither a file of the user's that happens to be called like ours, nor a name that no report
    has.
    """
    store = fill(tmp_path / "results", ("mmoe",), ("uniform",), seeds=(0,), with_probes=False)
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    mine = [out / name for name in ("index.md", "tables/mine.csv")]
    for file in mine:
        file.write_text("mine")
    for name in ("files.json", WRITTEN):
        (out / name).write_text(json.dumps(noted))
    write_report(store.root, out)
    assert all(file.read_text() == "mine" for file in mine)
    assert json.loads((out / "files.json").read_text()) == noted


def test_planted_needs_no_torch():
    code = "import sys, mtlkit.data.planted; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
