"""Averages of members that stay on the disk; see `average`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from fusetune.members.averaging import Average
from fusetune.members.layout import TILE, Group
from fusetune.members.member import Members
from fusetune.members.mixing import Mixing
from fusetune.members.points import Blend

CPU = torch.device("cpu")
READERS = 4  # threads; a disk is faster with several requests at hand


class StreamingAverage(Average):
    """Members stay on the disk; the average is written into the model's own tensors.

    Needs two times k tiles of memory (some megabytes) and reads the members of non-zero
    weight once per call: several of them at once, one tile ahead of the arithmetic.

    Args:
        pool: k members.
        model: On any device; sums are made on the CPU. None to write files only.
    """

    def __init__(self, pool: Members, model: nn.Module | None) -> None:
        super().__init__(pool, model, TILE, CPU)

    def _mix_into_model(self, point: Blend) -> None:
        with torch.no_grad():
            for group, tile, total in self._tiles(point):
                for piece in group.pieces(tile):
                    self._bound.write(piece.name, piece.tensor, total[piece.tile])

    def _all_rows(self, group: Group, mixing: Mixing) -> Iterator[Tensor]:
        """`_rows` of every tile, the next one being read while one is used."""
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as ahead:
            scratch = [self._scratch(group), self._scratch(group)]

            def read(tile: int) -> Tensor:
                return self._fill(scratch[tile % 2], group, tile, mixing, readers)

            coming = ahead.submit(read, 0)
            for tile in range(group.num_tiles):
                rows = coming.result()
                if tile + 1 < group.num_tiles:
                    coming = ahead.submit(read, tile + 1)
                yield rows

    def _rows(self, group: Group, tile: int, mixing: Mixing) -> Tensor:
        with ThreadPoolExecutor(READERS) as readers:
            return self._fill(self._scratch(group), group, tile, mixing, readers)

    def _scratch(self, group: Group) -> Tensor:
        return torch.zeros(self._k, group.tile, dtype=group.dtype)

    def _fill(
        self,
        scratch: Tensor,
        group: Group,
        tile: int,
        mixing: Mixing,
        readers: ThreadPoolExecutor,
    ) -> Tensor:
        columns = group.columns(tile)
        rows = scratch[:, : columns.stop - columns.start]
        pieces = list(group.pieces(tile))

        def read(i: int) -> None:
            for piece in pieces:
                if mixing.takes(i, piece.name):
                    self.pool.read_part(i, piece.name, piece.tensor, rows[i, piece.tile])

        for _ in readers.map(read, mixing.members()):
            pass
        return rows
