"""The expert FFN by PyTorch on one core, for experts_bench: one line of input (an expert's number) is one forward
pass, one line of output the seconds that the thread ran.

Arguments: activation, hidden, ffn, rows, experts.
"""

import sys
import time

import torch
import torch.nn.functional as functional


def main() -> None:
    activation, (hidden, ffn, rows, experts) = sys.argv[1], map(int, sys.argv[2:6])
    torch.set_num_threads(1)
    matrices = 3 if activation == "swiglu" else 2
    weights = []
    for _ in range(experts):
        shapes = [(ffn, hidden)] * (matrices - 1) + [(hidden, ffn)]
        weights.append([torch.rand(shape, dtype=torch.bfloat16) - 0.5 for shape in shapes])
    x = torch.rand((rows, hidden), dtype=torch.bfloat16) - 0.5
    print(f"torch {torch.__version__}", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            expert = weights[int(line)]
            begin = time.thread_time()
            if activation == "swiglu":
                gate, up, down = expert
                functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)
            else:
                up, down = expert
                functional.linear(functional.gelu(functional.linear(x, up)), down)
            print(time.thread_time() - begin, flush=True)


main()
