"""What differs between two configurations in the function that the models compute.

Files of two versions of Transformers say the same in other words: version 4 left out defaults
that version 5 writes, and has in `rope_theta` and `rope_scaling` what is `rope_parameters`
now. So it is the loaded configurations that are compared, with every default filled in and the
sections of vision, text or audio inside. All settings count, except those that are known to
leave the function as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

NO_EFFECT = frozenset(
    {
        # names, places and formats
        "_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "auto_map",
        "tokenizer_class", "processor_class", "dtype", "torch_dtype", "quantization_config",
        "use_bfloat16", "finetuning_task", "task_specific_params", "label2id", "num_labels",
        # the way of computing, and what is given back beside the result
        "use_cache", "return_dict", "use_return_dict", "output_attentions", "torchscript",
        "output_hidden_states", "output_router_logits", "chunk_size_feed_forward",
        "pretraining_tp", "attn_implementation", "_attn_implementation", "is_training",
        "_attn_implementation_internal", "_experts_implementation_internal",
        "gradient_checkpointing", "use_mamba_kernels", "use_mambapy", "is_decoder_only",
        "keys_to_ignore_at_inference", "ignore_index", "ignore_value", "return_loss",
        # training alone
        "apply_spec_augment", "ctc_zero_infinity", "rescale_prenorm_residual",
        "num_negatives", "proj_codevector_dim", "label_smoothing",
    }
)  # fmt: skip
"""Settings that leave the function of the model in evaluation as it is."""

TRAINING = re.compile(
    r"loss|_cost$|initializer|(^|_)init_(std|xavier_std|values?|scheme|floor|variance_scale)"
    r"|^init_(device|method)$|^mask_(time|feature)_(prob|length|min_masks)$"
)
"""Names of settings of losses, first values and masking, which count in training alone."""

CHANCE = re.compile(r"dropout|layerdrop|pdrop|(^|_)drop(_|$)|jitter")
"""Names of probabilities that count in training alone; as a switch, such a name is a choice."""

ANY = frozenset({"architectures", "problem_type"})
"""Settings of which an absent one means whatever the other model has."""

DEFAULT_LABEL = re.compile(r"LABEL_\d+")
SPECIAL = re.compile(
    r"^(bos|eos|pad|sep|cls|mask|decoder_start|forced_bos|forced_eos)_token_id$"
)


COMMON = {
    "tie_word_embeddings": True,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
"""Defaults that every configuration of version 4 has, and its files leave out."""

SHOWN = 80  # characters of a value


def config_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, loose: bool = False
) -> list[str]:
    """List the settings in which two models would compute different functions.

    Args:
        ours: config.json of one model.
        theirs: config.json of the other; where one of them is empty, nothing can be said.
        loose: Leave out the name of the class and special tokens, which a training may have
            adapted to its tokenizer.

    Returns:
        Lines such as "config.json rope_parameters.rope_theta: 100.0 != 10000.0", theirs first.
    """
    if not ours or not theirs or _stripped(ours) == _stripped(theirs):
        return []
    texts = [json.dumps(config) for config in (ours, theirs)]
    found = [_loaded(text) for text in texts]
    # A class that is not known here, or a damaged file: what is written there is compared.
    first, second = (
        {**(COMMON | json.loads(text) if None in found else settings or {}), **_named(config)}
        for settings, text, config in zip(found, texts, (ours, theirs), strict=True)
    )
    a, b = dict(_flat(first)), dict(_flat(second))
    return [
        f"config.json {key}: {_shown(b.get(key))} != {_shown(a.get(key))}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not _is_open(key, a.get(key), b.get(key), loose)
    ]


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) for key in ("model_type", "architectures")}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _is_open(key: str, a: Any, b: Any, loose: bool) -> bool:
    """Whether one of two values leaves open what the other says."""
    name = key.rpartition(".")[2]
    if name in ANY or SPECIAL.match(name):
        return loose or a is None or b is None
    if key.partition(".")[0] == "id2label":
        return any(v is None or DEFAULT_LABEL.fullmatch(str(v)) is not None for v in (a, b))
    return False


def _stripped(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file's settings without those that have no effect: a first look, without loading."""
    return {key: value for key, value in config.items() if not _has_no_effect(key, value)}


def _has_no_effect(key: str, value: Any) -> bool:
    if key in NO_EFFECT or TRAINING.search(key):
        return True
    return not isinstance(value, bool | Mapping) and CHANCE.search(key) is not None


@lru_cache(maxsize=64)
def _loaded(text: str) -> dict[str, Any] | None:
    """The settings of a configuration with its class's defaults; None if they are not known."""
    from transformers import CONFIG_MAPPING  # takes seconds

    raw = json.loads(text, object_hook=_special_float)
    try:
        return _settings(CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw)))
    except Exception:  # a damaged configuration makes the library raise anything
        return None


def _special_float(value: dict[str, Any]) -> Any:
    """Read infinity and NaN, which JSON lacks, as Transformers writes them."""
    tag = value.get("__float__")
    return float(tag) if len(value) == 1 and isinstance(tag, str) else value


def _settings(config: Any) -> dict[str, Any]:
    """The settings that the class of a configuration knows, sections as mappings.

    What else stands in a file, the model's code never asks for.
    """
    from transformers import PreTrainedConfig

    known = getattr(type(config), "__dataclass_fields__", None)
    settings: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        if known is None or key in known:
            section = getattr(config, key, None)
            inner = isinstance(section, PreTrainedConfig)
            settings[key] = _settings(section) if inner else value
    return settings


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path of each setting that counts, as "text_config.hidden_act", and its value."""
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, inner in value.items():
        doubled = key == "type" and "rope_type" in value  # version 4's word for the same
        if not doubled and not _has_no_effect(str(key), inner):
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
