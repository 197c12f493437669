"""Averaging members that are together larger than memory, file to file.

    python -m benchmarks.stream --json

Writes k synthetic members (bfloat16, in shards), reads all their bytes in order with plain
reads (the machine's read rate), then averages them in a process of its own, whose peak resident
memory is told by the system. The system's cache is asked to forget the files before each pass.
`ratio_to_read`: rate of averaging over rate of reading; medians of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from fusetune.members.average import StreamingAverage
from fusetune.members.disk import require_space, write_json
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.members.writer import write_average

TENSOR = 1 << 25  # elements of a synthetic tensor; 64 MB
SHARD = 8  # tensors of a shard
BLOCK = 1 << 22  # bytes of a plain read


def make(folder: Path, k: int, member_bytes: int) -> None:
    """k members of about `member_bytes` each, every one in shards with an index."""
    count = max(1, round(member_bytes / (2 * TENSOR)))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(TENSOR, generator=generator).bfloat16()
    for i in range(k):
        member = folder / f"step-{i + 1:06d}"
        member.mkdir(parents=True)
        names = [f"layer.{j:04d}.weight" for j in range(count)]
        shards = [names[j : j + SHARD] for j in range(0, count, SHARD)]
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            # Rolled by another amount each: no two members, and no two tensors, are equal.
            tensors = {n: torch.roll(noise, 1000 * i + j) for j, n in enumerate(shard)}
            save_file(tensors, member / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        index = {"metadata": {}, "weight_map": weight_map}
        write_json(member / "model.safetensors.index.json", index)


def files_of(folder: Path) -> list[Path]:
    """All weight files, in order."""
    return sorted(folder.glob("step-*/*.safetensors"))


def forget(files: list[Path]) -> None:
    """Ask the system to drop what it has cached of these files."""
    os.sync()
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(files: list[Path]) -> float:
    """Seconds for reading every byte once, file after file."""
    buffer = bytearray(BLOCK)
    started = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - started


def average(folder: Path, out: Path) -> dict[str, float]:
    """Seconds and peak memory of one average in this process."""
    pool = MemberPool.open(folder)
    k = len(pool)
    weights = FusionWeights.normalised(range(1, k + 1))
    out.mkdir(exist_ok=True)
    started = time.perf_counter()
    write_average(StreamingAverage(pool, None), weights, out)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "peak_rss_gb": peak}


def measure(folder: Path, k: int, member_bytes: int, repeats: int) -> dict[str, float]:
    """Both ways, turn by turn."""
    require_space(folder, (k + 1) * member_bytes)
    make(folder, k, member_bytes)
    files = files_of(folder)
    total = sum(file.stat().st_size for file in files)
    reading, averaging, peaks = [], [], []
    for number in range(repeats):
        forget(files)
        reading.append(read_all(files))
        forget(files)
        command = [sys.executable, "-m", "benchmarks.stream", "--average", str(folder)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        averaging.append(told["seconds"])
        peaks.append(told["peak_rss_gb"])
        print(f"{number + 1} of {repeats}", file=sys.stderr)
    read, averaged = statistics.median(reading), statistics.median(averaging)
    return {
        "members_gb": total / 1e9,
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "read_gb_per_second": total / read / 1e9,
        "average_gb_per_second": total / averaged / 1e9,
        "ratio_to_read": read / averaged,
        "peak_rss_gb": max(peaks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=15)
    parser.add_argument(
        "--gigabytes", type=float, help="of all members; a tenth more than memory by default"
    )
    parser.add_argument("--folder", help="where the members go; a temporary folder by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--average", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.average:
        print(json.dumps(average(arguments.average, arguments.average / "out")))
        return
    gigabytes = arguments.gigabytes or 1.1 * psutil.virtual_memory().total / 1e9
    each = int(gigabytes * 1e9 / arguments.members)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), arguments.members, each, arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:.4f}")


if __name__ == "__main__":
    main()
