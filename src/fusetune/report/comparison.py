"""One table over several seeds: mean ± standard deviation of every method."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from fusetune.report.wording import MISSING, duration, metric_label, number

BASE, MARK = "finetune", "oracle"  # the distance between them is what a method can close


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over n seeds; the deviation of one seed is NaN."""

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value per seed."""
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, plus_minus: str = "±") -> str:
        """`0.8123 ± 0.0045`; the mean alone for one seed."""
        if self.n < 2:
            return number(self.mean)
        return f"{number(self.mean)} {plus_minus} {number(self.deviation)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One method over all seeds.

    Attributes:
        method: Its name.
        validation: Primary metric on validation.
        test: Primary metric on test.
        test_loss: Loss on test.
        evaluations: Mean number of distinct w.
        seconds: Mean time.
        closed: Share of the distance from `finetune` to `oracle` on test that it closes,
            of the means over seeds; None where there is no oracle or no distance.
    """

    method: str
    validation: Spread
    test: Spread
    test_loss: Spread
    evaluations: float
    seconds: float
    closed: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The methods of several runs that differ in their seed alone.

    Attributes:
        task: Name of the task.
        primary: The primary metric.
        seeds: In order.
        rows: One per method that every run has.
    """

    task: str
    primary: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]


def compare(results: Sequence[Mapping[str, Any]]) -> Comparison:
    """Methods over seeds, from the contents of several results.json.

    Raises:
        ValueError: If there are no results, or they are of different tasks or metrics.
    """
    if len({(r["task"], r["primary"]) for r in results}) != 1:
        raise ValueError("A comparison needs results of one task and one primary metric.")
    first = results[0]
    primary = str(first["primary"])
    shared = [m for m in first["methods"] if all(m in r["methods"] for r in results)]

    def spread(method: str, split: str, metric: str) -> Spread:
        return Spread.of([r["methods"][method][split][metric]["value"] for r in results])

    test = {m: spread(m, "test", primary) for m in shared}
    rows = tuple(
        Row(
            method=m,
            validation=spread(m, "validation", primary),
            test=test[m],
            test_loss=spread(m, "test", "loss"),
            evaluations=statistics.fmean(r["methods"][m]["evaluations"] for r in results),
            seconds=statistics.fmean(r["methods"][m]["seconds"] for r in results),
            closed=_closed(test, m),
        )
        for m in shared
    )
    return Comparison(str(first["task"]), primary, tuple(int(r["seed"]) for r in results), rows)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data; a deviation of one seed is null."""
    data = asdict(comparison)
    for row in data["rows"]:
        for name in ("validation", "test", "test_loss"):
            if row[name]["n"] < 2:
                row[name]["deviation"] = None
    return data


def to_table(comparison: Comparison) -> Table:
    """For the terminal."""
    table = Table(title=_title(comparison), box=None, header_style="bold", pad_edge=False)
    for i, heading in enumerate(_headings(comparison)):
        table.add_column(heading, justify="right" if i else "left")
    for row in comparison.rows:
        table.add_row(*_cells(row))
    return table


def to_markdown(comparison: Comparison) -> str:
    """A pipe table."""
    headings = _headings(comparison)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *map(_cells, comparison.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A `tabular` that needs the package booktabs."""
    headings = _headings(comparison)
    body = [_latex_line(_cells(row, "$\\pm$")) for row in comparison.rows]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            "\\toprule",
            _latex_line(headings),
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


FORMATS: Mapping[str, Callable[[Comparison], str]] = {"md": to_markdown, "tex": to_latex}


def _closed(test: Mapping[str, Spread], method: str) -> float | None:
    if BASE not in test or MARK not in test or test[MARK].mean == test[BASE].mean:
        return None
    return (test[method].mean - test[BASE].mean) / (test[MARK].mean - test[BASE].mean)


def _title(comparison: Comparison) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    return f"{comparison.task}: {metric_label(comparison.primary)}, seeds {seeds}"


def _headings(comparison: Comparison) -> list[str]:
    metric = metric_label(comparison.primary)
    return [
        "method",
        f"validation {metric}",
        f"test {metric}",
        "test loss",
        "evals",
        "time",
        "closed",
    ]


def _cells(row: Row, plus_minus: str = "±") -> list[str]:
    return [
        row.method,
        row.validation.text(plus_minus),
        row.test.text(plus_minus),
        row.test_loss.text(plus_minus),
        f"{row.evaluations:.0f}",
        duration(row.seconds),
        MISSING if row.closed is None else f"{row.closed:.0%}",
    ]


def _latex_line(cells: Sequence[str]) -> str:
    escaped = (c.replace("%", "\\%").replace("_", "\\_").replace("&", "\\&") for c in cells)
    return " & ".join(escaped) + " \\\\"
