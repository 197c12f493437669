"""Models without weights: a configuration alone, trained from its random start."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

CONFIGURATIONS = Path(__file__).parent / "configurations"
"""Folders with a config.json each, by the names that recipes use."""

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2, as in T5


def names() -> tuple[str, ...]:
    """The names of the configurations that come with fusetune, sorted."""
    return tuple(sorted(path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()))


def without_weights(path: str | Path) -> bool:
    """Whether a folder has a configuration and no weights."""
    folder = Path(path)
    return (folder / "config.json").is_file() and not any(
        any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.gguf")
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of bytes, learned from the texts; knows every text.

    The same texts give the same tokenizer. It ends texts with an end-of-text token.

    Args:
        texts: Of the training split.
        vocabulary: Most tokens that it may have, the 256 bytes and 3 special ones included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}",
        pair=f"$A {END} $B {END}",
        special_tokens=[(END, tokenizer.token_to_id(END))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def load_or_make(auto_class: Any, path: str, **options: Any) -> PreTrainedModel:
    """The pretrained model, or a new one where the folder has no weights.

    A new one is drawn from torch's global generator: seed it before.

    Args:
        auto_class: Such as `AutoModelForSeq2SeqLM`.
        path: Folder or hub id.
        options: For `from_pretrained`.
    """
    if without_weights(path):
        trust = bool(options.get("trust_remote_code", False))
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        made: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust)
        return made
    loaded: PreTrainedModel = auto_class.from_pretrained(path, **options)
    return loaded
