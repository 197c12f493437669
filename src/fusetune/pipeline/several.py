"""Checkpoints that one pattern found and that are no one run: listed, with what to type."""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.errors import MemberError
from fusetune.members.compare import groups
from fusetune.members.discover import find_members
from fusetune.members.member import Member
from fusetune.members.runs import runs
from fusetune.pipeline import finished
from fusetune.pipeline.asking import Wanted, shortest


def require_one_kind(wanted: Wanted, members: Sequence[Member]) -> None:
    """Refuse checkpoints of several kinds.

    Raises:
        MemberError: With a command for each kind.
    """
    together = groups(members)
    if len(together) > 1:
        raise MemberError(
            f"These {len(members)} checkpoints are of {len(together)} kinds that "
            "cannot be fused with one another:\n" + _listed(wanted, together),
            "`fusetune members` with the same paths says what differs.",
        )


def require_one_run(wanted: Wanted, members: Sequence[Member]) -> None:
    """Refuse checkpoints of several runs that one pattern found, most often by accident.

    Single checkpoints of several folders, as the last ones of several trainings, are meant to
    be fused; so are runs that are named one by one.

    Raises:
        MemberError: With a command for each run, and one for all of them.
    """
    for pattern in wanted.members:
        places = {folder.resolve() for folder in find_members(pattern).folders}
        found = runs([m for m in members if m.path.resolve() in places])
        parents = {group[0].checkpoint.resolve().parent for group in found}
        long = [group for group in found if len(group) > 1]
        if len(found) == len(parents) and len(long) < 2:
            continue
        if len(found) > 1:
            every = [path for group in found for path in shortest(group)]
            raise MemberError(
                f"{pattern} finds checkpoints of {len(found)} training runs:\n"
                + _listed(wanted, found),
                "All of them, if they began with the same model: "
                + wanted.command(every, out="fused"),
            )


def _listed(wanted: Wanted, together: Sequence[Sequence[Member]]) -> str:
    lines = []
    for number, group in enumerate(together, 1):
        one = finished.read(group[-1], wanted.kind)
        counted = f"{len(group)} checkpoint{'s' if len(group) > 1 else ''}"
        lines.append(
            f"{number}. {counted} of {one.architecture}, {group[0].num_parameters:,} "
            f"parameters: {', '.join(str(member.path) for member in group)}"
        )
        command = wanted.command(shortest(group), out=f"fused-{number}")
        lines.append(f"   {command}" if len(group) > 1 else "   alone: nothing to fuse")
    return "\n".join(lines) + "\n"
