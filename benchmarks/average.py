"""Σ w_i θ_i of k members in memory, against other ways and against reading the same memory.

    python -m benchmarks.average --json

Ratios compare medians of runs that alternate in one process, so that what else the machine
does hits all of them alike. `ratio_to_read`: a float32 sum over the same block.
`ratio_to_mergekit`: mergekit's linear merge of the same folders, file to file, over ours, each
in a process of its own; null without its command (`pip install mergekit`, or --mergekit PATH).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertForSequenceClassification

from fusetune.members.average import ResidentAverage
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

OUT = "ours"  # beside the folder of the members

WRITE = """
import sys
from pathlib import Path
from fusetune.members.average import StreamingAverage
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.members.writer import write_average
pool, out = MemberPool.open(sys.argv[1]), Path(sys.argv[2])
weights = FusionWeights.normalised(range(1, len(pool) + 1))
out.mkdir(exist_ok=True)
write_average(StreamingAverage(pool, None), weights, out)
"""  # a process of its own, as mergekit's command is


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


def files_to_file(k: int, layers: int, repeats: int, command: str) -> dict[str, float]:
    """Median seconds of merging folders into one, by mergekit's command and by ours."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pool = build(root / "members", k, layers)
        models = [
            {"model": str(m.path), "parameters": {"weight": (i + 1) / k}}
            for i, m in enumerate(pool.members)
        ]
        settings = {"models": models, "merge_method": "linear", "dtype": "float32"}
        recipe = root / "linear.yaml"
        recipe.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        theirs = [command, str(recipe), str(root / "theirs")]
        ours = [sys.executable, "-c", WRITE, str(root / "members"), str(root / OUT)]
        seconds: dict[str, list[float]] = {"mergekit": [], "fusetune": []}
        for _ in range(repeats + 1):
            for name, run in (("mergekit", theirs), ("fusetune", ours)):
                started = time.perf_counter()
                subprocess.run(run, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
        merged = load_file(root / "theirs" / "model.safetensors")
        written = load_file(root / OUT / "model.safetensors")
    for name, tensor in written.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)
    return {name: statistics.median(s[1:]) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=15)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    k, layers, repeats = arguments.members, arguments.layers, arguments.repeats
    found: dict[str, float | None] = {**measure(k, layers, repeats), "ratio_to_mergekit": None}
    if arguments.mergekit:
        seconds = files_to_file(k, layers, repeats, arguments.mergekit)
        found |= {f"seconds_file_to_file_{name}": value for name, value in seconds.items()}
        found["ratio_to_mergekit"] = seconds["mergekit"] / seconds["fusetune"]
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:32} {'not measured' if value is None else f'{value:.4f}'}")


if __name__ == "__main__":
    main()
