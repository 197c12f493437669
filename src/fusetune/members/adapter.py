"""One LoRA adapter as PEFT saves it: which tensors belong to which module, and its scaling.

An adapter lays ΔW = s B A on the weight W of a module, s = α / r or, with rsLoRA, α / √r
[Kalajdzievski2023]_; rank and alpha may differ from module to module. DoRA [Liu2024]_ gives
each row of W + ΔW a length of its own. A parameter of experts, `experts x out x in`, has one
pair of factors for each expert. Beside that an adapter may hold whole tensors that were trained
as they are (modules_to_save, biases), single rows of an embedding (trainable_token_indices),
and copies of the base's own weights. The whole state of a model that PEFT wraps is read in the
same way: nearly all of it are copies of the base.

.. [Kalajdzievski2023] D. Kalajdzievski. A Rank Stabilization Scaling Factor for Fine-Tuning
   with LoRA. arXiv:2312.03732.
.. [Liu2024] S.-Y. Liu et al. DoRA: Weight-Decomposed Low-Rank Adaptation. ICML 2024.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from fusetune.errors import MemberError
from fusetune.members.adapter_keys import Keys, base_name, holds_peft, sort_keys
from fusetune.members.checkpoints.steps import step_of
from fusetune.members.header import TensorInfo, read_header
from fusetune.members.manifest import Manifest, read_manifest
from fusetune.members.member import Member, check_sizes, read_json
from fusetune.models.own_files import require_own_links

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
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
}


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """What an adapter's file holds of one module: names in the file, and s.

    Attributes:
        a: Factor A, `r x in`; of experts, those of all one below the other.
        b: Factor B, `out x r`; of experts, column by column, all experts' first ones first.
        rank: r; of a parameter whose experts are not counted yet, that of all together.
        scaling: s.
        embedding: Whether the module is an embedding, whose weight is `in x out`.
        magnitude: Row lengths of DoRA, `out`.
        bias: What LoRA adds to the bias before scaling, `out`.
        parameter: Name of the tensor that is adapted, if it is not the module's weight or PEFT
            was told its name (target_parameters); known where the base model is.
        experts: How many experts the parameter holds; None if it is a matrix.
    """

    a: str
    b: str
    rank: int
    scaling: float
    embedding: bool
    magnitude: str | None
    bias: str | None
    parameter: str | None = None
    experts: int | None = None


@dataclass(frozen=True)
class AdapterMember(Member):
    """A LoRA adapter whose file has been found whole; its tensors stay on the disk.

    `tensors` are those of the adapter's file. `config` is config.json of the model it was
    trained on, where the folder has it.

    Attributes:
        adapter: adapter_config.json.
        modules: Path of a module in the base model → what the adapter holds of it.
        whole: Name of a tensor of the base model → name of the one that replaces it.
        copies: Name of a tensor of the base model → name of its copy, which PEFT saved again.
        rows: Name of an embedding's weight → name of the rows that were trained, and which
            rows they are.
    """

    adapter: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, AdaptedModule] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> AdapterMember:
        """Read the configuration and the header of an adapter's folder.

        Raises:
            MemberError: If a file is missing or damaged, the adapter is no LoRA, or it uses
                an option under which its average is not defined.
        """
        path = Path(path)
        require_own_links(path)
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
        """An adapter whose tensors are known.

        Args:
            path: The folder, which has its configuration; or a file beside it.
            tensors: Of the adapter, or of the whole model that PEFT wraps.
            files: Which hold them.
            manifest: Of the member, if it has one.

        Raises:
            MemberError: As `open`.
        """
        home = path.parent if path.is_file() else path
        if not (home / CONFIG).is_file():
            raise MemberError(
                f"{files[0]} holds tensors of a PEFT model, and {home} has no {CONFIG}, which "
                "says their scaling.",
                hint=f"Put the training's {CONFIG} there: save_pretrained of the PeftModel "
                "writes it, and so does model.peft_config['default'].save_pretrained(FOLDER).",
            )
        config = read_json(home / CONFIG)
        tensors = dict(sorted(tensors.items()))
        keys = sort_keys(str(files[0]), tensors)
        _check_kind(path, config, keys)
        modules = {
            m: _module(files[0], m, p, tensors, config) for m, p in sorted(keys.factors.items())
        }
        plain = home / "config.json"
        return cls(
            path=path,
            step=step_of(path, manifest),
            tensors=tensors,
            config=read_json(plain) if plain.exists() else {},
            files=files,
            manifest=manifest,
            adapter=config,
            modules=modules,
            whole=keys.whole,
            copies=keys.copies,
            rows={n: (key, _indices(path, n, config)) for n, key in keys.rows.items()},
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
        rows = [{name: rows for name, (_, rows) in self.rows.items()}] if self.rows else []
        rest = json.dumps([scalings, self.base_digest or self.base_name, *rows])
        file = super().sha256  # of all its files
        return hashlib.sha256(f"{file}\n{rest}".encode()).hexdigest()


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (path / WEIGHTS).is_file() and not (path / "model.safetensors").exists()


def of_peft(member: Member) -> Member:
    """A member as an adapter, if its files are the whole state of a model that PEFT wraps.

    Raises:
        MemberError: If they are, and there is no configuration, or it is not of LoRA.
    """
    if not holds_peft(member.tensors):
        return member
    opened = AdapterMember.of(member.path, member.tensors, member.files, member.manifest)
    return replace(opened, step=member.step, copy=member.copy, foreign=member.foreign)


def _check_kind(path: Path, config: Mapping[str, Any], keys: Keys) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise MemberError(
            f"{path} is a PEFT adapter of type {kind}; averages are defined here for LORA.",
            hint="Merge it into its base model and save that as safetensors.",
        )
    init = config.get("init_lora_weights")
    brings_base = all(f"{base_name(module)}.weight" in keys.copies for module in keys.factors)
    if init not in KEEP_BASE and not brings_base:
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
    if config.get("trainable_token_indices") and not keys.rows:
        raise MemberError(
            f"{path} sets trainable_token_indices in {CONFIG}, and its file holds no single "
            "rows of an embedding.",
            hint="Save the adapter with PEFT's save_pretrained.",
        )


def _indices(path: Path, name: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Which rows of an embedding were trained: one list for the input's, or a list for each."""
    given = config.get("trainable_token_indices")
    module = name.removesuffix(".weight")
    if isinstance(given, Mapping):
        given = next(
            (rows for end, rows in given.items() if f".{module}".endswith(f".{end}")), None
        )
    if not isinstance(given, list) or not all(isinstance(row, int) for row in given):
        raise MemberError(
            f"{path / CONFIG} does not say which rows of {module} were trained "
            "(trainable_token_indices).",
            hint="Save the adapter with PEFT's save_pretrained.",
        )
    return tuple(given)


def _module(
    file: Path,
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
            f"{file} does not hold two matrices A and B for the module {name}.",
            hint="Only linear layers and embeddings can be averaged; convolutions cannot.",
        )
    rank = shapes[0][0]
    if shapes[1][1] != rank or rank == 0:
        raise MemberError(
            f"{file}: the factors of {name} do not fit together, {shapes[0]} and {shapes[1]}."
        )
    return AdaptedModule(
        a=a,
        b=b,
        rank=rank,
        scaling=scaling_of(config, base_name(name), rank, file.parent),
        embedding=embedding,
        magnitude=parts.get("lora_magnitude_vector"),
        bias=parts.get("lora_B.bias"),
    )


def scaling_of(config: Mapping[str, Any], name: str, rank: int, path: Path) -> float:
    """Alpha / r, or alpha / √r with rsLoRA.

    Args:
        config: PEFT's.
        name: Of the module, or of the parameter that is targeted, as patterns name it.
        rank: r.
        path: Of the adapter, for messages.

    Raises:
        MemberError: If alpha is not told.
    """
    return _alpha(path, config, name) / (math.sqrt(rank) if config.get("use_rslora") else rank)


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
