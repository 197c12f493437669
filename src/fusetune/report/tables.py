"""The table of methods, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fusetune.objective import LOSS, Objective
from fusetune.report.content import REFERENCES, objective_named, point
from fusetune.report.wording import duration, interval, metric_label, number

SPLITS = ("validation", "test")
WIDEST = 4
"""How many columns of values stand side by side in a terminal of 80 columns."""

LONGEST = 9
"""And how long the methods' names may be for that."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One method's value of one metric on one split.

    Attributes:
        value: The value as text; a dash if it was not measured.
        interval: Its 95 % bootstrap interval as text; empty if there is none.
        best: Whether no other candidate is better in this column.
    """

    value: str
    interval: str
    best: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One method.

    Attributes:
        method: Its name.
        chosen: Whether its weights became the fused model.
        reference: Whether it looked at the test split, as `oracle` does.
        cells: One per column.
        evaluations: How many distinct w it evaluated, as text.
        seconds: Its time, as text.
    """

    method: str
    chosen: bool
    reference: bool
    cells: tuple[Cell, ...]
    evaluations: str
    seconds: str


@dataclass(frozen=True, slots=True)
class Grid:
    """The whole table: columns are (split, metric)."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]


def grid(
    results: Mapping[str, Any],
    objectives: tuple[Objective, ...],
    splits: tuple[str, ...] = SPLITS,
) -> Grid:
    """Method × split × metric as text, the primary metric first and the loss last.

    Args:
        results: The content of results.json.
        objectives: Name and direction of each metric.
        splits: Which splits to show; one that no method has is left out.
    """
    methods = results["methods"]
    columns = tuple(
        (split, metric)
        for split in splits
        for metric in _metrics(results, objectives)
        if any(point(entry, split, metric) for entry in methods.values())
    )
    best = {column: _best(methods, column, objectives) for column in columns}
    rows = []
    for method, entry in methods.items():
        cells = []
        for split, metric in columns:
            found = point(entry, split, metric)
            value = number(found.get("value"))
            ends = interval(found.get("low"), found.get("high"))
            is_best = method not in REFERENCES and value == best[split, metric]
            cells.append(Cell(value, ends, is_best))
        evaluations = entry.get("evaluations")
        rows.append(
            Row(
                method,
                method == results["chosen"],
                method in REFERENCES,
                tuple(cells),
                "–" if evaluations is None else str(evaluations),
                duration(entry.get("seconds")),
            )
        )
    return Grid(columns, tuple(rows))


def _metrics(results: Mapping[str, Any], objectives: tuple[Objective, ...]) -> list[str]:
    """Primary, other objectives, whatever else was measured, loss."""
    measured = [
        metric
        for entry in results["methods"].values()
        for split in SPLITS
        for metric in entry.get(split) or {}
    ]
    names = dict.fromkeys([results["primary"], *(o.name for o in objectives), *measured])
    return sorted(names, key=lambda name: name == LOSS.name)


def _best(
    methods: Mapping[str, Any], column: tuple[str, str], objectives: tuple[Objective, ...]
) -> str | None:
    """The best value of a column as text, so that what reads alike is marked alike."""
    split, metric = column
    objective = objective_named(metric, objectives)
    values = [
        float(value)
        for method, entry in methods.items()
        if method not in REFERENCES
        and (value := point(entry, split, metric).get("value")) is not None
        and value == value
    ]
    if len(values) < 2:
        return None
    return number(max(values, key=lambda value: objective.sign * value))


def methods_table(
    results: Mapping[str, Any], objectives: tuple[Objective, ...], title: str | None = None
) -> Table:
    """The table for the terminal: interval below each value, best in bold, chosen marked.

    Splits stand side by side while that fits 80 columns, and below each other otherwise.

    Args:
        results: The content of results.json.
        objectives: Name and direction of each metric.
        title: Above the table.
    """
    content = grid(results, objectives)
    table = Table(title=title, box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    longest = max(len(row.method) for row in content.rows)
    beside = len(content.columns) <= WIDEST and longest <= LONGEST
    metrics = dict.fromkeys(metric for _, metric in content.columns)
    table.add_column("method", no_wrap=True)
    for split, metric in content.columns if beside else [("", metric) for metric in metrics]:
        table.add_column(
            Text(f"{split}\n{metric_label(metric)}".strip()), justify="right", min_width=11
        )
    table.add_column("evals", justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    parts = [content] if beside else [grid(results, objectives, (split,)) for split in SPLITS]
    for part in parts:
        if part.columns and not beside:
            table.add_row(Text(part.columns[0][0], style="italic"))
        for row in part.rows if part.columns else ():
            cells = [_styled(cell) for cell in row.cells]
            counts = (Text(row.evaluations), Text(row.seconds))
            table.add_row(_name(row), *cells, *counts)
        table.add_section()
    return table


def _name(row: Row) -> Text:
    name = Text(row.method, style="bold green" if row.chosen else "")
    if row.chosen:
        name.append("\n← chosen", style="green")
    elif row.reference:
        name.append("\nupper mark", style="dim")
    return name


def _styled(cell: Cell) -> Text:
    """The value with its interval below, as short as it can be."""
    text = Text(cell.value, style="bold" if cell.best else "")
    if cell.interval:
        text.append(f"\n{cell.interval.strip('[]').replace(', ', '–')}", style="not bold dim")
    return text
