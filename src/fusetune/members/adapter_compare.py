"""Whether adapters can be averaged with one another, and laid on a base model.

Ranks, scalings and targeted modules may differ: ΔW is a sum of matrices of one shape, and a
module that an adapter leaves alone has ΔW = 0. The base model must be one and the same. A
tensor that some adapters train as a whole and others do not has no value in those others that
training chose, so that sets of whole tensors must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusetune.errors import MemberError
from fusetune.members.adapter import AdaptedModule, AdapterMember
from fusetune.members.base import Base
from fusetune.members.binding import listed
from fusetune.members.header import TensorSpec
from fusetune.members.member import Member


def adapter_errors(members: Sequence[Member]) -> list[MemberError]:
    """Why adapters do not fit together; empty if they do. No tensor is read."""
    adapters = [member for member in members if isinstance(member, AdapterMember)]
    if len(adapters) < len(members):
        whole = next(member for member in members if not isinstance(member, AdapterMember))
        return [
            MemberError(
                f"{adapters[0].path} is an adapter and {whole.path} a whole model.",
                hint="Fuse adapters with adapters, or merge them into their base first.",
            )
        ]
    first, errors = adapters[0], []
    for other in adapters[1:]:
        for reason in _differences(first, other):
            errors.append(
                MemberError(
                    f"{other.path} cannot be averaged with {first.path}: {reason}.",
                    hint="Adapters must have been trained on one base model, with the same "
                    "modules_to_save and bias; ranks and targets may differ.",
                )
            )
    return errors


def fits(first: Member, second: Member) -> bool:
    """Whether two members are adapters that can be averaged with one another."""
    if not isinstance(first, AdapterMember) or not isinstance(second, AdapterMember):
        return False
    return not _differences(first, second)


def _differences(first: AdapterMember, other: AdapterMember) -> list[str]:
    found = []
    if first.base_digest and other.base_digest:
        if first.base_digest != other.base_digest:
            found.append("their base models have different weights")
    elif _base(first) != _base(other):
        found.append(f"their base models are {_base(other)} and {_base(first)}")
    if odd := sorted(first.whole.keys() ^ other.whole.keys()):
        found.append(
            f"only one of them holds {listed(odd, 3)}, for which the other has no trained value"
        )
    for name in sorted(first.whole.keys() & other.whole.keys()):
        ours = first.tensors[first.whole[name]].shape
        theirs = other.tensors[other.whole[name]].shape
        if ours != theirs:
            found.append(f"{name} is {theirs} there and {ours} here")
    return found


def _base(member: AdapterMember) -> str:
    revision = member.adapter.get("revision")
    return f"{member.base_name}" + (f" at revision {revision}" if revision else "")


def check_base(
    members: Sequence[AdapterMember], base: Base, specs: Mapping[str, TensorSpec]
) -> None:
    """Raise `MemberError` unless every tensor of the adapters has its place in the base."""
    for member in members:
        for name, key in member.whole.items():
            shape = member.tensors[key].shape
            if name not in specs or specs[name].shape != shape:
                raise _misfit(member, name, shape, specs.get(name))
        for module, adapted in member.modules.items():
            _check_module(member, module, adapted, base, specs)
        changed = {*member.whole, *(f"{module}.weight" for module in member.modules)}
        for name in sorted(changed & base.tied.keys()):
            raise MemberError(
                f"{member.path} changes {name}, which the base model shares with "
                f"{listed([n for n in base.tied[name] if n != name])}: merged, it would "
                "change there too, which training did not see.",
                hint="Target other modules, or untie the embeddings of the base model.",
            )


def _check_module(
    member: AdapterMember,
    module: str,
    adapted: AdaptedModule,
    base: Base,
    specs: Mapping[str, TensorSpec],
) -> None:
    name = f"{module}.weight"
    shape = member.tensors[adapted.b].shape[0], member.tensors[adapted.a].shape[1]
    known = name in specs or name in base.tied
    spec = specs.get(name)
    if known and spec is None:
        return  # a tied name: the caller has a better message
    if spec is not None and base.transposed(module):
        shape = shape[::-1]
    if spec is None or spec.shape != shape:
        raise _misfit(member, name, shape, spec)
    if adapted.bias and (f"{module}.bias" not in specs or adapted.magnitude):
        raise MemberError(
            f"{member.path} trains a bias of LoRA on {module}, which cannot be merged there.",
            hint="Train without lora_bias.",
        )


def _misfit(
    member: AdapterMember, name: str, shape: tuple[int, ...], there: TensorSpec | None
) -> MemberError:
    found = f"is {tuple(there.shape)}" if there else "does not exist"
    return MemberError(
        f"{member.path} does not fit its base model: {name} is {shape} in the adapter and "
        f"{found} in the base.",
        hint="Give the base model that the adapters were trained on, with their head.",
    )
