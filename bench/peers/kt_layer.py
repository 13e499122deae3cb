"""The MoE layer by KTransformers with one worker thread, its gate by PyTorch. Arguments: hidden, ffn, experts, top k, most tokens.

A line: tokens.
"""

import sys

import torch
import torch.nn.functional as F
from answers import answer
from kt_moe import KtExperts


def main() -> None:
    hidden, ffn, experts, top_k, tokens_max = map(int, sys.argv[1:])
    torch.set_num_threads(1)

    def matrices(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1) / shape[-1] ** 0.5

    gate = matrices(experts, hidden)
    up_shape, down_shape = (experts, ffn, hidden), (experts, hidden, ffn)
    moe = KtExperts(matrices(*up_shape), matrices(*up_shape), matrices(*down_shape), top_k, tokens_max)
    x = torch.randn(tokens_max, hidden).to(torch.bfloat16)

    def forward(tokens: int) -> torch.Tensor:
        scores = F.softmax(F.linear(x[:tokens], gate).float(), dim=-1)
        weights, chosen = torch.topk(scores, top_k, dim=-1)
        return moe.forward(x[:tokens], chosen, weights / weights.sum(dim=-1, keepdim=True))

    with torch.inference_mode():
        answer(forward)


main()
