"""The base model that an adapter names: loaded, resized, and what of it stands in no file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fusetune.errors import MemberError
from fusetune.members.adapter import AdapterMember
from fusetune.members.adapter_keys import base_name
from fusetune.members.saved_layout import saved_layout

AUTO_CLASSES: Mapping[str, str] = {  # PEFT's task type → the class that loads such a model
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")
GIVE = (
    "Give the base model: MemberPool.open(paths, base=model), or model_init of fusetune.fuse."
)


def load_base(member: AdapterMember, *, empty: bool = False) -> nn.Module:
    """The base model that an adapter's configuration names.

    Its class follows from PEFT's task type, or is the one that PEFT wrote down; the number
    of labels from config.json beside the adapter, or from the head that it saved.

    Args:
        member: The adapter.
        empty: On the meta device: names and shapes without any values, read in no time.

    Raises:
        MemberError: If no base model is named, or it cannot be loaded.
    """
    import transformers  # takes seconds, and only adapters need it

    name, config = member.base_name, member.adapter
    if name is None:
        raise MemberError(
            f"{member.path} does not say which base model it belongs to.", hint=GIVE
        )
    mapping = config.get("auto_mapping")
    written = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    kind = AUTO_CLASSES.get(str(config.get("task_type")), written)
    make: Any = getattr(transformers, str(kind), None)
    if not _is_model_class(make):
        raise MemberError(
            f"{member.path} does not say of which class its base model is.", hint=GIVE
        )
    heads = [member.tensors[member.whole[n]].shape for n in HEADS if n in member.whole]
    labels = [shape[0] for shape in heads if shape]
    options: dict[str, Any] = {"revision": r} if (r := config.get("revision")) else {}
    # Nothing pickled, no code from the folder, and no question about it on the terminal.
    options |= {"use_safetensors": True, "trust_remote_code": False}
    options["ignore_mismatched_sizes"] = True  # what that draws is found by `unread_names`
    if empty:
        options["device_map"] = "meta"
    try:
        if member.config:
            home = member.loadable if member.loadable.is_dir() else member.loadable.parent
            config = transformers.AutoConfig.from_pretrained(home, trust_remote_code=False)
            options |= {"config": config, **_quantised_as(config)}
        elif labels and kind != "AutoModel":
            options["num_labels"] = labels[0]
        model: nn.Module = make.from_pretrained(name, **options)
    except Exception as error:  # a damaged configuration makes the library raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemberError(
            f"The base model {name} of {member.path} cannot be loaded: {reason}", hint=GIVE
        ) from error
    return model.eval()


def unread_names(model: nn.Module) -> frozenset[str]:
    """Names of a model's tensors that do not stand in the files it was loaded from.

    They were drawn at random when it was loaded, unless its maker gave them values. Loading it
    once more, without any data, tells their names; what Transformers ties or makes anew is none
    of them. Empty for a model that comes from no file, or whose files are not at hand.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or not model.name_or_path:
        return frozenset()
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    options: dict[str, Any] = {"local_files_only": True}
    if isinstance(commit := getattr(config, "_commit_hash", None), str):
        options["revision"] = commit
    make: Any = type(model)
    try:
        stored = type(config).from_pretrained(model.name_or_path, **options)
        if hasattr(stored, "quantization_config"):  # levels have other names and shapes
            return frozenset()
        _, info = make.from_pretrained(
            model.name_or_path,
            config=config,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except Exception:  # the folder may hold anything, or be gone since
        return frozenset()
    other_shape = {name for name, *_ in info["mismatched_keys"]}
    return frozenset({*info["missing_keys"], *other_shape})


def renamed(member: AdapterMember, model: nn.Module) -> AdapterMember:
    """An adapter under the names that the base model's modules have in this Transformers.

    Version 5 calls many modules otherwise than version 4 did, and reads the files of both;
    adapters of either are laid on the same modules by the same table of names.

    Raises:
        MemberError: If modules are not only renamed: the experts of a mixture became one
            parameter.
    """
    state = model.state_dict()
    modules = {f"{base_name(module)}.weight": module for module in member.modules}
    targets = [str(target) for target in member.adapter.get("target_parameters") or ()]
    own = {*modules, *member.whole, *member.copies, *member.rows}
    strange = {name for name in own - state.keys() if not _is_parameter(model, name, targets)}
    if not strange:
        return member
    layout = saved_layout(model, strange, state)
    if layout.conversions:
        name = next(iter(layout.conversions[0].sources))
        raise MemberError(
            f"{member.path} adapts {name.removesuffix('.weight')}, which is a part of "
            f"{layout.conversions[0].first} since version 5 of Transformers.",
            hint="Load it with PEFT on its base and save it again: PEFT converts it.",
        )
    names = {old: new for old, new in layout.names.items() if new in state}
    ends = {modules[old]: new for old, new in names.items() if old in modules}
    return replace(
        member,
        modules={
            ends[module].removesuffix(".weight") if module in ends else module: adapted
            for module, adapted in member.modules.items()
        },
        whole={names.get(name, name): key for name, key in member.whole.items()},
        copies={names.get(name, name): key for name, key in member.copies.items()},
        rows={names.get(name, name): value for name, value in member.rows.items()},
    )


def _is_parameter(model: nn.Module, name: str, targets: Sequence[str]) -> bool:
    """Whether the module of a weight is one whose other parameters PEFT was told to adapt."""
    try:
        owner = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return False
    return bool(targets) and next(owner.parameters(recurse=False), None) is not None


def fit_vocabulary(model: nn.Module, adapters: Sequence[AdapterMember]) -> None:
    """Resize the embeddings to those that adapters hold whole, as their training did.

    Rows that this adds take their values from the adapters afterwards.
    """
    if not adapters or not hasattr(model, "resize_token_embeddings"):
        return
    whole: Any = model
    tables = (whole.get_input_embeddings(), whole.get_output_embeddings())
    named: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in named:
        if not any(module is table for table in tables):
            continue
        member, weight = adapters[0], f"{name}.weight"
        key = member.whole.get(weight) or member.copies.get(weight)
        if key is None or not (shape := member.tensors[key].shape):
            continue
        if shape[0] != module.weight.shape[0]:
            whole.resize_token_embeddings(shape[0], mean_resizing=False)
        return


def _quantised_as(config: Any) -> dict[str, Any]:
    """How the base was quantised that an adapter was trained on, from its configuration.

    That of stored levels stands in the base's own configuration too.
    """
    packed = config.__dict__.pop("quantization_config", None)
    return {} if packed is None else {"quantization_config": packed, "dtype": config.dtype}


def _is_model_class(found: Any) -> bool:
    """Whether a name in a file means a class of models, and nothing else of the library."""
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    return isinstance(found, type) and issubclass(found, (PreTrainedModel, _BaseAutoModelClass))
