"""The runs of one seed → the rows of a comparison, each with what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusetune.errors import RunError
from fusetune.files.record import Shape, read_record, shaped
from fusetune.objective import LOSS, Objective
from fusetune.pipeline.comparison_plan import Plan
from fusetune.pipeline.procedures.procedure import FIXED
from fusetune.report.comparison import BASE
from fusetune.run import RunFolder

Entry = dict[str, Any]


def seed_results(
    plan: Plan,
    folders: Mapping[str, RunFolder],
    failed: Mapping[str, str],
    primary: Objective,
) -> dict[str, Any]:
    """The rows of one seed, in the shape that `report.comparison.compare` takes.

    A row counts everything that it needs: of all its candidates, the trainings (those of the
    search included), the models evaluated on validation (in search and training too), and the
    seconds. The training that methods share counts in full for each of them.

    Args:
        plan: What was to be made.
        folders: The complete runs by name.
        failed: Why others led to nothing, by name.
        primary: Validation chooses by it among several candidates, ties by the loss.
    """
    found = {name: _entries(folder) for name, folder in folders.items()}
    methods: dict[str, Entry] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    for row, places in plan.rows.items():
        entries = [found[run][r] for run, r in places if r in found.get(run, {})]
        reasons = [f"{run}: {failed[run]}" for run, _ in places if run in failed]
        if not entries:
            missing[row] = " ".join(reasons) or "its run has no such row"
            continue
        notes += [f"{row} goes without {reason}" for reason in reasons]
        methods[row] = _row(entries, primary)
        if len(places) == 1:
            methods |= _rules(row, *places[0], found)
    shared = found.get(FIXED, {})
    alone = {r: _row([e], primary) for r, e in shared.items() if r.startswith("trajectory-")}
    base = {BASE: _row([shared[BASE]], primary)} if BASE in shared else {}
    return {
        "primary": primary.name,
        "methods": base | methods | alone,
        "missing": missing,
        "notes": notes,
    }


class _Value(Shape):
    """A value with its interval."""

    value: float | None


class _Row(Shape):
    """A row of results.json."""

    validation: dict[str, _Value]
    test: dict[str, _Value]
    evaluations: int
    seconds: float


class _Results(Shape):
    """results.json."""

    methods: dict[str, _Row]


def _entries(folder: RunFolder) -> dict[str, Entry]:
    """The rows of a run's results.json, with what its search and its training cost."""
    results = read_record(folder.results, shaped(_Results))
    if results is None:
        raise RunError(
            f"{folder.results} is gone.", "Run the comparison again: it is rewritten."
        )
    search, train = folder.recorded("search") or {}, folder.recorded("train") or {}
    evaluations = search.get("evaluations", 0) + train.get("evaluations", 0)
    return {
        row: {
            "place": (folder.path.name, row),  # where its w is written down
            "validation": entry["validation"],
            "test": entry["test"],
            "trainings": search.get("trainings", 0) + train.get("trainings", 1),
            "evaluations": entry["evaluations"] + evaluations,
            "seconds": entry["seconds"],
            "total_seconds": entry["seconds"] + search["seconds"] + train["seconds"],
        }
        for row, entry in results["methods"].items()
    }


def _row(entries: Sequence[Entry], primary: Objective) -> Entry:
    """The candidate with the best validation values, with the cost of all."""

    def rank(entry: Entry) -> tuple[float, float]:
        values = entry["validation"]
        return primary.sign * values[primary.name]["value"], -values[LOSS.name]["value"]

    best = max(entries, key=rank)  # of equal ones, the first
    costs = ("trainings", "evaluations", "seconds", "total_seconds")
    return {**best, **{cost: sum(entry[cost] for entry in entries) for cost in costs}}


def _rules(
    row: str, run: str, name: str, found: Mapping[str, dict[str, Entry]]
) -> dict[str, Entry]:
    """`mobo.consensus` and the other rules, under the name of their row."""
    return {
        row + other.removeprefix(name): entry
        for other, entry in found[run].items()
        if other.startswith(f"{name}.")
    }
