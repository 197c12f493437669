"""The command line that everything with a protocol shares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocols import records, settings


def parser(description: str | None, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Which protocol, tasks and seeds, and where everything lies.

    Args:
        description: The program's docstring.
        seeds: Unless others are given.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--protocol", choices=settings.PROTOCOLS, help="without one, nothing runs"
    )
    made.add_argument("--tasks", default=",".join(settings.TASKS))
    made.add_argument("--seeds", default=",".join(map(str, seeds)))
    made.add_argument("--data", type=Path, default=Path("../shared/data"))
    made.add_argument("--runs", type=Path, default=Path("runs/quality"))
    made.add_argument("--results", type=Path, default=records.FOLDER)
    made.add_argument(
        "--precision",
        choices=settings.PRECISIONS,
        default=settings.PRECISIONS[0],
        help="float32 where the processor has no instructions for bfloat16",
    )
    made.add_argument("--quiet", action="store_true")
    made.add_argument("--json", action="store_true")
    return made
