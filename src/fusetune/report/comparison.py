"""One table over several seeds: mean ± standard deviation of every method."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from fusetune.report.wording import MISSING, duration, metric_label, number

BASE, MARK = "finetune", "oracle"  # the distance between them is what a method can close

COUNTING = (
    "evals: models evaluated on validation (on test for oracle), in the search too.",
    "time: choosing among them, the evaluations included. in all: the search and the trainings "
    "too; the training that methods share counts in full for each.",
    "closed: share of the distance from finetune to oracle on test.",
)
"""What the columns count."""


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
        evaluations: Mean number of evaluated models.
        seconds: Mean time of choosing, evaluations included.
        closed: Share of the distance from `finetune` to `oracle` on test that it closes,
            of the means over seeds; None where there is no oracle or no distance.
        trainings: Mean number of trainings, those of a search included; None if not known.
        total_seconds: Mean time with search and trainings; None if not known.
    """

    method: str
    validation: Spread
    test: Spread
    test_loss: Spread
    evaluations: float
    seconds: float
    closed: float | None
    trainings: float | None = None
    total_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The methods of several runs that differ in their seed alone.

    Attributes:
        task: Name of the task.
        primary: The primary metric.
        seeds: In order.
        rows: One per method that at least one seed has.
        missing: Row → seed → why it is not there.
        notes: What else is to be known of single seeds.
    """

    task: str
    primary: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    missing: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def compare(
    results: Sequence[Mapping[str, Any]], wanted: Sequence[str] | None = None
) -> Comparison:
    """Methods over seeds.

    A row that a seed lacks is the mean over the other seeds, and says so; the share that it
    closes is that of the same seeds.

    Args:
        results: Contents of results.json, one per seed. Besides, "missing" (row → reason),
            "notes", and in a method's entry "trainings" and "total_seconds" are understood.
        wanted: The rows in order, each followed by its own, as `mobo.knee` after `mobo`;
            all by default.

    Raises:
        ValueError: If there are no results, or they are of different tasks or metrics.
    """
    if len({(r["task"], r["primary"]) for r in results}) != 1:
        raise ValueError("A comparison needs results of one task and one primary metric.")
    primary = str(results[0]["primary"])
    names = _order(results, wanted)
    missing = {
        name: {
            int(r["seed"]): str(r.get("missing", {}).get(name, "its run has no such row"))
            for r in results
            if name not in r["methods"]
        }
        for name in names
    }
    having = {n: [r for r in results if n in r["methods"]] for n in names}
    return Comparison(
        task=str(results[0]["task"]),
        primary=primary,
        seeds=tuple(int(r["seed"]) for r in results),
        rows=tuple(_row(n, having[n], primary) for n in names if having[n]),
        missing={name: seeds for name, seeds in missing.items() if seeds},
        notes=tuple(
            f"Seed {r['seed']}: {note}" for r in results for note in r.get("notes", ())
        ),
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data; a deviation of one seed is null."""
    data = asdict(comparison)
    data["counting"] = list(COUNTING)
    for row in data["rows"]:
        for name in ("validation", "test", "test_loss"):
            if row[name]["n"] < 2:
                row[name]["deviation"] = None
    return data


def to_table(comparison: Comparison) -> Table:
    """For the terminal."""
    table = Table(title=_title(comparison), box=None, header_style="bold", pad_edge=False)
    for i, heading in enumerate(_headings(comparison)):
        table.add_column(
            heading, justify="right" if i else "left", no_wrap=i == 0, overflow="fold"
        )
    for row in comparison.rows:
        table.add_row(*_cells(row, comparison))
    return table


def to_markdown(comparison: Comparison) -> str:
    """A pipe table."""
    headings = _headings(comparison)
    cells = [_cells(row, comparison) for row in comparison.rows]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n" + "\n".join(f"* {line}" for line in notes(comparison)) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A `tabular` that needs the package booktabs."""
    headings = _headings(comparison)
    body = [_latex_line(_cells(row, comparison, "$\\pm$")) for row in comparison.rows]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            "\\toprule",
            _latex_line(headings),
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            *(f"% {' '.join(line.split())}" for line in notes(comparison)),
            "",
        ]
    )


FORMATS: Mapping[str, Callable[[Comparison], str]] = {"md": to_markdown, "tex": to_latex}


def notes(comparison: Comparison) -> list[str]:
    """What stands under the table: rows that are missing somewhere, what the columns count."""
    missing = [
        f"{name} is missing for seed {seed}: {reason}"
        for name, seeds in comparison.missing.items()
        for seed, reason in seeds.items()
    ]
    return [*missing, *comparison.notes, *COUNTING]


def _order(results: Sequence[Mapping[str, Any]], wanted: Sequence[str] | None) -> list[str]:
    present = list(dict.fromkeys(name for r in results for name in r["methods"]))
    if wanted is None:
        return present
    rows = [[name, *(p for p in present if p.startswith(f"{name}."))] for name in wanted]
    alone = [p for p in present if p.startswith("trajectory-")]
    return list(dict.fromkeys([*(name for row in rows for name in row), *alone]))


def _row(name: str, results: Sequence[Mapping[str, Any]], primary: str) -> Row:
    entries = [r["methods"][name] for r in results]

    def spread(split: str, metric: str) -> Spread:
        return Spread.of([entry[split][metric]["value"] for entry in entries])

    def mean(key: str) -> float | None:
        values = [entry.get(key) for entry in entries]
        return None if None in values else statistics.fmean(values)

    return Row(
        method=name,
        validation=spread("validation", primary),
        test=spread("test", primary),
        test_loss=spread("test", "loss"),
        evaluations=statistics.fmean(e["evaluations"] for e in entries),
        seconds=statistics.fmean(e["seconds"] for e in entries),
        closed=_closed(name, results, primary),
        trainings=mean("trainings"),
        total_seconds=mean("total_seconds"),
    )


def _closed(name: str, results: Sequence[Mapping[str, Any]], primary: str) -> float | None:
    """Of the seeds that have all three."""
    whole = [r for r in results if BASE in r["methods"] and MARK in r["methods"]]
    if not whole:
        return None

    def mean(row: str) -> float:
        return statistics.fmean(r["methods"][row]["test"][primary]["value"] for r in whole)

    base, mark = mean(BASE), mean(MARK)
    return None if mark == base else (mean(name) - base) / (mark - base)


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
        "trainings",
        "evals",
        "time",
        "in all",
        "closed",
    ]


def _cells(row: Row, comparison: Comparison, plus_minus: str = "±") -> list[str]:
    n, seeds = row.test.n, len(comparison.seeds)
    return [
        row.method if n == seeds else f"{row.method} ({n} of {seeds} seeds)",
        row.validation.text(plus_minus),
        row.test.text(plus_minus),
        row.test_loss.text(plus_minus),
        MISSING if row.trainings is None else f"{row.trainings:g}",
        f"{row.evaluations:.0f}",
        duration(row.seconds),
        duration(row.total_seconds),
        MISSING if row.closed is None else f"{row.closed:.0%}",
    ]


def _latex_line(cells: Sequence[str]) -> str:
    escaped = (c.replace("%", "\\%").replace("_", "\\_").replace("&", "\\&") for c in cells)
    return " & ".join(escaped) + " \\\\"
