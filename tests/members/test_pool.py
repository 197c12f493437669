from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from fusetune.errors import MemberError
from fusetune.members.manifest import read_manifest, write_manifest
from fusetune.members.member import Member
from fusetune.members.pool import MemberPool, inspect

Edit = Callable[[Path, Callable[[dict[str, Tensor]], None]], None]


class TestFinding:
    def test_order_is_by_step_not_by_letters(self, bert_members: Path, tmp_path: Path) -> None:
        for step, member in zip((1000, 9, 80), sorted(bert_members.iterdir()), strict=True):
            shutil.copytree(member, tmp_path / "out" / f"checkpoint-{step}")
        expected = ("checkpoint-9", "checkpoint-80", "checkpoint-1000")
        folders = [tmp_path / "out" / name for name in sorted(expected)]
        for paths in (tmp_path / "out", str(tmp_path / "out" / "checkpoint-*"), folders):
            pool = MemberPool.open(paths)
            assert pool.names == expected
            assert [m.step for m in pool.members] == [9, 80, 1000]

    def test_a_run_folder_means_its_members(self, bert_members: Path, tmp_path: Path) -> None:
        shutil.copytree(bert_members, tmp_path / "run" / "members")
        shutil.copytree(bert_members / "step-10", tmp_path / "run" / "fused")
        assert MemberPool.open(tmp_path / "run").names == ("step-10", "step-20", "step-30")

    def test_a_trainer_s_folder_means_its_checkpoints(
        self, bert_members: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        shutil.copytree(bert_members / "step-10", out)
        for step in (10, 20):
            shutil.copytree(bert_members / f"step-{step}", out / f"checkpoint-{step}")
        shutil.copytree(bert_members / "step-20", out / "2_Dense")
        assert MemberPool.open(out).names == ("checkpoint-10", "checkpoint-20")

    def test_the_step_of_the_trainer_s_state_goes_before_the_name(
        self, copied_members: Path
    ) -> None:
        (copied_members / "step-10" / "trainer_state.json").write_text('{"global_step": 25}')
        assert MemberPool.open(copied_members).names == ("step-20", "step-10", "step-30")

    def test_names_without_a_step_keep_the_given_order(
        self, bert_members: Path, tmp_path: Path
    ) -> None:
        folders = [tmp_path / name for name in ("last", "best", "first")]
        for folder, member in zip(folders, sorted(bert_members.iterdir()), strict=True):
            shutil.copytree(member, folder)
        assert MemberPool.open(folders).names == ("last", "best", "first")
        assert MemberPool.open(f"{tmp_path}/*").names == ("best", "first", "last")

    def test_a_member_counts_once_and_temporary_ones_never(self, copied_members: Path) -> None:
        shutil.copytree(copied_members / "step-10", copied_members / ".step-40.new")
        twice = [copied_members, copied_members / "step-10", str(copied_members / "*")]
        assert MemberPool.open(twice).names == ("step-10", "step-20", "step-30")

    def test_a_member_without_its_manifest_is_incomplete(
        self, copied_members: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for step in (10, 20):
            write_manifest(copied_members / f"step-{step}", step=step, epoch=1.0)
        found = inspect(copied_members)
        assert [m.name for m in found.members] == ["step-10", "step-20"]
        assert [p.name for p in found.incomplete] == ["step-30"]
        assert found.compatible
        assert "step-30 is left out: it has no member.json" in caplog.text

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("nowhere", "nowhere does not exist"),
            ("nothing-*", r"No checkpoint in .*nothing-\*"),
            ("file", "file is a file; a checkpoint is a folder"),
            ("empty", "empty holds no weights: neither model.safetensors nor"),
        ],
    )
    def test_what_is_not_there(self, tmp_path: Path, path: str, message: str) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("")
        with pytest.raises(MemberError, match=message):
            MemberPool.open(tmp_path / path)

    def test_one_is_not_enough(self, bert_members: Path) -> None:
        with pytest.raises(
            MemberError, match=r"at least two checkpoints; found one: .*step-10"
        ):
            MemberPool.open(bert_members / "step-10")


class TestReading:
    def test_what_a_pool_says_of_itself(
        self, bert_members: Path, bert: PreTrainedModel
    ) -> None:
        pool = MemberPool.open(bert_members)
        assert len(pool) == 3
        assert pool.num_parameters == bert.num_parameters()
        assert pool.nbytes == 3 * 4 * pool.num_parameters
        assert pool.members[0].config["model_type"] == "bert"
        name = "classifier.weight"
        expected = load_file(bert_members / "step-20" / "model.safetensors")[name]
        assert torch.equal(pool.load_tensor(1, name), expected)

    def test_the_fingerprint_follows_the_weights(
        self, bert_members: Path, copied_members: Path, edit: Edit
    ) -> None:
        original = MemberPool.open(bert_members)
        assert MemberPool.open(copied_members).fingerprint == original.fingerprint
        turned = MemberPool(original.members[::-1])
        assert turned.fingerprint != original.fingerprint
        edit(copied_members / "step-10", lambda t: t["classifier.bias"].add_(1))
        assert MemberPool.open(copied_members).fingerprint != original.fingerprint

    def test_a_pool_travels_to_another_process(self, bert_members: Path) -> None:
        pool = MemberPool.open(bert_members)
        pool.load_tensor(0, "classifier.bias")
        again = pickle.loads(pickle.dumps(pool))
        name = "classifier.bias"
        assert torch.equal(again.load_tensor(0, name), pool.load_tensor(0, name))

    def test_shards_are_one_member(self, save_members: Callable[..., Path]) -> None:
        whole = MemberPool.open(save_members(name="whole"))
        sharded = MemberPool.open(save_members(name="sharded", max_shard_size="2KB"))
        assert len(sharded.members[0].files) > 1
        assert sharded.members[0].tensors.keys() == whole.members[0].tensors.keys()
        for name in whole.members[0].tensors:
            assert torch.equal(sharded.load_tensor(2, name), whole.load_tensor(2, name))
        assert sharded.fingerprint != whole.fingerprint

    def test_a_file_that_vanished(self, copied_members: Path) -> None:
        pool = MemberPool.open(copied_members)
        shutil.rmtree(copied_members / "step-20")
        with pytest.raises(MemberError, match=r"step-20/model\.safetensors cannot be read"):
            pool.load_tensor(1, "classifier.bias")


class TestDamage:
    @pytest.mark.parametrize("left", [0, 5, 100, -1])
    def test_truncated(self, copied_members: Path, left: int) -> None:
        file = copied_members / "step-20" / "model.safetensors"
        size = file.stat().st_size
        os.truncate(file, left if left >= 0 else size - 1)
        message = (
            "is not a safetensors file"
            if 0 <= left < 8
            else r"step-20/model\.safetensors is truncated: its header describes [\d,]+ bytes, "
            f"it has {(left if left >= 0 else size - 1):,}"
        )
        with pytest.raises(MemberError, match=message):
            MemberPool.open(copied_members)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\xff" * 64, "is not a safetensors file"),
            ((4).to_bytes(8, "little") + b"oops", "its header is not JSON"),
            ((2).to_bytes(8, "little") + b"[]", "its header is not an object"),
            ((2).to_bytes(8, "little") + b"{}", "holds no tensor"),
            ((9).to_bytes(8, "little") + b'{"a":{ }}', "tensor 'a' is not described"),
        ],
    )
    def test_not_safetensors(self, copied_members: Path, content: bytes, message: str) -> None:
        (copied_members / "step-20" / "model.safetensors").write_bytes(content)
        with pytest.raises(MemberError, match=message):
            MemberPool.open(copied_members)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "as F8_E4M3, which"),
            ({"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}, "takes 4 bytes, not 16"),
            ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 4]}, "is not described"),
        ],
    )
    def test_impossible_headers(
        self, copied_members: Path, entry: dict[str, object], message: str
    ) -> None:
        header = json.dumps({"a": entry}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(4)
        (copied_members / "step-20" / "model.safetensors").write_bytes(content)
        with pytest.raises(MemberError, match=message):
            MemberPool.open(copied_members)

    def test_a_missing_shard(self, save_members: Callable[..., Path]) -> None:
        folder = save_members(max_shard_size="2KB")
        shard = sorted((folder / "step-10").glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(MemberError, match=rf"lacks 1 of \d+ shards \({shard.name}"):
            MemberPool.open(folder)

    def test_shards_stay_in_their_folder(self, save_members: Callable[..., Path]) -> None:
        folder = save_members(max_shard_size="2KB")
        index = folder / "step-10" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
        with pytest.raises(MemberError, match="points outside of its folder"):
            MemberPool.open(folder)

    def test_a_tensor_that_is_in_the_index_only(
        self, save_members: Callable[..., Path]
    ) -> None:
        folder = save_members(max_shard_size="2KB")
        path = folder / "step-10" / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
        path.write_text(json.dumps(index))
        with pytest.raises(MemberError, match="lacks the tensor 'ghost'"):
            MemberPool.open(folder)

    def test_pickled_weights_are_refused(self, copied_members: Path) -> None:
        folder = copied_members / "step-20"
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
        torch.save({}, folder / "optimizer.pt")
        with pytest.raises(MemberError, match=r"only pickled weights.*--allow-pickle"):
            MemberPool.open(copied_members)

    def test_optimizer_state_is_not_a_member(self, copied_members: Path) -> None:
        torch.save({}, copied_members / "step-20" / "optimizer.pt")
        (copied_members / "optimizer").mkdir()
        torch.save({}, copied_members / "optimizer" / "optimizer.pt")
        assert len(MemberPool.open(copied_members)) == 3

    def test_an_adapter_is_not_a_model(self, copied_members: Path) -> None:
        folder = copied_members / "step-20"
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        with pytest.raises(MemberError, match="step-20 holds a LoRA adapter"):
            Member.open(folder)

    def test_a_config_that_is_not_json(self, copied_members: Path) -> None:
        (copied_members / "step-20" / "config.json").write_text("{")
        with pytest.raises(MemberError, match=r"step-20/config\.json is not JSON"):
            MemberPool.open(copied_members)


class TestManifest:
    def test_round_trip(self, copied_members: Path) -> None:
        folder = copied_members / "step-10"
        written = write_manifest(
            folder, step=12, epoch=1.5, values={"loss": 0.25, "f1": float("nan")}
        )
        read = read_manifest(folder)
        assert read is not None
        assert (read.step, read.epoch, read.files) == (12, 1.5, written.files)
        assert read.values["loss"] == 0.25
        assert read.values["f1"] != read.values["f1"]
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []

    def test_its_digest_is_the_file_s(self, copied_members: Path) -> None:
        plain = MemberPool.open(copied_members)
        for member in plain.members:
            write_manifest(member.path, step=100 - (member.step or 0), epoch=0)
        declared = MemberPool.open(copied_members)
        assert [m.step for m in declared.members] == [10, 20, 30]  # the folders' numbers
        assert [m.sha256 for m in declared.members] == [m.sha256 for m in plain.members]

    def test_a_file_of_another_size_is_damaged(self, copied_members: Path, edit: Edit) -> None:
        folder = copied_members / "step-10"
        write_manifest(folder, step=10, epoch=1)
        edit(folder, lambda t: t.update(more=torch.zeros(3)))
        with pytest.raises(MemberError, match=r"has [\d,]+ bytes; member\.json says it had"):
            MemberPool.open([folder, copied_members / "step-20"])

    def test_a_file_that_it_lists_is_missing(self, copied_members: Path) -> None:
        folder = copied_members / "step-10"
        write_manifest(folder, step=10, epoch=1)
        (folder / "model.safetensors").unlink()
        with pytest.raises(MemberError, match=r"lacks model\.safetensors, which member\.json"):
            MemberPool.open([folder, copied_members / "step-20"])

    @pytest.mark.parametrize("text", ["", "[]", '{"step": 1}', '{"step": "x", "epoch": 1}'])
    def test_nonsense_is_said_to_be(self, copied_members: Path, text: str) -> None:
        (copied_members / "step-10" / "member.json").write_text(text)
        with pytest.raises(MemberError, match="is not a member's manifest"):
            read_manifest(copied_members / "step-10")

    def test_nothing_to_declare(self, tmp_path: Path) -> None:
        assert read_manifest(tmp_path) is None
        with pytest.raises(ValueError, match="no safetensors file"):
            write_manifest(tmp_path, step=1, epoch=1)


class TestCompatibility:
    def test_the_odd_one_out_is_named_with_its_differences(
        self, copied_members: Path, other_bert: Callable[..., PreTrainedModel]
    ) -> None:
        other_bert(num_labels=3, vocab_size=40).save_pretrained(copied_members / "step-5")
        with pytest.raises(MemberError) as caught:
            MemberPool.open(copied_members)
        text = str(caught.value)
        assert "step-5 cannot be fused with" in text
        assert "step-10: 4 differences (there != here)" in text
        assert "  config.json vocab_size: 40 != 31" in text
        assert "  classifier.weight: 3 x 8 float32 != 2 x 8 float32" in text
        assert "step-20 cannot" not in text
        assert caught.value.hint.startswith("All members must come from")

    def test_ten_differences_are_shown_and_the_rest_counted(
        self, copied_members: Path, other_bert: Callable[..., PreTrainedModel]
    ) -> None:
        other_bert(hidden_size=16).save_pretrained(copied_members / "step-5")
        count = len(MemberPool.open(copied_members / "step-*0").members[0].tensors) - 3
        with pytest.raises(MemberError, match=f"… and {count + 1 - 10} more") as caught:
            MemberPool.open(copied_members)
        assert "config.json hidden_size: 16 != 8" in str(caught.value)
        assert str(caught.value).count("float32 !=") == 9

    def test_names_and_dtypes(self, copied_members: Path, edit: Edit) -> None:
        def change(tensors: dict[str, Tensor]) -> None:
            tensors["extra"] = tensors.pop("classifier.bias")
            tensors["classifier.weight"] = tensors["classifier.weight"].half()

        edit(copied_members / "step-30", change)
        found = inspect(copied_members)
        assert not found.compatible
        assert len(found.members) == 3
        (problem,) = found.problems
        assert "classifier.bias: absent != 2 float32" in problem
        assert "extra: 2 float32 != absent" in problem
        assert "classifier.weight: 2 x 8 float16 != 2 x 8 float32" in problem

    def test_equal_shapes_with_another_number_of_heads(
        self, copied_members: Path, other_bert: Callable[..., PreTrainedModel]
    ) -> None:
        other_bert(num_attention_heads=4).save_pretrained(copied_members / "step-20")
        with pytest.raises(MemberError, match=r"config\.json num_attention_heads: 4 != 2"):
            MemberPool.open(copied_members)

    def test_all_problems_are_reported_at_once(
        self, copied_members: Path, other_bert: Callable[..., PreTrainedModel]
    ) -> None:
        os.truncate(copied_members / "step-10" / "model.safetensors", 100)
        other_bert(num_labels=3).save_pretrained(copied_members / "step-20")
        found = inspect(copied_members)
        assert [m.name for m in found.members] == ["step-20", "step-30"]
        assert "truncated" in found.problems[0]
        assert "cannot be fused" in found.problems[1]

    def test_a_good_pool_has_no_problems(self, bert_members: Path) -> None:
        found = inspect(bert_members)
        assert found.compatible
        assert found.problems == ()
        assert found.incomplete == ()
