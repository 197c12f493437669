"""From which training run each checkpoint is, as far as files tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fusetune.members.member import Member

Losses = list[tuple[int, float]]
"""Step and training loss, as a Trainer logged them."""


def runs(members: Sequence[Member]) -> list[list[Member]]:
    """The members by training run, in order of first appearance.

    Checkpoints in different folders are of different runs. In one folder, a Trainer's
    checkpoints are of one run if the later one remembers the losses that the earlier one
    logged; one that an earlier run left behind does not. Without a log nothing tells them
    apart.

    Args:
        members: In order of their steps.
    """
    found: list[tuple[list[Member], Losses]] = []
    for member in members:
        losses = _losses(member)
        for group, known in found:
            places = [one.checkpoint.absolute().parent for one in (group[0], member)]
            if places[0] == places[1] and _continues(known, losses):
                group.append(member)
                known[:] = losses or known
                break
        else:
            found.append(([member], losses))
    return [group for group, _ in found]


def _continues(earlier: Losses, later: Losses) -> bool:
    return not earlier or not later or later[: len(earlier)] == earlier


def _losses(member: Member) -> Losses:
    path = member.checkpoint / "trainer_state.json"
    try:
        history: Any = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        return [(int(e["step"]), float(e["loss"])) for e in history if "loss" in e]
    except (OSError, ValueError, KeyError, TypeError):
        return []
