"""What the files of a finished run's checkpoint say of its task, model and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.errors import MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.base_load import HEADS
from fusetune.members.companions import tokenizer_home
from fusetune.members.member import Member, architectures
from fusetune.models.load import PICKLED
from fusetune.models.quantised_load import stored_kind

CLASSIFICATION, REGRESSION = "sequence-classification", "regression"
SPANS, GENERATION = "span-question-answering", "generation"

KINDS: Mapping[str, str] = {
    "ForSequenceClassification": CLASSIFICATION,
    "ForQuestionAnswering": SPANS,
    "ForConditionalGeneration": GENERATION,
    "ForCausalLM": GENERATION,
    "LMHeadModel": GENERATION,
}
"""Ending of a model's class → kind of task."""

ADAPTER_KINDS: Mapping[str, str] = {
    "SEQ_CLS": CLASSIFICATION,
    "QUESTION_ANS": SPANS,
    "SEQ_2_SEQ_LM": GENERATION,
    "CAUSAL_LM": GENERATION,
}
"""PEFT's task type → kind of task."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a checkpoint tells.

    Attributes:
        architecture: The model's class, or PEFT's task type of an adapter.
        kind: Of the task; None where it cannot be told.
        names: The name of each class id; empty where the files have none.
        classes: Outputs of a classifier's head; 0 for other kinds.
        model: Folder of a model whose tokenizer lies beside it; of an adapter, folder or hub
            id of its base model. None where the files do not tell.
        revision: Of that hub id.
        lora: The recipe's section `model.lora` of an adapter; None for a whole model.
        quantization: The recipe's `model.quantization` of an adapter's base; "none" as well
            where the files do not say it.
    """

    architecture: str
    kind: str | None
    names: tuple[str, ...]
    classes: int
    model: str | None
    revision: str | None
    lora: Mapping[str, Any] | None
    quantization: str


def read(member: Member, kind: str | None = None) -> Finished:
    """What a checkpoint's files tell; no tensor is loaded.

    Args:
        member: The checkpoint.
        kind: Of the task, where the user says so.

    Raises:
        MemberError: If it is a classifier that gives several labels to one text.
    """
    config = member.config
    adapter = member.adapter if isinstance(member, AdapterMember) else None
    if adapter is not None:
        architecture = str(adapter.get("task_type") or "an adapter without task_type")
        kind = kind or ADAPTER_KINDS.get(architecture)
    else:
        architecture = next(iter(architectures(config)), "a model without config.json")
        ending = next((end for end in KINDS if architecture.endswith(end)), "")
        kind = kind or KINDS.get(ending)
    names = _names(config)
    classes = _classes(member, names) if kind == CLASSIFICATION else 0
    if kind == CLASSIFICATION:
        problem = config.get("problem_type")
        if problem == "multi_label_classification":
            raise MemberError(
                f"{member.path} gives several labels to one text (problem_type "
                f"{problem}), which no kind of task here does.",
                "Use fusetune.fuse with an evaluation of your own.",
            )
        kind = REGRESSION if problem == "regression" or classes == 1 else kind
    return Finished(
        architecture=architecture,
        kind=kind,
        names=names,
        classes=classes,
        model=_beside(member) if adapter is None else _base(member),
        revision=(adapter or {}).get("revision"),
        lora=None if adapter is None else _lora(adapter),
        quantization=stored_kind(config.get("quantization_config") or {}),
    )


def _names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """id2label in the order of the ids; empty where the file leaves it at the default."""
    found = config.get("id2label")
    if not isinstance(found, Mapping) or not all(str(key).isdigit() for key in found):
        return ()
    return tuple(str(found[key]) for key in sorted(found, key=int))


def _classes(member: Member, names: tuple[str, ...]) -> int:
    """Outputs of the head; Transformers writes no id2label for its default of two."""
    if names:
        return len(names)
    whole = member.whole if isinstance(member, AdapterMember) else {}
    for head in HEADS:
        tensor = member.tensors.get(whole.get(head, head))
        if tensor is not None and tensor.shape:
            return tensor.shape[0]
    return 2


def _beside(member: Member) -> str | None:
    """The checkpoint's folder, or the one around it, that is a model's and has a tokenizer."""
    if tokenizer_home(member) is None:
        return None
    for folder in (member.path, member.path.absolute().parent):
        weights = any(folder.glob("*.safetensors")) or any(
            (folder / name).is_file() for name in PICKLED
        )
        if weights and (folder / "config.json").is_file():
            return str(folder.absolute())
    return None


def _base(member: Member) -> str | None:
    assert isinstance(member, AdapterMember)
    name = member.base_name
    return str(Path(name).absolute()) if name is not None and Path(name).is_dir() else name


def _lora(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration as the recipe's section."""
    same = ("target_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "bias")
    found = {name: adapter[name] for name in same if adapter.get(name)}
    names = {"lora_alpha": "alpha", "lora_dropout": "dropout"}
    flags = {"use_rslora": "rslora", "use_dora": "dora"}
    for theirs, ours in {**names, **flags}.items():
        if adapter.get(theirs):
            found[ours] = adapter[theirs]
    return {"rank": int(adapter.get("r", 8)), **found}
