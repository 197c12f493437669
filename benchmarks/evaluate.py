"""One evaluation of the CoLA and MRPC validation splits with MiniLM, against the usual way.

    python -m benchmarks.evaluate --data FOLDER --json

FOLDER holds the folders cola and mrpc; without it the data comes from the hub. The usual way:
every text padded to 512 tokens, float32, batches of 32. It is slow, so it is timed on
`--usual-rows` rows and counted as if all rows took as long (they do: all are padded alike).
Both ways alternate in one process; speed-ups compare medians, `*_cpu` those of processor
time, which other work on the machine hardly touches. `*_difference`: the largest between
logits of both ways. `*_share`: of the matrix rate measured here, counting the encoder's
products on real tokens alone.

`--candidates c` adds `*_candidates_ratio`, seconds of c models one after the other by seconds
of c models side by side, which alternate too; above 1 means that it pays.
`*_candidates_difference` is the largest between logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

from fusetune.evaluation.candidates import outcomes
from fusetune.evaluation.scorer import Scorer
from fusetune.models.device import DTYPES, choose_device, choose_precision
from fusetune.models.load import resolve
from fusetune.tasks import find
from fusetune.tasks.splitting import Splitting

TASKS = {
    "cola": (["sentence"], "matthews_correlation"),
    "mrpc": (["sentence1", "sentence2"], "f1"),
}
USUAL_LENGTH, USUAL_BATCH = 512, 32


def seconds_of(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def matrix_rate(dtype: torch.dtype, device: torch.device, repeats: int = 9) -> float:
    """FLOP per second of processor (on a GPU: wall) time, at MiniLM's largest product."""
    n, k, m = 1024 if device.type == "cpu" else 65536, 384, 1536
    a, b = (torch.randn(*s, device=device).to(dtype) for s in ((n, k), (m, k)))
    linear = torch.nn.functional.linear
    kind = 1 if device.type == "cpu" else 0
    times = [
        seconds_of(lambda: [linear(a, b) for _ in range(20)], device)[kind]
        for _ in range(repeats)
    ]
    return 20 * 2 * n * k * m / statistics.median(times[1:])


def side_by_side(
    ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of some ways that take turns."""
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            took[way].append(seconds_of(run, device))
    return {
        way: (statistics.median(t[0] for t in v), statistics.median(t[1] for t in v))
        for way, v in took.items()
    }


def together(
    name: str, scorer: Scorer, model: nn.Module, number: int, repeats: int
) -> dict[str, float]:
    """So many models one after the other, and side by side; averaging is not counted."""
    stack = {
        key: value.detach().expand(number, *value.shape).clone()
        for key, value in model.state_dict(keep_vars=True).items()
        if value.is_floating_point()
    }
    alone = scorer(model).outputs
    assert alone is not None
    found = outcomes(stack, model, scorer)
    ways: dict[str, Callable[[], object]] = {
        "alone": lambda: [scorer(model) for _ in range(number)],
        "together": lambda: outcomes(stack, model, scorer),
    }
    took = side_by_side(ways, scorer.device, repeats)
    return {
        f"{name}_candidates_ratio": took["alone"][0] / took["together"][0],
        f"{name}_candidates_ratio_cpu": took["alone"][1] / took["together"][1],
        f"{name}_candidates_difference": max(
            float(np.abs(alone.predictions - other.predictions).max()) for other in found
        ),
    }


def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds of both ways on one task, and their ratio."""
    text, metric = TASKS[name]
    data = str(options.data / name) if options.data else f"nyu-mll/glue:{name}"
    task = find("sequence-classification")(
        name,
        data,
        text=text,
        label="label",
        metrics=[metric],
        splitting=Splitting(halve="validation", hold_out=None, seed=41),
    )
    source = resolve("minilm")
    tokenizer = source.tokenizer()
    torch.manual_seed(0)
    model = source.build(task.build).eval().to(device)
    dtype = DTYPES[choose_precision(options.precision, device)]
    encoded = task.encode("validation", tokenizer, 128)
    scorer = Scorer(task, encoded, task.collate(tokenizer), device, dtype, options.budget)
    rows = range(min(options.usual_rows, len(encoded)))
    usual = [
        {
            key: value.to(device)
            for key, value in tokenizer.pad(
                [dict(encoded[i]) for i in rows[start : start + USUAL_BATCH]],
                padding="max_length",
                max_length=USUAL_LENGTH,
                return_tensors="pt",
            ).items()
        }
        for start in range(0, len(rows), USUAL_BATCH)
    ]

    def published() -> list[np.ndarray]:
        return [task.outputs(model, batch).predictions for batch in usual]

    ours = scorer(model).outputs
    assert ours is not None
    difference = np.abs(ours.predictions[: len(rows)] - np.concatenate(published())).max()
    ways: dict[str, Callable[[], object]] = {"ours": lambda: scorer(model), "usual": published}
    took = side_by_side(ways, device, options.repeats)
    scale = len(encoded) / len(rows)
    wall = {way: seconds[0] for way, seconds in took.items()}
    processor = {way: seconds[1] for way, seconds in took.items()}
    flop = 2 * int(encoded.lengths.sum())
    flop *= sum(p.numel() for p in model.base_model.encoder.parameters() if p.ndim == 2)
    spent = processor["ours"] if device.type == "cpu" else wall["ours"]
    more: dict[str, float] = {}
    if options.candidates > 1:
        more |= together(name, scorer, model, options.candidates, options.repeats)
    return {
        **more,
        f"{name}_speedup": wall["usual"] * scale / wall["ours"],
        f"{name}_speedup_cpu": processor["usual"] * scale / processor["ours"],
        f"{name}_seconds": wall["ours"],
        f"{name}_seconds_cpu": processor["ours"],
        f"{name}_usual_seconds_cpu": processor["usual"] * scale,
        f"{name}_difference": float(difference),
        f"{name}_share": flop / spent / matrix_rate(dtype, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--usual-rows", type=int, default=USUAL_BATCH)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=int, help="tokens per batch")
    parser.add_argument("--candidates", type=int, default=0, help="models side by side")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = choose_device(options.device)
    found: dict[str, float] = {"threads": torch.get_num_threads()}
    for name in options.tasks:
        found |= measure(name, options, device)
    for precision in ("float32", "bfloat16"):
        found[f"gflops_{precision}"] = matrix_rate(DTYPES[precision], device) / 1e9
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:.4g}")


if __name__ == "__main__":
    main()
