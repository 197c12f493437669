"""What every HTML page is made with: templates, figures as data, one complete file.

`Page` is a page of figures and tables about one question; the report of a run has a template
of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fusetune.report.palette import DARK
from fusetune.report.panels import Panel
from fusetune.report.wording import duration, metric_label, number, rival_label, setting, signed

UNSAFE = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts.

    Attributes:
        title: What it shows.
        head: The columns' names.
        rows: One text per column; the first names the row.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes:
        key: Its id on the page.
        title: Its heading.
        text: One paragraph.
        panels: Figures.
        table: Their numbers.
    """

    key: str
    title: str
    text: str = ""
    panels: tuple[Panel, ...] = ()
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of figures about one question.

    Attributes:
        kind: What sort of page it is, as "fusetune landscape".
        title: Its heading.
        facts: What was measured, in a few words each.
        headline: The answer, in a sentence.
        details: Further sentences.
        sections: The page's parts.
        version: Of fusetune.
    """

    kind: str
    title: str
    facts: tuple[str, ...]
    headline: str
    details: tuple[str, ...]
    sections: tuple[Section, ...]
    version: str


def render(page: Page) -> str:
    """The page as text; the same page always gives the same bytes."""
    drawn = [panel for section in page.sections for panel in section.panels]
    template = environment().get_template("page.html.j2")
    return template.render(page=page, version=page.version, **embedded(drawn))


def write(page: Page, path: Path) -> None:
    """Write the page atomically; see `write_page`."""
    write_page(render(page), path)


def environment() -> Environment:
    """The templates with their filters."""
    made = Environment(
        loader=PackageLoader("fusetune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=number,
        signed=signed,
        duration=duration,
        label=metric_label,
        rival=rival_label,
        setting=setting,
    )
    return made


def embedded(drawn: Iterable[Panel], **more: object) -> dict[str, Markup]:
    """What the base template takes: plotly.js, and the figures with the dark colours.

    Args:
        drawn: The figures.
        more: Further data for the page's script.
    """
    figures = plots(drawn)
    return {
        "plotly": Markup(get_plotlyjs()) if figures else Markup(),
        "data": script_json({"plots": figures, "dark": DARK, **more}),
    }


def plots(drawn: Iterable[Panel]) -> dict[str, Any]:
    """Key → figure; by way of Plotly's encoder, which turns NaN into null."""
    return {panel.key: json.loads(panel.figure.to_json(engine="json")) for panel in drawn}


def script_json(value: object) -> Markup:
    """JSON that cannot end the script element it stands in, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign, escape in UNSAFE.items():
        text = text.replace(sign, escape)
    return Markup(text)


def write_page(text: str, path: Path) -> None:
    """Write a page atomically: a reader sees the old page or the new one, never half.

    Args:
        text: The page.
        path: The HTML file; its folder must exist.

    Raises:
        OSError: If the file cannot be written; what stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
