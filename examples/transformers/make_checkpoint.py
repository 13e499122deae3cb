"""Makes a tiny random checkpoint in BF16, as save_pretrained writes it: make_checkpoint.py qwen3_moe|deepseek_v3|deepseek_v4 FOLDER"""

import sys

import torch
import transformers

SHAPE = dict(vocab_size=512, hidden_size=128, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=4)
SHAPE |= dict(num_attention_heads=4, num_key_value_heads=4, num_experts_per_tok=4, max_position_embeddings=256)
SHAPE |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)

# Of which no token is all but as likely as another: rows that were rounded to BF16 could not tell them apart.
SEEDS = {"qwen3_moe": 8, "deepseek_v3": 30, "deepseek_v4": 37}


def config_of(family):
    if family == "qwen3_moe":
        return transformers.Qwen3MoeConfig(num_experts=16, head_dim=32, norm_topk_prob=True, **SHAPE)
    if family == "deepseek_v4":
        # All layers but the last choose experts by the ids of tokens.
        layers = ["hash_moe", "hash_moe", "hash_moe", "moe"]
        return transformers.DeepseekV4Config(n_routed_experts=16, n_shared_experts=1, mlp_layer_types=layers, head_dim=32, **SHAPE)
    return transformers.DeepseekV3Config(
        n_routed_experts=16,
        n_group=4,
        topk_group=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        routed_scaling_factor=1.0,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        **SHAPE,
    )


def main(family, folder):
    torch.manual_seed(SEEDS[family])
    model = transformers.AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        # The library's own values are so small that every layer is nearly the identity.
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1 / parameter.shape[-1] ** 0.5)
            if family == "deepseek_v4" and "mlp" in name and "down_proj" in name:
                # What its layers add up is not normalised, and errors of rounding with it.
                parameter.mul_(0.25)
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                chosen = [torch.randperm(16)[: buffer.shape[1]] for _ in buffer]
                buffer.copy_(torch.stack(chosen))
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
