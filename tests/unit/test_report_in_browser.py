"""The page in a browser: nothing goes wrong in it, and every control changes what is shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from paper_run import paper_page
from synthetic_run import FOUR, KINDS, make_run

from repmode_cl.report import comparison_table, to_csv
from repmode_cl.report.page import build_report
from repmode_cl.results import ResultsTable, read_run_info
from repmode_cl.structures import TWELVE_STRUCTURES

pytestmark = pytest.mark.skipif(chromium() is None, reason="chromium is not installed")

STREAMS = {"order-0": FOUR, "order-1": (FOUR[0], FOUR[2], FOUR[1])}
STRATEGIES = {**KINDS, "experts_frozen_100steps": "experts_frozen"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    return build_report(make_run(folder, streams=STREAMS, kinds=STRATEGIES, seeds=range(6)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    assert path is not None
    with Browser(path) as opened:
        yield opened


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.open(page)
    browser.until("document.querySelectorAll('#volumes canvas').length > 0")
    yield browser
    assert browser.problems == []


def texts(browser: Browser, selector: str) -> list[str]:
    """Return the texts of all visible elements that match; of a hidden group of an SVG, Chromium says it is visible."""
    visible: list[str] = browser.run(
        f"[...document.querySelectorAll({selector!r})].filter((e) => e.checkVisibility() && !e.closest('[hidden]'))"
        ".map((e) => e.textContent)"
    )
    return visible


def pixels(browser: Browser, selector: str) -> str:
    shown: str = browser.run(f"document.querySelector({selector!r}).toDataURL()")
    return shown


def select(browser: Browser, identifier: str, value: str) -> None:
    """Choose an option, as a change by hand does."""
    browser.run(
        f"{{ const e = document.getElementById({identifier!r}); e.value = {value!r};"
        "e.dispatchEvent(new Event('change')); }"
    )


@pytest.fixture(scope="module")
def page_of_ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiences = (TWELVE_STRUCTURES[:10], *((name,) for name in TWELVE_STRUCTURES[10:]))
    folder = tmp_path_factory.mktemp("ten") / "run"
    return build_report(make_run(folder, experiences=experiences, seeds=(0,)))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_a_joint_base_of_ten_structures_fits_its_window(
    browser: Browser, page_of_ten: Path, width: int
) -> None:
    browser.open(page_of_ten, width)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_fits_its_window_without_an_error(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark=dark)
    browser.until("document.querySelectorAll('#volumes canvas').length > 0")
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    # Only what scrolls by itself may be wider than the window: tables and heat maps.
    outside = browser.run(
        "[...document.querySelectorAll('main *, header *, .controls *')].filter((e) => e.checkVisibility()"
        " && !e.closest('.wide, svg') && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"
    )
    assert outside == []
    background = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(background) < 100) is dark


def test_without_its_script_the_page_shows_a_first_view(browser: Browser, page: Path) -> None:
    browser.open(page, script=False)
    assert texts(browser, "table[data-table=strategies] tbody th .keyed") == list(STRATEGIES)
    assert len(texts(browser, "#forgetting svg.chart")) == 3
    assert len(texts(browser, "#learning svg.chart")) == 4
    assert len(texts(browser, "#maps table")) == len(STRATEGIES)
    assert len(texts(browser, "#pictures img")) == 2 * (2 + len(STRATEGIES))
    assert len(texts(browser, "#gates .bar")) > 0
    # A control that does nothing is not offered.
    assert texts(browser, "button, input, .controls select, #volume-structure") == []
    assert browser.problems == []


def test_a_strategy_is_hidden_and_shown_everywhere(opened: Browser) -> None:
    places = {
        "table[data-table=strategies] tbody th .keyed": 1,
        "table[data-table=costs] tbody th .keyed": 1,
        "table[data-table=structures] thead .key": 1,
        "table[data-table=comparisons] tbody tr": 1,
        "#forgetting .legend span": 1,
        "#maps figure": 1,
        "#forgetting-charts figure:first-child path.line": 1,
        "#learning-charts figure:first-child path.line": 1,
        "#volumes .difference": 1,
    }
    before = {place: len(texts(opened, place)) for place in places}
    opened.click("[data-chip='1']")  # fine-tuning
    opened.until("!document.querySelector('#volumes [data-key=fine_tuning]')")
    after = {place: len(texts(opened, place)) for place in places}
    assert after == {place: before[place] - less for place, less in places.items()}
    assert "fine_tuning" not in texts(opened, "table[data-table=comparisons] td.left")
    opened.click("#no-strategy")
    assert "No strategy is chosen." in texts(opened, ".empty")
    opened.click("#all-strategies")
    opened.until("document.querySelectorAll('#volumes .difference').length === 4")
    assert {place: len(texts(opened, place)) for place in places} == before


def test_the_frame_follows_what_is_on_view(opened: Browser) -> None:
    """Fine-tuning falls far below the others; without it, their differences are to be seen."""
    lowest = "document.querySelector('#forgetting-charts .tick').textContent"
    before = opened.run(lowest)
    opened.click("[data-chip='1']")
    assert opened.run(lowest) != before


def test_the_structure_chosen_is_the_only_one(opened: Browser) -> None:
    averaged = texts(opened, "table[data-table=comparisons] tbody small")
    select(opened, "structure", "mitochondria")
    opened.until("view.structure === 'mitochondria'")
    assert texts(opened, "#forgetting-charts figcaption") == ["mitochondria"]
    assert texts(opened, "#learning-charts figcaption") == ["mitochondria"]
    assert texts(opened, "table[data-table=structures] tbody th") == ["mitochondriaadded"]
    assert set(texts(opened, "#maps thead th:not(:first-child)")) == {"mitochondria"}
    assert texts(opened, "table[data-table=comparisons] tbody small") != averaged
    assert opened.run("document.getElementById('volume-structure').value") == "mitochondria"
    select(opened, "structure", "")
    assert len(texts(opened, "#learning-charts figure")) == 4


def test_the_paper_is_shown_of_the_structure_and_strategies_chosen(browser: Browser, tmp_path: Path) -> None:
    browser.open(paper_page(tmp_path), 400)
    rows = "table[data-table=paper] tbody tr"
    averaged = texts(browser, rows)
    assert len(averaged) == 3
    select(browser, "structure", "nucleolus")
    browser.until("view.structure === 'nucleolus'")
    assert (
        browser.run(f"[...document.querySelectorAll({rows!r})].map((e) => e.dataset.structure)")
        == ["nucleolus"] * 3
    )
    assert texts(browser, rows) != averaged
    assert texts(browser, "#side-by-side figcaption") == ["nucleolus"]
    assert texts(browser, ".gate-figures figcaption") == ["nucleolus"]
    browser.run("document.querySelector('[data-chip=\"0\"]').click()")
    assert len(texts(browser, rows)) == 2
    assert texts(browser, ".gate-figures summary") == []
    # Two pictures a row on a narrow window, and nothing wider than it.
    assert browser.run("document.documentElement.scrollWidth") <= 400
    assert browser.problems == []


def test_metric_and_stream_change_tables_and_charts(opened: Browser) -> None:
    places = (
        "#maps table",
        "table[data-table=structures]",
        "table[data-table=comparisons]",
    )
    before = {place: texts(opened, place) for place in places}
    lines = (
        "[...document.querySelectorAll('#learning-charts path.line')].map((e) => e.getAttribute('d')).join()"
    )
    drawn = opened.run(lines)
    opened.click("[data-pick='pearson']")
    assert all(texts(opened, place) != before[place] for place in places)
    assert set(texts(opened, "[data-metric-name]")) == {"Pearson r"}
    opened.click("[data-pick='mse']")
    assert opened.run(lines) != drawn
    opened.click("[data-pick='r2']")
    assert {place: texts(opened, place) for place in places} == before
    select(opened, "scope", "2")
    assert texts(opened, "#maps figure:first-child tbody th")[1:] == ["1: + nucleolus", "2: + mitochondria"]
    assert set(texts(opened, "[data-stream-name]")) == {"Charts of order 1."}
    assert texts(opened, "table[data-table=strategies]") != []
    select(opened, "scope", "0")
    assert {place: texts(opened, place) for place in places} == before


def test_slices_move_and_the_difference_is_drawn(opened: Browser) -> None:
    truth, prediction = "[data-key=truth] .xy", "[data-key=fine_tuning] .xy"
    shown = {kind: pixels(opened, f"[data-key=fine_tuning] .{kind}") for kind in ("xy", "xz", "difference")}
    assert len({*shown.values(), pixels(opened, truth)}) == 4
    opened.run("document.getElementById('slice-z').focus()")
    opened.press("ArrowLeft", 37)
    assert opened.run("view.z") == opened.run("view.stack.facts.start[0]") - 1
    assert pixels(opened, prediction) != shown["xy"]
    assert pixels(opened, "[data-key=fine_tuning] .difference") != shown["difference"]
    assert pixels(opened, "[data-key=fine_tuning] .xz") == shown["xz"]
    opened.run("document.getElementById('slice-y').focus()")
    opened.press("ArrowRight", 39)
    assert pixels(opened, "[data-key=fine_tuning] .xz") != shown["xz"]
    before = pixels(opened, truth)
    select(opened, "volume-structure", "nucleolus")
    opened.until("view.structure === 'nucleolus'")
    assert pixels(opened, truth) != before


def test_truth_and_predictions_have_one_contrast_and_differences_their_sign(opened: Browser) -> None:
    """Wherever two have the same value, they have the same grey; a prediction below the truth is blue."""
    wrong = opened.run("""(() => {
      const { facts, levels } = view.stack;
      const plane = facts.size[1] * facts.size[2];
      const of = (key, kind) => {
        const canvas = document.querySelector(`[data-key=${key}] .${kind}`);
        return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      };
      const greys = new Map();
      let wrong = 0;
      for (const key of ["truth", "experts_frozen", "fine_tuning"]) {
        const shown = of(key, "xy");
        for (let k = 0; k < plane; k += 1) {
          const level = levels.get(key)[view.z * plane + k];
          if (greys.has(level) && greys.get(level) !== shown[4 * k]) wrong += 1;
          greys.set(level, shown[4 * k]);
        }
      }
      const colours = of("fine_tuning", "difference");
      for (let k = 0; k < plane; k += 1) {
        const at = view.z * plane + k;
        const less = levels.get("fine_tuning")[at] - levels.get("truth")[at];
        const [red, , blue] = colours.slice(4 * k, 4 * k + 3);
        if (less < 0 ? red > blue : less > 0 ? red < blue : red + blue) wrong += 1;
      }
      return [wrong, greys.size];
    })()""")
    assert wrong[0] == 0
    assert wrong[1] > 20


def test_tables_are_sorted_by_their_headings_by_hand_and_by_keyboard(opened: Browser) -> None:
    titles = "table[data-table=strategies] tbody th .keyed"
    head = "table[data-table=strategies] th:nth-child(2)"
    values = f"{head.replace(' th', ' tbody td')}"
    assert texts(opened, titles) == list(STRATEGIES)
    opened.click(f"{head} button")
    assert opened.run(f"document.querySelector({head!r}).ariaSort") == "descending"
    first = [float(text.split("±")[0]) for text in texts(opened, values)]
    assert first == sorted(first, reverse=True)
    opened.press("Enter", 13, "\r")  # the heading kept the focus
    assert opened.run(f"document.querySelector({head!r}).ariaSort") == "ascending"
    assert [float(text.split("±")[0]) for text in texts(opened, values)] == first[::-1]
    opened.press("Enter", 13, "\r")
    assert texts(opened, titles) == list(STRATEGIES)
    opened.click("table[data-table=strategies] th:first-child button")
    assert texts(opened, titles) == sorted(STRATEGIES)


@pytest.mark.slow
def test_every_table_is_exported(opened: Browser, page: Path, tmp_path: Path) -> None:
    opened.keep_downloads(tmp_path)
    kinds = opened.run("[...document.querySelectorAll('[data-export]')].map((e) => e.dataset.export)")
    assert set(kinds) == {"strategies", "comparisons", "costs", "budgets", "structures", "matrices"}
    names = {}
    for form in ("csv", "tex"):
        time.sleep(1.1)  # a page may download ten files in a second
        for kind in dict.fromkeys(kinds):
            opened.click(f"[data-export={kind}][data-format={form}]")
            names[kind, form] = opened.downloaded()
    assert names["comparisons", "csv"] == "quickstart-comparisons-all-r2.csv"
    info, results = read_run_info(page.parent), ResultsTable.read(page.parent / "results.csv")
    rows = comparison_table(results, info) + comparison_table(results, info, per_structure=True)
    text = (tmp_path / names["comparisons", "csv"]).read_text(encoding="utf-8")
    assert text == to_csv(rows)
    matrix = (tmp_path / names["matrices", "csv"]).read_text(encoding="utf-8").splitlines()
    assert matrix[0] == "strategy,step,structure,metric,mean,lowest,highest"
    assert len(matrix) == 1 + len(STRATEGIES) * (2 + 3 + 4)
    for kind in dict.fromkeys(kinds):
        latex = (tmp_path / names[kind, "tex"]).read_text(encoding="utf-8")
        assert r"\begin{tabular}" in latex
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}")


def test_blocks_of_gates_are_chosen_and_values_told_where_one_points(opened: Browser) -> None:
    before = texts(opened, ".gate-place[data-column='0'] .part")
    opened.run(
        "{ const e = document.querySelector('select[data-column]'); e.value = 'bottleneck.0';"
        "e.dispatchEvent(new Event('change')); }"
    )
    assert texts(opened, ".gate-place[data-column='0'] .part") != before
    for selector, expected in (
        ("#forgetting-charts svg.chart", "after step"),
        ("[data-key=fine_tuning] .xy", "difference"),
    ):
        x, y = opened.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        opened.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        opened.until("!document.querySelector('.tip').hidden")
        assert expected in texts(opened, ".tip")[0]
        opened.send("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        opened.until("document.querySelector('.tip').hidden")


def test_what_a_page_does_wrong_is_noticed(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The other tests would not see an error, a request or a broken policy otherwise."""
    text = page.read_text(encoding="utf-8")
    for number, harm in enumerate(
        ("nothing.here();", "console.error('no');", "fetch('https://example.org');", "new Function('')();")
    ):
        path = tmp_path / f"{number}.html"
        path.write_text(text.replace("<script>", f"<script>{harm}</script><script>", 1), encoding="utf-8")
        browser.open(path)
        browser.run("1")
        assert browser.problems, harm
