"""Memory and speed of averaging LoRA adapters on one base.

    python -m benchmarks.adapters --json

Writes SmolLM2-135M (from its package, or random weights of its shapes) and k random adapters of
all its linear layers, then averages them in a process of its own, whose peak resident memory
is told by the system.
`goal_bytes` is what must be there: the base, k adapters, and one sum (the adapted weights once
more). `ratio`: peak, less what the imported libraries take, over the goal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fusetune.errors import ModelError
from fusetune.members.adapter_average import AdapterAverage
from fusetune.members.average import plan
from fusetune.members.disk import write_json
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.models.load import resolve
from fusetune.models.lora import LoraSettings, add_lora


def base() -> PreTrainedModel:
    """SmolLM2-135M, or a model of its shapes: memory and time are the same."""
    try:
        return resolve("smollm2").build(AutoModelForCausalLM.from_pretrained)
    except ModelError as error:
        print(f"Random weights instead: {error}", file=sys.stderr)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                tie_word_embeddings=True,
            )
        )


def make(folder: Path, k: int, rank: int) -> None:
    """The base as a plain folder, and k adapters with random factors."""
    model = base()
    model.save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    wrapped = add_lora(model, LoraSettings(rank, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    for i in range(k):
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.01, generator=generator)
        wrapped.save_pretrained(folder / f"step-{i + 1:06d}", save_embedding_layers=False)


def average(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds and peak memory of averages in this process."""
    libraries = _peak()
    pool = MemberPool.open(
        str(folder / "step-*"),
        base=lambda: AutoModelForCausalLM.from_pretrained(folder / "base"),
    )
    assert pool.adapters is not None
    average = plan(pool, pool.adapters.base.model)
    assert isinstance(average, AdapterAverage)
    seconds = []
    for i in range(repeats):
        weights = FusionWeights.normalised(range(i + 1, i + 1 + len(pool)))
        started = time.perf_counter()
        average.into_model(weights)
        seconds.append(time.perf_counter() - started)
    base = sum(info.nbytes for info in pool.tensors.values())
    total = sum(stack.base.nbytes for stack in average.stacks.values())
    peak = _peak() - libraries
    goal = base + pool.nbytes + total
    return {
        "base_bytes": base,
        "adapters_bytes": pool.nbytes,
        "sum_bytes": total,
        "goal_bytes": goal,
        "peak_bytes": peak,
        "libraries_bytes": libraries,
        "ratio": peak / goal,
        "seconds_per_average": statistics.median(seconds),
    }


def _peak() -> int:
    """Bytes of this process's largest resident memory so far.

    Not `ru_maxrss`, which on Linux begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=15)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        found = average(arguments.measure, arguments.repeats)
        write_json(arguments.measure / "result.json", found)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, arguments.members, arguments.rank)
        command = [sys.executable, "-m", "benchmarks.adapters", "--measure", str(folder)]
        command += ["--repeats", str(arguments.repeats)]
        subprocess.run(command, check=True)
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    found |= {"members": arguments.members, "rank": arguments.rank}
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<22}{value:>18,.3f}")


if __name__ == "__main__":
    main()
