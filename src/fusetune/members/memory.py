"""How much memory members need, and how much there is."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from fusetune.members.adapter_source import AdapterSource
from fusetune.members.layout import lay_out
from fusetune.members.member import Members

CGROUP = Path("/sys/fs/cgroup")


def block_bytes(pool: Members) -> int:
    """Bytes of k rows as stored: what a resident average keeps, and any average reads."""
    groups = lay_out(pool.tensors, constant=pool.constant).groups
    return sum(len(pool.members) * g.num_tiles * g.tile * g.dtype.itemsize for g in groups)


def buffer_bytes(pool: Members) -> int:
    """Bytes of one row of sums per dtype, which the model's parameters are views on."""
    groups = lay_out(pool.tensors, constant=pool.constant).groups
    return sum(g.num_tiles * g.tile * g.accumulator.itemsize for g in groups)


def required_bytes(pool: Members) -> int:
    """Bytes of a resident average."""
    return block_bytes(pool) + buffer_bytes(pool)


def adapter_bytes(source: AdapterSource) -> int:
    """Bytes of all factors in float32 and of the adapted base weights, which are kept twice.

    Those of quantised layers are not. It is also what one average reads.
    """
    factors = sum(
        member.tensors[key].numel * 4
        for member in source.members
        for module in member.modules.values()
        for key in (module.a, module.b)
    )
    changed = (*source.weights, *source.biases, *source.whole)
    plain = source.base.tensors.plain
    return factors + sum(source.tensors[name].nbytes for name in changed if name in plain)


def available_bytes(device: torch.device) -> int:
    """Bytes that can be had on a device without swapping; a container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    left = _container_bytes(CGROUP)
    return available if left is None else min(available, left)


def total_bytes(device: torch.device) -> int:
    """Bytes that a device has, in use or not; a container's limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit: "max"
        return total


def _container_bytes(cgroup: Path) -> int | None:
    """What a control group (v2) still allows, or None if it sets no limit.

    Pages of files count as used there although the system drops them when asked.
    """
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return (
            None if limit == "max" else max(0, int(limit) - used + int(stat["inactive_file"]))
        )
    except (OSError, ValueError, KeyError):
        return None
