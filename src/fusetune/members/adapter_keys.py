"""The names in the file of a PEFT adapter, or of a whole PEFT model, → the base model's names.

PEFT wraps modules of the base model, and each wrapper adds a part to the names below it. A file
of `save_pretrained` has `base_model.model.` in front and no adapter's name; a state dict of the
whole model has names as `q_proj.lora_A.default.weight`, the wrapped weight as
`q_proj.base_layer.weight`, and all that PEFT left alone. Wrappers of PyTorch may stand in
front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fusetune.errors import MemberError
from fusetune.members.checkpoints.wrappers import MODULE, without_marks

PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
SAVED, ORIGINAL = ".modules_to_save.", ".original_module."
TOKENS = ".token_adapter."
ROWS = re.compile(
    r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.(?P<adapter>.+))?"
)


@dataclass(frozen=True, slots=True)
class Keys:
    """What the tensors of one file are; keys are names in the file.

    Attributes:
        factors: Module, wrappers of parameters included → part of LoRA → key.
        whole: Name in the base model → key of the tensor that takes its place.
        copies: Name in the base model → key of the base's own tensor, which PEFT saves again.
        rows: Name of an embedding's weight → key of the rows that were trained.
    """

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)


def holds_peft(names: Iterable[str]) -> bool:
    """Whether names are of a model that PEFT wraps, whole or the adapter alone."""
    plain = (_unwrapped(name) for name in names)
    return any(n.startswith(PREFIX) or FACTOR.fullmatch(n) for n in plain)


def sort_keys(place: str, names: Iterable[str]) -> Keys:
    """Say what each tensor of a file is.

    Args:
        place: The file, for messages.
        names: Of its tensors.

    Raises:
        MemberError: If it holds several adapters, or a tensor of a kind that is not known.
    """
    keys = Keys()
    adapters: set[str] = set()
    rest: dict[str, str] = {}
    for key in sorted(names):
        name = _unwrapped(key).removeprefix(PREFIX)
        factor, rows = FACTOR.fullmatch(name), ROWS.fullmatch(name)
        if factor is not None:
            part = factor["part"] + (".bias" if factor["leaf"] == "bias" else "")
            keys.factors.setdefault(factor["module"], {})[part] = key
        elif rows is not None:
            keys.rows[f"{rows['module']}.weight"] = key
        else:
            rest[name] = key
        adapters |= {m["adapter"] for m in (factor, rows) if m is not None and m["adapter"]}
    if len(adapters) > 1:
        raise MemberError(
            f"{place} holds {len(adapters)} adapters, {', '.join(sorted(adapters))}, and which "
            "of them is the member is not known.",
            hint="Save each by itself: model.save_pretrained(…, selected_adapters=[…]).",
        )
    for name, key in rest.items():
        _sort_other(place, name, key, adapters, keys)
    for name in keys.whole.keys() & keys.copies.keys():  # trained beside the original
        del keys.copies[name]
    return keys


def _sort_other(place: str, name: str, key: str, adapters: set[str], keys: Keys) -> None:
    """A tensor that is neither a factor nor trained rows."""
    if SAVED in name:
        module, _, tensor = name.rpartition(SAVED)
        for adapter in adapters:
            tensor = tensor.removeprefix(f"{adapter}.")
        keys.whole[f"{module}.{tensor}"] = key
    elif ORIGINAL in name:
        keys.copies.setdefault(name.replace(ORIGINAL, "."), key)
    elif TOKENS in name:
        if ".trainable_tokens_original" not in name:
            keys.copies[base_name(name.replace(TOKENS, "."))] = key
    elif "lora_" in name.rpartition(".")[0] or name.startswith("lora_"):
        raise MemberError(
            f"{place} holds {key!r}, which is neither a factor of LoRA nor a module that was "
            "saved.",
            hint="Save the adapter with PEFT's save_pretrained.",
        )
    elif ".base_layer." in name and not name.endswith(".bias"):
        keys.copies[base_name(name)] = key  # a bias may have been trained: it counts as whole
    else:
        keys.whole.setdefault(base_name(name), key)


def base_name(name: str) -> str:
    """A name of a tensor or module without the parts that PEFT's wrappers add."""
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def nesting(module: str) -> int:
    """How many wrappers of parameters lie around the one that a factor belongs to."""
    return len(re.findall(r"\.base_layer(?=\.|$)", module))


def key_of(name: str, wrapped: Mapping[str, int], rows: Iterable[str]) -> str:
    """The key under which PEFT looks for a tensor of the base model.

    Args:
        name: In the base model.
        wrapped: Path of each module with factors → how many wrappers lie around it.
        rows: Names of embeddings' weights of which rows are trained.
    """
    module, _, tensor = name.rpartition(".")
    if name in set(rows):
        return f"{PREFIX}{module}{TOKENS}base_layer.{tensor}"
    return f"{PREFIX}{module}{'.base_layer' * wrapped.get(module, 0)}.{tensor}"


def _unwrapped(key: str) -> str:
    """A key without the wrappers of PyTorch in front of PEFT's."""
    plain = inner = without_marks(key)
    while inner.startswith(MODULE):
        inner = inner.removeprefix(MODULE)
    return inner if inner.startswith(PREFIX) else plain
