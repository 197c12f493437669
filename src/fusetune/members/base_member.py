"""The model that a training began with, θ_0, as one more member.

Combinations with it lie between the fine-tuned model and the pretrained one [Wortsman2022b]_.
A head that the pretrained model does not have is taken from the first checkpoint, so that
weight on θ_0 moves the body alone. Under adapters θ_0 is the adapter that changes nothing: one
without factors, and so exact, with DoRA too.

.. [Wortsman2022b] M. Wortsman et al. Robust fine-tuning of zero-shot models. CVPR 2022.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.adapter import CONFIG, WEIGHTS, AdapterMember
from fusetune.members.binding import listed
from fusetune.members.conversion import open_member
from fusetune.members.disk import replaced_folder, require_space
from fusetune.members.header import TensorSpec
from fusetune.members.manifest import read_manifest, write_manifest
from fusetune.members.member import SINGLE
from fusetune.members.pool import MemberPool
from fusetune.members.saved_layout import to_saved_layout
from fusetune.members.writer import write_tensors

FILES = ("config.json", "generation_config.json")


def write_base(
    folder: Path, pool: MemberPool, tensors: Mapping[str, Tensor], drawn: Collection[str] = ()
) -> Path:
    """Write θ_0 as a member's folder, whole or not at all; one that is there is kept.

    Args:
        folder: Of the member; its name is the member's.
        pool: The checkpoints.
        tensors: θ_0 under the names of the checkpoints.
        drawn: Names of what the pretrained model does not have: the first checkpoint's are
            taken.

    Returns:
        The folder.

    Raises:
        MemberError: If names or shapes are not those of the checkpoints.
        StageError: If the disk is too small.
    """
    if read_manifest(folder) is not None:
        return folder
    first = pool.members[0]
    adapter = None if pool.adapters is None else pool.adapters.members[0]
    names = sorted(adapter.whole) if adapter else list(pool.tensors)
    check_base_tensors(pool.tensors, tensors, [n for n in names if n not in drawn])
    found = {n: tensors[n] for n in names if n in tensors and n not in drawn}
    specs = pool.tensors if adapter is None else {n: _of(adapter, n) for n in names}
    require_space(folder, sum(spec.nbytes for spec in specs.values()))
    key = adapter.whole if adapter else {name: name for name in names}
    content = {
        key[name]: found[name].detach().to("cpu", spec.dtype)
        if name in found and spec.dtype.is_floating_point
        else _first(pool, name)
        for name, spec in specs.items()
    }
    with replaced_folder(folder) as new:
        for file in (*FILES, CONFIG):
            if (first.loadable / file).is_file():
                shutil.copyfile(first.loadable / file, new / file)
        write_tensors(new / (WEIGHTS if adapter else SINGLE), content)
        write_manifest(new, step=0, epoch=0.0, base=adapter.base_digest if adapter else None)
    return folder


def add_base(pool: MemberPool, folder: Path) -> MemberPool:
    """The pool with the member that `write_base` wrote, after the checkpoints."""
    return pool.extended(replace(open_member(folder), pretrained=True))


def check_base_tensors(
    specs: Mapping[str, TensorSpec], tensors: Mapping[str, Tensor], names: Collection[str]
) -> None:
    """Refuse a model that is not of the checkpoints' kind.

    Args:
        specs: Of the fused model.
        tensors: Of θ_0.
        names: Which of them it has to bring.

    Raises:
        MemberError: If names or shapes differ.
    """
    wanted = [n for n in names if n in specs and specs[n].dtype.is_floating_point]
    missing = [n for n in wanted if n not in tensors]
    shapes = [
        f"{n} ({tuple(tensors[n].shape)}, not {tuple(specs[n].shape)})"
        for n in wanted
        if n in tensors and tuple(tensors[n].shape) != tuple(specs[n].shape)
    ]
    if missing or shapes:
        what = f"has no {listed(missing, 3)}" if missing else f"differs in {listed(shapes, 3)}"
        raise MemberError(
            f"The base model cannot be a member: it {what}.",
            "Give the model that these checkpoints were trained from.",
        )


def _first(pool: MemberPool, name: str) -> Tensor:
    """The first checkpoint's, as its file has it."""
    source = pool.adapters
    return pool.load_tensor(0, name) if source is None else source.exact_tensor(0, name)


def _of(adapter: AdapterMember, name: str) -> TensorSpec:
    info = adapter.tensors[adapter.whole[name]]
    return TensorSpec(info.dtype, info.shape)


def state_of(model: torch.nn.Module, files: Collection[str] = ()) -> dict[str, Tensor]:
    """A model's tensors, under its own names or under those of checkpoints' files.

    Args:
        model: Any module.
        files: Names in the files of checkpoints; if `save_pretrained` gives the model's tensors
            these names, they are taken in the layout of its files.
    """
    own = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    if not files:
        return own
    saved = to_saved_layout(model, own)
    return saved if saved.keys() >= set(files) else own
