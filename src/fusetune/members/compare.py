"""Whether checkpoints can be averaged with one another, and what differs if not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.errors import MemberError
from fusetune.members.binding import SHOWN
from fusetune.members.member import Member, config_value

# Settings without which equal shapes do not mean equal functions. Others, such as dropout,
# may differ between the runs whose members are fused.
SETTINGS = (
    "model_type",
    "architectures",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "id2label",
    "tie_word_embeddings",
)


def differences(members: Sequence[Member]) -> tuple[Member, dict[Path, tuple[str, ...]]]:
    """What each member has otherwise than the reference.

    The reference is the first of the kind that most members are of, so that one stray
    checkpoint is named, not all the others.

    Returns:
        The reference, and folder → differences for each member that differs.
    """
    kinds = [kind(member) for member in members]
    counts = Counter(kinds)
    reference = members[kinds.index(max(kinds, key=lambda one: counts[one]))]
    found = {m.path: tuple(_compare(reference, m)) for m in members}
    return reference, {path: lines for path, lines in found.items() if lines}


def mismatch(reference: Member, different: Mapping[Path, Sequence[str]]) -> MemberError:
    """The error that lists the first differences of each member, and counts the rest."""
    lines = []
    for path, items in different.items():
        lines.append(f"{path} cannot be fused with {reference.path}: {_count(items)}")
        lines += [f"  {item}" for item in items[:SHOWN]]
        if len(items) > SHOWN:
            lines.append(f"  … and {len(items) - SHOWN} more")
    return MemberError(
        "\n".join(lines) + "\n",
        hint="All members must come from fine-tuning one base model with one head.",
    )


def _count(items: Sequence[str]) -> str:
    return f"{len(items)} difference{'s' if len(items) > 1 else ''} (there != here)."


def kind(member: Member) -> tuple[Any, ...]:
    """What whole models must have in common to be averaged; equal or not."""
    tensors = tuple((n, t.dtype, t.shape) for n, t in member.tensors.items())
    return tensors, tuple(repr(config_value(member.config, key)) for key in SETTINGS)


def _compare(reference: Member, other: Member) -> list[str]:
    lines = []
    for key in SETTINGS if reference.config and other.config else ():
        ours, theirs = config_value(reference.config, key), config_value(other.config, key)
        if ours != theirs:
            lines.append(f"config.json {key}: {theirs!r} != {ours!r}")
    for name in sorted(reference.tensors.keys() | other.tensors.keys()):
        ours, theirs = reference.tensors.get(name), other.tensors.get(name)
        if ours is None:
            lines.append(f"{name}: {theirs} != absent")
        elif theirs is None:
            lines.append(f"{name}: absent != {ours}")
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            lines.append(f"{name}: {theirs} != {ours}")
    return lines
