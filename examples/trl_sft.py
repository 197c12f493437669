"""Members from TRL's SFTTrainer, whole models or, with --lora, adapters.

Run it with `python examples/trl_sft.py --lora --out runs/sft`.
Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import fusetune

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def texts(count: int, seed: int) -> Dataset:
    """Made up: counting on from some word, over and over."""
    draw = random.Random(seed)
    starts = [draw.randrange(len(WORDS)) for _ in range(count)]
    counted = [[WORDS[(start + i) % len(WORDS)] for i in range(8)] for start in starts]
    return Dataset.from_dict({"text": [" ".join(words) for words in counted]})


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[EOS]", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def make_model(folder: Path) -> LlamaForCausalLM:
    """A small model on the disk, in the place of a pretrained one."""
    config = LlamaConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def main() -> None:
    """Train, fuse, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sft"))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--lora", action="store_true")
    out, steps, lora = vars(parser.parse_args()).values()
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    arguments = SFTConfig(
        str(out / "trainer"),
        max_steps=steps,
        learning_rate=1e-2,
        per_device_train_batch_size=16,
        max_length=12,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SFTTrainer(
        make_model(out / "pretrained"),
        arguments,
        train_dataset=texts(200, 0),
        eval_dataset=texts(40, 1),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )

    trainer.add_callback(fusetune.MemberCollector(out / "members", members=4))  # 1
    trainer.train()
    result = fusetune.fuse(  # 2
        out / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss", "mean_token_accuracy:maximize"],
        model_init=lambda: trainer.model,
    )
    result.save(out / "fused", tokenizer=tokenizer)  # 3
    result.report(out / "report.html", title="Counting")  # 4
    print(f"{result.chosen}: {dict(result.values)}")


if __name__ == "__main__":
    main()
