"""Averages written file to file are those in memory, and ordinary safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from fusetune.errors import MemberError
from fusetune.members.average import StreamingAverage, for_files
from fusetune.members.header import read_header
from fusetune.members.points import Combination, OwnModel, Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.members.writer import INDEX, write_average

WEIGHTS = FusionWeights((0.5, 0.125, 0.375))


@pytest.fixture
def mixed(tmp_path: Path) -> MemberPool:
    """Members of all kinds of dtypes, an empty tensor, a scalar and constants."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(50, generator=generator)
    for i in range(3):
        tensors = {
            "a.half": torch.randn(7, 3, generator=generator).half(),
            "b.brain": torch.randn(11, generator=generator).bfloat16(),
            "c.single": torch.randn(5, 300, generator=generator),
            "d.double": torch.randn(4, generator=generator).double(),
            "e.scalar": torch.randn((), generator=generator),
            "f.empty": torch.empty(0, 4),
            "g.ids": torch.arange(6),
            "h.flags": torch.tensor([True, False]),
            "i.shared": shared,
        }
        folder = tmp_path / "mixed" / f"step-{i + 1}"
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return MemberPool.open(tmp_path / "mixed")


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("size", ["5GB", 2000, 100])
@pytest.mark.parametrize("point", [WEIGHTS, Combination((2.0, -1.5, 0.0))])
def test_bits_are_those_in_memory(
    mixed: MemberPool, tmp_path: Path, size: str | int, point: Point
) -> None:
    average = StreamingAverage(mixed, None)
    out = tmp_path / "out"
    out.mkdir()
    files = write_average(average, point, out, max_shard_size=size)
    written, wanted = read(out), average.tensors(point)
    assert written.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)
    assert (len(files) > 1) == (out / INDEX).exists() == (size != "5GB")
    if len(files) > 1:
        index = json.loads((out / INDEX).read_text())
        assert {n: (out / f) in files for n, f in index["weight_map"].items()} == dict.fromkeys(
            wanted, True
        )
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert all(info.offset % 2 == 0 for info in read_header(file).values())


def test_a_model_of_its_own(mixed: MemberPool, tmp_path: Path) -> None:
    average = StreamingAverage(mixed, None)
    tensors = {
        n: torch.ones(i.shape, dtype=i.dtype)
        for n, i in mixed.members[0].tensors.items()
        if i.dtype.is_floating_point
    }
    write_average(average, OwnModel.of(tensors), tmp_path)
    written = read(tmp_path)
    assert all(bool((written[n] == 1).all()) for n in tensors)
    assert torch.equal(written["g.ids"], torch.arange(6))


def test_many_tiles(tmp_path: Path) -> None:
    """Tensors that reach over several tiles, read ahead by several threads."""
    generator = torch.Generator().manual_seed(0)
    for i in range(3):
        folder = tmp_path / "members" / f"step-{i}"
        folder.mkdir(parents=True)
        tensors = {n: torch.randn(700_001, generator=generator) for n in ("x", "y")}
        save_file(tensors, folder / "model.safetensors")
    pool = MemberPool.open(tmp_path / "members")
    write_average(StreamingAverage(pool, None), WEIGHTS, tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        files = [load_file(m.path / "model.safetensors")[name].double() for m in pool.members]
        exact = sum(w * f for w, f in zip(WEIGHTS.values, files, strict=True))
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_file_that_has_become_shorter_is_an_error(mixed: MemberPool, tmp_path: Path) -> None:
    average = StreamingAverage(mixed, None)
    path = mixed.members[1].files[0]
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(MemberError, match="become shorter"):
        write_average(average, WEIGHTS, tmp_path)


def test_without_a_model_nothing_can_be_evaluated(mixed: MemberPool) -> None:
    average = StreamingAverage(mixed, None)
    with pytest.raises(ValueError, match="without a model"):
        _ = average.model


def test_merged_adapters_are_written_in_the_layout_of_their_base_models_files(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    base = MixtralForCausalLM(
        MixtralConfig(**sizes, **heads, num_hidden_layers=1, num_local_experts=2)
    )
    base.save_pretrained(tmp_path / "base")
    merged = []
    for i in range(2):
        model = peft.get_peft_model(
            MixtralForCausalLM.from_pretrained(tmp_path / "base"),
            peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        model.save_pretrained(tmp_path / "members" / f"checkpoint-{i}")
        merged.append(model.merge_and_unload().state_dict())
    pool = MemberPool.open(tmp_path / "members")
    average = for_files(pool)
    (tmp_path / "out").mkdir()
    (file,) = write_average(average, FusionWeights((0.25, 0.75)), tmp_path / "out")
    assert load_file(file).keys() == load_file(tmp_path / "base/model.safetensors").keys()
    base.config.save_pretrained(tmp_path / "out")
    loaded = MixtralForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in loaded.items():
        expected = 0.25 * merged[0][name] + 0.75 * merged[1][name]
        torch.testing.assert_close(tensor, expected)
