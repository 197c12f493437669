from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.members.header import TensorInfo
from fusetune.members.layout import ALIGN, lay_out

shapes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=8)


@given(shapes=shapes, tile=st.integers(1, 6).map(lambda n: n * ALIGN))
@settings(deadline=None)
def test_the_pieces_of_all_tiles_are_each_tensor_once(
    shapes: list[tuple[int, ...]], tile: int
) -> None:
    tensors = {
        f"t{i}": TensorInfo(torch.float32, s, Path("f"), 0) for i, s in enumerate(shapes)
    }
    layout = lay_out(tensors, tile)
    seen: dict[str, list[int]] = {name: [] for name in tensors}
    for group in layout.groups:
        row = torch.full((group.width,), -1)
        for slot in group.slots:
            assert slot.start % ALIGN == 0
            row[slot.start : slot.stop] = torch.arange(slot.numel)
        for number in range(group.num_tiles):
            part = row[group.columns(number)]
            for piece in group.pieces(number):
                elements = part[piece.tile].tolist()
                assert elements == list(range(piece.tensor.start, piece.tensor.stop))
                seen[piece.name] += elements
    assert seen == {name: list(range(info.numel)) for name, info in tensors.items()}


def test_dtypes_are_kept_apart_and_integers_are_not_averaged() -> None:
    info = {
        "a": TensorInfo(torch.bfloat16, (3,), Path("f"), 0),
        "b": TensorInfo(torch.float64, (17,), Path("f"), 0),
        "c": TensorInfo(torch.int64, (2,), Path("f"), 0),
    }
    layout = lay_out(info)
    assert layout.fixed == ("c",)
    assert [(g.dtype, g.accumulator, g.width) for g in layout.groups] == [
        (torch.bfloat16, torch.float32, 16),
        (torch.float64, torch.float64, 32),
    ]


def test_a_tile_must_keep_the_alignment() -> None:
    with pytest.raises(ValueError, match="multiple of 16 columns; got 20"):
        lay_out({}, tile=20)
