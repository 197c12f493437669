"""One checkpoint: what its files say about themselves, before any tensor is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fusetune.errors import MemberError
from fusetune.files.record import regular
from fusetune.members import formats
from fusetune.members.checkpoints.steps import checkpoint_of, step_of
from fusetune.members.disk import file_sha256
from fusetune.members.header import TensorInfo, TensorSpec, read_header
from fusetune.members.manifest import MANIFEST, Manifest, read_manifest
from fusetune.models.own_files import require_own_links

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
QUANTISED = re.compile(
    r"(.+\.)?(qweight|qzeros|SCB|(nested_)?absmax|(nested_)?quant_map|weight_packed"
    r"|weight_scale(_inv)?|quant_state\..+)"
)
"""Names of what quantised layers keep beside a weight or in its place: of bitsandbytes, GPTQ,
AWQ, compressed-tensors and FP8."""


@dataclass(frozen=True)
class Member:
    """A checkpoint whose files have been found whole; its tensors stay on the disk.

    Attributes:
        path: The folder; of another format than safetensors, it may be a file.
        step: Optimiser step at which it was taken, if known; see `steps.step_of`.
        tensors: Tensor name → dtype, shape and file, ordered by name.
        config: config.json, or empty if there is none.
        files: Weight files, without the index of shards.
        manifest: member.json, if the checkpoint has one.
        copy: Folder of a copy as safetensors, which `tensors` are in, of another format.
        pretrained: Whether it is the model that the training began with, no checkpoint of it.
        lightning: Whether it is the state dict of a Lightning module, its network in it.
        foreign: Weights that were only looked at: they have to be copied as safetensors before
            an average can read them.
    """

    path: Path
    step: int | None
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    manifest: Manifest | None = None
    copy: Path | None = None
    pretrained: bool = False
    lightning: bool = False
    foreign: formats.Foreign | None = None

    @classmethod
    def open(cls, path: str | Path) -> Member:
        """Read the headers of a checkpoint's folder, and of its modules' folders.

        Raises:
            MemberError: If weights are missing, truncated, pickled, or not as the
                manifest says.
        """
        path = Path(path)
        require_own_links(path)
        manifest = read_manifest(path)
        if manifest is not None:
            check_sizes(path, manifest)
        shards = _weight_files(path)
        tensors: dict[str, TensorInfo] = {}
        for file, names in shards.items():
            header = read_header(file)
            if names is not None and (absent := names - header.keys()):
                raise _damaged(file, f"lacks the tensor {min(absent)!r} named in {INDEX}")
            tensors |= {n: header[n] for n in (header if names is None else names)}
        if not tensors:
            raise _damaged(path, "holds no tensor")
        for folder in module_folders(path):
            file = path / folder / SINGLE
            inner = read_header(file)
            shards[file] = None
            tensors |= {f"{folder}/{key}": replace(i, key=key) for key, i in inner.items()}
        return cls(
            path=path,
            step=step_of(path, manifest),
            tensors=dict(sorted(tensors.items())),
            config=read_json(path / "config.json") if (path / "config.json").exists() else {},
            files=tuple(sorted(shards)),
            manifest=manifest,
        )

    @cached_property
    def checkpoint(self) -> Path:
        """The path, or the checkpoint's folder around it, as of an adapter with a name."""
        return self.path if self.pretrained else checkpoint_of(self.path)

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder or file."""
        return self.checkpoint.name

    @property
    def loadable(self) -> Path:
        """The folder that `from_pretrained` reads."""
        return self.copy or self.path

    @property
    def trajectory(self) -> int | None:
        """Number of the training run it is of, from 1; None if that is the only one."""
        return self.manifest.trajectory if self.manifest else None

    @property
    def num_parameters(self) -> int:
        """Floating-point numbers in the files (tied tensors once)."""
        return sum(t.numel for t in self.tensors.values() if t.dtype.is_floating_point)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights: of the one file, or of the shards' names and digests.

        A digest in the manifest is taken from there; otherwise the files are read, once.
        """
        digests = [(file.name, self._digest(file)) for file in self.files]
        if len(digests) == 1:
            return digests[0][1]
        lines = "".join(f"{name}:{digest}\n" for name, digest in digests)
        return hashlib.sha256(lines.encode()).hexdigest()

    def _digest(self, file: Path) -> str:
        record = self.manifest.files.get(file.name) if self.manifest else None
        return record.sha256 if record else file_sha256(file)


class Source(Protocol):
    """Where the tensors of k members come from, under the names of the fused model."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """What one member has, and the fused model will have, ordered by name."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the fused model, or nothing where none is known."""
        ...

    @property
    def constant(self) -> frozenset[str]:
        """Floating-point tensors that are equal, bit by bit, in all members."""
        ...

    def load_tensor(self, index: int, name: str) -> Tensor:
        """A tensor of member `index`."""
        ...

    def read_part(self, index: int, name: str, part: slice, out: Tensor) -> None:
        """Elements of a tensor of member `index`, written into `out`."""
        ...


class Members(Source, Protocol):
    """What averaging needs of a `MemberPool`."""

    @property
    def members(self) -> Sequence[Member]:
        """The k checkpoints, which fit together."""
        ...


def module_folders(path: Path) -> list[str]:
    """The folders of a sentence-transformers model's further modules that have weights."""
    if not (path / MODULES).is_file():
        return []
    try:
        modules = json.loads((path / MODULES).read_text(encoding="utf-8"))
        folders = [str(module["path"]) for module in modules if module["path"]]
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise _damaged(path / MODULES, "does not list modules with their paths") from error
    for folder in folders:
        if folder in (".", "..") or Path(folder).name != folder or "\0" in folder:
            raise _damaged(path / MODULES, f"points outside of its folder: {folder!r}")
    return [folder for folder in folders if (path / folder / SINGLE).is_file()]


def looks_like_member(path: Path) -> bool:
    """Whether there are weights of any kind or a manifest, readable or not."""
    names = (SINGLE, INDEX, MANIFEST, "adapter_model.safetensors")
    return any((path / name).exists() for name in names) or formats.looks_like(path)


def _weight_files(path: Path) -> dict[Path, set[str] | None]:
    """Weight file → the names to take from it, None for all."""
    if (path / SINGLE).exists():
        return {path / SINGLE: None}
    if (path / INDEX).exists():
        return _sharded(path)
    if not path.is_dir():
        raise MemberError(f"{path} is not a folder with a checkpoint.")
    if (path / "adapter_model.safetensors").exists():
        raise MemberError(
            f"{path} holds a LoRA adapter, not a whole model.",
            hint="Open it with MemberPool, which lays adapters on their base model.",
        )
    raise MemberError(f"{path} holds no weights: neither {SINGLE} nor {INDEX}.")


def _sharded(path: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(path / INDEX, "has no weight_map")
    shards: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file:
            raise _damaged(path / INDEX, f"points outside of its folder: {file!r}")
        shards.setdefault(path / file, set()).add(name)
    absent = sorted(file.name for file in shards if not file.exists())
    if absent:
        raise _damaged(path, f"lacks {len(absent)} of {len(shards)} shards ({absent[0]}, …)")
    return dict(shards)


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Raise `MemberError` unless the files have the sizes that the manifest says."""
    for name, record in manifest.files.items():
        file = path / name
        size = file.stat().st_size if file.exists() else None
        if size is None:
            raise _damaged(path, f"lacks {name}, which {MANIFEST} lists")
        if size != record.bytes:
            raise _damaged(file, f"has {size:,} bytes; {MANIFEST} says it had {record.bytes:,}")


def require_unquantised(member: Member) -> None:
    """Refuse a whole model of quantised weights, whose levels cannot be averaged.

    Raises:
        MemberError: With one of the tensors that tell.
    """
    section = member.config.get("quantization_config")
    for name, info in member.tensors.items():
        packed = section and name.endswith(".weight") and not info.dtype.is_floating_point
        if packed or QUANTISED.fullmatch(name):
            raise MemberError(
                f"{member.path} holds quantised weights ({name}, {info}), whose levels cannot "
                "be averaged.",
                hint="Save the members in float32, bfloat16 or float16, or fuse the adapters "
                "that were trained on the quantised model.",
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; `MemberError` if the file holds none."""
    try:
        regular(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(path, "is not a JSON object")
    return content


def _damaged(path: Path, what: str) -> MemberError:
    return MemberError(
        f"{path} {what}.", hint="Remove this checkpoint from the list, or copy it again."
    )


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The classes that config.json names; empty if it names none."""
    found = config.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """A value of config.json, also where the text model has a section of its own."""
    if key in config:
        return config[key]
    section = config.get("text_config")
    return section.get(key) if isinstance(section, dict) else None
