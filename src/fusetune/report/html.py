"""One self-contained HTML page about a run: no network, no second file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fusetune.report.content import RunRecord, point
from fusetune.report.palette import DARK
from fusetune.report.panels import Panel, panels
from fusetune.report.tables import grid
from fusetune.report.verdict import comparisons, verdict
from fusetune.report.wording import (
    duration,
    heaviest,
    interval,
    metric_label,
    number,
    rival_label,
    setting,
    signed,
)

UNSAFE = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def write(record: RunRecord, path: Path) -> None:
    """Write the page atomically: a reader sees the old page or the new one, never half.

    Args:
        record: What the page is about.
        path: The HTML file; its folder must exist.

    Raises:
        OSError: If the file cannot be written; what stood there before is untouched.
    """
    page = render(record)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def render(record: RunRecord) -> str:
    """The page as text; the same record always gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("fusetune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        signed=signed,
        duration=duration,
        label=metric_label,
        rival=rival_label,
        setting=setting,
    )
    shown = panels(record)
    drawn = [panel for group in shown.values() for panel in group]
    results, objectives = record.results, record.objectives
    return environment.get_template("report.html.j2").render(
        record=record,
        panels=shown,
        table=grid(results, objectives),
        verdict=verdict(results, objectives),
        comparisons=comparisons(results, objectives),
        tiles=_tiles(record),
        facts=_facts(record),
        chosen_weights=_chosen_weights(record),
        columns=_member_columns(record),
        front=[(n, e) for n, e in enumerate(record.evaluations, 1) if e.on_front],
        mixture=lambda weights: "; ".join(heaviest(weights, record.member_names, most=4)),
        environment=list(_flat(record.environment)),
        plotly=Markup(get_plotlyjs()) if drawn else "",
        data=_script_json({"plots": _plots(drawn), "dark": DARK}),
    )


def _plots(drawn: Iterable[Panel]) -> dict[str, Any]:
    """Key → figure; by way of Plotly's encoder, which turns NaN into null."""
    return {panel.key: json.loads(panel.figure.to_json(engine="json")) for panel in drawn}


def _script_json(value: object) -> Markup:
    """JSON that cannot end the script element it stands in, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign, escape in UNSAFE.items():
        text = text.replace(sign, escape)
    return Markup(text)


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """(title, number, interval) of the chosen method and its two natural rivals."""
    name = record.primary.name
    split = "test" if point(record.methods[record.chosen], "test", name) else "validation"
    tiles = []
    for method in dict.fromkeys([record.chosen, "finetune", "swa"]):
        found = point(record.methods.get(method, {}), split, name)
        if found:
            title = "Chosen: " + method if method == record.chosen else rival_label(method)
            ends = interval(found.get("low"), found.get("high"))
            tiles.append((title, number(found.get("value")), ends))
    return tiles


def _facts(record: RunRecord) -> list[str]:
    """What the run was, in a few words each."""
    seconds = sum(s for s in record.seconds.values() if s == s)
    facts = [
        record.model,
        f"{len(record.members)} members" if record.members else "",
        f"{len(record.evaluations)} evaluations" if record.evaluations else "",
        f"{len(record.trials)} search trials" if record.trials else "",
        duration(seconds) if seconds else "",
        f"seed {record.results['seed']}" if record.results.get("seed") is not None else "",
        record.created,
    ]
    return [fact for fact in facts if fact]


def _chosen_weights(record: RunRecord) -> list[float | None]:
    """The chosen weight of each member, as far as it is known."""
    weights = record.methods[record.chosen].get("weights") or ()
    return (
        list(weights) if len(weights) == len(record.members) else [None] * len(record.members)
    )


def _member_columns(record: RunRecord) -> list[str]:
    """The objectives that any member was measured in."""
    return [
        o.name for o in record.objectives if any(o.name in m.values for m in record.members)
    ]


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as `("versions.torch", "2.9.0")`, depth first."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{above}{key}", ", ".join(str(v) for v in value)
        else:
            yield f"{above}{key}", str(value)
