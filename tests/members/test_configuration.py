from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedConfig

from fusetune.errors import MemberError
from fusetune.members.configuration import config_differences
from fusetune.members.pool import MemberPool


def file_of(name: str, **settings: Any) -> dict[str, Any]:
    """What Transformers writes as config.json."""
    config: PreTrainedConfig = getattr(transformers, name)(**settings)
    return dict(json.loads(config.to_json_string()))


def changed(name: str, **settings: Any) -> list[str]:
    return config_differences(file_of(name), file_of(name, **settings))


class TestWhatChangesTheFunction:
    @pytest.mark.parametrize(
        ("name", "setting", "value"),
        [
            ("LlamaConfig", "rope_parameters", {"rope_type": "default", "rope_theta": 100.0}),
            ("LlamaConfig", "rms_norm_eps", 1e-3),
            ("BartConfig", "activation_function", "relu"),
            ("BartConfig", "scale_embedding", True),
            ("T5Config", "feed_forward_proj", "gated-gelu"),
            ("MistralConfig", "sliding_window", 64),
            ("MixtralConfig", "num_experts_per_tok", 1),
            ("GraniteConfig", "logits_scaling", 2.0),
            ("Gemma2Config", "attn_logit_softcapping", 5.0),
            ("GPT2Config", "scale_attn_by_inverse_layer_idx", True),
            ("EsmConfig", "token_dropout", True),
            ("RobertaConfig", "pad_token_id", 3),
            ("CLIPConfig", "text_config", {"hidden_act": "gelu"}),
            ("ViTConfig", "layer_norm_eps", 1e-3),
        ],
    )
    def test_is_told_by_its_name(self, name: str, setting: str, value: Any) -> None:
        lines = changed(name, **{setting: value})
        assert lines
        assert all(line.startswith(f"config.json {setting}") for line in lines)

    def test_scaling_of_positions(self) -> None:
        rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
        assert changed("LlamaConfig", rope_parameters=rope) == [
            "config.json rope_parameters.factor: 2.0 != None",
            "config.json rope_parameters.rope_type: 'linear' != 'default'",
        ]

    def test_the_order_of_classes(self) -> None:
        ours, theirs = (
            file_of("BertConfig", id2label=names)
            for names in ({0: "no", 1: "yes"}, {0: "yes", 1: "no"})
        )
        assert "config.json id2label.0: 'yes' != 'no'" in config_differences(ours, theirs)

    def test_settings_of_a_class_that_is_not_known(self) -> None:
        ours = {"model_type": "of-my-own", "width": 3, "layer_drop": 0.1}
        theirs = ours | {"width": 4, "layer_drop": 0.2, "tie_word_embeddings": True}
        assert config_differences(ours, theirs) == ["config.json width: 4 != 3"]


class TestWhatMeansTheSame:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("BertConfig", {"hidden_dropout_prob": 0.3, "initializer_range": 0.1}),
            ("BertConfig", {"problem_type": "single_label_classification"}),
            ("BertConfig", {"id2label": {0: "no", 1: "yes"}}),
            ("LlamaConfig", {"use_cache": False, "dtype": "bfloat16", "pad_token_id": 3}),
            ("MixtralConfig", {"router_aux_loss_coef": 0.5, "output_router_logits": True}),
            ("Wav2Vec2Config", {"mask_time_prob": 0.2, "ctc_loss_reduction": "mean"}),
        ],
    )
    def test_settings_of_training_and_of_loading(
        self, name: str, settings: dict[str, Any]
    ) -> None:
        assert changed(name, **settings) == []

    def test_a_default_that_version_4_left_out(self) -> None:
        ours = file_of("BertConfig")
        assert ours["tie_word_embeddings"] is True
        theirs = {key: value for key, value in ours.items() if key != "tie_word_embeddings"}
        assert config_differences(ours, theirs) == []

    def test_positions_as_version_4_wrote_them(self) -> None:
        rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
        ours = file_of("LlamaConfig", rope_parameters=rope)
        theirs = {key: value for key, value in ours.items() if key != "rope_parameters"}
        theirs |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
        theirs |= {"torch_dtype": theirs.pop("dtype", None), "unsloth_version": "2024.8"}
        assert config_differences(ours, theirs) == []

    def test_a_default_inside_of_a_section(self) -> None:
        ours = file_of("CLIPConfig")
        theirs = json.loads(json.dumps(ours))
        del theirs["text_config"]["hidden_act"]
        assert config_differences(ours, theirs) == []

    def test_infinity_as_it_is_written(self) -> None:
        ours = file_of("Mamba2Config")
        assert config_differences(ours, ours | {"unknown": 1}) == []


class TestMembers:
    def test_two_runs_of_other_settings_are_refused(
        self, copied_members: Path, edit_config: Callable[..., None]
    ) -> None:
        edit_config(copied_members / "step-20", hidden_act="relu")
        with pytest.raises(MemberError, match="step-20 cannot be fused") as caught:
            MemberPool.open(copied_members)
        assert "config.json hidden_act: 'relu' != 'gelu'" in str(caught.value)

    def test_the_stray_one_is_named_wherever_it_stands(
        self, copied_members: Path, edit_config: Callable[..., None]
    ) -> None:
        edit_config(copied_members / "step-10", layer_norm_eps=0.5)
        with pytest.raises(MemberError, match=r"step-10 cannot be fused with .*step-20"):
            MemberPool.open(copied_members)

    def test_files_of_two_versions_fit(
        self, copied_members: Path, edit_config: Callable[..., None]
    ) -> None:
        edit_config(copied_members / "step-20", tie_word_embeddings=None, torch_dtype="float16")
        assert len(MemberPool.open(copied_members)) == 3
