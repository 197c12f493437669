"""Tiny, random models of as many architectures as there are, from configurations alone.

`CONFIGURATIONS` has a class of Transformers and the settings that make it small. Many classes
share their settings; those that do not stand apart with their own.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
    **TOKENS,
}
DECODER: dict[str, Any] = {**TEXT, "num_key_value_heads": 1, "head_dim": 4}
MIXTURE: dict[str, Any] = {
    **DECODER,
    "num_experts": 3,
    "num_local_experts": 3,
    "n_routed_experts": 3,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
LATENT: dict[str, Any] = {  # attention of DeepSeek
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": 19,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 1,
    **TOKENS,
}
T5: dict[str, Any] = {
    "vocab_size": 19,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 8,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
}
STAGES: dict[str, Any] = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depths": [1]}
SPEECH: dict[str, Any] = {
    **TEXT,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 4,
    "codevector_dim": 8,
    "classifier_proj_size": 8,
}
TWO_TOWERS: dict[str, Any] = {
    "text_config": TEXT,
    "vision_config": VISION,
    "projection_dim": 8,
}

_SHARED: tuple[tuple[dict[str, Any], str], ...] = (
    (
        TEXT,
        """
        BertForMaskedLM RobertaForSequenceClassification
        XLMRobertaForTokenClassification ElectraForSequenceClassification
        DebertaForSequenceClassification DebertaV2ForSequenceClassification
        CamembertForMaskedLM ErnieForSequenceClassification
        MPNetForSequenceClassification RoFormerForSequenceClassification
        MegatronBertForSequenceClassification ConvBertForSequenceClassification
        LayoutLMForTokenClassification XLMRobertaXLForSequenceClassification
        RobertaPreLayerNormForMaskedLM BigBirdForSequenceClassification
        RemBertForSequenceClassification MobileBertForSequenceClassification
        EsmForMaskedLM NomicBertForMaskedLM ModernBertForMaskedLM EuroBertForMaskedLM
        IBertForSequenceClassification NystromformerForMaskedLM
        YosoForSequenceClassification LongformerForQuestionAnswering AlbertForMaskedLM
        DistilBertForSequenceClassification FNetForSequenceClassification
        BioGptForCausalLM Data2VecTextForSequenceClassification XLMForSequenceClassification
        FlaubertForTokenClassification OpenAIGPTLMHeadModel GPT2DoubleHeadsModel
        ModernBertDecoderForCausalLM CLIPTextModel BertForQuestionAnswering
        AlbertForMultipleChoice
        """,
    ),
    (
        DECODER,
        """
        LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM
        GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM
        Phi3ForCausalLM GPTNeoXForCausalLM StableLmForCausalLM OlmoForCausalLM
        Olmo2ForCausalLM Olmo3ForCausalLM CohereForCausalLM Cohere2ForCausalLM
        GraniteForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM PersimmonForCausalLM
        NemotronForCausalLM GlmForCausalLM Glm4ForCausalLM HeliumForCausalLM
        ArceeForCausalLM BloomForCausalLM OPTForCausalLM GPT2LMHeadModel
        GPTBigCodeForCausalLM MptForCausalLM BitNetForCausalLM Exaone4ForCausalLM
        SeedOssForCausalLM Ernie4_5ForCausalLM HunYuanDenseV1ForCausalLM
        LlamaForSequenceClassification Qwen2ForTokenClassification ApertusForCausalLM
        Lfm2ForCausalLM VaultGemmaForCausalLM XGLMForCausalLM MambaForCausalLM
        FalconMambaForCausalLM RecurrentGemmaForCausalLM GPTNeoXForSequenceClassification
        """,
    ),
    (
        MIXTURE,
        """
        Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
        OlmoeForCausalLM Glm4MoeForCausalLM PhimoeForCausalLM GraniteMoeForCausalLM
        GraniteMoeSharedForCausalLM JambaForCausalLM GptOssForCausalLM Dots1ForCausalLM
        Ernie4_5_MoeForCausalLM MiniMaxForCausalLM HunYuanMoEV1ForCausalLM
        FlexOlmoForCausalLM JetMoeForCausalLM MiniMaxM2ForCausalLM
        MixtralForSequenceClassification
        """,
    ),
    (
        {**MIXTURE, **LATENT, "num_key_value_heads": 2},
        """
        DeepseekV2ForCausalLM DeepseekV3ForCausalLM
        """,
    ),
    (
        ENCODER_DECODER,
        """
        BartForConditionalGeneration MBartForConditionalGeneration MarianMTModel
        PegasusForConditionalGeneration PegasusXForConditionalGeneration
        BlenderbotForConditionalGeneration BlenderbotSmallForConditionalGeneration
        M2M100ForConditionalGeneration LEDForConditionalGeneration
        PLBartForConditionalGeneration MvpForConditionalGeneration
        BigBirdPegasusForConditionalGeneration BartForQuestionAnswering
        """,
    ),
    (
        T5,
        """
        T5ForConditionalGeneration MT5ForConditionalGeneration
        UMT5ForConditionalGeneration LongT5ForConditionalGeneration T5EncoderModel
        """,
    ),
    (
        VISION,
        """
        ViTForImageClassification DeiTForImageClassification BeitForImageClassification
        Dinov2ForImageClassification Dinov2WithRegistersForImageClassification
        DINOv3ViTModel ViTMSNForImageClassification IJepaForImageClassification
        Data2VecVisionForImageClassification DeiTForImageClassificationWithTeacher
        CLIPVisionModelWithProjection SiglipVisionModel
        """,
    ),
    (
        {**VISION, "num_frames": 2},
        """
        VideoMAEForVideoClassification TimesformerForVideoClassification
        """,
    ),
    (
        STAGES | {"num_heads": [2], "window_size": 2},
        """
        SwinForImageClassification Swinv2ForImageClassification
        """,
    ),
    (
        SPEECH,
        """
        Wav2Vec2ForCTC HubertForCTC WavLMForCTC UniSpeechForCTC SEWForCTC
        Data2VecAudioForCTC Wav2Vec2ForSequenceClassification UniSpeechSatForCTC
        Wav2Vec2ConformerForCTC
        """,
    ),
    (
        TWO_TOWERS,
        """
        CLIPModel ChineseCLIPModel BlipForImageTextRetrieval CLIPForImageClassification
        SiglipForImageClassification
        """,
    ),
    (
        {"text_config": TEXT | {"projection_size": 8}, "vision_config": VISION},
        """
        SiglipModel Siglip2Model
        """,
    ),
)

_VLM_VISION: dict[str, Any] = {**VISION, "model_type": "clip_vision_model"}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 8,
    "hidden_size": 8,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 8,
    "intermediate_size": 8,
}
_QWEN_TEXT: dict[str, Any] = {
    **DECODER,
    "num_attention_heads": 1,
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}

_RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    name: settings for settings, names in _SHARED for name in names.split()
} | {
    "MixtralForCausalLM": MIXTURE  # the experts have an order, in which 2 comes before 10
    | {"num_experts": 11, "num_local_experts": 11},
    "LukeForSequenceClassification": TEXT | {"entity_vocab_size": 5, "entity_emb_size": 8},
    "GPTJForCausalLM": TEXT | {"rotary_dim": 4},
    "CodeGenForCausalLM": TEXT | {"num_attention_heads": 4, "rotary_dim": 2},
    "FalconForCausalLM": {k: v for k, v in TEXT.items() if k != "intermediate_size"},
    "GPTNeoForCausalLM": TEXT
    | {"num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
    "DiffLlamaForCausalLM": DECODER | {"num_key_value_heads": 2},
    "Mamba2ForCausalLM": DECODER
    | {"num_heads": 4, "expand": 2, "n_groups": 1, "state_size": 4},
    "BambaForCausalLM": DECODER
    | {"mamba_n_heads": 4, "mamba_d_head": 4, "mamba_n_groups": 1, "mamba_d_state": 4}
    | {"attn_layer_indices": [0]},
    "FalconH1ForCausalLM": DECODER
    | {"mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_state": 4}
    | {"mamba_n_groups": 1, "num_key_value_heads": 2},
    "GraniteMoeHybridForCausalLM": MIXTURE
    | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}
    | {"mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_state": 4, "mamba_n_groups": 1}
    | {"shared_intermediate_size": 8},
    "CTRLLMHeadModel": TEXT | {"dff": 8, "n_positions": 16},
    "SqueezeBertForSequenceClassification": TEXT
    | {"embedding_size": 8, "q_groups": 1, "k_groups": 1, "v_groups": 1}
    | {"post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1},
    "FunnelForSequenceClassification": {
        "vocab_size": 19,
        "block_sizes": [1],
        "d_model": 8,
        "n_head": 2,
        "d_head": 4,
        "d_inner": 8,
        "num_decoder_layers": 1,
    },
    "XLNetForSequenceClassification": {
        "vocab_size": 19,
        "d_model": 8,
        "n_layer": 1,
        "n_head": 2,
        "d_inner": 8,
    },
    "FSMTForConditionalGeneration": ENCODER_DECODER
    | {"src_vocab_size": 19, "tgt_vocab_size": 19},
    "ProphetNetForConditionalGeneration": {
        "vocab_size": 19,
        "hidden_size": 8,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_encoder_attention_heads": 2,
        "num_decoder_attention_heads": 2,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
        "max_position_embeddings": 16,
    },
    "SwitchTransformersForConditionalGeneration": T5
    | {"num_experts": 3, "num_decoder_layers": 1, "num_sparse_encoder_layers": 1}
    | {"num_sparse_decoder_layers": 1},
    "NllbMoeForConditionalGeneration": ENCODER_DECODER
    | {"num_experts": 3, "encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "YolosForObjectDetection": VISION | {"image_size": [8, 8], "num_detection_tokens": 2},
    "SegformerForImageClassification": {
        "num_encoder_blocks": 1,
        "depths": [1],
        "sr_ratios": [1],
        "hidden_sizes": [8],
        "patch_sizes": [3],
        "strides": [2],
        "num_attention_heads": [2],
        "mlp_ratios": [1],
        "decoder_hidden_size": 8,
    },
    "ResNetForImageClassification": _RESNET | {"layer_type": "basic"},
    "RegNetForImageClassification": _RESNET | {"groups_width": 4},
    "BitForImageClassification": _RESNET | {"num_groups": 2},
    "DetrForObjectDetection": ENCODER_DECODER
    | {"backbone_config": _RESNET | {"model_type": "resnet", "out_features": ["stage1"]}}
    | {"backbone": None, "use_timm_backbone": False, "num_queries": 3},
    "EfficientNetForImageClassification": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 320,
        "kernel_sizes": [3],
        "in_channels": [8],
        "out_channels": [8],
        "strides": [1],
        "num_block_repeats": [1],
        "expand_ratios": [2],
    },
    "PoolFormerForImageClassification": {"hidden_sizes": [8], "depths": [1]}
    | {"num_encoder_blocks": 1, "patch_sizes": [3], "strides": [2], "padding": [1]},
    "VivitForVideoClassification": VISION | {"num_frames": 2, "tubelet_size": [2, 4, 4]},
    "ConvNextForImageClassification": {"hidden_sizes": [8], "depths": [1], "num_stages": 1},
    "ConvNextV2ForImageClassification": {"hidden_sizes": [8], "depths": [1], "num_stages": 1},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.1, "image_size": 32},
    "WhisperForConditionalGeneration": ENCODER_DECODER
    | {"num_mel_bins": 4, "max_source_positions": 4, "max_target_positions": 8}
    | {"suppress_tokens": None, "begin_suppress_tokens": None},
    "ASTForAudioClassification": VISION
    | {"num_mel_bins": 8, "max_length": 8, "frequency_stride": 4, "time_stride": 4},
    "WhisperForAudioClassification": ENCODER_DECODER
    | {"num_mel_bins": 4, "max_source_positions": 4, "classifier_proj_size": 8},
    "Speech2TextForConditionalGeneration": ENCODER_DECODER
    | {"input_feat_per_channel": 8, "conv_channels": 8, "max_source_positions": 8}
    | {"max_target_positions": 8},
    "SpeechT5ForSpeechToText": SPEECH
    | {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    | {"speech_decoder_prenet_units": 8, "speech_decoder_postnet_units": 8},
    "LlavaForConditionalGeneration": {
        "text_config": {**DECODER, "model_type": "llama"},
        "vision_config": _VLM_VISION,
        "image_token_index": 3,
        "vision_feature_layer": -1,
    },
    "LlavaNextForConditionalGeneration": {
        "text_config": {**DECODER, "model_type": "mistral"},
        "vision_config": _VLM_VISION,
        "image_token_index": 3,
        "vision_feature_layer": -1,
    },
    "Mistral3ForConditionalGeneration": {
        "text_config": {**DECODER, "model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 4},
        "image_token_index": 3,
    },
    "PaliGemmaForConditionalGeneration": {
        "text_config": {**DECODER, "model_type": "gemma"},
        "vision_config": VISION | {"model_type": "siglip_vision_model", "projection_dim": 8},
        "image_token_id": 3,
        "projection_dim": 8,
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": {**DECODER},
        "vision_config": VISION | {"vision_use_head": False},
        "image_token_id": 3,
        "mm_tokens_per_image": 4,
    },
    "Idefics3ForConditionalGeneration": {
        "text_config": {**DECODER, "model_type": "llama"},
        "vision_config": VISION,
        "image_token_id": 3,
        "scale_factor": 2,
    },
    "SmolVLMForConditionalGeneration": {
        "text_config": {**DECODER, "model_type": "llama"},
        "vision_config": VISION,
        "image_token_id": 3,
        "scale_factor": 2,
    },
    "Qwen2VLForConditionalGeneration": {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VISION,
        "image_token_id": 3,
        "video_token_id": 4,
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VISION | {"fullatt_block_indexes": [0]},
        "image_token_id": 3,
        "video_token_id": 4,
    },
    "Qwen3VLForConditionalGeneration": {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VISION
        | {"num_position_embeddings": 4, "deepstack_visual_indexes": [0]},
        "image_token_id": 3,
        "video_token_id": 4,
    },
    "Qwen3VLMoeForConditionalGeneration": {
        "text_config": {**MIXTURE, **_QWEN_TEXT},
        "vision_config": _QWEN_VISION
        | {"num_position_embeddings": 4, "deepstack_visual_indexes": [0]},
        "image_token_id": 3,
        "video_token_id": 4,
    },
    "VisionEncoderDecoderModel": {
        "encoder": {**VISION, "model_type": "vit"},
        "decoder": {**TEXT, "model_type": "gpt2", "add_cross_attention": True},
    },
    "EncoderDecoderModel": {
        "encoder": {**TEXT, "model_type": "bert"},
        "decoder": {
            **TEXT,
            "model_type": "bert",
            "is_decoder": True,
            "add_cross_attention": True,
        },
    },
    "VisionTextDualEncoderModel": {
        "text_config": {**TEXT, "model_type": "bert"},
        "vision_config": {**VISION, "model_type": "vit"},
        "projection_dim": 8,
    },
}


def build(name: str, **changes: Any) -> PreTrainedModel:
    """A random model of that class in evaluation mode, the same for every call."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model: PreTrainedModel = kind(kind.config_class(**CONFIGURATIONS[name], **changes))
    return model.eval()


def inputs(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """What a forward pass of the class takes; texts alone where images may be left out."""
    ids = torch.tensor([[3, 5, 7, 9]])
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    halved = name.startswith(("MobileNet", "EfficientNet", "Detr", "ResNet", "RegNet", "Bit"))
    pixels = noise(1, 3, 32, 32) if halved else noise(1, 3, 8, 8)
    main = model.main_input_name
    decoder = {"decoder_input_ids": ids}
    if name.startswith("VisionEncoder"):
        return {"pixel_values": pixels, **decoder}
    if main == "pixel_values":
        return {main: noise(1, 2, 3, 8, 8) if "Video" in name else pixels}
    if main == "input_features":
        sound = {main: noise(1, 8, 8) if name.startswith("Speech2") else noise(1, 4, 8)}
        return sound if "Classification" in name else sound | decoder
    if main == "input_values":
        sound = {main: noise(1, 8, 8) if name.startswith("AST") else noise(1, 64)}
        return sound | (decoder if name.startswith("Speech") else {})
    if name.startswith("Longformer"):
        return {"input_ids": torch.tensor([[3, 2, 5, 2, 2, 7]])}
    if name.startswith("Siglip2"):
        patches = {"pixel_values": noise(1, 4, 48), "pixel_attention_mask": torch.ones(1, 4)}
        return {"input_ids": ids, **patches, "spatial_shapes": torch.tensor([[2, 2]])}
    if name.endswith("MultipleChoice"):
        return {"input_ids": ids[None]}
    if name.startswith(("CLIPM", "ChineseCLIP", "Siglip", "Blip", "VisionText")):
        return {"input_ids": ids, "pixel_values": pixels}
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, **decoder}
    cached = name.startswith(
        ("RecurrentGemma", "Qwen3Next", "Jamba")
    )  # of more layers than one
    return {"input_ids": ids, "use_cache": False} if cached else {"input_ids": ids}
