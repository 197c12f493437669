from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fusetune.errors import StageError
from fusetune.members import disk
from fusetune.members import export as module
from fusetune.members.average import ResidentAverage
from fusetune.members.export import export, model_card
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

WEIGHTS = FusionWeights((0.5, 0.0, 0.5))


@pytest.fixture
def pool(bert_members: Path) -> MemberPool:
    return MemberPool.open(bert_members)


@pytest.fixture
def average(pool: MemberPool, bert: PreTrainedModel) -> ResidentAverage:
    return ResidentAverage(pool, bert)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[PAD]": 1, "hello": 2}
    model = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", pad_token="[PAD]")


class TestFolder:
    def test_loads_as_what_was_evaluated(
        self,
        average: ResidentAverage,
        pool: MemberPool,
        bert: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
    ) -> None:
        average.into_model(WEIGHTS)
        folder = export(average, WEIGHTS, pool, tmp_path / "fused", tokenizer=tokenizer)
        loaded, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(info.values())
        for name, value in bert.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
        assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"] == [2]
        tokens = torch.tensor([[1, 2, 3]])
        with torch.inference_mode():
            # The weights are equal; a product can round otherwise where they lie elsewhere.
            torch.testing.assert_close(
                loaded.eval()(input_ids=tokens).logits, bert.eval()(input_ids=tokens).logits
            )

    def test_is_the_same_whatever_the_model_holds(
        self, average: ResidentAverage, pool: MemberPool, tmp_path: Path
    ) -> None:
        average.into_model(FusionWeights.one_hot(1, 3))
        a = export(average, WEIGHTS, pool, tmp_path / "a")
        average.into_model(WEIGHTS)
        b = export(average, WEIGHTS, pool, tmp_path / "b")
        name = "model.safetensors"
        assert (a / name).read_bytes() == (b / name).read_bytes()

    def test_shards(self, average: ResidentAverage, pool: MemberPool, tmp_path: Path) -> None:
        whole = export(average, WEIGHTS, pool, tmp_path / "whole")
        shards = export(average, WEIGHTS, pool, tmp_path / "shards", max_shard_size="2KB")
        assert len(list(shards.glob("model-*-of-*.safetensors"))) > 1
        assert not (shards / "model.safetensors").exists()
        states = [
            AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
            for folder in (whole, shards)
        ]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_the_dtype_of_the_files_is_the_configuration_s(
        self, save_members: Callable[..., Path], bert: PreTrainedModel, tmp_path: Path
    ) -> None:
        members = save_members()
        for folder in members.iterdir():
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
        pool = MemberPool.open(members)
        average = ResidentAverage(pool, bert)
        average.into_model(WEIGHTS)
        folder = export(average, WEIGHTS, pool, tmp_path / "fused")
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        for name, value in bert.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)

    def test_the_tokenizer_and_generation_files_of_a_member_are_copied(
        self,
        copied_members: Path,
        bert: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
    ) -> None:
        tokenizer.save_pretrained(copied_members / "step-30")
        (copied_members / "step-30" / "generation_config.json").write_text("{}")
        torch.save({}, copied_members / "step-30" / "optimizer.pt")
        pool = MemberPool.open(copied_members)
        folder = export(ResidentAverage(pool, bert), WEIGHTS, pool, tmp_path / "fused")
        assert sorted(p.name for p in folder.iterdir()) == [
            "README.md",
            "config.json",
            "fusion.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]

    def test_fusion_json_says_what_was_fused(
        self, average: ResidentAverage, pool: MemberPool, tmp_path: Path
    ) -> None:
        extra = {"method": "mobo", "validation": {"loss": 0.5, "f1": math.nan}}
        folder = export(average, WEIGHTS, pool, tmp_path / "fused", extra=extra)
        record = json.loads((folder / "fusion.json").read_text())
        assert record["method"] == "mobo"
        assert record["validation"] == {"loss": 0.5, "f1": None}
        assert record["fingerprint"] == pool.fingerprint
        assert record["members"][1] == {
            "name": "step-20",
            "step": 20,
            "weight": 0.0,
            "sha256": pool.members[1].sha256,
        }
        with pytest.raises(ValueError, match="cannot replace members"):
            export(average, WEIGHTS, pool, tmp_path / "fused", extra={"members": []})


class TestReplacing:
    def test_an_earlier_export_is_replaced_as_a_whole(
        self, average: ResidentAverage, pool: MemberPool, tmp_path: Path
    ) -> None:
        folder = export(average, WEIGHTS, pool, tmp_path / "fused", max_shard_size="2KB")
        (folder / "notes.txt").write_text("old")
        export(average, FusionWeights.one_hot(0, 3), pool, folder)
        assert not (folder / "notes.txt").exists()
        assert not list(folder.glob("model-*"))
        assert [p.name for p in tmp_path.iterdir()] == ["fused"]

    def test_a_failure_leaves_the_old_one(
        self,
        average: ResidentAverage,
        pool: MemberPool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = export(average, WEIGHTS, pool, tmp_path / "fused")
        before = {p.name: p.read_bytes() for p in folder.iterdir()}

        def full(*args: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(module, "write_json", full)
        with pytest.raises(StageError, match="disk became full while writing to"):
            export(average, FusionWeights.one_hot(0, 3), pool, folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert [p.name for p in tmp_path.iterdir()] == ["fused"]

    def test_a_kill_between_the_two_moves_loses_nothing(
        self, average: ResidentAverage, pool: MemberPool, tmp_path: Path
    ) -> None:
        folder = export(average, WEIGHTS, pool, tmp_path / "fused")
        folder.rename(tmp_path / ".fused.old")
        (tmp_path / ".fused.new").mkdir()
        with pytest.raises(KeyError), disk.replaced_folder(folder):
            raise KeyError
        assert (folder / "fusion.json").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["fused"]

    def test_a_folder_of_something_else_survives(
        self, average: ResidentAverage, pool: MemberPool, tmp_path: Path
    ) -> None:
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(StageError, match="exists and is no exported model"):
            export(average, WEIGHTS, pool, tmp_path)
        assert (tmp_path / "thesis.tex").read_text() == "precious"

    def test_a_disk_that_is_too_small_is_found_before_writing(
        self,
        average: ResidentAverage,
        pool: MemberPool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        usage = type(shutil.disk_usage(tmp_path))
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(10**9, 0, 12_345))
        needed = f"{pool.members[0].nbytes + disk.MARGIN:,} bytes, but 12,345 bytes are free"
        with pytest.raises(StageError, match=needed):
            export(average, WEIGHTS, pool, tmp_path / "a" / "fused")
        assert list(tmp_path.iterdir()) == []


class TestJson:
    def test_is_whole_or_old(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        disk.write_json(path, {"a": 1})
        with pytest.raises(ValueError, match="not JSON compliant"):
            disk.write_json(path, {"a": math.inf})
        assert json.loads(path.read_text()) == {"a": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


class TestCard:
    def test_metadata_is_what_the_hub_reads(self, pool: MemberPool) -> None:
        text = model_card(
            pool,
            WEIGHTS,
            name="cola: fused",
            method="mobo",
            task="acceptability of sentences",
            base_model="nreimers/MiniLM-L6-H384-uncased",
            dataset="nyu-mll/glue:cola",
            pipeline_tag="text-classification",
            language="en",
            license="apache-2.0",
            metrics={"validation": {"loss": 0.5, "f1": math.nan}, "test": {"f1": 0.75}},
            tags=("cola",),
        )
        data = ModelCard(text).data
        assert data.library_name == "transformers"
        assert data.tags == ["merge", "fusetune", "cola"]
        assert data.base_model == "nreimers/MiniLM-L6-H384-uncased"
        assert data.pipeline_tag == "text-classification"
        assert data.model_name == "cola: fused"
        results = [
            (r.dataset_type, r.dataset_split, r.metric_type, r.metric_value)
            for r in data.eval_results
        ]
        assert results == [
            ("nyu-mll-glue-cola", "validation", "loss", 0.5),
            ("nyu-mll-glue-cola", "test", "f1", 0.75),
        ]
        assert "| step-20 | 20 | 0.0000 |" in text
        assert "| test | f1 | 0.7500 |" in text
        assert 'AutoModelForSequenceClassification.from_pretrained("cola: fused")' in text
        assert "(method `mobo`)" in text

    def test_needs_only_a_name(self, pool: MemberPool) -> None:
        text = model_card(pool, WEIGHTS, name="fused")
        metadata = yaml.safe_load(text.split("---")[1])
        assert metadata == {"library_name": "transformers", "tags": ["merge", "fusetune"]}
        assert "## Results" not in text

    def test_a_local_base_model_is_not_put_into_the_metadata(
        self, pool: MemberPool, tmp_path: Path
    ) -> None:
        (tmp_path / "my-model").mkdir()
        text = model_card(pool, WEIGHTS, name="f", base_model=str(tmp_path / "my-model"))
        assert "base_model" not in text
        assert "fine-tuned my-model" in text
        assert str(tmp_path) not in text

    def test_text_cannot_break_out(self, pool: MemberPool) -> None:
        evil = "a|b\n---\n# <script>`x`"
        text = model_card(
            pool,
            WEIGHTS,
            name=evil,
            task=evil,
            dataset=evil,
            tags=(evil, "x: [y"),
            pipeline_tag="text-classification",
            metrics={evil: {evil: 1.0}},
        )
        metadata = ModelCard(text).data
        assert metadata.tags == ["merge", "fusetune", evil, "x: [y"]
        body = text.split("\n---\n", 1)[1]
        assert "<script>" not in body.replace(json.dumps(evil), "")
        assert "\n# <" not in body
        assert "| a\\|b --- # &lt;script&gt;\\`x\\` |" in body
