from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
)

from fusetune.errors import MemberError
from fusetune.members.average import for_files
from fusetune.members.companions import companions, files_of, tokenizer_home
from fusetune.members.export import export
from fusetune.members.member import Member
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import FusionWeights

GOES_ALONG = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "chat_template.json",
    "additional_chat_templates/tool.jinja",
    "bpe.codes",
    "sentencepiece.model",
    "source.spm",
    "target.spm",
    "normalizer.json",
    "vocab-src.json",
    "entity_vocab.json",
    "emoji_terminologies.txt",
    "modules.json",
    "1_Pooling/config.json",
    "LICENSE",
)
STAYS = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "trainer_state.json",
    "training_args.bin",
    "train_results.json",
    "trainer_log.jsonl",
    "runs/Dec01/events.out.tfevents.1.host",
    "global_step10/mp_rank_00_model_states.pt",
    "checkpoint-5/config.json",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "zero_to_fp32.py",
    "train.py",
    "README.md",
    ".git/config",
)


def put(folder: Path, *names: str, text: str = "{}") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write(members: Path, out: Path) -> Path:
    pool = MemberPool.open(members)
    return export(for_files(pool), FusionWeights.uniform(len(pool)), pool, out)


def small_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")


class TestFiles:
    def test_all_but_states_and_weights_goes_along(
        self, copied_members: Path, tmp_path: Path
    ) -> None:
        put(copied_members / "step-30", *GOES_ALONG, *STAYS)
        fused = write(copied_members, tmp_path / "fused")
        names = {f.relative_to(fused).as_posix() for f in fused.rglob("*") if f.is_file()}
        written = {"config.json", "model.safetensors", "README.md", "fusion.json"}
        assert names == {*GOES_ALONG, *written}
        assert "fusetune" in (fused / "README.md").read_text()

    def test_a_processor_and_templates_load_again(
        self, copied_members: Path, tmp_path: Path
    ) -> None:
        tokenizer = small_tokenizer()
        tokenizer.chat_template = {"default": "{{ 1 }}", "tool": "{{ 2 }}"}
        tokenizer.save_pretrained(copied_members / "step-30")
        WhisperFeatureExtractor(feature_size=7).save_pretrained(copied_members / "step-30")
        fused = write(copied_members, tmp_path / "fused")
        assert AutoTokenizer.from_pretrained(fused).chat_template == tokenizer.chat_template
        assert AutoFeatureExtractor.from_pretrained(fused).feature_size == 7

    def test_code_goes_along_where_a_configuration_names_it(
        self, copied_members: Path, edit_config: Callable[..., None]
    ) -> None:
        folder = copied_members / "step-30"
        put(folder, "modeling_own.py", "zero_to_fp32.py", text="1")
        assert "modeling_own.py" not in files_of(folder)
        edit_config(folder, auto_map={"AutoModel": "modeling_own.Own"})
        assert "modeling_own.py" in files_of(folder)
        assert "zero_to_fp32.py" not in files_of(folder)

    def test_a_link_that_leads_elsewhere_is_not_followed(
        self, copied_members: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "secret.txt").write_text("s3cret")
        folder = copied_members / "step-30"
        (folder / "vocab.txt").symlink_to(tmp_path / "secret.txt")
        put(folder, "merges.txt")
        (folder / "dict.txt").symlink_to("merges.txt")
        assert {"merges.txt", "dict.txt"} == files_of(folder).keys()

    def test_links_of_the_hub_s_cache_are_followed(self, tmp_path: Path) -> None:
        put(tmp_path, "blobs/1234", "snapshots/abcd/x")
        (tmp_path / "snapshots/abcd/vocab.txt").symlink_to("../../blobs/1234")
        assert "vocab.txt" in files_of(tmp_path / "snapshots" / "abcd")


class TestNearby:
    def test_the_folder_around_gives_what_the_checkpoint_lacks(
        self, copied_members: Path
    ) -> None:
        config = (copied_members / "step-30" / "config.json").read_text()
        put(copied_members, "config.json", text=config)
        put(
            copied_members, "tokenizer_config.json", "preprocessor_config.json", "data/rows.csv"
        )
        member = Member.open(copied_members / "step-30")
        assert companions([member]).keys() == {
            "tokenizer_config.json",
            "preprocessor_config.json",
        }
        assert tokenizer_home(member) == copied_members

    def test_a_tokenizer_takes_no_file_of_another_s(
        self, copied_members: Path, tmp_path: Path
    ) -> None:
        put(copied_members / "step-30", "tokenizer.json", "tokenizer_config.json")
        put(tmp_path / "base", "added_tokens.json", "chat_template.jinja", "vocab.txt")
        put(tmp_path / "base", "preprocessor_config.json", "modules.json")
        found = companions([Member.open(copied_members / "step-30")], [tmp_path / "base"])
        assert found.keys() == {
            "tokenizer.json",
            "tokenizer_config.json",
            "preprocessor_config.json",
        }

    def test_another_model_s_folder_around_is_left_alone(self, copied_members: Path) -> None:
        put(copied_members, "config.json", text=json.dumps({"model_type": "gpt2"}))
        put(copied_members, "tokenizer_config.json")
        member = Member.open(copied_members / "step-30")
        assert companions([member]) == {}
        assert tokenizer_home(member) is None


class TestParts:
    def test_weights_beside_that_differ_are_refused(self, copied_members: Path) -> None:
        for i, folder in enumerate(sorted(copied_members.iterdir())):
            (folder / "v_head.safetensors").write_text(f"{i}")
        problems = inspect(copied_members).problems
        assert len(problems) == 1
        assert "v_head.safetensors holds weights beside those of the model" in problems[0]
        assert "differs between the members" in problems[0]
        with pytest.raises(MemberError, match="v_head"):
            MemberPool.open(copied_members)

    @pytest.mark.parametrize(
        "name", ["pytorch_model_head.bin", "value_head.bin", "model_1.safetensors", "head/w.pt"]
    )
    def test_one_that_some_members_lack_is_refused(
        self, copied_members: Path, name: str
    ) -> None:
        put(copied_members / "step-20", name)
        with pytest.raises(MemberError, match="is not in all of them"):
            MemberPool.open(copied_members)

    def test_the_same_weights_in_all_members_go_along(
        self, copied_members: Path, tmp_path: Path
    ) -> None:
        for folder in copied_members.iterdir():
            put(folder, "voices/speaker.npz", "codec/model.safetensors", text="same")
            put(folder, "codec/config.json", text=json.dumps({"model_type": "codec"}))
        fused = write(copied_members, tmp_path / "fused")
        assert (fused / "voices" / "speaker.npz").read_text() == "same"
        assert (fused / "codec" / "model.safetensors").read_text() == "same"

    def test_another_model_inside_of_one_folder_is_none_of_its_parts(
        self, copied_members: Path, tmp_path: Path
    ) -> None:
        put(copied_members / "step-30", "best_model/model.safetensors")
        put(copied_members / "step-30", "best_model/config.json", text='{"model_type": "bert"}')
        fused = write(copied_members, tmp_path / "fused")
        assert not (fused / "best_model").exists()
