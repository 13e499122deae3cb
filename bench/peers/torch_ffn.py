"""The expert FFN by PyTorch on one thread. Arguments: activation, hidden, ffn, experts. A line: rows, expert."""

import sys

import torch
import torch.nn.functional as F
from answers import answer


def main() -> None:
    activation, (hidden, ffn, experts) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=torch.bfloat16).uniform_(-1, 1) / columns**0.5

    gates = [matrix(ffn, hidden) for _ in range(experts)] if activation == "swiglu" else []
    ups = [matrix(ffn, hidden) for _ in range(experts)]
    downs = [matrix(hidden, ffn) for _ in range(experts)]
    inputs: dict[int, torch.Tensor] = {}

    def forward(rows: int, expert: int) -> torch.Tensor:
        x = inputs.get(rows)
        if x is None:
            x = inputs[rows] = torch.randn(rows, hidden).to(torch.bfloat16)
        if activation == "swiglu":
            h = F.silu(F.linear(x, gates[expert])) * F.linear(x, ups[expert])
        else:
            h = F.gelu(F.linear(x, ups[expert]))
        return F.linear(h, downs[expert])

    with torch.inference_mode():
        answer(forward)


main()
