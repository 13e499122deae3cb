#!/usr/bin/env python3
"""Makes random Mixtral and Qwen3-MoE checkpoints with Hugging Face transformers, and what they compute.

Needs Python packages that the product itself does not: pip install torch transformers safetensors

Writes for every checkpoint NAME:
  NAME/            as save_pretrained writes it: one tensor per expert and matrix, BF16
  NAME-fused/      the same weights as transformers holds them in memory: all experts in two tensors
  NAME.expected.safetensors
      input        BF16 [tokens, hidden]
      moe.N        F32, the MoE block of layer N alone on the input: no norm, no residual
      stack        F32, x + MoE(RMSNorm(x)) through all layers with experts
Expected values come from the float32 run of the BF16 weights by the library's own modules.

The committed fixtures are made by
  scripts/make-checkpoints.py test/fixtures --families mixtral
  scripts/make-checkpoints.py test/fixtures --families qwen3_moe qwen3_moe-unnormalised --shard-size 64KB
"""

import argparse
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

FAMILIES = ("mixtral", "qwen3_moe", "qwen3_moe-unnormalised")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--ffn", type=int, default=40)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dense-layers", type=int, nargs="*", default=[1], help="layers without experts (qwen3_moe)")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--shard-size", default="5GB", help="largest size of one safetensors file, for example 64KB")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def build(family: str, options: argparse.Namespace) -> transformers.PreTrainedModel:
    """A model of the family in BF16. The vocabulary and the attention are as small as they may be."""
    shape = dict(
        vocab_size=8,
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        num_hidden_layers=options.layers,
        num_experts_per_tok=options.top_k,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    if family == "mixtral":
        config = transformers.MixtralConfig(num_local_experts=options.experts, **shape)
    else:
        config = transformers.Qwen3MoeConfig(
            num_experts=options.experts,
            moe_intermediate_size=options.ffn,
            mlp_only_layers=options.dense_layers,
            norm_topk_prob=family == "qwen3_moe",
            **shape,
        )
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    return model.to(torch.bfloat16)


def randomise(model: transformers.PreTrainedModel) -> None:
    """The library's initial weights are so small that every layer is nearly the identity; these keep values O(1)."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, (2 if name.endswith("gate.weight") else 1) * weight.shape[-1] ** -0.5)


def expected(directory: Path, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs the saved weights in float32, block by block and as a stack."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    start = rows.float().unsqueeze(0)
    tensors = {"input": rows}
    with torch.no_grad():
        stack = start
        for number, layer in enumerate(model.model.layers):
            block = getattr(layer, "mlp", None) or layer.block_sparse_moe
            if not hasattr(block, "experts"):
                continue
            tensors[f"moe.{number}"] = block(start).squeeze(0).contiguous()
            stack = stack + block(layer.post_attention_layernorm(stack))
    tensors["stack"] = stack.squeeze(0).contiguous()
    return tensors


def main() -> None:
    options = arguments()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for family in options.families:
        torch.manual_seed(options.seed)
        model = build(family, options)
        for directory, original in ((options.output / family, True), (options.output / f"{family}-fused", False)):
            shutil.rmtree(directory, ignore_errors=True)
            model.save_pretrained(directory, save_original_format=original, max_shard_size=options.shard_size)
            (directory / "generation_config.json").unlink(missing_ok=True)
            for file in directory.iterdir():
                file.chmod(0o644)
        rows = torch.randn(options.tokens, options.hidden).to(torch.bfloat16)
        tensors = expected(options.output / family, rows)
        again = expected(options.output / f"{family}-fused", rows)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, again[name]), f"{family}: the two layouts differ in {name}"
        save_file(tensors, options.output / f"{family}.expected.safetensors")
        print(f"{family}: {', '.join(f'{name} {list(tensor.shape)}' for name, tensor in tensors.items())}")


if __name__ == "__main__":
    main()
