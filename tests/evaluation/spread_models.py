"""Run by two processes: models that FSDP spreads over them, against whole ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fusetune.evaluation.evaluator import evaluate
from fusetune.evaluation.lockstep import Lockstep
from fusetune.evaluation.scorer import Scorer
from fusetune.executors.group import Group
from fusetune.members.average import ResidentAverage, StreamingAverage
from fusetune.members.fully_sharded import OwnRows, is_sharded
from fusetune.members.points import OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.models.scratch import train_tokenizer
from fusetune.models.sharded import shard
from fusetune.tasks.generation import Generation
from fusetune.training.sharded import gather

WORDS = "the cat sat on a mat and dog ran home to eat what who where did go".split()  # noqa: SIM905
CPU = torch.device("cpu")


def model_of(kind: str, size: int) -> Any:
    ids = {"vocab_size": size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    if kind == "t5":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(**ids, **shape, decoder_start_token_id=0))
    if kind == "bart":
        shape = {f"{s}_{n}": v for s in ("encoder", "decoder") for n, v in
                 {"layers": 2, "ffn_dim": 24, "attention_heads": 2}.items()}  # fmt: skip
        return BartForConditionalGeneration(
            BartConfig(**ids, **shape, d_model=16, max_position_embeddings=64,
                       decoder_start_token_id=1, forced_eos_token_id=None)
        )  # fmt: skip
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**ids, n_embd=16, n_layer=2, n_head=2))
    stack = {"hidden_size": 15, "intermediate_size": 25, "num_hidden_layers": 2,
             "num_attention_heads": 3, "head_dim": 6, "tie_word_embeddings": True}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**ids, **stack))


def data(folder: Path) -> str:
    rows = [
        {"question": " ".join(WORDS[i % 5 : i % 5 + 3 + i % 7]), "answer": WORDS[i % 9]}
        for i in range(11)
    ]
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return str(folder)


def check(kind: str, folder: Path, group: Group) -> None:
    tokenizer = train_tokenizer([" ".join(WORDS[i:]) for i in range(9)], 200)
    members = folder / kind
    if group.rank == 0:
        for i in range(3):
            torch.manual_seed(i)
            model = model_of(kind, len(tokenizer))
            for parameter in model.parameters():
                parameter.data.mul_(4.0)
            model.save_pretrained(members / f"step-{i}")
        data(folder)
    group.same(None)
    pool = MemberPool.open(members)
    task = Generation(
        "made", str(folder), prompt="{{ question }}", reference="answer",
        metrics=["exact_match", "f1"], generation={"max_new_tokens": 6},
    )  # fmt: skip
    plain = model_of(kind, len(tokenizer)).eval()
    task.configure(plain.config)
    encoded = task.encode("validation", tokenizer, None)
    scorers = (
        Scorer(task, encoded, task.collate(tokenizer), CPU, token_budget=budget)
        for budget in range(40, 200)
    )  # one process is to have a batch more than the other
    scorer = next(s for s in scorers if len(s.batches) % 2 and len(s.batches) > 2)
    spread = shard(lambda: model_of(kind, len(tokenizer)).eval(), CPU, (), group.in_turn)
    assert is_sharded(spread)
    assert not is_sharded(plain)
    rows = OwnRows(pool, spread)
    whole = sum(spec.numel for spec in pool.tensors.values())
    own = sum(spec.numel for spec in rows.tensors.values())
    assert own < 0.6 * whole, "each process is to hold about a half"
    reference = StreamingAverage(pool, plain)
    points = [FusionWeights((0.5, 0.2, 0.3)), FusionWeights((0.0, 1.0, 0.0))]
    points.append(OwnModel.of(reference.tensors(FusionWeights((0.1, 0.1, 0.8)))))
    for make in (ResidentAverage, StreamingAverage):
        average = make(rows, spread)
        for point in points:
            expected = evaluate(reference, plain, scorer, point)
            found = evaluate(average, spread, Lockstep(scorer, group), rows.point(point))
            assert found.values == pytest.approx(expected.values, rel=1e-5)
            assert found.outputs is not None
            assert expected.outputs is not None
            assert found.outputs.texts == expected.outputs.texts
            np.testing.assert_allclose(found.outputs.loss, expected.outputs.loss, rtol=1e-5)
            tensors = gather(spread)
            if group.rank == 0:
                for name, value in plain.state_dict().items():
                    assert torch.equal(tensors[name], value), name
    assert len({evaluate(reference, plain, scorer, p).values["loss"] for p in points}) == 3


if __name__ == "__main__":
    torch.set_num_threads(1)
    joined = Group.join("cpu")
    for name in sys.argv[2:]:
        check(name, Path(sys.argv[1]), joined)
        if joined.rank == 0:
            sys.stdout.write(f"{name} the same\n")
    joined.leave()
