"""The page as a reader has it: drawn, hovered, keyed and read in a browser."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusetune.report.content import RunRecord
from fusetune.report.html import write

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EXECUTABLE = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium on the PATH")

Record = Callable[..., RunRecord]
HIGH = 60_000  # milliseconds that a busy machine may take for what is at once


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=EXECUTABLE, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, record: Record, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of the synthetic run, at the front, which is drawn, unless told otherwise.

    Fails at the end if the console had an error.
    """
    problems: list[str] = []
    contexts = []

    def open_page(scrolled: bool = True, **options: Any) -> Any:
        path = tmp_path / "report.html"
        write(record(export="fusetune export runs/mrpc"), path)
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(HIGH)
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None
                if r.url.startswith(("file:", "data:", "blob:"))
                else problems.append(r.url)
            ),
        )
        page.goto(path.as_uri())
        if scrolled:
            bring(page, "#front-0")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def bring(page: Any, figure: str) -> None:
    """Scrolls to a figure, which is drawn then."""
    page.eval_on_selector(
        figure, "e => e.scrollIntoView({ block: 'center', behavior: 'instant' })"
    )
    page.wait_for_selector(f"{figure} .main-svg")


def unfolded(page: Any) -> list[str]:
    """Ids of the figures that are not folded away."""
    found: list[str] = page.eval_on_selector_all(
        ".plot",
        "all => all.filter(e => !e.closest('details:not([open])')).map(e => '#' + e.id)",
    )
    return found


def until(page: Any, expression: str) -> None:
    """Waits; the browser's own wait would need `eval`, which the page forbids."""
    for _ in range(HIGH // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def ringed(page: Any, figure: str = "front-0") -> tuple[float, float]:
    """Where the ring around the mixture looked at stands."""
    x, y = page.evaluate(
        "id => { const t = document.getElementById(id).data.at(-1); return [t.x[0], t.y[0]]; }",
        figure,
    )
    return x, y


def point_at(page: Any, place: int) -> tuple[float, float]:
    """Pixels of an evaluation's point in the figure of the front."""
    x, y = page.evaluate(
        """place => {
          const element = document.getElementById("front-0");
          element.scrollIntoView({ block: "center", behavior: "instant" });
          const full = element._fullLayout, box = element.getBoundingClientRect();
          for (const trace of element.data) {
            const i = (trace.customdata ?? []).indexOf(place);
            if (i >= 0 && trace.name !== "Pareto front") return [
              box.left + full.xaxis._offset + full.xaxis.d2p(trace.x[i]),
              box.top + full.yaxis._offset + full.yaxis.d2p(trace.y[i])];
          }
        }""",
        place,
    )
    return x, y


def test_every_figure_is_drawn_and_every_link_leads_somewhere(opened: Any) -> None:
    page = opened()
    figures = unfolded(page)
    assert len(figures) >= 7
    for figure in figures:
        bring(page, figure)
    for target in page.eval_on_selector_all(
        "a[href^='#']", "links => links.map(a => a.getAttribute('href'))"
    ):
        assert page.locator(target).count() == 1


def test_a_figure_is_drawn_when_it_comes_near_and_nothing_moves(opened: Any) -> None:
    page = opened(scrolled=False, viewport={"width": 1000, "height": 600})
    figures = unfolded(page)
    first, last = figures[0], figures[-1]
    bring(page, first)
    assert page.locator(f"{last} .main-svg").count() == 0
    assert page.get_by_role("img", name="Wall time by stage").count() == 1  # told all the same
    place = "e => [e.getBoundingClientRect().top + scrollY, e.offsetHeight]"
    before = {figure: page.eval_on_selector(figure, place) for figure in figures}
    bring(page, last)
    for figure in figures:
        bring(page, figure)
    assert {figure: page.eval_on_selector(figure, place) for figure in figures} == before


def test_what_is_printed_is_drawn_at_once(opened: Any) -> None:
    page = opened(scrolled=False)
    drawn = "all => all.every(e => e.querySelector('.main-svg'))"
    assert not page.eval_on_selector_all(".plot", drawn)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.eval_on_selector_all(".plot", drawn)


def test_a_mixture_picked_before_its_figure_is_drawn_is_ringed_in_it(
    opened: Any, record: Record
) -> None:
    page = opened(scrolled=False, viewport={"width": 1000, "height": 300})
    made = record().evaluations
    place, other = [n for n, e in enumerate(made, 1) if e.on_front and n > 20][:2]
    page.eval_on_selector(
        "#pick-at",
        "(at, place) => { at.value = place; at.dispatchEvent(new Event('input')); }",
        place,
    )
    assert page.locator("#front-0 .main-svg").count() == 0
    bring(page, "#front-0")
    assert ringed(page) == (made[place - 1].values["loss"], made[place - 1].values["f1"])
    page.mouse.click(*point_at(page, other))  # and it listens
    until(page, f"document.getElementById('pick-at').value === '{other}'")


def test_the_chosen_mixture_or_the_front_is_shown_first(opened: Any, record: Record) -> None:
    page = opened()
    place = int(page.input_value("#pick-at"))
    shown = record().evaluations[place - 1]
    assert shown.on_front
    assert page.locator("#pick-weights li").count() == 15
    assert ringed(page) == (shown.values["loss"], shown.values["f1"])


def test_hovering_a_point_shows_its_weights_and_lights_its_row(
    opened: Any, record: Record
) -> None:
    page = opened()
    first = int(page.input_value("#pick-at"))
    place = next(n for n, e in enumerate(record().evaluations, 1) if e.on_front and n != first)
    page.mouse.move(*point_at(page, place))
    until(
        page,
        f"document.getElementById('pick-values').textContent.startsWith('Evaluation {place} ')",
    )
    weights = page.locator("#pick-weights .weight").all_inner_texts()
    expected = [f"{w:.3f}" for w in record().evaluations[place - 1].weights]
    assert weights == expected
    lit = page.eval_on_selector_all("tr.lit", "rows => rows.map(r => r.dataset.place)")
    assert str(place) in lit
    page.mouse.move(2, 2)  # away: the mixture that was kept is shown again
    until(
        page,
        f"document.getElementById('pick-values').textContent.startsWith('Evaluation {first} ')",
    )
    assert ringed(page)[0] == record().evaluations[first - 1].values["loss"]


def test_a_click_keeps_a_mixture_and_its_command_can_be_copied(
    opened: Any, record: Record
) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    place = next(n for n, e in enumerate(record().evaluations, 1) if e.on_front and n > 20)
    page.mouse.click(*point_at(page, place))
    page.mouse.move(2, 2)
    until(page, f"document.getElementById('pick-at').value === '{place}'")
    command = page.inner_text("#pick-command")
    given = [float(w) for w in command.split("--weights ")[1].split(" ")[0].split(",")]
    assert command.startswith("fusetune export runs/mrpc --weights ")
    assert given == pytest.approx(record().evaluations[place - 1].weights, rel=1e-5)
    page.locator("#pick .copy").click()
    until(page, "document.querySelector('#pick .copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == command


def test_the_front_can_be_walked_with_the_keyboard(opened: Any, record: Record) -> None:
    page = opened()
    made = record().evaluations
    front = sorted(
        (n for n, e in enumerate(made, 1) if e.on_front),
        key=lambda n: made[n - 1].values["loss"],
    )
    page.focus("#pick-at")
    page.fill("#pick-at", str(front[0]))
    assert page.locator("#pick-before").is_disabled()
    page.focus("#pick-after")
    seen = [front[0]]
    for _ in front[1:]:
        page.keyboard.press("Enter")
        seen.append(int(page.input_value("#pick-at")))
    assert seen == front
    assert page.locator("#pick-after").is_disabled()


def test_dark_screens_get_dark_figures_and_keep_the_mixture(opened: Any) -> None:
    page = opened(color_scheme="dark")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(20, 23, 27)"
    color = "document.getElementById('front-0').layout.font.color"
    assert page.evaluate(color) == "#e6e9ed"
    at = ringed(page)
    page.emulate_media(color_scheme="light")
    until(page, f"{color} === '#1f2328'")
    assert ringed(page) == at
    last = unfolded(page)[-1]
    assert page.locator(f"{last} .main-svg").count() == 0
    bring(page, last)  # drawn later, in the colours of now
    assert page.eval_on_selector(last, "e => e.layout.font.color") == "#1f2328"
    page.emulate_media(color_scheme="dark")
    until(page, f"document.querySelector('{last}').layout.font.color === '#e6e9ed'")
    assert page.evaluate(color) == "#1f2328"  # far away, until it is seen again
    bring(page, "#front-0")
    until(page, f"{color} === '#e6e9ed'")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_runs_out_of_a_small_screen(opened: Any, width: int) -> None:
    page = opened(viewport={"width": width, "height": 800}, has_touch=True, is_mobile=True)
    for _ in range(page.locator("details").count()):
        page.evaluate("document.querySelector('details:not([open])')?.setAttribute('open', '')")
    for figure in unfolded(page):
        bring(page, figure)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name_and_every_figure_a_description(opened: Any) -> None:
    page = opened()
    nameless = page.eval_on_selector_all(
        "button, input, a, [role=img], [role=region], [role=group]",
        """all => all.filter(e => !(e.textContent.trim() || e.getAttribute("aria-label")
             || e.labels?.length || e.title || e.dataset.title
             || e.closest(".modebar"))).map(e => e.outerHTML.slice(0, 90))""",
    )
    assert nameless == []
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_print_opens_what_is_folded_and_hides_what_is_clicked(opened: Any) -> None:
    page = opened()
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("#pick").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
