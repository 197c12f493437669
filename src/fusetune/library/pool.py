"""The members of a fusion by the library: as the caller gives them, and their base."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from torch import Tensor, nn

from fusetune.errors import MemberError, ModelError
from fusetune.library.models import class_of, made
from fusetune.members.adapter import AdapterMember
from fusetune.members.base import is_peft
from fusetune.members.base_member import add_base, state_of, write_base
from fusetune.members.discover import Paths
from fusetune.members.manifest import read_manifest
from fusetune.members.pool import MemberPool
from fusetune.models.load import resolve

BaseMember = nn.Module | str | Path | bool | None
"""The model that the training began with: a module, a folder or hub id; True of adapters."""

ModelInit = Callable[[], nn.Module]


def as_pool(
    given: MemberPool | Paths,
    model_init: ModelInit | None,
    folder: Path | None,
    base_member: BaseMember,
    allow_pickle: bool,
    trust_remote_code: bool = False,
) -> MemberPool:
    """The members, and their base as one more if that is wanted.

    Args:
        given: A pool, or where its members are.
        model_init: Makes the model that adapters are laid on; a `PeftModel` is copied, and
            the copy loses its adapters.
        folder: Where copies of members in other formats, and the base, are kept; in
            temporary folders by default.
        base_member: The base; see `write_base`.
        allow_pickle: Consent to pickled members.
        trust_remote_code: Consent to code that comes with their model.

    Raises:
        MemberError: If members do not fit together, or the base not to them.
        ModelError: If the base cannot be loaded.
    """
    if isinstance(given, MemberPool):
        pool = given
    else:
        base = None if model_init is None else lambda: _without_adapters(made(model_init))
        copies = None if folder is None else folder / "converted"
        pool = MemberPool.open(given, base, allow_pickle=allow_pickle, copies=copies)
    if base_member is None or base_member is False:
        return pool
    if folder is None:
        temporary = TemporaryDirectory(prefix="fusetune-")
        place = Path(temporary.name) / "base"
        return _with_base(pool.keeping(temporary), place, base_member, trust_remote_code)
    return _with_base(pool, folder / "base", base_member, trust_remote_code)


def _with_base(
    pool: MemberPool, place: Path, base_member: nn.Module | str | Path | bool, trust: bool
) -> MemberPool:
    if read_manifest(place) is None:
        tensors, drawn = _tensors(pool, base_member, trust)
        write_base(place, pool, tensors, drawn)
    return add_base(pool, place)


def _tensors(
    pool: MemberPool, base_member: nn.Module | str | Path | bool, trust: bool
) -> tuple[Mapping[str, Tensor], frozenset[str]]:
    """θ_0, and the names of what it lacks and the first member has."""
    names = () if pool.adapters is not None else tuple(pool.tensors)
    if isinstance(base_member, nn.Module):
        return state_of(_without_adapters(base_member), names), frozenset()
    first = pool.members[0]
    if isinstance(first, AdapterMember):
        return {}, frozenset(first.whole)
    if isinstance(base_member, bool):
        raise MemberError(
            "base_member=True is for adapters, which name their base model.",
            "Give the model that the training began with, or its folder or hub id.",
        )
    kind = class_of(first.config, trust)
    if kind is None:
        raise ModelError(
            f"What model {base_member} has to become is unknown: {first.path} names no class "
            "of transformers.",
            "Give base_member as a module, as it was before the training.",
        )
    config = transformers.AutoConfig.from_pretrained(first.loadable, trust_remote_code=trust)
    drawn: set[str] = set()

    def make(path: str, **options: object) -> Any:
        built = kind.from_pretrained(path, config=config, **options)
        drawn.update(built[1]["missing_keys"])
        return built

    source = resolve(str(base_member), trust_remote_code=trust)
    model = source.build(make, dtype=pool.dtype)
    return state_of(model, tuple(pool.tensors)), frozenset(drawn)


def _without_adapters(model: nn.Module) -> nn.Module:
    """The plain model under PEFT's; a copy, as the caller's keeps its adapters."""
    if not is_peft(model):
        return model
    plain: nn.Module = copy.deepcopy(model).unload()  # type: ignore[operator]
    return plain
