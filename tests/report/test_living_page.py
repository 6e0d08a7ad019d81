"""The page in a real browser: what a reader can do with it, and that it stays readable without its
script.
"""

import csv
import io
import re
import shutil
from xml.etree import ElementTree

import pytest

from mtlkit.report import write_report
from tests.fakes import fill

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra test is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")

CENSUS, SYNTHETIC = "#census-mmoe-income-marital", "#synthetic-a-b-c-1-level"
FIRST = f"{CENSUS} table.results >> nth=0"
HOSTILE = "</script><img src=x onerror=document.title='hacked'>"
FLAT = """() => [...document.querySelectorAll("figure:not([hidden]) svg[role=img]")]
    .filter(svg => svg.checkVisibility() && svg.getBoundingClientRect().height < 50).length"""
OVER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, built):
    """Opens the page; anything that the browser complains of is an error."""
    complaints, contexts = [], []

    def open_page(address=None, width=1300, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(address or built.page.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def seen(page, column, table=FIRST):
    """The texts of a column in the lines that are seen, from above."""
    return page.locator(table).evaluate(
        """(table, column) => [...table.tBodies[0].rows]
            .filter(row => row.checkVisibility() && !row.matches(".group, .ceiling"))
            .map(row => row.cells[column].innerText)""",
        column,
    )


def head(page, name, table=FIRST):
    return page.locator(table).locator("thead th").filter(has_text=re.compile(f"^{name}$"))


def in_order(texts, sign):
    """Sorted by their numbers; what has none comes last."""
    return sorted(
        texts,
        key=lambda text: (
            text == "NA",
            0 if text == "NA" else sign * float(text.split("±")[0].replace("−", "-")),
        ),
    )


def chart_of(page, section=CENSUS):
    """The chart of a section, which is drawn once it is near."""
    chart = page.locator(f"{section} figure[data-chart]")
    chart.scroll_into_view_if_needed()
    chart.locator(".point").first.wait_for()
    return chart


def clipboard(page):
    return page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(opened, scheme):
    page = opened(color_scheme=scheme)
    for width in (1600, 1300, 800, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(OVER) == 0
        assert page.evaluate(FLAT) == 0


def test_rows_are_sorted(opened):
    page = opened()
    before = seen(page, 2)
    head(page, "income AUC").get_by_role("button").click()
    assert head(page, "income AUC").get_attribute("aria-sort") == "descending"
    assert seen(page, 2) == in_order(before, -1)

    # The same by keyboard; the third time takes the order of the report back.
    page.keyboard.press("Enter")
    assert head(page, "income AUC").get_attribute("aria-sort") == "ascending"
    assert seen(page, 2) == in_order(before, 1)
    page.keyboard.press("Enter")
    assert head(page, "income AUC").get_attribute("aria-sort") is None
    assert seen(page, 2) == before


def test_what_is_missing_stays_last_and_the_planted_model_at_the_end(opened):
    page = opened()
    for _ in range(2):
        head(page, "Δm, %").get_by_role("button").click()
        assert seen(page, 1)[-1] == "mgda"
    table = f"{SYNTHETIC} table.results >> nth=0"
    head(page, "model", table).get_by_role("button").click()
    assert page.locator(table).locator("tbody tr").last.inner_text().startswith("planted model")


def test_rows_are_searched_and_filtered(opened):
    page = opened()
    page.get_by_label("Search in Results of census, protocol mmoe").fill("PLE uwl")
    assert (seen(page, 0), seen(page, 1)) == (["ple"], ["uwl"])
    assert "1 of 6 rows" in page.locator(CENSUS).inner_text()
    page.get_by_label("Search in Results of census, protocol mmoe").fill("")

    # A filter holds for all tables of the section, and for the chart.
    page.locator(f"{CENSUS} .filters summary", has_text="models").click()
    page.get_by_label("ple", exact=True).first.uncheck()
    assert set(seen(page, 0)) == {"mmoe", "single-task"}
    page.keyboard.press("Escape")
    assert chart_of(page).locator(".point").count() == 3
    page.locator(CENSUS).get_by_role("button", name="reset").click()
    assert len(seen(page, 0)) == 6


def test_columns_hide_and_rows_are_grouped(opened):
    page = opened()
    page.locator(f"{CENSUS} .menu summary", has_text="columns").first.click()
    page.locator(CENSUS).get_by_label("parameters").first.uncheck()
    assert not head(page, "parameters").is_visible()
    page.locator(CENSUS).get_by_label("group by").first.select_option("family")
    groups = page.locator(FIRST).locator("tr.group").all_inner_texts()
    assert groups == [
        "from losses (2)",
        "fixed weights (2)",
        "– (1)",
        "from inner products of gradients (1)",
    ]


def test_names_stay_while_a_table_scrolls(opened):
    page = opened(width=800)
    table = page.locator(FIRST)
    before = table.locator("tbody td").first.bounding_box()["x"]
    table.evaluate("table => { table.parentElement.scrollLeft = 200 }")
    assert table.evaluate("table => table.parentElement.scrollLeft") > 0
    assert table.locator("tbody td").first.bounding_box()["x"] == before


def test_tables_are_copied(opened):
    page = opened()
    page.get_by_label("Search in Results of census, protocol mmoe").fill("uniform")

    def copied(format):
        page.locator(f"{CENSUS} .menu summary", has_text="copy").first.click()
        page.locator(CENSUS).get_by_role("button", name=f"as {format}").first.click()
        page.locator(".toast", has_text=f"as {format} was copied").wait_for()
        return clipboard(page)

    rows = list(csv.DictReader(io.StringIO(copied("CSV"))))
    assert [(row["model"], row["balancer"]) for row in rows] == list(
        zip(seen(page, 0), seen(page, 1), strict=True)
    )
    assert [row["income AUC"] for row in rows] == seen(page, 2)
    markdown = copied("Markdown").splitlines()
    assert markdown[0].startswith("| model | balancer | income AUC | Δ income |")
    assert len(markdown) == 2 + len(rows)
    latex = copied("LaTeX")
    assert r"model & balancer & income AUC & $\Delta$ income" in latex
    assert latex.count(r"\\") == 1 + len(rows)


def test_a_point_tells_what_it_is(opened):
    page = opened()
    chart = chart_of(page)
    assert not chart.locator(".still").is_visible()
    point = chart.get_by_role("img", name=re.compile(r"^mmoe \+ uwl: "))
    point.locator("path").hover()
    text = page.locator(".tip").inner_text()
    assert "mmoe + uwl" in text
    assert "experts=8" in text
    assert "lr=0.002" in text
    lit = page.locator(f"{CENSUS} tr.lit").first
    assert lit.locator("td").all_inner_texts()[:2] == ["mmoe", "uwl"]

    # By keyboard: one stop, then from point to point.
    assert chart.locator(".point[tabindex='0']").count() == 1
    chart.locator(".point[tabindex='0']").focus()
    names = set()
    for _ in range(5):
        names.add(page.evaluate("document.activeElement.getAttribute('aria-label').split(':')[0]"))
        page.keyboard.press("ArrowRight")
    assert len(names) == 5


def test_a_name_in_a_drawing_tells_its_row(opened):
    page = opened()
    figure = page.locator(f"{CENSUS} figure[data-name$=metrics]")
    figure.scroll_into_view_if_needed()
    figure.locator("text", has_text=re.compile(r"^ple \+ uwl$")).first.hover()
    assert "ple + uwl" in page.locator(".tip").inner_text()


def test_axes_are_switched(opened):
    page = opened()
    chart = chart_of(page)
    for name in ("train seconds", "parameters", "peak memory, bytes", "marital AUC"):
        chart.get_by_label("across").select_option(name)
        assert name in chart.locator(".living > svg").get_attribute("aria-label")
        assert chart.locator(".point").count() == 5
    chart.get_by_label("up", exact=True).select_option("Δm, %")
    chart.get_by_label("show").select_option("seeds")
    assert chart.locator("g[data-row] line").count() == 0
    chart.get_by_label("show").select_option("intervals")
    assert chart.locator("g[data-row] line").count() > 0
    assert chart.locator("g[data-row] circle:not(.halo)").count() == 0


def test_a_link_holds_the_view(opened):
    page = opened()
    head(page, "marital AUC").get_by_role("button").click()
    page.get_by_label("Search in Results of census, protocol mmoe").fill("u")
    chart = chart_of(page)
    chart.get_by_label("across").select_option("train seconds")
    page.get_by_label("theme").select_option("dark")
    page.locator(CENSUS).get_by_role("button", name="copy link to this view").click()
    page.locator(".toast").wait_for()
    other = opened(clipboard(page))
    assert seen(other, 0) == seen(page, 0)
    assert seen(other, 2) == seen(page, 2)
    assert head(other, "marital AUC").get_attribute("aria-sort") == "descending"
    assert chart_of(other).get_by_label("across").input_value() == "train seconds"
    assert other.locator("html").get_attribute("data-theme") == "dark"


def test_data_sets_are_chosen_in_the_overview(opened):
    page = opened()
    assert page.locator(".overview tbody tr").count() == 2
    page.locator("header .menu summary").click()
    page.get_by_role("checkbox", name="synthetic (simulated data)").uncheck()
    assert not page.locator(SYNTHETIC).is_visible()
    assert page.locator(".overview tbody tr:visible").count() == 1


def luminance(colour):
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    ]
    return sum(
        weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out(opened, theme):
    page = opened(color_scheme="dark" if theme == "light" else "light")
    page.get_by_label("theme").select_option(theme)
    colour = """name => { const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(--${name})`; return getComputedStyle(probe).color }"""
    grounds = [
        luminance(page.evaluate(colour, name)) for name in ("paper", "shade", "warn", "mark")
    ]
    assert (grounds[0] > 0.5) == (theme == "light")
    for name in ("ink", "muted", "accent", "worse"):
        text = luminance(page.evaluate(colour, name))
        ratios = [(max(text, ground) + 0.05) / (min(text, ground) + 0.05) for ground in grounds]
        assert min(ratios) >= 4.5, (name, ratios)


def test_controls_have_names(opened):
    page = opened()
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, select, input, summary")]
        .filter(node => !(node.getAttribute("aria-label") || node.textContent.trim()
            || node.closest("label")?.textContent.trim())).length""")
    assert nameless == 0


def test_figures_are_downloaded(opened, tmp_path):
    page = opened()
    for name in ("pareto", "metrics"):
        figure = page.locator(f"{CENSUS} figure[data-name$={name}]")
        figure.scroll_into_view_if_needed()
        for format in ("SVG", "PNG"):
            with page.expect_download() as download:
                figure.get_by_role("button", name=re.compile(f"as {format}$")).click()
            assert download.value.suggested_filename.endswith(f"{name}.{format.lower()}")
            download.value.save_as(tmp_path / name)
            content = (tmp_path / name).read_bytes()
            if format == "PNG":
                assert content.startswith(b"\x89PNG")
            else:
                ElementTree.fromstring(content)
                assert b"var(" not in content


def test_one_task_is_set_against_costs(opened, tmp_path):
    fill(tmp_path, ("mmoe",), ("uniform", "uwl"), seeds=(0, 1), tasks=["income"], with_probes=False)
    page = opened(write_report(tmp_path).page.as_uri())
    chart = chart_of(page, "#census-mmoe-income")
    chart.get_by_label("up", exact=True).select_option("parameters")
    assert chart.locator(".point").count() == 3
    with page.expect_download() as download:
        chart.get_by_role("button", name=re.compile("as SVG$")).click()
    assert download.value.suggested_filename == "census-mmoe-income-chart.svg"


def test_what_fixed_weights_reach_is_a_band(opened, tmp_path):
    weights = ["uniform", "static[w=0.667:1.33]", "static[w=1.33:0.667]"]
    fill(tmp_path, ("mmoe",), [*weights, "uwl"], seeds=(0, 1), with_probes=False)
    page = opened(write_report(tmp_path).page.as_uri())
    chart = chart_of(page)
    chart.get_by_label("fit").select_option("all")
    band, line = chart.locator("path.sweep").all()
    assert chart.locator("span", has_text="fixed weights, mmoe").count() == 1

    # The line goes through the weightings that no other one dominates, as its corners.
    places = {}
    for label in ("single-task", *(f"mmoe + {name}" for name in (*weights, "uwl"))):
        point = chart.locator(f".point[aria-label^='{label}:']")
        places[label] = tuple(map(float, re.findall(r"[-.\d]+", point.get_attribute("transform"))))
    fixed = [places[f"mmoe + {name}"] for name in weights]
    front = {
        (x, y)
        for x, y in fixed
        if not any(u >= x and v <= y and (u, v) != (x, y) for u, v in fixed)
    }
    corners = {
        tuple(map(float, corner.split(",")))
        for corner in re.split("[MLZ]", line.get_attribute("d"))
        if corner
    }
    assert front <= corners
    assert not (set(places.values()) - front) & corners
    assert band.get_attribute("d").endswith("Z")

    # Without the seeds there is no band.
    chart.get_by_label("show").select_option("means")
    assert chart.locator("path.sweep").count() == 1
    chart.get_by_label("show").select_option("both")

    # It is gone beside costs, and when too few of its weightings are left.
    chart.get_by_label("across").select_option("parameters")
    assert chart.locator("path.sweep").count() == 0
    chart.get_by_label("across").select_option("income AUC")
    assert chart.locator("path.sweep").count() == 2
    page.get_by_label("Search in Results of census, protocol mmoe").fill("static")
    chart.locator(".point").nth(1).wait_for()
    assert chart.locator("path.sweep").count() == 0


def pages_of(pdf):
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_it_prints(opened):
    page = opened()
    figure = chart_of(page)
    assert pages_of(page.pdf(format="A4")) > 3
    page.emulate_media(media="print")
    assert page.locator(f"{CENSUS} .still").first.is_visible()
    assert not page.locator(".living").first.is_visible()
    assert not page.locator(".tools").first.is_visible()

    # A figure alone, as PDF: one sheet with nothing else.
    page.emulate_media(media="screen")
    page.evaluate("window.print = () => { window.asked = true }")
    figure.get_by_role("button", name=re.compile("as PDF$")).click()
    assert page.evaluate("window.asked")
    page.emulate_media(media="print")
    assert figure.locator(".living").is_visible()
    assert not page.locator("h1").is_visible()
    assert pages_of(page.pdf(format="A4")) == 1


def test_it_is_read_without_script(opened):
    page = opened(java_script_enabled=False)
    assert page.locator(FIRST).locator("tbody tr").count() == 6
    assert page.locator(f"{CENSUS} .still svg").first.is_visible()
    assert page.locator("figure[data-chart][hidden]").count() == 0
    assert page.locator(".tools").count() == 0


def test_names_do_nothing(opened, tmp_path):
    fill(
        tmp_path,
        (HOSTILE, "mmoe"),
        (HOSTILE, "uwl"),
        seeds=(0, 1),
        dataset=HOSTILE,
        tasks=[HOSTILE, "b"],
    )
    page = opened(write_report(tmp_path).page.as_uri())
    page.locator("figure[data-chart]").first.scroll_into_view_if_needed()
    page.locator("figure[data-chart] .point path").nth(1).hover()
    page.locator(".menu summary", has_text="balancers").click()
    assert page.title().startswith("mtlkit report")
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("table.results").first.inner_text()
