/**
 * What a key is that config.json does not have, by model_type: as the configuration classes of transformers 5.24.0 have it, of nested
 * models those of the language model. Written by scripts/make-family-defaults.py.
 */
// biome-ignore format: one type is one paragraph
export const defaults: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  afmoe: {
    vocab_size: 200192, hidden_size: 2048, intermediate_size: 6144, moe_intermediate_size: 1408,
    num_hidden_layers: 32, num_dense_layers: 1, hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts: 64,
    num_experts_per_tok: 6, num_shared_experts: 2, route_scale: 1.0,
  },
  aria: {
    vocab_size: 32000, hidden_size: 4096, intermediate_size: 4096, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, moe_num_experts: 8, moe_topk: 2, moe_num_shared_experts: 2,
  },
  axk1: {
    vocab_size: 163840, hidden_size: 7168, intermediate_size: 18432, moe_intermediate_size: 2048,
    num_hidden_layers: 61, n_shared_experts: 1, n_routed_experts: 192, routed_scaling_factor: 2.5,
    n_group: 8, topk_group: 4, num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-06, first_k_dense_replace: 1,
  },
  axk2: {
    vocab_size: 163840, hidden_size: 2048, intermediate_size: 5120, moe_intermediate_size: 512,
    num_hidden_layers: 48, n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 2.5,
    num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu', rms_norm_eps: 1e-06,
    first_k_dense_replace: 1,
  },
  bailing_hybrid: {
    vocab_size: 157184, hidden_size: 2560, intermediate_size: 6144, moe_intermediate_size: 768,
    num_hidden_layers: 42, n_shared_experts: 1, routed_scaling_factor: 2.5, n_group: 8, topk_group: 4,
    num_experts_per_tok: 8, first_k_dense_replace: 2, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-06, num_local_experts: 512,
  },
  cohere2_moe: {
    vocab_size: 256000, hidden_size: 8192, intermediate_size: 22528, num_hidden_layers: 40,
    hidden_act: 'silu', num_experts_per_tok: 2, num_experts: 8, num_shared_experts: 0,
    shared_expert_combination_strategy: 'average', expert_selection_fn: 'softmax', norm_topk_prob: true,
  },
  dbrx: {
    d_model: 2048, n_layers: 24, vocab_size: 32000, ffn_config: { hidden_size: 2048, ffn_act_fn: {
    name: 'silu' }, ffn_hidden_size: 3584, moe_num_experts: 4, moe_top_k: 1,
    moe_normalize_expert_weights: 1.0 },
  },
  deepseek_v2: {
    vocab_size: 102400, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, first_k_dense_replace: 0, n_routed_experts: 64,
    n_shared_experts: 2, routed_scaling_factor: 1.0, topk_method: 'greedy', norm_topk_prob: false,
    moe_intermediate_size: 1407,
  },
  deepseek_v3: {
    vocab_size: 129280, hidden_size: 7168, intermediate_size: 18432, moe_intermediate_size: 2048,
    num_hidden_layers: 61, n_shared_experts: 1, n_routed_experts: 256, routed_scaling_factor: 2.5,
    n_group: 8, topk_group: 4, num_experts_per_tok: 8, first_k_dense_replace: 3, norm_topk_prob: true,
    hidden_act: 'silu', rms_norm_eps: 1e-06,
  },
  deepseek_v32: {
    vocab_size: 129280, hidden_size: 7168, intermediate_size: 18432, moe_intermediate_size: 2048,
    num_hidden_layers: 61, n_shared_experts: 1, n_routed_experts: 256, routed_scaling_factor: 2.5,
    n_group: 8, topk_group: 4, num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-06, first_k_dense_replace: 3,
  },
  deepseek_v4: {
    vocab_size: 129280, hidden_size: 4096, moe_intermediate_size: 2048, num_hidden_layers: 43,
    num_experts_per_tok: 6, n_routed_experts: 256, n_shared_experts: 1, scoring_func: 'sqrtsoftplus',
    norm_topk_prob: true, routed_scaling_factor: 1.5, swiglu_limit: 10.0, router_jitter_noise: 0.0,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_hash_layers: 3,
  },
  dots1: {
    vocab_size: 152064, hidden_size: 4608, intermediate_size: 10944, moe_intermediate_size: 1408,
    num_hidden_layers: 62, n_group: 1, topk_group: 1, first_k_dense_replace: 0, norm_topk_prob: false,
    hidden_act: 'silu', rms_norm_eps: 1e-06, routed_scaling_factor: 1.0,
  },
  dots3_note: {
    vocab_size: 152064, hidden_size: 5120, intermediate_size: 13824, moe_intermediate_size: 1536,
    num_hidden_layers: 46, n_shared_experts: 1, n_routed_experts: 256, routed_scaling_factor: 1.0,
    n_group: 1, topk_group: 1, num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-05, shared_experts_intermediate_size: 1536, first_k_dense_replace: 1,
  },
  ernie4_5_moe: {
    vocab_size: 103424, hidden_size: 2560, intermediate_size: 12288, num_hidden_layers: 28,
    hidden_act: 'silu', rms_norm_eps: 1e-05, moe_intermediate_size: 1536, moe_k: 6, moe_num_experts: 64,
    moe_num_shared_experts: 2, moe_layer_start_index: 1, moe_layer_end_index: -1, moe_layer_interval: 1,
  },
  ernie4_5_moe_vl: {
    vocab_size: 103424, hidden_size: 2560, intermediate_size: 12288, num_hidden_layers: 28,
    hidden_act: 'silu', rms_norm_eps: 1e-05, moe_intermediate_size: [1536, 512], moe_k: 6,
    moe_num_experts: 64, moe_num_shared_experts: 2, first_k_dense_replace: 1,
  },
  ernie4_5_vl_moe: {
    vocab_size: 103424, hidden_size: 2560, intermediate_size: 12288, num_hidden_layers: 28,
    hidden_act: 'silu', rms_norm_eps: 1e-05, moe_intermediate_size: [1536, 512], moe_k: 6,
    moe_num_experts: 64, moe_num_shared_experts: 2, first_k_dense_replace: 1,
  },
  exaone_moe: {
    vocab_size: 102400, hidden_size: 4096, intermediate_size: 16384, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-05, first_k_dense_replace: 1, moe_intermediate_size: 1024,
    num_experts: 64, num_experts_per_tok: 8, num_shared_experts: 1, norm_topk_prob: true,
    routed_scaling_factor: 2.5, n_group: 1, topk_group: 1,
  },
  flex_olmo: {
    vocab_size: 100352, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_experts_per_tok: 5, num_experts: 7, norm_topk_prob: false,
  },
  gemma4: {
    vocab_size: 262144, hidden_size: 2304, intermediate_size: 9216, num_hidden_layers: 30,
    hidden_activation: 'gelu_pytorch_tanh', rms_norm_eps: 1e-06, enable_moe_block: false,
  },
  glm4_moe: {
    vocab_size: 151552, hidden_size: 4096, intermediate_size: 10944, num_hidden_layers: 46,
    hidden_act: 'silu', rms_norm_eps: 1e-05, moe_intermediate_size: 1408, num_experts_per_tok: 8,
    n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 1.0, n_group: 1, topk_group: 1,
    first_k_dense_replace: 1, norm_topk_prob: true,
  },
  glm4_moe_lite: {
    vocab_size: 154880, hidden_size: 2048, intermediate_size: 10240, moe_intermediate_size: 1536,
    num_hidden_layers: 47, n_shared_experts: 1, n_routed_experts: 64, routed_scaling_factor: 1.8,
    n_group: 1, topk_group: 1, num_experts_per_tok: 4, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-05, first_k_dense_replace: 1,
  },
  glm4v_moe: {
    vocab_size: 151424, hidden_size: 4096, intermediate_size: 10944, num_hidden_layers: 46,
    hidden_act: 'silu', rms_norm_eps: 1e-05, moe_intermediate_size: 1408, num_experts_per_tok: 8,
    n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 1.0, n_group: 1, topk_group: 1,
    first_k_dense_replace: 1, norm_topk_prob: true,
  },
  glm5_next: {
    vocab_size: 154880, hidden_size: 4096, intermediate_size: 12288, moe_intermediate_size: 2048,
    num_hidden_layers: 45, n_shared_experts: 1, n_routed_experts: 288, routed_scaling_factor: 2.5,
    n_group: 1, topk_group: 1, num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-05, swiglu_limit: 10.0, first_k_dense_replace: 3,
  },
  glm_moe_dsa: {
    vocab_size: 154880, hidden_size: 6144, intermediate_size: 12288, moe_intermediate_size: 2048,
    num_hidden_layers: 78, n_shared_experts: 1, n_routed_experts: 256, routed_scaling_factor: 2.5,
    n_group: 1, topk_group: 1, num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu',
    rms_norm_eps: 1e-05, first_k_dense_replace: 3,
  },
  gpt_oss: {
    num_hidden_layers: 36, num_local_experts: 128, vocab_size: 201088, hidden_size: 2880,
    intermediate_size: 2880, hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 4,
    swiglu_alpha: 1.702, swiglu_limit: 7.0,
  },
  granitemoe: {
    vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_local_experts: 8, num_experts_per_tok: 2,
  },
  granitemoehybrid: {
    vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_local_experts: 8, num_experts_per_tok: 2,
    shared_intermediate_size: 1024,
  },
  granitemoeshared: {
    vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_local_experts: 8, num_experts_per_tok: 2,
    shared_intermediate_size: 0,
  },
  hunyuan_v1_moe: {
    vocab_size: 290943, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts: 1, moe_topk: 1,
  },
  hy_v3: {
    vocab_size: 120832, hidden_size: 4096, intermediate_size: 13312, num_hidden_layers: 80,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts: 192, num_experts_per_tok: 8,
    num_shared_experts: 1, moe_intermediate_size: 1536, router_scaling_factor: 2.826,
    first_k_dense_replace: 1,
  },
  hy_v4: {
    vocab_size: 120832, hidden_size: 2816, intermediate_size: 6912, moe_intermediate_size: 768,
    num_hidden_layers: 34, hidden_act: 'silu', rms_norm_eps: 1e-05, n_routed_experts: 256,
    n_shared_experts: 1, num_experts_per_tok: 8, routed_scaling_factor: 2.827, norm_topk_prob: true,
    n_group: 1, topk_group: 1, swiglu_limit: 10.0, first_k_dense_replace: 1,
  },
  hy_v4_vl: {
    vocab_size: 120832, hidden_size: 6144, intermediate_size: 18432, moe_intermediate_size: 2048,
    num_hidden_layers: 78, hidden_act: 'silu', rms_norm_eps: 1e-05, n_routed_experts: 256,
    n_shared_experts: 1, num_experts_per_tok: 8, routed_scaling_factor: 2.827, norm_topk_prob: true,
    n_group: 1, topk_group: 1, swiglu_limit: 10.0, first_k_dense_replace: 1,
  },
  jamba: {
    vocab_size: 65536, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_experts_per_tok: 2, num_experts: 16,
    expert_layer_period: 2, expert_layer_offset: 1,
  },
  jetmoe: {
    vocab_size: 32000, hidden_size: 2048, num_hidden_layers: 12, intermediate_size: 5632,
    activation_function: 'silu', num_local_experts: 8, num_experts_per_tok: 2, rms_norm_eps: 1e-06,
  },
  kimi_k2: {
    vocab_size: 129280, hidden_size: 7168, intermediate_size: 18432, moe_intermediate_size: 2048,
    num_hidden_layers: 61, n_shared_experts: 1, n_routed_experts: 256, routed_scaling_factor: 2.5,
    n_group: 8, topk_group: 4, num_experts_per_tok: 8, first_k_dense_replace: 3, norm_topk_prob: true,
    hidden_act: 'silu', rms_norm_eps: 1e-06,
  },
  kimi_k25: {
    vocab_size: 129280, hidden_size: 7168, intermediate_size: 18432, moe_intermediate_size: 2048,
    num_hidden_layers: 61, n_shared_experts: 1, n_routed_experts: 256, routed_scaling_factor: 2.5,
    n_group: 8, topk_group: 4, num_experts_per_tok: 8, first_k_dense_replace: 3, norm_topk_prob: true,
    hidden_act: 'silu', rms_norm_eps: 1e-06,
  },
  kimi_linear: {
    vocab_size: 163840, hidden_size: 2304, intermediate_size: 9216, moe_intermediate_size: 1024,
    num_hidden_layers: 27, n_shared_experts: 1, routed_scaling_factor: 2.446, n_group: 1, topk_group: 1,
    num_experts_per_tok: 8, norm_topk_prob: true, hidden_act: 'silu', rms_norm_eps: 1e-05,
    num_local_experts: 256, first_k_dense_replace: 1,
  },
  laguna: {
    vocab_size: 100352, hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 40,
    hidden_act: 'silu', rms_norm_eps: 1e-06, moe_intermediate_size: 512,
    shared_expert_intermediate_size: 512, num_experts_per_tok: 8, num_experts: 256,
    moe_routed_scaling_factor: 1.0, moe_apply_router_weight_on_input: false,
    moe_router_logit_softcapping: 0.0, first_k_dense_replace: 1,
  },
  lfm2_moe: {
    vocab_size: 65536, hidden_size: 2048, intermediate_size: 7168, moe_intermediate_size: 1792,
    num_hidden_layers: 32, norm_eps: 1e-05, num_dense_layers: 2, num_experts_per_tok: 4, num_experts: 32,
    use_expert_bias: true, routed_scaling_factor: 1.0, norm_topk_prob: true,
  },
  llama4: {
    vocab_size: 202048, hidden_size: 5120, intermediate_size: 8192, num_hidden_layers: 48,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 1, num_local_experts: 16,
    interleave_moe_layer_step: 1, router_jitter_noise: 0.0,
  },
  longcat_flash: {
    vocab_size: 131072, hidden_size: 6144, num_layers: 28, hidden_act: 'silu', rms_norm_eps: 1e-05,
    ffn_hidden_size: 12288, moe_topk: 12, n_routed_experts: 512, zero_expert_num: 256,
    expert_ffn_hidden_size: 2048, routed_scaling_factor: 6.0,
  },
  mellum: {
    vocab_size: 98304, hidden_size: 2304, intermediate_size: 7168, num_hidden_layers: 28,
    hidden_act: 'silu', rms_norm_eps: 1e-06, moe_intermediate_size: 896, num_experts_per_tok: 8,
    num_experts: 64, norm_topk_prob: true,
  },
  mimo_v2_flash: {
    vocab_size: 152576, hidden_size: 4096, intermediate_size: 16384, num_hidden_layers: 48,
    hidden_act: 'silu', rms_norm_eps: 1e-05, moe_intermediate_size: 2048, num_experts_per_tok: 8,
    n_routed_experts: 256, routed_scaling_factor: 1.0, n_group: 1, topk_group: 1, norm_topk_prob: true,
    first_k_dense_replace: 1,
  },
  minimax: {
    vocab_size: 32000, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 2, num_local_experts: 8,
    router_jitter_noise: 0.0,
  },
  minimax_m2: {
    vocab_size: 200064, hidden_size: 3072, intermediate_size: 1536, num_hidden_layers: 62,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_experts_per_tok: 8, num_local_experts: 256,
    router_jitter_noise: 0.0,
  },
  minimax_m3: {
    vocab_size: 200064, hidden_size: 6144, intermediate_size: 3072, num_hidden_layers: 60,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_experts_per_tok: 4, num_local_experts: 128,
    router_jitter_noise: 0.0, shared_intermediate_size: 3072, routed_scaling_factor: 2.0,
    swiglu_alpha: 1.702, swiglu_limit: 7.0,
  },
  minimax_m3_vl: {
    vocab_size: 200064, hidden_size: 6144, intermediate_size: 3072, num_hidden_layers: 60,
    hidden_act: 'silu', rms_norm_eps: 1e-06, num_experts_per_tok: 4, num_local_experts: 128,
    router_jitter_noise: 0.0, shared_intermediate_size: 3072, routed_scaling_factor: 2.0,
    swiglu_alpha: 1.702, swiglu_limit: 7.0,
  },
  mistral4: {
    vocab_size: 131072, hidden_size: 4096, intermediate_size: 12288, moe_intermediate_size: 2048,
    num_hidden_layers: 36, n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 1.0,
    n_group: 1, topk_group: 1, num_experts_per_tok: 4, first_k_dense_replace: 0, norm_topk_prob: true,
    hidden_act: 'silu', rms_norm_eps: 1e-06,
  },
  mistral_large4: {
    vocab_size: 204800, hidden_size: 6144, intermediate_size: 24576, moe_intermediate_size: 6144,
    num_hidden_layers: 72, n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 1.0,
    n_group: 1, topk_group: 1, num_experts_per_tok: 4, hidden_act: 'silu', rms_norm_eps: 1e-05,
    first_k_dense_replace: 1,
  },
  mixtral: {
    vocab_size: 32000, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 2, num_local_experts: 8,
    router_jitter_noise: 0.0,
  },
  nemotron_h: {
    vocab_size: 131072, hidden_size: 4096, intermediate_size: 21504, mlp_hidden_act: 'relu2',
    n_routed_experts: 8, n_shared_experts: 1, moe_intermediate_size: 7688,
    moe_shared_expert_intermediate_size: 7688, num_experts_per_tok: 2, routed_scaling_factor: 1.0,
    n_group: 1, topk_group: 1, norm_topk_prob: true, layer_norm_epsilon: 1e-05,
    hybrid_override_pattern: 'ME*-',
  },
  olmoe: {
    vocab_size: 50304, hidden_size: 2048, intermediate_size: 2048, num_hidden_layers: 16,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 8, num_experts: 64, norm_topk_prob: false,
  },
  openai_privacy_filter: {
    num_hidden_layers: 8, num_local_experts: 128, vocab_size: 200064, hidden_size: 640,
    intermediate_size: 640, rms_norm_eps: 1e-05, num_experts_per_tok: 4, swiglu_alpha: 1.702,
    swiglu_limit: 7.0,
  },
  phimoe: {
    vocab_size: 32064, hidden_size: 4096, intermediate_size: 6400, num_hidden_layers: 32,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 2, num_local_experts: 16,
    router_jitter_noise: 0.01,
  },
  qwen2_moe: {
    vocab_size: 151936, hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 24,
    hidden_act: 'silu', rms_norm_eps: 1e-06, decoder_sparse_step: 1, moe_intermediate_size: 1408,
    shared_expert_intermediate_size: 5632, num_experts_per_tok: 4, num_experts: 60, norm_topk_prob: false,
    mlp_only_layers: [],
  },
  qwen3_5_moe: {
    vocab_size: 248320, hidden_size: 2048, num_hidden_layers: 40, hidden_act: 'silu', rms_norm_eps: 1e-06,
    moe_intermediate_size: 512, shared_expert_intermediate_size: 512, num_experts_per_tok: 8,
    num_experts: 256,
  },
  qwen3_moe: {
    vocab_size: 151936, hidden_size: 2048, intermediate_size: 6144, num_hidden_layers: 24,
    hidden_act: 'silu', rms_norm_eps: 1e-06, decoder_sparse_step: 1, moe_intermediate_size: 768,
    num_experts_per_tok: 8, num_experts: 128, norm_topk_prob: false, mlp_only_layers: [],
  },
  qwen3_next: {
    vocab_size: 151936, hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 48,
    hidden_act: 'silu', rms_norm_eps: 1e-06, decoder_sparse_step: 1, moe_intermediate_size: 512,
    shared_expert_intermediate_size: 512, num_experts_per_tok: 10, num_experts: 512, norm_topk_prob: true,
    mlp_only_layers: [],
  },
  qwen3_omni_moe: {
    vocab_size: 3584, hidden_size: 2048, intermediate_size: 18944, num_hidden_layers: 28,
    hidden_act: 'silu', rms_norm_eps: 1e-06, decoder_sparse_step: 1, moe_intermediate_size: 768,
    num_experts_per_tok: 8, num_experts: 128, norm_topk_prob: true, mlp_only_layers: [],
  },
  qwen3_omni_moe_thinker: {
    vocab_size: 3584, hidden_size: 2048, intermediate_size: 18944, num_hidden_layers: 28,
    hidden_act: 'silu', rms_norm_eps: 1e-06, decoder_sparse_step: 1, moe_intermediate_size: 768,
    num_experts_per_tok: 8, num_experts: 128, norm_topk_prob: true, mlp_only_layers: [],
  },
  qwen3_vl_moe: {
    vocab_size: 151936, hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 24,
    hidden_act: 'silu', rms_norm_eps: 1e-06, decoder_sparse_step: 1, moe_intermediate_size: 1408,
    num_experts_per_tok: 4, num_experts: 60, mlp_only_layers: [],
  },
  qwen4_exp: {
    vocab_size: 248320, hidden_size: 2048, num_hidden_layers: 40, hidden_act: 'silu', rms_norm_eps: 1e-06,
    moe_intermediate_size: 512, shared_expert_intermediate_size: 512, num_experts_per_tok: 10,
    num_experts: 512, norm_topk_prob: true,
  },
  sarvam_mla: {
    vocab_size: 262144, hidden_size: 4096, intermediate_size: 16384, moe_intermediate_size: 2048,
    num_hidden_layers: 32, n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 2.5,
    n_group: 1, topk_group: 1, num_experts_per_tok: 8, first_k_dense_replace: 1, norm_topk_prob: true,
    hidden_act: 'silu', rms_norm_eps: 1e-06,
  },
  sarvam_moe: {
    vocab_size: 262144, hidden_size: 4096, intermediate_size: 8192, num_hidden_layers: 19,
    hidden_act: 'silu', rms_norm_eps: 1e-06, moe_intermediate_size: 1024, num_experts_per_tok: 6,
    n_shared_experts: 1, n_routed_experts: 128, routed_scaling_factor: 2.5, n_group: 1, topk_group: 1,
    first_k_dense_replace: 1, norm_topk_prob: true,
  },
  solar_open: {
    vocab_size: 196608, hidden_size: 4096, num_hidden_layers: 48, hidden_act: 'silu', rms_norm_eps: 1e-05,
    moe_intermediate_size: 1280, num_experts_per_tok: 8, n_shared_experts: 1, n_routed_experts: 128,
    routed_scaling_factor: 1.0, n_group: 1, topk_group: 1, norm_topk_prob: true,
  },
  step3p5: {
    vocab_size: 128815, hidden_size: 4096, intermediate_size: 11264, num_hidden_layers: 45,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 8, moe_intermediate_size: 1280,
    n_routed_experts: 288, share_expert_dim: 1280, moe_router_scaling_factor: 1.0, first_k_dense_replace: 3,
  },
  step3p7: {
    vocab_size: 128815, hidden_size: 4096, intermediate_size: 11264, num_hidden_layers: 45,
    hidden_act: 'silu', rms_norm_eps: 1e-05, num_experts_per_tok: 8, moe_intermediate_size: 1280,
    n_routed_experts: 288, share_expert_dim: 1280, moe_router_scaling_factor: 1.0, first_k_dense_replace: 3,
  },
};
