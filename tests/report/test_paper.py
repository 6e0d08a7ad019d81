"""Figures for a paper: the width that was asked for, no small letter, nothing cut off or covered."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from sklearn.metrics import roc_auc_score

from mtlkit.report.curves import curves_by_group
from mtlkit.report.figures import FIGURES, draw_all, trials
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.ranks import draw_ranks
from mtlkit.report.figures.style import PAPER_DPI, RC, SMALLEST, WIDTH
from mtlkit.report.frame import load
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.relations import find_relations
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, noise, probes, record
from tests.report.test_across import across, planted
from tests.report.test_importance import summary as tuned

MODELS = ("shared-bottom", "mmoe", "ple")
BALANCERS = ("uniform", "uwl", "pcgrad", "static[w=0.667:1.33]", "static[w=1.33:0.667]")
TASKS = {
    "two": ("income", "marital"),
    "many": tuple(f"a task with a long name {n}" for n in range(1, 6)),
}
WIDTHS = (3.3, 7.0, WIDTH)
KINDS = {
    "metrics", "pareto", "published", "calibration", "learning", "cosine-end", "cosine-run",
    "conflict", "gates", "ablation", "gate-entropy", "weights",
}  # fmt: skip
"""All but those of many tasks, of tuning, and across data sets."""
LEEWAY = 1.5
"""Points by which boxes of texts may meet: they hold room above and below the letters."""


def fill(root, tasks):
    """A grid that every figure has something to say of."""
    store = ResultStore(root)
    pairs = [(model, balancer) for model in MODELS for balancer in BALANCERS]
    for model, balancer in [("single-task", "none"), *pairs]:
        for seed in range(3):
            one = cell(model, balancer, seed, tasks=tasks, training={"batch_size": 1024})
            arrays = probes(one)
            if model == "mmoe":
                arrays["ablation/level-1"] = noise(one.key).normal(0, 0.01, (8, len(tasks)))
                arrays["ablation/level-1/experts"] = np.array([f"expert {n}" for n in range(1, 9)])
            made = record(one).model_copy(update={"curve": curve(one, tasks)})
            kept = {"probes": arrays} if model != "single-task" else {}
            rows = scores(one, tasks)
            for task in tasks:
                auc = roc_auc_score(rows[f"label/{task}"], rows[f"score/{task}"])
                made.metrics["test"][task]["auc"] = auc
            store.save(made, kept | {"scores": rows})
    return store


def curve(one, tasks):
    """Ten evaluation points that rise."""
    aucs = 0.9 - 0.4 * np.exp(-np.arange(1, 11) / 2) + noise(one.key).normal(0, 0.002, 10)
    return [
        {
            "step": 100 * (point + 1),
            "epoch": 0.6 * (point + 1),
            "train_loss": dict.fromkeys(tasks, 0.5),
            "validation": {task: {"auc": float(auc), "logloss": 0.5} for task in tasks},
        }
        for point, auc in enumerate(aucs)
    ]


def scores(one, tasks):
    """Log-odds and labels of 4000 test rows, the same labels in all runs."""
    arrays = {}
    for task in tasks:
        logits = noise(task).normal(-1, 1.2, 4000)
        labels = noise(task, "label").random(4000) < 1 / (1 + np.exp(-logits))
        arrays[f"score/{task}"] = logits + noise(one.key, task).normal(0, 0.3, 4000)
        arrays[f"label/{task}"] = labels * 1.0
    return arrays


def context_of(root):
    frames = load(ResultStore(root))
    block = frames.blocks[0]
    summary = summarise(frames, block)
    found = load_probes(frames, block).by_group
    relations = find_relations(frames, summary, found)
    look = Look.of([summary])
    return Context(summary, found, look, curves_by_group(frames, block), relations)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """By number of tasks: the context, at the page's width."""
    root = tmp_path_factory.mktemp("paper")
    return {name: context_of(fill(root / name, tasks).root) for name, tasks in TASKS.items()}


@pytest.fixture(scope="module")
def drawn(contexts, tmp_path_factory):
    """Width and number of tasks to the drawings; those of tuning and across data sets as well."""
    planted(root := tmp_path_factory.mktemp("across"))
    summary = tuned(lambda settings, draw: settings["lr"])
    found = {}
    for width in WIDTHS:
        for name, context in contexts.items():
            found[width, name] = list(draw_all(context.at(width)))
        with mpl.rc_context(RC):
            found[width, "trials"] = trials.draw(Context(summary, {}, Look({}, {}), width=width))
        found[width, "across"] = [draw_ranks(across(root), width)]
    return found


def test_every_figure_is_looked_at(drawn):
    for width in WIDTHS:
        names = {drawing.name for drawing in drawn[width, "two"]}
        assert {name.removesuffix("-mmoe").removesuffix("-ple") for name in names} == KINDS
        assert "similarity" in {drawing.name for drawing in drawn[width, "many"]}
        assert len(drawn[width, "trials"]) == len(drawn[width, "across"]) == 1
    assert len(FIGURES) == len(KINDS) + 2  # similarity and trials


@pytest.mark.parametrize("grid", [*TASKS, "trials", "across"])
@pytest.mark.parametrize("width", WIDTHS)
def test_letters_can_be_read(drawn, width, grid):
    for drawing in drawn[width, grid]:
        figure = drawing.figure
        assert figure.get_figwidth() == width
        texts = texts_of(figure)
        sizes = {text.get_text(): text.get_fontsize() for text, _ in texts}
        assert min(sizes.values()) >= SMALLEST, (drawing.name, sizes)
        room = Bbox.from_bounds(0, 0, figure.get_figwidth() * 72, figure.get_figheight() * 72)
        cut = [text.get_text() for text, box in texts if not holds(room, box)]
        assert not cut, (drawing.name, cut)
        covered = [
            (one.get_text(), other.get_text())
            for (one, first), (other, second) in combinations(texts, 2)
            if meet(first, second) and not (is_slanted(one) or is_slanted(other))
        ]
        assert not covered, (drawing.name, covered)


def texts_of(figure):
    """The texts that are drawn, with their boxes in points."""
    figure.set_dpi(288)  # 4 dots a point: at fewer, letters stand where the dots are
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = []
    for text in texts:
        box = Text.get_window_extent(text)  # without the line of a label
        boxes.append((text, Bbox(box.get_points() / 4)))
    ticks = hidden_ticks(figure)
    return [(text, box) for text, box in boxes if text not in ticks and box.width > 0]


def hidden_ticks(figure):
    """Labels of ticks beyond the ends of an axis, which are not drawn."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                outside = not low - slack <= tick.get_loc() <= high + slack
                if outside or not axes.axison:
                    hidden |= {tick.label1, tick.label2}
    return hidden


def holds(room, box):
    return (
        box.x0 >= room.x0 - 0.5
        and box.y0 >= room.y0 - LEEWAY
        and box.x1 <= room.x1 + 0.5
        and box.y1 <= room.y1 + LEEWAY
    )


def is_slanted(text):
    return text.get_rotation() % 90 != 0


def meet(one, other):
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > 0.5 and height > 2 * LEEWAY


@pytest.fixture(scope="module")
def at_column(tmp_path_factory):
    """A report whose files of figures are as wide as a column."""
    store = fill(tmp_path_factory.mktemp("column"), TASKS["two"])
    return write_report(store.root, width="column", formats=("png", "pdf"))


def test_every_file_has_the_width_that_was_asked_for(at_column):
    widths = {"svg": set(), "png": set(), "pdf": set()}
    for file in at_column.figures:
        data = file.read_bytes()
        if file.suffix == ".svg":
            widths["svg"].add(float(re.search(rb'<svg[^>]* width="([\d.]+)pt"', data)[1]) / 72)
        elif file.suffix == ".png":
            widths["png"].add(int.from_bytes(data[16:20], "big") / PAPER_DPI)
        else:
            widths["pdf"].add(float(re.search(rb"/MediaBox \[ *0 0 ([\d.]+)", data)[1]) / 72)
    for found in widths.values():
        assert found
        assert max(abs(width - 3.3) for width in found) < 0.005


def test_figures_of_the_page_keep_their_width_and_title(at_column):
    page = at_column.page.read_text("utf-8")
    views = {float(width) / 72 for width in re.findall(r'viewBox="0 0 ([\d.]+) ', page)}
    assert WIDTH in {round(width, 2) for width in views}
    assert 3.3 not in {round(width, 2) for width in views}
    [file] = [file for file in at_column.figures if file.name.endswith("-learning.svg")]
    assert ">Learning curves</text>" in page
    assert ">Learning curves</text>" not in file.read_text("utf-8")


@pytest.mark.parametrize(("asked", "inches"), [("column", 3.3), ("text", 7.0), ("4.5", 4.5)])
def test_widths_have_names(asked, inches):
    assert paper_width(asked) == inches


@pytest.mark.parametrize("asked", ["page", "2.9", "21", "nan", "-3.3", ""])
def test_a_width_that_no_figure_can_have_is_refused(asked, cli, tmp_path):
    with pytest.raises(UsageError, match="it is column, text, or inches from 3 to 20"):
        paper_width(asked)
    ResultStore(tmp_path).save(record(cell()))
    refused = cli("report", tmp_path, "--width", asked, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "hint: mtlkit report results --width column" in refused.err
    assert not (tmp_path / "out" / "index.html").exists()
