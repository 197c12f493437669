"""One LoRA adapter as PEFT saves it: which tensors belong to which module, and its scaling.

An adapter lays ΔW = s B A on the weight W of a module, s = α / r or, with rsLoRA, α / √r
[Kalajdzievski2023]_; rank and alpha may differ from module to module. DoRA [Liu2024]_ gives
each row of W + ΔW a length of its own. Beside that an adapter may hold whole tensors that were
trained as they are: modules_to_save, and biases.

.. [Kalajdzievski2023] D. Kalajdzievski. A Rank Stabilization Scaling Factor for Fine-Tuning
   with LoRA. arXiv:2312.03732.
.. [Liu2024] S.-Y. Liu et al. DoRA: Weight-Decomposed Low-Rank Adaptation. ICML 2024.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from fusetune.errors import MemberError
from fusetune.members.header import TensorInfo, read_header
from fusetune.members.manifest import Manifest, read_manifest
from fusetune.members.member import Member, check_sizes, read_json, step_of

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|lora_B\.bias)(\.weight)?"
)

PATIENCE = 0.05  # seconds for one regular expression of an adapter's configuration

# Of PEFT's ways to begin: those that leave the base model as it is.
KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
# Settings under which an adapter is not what this module takes it for.
REFUSED = {
    "layer_replication": "layers are replicated",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "block-diagonal LoRA has other factors",
    "alora_invocation_tokens": "activated LoRA applies to a part of the tokens only",
    "arrow_config": "Arrow chooses among adapters for each token",
    "kasa_config": "KaSA changes the base model's weights too",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "velora_config": "VeLoRA is not supported",
    "trainable_token_indices": "single rows of the embedding are trained",
    "target_parameters": "parameters are targeted instead of modules",
}


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """What an adapter's file holds of one module: names in the file, and s.

    Attributes:
        a: Factor A, `r x in`.
        b: Factor B, `out x r`.
        rank: r.
        scaling: s.
        embedding: Whether the module is an embedding, whose weight is `in x out`.
        magnitude: Row lengths of DoRA, `out`.
        bias: What LoRA adds to the bias before scaling, `out`.
    """

    a: str
    b: str
    rank: int
    scaling: float
    embedding: bool
    magnitude: str | None
    bias: str | None


@dataclass(frozen=True)
class AdapterMember(Member):
    """A LoRA adapter whose file has been found whole; its tensors stay on the disk.

    `tensors` are those of the adapter's file. `config` is config.json of the model it was
    trained on, where the folder has it.

    Attributes:
        adapter: adapter_config.json.
        modules: Path of a module in the base model → what the adapter holds of it.
        whole: Name of a tensor of the base model → name of the one that replaces it.
    """

    adapter: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, AdaptedModule] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> AdapterMember:
        """Read the configuration and the header of an adapter's folder.

        Raises:
            MemberError: If a file is missing or damaged, the adapter is no LoRA, or it uses
                an option under which its average is not defined.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is not None:
            check_sizes(path, manifest)
        return cls.of(path, read_header(path / WEIGHTS), (path / WEIGHTS,), manifest)

    @classmethod
    def of(
        cls,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        files: tuple[Path, ...],
        manifest: Manifest | None,
    ) -> AdapterMember:
        """An adapter whose tensors are known; the folder has its configuration.

        Raises:
            MemberError: As `open`.
        """
        if not (path / CONFIG).is_file():
            raise MemberError(
                f"{path} has {files[0].name} but no {CONFIG}, which says its scaling.",
                hint="Save the adapter with PEFT's save_pretrained.",
            )
        config = read_json(path / CONFIG)
        _check_kind(path, config)
        tensors = dict(sorted(tensors.items()))
        modules, whole = _parse(path, tensors, config)
        plain = path / "config.json"
        return cls(
            path=path,
            step=manifest.step if manifest else step_of(path),
            tensors=tensors,
            config=read_json(plain) if plain.exists() else {},
            files=files,
            manifest=manifest,
            adapter=config,
            modules=modules,
            whole=whole,
        )

    @property
    def base_name(self) -> str | None:
        """Folder or hub id of the base model, as PEFT wrote it down."""
        name = self.adapter.get("base_model_name_or_path")
        return str(name) if name else None

    @property
    def base_digest(self) -> str | None:
        """sha256 of the base model's weights, where the collector wrote it down."""
        return self.manifest.base if self.manifest else None

    @property
    def dora(self) -> bool:
        """Whether any module has magnitudes."""
        return any(module.magnitude for module in self.modules.values())

    @cached_property
    def sha256(self) -> str:
        """Digest of the file and of what it does not say: the scalings and the base."""
        scalings = {name: module.scaling for name, module in sorted(self.modules.items())}
        rest = json.dumps([scalings, self.base_digest or self.base_name])
        file = self._digest(self.files[0])
        return hashlib.sha256(f"{file}\n{rest}".encode()).hexdigest()


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (path / WEIGHTS).is_file() and not (path / "model.safetensors").exists()


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise MemberError(
            f"{path} is a PEFT adapter of type {kind}; averages are defined here for LORA.",
            hint="Merge it into its base model and save that as safetensors.",
        )
    init = config.get("init_lora_weights")
    if init not in KEEP_BASE:
        raise MemberError(
            f"{path} was begun with init_lora_weights={init!r}, which changes the base model's "
            "weights too: its factors mean nothing on the original base.",
            hint="Save it with path_initial_model_for_weight_conversion, as PEFT describes.",
        )
    for name, reason in REFUSED.items():
        if config.get(name):
            raise MemberError(
                f"{path} sets {name} in {CONFIG}: {reason}, and no average of such adapters "
                "is defined here."
            )


def _parse(
    path: Path, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[dict[str, AdaptedModule], dict[str, str]]:
    parts: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in tensors:
        name = key.removeprefix(PREFIX)
        match = PART.fullmatch(name)
        if match is not None and name != key:
            parts.setdefault(match["module"], {})[match["part"]] = key
        elif ".modules_to_save." in name or ".original_module." in name:
            continue  # PEFT writes these again beside the tensor itself where bias is "all"
        elif name == key or "lora_" in name or name.endswith(".base_layer.weight"):
            raise MemberError(
                f"{path / WEIGHTS} holds {key!r}, which is neither a factor of LoRA nor a "
                "module that was saved.",
                hint="Save the adapter with save_embedding_layers=False.",
            )
        else:
            whole[name.replace(".base_layer.", ".")] = key
    return {m: _module(path, m, p, tensors, config) for m, p in sorted(parts.items())}, whole


def _module(
    path: Path,
    name: str,
    parts: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
) -> AdaptedModule:
    embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' if embedding else ''}{x}") for x in "AB")
    shapes = [tensors[key].shape for key in (a, b) if key is not None]
    if a is None or b is None or [len(shape) for shape in shapes] != [2, 2]:
        raise MemberError(
            f"{path / WEIGHTS} does not hold two matrices A and B for the module {name}.",
            hint="Only linear layers and embeddings can be averaged; convolutions cannot.",
        )
    rank = shapes[0][0]
    if shapes[1][1] != rank or rank == 0:
        raise MemberError(
            f"{path / WEIGHTS}: the factors of {name} do not fit together, {shapes[0]} and "
            f"{shapes[1]}."
        )
    alpha = _alpha(path, config, name)
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    return AdaptedModule(
        a=a,
        b=b,
        rank=rank,
        scaling=alpha / root,
        embedding=embedding,
        magnitude=parts.get("lora_magnitude_vector"),
        bias=parts.get("lora_B.bias"),
    )


def _alpha(path: Path, config: Mapping[str, Any], module: str) -> float:
    try:
        pattern = config.get("alpha_pattern") or {}
        alpha = float(_of_pattern(pattern, module, config["lora_alpha"]))
        if not math.isfinite(alpha):
            raise ValueError(f"lora_alpha is {alpha}")
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        TimeoutError,
        TypeError,
        ValueError,
        regex.error,
    ) as error:
        raise MemberError(
            f"{path / CONFIG} does not say the alpha of {module}: {type(error).__name__}: "
            f"{error}.",
            hint="Save the adapter with PEFT's save_pretrained.",
        ) from error
    return alpha


def _of_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that matches the end of the module's path, as in PEFT.

    The keys are regular expressions of whoever wrote the file; one that does not come to an
    end is given up.
    """
    for key, value in pattern.items():
        if regex.match(rf"(.*\.)?({key})$", module, timeout=PATIENCE):
            return value
    return default
