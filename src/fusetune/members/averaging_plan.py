"""Which form of averaging fits a machine, and what one average will cost there."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fusetune.errors import MemberError
from fusetune.members.member import Members
from fusetune.members.memory import adapter_bytes, available_bytes, block_bytes, buffer_bytes
from fusetune.members.pool import MemberPool

Form = Literal["resident", "host", "streaming", "adapters"]
FORMS: tuple[Form, ...] = ("resident", "host", "streaming", "adapters")
SHARE = 0.8  # of the free memory that members may take
PROBE = 1 << 26  # bytes that are read to measure a rate
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class AveragingPlan:
    """Where members will be kept while they are averaged.

    Attributes:
        form: "resident" (beside the model, on its device), "host" (in the host's pinned
            memory, the model on an accelerator), "streaming" (on the disk) or "adapters"
            (their factors and the adapted base weights beside the model).
        members: k.
        parameters: P, of one member; those that are equal in all members are not counted.
        needed: Bytes of memory that the form takes, besides the model.
        free: Bytes that are free where it takes them.
        read: Bytes of members that one average with k weights reads.
        rate: Bytes a second, as measured just now where the members will be.
    """

    form: Form
    members: int
    parameters: int
    needed: int
    free: int
    read: int
    rate: float

    @property
    def seconds(self) -> float:
        """Time of one average at the measured rate."""
        return self.read / self.rate

    def __str__(self) -> str:
        place = {
            "resident": "in memory",
            "host": "in the host's memory",
            "streaming": "on the disk",
            "adapters": "as adapters beside their base",
        }[self.form]
        return (
            f"{self.members} members of {self.parameters / 1e6:.1f} M parameters {place}: "
            f"{self.needed / 1e9:.2f} GB of memory ({self.free / 1e9:.1f} GB free), "
            f"{self.read / 1e9:.2f} GB to read and about {_short(self.seconds)} for an average"
        )


def choose(
    pool: Members,
    *,
    device: str | torch.device = CPU,
    limit: int | None = None,
    form: Form | None = None,
) -> AveragingPlan:
    """The fastest form whose memory is there.

    Args:
        pool: k members.
        device: Where the model is evaluated.
        limit: Bytes that members may take; by default `SHARE` of what is free.
        form: To have this form whatever fits. Adapters have one of their own; in another,
            their merged weights are averaged.

    Raises:
        MemberError: If `form` is "host" without an accelerator, or not of a quantised base.
    """
    device = torch.device(device)
    if form == "host" and device.type == "cpu":
        raise MemberError(
            "Members in the host's memory are for models on an accelerator; this one is on "
            "the CPU.",
            "Choose the form resident or streaming.",
        )
    adapters = pool.adapters if isinstance(pool, MemberPool) else None
    if adapters is not None and form in (None, "adapters"):
        needed = adapter_bytes(adapters)
        rate = _memory_rate(device)
        return _planned(pool, "adapters", needed, available_bytes(device), needed, rate)
    if adapters is not None and adapters.base.layers:
        raise MemberError(
            f"The base model is quantised ({adapters.base.quantisation}): its adapters are "
            f"averaged beside it, and the form {form} writes into its weights.",
            "Leave the form open (fuse.averaging: auto).",
        )
    block, buffers = block_bytes(pool), buffer_bytes(pool)
    needs: dict[Form, tuple[int, torch.device]] = {"resident": (block + buffers, device)}
    if device.type != "cpu":
        needs["host"] = (block, CPU)
    for name, (needed, where) in needs.items():
        free = available_bytes(where)
        allowed = int(SHARE * free) if limit is None else limit
        if form == name or (form is None and needed <= allowed):
            return _planned(pool, name, needed, free, block, _memory_rate(where))
    free = available_bytes(CPU)
    return _planned(pool, "streaming", 0, free, block, _disk_rate(pool.members[0].files[0]))


def _planned(
    pool: Members, form: Form, needed: int, free: int, read: int, rate: float
) -> AveragingPlan:
    tensors = pool.tensors
    parameters = sum(
        info.numel
        for name, info in tensors.items()
        if info.dtype.is_floating_point and name not in pool.constant
    )
    return AveragingPlan(form, len(pool.members), parameters, needed, free, read, rate)


def _memory_rate(device: torch.device) -> float:
    block = torch.ones(PROBE // 4, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float(block.sum())
        best = min(best, time.perf_counter() - started)
    return PROBE / best


def _disk_rate(file: Path) -> float:
    """Of reading the first part of a file, past the system's cache if it lets us."""
    with file.open("rb", buffering=0) as opened:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, PROBE, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        read = 0
        while read < PROBE and (part := opened.read(1 << 22)):
            read += len(part)
        return max(read, 1) / (time.perf_counter() - started)


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1.0 else f"{1000 * seconds:.0f} ms"
