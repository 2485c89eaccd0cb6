"""The page in a real browser: drawn, silent, alone, readable by mouse, by keys and by screen readers."""

import re
import shutil
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from training.config import TrainConfig
from training.job import train
from training.report.charts import COLORS
from training.report.command import command

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@dataclass
class Seen:
    """A page, and what it said and asked for."""

    page: object
    url: str
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, in a container, Chromium has no sandbox.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def look(browser):
    """A function that opens a file as a person does and waits until its charts are drawn."""
    contexts = []

    def open_page(path, scheme="light", width=1100, **options):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, **options
        )
        contexts.append(context)
        seen = Seen(context.new_page(), path.as_uri())
        seen.page.on("console", lambda message: seen.said.append(message.text))
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.goto(seen.url)
        seen.page.wait_for_function(
            "[...document.querySelectorAll('.chart')].every(chart => chart.dataset.drawn)"
        )
        return seen

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def whole(reported):
    return reported.page("--run", "latest")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_draws_every_chart_says_nothing_and_asks_for_nothing(look, whole, scheme):
    seen = look(whole, scheme)
    assert seen.said == []
    assert seen.asked == [seen.url]
    charts = seen.page.locator(".chart")
    assert charts.count() == 11
    for number in range(charts.count()):
        marks = charts.nth(number).locator("[role=graphics-symbol]:not([aria-roledescription=axis])")
        assert marks.count() > 1
        assert charts.nth(number).bounding_box()["height"] > 100


def test_what_it_would_fetch_is_refused(look, whole):
    """A value that got past the escapes could still not tell anybody."""
    seen = look(whole)
    told = seen.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', error => String(error))")
    assert "Failed to fetch" in told
    assert any("Content Security Policy" in text for text in seen.said)


def test_text_and_lines_are_those_of_the_scheme(look, whole):
    colors = {}
    for scheme in ("light", "dark"):
        page = look(whole, scheme).page
        body = page.evaluate(
            "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
        )
        axis = page.evaluate("getComputedStyle(document.querySelector('.role-axis-label text')).fill")
        assert axis == body[0]
        colors[scheme] = body
    assert colors["light"][1] == "rgb(255, 255, 255)"
    assert contrast(*colors["light"]) > 7
    assert contrast(*colors["dark"]) > 7
    assert luminance(colors["dark"][1]) < 0.02


def luminance(color):
    """Relative luminance of WCAG 2.2, of rgb(r, g, b) or #rrggbb."""
    numbers = (
        [int(color[start : start + 2], 16) for start in (1, 3, 5)]
        if color.startswith("#")
        else [int(number) for number in color.removeprefix("rgb(").removesuffix(")").split(",")]
    )
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (number / 255 for number in numbers)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#f6f7f9", "#1e2126"])
def test_colours_stand_out_from_the_cards_of_either_scheme(background):
    assert min(contrast(color, background) for color in COLORS) >= 3


def test_values_are_read_by_keys(look, whole):
    page = look(whole).page
    chart = page.locator("#collisions-2")
    reading = chart.locator("xpath=following-sibling::p[1]")
    chart.focus()
    page.keyboard.press("ArrowRight")
    first = reading.inner_text()
    assert first.startswith("traffic of: user_id; shares a slot with: user_id; share of the examples: ")
    assert chart.locator(".read").count() == 1
    page.keyboard.press("ArrowDown")
    assert reading.inner_text() not in ("", first)
    page.keyboard.press("ArrowLeft")
    assert reading.inner_text() == first
    page.keyboard.press("Tab")
    assert reading.inner_text() == ""
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    figure = page.locator("figure", has=chart)
    assert figure.locator("table").is_visible()
    assert "occupation" in figure.locator("table").inner_text()


FOCUSED = """(element => element === document.body
    ? null : element.tagName + (element.id || element.textContent.slice(0, 60)))(document.activeElement)"""


def test_a_mark_says_to_a_reader_what_it_says_under_the_mouse(look, whole):
    """Every mark but those that only help to read the others, and nothing of how it is drawn."""
    page = look(whole).page
    for name in page.eval_on_selector_all(".chart", "all => all.map(e => e.id)"):
        said = page.eval_on_selector_all(f"#{name} {MARKS}", LABELS)
        assert said
        assert not [one for one in said if "high:" in one or "end:" in one or "said" in one]
    bar = page.locator(f"#splits-2 {MARKS}").first
    bar.scroll_into_view_if_needed()
    bar.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    cells = [cell.strip(": ") for cell in tooltip.locator("td").all_inner_texts()]
    pairs = zip(cells[::2], cells[1::2], strict=True)
    told = "; ".join(map(": ".join, pairs))
    assert told == bar.get_attribute("aria-label")
    assert re.fullmatch(r"\w+: [\d-]+; split: train; examples: [\d,]+; mean label: [\d.]+", told)


MARKS = ":is(path, rect, text)[role=graphics-symbol][aria-label]"
LABELS = "all => all.map(element => element.getAttribute('aria-label'))"


def test_keys_get_everywhere(look, whole):
    """Tab alone reaches the links, every chart and every table, and never stays where it is."""
    page = look(whole).page
    wanted = page.locator("nav a, .chart, summary").count() + 1
    reached = set()
    for _ in range(4 * wanted):
        page.keyboard.press("Tab")
        element = page.evaluate(FOCUSED)
        if element is None:
            break
        reached.add(element)
    assert (
        len([one for one in reached if one.startswith(("A", "SUMMARY"))])
        >= page.locator("nav a, summary").count()
    )
    assert {
        f"DIV{name}" for name in page.eval_on_selector_all(".chart", "all => all.map(e => e.id)")
    } <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_breaks_no_rule_of_accessibility(look, whole, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = look(whole, scheme).page
    page.eval_on_selector_all("details", "all => all.forEach(details => { details.open = true; })")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_a_narrow_screen_scrolls_tables_not_the_page(look, whole):
    page = look(whole, width=400).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_probabilities_are_bars_that_stand_on_the_axis(look, tmp_path, binary_store):
    train(TrainConfig(binary_store, epochs=1, tracking=False, checkpoint_dir=tmp_path / "run"))
    words = ["--store", binary_store, "--run", tmp_path / "run", "--output", tmp_path / "page.html"]
    CliRunner().invoke(command, [*map(str, words), "--no-tracking"], catch_exceptions=False)
    page = look(tmp_path / "page.html").page
    chart = page.locator("figure", has_text="Predicted probabilities by label").locator(".chart")
    bars = [box.bounding_box() for box in chart.locator(MARKS).all()]
    feet = {round(bar["y"] + bar["height"]) for bar in bars}
    assert max(feet) - min(feet) <= 1  # but for the stroke
    assert max(bar["height"] for bar in bars) > 100


def test_a_calibration_has_one_scale_on_both_axes(look, whole):
    """Else the line on which predictions come true is at no angle that says anything."""
    page = look(whole).page
    chart = page.locator("figure", has_text="Calibration").locator(".chart")
    ticks = [
        axis.locator(".role-axis-label text").all_text_contents()
        for axis in chart.locator("[aria-roledescription=axis]").all()
    ]
    first, second = ([float(labels[0]), float(labels[-1])] for labels in ticks)
    assert first == second


def test_what_looks_like_html_is_text(look, hostile):
    seen = look(hostile.page())
    assert seen.said == []
    assert seen.asked == [seen.url]
    assert seen.page.title().startswith("Snapshot ")
    told = seen.page.locator("main").inner_text()
    assert '<img src=x onerror="document.title=' in told
    assert "</script><script>document.title='owned'</script>" in told


def test_without_scripts_the_numbers_are_there(look, browser, whole):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(whole.as_uri())
    assert page.locator("noscript").is_visible()
    page.locator("summary").first.click()
    assert page.locator("details table").first.is_visible()
    context.close()
