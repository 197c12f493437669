"""Adapters laid on their base model: every tensor of theirs gets its place, or is refused.

What only the base can tell is settled here: which parameters of experts PEFT's nested wrappers
belong to, and which names are one tensor, because the base model ties them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from fusetune.errors import MemberError
from fusetune.members.adapter import AdaptedModule, AdapterMember, scaling_of
from fusetune.members.adapter_keys import base_name, nesting
from fusetune.members.base import Base, same_bits_of
from fusetune.members.base_load import renamed
from fusetune.members.binding import listed
from fusetune.members.files import FileSource

HINT = "Give the base model that the adapters were trained on, with their head."


def bind_adapters(members: Sequence[AdapterMember], base: Base) -> tuple[AdapterMember, ...]:
    """The members as changes of the base model's own tensors.

    Args:
        members: Compatible with one another.
        base: Its model is loaded.

    Returns:
        Members whose `modules` have a parameter's own name where one is adapted, whose `whole`
        has only what training changed, and in which each tensor of the base stands once.

    Raises:
        MemberError: If a tensor of an adapter has no place in the base, or one name of a tied
            tensor was trained without the others.
    """
    files = FileSource(members)
    named = [renamed(member, base.model) for member in members]
    return tuple(_bound(i, member, base, files) for i, member in enumerate(named))


def weight_of(module: str, adapted: AdaptedModule) -> str:
    """The name of the tensor that factors are laid on."""
    return adapted.parameter or f"{module}.weight"


def _bound(index: int, member: AdapterMember, base: Base, files: FileSource) -> AdapterMember:
    for name, key in {**member.whole, **member.copies}.items():
        shape = member.tensors[key].shape
        _require(member, name, shape, base)
    modules = _parameters(member, base)
    for module, adapted in modules.items():
        _check_module(member, module, adapted, base)
    for name in member.rows:
        _check_rows(member, name, base)
    whole = dict(member.whole)
    for names in set(base.tied.values()):
        _untie(index, member, names, modules, whole, base, files)
    whole = {name: key for name, key in whole.items() if name not in base.constants}
    rows = {_stored(name, base): value for name, value in member.rows.items()}
    weights = {weight_of(module, adapted) for module, adapted in modules.items()}
    if twice := sorted(weights & (rows.keys() | whole.keys()) | (rows.keys() & whole.keys())):
        raise MemberError(
            f"{member.path} changes {twice[0]} in two ways at once, of which no average is "
            "defined here.",
            hint="Merge it into its base model and save that as safetensors.",
        )
    return replace(member, modules=modules, whole=whole, rows=rows)


def _stored(name: str, base: Base) -> str:
    """The name under which a tensor stands once, of all that a tied tensor has."""
    return next((n for n in base.tied.get(name, ()) if n in base.specs), name)


def _parameters(member: AdapterMember, base: Base) -> dict[str, AdaptedModule]:
    """The modules, with wrapped parameters under the parameters' names.

    PEFT wraps a module once for each of its parameters that is targeted, in their order: the
    innermost wrapper, whose factors have the longest names, belongs to the first parameter.
    """
    targets = member.adapter.get("target_parameters") or ()
    modules: dict[str, AdaptedModule] = {}
    wrappers: dict[str, dict[int, AdaptedModule]] = {}
    for key, adapted in member.modules.items():
        path = base_name(key)
        owner = base.submodule(path)
        ordinary = owner is not None and (path in base.layers or _is_layer(owner))
        if ordinary or not targets:
            modules[key] = adapted
        else:
            wrappers.setdefault(path, {})[nesting(key)] = adapted
    for path, levels in wrappers.items():
        owner = base.submodule(path)
        own = {} if owner is None else dict(owner.named_parameters(recurse=False))
        names = [n for n in own if _targeted(f"{path}.{n}", targets)]
        if sorted(levels) != list(range(len(names))):
            raise MemberError(
                f"{member.path} adapts {len(levels)} parameters of {path}, and the base model "
                f"has {len(names)} there that target_parameters names.",
                hint=HINT,
            )
        for level, adapted in levels.items():
            name = f"{path}.{names[len(names) - 1 - level]}"
            shape = own[name.rpartition(".")[2]].shape
            modules[name] = _parameter(member, name, tuple(shape), adapted)
    return dict(sorted(modules.items()))


def _is_layer(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | nn.Embedding | Conv1D)


def _targeted(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _parameter(
    member: AdapterMember, name: str, shape: tuple[int, ...], adapted: AdaptedModule
) -> AdaptedModule:
    """The factors of one parameter: the rank and scaling of each expert are known now."""
    experts = shape[0] if len(shape) == 3 else None
    rank, rest = divmod(adapted.rank, experts or 1)
    if rest or rank == 0:
        raise MemberError(
            f"{member.path} has factors of {adapted.rank} ranks in all for {name}, which "
            f"cannot be shared by {experts} experts.",
            hint=HINT,
        )
    scaling = scaling_of(member.adapter, name, rank, member.path)
    return replace(adapted, parameter=name, experts=experts, rank=rank, scaling=scaling)


def _check_module(
    member: AdapterMember, module: str, adapted: AdaptedModule, base: Base
) -> None:
    name = weight_of(module, adapted)
    shape = member.tensors[adapted.b].shape[0], member.tensors[adapted.a].shape[1]
    wide = shape[::-1] if base.flipped(module, adapted) else shape
    _require(member, name, wide if adapted.experts is None else (adapted.experts, *wide), base)
    if adapted.bias and (f"{module}.bias" not in base.specs or adapted.magnitude):
        raise MemberError(
            f"{member.path} trains a bias of LoRA on {module}, which cannot be merged there.",
            hint="Train without lora_bias.",
        )


def _check_rows(member: AdapterMember, name: str, base: Base) -> None:
    spec = base.specs.get(_stored(name, base))
    key, rows = member.rows[name]
    wanted = None if spec is None else (len(rows), *spec.shape[1:])
    inside = spec is not None and all(0 <= row < spec.shape[0] for row in rows)
    if member.tensors[key].shape != wanted or not inside:
        found = "does not exist" if spec is None else f"is {spec.shape}"
        raise MemberError(
            f"{member.path} does not fit its base model: {name}, of which it trains the rows "
            f"{listed([str(row) for row in rows], 5)}, {found} in the base.",
            hint="Give the base model with the added tokens, as the training had it.",
        )


def _untie(
    index: int,
    member: AdapterMember,
    names: Sequence[str],
    modules: dict[str, AdaptedModule],
    whole: dict[str, str],
    base: Base,
    files: FileSource,
) -> None:
    """Keep one of the names of a tied tensor, if training kept all of them equal.

    The whole state of a model may have one name of a tensor that is tied, as files leave the
    others out; an adapter has all names that it trained.
    """
    weights = {weight_of(module, adapted): module for module, adapted in modules.items()}
    saved = [name for name in names if name in whole]
    adapted = [name for name in names if name in weights]
    stored = _stored(names[0], base)
    equal = True
    if saved:
        kept = bool(member.adapter.get("ensure_weight_tying"))
        several = len(saved) == len(names) or kept
        several = several or not any(trained_whole(member, n) for n in saved)
        equal = several and same_bits_of(files, [(index, whole[n]) for n in saved])
    if adapted:
        own = [modules[weights[name]] for name in adapted]
        equal &= not saved and len(adapted) == len(names) and _one_change(index, own, files)
    if not equal:
        changed = next(n for n in (*adapted, *saved))
        raise MemberError(
            f"{member.path} changes {changed}, which the base model shares with "
            f"{listed([n for n in names if n != changed])}: merged, it would change there too, "
            "which training did not see.",
            hint="Target other modules, keep both equal (PEFT's ensure_weight_tying), or untie "
            "the embeddings of the base model.",
        )
    if saved:
        key = whole[saved[0]]
        for name in saved:
            del whole[name]
        whole[stored] = key
    for name in adapted:
        if name != stored:
            del modules[weights[name]]


def trained_whole(member: AdapterMember, name: str) -> bool:
    """Whether a whole tensor is of a module that PEFT was told to train."""
    module = f".{name.rpartition('.')[0]}"
    saved = member.adapter.get("modules_to_save") or ()
    return any(module.endswith(f".{end}") for end in saved)


def _one_change(index: int, own: Sequence[AdaptedModule], files: FileSource) -> bool:
    """Whether the factors of tied layers make one change: an embedding has them transposed."""
    pairs = []
    for adapted in own:
        a, b = files.read(index, adapted.a), files.read(index, adapted.b)
        pairs.append((b.t(), a.t()) if adapted.embedding else (a, b))
    a, b = pairs[0]
    same = all(torch.equal(a, x) and torch.equal(b, y) for x, y in pairs[1:])
    scalings = {adapted.scaling for adapted in own}
    plain = not any(adapted.magnitude or adapted.bias for adapted in own)
    return same and plain and math.isclose(min(scalings), max(scalings))


def _require(member: AdapterMember, name: str, shape: tuple[int, ...], base: Base) -> None:
    """Raise `MemberError` unless the base has a tensor of that name and shape."""
    spec = base.specs.get(_stored(name, base))
    if spec is not None and spec.shape == shape:
        return
    found = f"is {tuple(spec.shape)}" if spec else "does not exist"
    hint = HINT
    if spec is not None and len(shape) == 2 and shape[0] != spec.shape[0]:
        hint += (
            " If the training resized the embeddings, give the resized model: its new rows "
            "stand in no adapter."
        )
    raise MemberError(
        f"{member.path} does not fit its base model: {name} is {shape} in the adapter and "
        f"{found} in the base.",
        hint=hint,
    )


def tensor_names(members: Sequence[AdapterMember]) -> Mapping[str, str]:
    """Name of each adapted weight → the module that has its factors."""
    pairs = {(weight_of(m, a), m) for member in members for m, a in member.modules.items()}
    return dict(sorted(pairs))
