"""Where the interchangeable units of a transformer stand in its tensors.

The neurons of a feed-forward layer and the heads of an attention layer can change places
without changing what the layer computes, if everything that belongs to a unit moves with
it: rows of the tensors that lead into it, columns of the tensor that leads out. Tensors are
recognised by their names, so that no model has to be built. A linear map is stored as
`outputs x inputs`, as in `torch.nn.Linear`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fusetune.errors import StageError
from fusetune.members.member import config_value

Kind = Literal["neurons", "heads"]
Shapes = Mapping[str, tuple[int, ...]]

HINT = "Leave otfusion out of the methods; the others take any architecture."


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that is cut into equal slices, one after another, one for each unit.

    Attributes:
        name: The tensor.
        dim: The dimension that is cut: 0 for what leads into a unit, 1 for what leads out.
    """

    name: str
    dim: int

    def slices(self, tensor: Tensor, count: int) -> Tensor:
        """The slices as rows, `count x elements of a slice`."""
        return tensor.movedim(self.dim, 0).reshape(count, -1)

    def restore(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `slices`, for a tensor shaped as `like`."""
        moved = rows.reshape(like.movedim(self.dim, 0).shape)
        return moved.movedim(0, self.dim).contiguous()


@dataclass(frozen=True, slots=True)
class Block:
    """The units of one layer: all neurons of its feed-forward part, or all its heads.

    Units come in groups of equal size. Groups may change places, and so may the units
    inside a group: with grouped-query attention a group is a key and value head, its units
    are the query heads that read it. Elsewhere every unit is a group of its own. The inside
    of a head has an order (rotary position embeddings turn fixed pairs), which is kept.

    Attributes:
        kind: What the units are.
        layer: The layer's prefix in the tensors' names.
        groups: Number of groups.
        per_group: Units in each.
        group_parts: Tensors with one slice for each group.
        unit_parts: Tensors with one slice for each unit.
    """

    kind: Kind
    layer: str
    groups: int
    per_group: int
    group_parts: tuple[Part, ...]
    unit_parts: tuple[Part, ...] = ()

    @property
    def units(self) -> int:
        """Number of units in all groups."""
        return self.groups * self.per_group

    @property
    def parts(self) -> tuple[tuple[Part, int], ...]:
        """Every part and the number of its slices."""
        return (
            *((part, self.groups) for part in self.group_parts),
            *((part, self.units) for part in self.unit_parts),
        )


@dataclass(frozen=True, slots=True)
class Family:
    """How the tensors of a layer are called; each entry is a linear map or a tensor.

    Attributes:
        neurons_in: Its rows are neurons.
        neurons_out: Its columns are neurons.
        keys: Rows are key and value heads.
        queries: Rows are query heads.
        heads_out: Columns are query heads.
        others: Pattern of what has no part in units, normalisation above all.
    """

    neurons_in: tuple[str, ...]
    neurons_out: str
    keys: tuple[str, ...]
    queries: tuple[str, ...]
    heads_out: str
    others: str

    def knows(self, tensor: str) -> bool:
        """Whether a tensor, named without its layer's prefix, is one of these."""
        maps = (*self.neurons_in, self.neurons_out, *self.keys, *self.queries, self.heads_out)
        return tensor in _tensors(maps) or re.fullmatch(self.others, tensor) is not None

    @property
    def needed(self) -> tuple[str, ...]:
        """The tensors without which a layer is not of this family."""
        maps = (*self.neurons_in, self.neurons_out, *self.keys[:2], self.queries[0])
        return tuple(f"{name}.weight" for name in (*maps, self.heads_out))


_NORM = r"\w*(?:layer_?norm)\.(?:weight|bias)"


def _like_bert(keys: Iterable[str], queries: Iterable[str]) -> Family:
    return Family(
        neurons_in=("intermediate.dense",),
        neurons_out="output.dense",
        keys=tuple(f"attention.self.{name}" for name in keys),
        queries=tuple(f"attention.self.{name}" for name in queries),
        heads_out="attention.output.dense",
        others=r"(?:attention\.)?output\.LayerNorm\.(?:weight|bias)",
    )


FAMILIES: Mapping[str, Family] = {
    "BERT": _like_bert(["key", "value"], ["query"]),
    "LLaMA": Family(
        neurons_in=("mlp.gate_proj", "mlp.up_proj"),
        neurons_out="mlp.down_proj",
        keys=("self_attn.k_proj", "self_attn.v_proj"),
        queries=("self_attn.q_proj",),
        heads_out="self_attn.o_proj",
        others=rf"{_NORM}|self_attn\.[qk]_norm\.weight|self_attn\.rotary_emb\.inv_freq",
    ),
    "DistilBERT": Family(
        neurons_in=("ffn.lin1",),
        neurons_out="ffn.lin2",
        keys=("attention.k_lin", "attention.v_lin"),
        queries=("attention.q_lin",),
        heads_out="attention.out_lin",
        others=_NORM,
    ),
    "DeBERTa": _like_bert(  # in_proj: query, key and value of the first head, of the second, …
        [], ["in_proj", "q_bias", "v_bias", "pos_proj", "pos_q_proj"]
    ),
    "DeBERTa-v2": _like_bert(
        ["key_proj", "value_proj", "pos_key_proj"], ["query_proj", "pos_query_proj"]
    ),
}
"""Name → family. Others share the names: RoBERTa, XLM-R and ELECTRA are BERT's; Mistral,
Qwen2 and Qwen3 are LLaMA's."""

SUPPORTED = "BERT, RoBERTa, DistilBERT, DeBERTa, LLaMA and models whose tensors are called so"


def find_blocks(config: Mapping[str, Any], shapes: Shapes) -> tuple[Block, ...]:
    """The feed-forward and attention block of every layer, in the order of the names.

    Args:
        config: config.json; says how wide a head is.
        shapes: Tensor name → shape, with or without a prefix such as "bert.".

    Raises:
        StageError: If the model is of no supported family, or its tensors do not divide
            into the heads that the configuration names.
    """
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in sorted(shapes.items()):
        if found := re.match(r"((?:.*?\.)?layers?\.\d+\.)(.+)$", name):
            layers.setdefault(found[1], {})[found[2]] = shape
    family = _family(config, layers)
    width = _head_width(config)
    return tuple(
        block
        for layer, tensors in layers.items()
        for block in (_neurons(family, layer, tensors), _heads(family, layer, tensors, width))
    )


def _family(
    config: Mapping[str, Any], layers: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Family:
    unknown: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        unknown[name] = [
            problem
            for layer, tensors in layers.items()
            for problem in (
                *(f"has {layer}{t}" for t in tensors if not family.knows(t)),
                *(f"lacks {layer}{t}" for t in family.needed if t not in tensors),
            )
        ]
        if layers and not unknown[name]:
            return family
    kind = config.get("model_type", "of an unknown kind")
    nearest = min(unknown.values(), key=len)
    reason = nearest[0] if nearest else "has no layers that are called so"
    raise StageError(
        f"otfusion can align {SUPPORTED}; this model, {kind}, {reason}.", hint=HINT
    )


def _neurons(family: Family, layer: str, tensors: Shapes) -> Block:
    parts = _parts(family.neurons_in, 0, layer, tensors)
    parts.append(Part(f"{layer}{family.neurons_out}.weight", 1))
    units = tensors[f"{family.neurons_out}.weight"][1]
    block = Block("neurons", layer, units, 1, tuple(parts))
    return _checked(block, tensors)


def _heads(family: Family, layer: str, tensors: Shapes, width: int) -> Block:
    out = f"{family.heads_out}.weight"
    keys = _parts(family.keys, 0, layer, tensors)
    own = [*_parts(family.queries, 0, layer, tensors), Part(layer + out, 1)]
    units = tensors[out][1] // width
    groups = tensors[keys[0].name.removeprefix(layer)][0] // width if keys else units
    if groups == 0 or units % groups or units * width != tensors[out][1]:
        raise _mismatch(layer + out, tensors[out], width)
    for norm in ("self_attn.q_norm.weight", "self_attn.k_norm.weight"):
        if norm in tensors and tensors[norm] != (width,):  # not one and the same for all heads
            raise _mismatch(layer + norm, tensors[norm], width)
    block = Block("heads", layer, groups, units // groups, tuple(keys), tuple(own))
    return _checked(block, tensors)


def _parts(names: Iterable[str], dim: int, layer: str, tensors: Shapes) -> list[Part]:
    return [Part(layer + tensor, dim) for tensor in _tensors(names) if tensor in tensors]


def _checked(block: Block, tensors: Shapes) -> Block:
    for part, count in block.parts:
        shape = tensors[part.name.removeprefix(block.layer)]
        if shape[part.dim] % count:
            raise StageError(
                f"{part.name} of shape {shape} does not divide into {count} {block.kind}.",
                hint=HINT,
            )
    return block


def _head_width(config: Mapping[str, Any]) -> int:
    for key in ("head_dim", "attention_head_size"):
        if (width := config_value(config, key)) is not None:
            return int(width)
    size = config_value(config, "hidden_size") or config_value(config, "dim")
    heads = config_value(config, "num_attention_heads") or config_value(config, "n_heads")
    if not size or not heads or size < heads:
        raise StageError(
            "otfusion needs hidden_size and num_attention_heads in the members' config.json.",
            hint="Copy the configuration of the model beside the weights of each member.",
        )
    return int(size) // int(heads)


def _tensors(names: Iterable[str]) -> list[str]:
    """The names under which the tensors of linear maps, or tensors themselves, are stored."""
    return [f"{name}{end}" for name in names for end in ("", ".weight", ".bias")]


def _mismatch(name: str, shape: tuple[int, ...], width: int) -> StageError:
    return StageError(
        f"{name} of shape {shape} does not divide into heads of {width}, the width that "
        "config.json gives.",
        hint=HINT,
    )
