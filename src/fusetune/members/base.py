"""The base model that adapters are laid on: loaded when it is first needed, kept once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.adapter import PREFIX, AdapterMember
from fusetune.members.base_tensors import BaseTensors
from fusetune.members.header import DTYPES, TensorSpec
from fusetune.models.quantised import (
    describe,
    of_weight,
    quantised_layers,
    state_of_layer,
    steady,
    transposed,
)

BaseModel = nn.Module | Callable[[], nn.Module]
"""The model without adapters, or a function that loads it."""

AUTO_CLASSES: Mapping[str, str] = {  # PEFT's task type → the class that loads such a model
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


class Base:
    """The weights W under adapters.

    The model that was loaded is also the one that averages are written into, so that there
    is no second copy of what no adapter changes. `keep` copies what is going to be
    overwritten.

    Args:
        source: The model without adapters, or a function that loads it.
        expected: sha256 that `base_sha256` must give; any if empty.
        replaced: Tensors that the members bring themselves, which the digest leaves out.
    """

    def __init__(
        self,
        source: BaseModel,
        expected: Collection[str] = (),
        replaced: Collection[str] = (),
    ) -> None:
        self._source = source
        self._expected = frozenset(expected)
        self._replaced = frozenset(replaced)

    @cached_property
    def model(self) -> nn.Module:
        """The model; averages may change its parameters.

        Raises:
            MemberError: If its weights are not those that the adapters were trained on.
        """
        model = self._source if isinstance(self._source, nn.Module) else self._source()
        for digest in self._expected:
            if base_sha256(model, self._replaced) != digest:
                raise MemberError(
                    "The base model has not the weights that the adapters were trained on.",
                    hint="Give the model (and revision) that the training began with.",
                )
        return steady(model)

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        """The layers whose weights are quantised, by their paths."""
        return quantised_layers(self.model)

    @property
    def quantisation(self) -> str:
        """How they are, as "4bit nf4, double"; empty if there are none."""
        return describe(self.layers)

    @cached_property
    def tensors(self) -> BaseTensors:
        """Name → W, as loaded, on the CPU; of a quantised layer, as it multiplies."""
        if any(value.is_meta for value in self.model.state_dict().values()):
            raise MemberError(
                "model.device_map: layers of the base model are not on a device, and adapters "
                "cannot be averaged into them.",
                "Take more or larger devices, or a smaller precision.",
            )
        return BaseTensors(self.model, self.layers)

    @cached_property
    def tied(self) -> dict[str, tuple[str, ...]]:
        """Every name that shares its tensor with others → all those names."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, value in self.model.state_dict().items():
            if value.numel() and not of_weight(name, self.layers):
                groups.setdefault((value.data_ptr(), value.shape), []).append(name)
        shared = [tuple(names) for names in groups.values() if len(names) > 1]
        return {name: names for names in shared for name in names}

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name → dtype and shape.

        Raises:
            MemberError: If a weight is quantised otherwise than by bitsandbytes, or in a
                dtype that no file could hold.
        """
        specs = {name: self.tensors.spec(name) for name in self.tensors}
        strange = [n for n, spec in specs.items() if spec.dtype not in DTYPES.values()]
        packed = [n for n, spec in specs.items() if _packed(n, spec)]
        if strange or packed:
            name = (strange or packed)[0]
            raise MemberError(
                f"The base model is quantised ({name} is {specs[name].dtype}) in a way that is "
                "not known here: what its layers compute with cannot be told.",
                hint="Give the base model in float32, bfloat16 or float16, or quantised by "
                "bitsandbytes.",
            )
        return specs

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the model, without how its weights were packed."""
        config = getattr(self.model, "config", None)
        if config is None:
            return {}
        found = dict(json.loads(config.to_json_string()))
        found.pop("quantization_config", None)
        return {"architectures": [type(self.model).__name__]} | found

    def transposed(self, module: str) -> bool:
        """Whether a module keeps its weight as `in x out`: GPT-2's Conv1D, embeddings."""
        from transformers.pytorch_utils import Conv1D  # takes seconds: for adapters alone

        if module in self.layers:
            return transposed(self.layers[module])
        return isinstance(self.model.get_submodule(module), Conv1D | nn.Embedding)

    def keep(self, names: Iterable[str]) -> None:
        """Copy tensors that the model still shares, before it is written into."""
        state = self.model.state_dict()
        plain = self.tensors.plain
        for name in names:
            if name in plain and plain[name].data_ptr() == state[name].data_ptr():
                plain[name] = plain[name].clone()

    def kept(self, name: str, device: torch.device) -> Tensor | Callable[[], Tensor]:
        """W on a device, or what makes it there from the levels of a quantised layer."""
        if name in self.tensors.plain:
            return self.tensors[name].to(device)
        return partial(self.tensors.on_device, name)


def base_of(adapters: Sequence[AdapterMember], source: BaseModel | None) -> Base:
    """The base of compatible adapters; without a source, the one that the first one names."""
    first = adapters[0]
    digests = {m.base_digest for m in adapters if m.base_digest is not None}
    make = (lambda: load_base(first)) if source is None else source
    return Base(make, digests, first.whole.keys())


def base_sha256(model: nn.Module, replaced: Collection[str] = ()) -> str:
    """Hexadecimal sha256 of the weights that adapters leave alone.

    Gives the same for a model as PEFT trains it and for the plain one: modules to save,
    trained biases and LoRA's own tensors do not count. Of quantised layers the levels and
    their scales count: other weights, or the same ones quantised otherwise, have another.

    Args:
        model: A `PeftModel`, or the base model by itself.
        replaced: Of the base model, the tensors that adapters bring themselves.
    """
    wrapped = is_peft(model)
    digest = hashlib.sha256()
    steady(model)
    scales = [
        (f"{_base_name(layer)}.weight.{name}", value)
        for layer, module in quantised_layers(model).items()
        for name, value in state_of_layer(module)
    ]
    found = [*_base_parameters(model, wrapped), *scales]
    for name, tensor in sorted(found, key=itemgetter(0)):
        if name in replaced or (wrapped and tensor.requires_grad):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _base_name(name: str) -> str:
    """Of a tensor or a layer under PEFT's wrappers: its name without them."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".").removesuffix(".base_layer")


def _base_parameters(model: nn.Module, wrapped: bool) -> list[tuple[str, Tensor]]:
    if not wrapped:
        return list(model.named_parameters())
    own = ("lora_", ".modules_to_save.", ".original_module.")
    return [
        (_base_name(name), parameter)
        for name, parameter in model.named_parameters()
        if not any(part in name for part in own)
    ]


def is_peft(model: nn.Module) -> bool:
    """Whether a model is PEFT's wrapper of another."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def load_base(member: AdapterMember) -> nn.Module:
    """The base model that an adapter's configuration names.

    Its class follows from PEFT's task type, or is the one that PEFT wrote down; the number
    of labels from config.json beside the adapter, or from the head that it saved.

    Raises:
        MemberError: If no base model is named, or it cannot be loaded.
    """
    import transformers  # takes seconds, and only adapters need it

    name, config = member.base_name, member.adapter
    if name is None:
        raise MemberError(
            f"{member.path} does not say which base model it belongs to.",
            hint="Give the base model: MemberPool.open(paths, base=model).",
        )
    mapping = config.get("auto_mapping")
    written = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    kind = AUTO_CLASSES.get(str(config.get("task_type")), written)
    make: Any = getattr(transformers, str(kind), None)
    if not _is_model_class(make):
        raise MemberError(
            f"{member.path} does not say of which class its base model is.",
            hint="Give the base model: MemberPool.open(paths, base=model).",
        )
    heads = [member.tensors[member.whole[n]].shape for n in HEADS if n in member.whole]
    labels = [shape[0] for shape in heads if shape]
    options: dict[str, Any] = {"revision": r} if (r := config.get("revision")) else {}
    # Nothing pickled, no code from the folder, and no question about it on the terminal.
    options |= {"use_safetensors": True, "trust_remote_code": False}
    try:
        if member.config:
            config = transformers.AutoConfig.from_pretrained(
                member.path, trust_remote_code=False
            )
            options |= {"config": config, **_quantised_as(config)}
        elif labels and kind != "AutoModel":
            options["num_labels"] = labels[0]
        model: nn.Module = make.from_pretrained(name, **options)
    except Exception as error:  # a damaged configuration makes the library raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemberError(
            f"The base model {name} of {member.path} cannot be loaded: {reason}",
            hint="Give the base model: MemberPool.open(paths, base=model).",
        ) from error
    return model.eval()


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


def _packed(name: str, spec: TensorSpec) -> bool:
    return spec.dtype in (torch.uint8, torch.int8) and name.endswith(".weight")
