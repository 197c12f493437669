"""Further sections of docs/results.md: the search of λ, and rules on landscapes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.protocols.pooled import POINTS
from benchmarks.protocols.published import TITLES
from benchmarks.protocols.settings import precision_of, precision_option
from benchmarks.protocols.transfers import PAIRS, agreements, summary

DASH = "–"
Table = list[list[str]]


def transfers(found: Sequence[Mapping[str, Any]]) -> str:
    """How light trials rank λ, a line for each task and seed."""
    head = "## Do light trials rank λ as the full model does?\n\n"
    if not found:
        return (
            f"{head}Nothing is stored; `python -m benchmarks.transfer --protocol b` makes it.\n"
        )
    names = ("light, full", "light, fused", "best member, fused")
    rows = [["task", "seed", "λ", "epochs", *names, "lost by the light choice, points"]]
    losses = []
    for one in found:
        each = agreements(one)
        lost = each["light_fused"].lost
        losses += [] if lost is None else [lost]
        rows.append(
            [
                TITLES[one["task"]],
                str(one["seed"]),
                str(len(one["trials"])),
                f"{one['epochs']:g}",
                *(_rho(each[name].correlation.spearman) for name in PAIRS),
                DASH if lost is None else f"{POINTS * lost:.2f}",
            ]
        )
    means = summary(found)
    mean_lost = f"{POINTS * statistics.fmean(losses):.2f}" if losses else DASH
    rows.append(["mean", "", "", "", *(_rho(means[name]) for name in PAIRS), mean_lost])
    return (
        f"{head}Spearman's ρ of two orders of the same λ (Sobol points of the search space) by "
        "validation: of light trials and full ones of the same epochs, of light trials and "
        "the models fused from the full ones, of best members and fused models. Lost is by how "
        "much the λ that light trials put first has a worse fused model than the best λ. There "
        "is no ρ where all λ have the same value.\n\n"
        f"{markdown(rows)}{commands(_made(found))}"
    )


def _made(found: Sequence[Mapping[str, Any]]) -> set[str]:
    """The commands that made the comparisons; those that differ in task alone are one."""
    alike = defaultdict(set)
    for one in found:
        option = precision_option(precision_of(one["settings"]))
        alike[one["protocol"], one["seed"], len(one["trials"]), option].add(one["task"])
    return {
        f"python -m benchmarks.transfer --protocol {protocol} "
        f"--tasks {','.join(sorted(tasks))} --seeds {seed} --trials {trials}{option}"
        for (protocol, seed, trials, option), tasks in alike.items()
    }


def _rho(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"


def landscapes(rules: Sequence[Mapping[str, Any]]) -> str:
    """Rules for the choice on re-splits of landscapes, the best first."""
    parts = ["## Rules for the choice on landscapes\n"]
    if not rules:
        parts.append("Nothing is stored; `python -m benchmarks.rules --store` makes it.\n")
    for stored in rules:
        table: Mapping[str, Mapping[str, Sequence[float]]] = stored["rules"]
        counts: Mapping[str, int] = stored["landscapes"]
        command = " ".join(
            f"--{k} {stored[k]}" for k in ("candidates", "evaluations", "splits")
        )
        means = {
            rule: statistics.fmean(gain for gain, _ in row.values())
            for rule, row in table.items()
        }
        rows = [["rule", "mean", *(TITLES.get(task, task) for task in counts)]]
        for rule in sorted(table, key=lambda rule: -means[rule]):
            cells = [f"{gain:+.2f} ± {error:.2f}" for gain, error in table[rule].values()]
            name = f"**{rule}**" if rule == stored["default"] else rule
            rows.append([name, f"{means[rule]:+.2f}", *cells])
        parts.append(
            "Gain on test over the best single member, in points, mean ± standard error: "
            f"`python -m benchmarks.rules {command} --store`. Mixtures of the outputs of real "
            "members stand in for fused models; landscapes by task: "
            + ", ".join(f"{TITLES.get(t, t)} {n}" for t, n in counts.items())
            + f". `fuse.choose: consensus` is “{stored['default']}”.\n\n"
            + markdown(rows)
        )
    return "\n".join(parts)


def commands(lines: Iterable[str]) -> str:
    """Commands, to be unfolded; nothing where there are none."""
    text = "\n".join(sorted(lines))
    if not text:
        return ""
    return f"\n<details><summary>Commands</summary>\n\n```bash\n{text}\n```\n\n</details>\n"


def markdown(table: Table) -> str:
    """A table, the first row its head."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
