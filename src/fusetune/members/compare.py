"""Whether checkpoints can be averaged with one another, and what differs if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusetune.errors import MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_compare import fits as adapters_fit
from fusetune.members.binding import SHOWN
from fusetune.members.configuration import config_differences
from fusetune.members.member import Member

KINDS = "All members must come from fine-tuning one base model with one head."
SETTINGS = (
    "The same weights are another function under another configuration: fuse checkpoints of "
    "one configuration, or correct the config.json that does not say how they were trained."
)


def differences(members: Sequence[Member]) -> tuple[Member, dict[Path, tuple[str, ...]]]:
    """What each member has otherwise than the reference.

    The reference is the first of the kind that most members are of, so that one stray
    checkpoint is named, not all the others.

    Returns:
        The reference, and folder → differences for each member that differs.
    """
    kinds: dict[Path, int] = {}  # first member of each kind → how many there are
    for member in members:
        same = (m for m in members if m.path in kinds and not compare(m, member))
        first = next(same, member)
        kinds[first.path] = kinds.get(first.path, 0) + 1
    most = max(kinds, key=lambda path: kinds[path])
    reference = next(member for member in members if member.path == most)
    found = {m.path: tuple(compare(reference, m)) for m in members}
    return reference, {path: lines for path, lines in found.items() if lines}


def mismatch(reference: Member, different: Mapping[Path, Sequence[str]]) -> MemberError:
    """The error that lists the first differences of each member, and counts the rest."""
    lines = []
    for path, items in different.items():
        lines.append(f"{path} cannot be fused with {reference.path}: {_count(items)}")
        lines += [f"  {item}" for item in items[:SHOWN]]
        if len(items) > SHOWN:
            lines.append(f"  … and {len(items) - SHOWN} more")
    alike = all(
        item.startswith("config.json ") for items in different.values() for item in items
    )
    return MemberError("\n".join(lines) + "\n", hint=SETTINGS if alike else KINDS)


def _count(items: Sequence[str]) -> str:
    return f"{len(items)} difference{'s' if len(items) > 1 else ''} (there != here)."


def compare(reference: Member, other: Member) -> list[str]:
    """What stands in the way of averaging two whole models; empty if nothing does."""
    lines = config_differences(reference.config, other.config)
    for name in sorted(reference.tensors.keys() | other.tensors.keys()):
        ours, theirs = reference.tensors.get(name), other.tensors.get(name)
        if ours is None:
            lines.append(f"{name}: {theirs} != absent")
        elif theirs is None:
            lines.append(f"{name}: absent != {ours}")
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            lines.append(f"{name}: {theirs} != {ours}")
    return lines


def groups(members: Sequence[Member]) -> list[list[Member]]:
    """The members by what can be fused with one another, the largest group first.

    Args:
        members: Whole models, adapters, or both.

    Returns:
        Groups in which the members keep their order; each member is in one of them.
    """
    found: list[list[Member]] = []
    for member in members:
        for group in found:
            if fit(group[0], member):
                group.append(member)
                break
        else:
            found.append([member])
    return sorted(found, key=len, reverse=True)  # stable: of equal ones, the first


def fit(first: Member, second: Member) -> bool:
    """Whether two members can be fused with one another."""
    adapters = [isinstance(member, AdapterMember) for member in (first, second)]
    if any(adapters):
        return all(adapters) and adapters_fit(first, second)
    return not compare(first, second)
