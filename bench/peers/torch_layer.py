"""The MoE layer by PyTorch on one thread, as transformers writes it. Arguments: hidden, ffn, experts, top k.

A line: tokens, and 0 for the loop over experts or 1 for tokens sorted by expert and a grouped product.
"""

import sys

import torch
from answers import answer
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

TOKENS_MAX = 4096


def main() -> None:
    hidden, ffn, experts, top_k = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    blocks = []
    for implementation in ("eager", "grouped_mm"):
        config = MixtralConfig(
            hidden_size=hidden, intermediate_size=ffn, num_local_experts=experts, num_experts_per_tok=top_k
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            blocks.append(MixtralSparseMoeBlock(config).to(torch.bfloat16).eval())
    # Both hold the same weights.
    weights = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16).uniform_(-1, 1) / tensor.shape[-1] ** 0.5
        for name, tensor in blocks[0].state_dict().items()
    }
    for block in blocks:
        block.load_state_dict(weights, assign=True)
    x = torch.randn(1, TOKENS_MAX, hidden).to(torch.bfloat16)
    with torch.inference_mode():
        answer(lambda tokens, way: blocks[way](x[:, :tokens]))


main()
