"""Small runs one after the other in one process: does its memory grow?

    python benchmarks/soak.py --minutes 60 --json

Each is a whole run with another seed: search, training, fusion, report. After each, garbage is
collected and the resident memory (RSS) read. `slope_mb_per_hour` is the least-squares slope
over the runs after the first quarter, which fill caches; `slope_mb_per_run` the same by run;
`objects_per_run` by how many the collector's objects grow. `threads` and `files` are those
open at the end, less those after the first run.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # as a script: the project's root comes first
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from benchmarks import tiny

LEAST = 4  # runs without which no slope can be told


@dataclass(frozen=True, slots=True)
class Reading:
    """After one run.

    Attributes:
        hours: Since the start.
        megabytes: Resident memory.
        objects: That the collector knows.
        threads: Alive.
        files: Open.
    """

    hours: float
    megabytes: float
    objects: int
    threads: int
    files: int


def read(began: float) -> Reading:
    """The process as it is now, garbage collected."""
    gc.collect()
    process = psutil.Process()
    return Reading(
        (time.monotonic() - began) / 3600,
        process.memory_info().rss / 1e6,
        len(gc.get_objects()),
        process.num_threads(),
        process.num_fds(),
    )


def soak(minutes: float, place: Path) -> list[Reading]:
    """Run after run until the time is over, and at least `LEAST` of them."""
    import torch

    from fusetune.pipeline import run
    from fusetune.recipe_file import parse

    torch.set_num_threads(1)
    recipe = tiny.make_recipe(place)
    began = time.monotonic()
    readings: list[Reading] = []
    while time.monotonic() < began + 60 * minutes or len(readings) < LEAST:
        folder = place / f"run-{len(readings)}"
        run(parse(recipe, [f"seed={len(readings)}"]), folder)
        shutil.rmtree(folder)
        readings.append(read(began))
        last = readings[-1]
        print(
            f"run {len(readings)}: {last.megabytes:.1f} MB, {last.objects} objects",
            file=sys.stderr,
            flush=True,
        )
    return readings


def summary(readings: list[Reading]) -> dict[str, Any]:
    """The slopes over the runs after the first quarter."""
    later = readings[len(readings) // 4 :]
    runs = np.arange(len(later))
    hours = np.array([r.hours for r in later])
    megabytes = np.array([r.megabytes for r in later])
    objects = np.array([r.objects for r in later], dtype=np.float64)
    first, last = readings[0], readings[-1]
    return {
        "runs": len(readings),
        "minutes": round(60 * last.hours, 1),
        "rss_first_mb": round(first.megabytes, 1),
        "rss_last_mb": round(last.megabytes, 1),
        "slope_mb_per_hour": round(float(np.polyfit(hours, megabytes, 1)[0]), 2),
        "slope_mb_per_run": round(float(np.polyfit(runs, megabytes, 1)[0]), 3),
        "objects_per_run": round(float(np.polyfit(runs, objects, 1)[0]), 1),
        "threads": last.threads - first.threads,
        "files": last.files - first.files,
    }


def main() -> None:
    """Soak, and print the slopes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusetune-soak-") as place:
        found = summary(soak(options.minutes, Path(place)))
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
