"""One model that stands at several places: a last checkpoint that is a copy, as most often."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fusetune.errors import MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.binding import same_bits
from fusetune.members.conversion import mapped_tensors
from fusetune.members.member import Member

PROBE = 16  # elements at both ends of each tensor that are compared before whole tensors are


def find_copies(members: Sequence[Member]) -> dict[Path, Member]:
    """Members with the same tensors, bit by bit, as another one, whatever their files are.

    Members that our collector took at different steps of one training count by themselves:
    a training may stand still.

    Returns:
        Path of a copy → the member that it is a copy of, one with a step if there is one.
    """
    alike: dict[str, list[Member]] = {}
    for member in members:
        alike.setdefault(_probe(member), []).append(member)
    copies: dict[Path, Member] = {}
    for group in alike.values():
        kept: list[Member] = []
        for member in sorted(group, key=lambda one: one.step is None):  # stable
            first = next((one for one in kept if _are_one(one, member)), None)
            if first is None:
                kept.append(member)
            else:
                copies[member.path] = first
    return copies


def _are_one(first: Member, second: Member) -> bool:
    collected = first.manifest is not None and second.manifest is not None
    steps = [(member.trajectory, member.step) for member in (first, second)]
    if collected and first.path.parent == second.path.parent and steps[0] != steps[1]:
        return False
    if isinstance(first, AdapterMember) and isinstance(second, AdapterMember):
        factors = [(m.modules, m.whole, m.base_digest or m.base_name) for m in (first, second)]
        if factors[0] != factors[1]:
            return False
    if _is_gguf(first):
        return first.sha256 == second.sha256
    a, b = mapped_tensors(first), mapped_tensors(second)
    return all(same_bits([a[name], b[name]]) for name in first.tensors)


def _probe(member: Member) -> str:
    """A digest of what the tensors are and how they begin and end."""
    digest = hashlib.sha256()
    try:
        for part in _parts(member):
            digest.update(part)
    except MemberError:  # told when the tensors are read; until then it is like no other
        digest.update(str(member.path).encode())
    return digest.hexdigest()


def _parts(member: Member) -> Iterator[bytes]:
    for name, info in member.tensors.items():
        yield f"{name} {info}\n".encode()
    if _is_gguf(member):  # has no tensors that could be mapped
        yield member.sha256.encode()
        return
    for tensor in mapped_tensors(member).values():
        flat = tensor.reshape(-1)
        for end in (flat[:PROBE], flat[-PROBE:]):
            yield bytes(end.contiguous().view(torch.uint8).numpy())


def _is_gguf(member: Member) -> bool:
    return member.foreign is not None and member.foreign.format == "gguf"
