"""A model's name → its folder or hub id, its tokenizer and its weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fusetune.errors import FusetuneError, ModelError
from fusetune.models import gguf, quantised_load, scratch
from fusetune.models.gguf import GGUF
from fusetune.models.own_files import require_own_files
from fusetune.models.packaged import PACKAGED, locate

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from, resolved and checked.

    Attributes:
        path: A folder, or a hub id.
        label: How reports call the model.
        options: Keyword arguments for every `from_pretrained` of it.
        allow_pickle: Consent to `.bin` weights.
        device_map: On which devices layers lie, as `from_pretrained` takes it, in models
            that are built to be evaluated or trained; None for one device.
        quantization: "4bit" or "8bit", for adapters, if the weights are to be quantised.
    """

    path: str
    label: str
    options: dict[str, Any]
    allow_pickle: bool = False
    device_map: str | Mapping[str, str | int] | None = None
    quantization: str = quantised_load.NONE

    def tokenizer(
        self, texts: Callable[[], Iterable[str]] | None = None
    ) -> PreTrainedTokenizerBase:
        """The fast tokenizer.

        Args:
            texts: Of the training split, for a model without weights, whose tokenizer is
                learned from them.

        Raises:
            ModelError: If there is none.
        """
        if texts is not None and scratch.without_weights(self.path):
            return scratch.train_tokenizer(texts(), int(self.config().vocab_size))
        loaded = self._guard(
            "tokenizer", lambda: AutoTokenizer.from_pretrained(self.path, **self.options)
        )
        assert isinstance(loaded, PreTrainedTokenizerBase)
        return loaded

    def check(self, adapters: bool = False) -> None:
        """Read the configuration, so that a wrong name is known before any long work.

        Args:
            adapters: Whether the weights stay as they are, and adapters are trained on them.

        Raises:
            ModelError: If it cannot be read, or its weights are quantised in a way that does
                not go together with the rest.
        """
        packed = self._stored()
        stored = quantised_load.stored_kind(packed)
        if packed and (stored == quantised_load.NONE or not adapters):
            raise ModelError(
                f"The weights of {self.label} are quantised ({packed['quant_method']}): a "
                "trained or fused weight would be rounded to their few levels. Only adapters "
                "on weights of bitsandbytes can be trained and fused.",
                "Give the same model in float32, bfloat16 or float16, with model.quantization "
                "and model.lora if memory is short; a GGUF file is read with model.gguf_file "
                "and computed in float32.",
            )
        if packed and self.quantization not in (quantised_load.NONE, stored):
            raise ModelError(
                f"The weights of {self.label} are stored in {stored}, and model.quantization "
                f"is {self.quantization}.",
                "Leave model.quantization out, or give the model that is not quantised.",
            )
        if packed or self.quantization != quantised_load.NONE:
            quantised_load.require_bitsandbytes()

    @property
    def quantised(self) -> str:
        """How the weights are, or will be, quantised: "4bit", "8bit" or "none"."""
        packed = self._stored()
        return quantised_load.stored_kind(packed) if packed else self.quantization

    def _stored(self) -> Mapping[str, Any]:
        return {} if GGUF in self.options else quantised_load.stored(self.config())

    def config(self) -> Any:
        """The model's configuration.

        Raises:
            ModelError: If it cannot be read.
        """
        return self._guard(
            "configuration", lambda: gguf.configuration(self.path, **self.options)
        )

    def build(
        self,
        make: Callable[..., Any],
        *,
        device: torch.device | None = None,
        precision: torch.dtype = torch.float32,
        spread: bool = False,
        dtype: torch.dtype | None = None,
    ) -> PreTrainedModel:
        """The model with a task's head.

        Args:
            make: `Task.build`; called with the path and the options of loading.
            device: Where a quantised model computes; needed for that alone.
            precision: In which such a one multiplies.
            spread: Whether `device_map` counts; without it the model is on the CPU.
            dtype: Of the weights; by default that of the configuration.

        Raises:
            ModelError: If there are no weights, they are cut off, or they are pickled
                without consent.
        """
        safe = None if self.allow_pickle else True
        packed = GGUF in self.options
        fixed: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        fixed |= {"dtype": torch.float32} if packed else {}
        if spread and self.device_map is not None:
            wanted = self.device_map
            fixed["device_map"] = wanted if isinstance(wanted, str) else dict(wanted)

        def read(**more: Any) -> Any:
            settings = {**self.options, **fixed, **more, "output_loading_info": True}
            built = make(self.path, use_safetensors=safe, **settings)
            if not isinstance(built, tuple):  # a model without weights, drawn as a whole
                return built
            self._require_weights(*built)
            return built[0]

        def read_quantised() -> Any:
            at, stored = device or torch.device("cpu"), bool(self._stored())
            return quantised_load.load(
                read, self.quantised, device=at, precision=precision, packed=stored
            )

        bits = device is not None and self.quantised != quantised_load.NONE
        with gguf.converting() if packed else contextlib.nullcontext():
            loaded = self._guard("weights", read_quantised if bits else read)
        assert isinstance(loaded, PreTrainedModel)
        return gguf.unpacked(loaded) if packed else loaded

    def _require_weights(self, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
        """Check that something of the model, but its head, came from the files.

        Transformers draws what a checkpoint lacks, and says so in a warning: with the weights
        of another architecture, that is the whole model.

        Raises:
            ModelError: If all of it was drawn.
        """
        below = f"{model.base_model_prefix}."
        names = {name for name, _ in model.named_parameters()}
        body = {name for name in names if name.startswith(below)} or names
        if body and body <= set(info["missing_keys"]):
            raise ModelError(
                f"None of the weights in {self.label} fit a {type(model).__name__}: all of it "
                "would be drawn at random.",
                "Give the model whose configuration and weights belong together.",
            )

    def _guard(self, what: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except FusetuneError:
            raise
        except SafetensorError as error:
            raise ModelError(
                f"The weights of {self.label} are damaged or cut off: {error}.",
                "Download or copy the model again.",
            ) from error
        except Exception as error:  # a damaged file makes the library raise anything
            raise ModelError(
                f"The {what} of {self.label} cannot be loaded: {_first_line(error)}",
                _hint(self.path),
            ) from error


def resolve(
    name: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    quantization: str = quantised_load.NONE,
) -> ModelSource:
    """Find a model by its name; nothing large is read yet.

    Args:
        name: A folder, a hub id, or the short name of a packaged model or of a
            configuration (`scratch.names`), whose weights are drawn anew.
        revision: Branch, tag or commit of a hub id.
        allow_pickle: Consent to pickled weights, which are read with `weights_only`.
        trust_remote_code: Consent to code that comes with the model.
        gguf_file: Name of a GGUF file in the folder or at the hub; its weights, tokenizer
            and configuration are taken, and its levels become float32 numbers.
        device_map: See `ModelSource`.
        quantization: "4bit" or "8bit" to quantise the weights when they are loaded.

    Raises:
        ModelError: If the folder does not exist or has no model in it, a packaged model is
            missing or changed, a GGUF file cannot be read for want of a package, or there are
            no weights that could be quantised.
    """
    if quantization != quantised_load.NONE:
        _check_can_be_quantised(name, gguf_file)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    more = (allow_pickle, device_map, quantization)
    if name in PACKAGED:
        gguf_file = PACKAGED[name].gguf_file
    if gguf_file is not None:
        gguf.require()
        options[GGUF] = gguf_file
    if name in PACKAGED:
        return ModelSource(str(locate(name)), name, options, *more)
    if name in scratch.names():
        return ModelSource(str(scratch.CONFIGURATIONS / name), name, options, *more)
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(path, allow_pickle, gguf_file)
        return ModelSource(str(path), path.name, options, *more)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep * 2 in name
    if looks_local or path.exists():
        raise ModelError(
            f"There is no model folder {name}.",
            f"Give a folder, a hub id, or one of: {', '.join((*PACKAGED, *scratch.names()))}.",
        )
    if revision is not None:
        options["revision"] = revision
    return ModelSource(name, name, options, *more)


def _check_can_be_quantised(name: str, gguf_file: str | None) -> None:
    if gguf_file is not None or name in PACKAGED:
        raise ModelError(
            f"The weights of {name} come from a GGUF file, which holds levels already: "
            "quantised once more, they would be rounded twice.",
            "Leave model.quantization out, or give the model's safetensors files.",
        )
    if name in scratch.names() or scratch.without_weights(Path(name).expanduser()):
        raise ModelError(
            f"{name} has no weights: they would be drawn at random, quantised, and never "
            "trained.",
            "Leave model.quantization out, or give a pretrained model.",
        )


def _check_folder(path: Path, allow_pickle: bool, gguf_file: str | None = None) -> None:
    require_own_files(path)
    if gguf_file is not None:
        if ".." in Path(gguf_file).parts or Path(gguf_file).is_absolute():
            raise ModelError(
                f"model.gguf_file is a file in the model's folder; got {gguf_file}."
            )
        if not (path / gguf_file).is_file():
            there = ", ".join(sorted(f.name for f in path.glob("*.gguf"))) or "none"
            raise ModelError(f"{path} has no file {gguf_file}.", f"GGUF files there: {there}.")
        return
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} is not a model folder: it has no config.json.",
            "Give the folder that save_pretrained wrote.",
        )
    if any(path.glob("*.safetensors")):
        return
    if any((path / name).exists() for name in PICKLED):
        if not allow_pickle:
            raise ModelError(
                f"{path} has only pickled weights, which can run code when loaded.",
                "Convert them to safetensors, or consent with model.allow_pickle=true "
                "(--allow-pickle of finished runs).",
            )
        return
    raise ModelError(
        f"{path} has a configuration but no weights (*.safetensors).",
        "Copy the weights there, or give another folder.",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _hint(path: str) -> str:
    if Path(path).is_dir():
        return "Check the files of that folder."
    return "Check the name; without a network, give a folder or a packaged model."
