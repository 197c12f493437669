"""A key-value cache whose room is taken once, and from which finished texts can leave.

Transformers' own growing cache copies everything that it holds for every new token.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

EVERY = slice(None)


class Block:
    """Keys and values of one layer, `b x heads x room x size` each.

    Args:
        rows: b.
        room: Most tokens of a text.
    """

    def __init__(self, rows: int, room: int) -> None:
        self._rows, self._room = rows, room
        self._kept: list[Tensor] = []  # the shapes are known with the first tokens

    def write(self, rows: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """New tokens behind the first `start` of some rows; those of one text, or of each."""
        both = (keys, values)
        if not self._kept:
            shapes = [(self._rows, x.shape[1], self._room, x.shape[3]) for x in both]
            self._kept = [x.new_empty(s) for x, s in zip(both, shapes, strict=True)]
        for kept, new in zip(self._kept, both, strict=True):
            kept[rows, :, start : start + new.shape[2]] = new

    def read(self, rows: slice, length: int) -> tuple[Tensor, Tensor]:
        """The first tokens of some rows; views."""
        keys, values = self._kept
        return keys[rows, :, :length], values[rows, :, :length]

    def keep(self, rows: Tensor) -> None:
        """Only these rows, `m` numbers."""
        self._kept = [kept.index_select(0, rows) for kept in self._kept]


class KeptTokens:
    """What a model's attention has read of b texts, layer by layer.

    Args:
        rows: b.
        room: Most tokens of a text.
    """

    def __init__(self, rows: int, room: int) -> None:
        self._rows, self._room = rows, room
        self._blocks: list[Block] = []

    def view(self, length: int, rows: slice = EVERY) -> Cache:
        """A cache that stands behind the first `length` tokens of some rows.

        What is read through it is kept here, behind these; several views of the same place
        write over each other.
        """
        if self._blocks:
            return Cache(layers=[Window(block, rows, length) for block in self._blocks])

        def another() -> CacheLayerMixin:
            self._blocks.append(Block(self._rows, self._room))
            return Window(self._blocks[-1], rows, length)

        # It is called once for each layer that the model turns out to have.
        make = cast("type[CacheLayerMixin]", another)
        return Cache(layer_class_to_replicate=make)

    def spread(self, length: int) -> None:
        """The first tokens of row 0 are those of every row."""
        for block in self._blocks:
            block.write(EVERY, 0, *block.read(slice(0, 1), length))

    def keep(self, rows: Tensor) -> None:
        """Only these rows, `m` numbers."""
        for block in self._blocks:
            block.keep(rows)


class Window(DynamicLayer):
    """One layer's place in a block, as Transformers wants to see it."""

    def __init__(self, block: Block, rows: slice, length: int) -> None:
        super().__init__()
        self._block, self._rows, self._length = block, rows, length
        if length:
            self.keys, self.values = block.read(rows, length)
            self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self._length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new tokens; all that there are, new ones included."""
        self._block.write(self._rows, self._length, key_states, value_states)
        self._length += key_states.shape[-2]
        self.keys, self.values = self._block.read(self._rows, self._length)
        self.is_initialized = True
        return self.keys, self.values
