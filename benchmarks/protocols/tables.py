"""The tables of docs/results.md: the papers' four, and what was tried."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.protocols import pooled
from benchmarks.protocols.appendix import DASH, Table
from benchmarks.protocols.pooled import BASE, MARK, POINTS, Gain, Key
from benchmarks.protocols.published import (
    AVERAGE,
    COMPARISON,
    DISCREPANCY,
    OUTER,
    TASKS,
    TITLES,
    Figure,
)
from benchmarks.protocols.records import Record

EXTRA = (
    "bomf",
    "bomf.default",
    "bomf.finetune",
    "mobo.default",
    "grid",
    "hpbo",
    "ema",
    "model_stock",
    "twa",
    "otfusion",
    "swa_cyclic",
    "layers",
)
"""Rows that the workshop paper's Table 1 lacks."""

SEARCHES = ("bomf", "bilevel")
TRIED = (
    "swa",
    "mobo",
    "mobo.default",
    *(f"{name}.{row}" for name in SEARCHES for row in ("default", BASE)),
    MARK,
)
DISCREPANT = ("rte", "mrpc", "sst2")
SEARCHED = ("rte", "mrpc")

Methods = Mapping[str, Mapping[Key, Record]]


def comparison(own: Methods, subject: str) -> Table:
    """Table 1, with the rows that the paper lacks."""
    return points(own, [*COMPARISON, *(n for n in EXTRA if n in own)], subject)


def points(own: Methods, names: Sequence[str], subject: str) -> Table:
    """A row per method: each task, the mean gain with its interval, the share closed.

    Rows may have been made on fewer runs than others; the subject's gain over a row is that
    on the runs which both have.
    """
    head = ["method", *TITLES.values(), "gain over finetune", "runs", "closed"]
    rows = [[*head, f"`{subject}` over it", "published"]]
    for name in names:
        found = own.get(name, {})
        cells = [_over_seeds(found, task, on_test) for task in TASKS]
        gain, share = DASH, None
        if found and name != BASE:
            g = pooled.gain(found)
            gain = f"{interval(g)}, p {g.p_value:.3f}"
            share = pooled.closed(found, own.get(MARK, {}))
        closed = DASH if share is None or name == MARK else f"{100 * share:.0f} %"
        over = DASH if name == MARK else _over(own.get(subject, {}), found)
        runs = str(len(found)) if found else DASH
        rows.append([name, *cells, gain, runs, closed, over, _published(name)])
    return rows


def _over(row: Mapping[Key, Record], other: Mapping[Key, Record]) -> str:
    """How much better a row is than another, on the runs that both have."""
    paired = pooled.difference(row, other)
    if not paired or row is other:
        return DASH
    text = interval(pooled.gain(paired))
    if len(paired) == len(row):
        return text
    return f"{text} ({len(paired)} run{'s' if len(paired) > 1 else ''})"


def _published(name: str) -> str:
    if name not in COMPARISON:
        return DASH
    cells = [f"{mean:.2f}" for mean, _ in COMPARISON[name]]
    return f"{' / '.join(cells)}; average {AVERAGE[name]:.2f}"


def discrepancy(own: Methods) -> Table:
    """Table 2: loss and error of `finetune` and of SWA."""
    published = [f"{TITLES[t]}, published" for t in DISCREPANT]
    rows = [["", "", *(TITLES[t] for t in DISCREPANT), *published]]
    measures: tuple[tuple[str, Callable[[Record], float], int], ...] = (
        ("loss", lambda r: r.test["loss"]["value"], 0),
        ("error, points", lambda r: POINTS - on_test(r), 1),
    )
    for label, value, place in measures:
        for name in (BASE, "swa"):
            ours = [_over_seeds(own.get(name, {}), task, value) for task in DISCREPANT]
            theirs = [_figure(DISCREPANCY[name][task][place]) for task in DISCREPANT]
            rows.append([label, name, *ours, *theirs])
    return rows


def outer(own: Methods) -> Table:
    """Table 4: the search of λ around every baseline, with the gain over `finetune`."""
    published = [f"{TITLES[t]}, published" for t in SEARCHED]
    head = ["method", *(TITLES[t] for t in SEARCHED), "gain over finetune", "runs"]
    rows = [[*head, *published]]
    for name, figures in OUTER.items():
        found = {k: r for k, r in own.get(name, {}).items() if k[0] in SEARCHED}
        ours = [_over_seeds(found, task, on_test) for task in SEARCHED]
        gain = interval(pooled.gain(found)) if found else DASH
        runs = str(len(found)) if found else DASH
        rows.append([name, *ours, gain, runs, *(f"{figures[t]:.2f}" for t in SEARCHED)])
    return rows


def tried(records: Sequence[Record], own: Methods, subject: str) -> Table | None:
    """Rules for the choice, and tries of other settings, the best first; None without any.

    Of a try also the gain over the same row with the protocol's own settings: tries may have
    been made on some of the tasks only, and tasks differ. Of all how they stand to the
    subject on the runs that both have. `finetune` is a row of tries that train otherwise,
    `bomf.finetune` and `bilevel.finetune` the best checkpoint of a searched training.
    """
    rows: list[tuple[float, list[str]]] = []

    def add(what: str, name: str, found: Mapping[Key, Record], over: str = DASH) -> None:
        g = pooled.gain(found)
        cells = [what, name, interval(g), f"{g.p_value:.3f}", over]
        runs = f"{g.runs}: {', '.join(TITLES[t] for t in g.tasks)}"
        rows.append((g.value, [*cells, runs, _over(found, own.get(subject, {}))]))

    for name, found in own.items():
        family, _, rule = name.partition(".")
        if rule or f"{name}.default" in own:
            add(f"choice: {rule or 'best'}", family, found)
    for attempt in sorted({r.attempt for r in records if r.attempt}):
        for name, found in pooled.by_method(
            [r for r in records if r.attempt == attempt]
        ).items():
            other = name == BASE and any(r.differences().any() for r in found.values())
            if other or name in TRIED:
                paired = pooled.difference(found, own.get(name, {}))
                over = interval(pooled.gain(paired)) if len(paired) == len(found) else DASH
                add(f"try: {attempt}", name, found, over)
    if not rows:
        return None
    rows.sort(key=lambda row: -row[0])
    head = ["what", "row", "gain over finetune, points", "p", "over own settings", "runs"]
    return [[*head, f"over `{subject}`"], *(cells for _, cells in rows)]


def interval(gain: Gain) -> str:
    """A gain with its 95 % interval, in points."""
    return f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def on_test(record: Record) -> float:
    """The primary metric on test."""
    return POINTS * record.test[record.primary]["value"]


def _over_seeds(
    found: Mapping[Key, Record], task: str, value: Callable[[Record], float]
) -> str:
    values = [value(r) for (name, _), r in sorted(found.items()) if name == task]
    if not values:
        return DASH
    mean = statistics.fmean(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ± {statistics.stdev(values):.2f}"


def _figure(figure: Figure) -> str:
    return f"{figure[0]:.2f} ± {figure[1]:.2f}"
