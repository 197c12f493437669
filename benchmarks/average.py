"""Σ w_i θ_i of k members in memory, against other ways and against reading the same memory.

    python -m benchmarks.average --json

Ratios compare medians of runs that alternate in one process, so that what else the machine
does hits all of them alike. `ratio_to_read`: a float32 sum over the same block.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertForSequenceClassification

from fusetune.members.average import ResidentAverage
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights


def build(folder: Path, k: int, layers: int) -> MemberPool:
    """Members of MiniLM's shape (22.7 M parameters with 6 layers), random."""
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    for i in range(k):
        torch.manual_seed(i)
        BertForSequenceClassification(config).save_pretrained(folder / f"step-{i:06d}")
    return MemberPool.open(folder)


def ways(pool: MemberPool) -> dict[str, Callable[[], object]]:
    """Each computes the same average (but for `read`) from members in memory."""
    k = len(pool)
    models = [BertForSequenceClassification.from_pretrained(m.path) for m in pool.members]
    states = [model.state_dict() for model in models]
    random = np.random.default_rng(0)
    weights = FusionWeights.normalised(random.dirichlet(np.ones(k)))
    resident = ResidentAverage(pool, BertForSequenceClassification(models[0].config))
    block = torch.stack(
        [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
    )
    array = block.numpy()
    w = np.asarray(weights.values, dtype=np.float32)

    def swa_utils() -> None:
        average = AveragedModel(models[0])
        for model in models:
            average.update_parameters(model)

    def state_dicts() -> None:
        total = {n: torch.zeros_like(t, dtype=torch.float32) for n, t in states[0].items()}
        for weight, state in zip(weights.values, states, strict=True):
            for name, tensor in state.items():
                total[name].add_(tensor, alpha=weight)

    return {
        "resident": lambda: resident.into_model(weights),
        "read": lambda: block.sum(),
        "numpy": lambda: w @ array,
        "state_dicts": state_dicts,
        "swa_utils": swa_utils,
    }


def measure(k: int, layers: int, repeats: int) -> dict[str, float]:
    """Median seconds of every way, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        pool = build(Path(folder), k, layers)
        runs = ways(pool)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(s[1:]) for name, s in seconds.items()}
        found = {f"seconds_{name}": value for name, value in medians.items()}
        found["gb_per_second"] = pool.nbytes / medians["resident"] / 1e9
        for name in ("read", "numpy", "state_dicts", "swa_utils"):
            found[f"ratio_to_{name}"] = medians[name] / medians["resident"]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=15)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.members, arguments.layers, arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:.4f}")


if __name__ == "__main__":
    main()
