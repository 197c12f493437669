"""Trainers of other libraries: what is evaluated and saved is what was trained."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fusetune

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads an example's module, for its data and its small model."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str, package: str) -> ModuleType:
        pytest.importorskip(package, reason=f"the test is of {package}")
        return importlib.import_module(name)

    yield load
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("lora", [False, True])
def test_trl(example: Any, lora: bool, tmp_path: Path) -> None:
    trl_sft = example("trl_sft", "trl")
    settings = trl_sft.SFTConfig(
        str(tmp_path / "out"), max_steps=8, learning_rate=3e-2, max_length=12, bf16=False,
        gradient_checkpointing=False, **QUIET,
    )  # fmt: skip
    trainer = trl_sft.SFTTrainer(
        trl_sft.make_model(tmp_path / "pretrained"),
        settings,
        train_dataset=trl_sft.texts(40, 0),
        eval_dataset=trl_sft.texts(10, 1),
        processing_class=trl_sft.make_tokenizer(),
        peft_config=trl_sft.LoraConfig(r=4, target_modules="all-linear") if lora else None,
        callbacks=[fusetune.MemberCollector(tmp_path / "members", members=2)],
    )
    trainer.train()
    last = trainer.evaluate()["eval_loss"]
    pool = fusetune.MemberPool.open(tmp_path / "members")
    assert (pool.adapters is not None) == lora
    found = fusetune.fuse(
        tmp_path / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss"],
        model_init=lambda: trainer.model,
        base_member=True if lora else tmp_path / "pretrained",
        budget=8,
    )
    ends = {c.weights.values: c.values["loss"] for c in found.candidates}
    assert ends[0.0, 1.0, 0.0] == pytest.approx(last, rel=1e-5)
    # The base as a member is the model that the training began with.
    base = next(c for c in found.candidates if c.weights.values == (0.0, 0.0, 1.0))
    pretrained = trl_sft.LlamaForCausalLM.from_pretrained(tmp_path / "pretrained")
    for name, tensor in found.model(base).state_dict().items():
        assert torch.equal(tensor, pretrained.state_dict()[name]), name
    # What is saved is what was measured.
    saved = trl_sft.LlamaForCausalLM.from_pretrained(found.save(tmp_path / "fused"))
    for name, tensor in found.model().state_dict().items():
        torch.testing.assert_close(tensor, saved.state_dict()[name])


def test_sentence_transformers(example: Any, tmp_path: Path) -> None:
    module = example("sentence_embeddings", "sentence_transformers")
    model, rows = module.make_model(tmp_path / "pretrained"), module.pairs(20, 1)
    arguments = module.SentenceTransformerTrainingArguments(
        str(tmp_path / "out"), max_steps=8, learning_rate=1e-2, **QUIET
    )
    trainer = module.SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=module.pairs(40, 0),
        eval_dataset=rows,
        loss=module.CosineSimilarityLoss(model),
        callbacks=[fusetune.MemberCollector(tmp_path / "members", members=2)],
    )
    trainer.train()
    last = trainer.evaluate()["eval_loss"]
    result = fusetune.fuse(
        tmp_path / "members",
        evaluate=fusetune.evaluate_with(trainer),
        objectives=["loss"],
        model_init=lambda: trainer.model,
        budget=6,
    )
    ends = {c.weights.values: c.values["loss"] for c in result.candidates}
    assert ends[0.0, 1.0] == pytest.approx(last, rel=1e-5)
    folder = result.save(tmp_path / "fused")
    texts = list(rows["a"])[:5]
    expected = result.model().encode(texts)
    loaded = module.SentenceTransformer(str(folder), device="cpu")
    assert len(loaded) == 2  # encoder and pooling
    torch.testing.assert_close(loaded.encode(texts), expected)
    assert result.save(folder) == folder  # again in its place
    # An evaluator alone is enough.
    trainer.eval_dataset = None
    with pytest.raises(fusetune.FusetuneError, match="no eval_dataset"):
        fusetune.evaluate_with(trainer)
    trainer.evaluator = module.EmbeddingSimilarityEvaluator(rows["a"], rows["b"], rows["score"])
    assert "spearman_cosine" in fusetune.evaluate_with(trainer)(trainer.model)
    with pytest.raises(fusetune.FusetuneError, match="is no exported model"):
        result.save(tmp_path / "pretrained")
