"""Small random models of MoE families, as Hugging Face transformers builds them."""

import torch
import transformers

HIDDEN, FFN, EXPERTS, TOP_K, LAYERS = 32, 16, 8, 2, 3

# What most configurations share. The vocabulary and the attention are as small as they may be.
COMMON = dict(
    vocab_size=16,
    hidden_size=HIDDEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
MLA = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
DSA = dict(**MLA, index_n_heads=2, index_head_dim=16, index_topk=4)
LINEAR = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2)
EXPERT = dict(moe_intermediate_size=FFN, num_experts_per_tok=TOP_K)
DENSE = dict(intermediate_size=24)
V3 = dict(**EXPERT, **DENSE, n_routed_experts=EXPERTS, n_shared_experts=1, routed_scaling_factor=2.5, n_group=4,
          topk_group=2, norm_topk_prob=True)
VISION = dict(depth=1, hidden_size=16, num_heads=2, out_hidden_size=HIDDEN, intermediate_size=16, num_hidden_layers=1,
              num_attention_heads=2)

# By name: the model_type, and what its configuration says beside COMMON.
FAMILIES = {
    "qwen2_moe": ("qwen2_moe", dict(**EXPERT, **DENSE, num_experts=EXPERTS, shared_expert_intermediate_size=40)),
    "olmoe": ("olmoe", dict(num_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "deepseek_v2": ("deepseek_v2", dict(**EXPERT, **DENSE, **MLA, n_routed_experts=EXPERTS, n_shared_experts=2,
                    first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=4, topk_group=2,
                    routed_scaling_factor=1.5)),
    "deepseek_v3": ("deepseek_v3", dict(**V3, **MLA, first_k_dense_replace=1)),
    "deepseek_v32": ("deepseek_v32", dict(**V3, **DSA, first_k_dense_replace=1)),
    "glm4_moe": ("glm4_moe", dict(V3, n_shared_experts=2, first_k_dense_replace=1)),
    "glm_moe_dsa": ("glm_moe_dsa", dict(**V3, **DSA, first_k_dense_replace=1)),
    "glm4_moe_lite": ("glm4_moe_lite", dict(**V3, **MLA)),
    "dots1": ("dots1", dict(**V3, first_k_dense_replace=1)),
    "exaone_moe": ("exaone_moe", dict(**EXPERT, **DENSE, num_experts=EXPERTS, num_shared_experts=1, n_group=4,
                   topk_group=2, routed_scaling_factor=2.5)),
    "solar_open": ("solar_open", dict(V3, n_group=1, topk_group=1)),
    "sarvam_moe": ("sarvam_moe", dict(**EXPERT, **DENSE, num_experts=EXPERTS, num_shared_experts=1, n_group=4, topk_group=2)),
    "bailing_hybrid": ("bailing_hybrid", dict(**DENSE, **MLA, moe_intermediate_size=FFN, num_experts=EXPERTS,
                       num_experts_per_token=TOP_K, num_shared_experts=1, num_expert_group=4, topk_group=2,
                       mlp_layer_types=["dense", "sparse", "sparse"])),
    "mimo_v2_flash": ("mimo_v2_flash", dict(**EXPERT, **DENSE, n_routed_experts=EXPERTS)),
    "minimax_m2": ("minimax_m2", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "qwen3_next": ("qwen3_next", dict(**EXPERT, **DENSE, **LINEAR, num_experts=EXPERTS, shared_expert_intermediate_size=FFN)),
    "qwen3_5_moe": ("qwen3_5_moe_text", dict(**EXPERT, **LINEAR, num_experts=EXPERTS, shared_expert_intermediate_size=FFN)),
    "gpt_oss": ("gpt_oss", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN, swiglu_limit=1.5)),
    "ernie4_5_moe": ("ernie4_5_moe", dict(**DENSE, moe_num_experts=EXPERTS, moe_k=TOP_K, moe_intermediate_size=FFN,
                     moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=-1, moe_layer_interval=1)),
    "nemotron_h": ("nemotron_h", dict(**V3, layers_block_type=["moe", "mlp", "moe"], moe_shared_expert_intermediate_size=24,
                   mamba_num_heads=2, mamba_head_dim=8, ssm_state_size=8, n_groups=1)),
    "llama4": ("llama4_text", dict(num_local_experts=EXPERTS, intermediate_size=FFN, intermediate_size_mlp=24,
               interleave_moe_layer_step=2)),
    "deepseek_v4": ("deepseek_v4", dict(**EXPERT, n_routed_experts=EXPERTS, n_shared_experts=1, swiglu_limit=1.0,
                    mlp_layer_types=["moe", "moe", "moe"])),
    "minimax_m3": ("minimax_m3_vl_text", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN,
                   shared_intermediate_size=24, swiglu_limit=1.5, routed_scaling_factor=2.0)),
    "qwen3_vl_moe": ("qwen3_vl_moe", dict(text_config=dict(COMMON, **EXPERT, **DENSE, num_experts=EXPERTS,
                     rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])),
                     vision_config=dict(VISION, deepstack_visual_indexes=[0]))),
    "glm4v_moe": ("glm4v_moe", dict(text_config=dict(COMMON, **V3, first_k_dense_replace=1,
                  rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])), vision_config=dict(VISION))),
    "gemma4": ("gemma4_text", dict(**DENSE, enable_moe_block=True, num_experts=EXPERTS, top_k_experts=TOP_K,
               moe_intermediate_size=FFN, hidden_size_per_layer_input=8, vocab_size_per_layer_input=16)),
    "jamba": ("jamba", dict(num_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN, expert_layer_period=2,
              expert_layer_offset=0, attn_layer_period=1, attn_layer_offset=0, use_mamba_kernels=False)),
    "lfm2_moe": ("lfm2_moe", dict(**EXPERT, **DENSE, num_experts=EXPERTS, num_dense_layers=1,
                 layer_types=["full_attention"] * LAYERS)),
    "hy_v3": ("hy_v3", dict(**EXPERT, **DENSE, num_experts=EXPERTS, num_shared_experts=1)),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", dict(num_experts=EXPERTS, moe_topk=TOP_K, intermediate_size=FFN)),
    "mellum": ("mellum", dict(**EXPERT, **DENSE, num_experts=EXPERTS)),
    "laguna": ("laguna", dict(**EXPERT, **DENSE, num_experts=EXPERTS, shared_expert_intermediate_size=FFN)),
    "afmoe": ("afmoe", dict(**EXPERT, **DENSE, num_experts=EXPERTS, num_dense_layers=1)),
    "granitemoe": ("granitemoe", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "granitemoeshared": ("granitemoeshared", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN,
                         shared_intermediate_size=24)),
    "minimax": ("minimax", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "flex_olmo": ("flex_olmo", dict(num_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "cohere2_moe": ("cohere2_moe", dict(**EXPERT, **DENSE, num_experts=EXPERTS)),
    "kimi_linear": ("kimi_linear", dict(**EXPERT, **DENSE, **MLA, num_experts=EXPERTS)),
    "axk2": ("axk2", dict(**V3, **MLA)),
    "aria": ("aria_text", dict(moe_num_experts=EXPERTS, moe_topk=TOP_K, intermediate_size=FFN, moe_num_shared_experts=2)),
    "hy_v4": ("hy_v4", dict(**V3)),
    "sarvam_mla": ("sarvam_mla", dict(**EXPERT, **DENSE, **MLA, num_experts=EXPERTS, num_shared_experts=1, n_group=1, topk_group=1)),
    "granitemoehybrid": ("granitemoehybrid", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN,
                         shared_intermediate_size=24, layer_types=["full_attention"] * LAYERS, mamba_n_heads=2)),
    "dots3_note": ("dots3_note", dict(text_config=dict(COMMON, **V3, **DSA, shared_experts_intermediate_size=24),
                   vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, adapter_in_dim=16, adapter_out_dim=HIDDEN,
                   mlp_layer_types=["dense"]), audio_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                   adapter_input_size=16, adapter_out_dim=HIDDEN))),
    "axk1": ("axk1", dict(**V3, **MLA)),
    "mistral4": ("mistral4", dict(**V3, **MLA, first_k_dense_replace=1)),
    "qwen4_exp": ("qwen4_exp_text", dict(**EXPERT, **LINEAR, num_experts=EXPERTS, shared_expert_intermediate_size=FFN)),
    "openai_privacy_filter": ("openai_privacy_filter", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K,
                              intermediate_size=FFN, swiglu_limit=1.5)),
    "jetmoe": ("jetmoe", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "phimoe": ("phimoe", dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=FFN)),
    "dbrx": ("dbrx", dict(d_model=HIDDEN, n_heads=2, n_layers=LAYERS, attn_config=dict(kv_n_heads=2, rope_theta=1e4),
             ffn_config=dict(ffn_hidden_size=FFN, moe_num_experts=EXPERTS, moe_top_k=TOP_K))),
    "longcat_flash": ("longcat_flash", dict(**MLA, moe_topk=3, n_routed_experts=EXPERTS, zero_expert_num=4,
                      expert_ffn_hidden_size=FFN, ffn_hidden_size=24, num_hidden_layers=4)),
    "glm5_next": ("glm5_next", dict(text_config=dict(COMMON, **V3, swiglu_limit=1.0, layer_types=["linear_attention"] * LAYERS,
                  linear_head_dim=8, linear_num_heads=2, mlp_layer_types=["dense", "sparse", "sparse"]), vision_config=dict(VISION))),
    "mistral_large4": ("mistral_large4", dict(text_config=dict(COMMON, **V3, **DSA), vision_config=dict(VISION))),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe_thinker", dict(text_config=dict(COMMON, **EXPERT, **DENSE, num_experts=EXPERTS),
                               vision_config=dict(VISION), audio_config=dict())),
    "hy_v4_vl": ("hy_v4_vl", dict(text_config=dict(COMMON, **V3, swiglu_limit=1.0), vision_config=dict(VISION))),
    "ernie4_5_vl_moe": ("ernie4_5_vl_moe", dict(text_config=dict(COMMON, **DENSE, moe_num_experts=EXPERTS, moe_k=TOP_K,
                        moe_intermediate_size=[FFN, 8], moe_num_shared_experts=2,
                        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])), vision_config=dict(VISION),
                        image_token_id=2, image_start_token_id=7, image_end_token_id=12, video_token_id=15, video_start_token_id=4,
                        video_end_token_id=9)),
    "step3p7": ("step3p7", dict(text_config=dict(COMMON, **EXPERT, **DENSE, n_routed_experts=EXPERTS, share_expert_dim=24,
                moe_router_scaling_factor=2.0, swiglu_limits=[None, 0.0, 0.5], swiglu_limits_shared=[None, 0.3, 0.0],
                moe_layers_enum="1,2", pad_token_id=0), vision_config=dict(VISION))),
    "kimi_k2": ("deepseek_v3", dict(V3, **MLA, n_group=1, topk_group=1, first_k_dense_replace=1)),
    "kimi_k25": ("kimi_k25", dict(text_config=dict(COMMON, **V3, **MLA, model_type="deepseek_v3", first_k_dense_replace=1),
                 vision_config=dict(VISION))),
    "kimi_k25-saved": ("kimi_k25", dict(text_config=dict(COMMON, **dict(V3, norm_topk_prob=False), **MLA, model_type="deepseek_v3",
                       first_k_dense_replace=1), vision_config=dict(VISION))),
    "internvl": ("internvl", dict(text_config=dict(COMMON, **EXPERT, **DENSE, model_type="qwen3_moe", num_experts=EXPERTS),
                 vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[28, 28]))),
}

# The same families with what is rare in config.json.
UNUSUAL = {
    "nemotron_h-biased": ("nemotron_h", dict(mlp_bias=True, n_group=1, topk_group=1, num_experts_per_tok=1)),
    "nemotron_h-latent": ("nemotron_h", dict(moe_latent_size=20)),
    "nemotron_h-latent_biased": ("nemotron_h", dict(mlp_bias=True, moe_latent_size=8, hidden_size=40, n_shared_experts=0)),
    "lfm2_moe-unbiased": ("lfm2_moe", dict(use_expert_bias=False, num_dense_layers=1, routed_scaling_factor=1.7)),
    "hunyuan_v1_moe-lists": ("hunyuan_v1_moe", dict(moe_topk=[1, 1, 1], num_shared_expert=[2, 2, 2], hidden_size=40)),
    "deepseek_v4-scaled": ("deepseek_v4", dict(n_shared_experts=2, num_experts_per_tok=1, routed_scaling_factor=1.0)),
    "deepseek_v4-hash": ("deepseek_v4", dict(mlp_layer_types=["hash_moe", "hash_moe", "moe"])),
    "laguna-capped": ("laguna", dict(moe_router_logit_softcapping=2.0, moe_routed_scaling_factor=1.5)),
    "dbrx-root": ("dbrx", dict(ffn_config=dict(ffn_hidden_size=FFN, moe_num_experts=5, moe_top_k=2,
                  moe_normalize_expert_weights=2.0))),
    "aria-biased": ("aria", dict(mlp_bias=True, moe_topk=1)),
}

# Families that are saved under other names than those that transformers has in memory; here as it has them there.
FUSED_NAMES = ["ernie4_5_vl_moe", "longcat_flash", "aria", "deepseek_v4-hash", "ernie4_5_moe", "granitemoeshared", "hy_v3", "hy_v4",
               "kimi_linear", "nemotron_h-latent"]
UNUSUAL |= {f"{name}-fused": UNUSUAL.get(name, (name, {})) for name in FUSED_NAMES}
for _name, (_family, _more) in UNUSUAL.items():
    FAMILIES[_name] = (FAMILIES[_family][0], {**FAMILIES[_family][1], **_more})

# Saved as transformers has them in memory.
FUSED = {f"{name}-fused" for name in FUSED_NAMES}

# Checkpoints of other stored types: a family's, its sizes, and the form of quantise.py or a dtype.
QUANTISED = {
    "deepseek_v3-fp8": ("deepseek_v3", "fp8", dict(hidden_size=160, moe_intermediate_size=136, n_routed_experts=4, n_group=2,
                        topk_group=1, num_hidden_layers=2)),
    "qwen2_moe-fp8_channel": ("qwen2_moe", "fp8_channel", dict(num_hidden_layers=2)),
    "nemotron_h-latent-fp8_channel": ("nemotron_h-latent", "fp8_channel", dict(moe_latent_size=24, mlp_bias=True)),
    "qwen2_moe-int8": ("qwen2_moe", "int8", dict(num_hidden_layers=2)),
    "qwen2_moe-int8_packed": ("qwen2_moe", "int8_packed", dict(hidden_size=64, moe_intermediate_size=32,
                              shared_expert_intermediate_size=64, num_experts=4, num_hidden_layers=2)),
    "qwen2_moe-int4": ("qwen2_moe", "int4", dict(hidden_size=96, moe_intermediate_size=32, shared_expert_intermediate_size=64,
                       num_experts=4, num_hidden_layers=2)),
    "gpt_oss-mxfp4": ("gpt_oss", "mxfp4", dict(hidden_size=96, intermediate_size=64, num_local_experts=4, num_hidden_layers=2)),
    "ernie4_5_vl_moe-fp8_channel": ("ernie4_5_vl_moe", "fp8_channel", {}),
    "qwen2_moe-f16": ("qwen2_moe", torch.float16, dict(num_hidden_layers=2)),
    "qwen2_moe-f32": ("qwen2_moe", torch.float32, dict(num_hidden_layers=2)),
}
for _name, (_family, _form, _sizes) in QUANTISED.items():
    FAMILIES[_name] = (FAMILIES[_family][0], {**FAMILIES[_family][1], **_sizes})


# As publishers write them where transformers has another class for the same block, or writes other names: what config.json says
# (in text_config, if there is one) and how names of tensors begin.
PUBLISHED = {
    "kimi_k2": (dict(model_type="kimi_k2", moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc", ep_size=1,
                     seq_aux=True, aux_loss_alpha=0.001), {}),
    "kimi_k25": (dict(model_type="kimi_k2", moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc"),
                 {"language_model.model.blocks.": "language_model.model.layers."}),
}


# Of these the bare block alone makes sense.
bare_only = {"deepseek_v4", "glm5_next", "gemma4", "granitemoe", "granitemoeshared", "granitemoehybrid", "minimax", "flex_olmo",
             "cohere2_moe", "axk2", "afmoe", "hy_v4", "hy_v4_vl", "qwen4_exp", "phimoe", "dbrx", "longcat_flash"}
bare_only |= {name for name in FAMILIES if name.split("-")[0] in bare_only}


def norm_offset(name):
    return 1 if name in ("qwen3_next", "qwen3_5_moe", "minimax_m3", "step3p7") else 0


def build(name):
    model_type, more = FAMILIES[name]
    nested = "text_config" in more
    config = transformers.AutoConfig.for_model(model_type, **(more if nested else {**COMMON, **more}))
    form = QUANTISED.get(name, (None, None))[1]
    return auto(name).from_config(config, dtype=form if isinstance(form, torch.dtype) else torch.bfloat16)


def auto(name):
    others = {"mistral4": "AutoModelForImageTextToText", "openai_privacy_filter": "AutoModelForTokenClassification",
              "qwen3_omni_moe_thinker": "AutoModelForMultimodalLM"}
    if name in others:
        return getattr(transformers, others[name])
    nested = "text_config" in FAMILIES[name][1]
    return transformers.AutoModelForImageTextToText if nested else transformers.AutoModelForCausalLM


def load(name, directory):
    return auto(name).from_pretrained(directory, dtype=torch.float32).eval()


def inner(model):
    """The module that holds the layers."""
    for candidate in (model, getattr(model, "model", None), getattr(model, "backbone", None), getattr(model, "transformer", None)):
        if hasattr(candidate, "layers") or hasattr(candidate, "blocks"):
            return candidate
    return model.model.language_model
