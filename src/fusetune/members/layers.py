"""One w for each group of layers: the embeddings, equal parts of the stack, the head.

    θ̄_t = Σ_i w_{g(t), i} θ_{i, t}        for every tensor t, g(t) its group of layers

Coefficients by layer in the place of one for the whole model are known from the merging of task
vectors [Yang2024]_, where they are trained; here every group's w is a point of the simplex.

.. [Yang2024] E. Yang et al. AdaMerging: Adaptive Model Merging for Multi-Task Learning.
   ICLR 2024, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fusetune.members.weights import FusionWeights

PARTS = 3
"""Of the stack, besides embeddings and head."""

_NUMBER = re.compile(r"^(?P<stack>.*?)\.?\b(?P<number>\d+)\.")
_HEAD = re.compile(
    r"(?:^|\.)(?:classifier|classification_head|score|lm_head|embed_out|qa_outputs|pooler|cls"
    r"|pre_classifier|vocab_\w+|predictions|\w*_predictions|summary|logits_proj)\b"
)
# GPT-2 calls its tables wte and wpe, T5 one shared.
_EMBEDDINGS = re.compile(r"embed|(?:^|\.)(?:wte|wpe|shared)\.")
_RELATIVE = "rel_embeddings.weight"


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One w per group of layers, in the order of `group_names`.

    Attributes:
        groups: Embeddings first, then p ≥ 1 parts of the stack, the head last; w of each, of
            the same k members.

    Raises:
        ValueError: If there are fewer than three groups, or they differ in length.
    """

    groups: tuple[FusionWeights, ...]

    def __post_init__(self) -> None:
        if len(self.groups) < 3 or len({len(w) for w in self.groups}) != 1:
            raise ValueError(
                "Weights by layer need embeddings, at least one part of the stack and a head, "
                f"each with a weight for every member; got {self.groups}."
            )

    def __len__(self) -> int:
        return len(self.groups[0])

    @property
    def parts(self) -> int:
        """Into how many parts the stack is cut."""
        return len(self.groups) - 2

    @property
    def one(self) -> FusionWeights | None:
        """The w of all groups if they have the same one."""
        return self.groups[0] if len(set(self.groups)) == 1 else None


def group_names(parts: int = PARTS) -> tuple[str, ...]:
    """What the groups are called: embeddings, layers 1/3, …, head."""
    return ("embeddings", *(f"layers {i + 1}/{parts}" for i in range(parts)), "head")


def layer_groups(
    names: Iterable[str], parts: int = PARTS, tied: Collection[str] = ()
) -> dict[str, int]:
    """The group of every tensor, by its name alone: 0, 1 … `parts`, `parts` + 1.

    The first number in a name is its layer's. All layers in the order of computation, an
    encoder's before a decoder's, are cut into parts as equal as can be, the later ones
    smaller. Tensors without a number belong to the embeddings if they are called so, an
    encoder's final norm before a decoder to the encoder's last layer, all others (pooler,
    final norm, the task's head) to the head.

    Args:
        names: Of the tensors, with or without a prefix such as "bert.".
        parts: Into how many the stack is cut.
        tied: Tensors that share their values with the embeddings, and so belong there.

    Raises:
        ValueError: If `parts` is not positive.
    """
    if parts < 1:
        raise ValueError(f"The stack must be cut into at least one part; got {parts}.")
    names = sorted(names)
    places = {name: found for name in names if (found := _place(name)) is not None}
    stacks = sorted({stack for stack, _ in places.values()}, key=_order)
    depth = {
        layer: i
        for i, layer in enumerate(
            (stack, number)
            for stack in stacks
            for number in sorted({n for s, n in places.values() if s == stack})
        )
    }
    relative = {name.removesuffix(_RELATIVE) for name in names if name.endswith(_RELATIVE)}

    def group(name: str) -> int:
        layer = places.get(name) or _end_of_encoder(name, stacks, depth)
        beside = any(name.startswith(f"{owner}LayerNorm.") for owner in relative)
        if name in tied or beside or (layer is None and _is_embedding(name)):
            return 0
        return parts + 1 if layer is None else 1 + depth[layer] * parts // len(depth)

    return {name: group(name) for name in names}


def _place(name: str) -> tuple[str, int] | None:
    """Stack and number of a tensor's layer; None if it belongs to no layer."""
    found = _NUMBER.match(name)
    if found is None or _is_embedding(found["stack"] + ".") or _HEAD.search(found["stack"]):
        return None
    return found["stack"], int(found["number"])


def _order(stack: str) -> tuple[bool, str]:
    return "decoder" in stack.split("."), stack


def _is_embedding(name: str) -> bool:
    return _EMBEDDINGS.search(name) is not None and _HEAD.search(name) is None


def _end_of_encoder(
    name: str, stacks: list[str], depth: Mapping[tuple[str, int], int]
) -> tuple[str, int] | None:
    """The last layer of the encoder whose final norm a tensor is, if a decoder follows."""
    for stack in stacks[:-1]:
        owner, _, own = stack.rpartition(".")
        if (
            own
            and owner.endswith("encoder")
            and re.fullmatch(rf"{re.escape(owner)}\.\w*norm\.\w+", name)
        ):
            return max(layer for layer in depth if layer[0] == stack)
    return None
