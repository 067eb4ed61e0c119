"""Small models of every architecture family of transformers, from their configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from architectures.entries import First, Inputs, numbers, register, tokens
from architectures.libraries import load

Tensor = torch.Tensor
V = 60  # words
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "head_dim", "use_cache")}
EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "experts_implementation": "eager",
}


def _next(net: nn.Module, x: Tensor) -> Tensor:
    """Logits of the word after the last."""
    return net(input_ids=x).logits[:, -1]  # type: ignore[no-any-return]


def _states(net: nn.Module, x: Tensor) -> Tensor:
    """The first token's last state."""
    return net(input_ids=x).last_hidden_state[:, 0]  # type: ignore[no-any-return]


def _classes(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).logits  # type: ignore[no-any-return]


def _made(kind: str, config: str, given: dict[str, Any]) -> nn.Module:
    transformers = load("transformers")
    return getattr(transformers, kind)(getattr(transformers, config)(**given))  # type: ignore[no-any-return]


def _enter(  # noqa: PLR0917
    name: str,
    kind: str,
    config: str,
    given: dict[str, Any],
    read: Callable[[nn.Module, Tensor], Tensor],
    inputs: Inputs,
    **more: Any,
) -> None:
    few = None if "outputs" in more else 3
    register(f"transformers/{name}", inputs, "transformers", **more)(
        lambda: First(_made(kind, config, given), read, few)
    )


def _causal(name: str, family: str, given: dict[str, Any], sizes: dict[str, Any] = SIZES, **more: Any) -> None:
    _enter(name, f"{family}ForCausalLM", f"{family}Config", {**sizes, **given}, _next, tokens(7, V), **more)


GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}
_enter("GPT-2", "GPT2LMHeadModel", "GPT2Config", GPT2, _next, tokens(7, V))
_enter(
    "GPT-2, one logit of 8,000",
    "GPT2LMHeadModel",
    "GPT2Config",
    {**GPT2, "vocab_size": 8000},
    _next,
    tokens(7, 8000),
    outputs=5,
)
_enter("GPT-J", "GPTJForCausalLM", "GPTJConfig", {**GPT2, "rotary_dim": 4}, _next, tokens(7, V))
_enter(
    "GPT-Neo",
    "GPTNeoForCausalLM",
    "GPTNeoConfig",
    {**SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    _next,
    tokens(7, V),
)
_causal("GPT-NeoX", "GPTNeoX", {})
_causal("OPT", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32})
_causal("BLOOM", "Bloom", {"n_layer": 2, "n_head": 4})
_causal(
    "Falcon",
    "Falcon",
    {"alibi": False, "new_decoder_architecture": False, "multi_query": True},
    {name: value for name, value in SIZES.items() if name != "head_dim"},
)
_causal("Llama", "Llama", {"tie_word_embeddings": False})
_causal("Llama, tied", "Llama", {"tie_word_embeddings": True})
_causal("Mistral", "Mistral", {"sliding_window": 4})
_causal("Qwen2", "Qwen2", {})
_causal("Qwen3", "Qwen3", {})
_causal("Gemma 2", "Gemma2", {"query_pre_attn_scalar": 8}, tolerance=1e-6)
_causal("Phi", "Phi", {"num_key_value_heads": 4})
_causal("Phi-3", "Phi3", {"rope_scaling": None})
_causal("StableLM", "StableLm", {})
_causal("OLMo 2", "Olmo2", {})
_causal("Mixtral", "Mixtral", EXPERTS)
_causal("Qwen2-MoE", "Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 24})
_causal("OLMoE", "Olmoe", EXPERTS)
_causal("GPT-OSS", "GptOss", {**EXPERTS, "sliding_window": 4})
_causal(
    "DeepSeek-V3",
    "DeepseekV3",
    {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "experts_implementation": "eager",
    },
)
_causal("Mamba", "Mamba", {"state_size": 4, "time_step_rank": 4})
_causal(
    "Mamba 2",
    "Mamba2",
    {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    tolerance=1e-6,
)
_causal("RWKV", "Rwkv", {"attention_hidden_size": 32, "context_length": 32, "rescale_every": 0})
_causal("RecurrentGemma", "RecurrentGemma", {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3})

_enter("BERT", "BertModel", "BertConfig", ENCODER, _states, tokens(7, V))
_enter("BERT, masked words", "BertForMaskedLM", "BertConfig", ENCODER, _next, tokens(7, V))
_enter("RoBERTa", "RobertaModel", "RobertaConfig", ENCODER, _states, tokens(7, V))
_enter("ELECTRA", "ElectraModel", "ElectraConfig", {**ENCODER, "embedding_size": 16}, _states, tokens(7, V))
_enter("ALBERT", "AlbertModel", "AlbertConfig", {**ENCODER, "embedding_size": 16}, _states, tokens(7, V))
_enter("MPNet", "MPNetModel", "MPNetConfig", ENCODER, _states, tokens(7, V))
_enter(
    "DeBERTa-v2",
    "DebertaV2Model",
    "DebertaV2Config",
    {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    _states,
    tokens(7, V),
)
_enter("ModernBERT", "ModernBertModel", "ModernBertConfig", {**ENCODER, "local_attention": 4}, _states, tokens(7, V))
_enter(
    "MobileBERT",
    "MobileBertModel",
    "MobileBertConfig",
    {**ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16},
    _states,
    tokens(7, V),
)
_enter("FNet", "FNetModel", "FNetConfig", {**ENCODER, "tpu_short_seq_length": 7}, _states, tokens(7, V))
_enter("RoFormer", "RoFormerModel", "RoFormerConfig", {**ENCODER, "embedding_size": 32}, _states, tokens(7, V))
_enter(
    "ConvBERT",
    "ConvBertModel",
    "ConvBertConfig",
    {**ENCODER, "embedding_size": 16, "conv_kernel_size": 3},
    _states,
    tokens(7, V),
)
_enter(
    "Funnel",
    "FunnelBaseModel",
    "FunnelConfig",
    {"vocab_size": V, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]},
    _states,
    tokens(8, V),
)
_enter(
    "DistilBERT",
    "DistilBertModel",
    "DistilBertConfig",
    {"vocab_size": V, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32},
    _states,
    tokens(7, V),
)
_enter(
    "XLNet",
    "XLNetModel",
    "XLNetConfig",
    {"vocab_size": V, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    _states,
    tokens(7, V),
)


def _translate(net: nn.Module, x: Tensor) -> Tensor:
    """Logits of the next word of a translation that begins like the text."""
    return net(input_ids=x, decoder_input_ids=x[:, :3], use_cache=False).logits[:, -1]  # type: ignore[no-any-return]


T5 = {
    "vocab_size": V,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": V,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
}
_enter("T5", "T5ForConditionalGeneration", "T5Config", T5, _translate, tokens(7, V))
_enter(
    "T5 v1.1, untied",
    "T5ForConditionalGeneration",
    "T5Config",
    {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    _translate,
    tokens(7, V),
)
_enter(
    "Switch Transformer",
    "SwitchTransformersForConditionalGeneration",
    "SwitchTransformersConfig",
    {**T5, "num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    _translate,
    tokens(7, V),
    tolerance=1e-6,
)
_enter("BART", "BartForConditionalGeneration", "BartConfig", BART, _translate, tokens(7, V))
_enter("PEGASUS", "PegasusForConditionalGeneration", "PegasusConfig", BART, _translate, tokens(7, V))


def _transcribe(net: nn.Module, x: Tensor) -> Tensor:
    """Logits of the first word of a transcript."""
    start = torch.ones(len(x), 1, dtype=torch.long)
    return net(input_features=x, decoder_input_ids=start, use_cache=False).logits[:, -1]  # type: ignore[no-any-return]


def _heard(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).last_hidden_state.mean(1)  # type: ignore[no-any-return]


WAVES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
_enter(
    "Whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    {
        **BART,
        "num_mel_bins": 8,
        "max_source_positions": 10,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
    _transcribe,
    numbers(8, 20),
)
_enter("wav2vec 2.0", "Wav2Vec2Model", "Wav2Vec2Config", WAVES, _heard, numbers(400))
_enter("HuBERT", "HubertModel", "HubertConfig", WAVES, _heard, numbers(400))
_enter(
    "Audio spectrogram transformer",
    "ASTModel",
    "ASTConfig",
    {
        **{k: v for k, v in ENCODER.items() if "token" not in k and k != "vocab_size"},
        "num_mel_bins": 16,
        "max_length": 24,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
    },
    lambda net, x: net(x).pooler_output,
    numbers(24, 16),
)

IMAGES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
}
_enter("ViT", "ViTForImageClassification", "ViTConfig", IMAGES, _classes, numbers(3, 32, 32))
_enter(
    "BEiT",
    "BeitForImageClassification",
    "BeitConfig",
    {**IMAGES, "use_relative_position_bias": True},
    _classes,
    numbers(3, 32, 32),
)
_enter("DINOv2", "Dinov2ForImageClassification", "Dinov2Config", IMAGES, _classes, numbers(3, 32, 32))
_enter(
    "CLIP, images",
    "CLIPVisionModel",
    "CLIPVisionConfig",
    IMAGES,
    lambda net, x: net(x).pooler_output,
    numbers(3, 32, 32),
)
_enter(
    "SigLIP, images",
    "SiglipVisionModel",
    "SiglipVisionConfig",
    IMAGES,
    lambda net, x: net(x).pooler_output,
    numbers(3, 32, 32),
)
_enter(
    "ConvNeXt V2",
    "ConvNextV2ForImageClassification",
    "ConvNextV2Config",
    {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "num_labels": 3},
    _classes,
    numbers(3, 32, 32),
)
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [4, 2],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "num_labels": 3,
}
_enter(
    "SegFormer",
    "SegformerForImageClassification",
    "SegformerConfig",
    PYRAMID,
    _classes,
    numbers(3, 32, 32),
)
_enter(
    "PVT v2",
    "PvtV2ForImageClassification",
    "PvtV2Config",
    PYRAMID | {"image_size": 32},
    _classes,
    numbers(3, 32, 32),
)
_enter(
    "Perceiver",
    "PerceiverForSequenceClassification",
    "PerceiverConfig",
    {
        "vocab_size": V,
        "num_latents": 8,
        "d_latents": 16,
        "d_model": 16,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "max_position_embeddings": 32,
        "num_labels": 3,
    },
    _classes,
    tokens(7, V),
)
_enter(
    "PatchTST",
    "PatchTSTForPrediction",
    "PatchTSTConfig",
    {
        "num_input_channels": 2,
        "context_length": 32,
        "patch_length": 8,
        "patch_stride": 8,
        "prediction_length": 2,
        "d_model": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    lambda net, x: net(past_values=x).prediction_outputs,
    numbers(32, 2),
)
