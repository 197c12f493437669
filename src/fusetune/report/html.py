"""One self-contained HTML page about a run: no network, no second file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fusetune.report import contributions
from fusetune.report.content import REFERENCES, RunRecord, point
from fusetune.report.discrepancy import sentence
from fusetune.report.front import plane
from fusetune.report.page import embedded, environment, write_page
from fusetune.report.panels import Panel, panels
from fusetune.report.picks import picks, places_of
from fusetune.report.tables import grid
from fusetune.report.verdict import comparisons, verdict
from fusetune.report.wording import duration, heaviest, interval, number, rival_label


def write(record: RunRecord, path: Path) -> None:
    """Write the page atomically: a reader sees the old page or the new one, never half.

    Args:
        record: What the page is about.
        path: The HTML file; its folder must exist.

    Raises:
        OSError: If the file cannot be written; what stood there before is untouched.
    """
    write_page(render(record), path)


def render(record: RunRecord) -> str:
    """The page as text; the same record always gives the same bytes."""
    shown = panels(record)
    drawn = [panel for group in shown.values() for panel in group]
    results, objectives = record.results, record.objectives
    mixtures = picks(record, _planes(record, shown["front"]))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            version=results["fusetune"],
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
            contributions=contributions.with_gains(record),
            discrepancy=sentence(results.get("discrepancy") or {}),
            places=places_of(record),
            picks=mixtures,
            **embedded(drawn, picks=mixtures),
        )
    )


def _planes(record: RunRecord, drawn: Iterable[Panel]) -> dict[str, tuple[str, str]]:
    """Key of each figure of the front → the objectives on its axes."""
    planes = {}
    for panel in drawn:
        pair = plane(record, panel.metric)
        if pair is not None:
            planes[panel.key] = (pair[0].name, pair[1].name)
    return planes


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
    seconds = sum(c["seconds"] for c in record.cost.values() if c["seconds"] == c["seconds"])
    # As many as the dearest row needed: the rules for the choice add some to the search's.
    rows = [m for n, m in record.results["methods"].items() if n not in REFERENCES]
    evaluated = max((row.get("evaluations") or 0 for row in rows), default=0)
    facts = [
        record.model,
        f"{len(record.members)} members" if record.members else "",
        f"{evaluated} evaluations" if evaluated else "",
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
