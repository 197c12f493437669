"""Protocol b against its goal, part by part, and what stands ahead of fusetune's default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.protocols import pooled
from benchmarks.protocols.appendix import DASH, markdown
from benchmarks.protocols.published import TITLES
from benchmarks.protocols.tables import Methods, interval

GAIN, LEVEL, SHARE, AIM = 1.5, 0.05, 67, 80
"""Points over `finetune`, level of its p-value, per cent of the distance to `oracle`."""


def against_goal(own: Methods, found: Mapping[str, Any]) -> str:
    """A line for each part of the goal: what was wanted, what is there, whether that will do.

    Args:
        own: Method → runs, without tries.
        found: What `pooled.summary` says of them; "" where it has no gain.
    """
    if found["gain_points"] is None:
        return ""
    low, high = found["gain_interval"]
    share, p_value = found["share_closed"], found["gain_p_value"]
    worst = min(found["by_task"], key=lambda task: float(found["by_task"][task][0]))
    value, lower, upper = found["by_task"][worst]
    rows = [
        ("first of all candidates", _place(own, found), found["rank"] == 1),
        (
            f"at least {GAIN} points over `finetune`",
            f"{found['gain_points']:+.2f} [{low:+.2f}, {high:+.2f}]",
            found["gain_points"] >= GAIN,
        ),
        (
            f"pooled over tasks and seeds p < {LEVEL}",
            f"{p_value:.3f}, over runs {found['gain_p_value_runs']:.3f}",
            found["gain_points"] > 0 and p_value < LEVEL,
        ),
        (
            f"at least {SHARE} % of the distance to `oracle`, better {AIM} %",
            DASH if share is None else f"{100 * share:.0f} %",
            share is not None and 100 * share >= SHARE,
        ),
        (
            "on no task worse than `finetune` by more than its noise",
            f"lowest on {TITLES[worst]}: {value:+.2f} [{lower:+.2f}, {upper:+.2f}]",
            all(part[2] >= 0.0 for part in found["by_task"].values()),
        ),
    ]
    table = [["goal", "there is", ""]]
    table += [[wanted, there, "reached" if met else "missed"] for wanted, there, met in rows]
    return f"### Against the goal\n\n{markdown(table)}"


def _place(own: Methods, found: Mapping[str, Any]) -> str:
    """The place, and by how much each candidate is ahead."""
    place = f"place {found['rank']} of {found['candidates']}"
    subject = own[found["subject"]]
    ahead = [
        f"`{name}` is ahead by {interval(pooled.gain(pooled.difference(own[name], subject)))}"
        for name in found["ahead"]
    ]
    return "; ".join([place, *ahead])
