"""Checkpoints that do not all fit together, sorted into groups that do."""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_compare import fits as adapters_fit
from fusetune.members.compare import compare
from fusetune.members.member import Member


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
