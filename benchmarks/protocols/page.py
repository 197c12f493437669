"""docs/results.md from the stored records: the papers' tables, and what was tried."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.protocols import pooled, tables
from benchmarks.protocols.appendix import Table, commands, landscapes, markdown, transfers
from benchmarks.protocols.goal import against_goal
from benchmarks.protocols.pooled import BASE
from benchmarks.protocols.published import OUTER, TITLES
from benchmarks.protocols.records import Record
from benchmarks.protocols.settings import GONE, precision_of
from benchmarks.protocols.tables import Methods, interval

_PLACE = re.compile(r"--tasks (\S+) --seeds (\S+)")
SUBTITLES = {
    "a": "the papers' splits",
    "b": "less noisy splits: whole dev and test splits, or rows held out of training",
}


def page(
    records: Sequence[Record],
    subject: str = "",
    rules: Sequence[Mapping[str, Any]] = (),
    transferred: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page; where nothing is stored it says what is missing.

    Args:
        records: Of all protocols.
        subject: The row that stands for fusetune; the default one if "".
        rules: What `benchmarks.rules` stored.
        transferred: What `benchmarks.transfer` stored.
    """
    parts = [_HEAD]
    for protocol in ("b", "a"):
        kept = [r for r in records if r.protocol == protocol]
        parts.append(f"## Protocol {protocol}: {SUBTITLES[protocol]}\n")
        if not kept:
            parts.append(
                "No results are stored. They are made by\n\n```bash\npython -m "
                f"benchmarks.quality --protocol {protocol} --data ../shared/data\n```\n"
            )
            continue
        own = pooled.by_method([r for r in kept if not r.attempt])
        name = pooled.subject_of(own, subject)
        found = pooled.summary(kept, protocol, subject)
        bo = ("bo", "mobo")
        parts += [
            _precision(kept),
            _headline(found, kept),
            _without_fusion(own, subject),
            # The goal was set for the splits on which decisions are taken.
            against_goal(own, found) if protocol == "b" else "",
            _section("Table 1: comparison", tables.comparison(own, name), own),
            _section(
                "Table 2: loss against metric", tables.discrepancy(own), own, (BASE, "swa")
            ),
            _section("Table 3: BO against MOBO", tables.points(own, bo, name), own, bo),
            _section(
                "Table 4: the search of λ around every baseline", tables.outer(own), own, OUTER
            ),
            _tries(kept, own, name),
        ]
    parts += [transfers(transferred), landscapes(rules)]
    return "\n".join(filter(None, parts)).rstrip() + "\n"


def rules(folder: Path) -> list[dict[str, Any]]:
    """What `benchmarks.rules` stored in a folder."""
    files = sorted(folder.glob("rules-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


_HEAD = """# Results

This page is written by `python -m benchmarks.quality --page` from the records in
`benchmarks/results/`, one for each task, seed and method. Ours: MiniLM (6 layers, 22.7 M
parameters). Published: RoBERTa-base, four seeds (workshop version of the paper). Figures are
test values in points, means ± standard deviations over the seeds; validation chooses, test only
reports. Absolute figures of the two models cannot be compared; gains over `finetune`, and
shares of the distance from `finetune` to `oracle`, can.

A gain's interval (95 %) and p-value come from the paired bootstrap over test rows: seeds of
a task with the same test rows are resampled together, all else independently, and the gains
averaged over seeds, then over tasks. They say how sure the gain is for the models that were
trained; the second p-value changes the signs of the gains of whole runs, and so counts the
training's own randomness too. The rule of choice was settled on landscapes of the seeds 41 and
42, and the rule for the learning rate after half of it had been tried with these; the seeds 43
and 44 were trained with both settled.

`bomf` is the whole run: a search of λ on light trials, a training that is begun with the rate
found and with lower ones, a search over w. `bomf` itself takes the highest validation metric,
as the papers do, `bomf.default` what the default rule of choice does. `bomf.finetune` is the
best checkpoint of the same trainings, so the difference is what fusing gains; the rest of it is
the learning rate's. Rows without a search or a grid train with the protocol's own λ.
"""


def _precision(records: Sequence[Record]) -> str:
    stated = {precision_of(r.settings) for r in records} - {""}
    if not stated:
        return ""
    return f"Trained and evaluated in {' and '.join(sorted(stated))}.\n"


def _headline(found: Mapping[str, Any], records: Sequence[Record]) -> str:
    name = found["subject"]
    if found["gain_points"] is None:
        return f"Missing: no record of `{name}`, fusetune's default.\n"
    low, high = found["gain_interval"]
    share = found["share_closed"]
    part = (
        "no oracle is stored"
        if share is None
        else f"{100 * share:.0f} % of the distance to `oracle`"
    )
    tasks = ", ".join(TITLES[t] for t in found["tasks"])
    by_task, by_seed = (
        ", ".join(
            f"{TITLES.get(part, part)} {value:+.2f} [{lower:+.2f}, {upper:+.2f}]"
            for part, (value, lower, upper) in found[key].items()
        )
        for key in ("by_task", "by_seed")
    )
    ahead = ", ".join(f"`{other}`" for other in found["ahead"])
    after = f", after {ahead}" if ahead else ""
    return (
        f"**`{name}` gains {found['gain_points']:+.2f} points over `finetune`** "
        f"[{low:+.2f}, {high:+.2f}], p = {found['gain_p_value']:.3f} (over runs "
        f"{found['gain_p_value_runs']:.3f}); {part}; place {found['rank']} of "
        f"{found['candidates']} candidates{after}. Runs: {found['runs']}, of {tasks}"
        f"{_lacking(records, name)}.\n\n"
        f"By task: {by_task}.\n\nBy seed: {by_seed}.\n"
    )


def _lacking(records: Sequence[Record], name: str) -> str:
    """The runs of `finetune` that a row has yet to be made for."""
    own = pooled.by_method([r for r in records if not r.attempt])
    missing = sorted(set(own.get(BASE, {})) - set(own[name]))
    runs = ", ".join(f"{TITLES[task]} {seed}" for task, seed in missing)
    return f"; not made yet: {runs}" if runs else ""


def _without_fusion(own: Methods, subject: str) -> str:
    """What the best checkpoint of the same trainings gains, and what fusing adds to it."""
    name = pooled.subject_of(own, subject)
    unfused = f"{name.partition('.')[0]}.{BASE}"
    if not own.get(unfused) or set(own[unfused]) != set(own.get(name, {})):
        return ""
    alone, added = own[unfused], pooled.difference(own[name], own[unfused])
    return (
        f"`{unfused}`, the best checkpoint of the same trainings, gains "
        f"{interval(pooled.gain(alone))}; fusing adds {interval(pooled.gain(added))}.\n"
    )


def _section(title: str, table: Table, own: Methods, names: Iterable[str] = ()) -> str:
    shown = [n for n in (names or own) if n in own]
    body = markdown(table) + _commands([r for n in shown for r in own[n].values()])
    return f"### {title}\n\n{body}"


def _commands(records: Sequence[Record]) -> str:
    """The commands that made the records; those that differ in task and seed alone are one."""
    made: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        before, task, seed, after = _PLACE.split(record.command, maxsplit=1)
        made[before, after][task].add(seed)
    lines = set()
    for (before, after), tasks in made.items():
        alike = defaultdict(list)
        for task, seeds in sorted(tasks.items()):
            alike[",".join(sorted(seeds))].append(task)
        for numbers, names in alike.items():
            lines.add(f"{before}--tasks {','.join(names)} --seeds {numbers}{after}")
    return commands(lines)


def _tries(records: Sequence[Record], own: Methods, subject: str) -> str:
    table = tables.tried(records, own, subject)
    if table is None:
        return "### What was tried\n\nNo record of a rule or of a try is stored.\n"
    made = _commands([r for r in records if r.attempt])
    return (
        "### What was tried\n\nAll gains are over `finetune` with the protocol's own settings, "
        "also those of a try's own `finetune`. The last column is on the runs that both "
        f"have.{_gone(records)}\n\n{markdown(table)}{made}"
    )


def _gone(records: Sequence[Record]) -> str:
    """Which of the tries need settings that are gone."""
    found = sorted({r.attempt for r in records} & set(GONE))
    if not found:
        return ""
    return f" Measured with settings that only version 0.1.0 has: {', '.join(found)}."
