"""Seconds of one average and of one suggestion as members, parameters and trials grow.

    python -m benchmarks.scale --json
    python -m benchmarks.scale --picture scale.html

Averages of k members with P parameters (float32, resident) should cost in proportion to k P:
`average_exponent` is the slope of log seconds over log(k P), 1 if they do. Suggestions are made
for k members, m objectives and n evaluations; `suggest_largest` is k = 50, m = 4, n = 300.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plotly.subplots import make_subplots
from safetensors.torch import save_file
from torch import nn

from fusetune.members.average import ResidentAverage
from fusetune.members.memory import required_bytes
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.optimization import fusion

AVERAGES = ((5, 1), (5, 4), (15, 1), (15, 4), (15, 16), (30, 4), (30, 16))  # k, millions
SUGGESTIONS = tuple(itertools.product((5, 15, 50), (2, 3, 4), (50, 100, 300)))  # k, m, n

Row = dict[str, float]


class Block(nn.Module):
    """One parameter of P elements."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parameters))


def median(run: Callable[[], object], repeats: int) -> float:
    """Seconds of a run, the first one left out."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def average(k: int, millions: int, repeats: int) -> Row:
    """Seconds and bytes of averages of k members."""
    parameters = millions * 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        for i in range(k):
            member = Path(folder) / f"step-{i + 1}"
            member.mkdir()
            generator = torch.Generator().manual_seed(i)
            tensors = {"weight": torch.randn(parameters, generator=generator)}
            save_file(tensors, member / "model.safetensors")
        pool = MemberPool.open(folder)
        resident = ResidentAverage(pool, Block(parameters))
        weights = FusionWeights.uniform(k)
        seconds = median(lambda: resident.into_model(weights), repeats)
        memory = required_bytes(pool)
    return {"k": k, "parameters": parameters, "seconds": seconds, "gb": memory / 1e9}


def suggestion(k: int, m: int, n: int, repeats: int) -> Row:
    """Seconds of a suggestion after n evaluations, members first; another seed each time."""
    random = np.random.default_rng(0)
    points = np.concatenate([np.eye(k), random.dirichlet(np.ones(k), size=n)])[:n]
    values = quadratics(points, m, random)
    seeds = itertools.count()
    seconds = median(lambda: fusion.suggest(points, values, seed=(41, next(seeds))), repeats)
    return {"k": k, "m": m, "n": n, "seconds": seconds}


def quadratics(points: np.ndarray, m: int, random: np.random.Generator) -> np.ndarray:
    """m objectives with different best points, and a little noise."""
    best = random.dirichlet(np.ones(points.shape[1]), size=m)
    distance = ((points[:, None] - best) ** 2).sum(axis=-1)
    return np.asarray(-distance + 0.01 * random.normal(size=distance.shape))


def measure(repeats: int) -> dict[str, Any]:
    """All rows, and what they come to."""
    averages = [average(k, millions, repeats) for k, millions in AVERAGES]
    size = np.log([row["k"] * row["parameters"] for row in averages])
    exponent = float(np.polyfit(size, np.log([row["seconds"] for row in averages]), 1)[0])
    suggestions = [suggestion(k, m, n, repeats) for k, m, n in SUGGESTIONS if n >= k]
    return {
        "average_exponent": exponent,
        "suggest_largest": suggestions[-1]["seconds"],
        "average": averages,
        "suggest": suggestions,
    }


def picture(found: dict[str, Any], path: Path) -> None:
    """Both tables as figures in one page."""
    figure = make_subplots(1, 2, subplot_titles=["one average", "one suggestion"])
    for k in sorted({row["k"] for row in found["average"]}):
        rows = [row for row in found["average"] if row["k"] == k]
        x = [row["k"] * row["parameters"] for row in rows]
        y = [row["seconds"] for row in rows]
        figure.add_scatter(x=x, y=y, name=f"k = {k}", mode="lines+markers", row=1, col=1)
    for k, m in sorted({(row["k"], row["m"]) for row in found["suggest"]}):
        rows = [row for row in found["suggest"] if (row["k"], row["m"]) == (k, m)]
        x, y = [row["n"] for row in rows], [row["seconds"] for row in rows]
        name = f"k = {k}, m = {m}"
        figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", row=1, col=2)
    figure.update_xaxes(type="log", title="k P", row=1, col=1)
    figure.update_xaxes(title="evaluations", row=1, col=2)
    figure.update_yaxes(type="log", title="seconds")
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="write the figures to this page")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    if arguments.picture:
        picture(found, arguments.picture)
    if arguments.json:
        print(json.dumps(found))
        return
    for name in ("average", "suggest"):
        for row in found[name]:
            print(name, "  ".join(f"{key} {value:g}" for key, value in row.items()))
    print(f"average_exponent {found['average_exponent']:.2f}")
    print(f"suggest_largest {found['suggest_largest']:.3f} s")


if __name__ == "__main__":
    main()
