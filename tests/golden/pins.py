"""What the golden runs gave when they were pinned, and how near another run has to come."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.golden.runs import RUNS, Outcome

FOLDER = Path(__file__).parent / "pinned"

# Processors round differently. Between kernels with and without AVX2 and AVX-512 the tensors
# differ by a few millionths of their size. A proposed w differs by up to 0.002, as it is the
# highest point of a flat surface, and what is measured there differs with it.
TENSORS = {"rel_tol": 1e-3, "abs_tol": 1e-4}
OTHERS = {"rel_tol": 1e-2, "abs_tol": 5e-3}


def make(name: str) -> Outcome:
    """Do one run in a folder of its own, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return RUNS[name](Path(folder))
    finally:
        torch.set_num_threads(threads)


def pin(name: str) -> None:
    """Do one run and keep its outcome as the one that is right."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(_rounded(make(name)), indent=1, sort_keys=True)
    (FOLDER / f"{name}.json").write_text(text + "\n")


def differences(name: str) -> list[str]:
    """Do one run and say where its outcome is not the pinned one."""
    pinned = dict(_flat(json.loads((FOLDER / f"{name}.json").read_text())))
    found = dict(_flat(json.loads(json.dumps(make(name)))))
    return [
        f"{'/'.join(at)}: pinned {pinned.get(at, 'nothing')}, now {found.get(at, 'nothing')}"
        for at in sorted(pinned.keys() | found.keys())
        if at not in pinned or at not in found or not _same(at, pinned[at], found[at])
    ]


def _same(at: tuple[str, ...], a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, **(TENSORS if at[0] == "fused" else OTHERS))
    return bool(a == b)


def _flat(content: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    parts: Iterator[tuple[Any, Any]] | None = None
    if isinstance(content, dict):
        parts = iter(content.items())
    elif isinstance(content, list):
        parts = iter(enumerate(content))
    if parts is None:
        yield at, content
        return
    for key, value in parts:
        yield from _flat(value, (*at, str(key)))


def _rounded(content: Any) -> Any:
    """Seven digits, as many as float32 has, so that new pins change few lines."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.7g}") if isinstance(content, float) else content
