"""The SwiGLU FFN by KTransformers with one worker thread. Arguments: hidden, ffn, experts, most rows. A line: rows, expert."""

import sys

import torch
from answers import answer
from kt_moe import KtExperts


def main() -> None:
    hidden, ffn, experts, rows_max = map(int, sys.argv[1:])
    torch.set_num_threads(1)

    def matrices(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(experts, rows, columns, dtype=torch.bfloat16).uniform_(-1, 1) / columns**0.5

    moe = KtExperts(matrices(ffn, hidden), matrices(ffn, hidden), matrices(hidden, ffn), 1, rows_max)
    x = torch.randn(rows_max, hidden).to(torch.bfloat16)
    weights = torch.ones(rows_max, 1)
    # All rows to one expert, as a worker that holds it sees them.
    choices = [torch.full((rows_max, 1), expert) for expert in range(experts)]
    answer(lambda rows, expert: moe.forward(x[:rows], choices[expert][:rows], weights[:rows]))


main()
