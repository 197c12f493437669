"""The table of `fusetune members`: what each checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from fusetune.members.member import Member, architectures
from fusetune.redaction import shown


def members_table(members: Sequence[Member]) -> Table:
    """One row per checkpoint: step, architecture, parameters, dtypes, size."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for heading in ("step", "parameters", "size"):
        table.add_column(heading, justify="right")
    table.add_column("dtype")
    table.add_column("architecture", overflow="fold")
    names = [member.name for member in members]
    for member in members:
        dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in member.tensors.values()})
        table.add_row(
            escape(shown(member.name if names.count(member.name) == 1 else str(member.path))),
            "–" if member.step is None else f"{member.step:,}",
            f"{member.num_parameters:,}",
            decimal(member.nbytes),
            ", ".join(dtypes),
            escape(shown(", ".join(architectures(member.config)) or "–")),
        )
    return table
