"""Whether adapters can be averaged with one another; no tensor is read for it.

Ranks, scalings and targeted modules may differ: ΔW is a sum of matrices of one shape, and a
module that an adapter leaves alone has ΔW = 0. The base model must be one and the same. A
tensor that some adapters train as a whole and others do not has no value in those others that
training chose, so that sets of whole tensors must agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.errors import MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.binding import listed
from fusetune.members.member import Member


def adapter_errors(members: Sequence[Member]) -> list[MemberError]:
    """Why adapters do not fit together; empty if they do. No tensor is read."""
    adapters = [member for member in members if isinstance(member, AdapterMember)]
    if len(adapters) < len(members):
        whole = next(member for member in members if not isinstance(member, AdapterMember))
        return [
            MemberError(
                f"{adapters[0].path} is an adapter and {whole.path} a whole model.",
                hint="Fuse adapters with adapters, or merge them into their base first.",
            )
        ]
    first, errors = adapters[0], []
    for other in adapters[1:]:
        for reason in _differences(first, other):
            errors.append(
                MemberError(
                    f"{other.path} cannot be averaged with {first.path}: {reason}.",
                    hint="Adapters must have been trained on one base model, with the same "
                    "modules_to_save and bias; ranks and targets may differ.",
                )
            )
    return errors


def fits(first: Member, second: Member) -> bool:
    """Whether two members are adapters that can be averaged with one another."""
    if not isinstance(first, AdapterMember) or not isinstance(second, AdapterMember):
        return False
    return not _differences(first, second)


def _differences(first: AdapterMember, other: AdapterMember) -> list[str]:
    found = []
    if first.base_digest and other.base_digest:
        if first.base_digest != other.base_digest:
            found.append("their base models have different weights")
    elif _base(first) != _base(other):
        found.append(f"their base models are {_base(other)} and {_base(first)}")
    if odd := sorted(first.whole.keys() ^ other.whole.keys()):
        found.append(
            f"only one of them holds {listed(odd, 3)}, for which the other has no trained value"
        )
    for name in sorted(first.whole.keys() & other.whole.keys()):
        ours = first.tensors[first.whole[name]].shape
        theirs = other.tensors[other.whole[name]].shape
        if ours != theirs:
            found.append(f"{name} is {theirs} there and {ours} here")
    return found


def _base(member: AdapterMember) -> str:
    revision = member.adapter.get("revision")
    return f"{member.base_name}" + (f" at revision {revision}" if revision else "")
