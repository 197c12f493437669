"""What `benchmarks.transfer` stored: do light trials rank λ as the full model does?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.objective import Objective
from fusetune.report.agreement import Agreement, Trained, agreement

FOLDER = "transfer"
PAIRS = {
    "light_full": ("light", "full"),
    "light_fused": ("light", "fused"),
    "member_fused": ("best_member", "fused"),
}
"""What is compared with what, by the name of the figure."""


def stored(folder: Path) -> list[dict[str, Any]]:
    """Every comparison that is stored, ordered by its name."""
    files = sorted((folder / FOLDER).glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def agreements(found: Mapping[str, Any]) -> dict[str, Agreement]:
    """The comparisons of `PAIRS`, by their name."""
    rows = [Trained(**trial) for trial in found["trials"]]
    # All primary metrics of the protocols are to be maximised.
    objective = Objective(found["metric"], "maximize")
    return {name: agreement(rows, *pair, objective) for name, pair in PAIRS.items()}


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Mean rank correlations over what is stored; None where nothing is."""
    each = [agreements(one) for one in found]
    means: dict[str, float | int | None] = {"comparisons": len(each)}
    for name in PAIRS:
        known = [a[name].correlation.spearman for a in each]
        values = [value for value in known if value is not None]
        means[name] = statistics.fmean(values) if values else None
    return means
