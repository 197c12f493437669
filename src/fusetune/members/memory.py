"""How much memory members need, and how much there is."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from fusetune.members.layout import lay_out
from fusetune.members.member import Members

CGROUP = Path("/sys/fs/cgroup")


def required_bytes(pool: Members) -> int:
    """Bytes of a resident average: k rows as stored and one row of sums per dtype."""
    members = pool.members
    groups = lay_out(members[0].tensors).groups
    return sum(
        g.num_tiles * g.tile * (len(members) * g.dtype.itemsize + g.accumulator.itemsize)
        for g in groups
    )


def available_bytes(device: torch.device) -> int:
    """Bytes that can be had on a device without swapping; a container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    left = _container_bytes(CGROUP)
    return available if left is None else min(available, left)


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
