"""Tables for a paper: what they say, and that they fit a column of text as they stand."""

import re
import shutil
import subprocess

import pytest

from mtlkit.errors import UsageError
from mtlkit.report import write_report
from mtlkit.report.frame import load
from mtlkit.report.latex import WIDTH, paper_tables, tex, to_tex
from mtlkit.report.summary import summarise
from mtlkit.report.tables import Table, TableCell, build_table
from mtlkit.report.verdicts import judge, verdict_table
from mtlkit.store import ResultStore
from tests.fakes import fill

SWEEP = ("uniform", "static[w=0.5:1.5]", "static[w=1.5:0.5]", "uwl", "mgda")
MANY = [f"task-number-{index}" for index in range(9)]


@pytest.fixture(scope="module")
def summaries(grid):
    frames = load(ResultStore(grid))
    return {block.name: summarise(frames, block) for block in frames.blocks}


@pytest.fixture(scope="module")
def long_and_wide(tmp_path_factory):
    """Rows for more than a page, and tasks for more than a column; each with its verdicts."""
    root = tmp_path_factory.mktemp("results")
    models = ("shared-bottom", "mmoe", "ple", "cgc", "omoe")
    fill(root, models, (*SWEEP, *[f"static[w=1:{n}]" for n in range(2, 7)]), with_probes=False)
    fill(root, ("mmoe",), ("uniform", "uwl"), tasks=MANY, dataset="wide", with_probes=False)
    frames = load(ResultStore(root))
    texts = {}
    for block in frames.blocks:
        summary = summarise(frames, block)
        verdicts = [verdict_table(summary, found) for found in judge(frames, summary)]
        texts[block.name] = "".join([paper_tables(summary), *map(to_tex, verdicts[:1])])
    return texts


def test_it_is_balanced_and_escaped(summaries, long_and_wide):
    texts = [paper_tables(summary) for summary in summaries.values()]
    for text in (*texts, *long_and_wide.values()):
        assert text.count(r"\begin{") == text.count(r"\end{")
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert text.isascii()
        assert r"\resizebox" not in text
        assert r"\tiny" not in text
    assert r"a \& b" in texts[1]
    assert tex("50 % of a_b") == r"50 \% of a\_b"


def test_metrics_and_costs_are_two_tables(summaries):
    text = paper_tables(summaries["census"])
    metrics, costs = text.split(r"\end{\mtlkittable}")[:2]
    assert r"\shortstack[r]{income\\AUC}" in metrics
    assert r"$\Delta$m, \%" in metrics
    assert "parameters" not in metrics
    assert "parameters" in costs
    assert r"\shortstack[r]{train s}" in costs
    assert r"\Delta$ income" not in text


def test_numbers_meet_at_the_point(summaries):
    row = next(row for row in summaries["census"].rows if row.group.label == "mmoe + uniform")
    metric = row.metric["income"]
    whole, fraction = f"{metric.mean:.4f}".split(".")
    half = f"{metric.half:.4f}".removeprefix("0")
    text = paper_tables(summaries["census"])
    assert rf"& {whole} & .{fraction}${{\pm}}${half}" in text
    assert "r@{}lr@{}l" in text


def test_every_number_of_the_table_is_there(summaries):
    table = build_table(summaries["census"])
    text = paper_tables(summaries["census"])
    for cells in table.rows:
        metric = cells[2].text.split(" ± ")[0].replace("−", "$-$")
        assert metric.partition(".")[2] in text
        assert tex(cells[table.columns.index("parameters")].text) in text


def test_parts_say_which_they_are(long_and_wide):
    captions = re.findall(r"\\caption{wide[^}]*}", long_and_wide["wide"])
    parts = len(captions) - 1  # the last one is of the costs
    assert parts > 2
    for number, caption in enumerate(captions[:-1], 1):
        assert f"(part {number} of {parts})" in caption
    for task in MANY:
        assert long_and_wide["wide"].count(rf"\shortstack[r]{{{task}\\AUC}}") == 1


def test_a_long_table_breaks(long_and_wide):
    assert r"\begin{longtable}" in long_and_wide["census"]
    assert r"\endhead" in long_and_wide["census"]
    assert r"\begin{longtable}" not in long_and_wide["wide"]


def shown_labels(text):
    """Model and balancer of each line of the first table."""
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].replace(r"\allowbreak{}", "")
    return re.findall(r"^\\raggedright (\S+) & \\raggedright (\S+) ", body, re.MULTILINE)


def test_rows_are_chosen_by_name_and_by_rank(summaries):
    summary = summaries["census"]
    ranked = [row for row in summary.rows if not row.reference_of]
    single = ("single-task", "--")

    def chosen(patterns, top=None):
        return shown_labels(paper_tables(summary, patterns, top))

    assert len(chosen(())) == len(summary.rows)
    best = [(row.group.model, row.group.balancer) for row in ranked[:2]]
    assert sorted(chosen((), top=2)) == sorted([*best, single])
    assert sorted(chosen(("ple + *", "*+uwl"))) == [
        ("mmoe", "uwl"), ("ple", "mgda"), ("ple", "uniform"), ("ple", "uwl"), single
    ]  # fmt: skip
    first = next(row for row in ranked if row.group.model == "ple")
    assert sorted(chosen(("ple+*",), top=1)) == sorted([("ple", first.group.balancer), single])
    text = paper_tables(summary, ("ple+*",), 1)
    assert f"Shown are 2 of {len(summary.rows)} rows." in text
    assert "Shown are" not in paper_tables(summary)


def test_a_pattern_takes_brackets_as_they_are(tmp_path):
    fill(tmp_path, ("mmoe",), SWEEP, with_probes=False)
    frames = load(ResultStore(tmp_path))
    text = paper_tables(summarise(frames, frames.blocks[0]), ["mmoe+static[w=0.5:1.5]"])
    assert "0.5:" in text
    assert "uwl" not in text


def test_a_pattern_without_a_row_is_an_error(grid, tmp_path):
    with pytest.raises(UsageError, match=r"No row matches 'mmo\+\*'") as caught:
        write_report(grid, tmp_path / "out", rows=["ple+*", "mmo+*"])
    assert "mmoe + uniform" in caught.value.hint
    files = write_report(grid, tmp_path / "out", rows=["ple+*"])  # one data set has no such row
    for file in files.tables:
        if file.name == "census-mmoe-income-marital.tex":
            assert {model for model, _ in shown_labels(file.read_text())} == {"single-task", "ple"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_it_compiles_and_fits(long_and_wide, summaries, tmp_path, columns):
    sentence = "A sentence of many words, and mtlkit bench '-d' --tasks " + ",".join(MANY)
    cells = tuple(TableCell(text) for text in ("a rule", sentence, sentence))
    findings = Table(
        "findings", ("finding", "evidence", "to type"), (cells,), (),
        texts=("to type",), commands=("to type",),
    )  # fmt: skip
    assert r"\raggedright \texttt{A sentence" in to_tex(findings)
    texts = [paper_tables(summaries["census"], ["*+uwl"], 1), long_and_wide["wide"]]
    cells = tuple(TableCell(text) for text in ("CLKM7", "NAPM7", "hierarchical", "0.51", sentence))
    columns_of_pairs = ("task", "other", "verdict", "gain of task, %", "evidence")
    relations = Table(
        "pairs", columns_of_pairs, (cells,), (), texts=("verdict", "evidence"), aside=("evidence",)
    )
    assert sentence[:20] not in to_tex(relations)
    texts += [paper_tables(summaries["synthetic"]), to_tex(findings), to_tex(relations)]
    if columns == "onecolumn":  # there is no longtable on two columns
        texts.append(long_and_wide["census"])
    wide = r"\newcommand{\mtlkittable}{table*}" if columns == "twocolumn" else ""
    document = "\n\\clearpage\n".join(texts)
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass[10pt,{columns}]{{article}}\usepackage{{booktabs,longtable}}{wide}"
        rf"\begin{{document}}\typeout{{room \the\textwidth}}{document}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert "Overfull" not in ended.stdout
    assert f"room {WIDTH}.0pt" in ended.stdout or columns == "twocolumn"
