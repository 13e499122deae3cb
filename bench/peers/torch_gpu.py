"""The bare expert FFN by PyTorch on one GPU, for the figures gpu/bare-* of gpu_bench: rows per second as JSON.

    python3 bench/peers/torch_gpu.py [gpu.json]

With the report of gpu_bench it adds the ratio of each figure to the best of torch, and writes it back.
"""

import json
import sys

import torch
import torch.nn.functional as F

HIDDEN, RUNS = 4096, 5
# As in native/bench/gpu_bench.cu.
COUNTS = [64 + i * 37 % 32 * 12 for i in range(32)]


def matrix(*shape):
    return ((torch.rand(*shape, device="cuda") * 2 - 1) / shape[-1] ** 0.5).to(torch.bfloat16)


def rows_per_second(compute, rows, turns):
    """The median over runs, timed with events after a warm-up."""
    for _ in range(3):
        compute()
    rates = []
    for _ in range(RUNS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(turns):
            compute()
        end.record()
        end.synchronize()
        rates.append(rows * turns / (begin.elapsed_time(end) / 1000))
    return sorted(rates)[RUNS // 2]


def attempt(peers, name, make, rows, turns):
    """A peer that this version of torch lacks is named on standard error and left out."""
    try:
        peers[name] = rows_per_second(make(), rows, turns)
    except Exception as error:  # noqa: BLE001
        print(f"torch_gpu: {name} does not run: {error}", file=sys.stderr)


def gelu_peers():
    x, up, down = matrix(2048, HIDDEN), matrix(16384, HIDDEN), matrix(HIDDEN, 16384)

    def ffn(x, up, down):
        return F.linear(F.gelu(F.linear(x, up)), down)

    peers = {}
    attempt(peers, "torch eager", lambda: lambda: ffn(x, up, down), len(x), 50)
    for mode in ("default", "max-autotune-no-cudagraphs"):
        compiled = torch.compile(ffn, mode=mode)
        attempt(peers, f"torch.compile {mode}", lambda: lambda: compiled(x, up, down), len(x), 50)
    return peers


def grouped_peers():
    rows, ffn_size = sum(COUNTS), 1536
    x = matrix(rows, HIDDEN)
    first = matrix(32, 2 * ffn_size, HIDDEN)
    down = matrix(32, HIDDEN, ffn_size)
    ends = torch.tensor(COUNTS, device="cuda").cumsum(0).to(torch.int32)

    def swiglu(sums):
        gate, up = sums.chunk(2, dim=-1)
        return F.silu(gate) * up

    def loop():
        begin = 0
        for expert, count in enumerate(COUNTS):
            F.linear(swiglu(F.linear(x[begin : begin + count], first[expert])), down[expert])
            begin += count

    def grouped(x, first, down, ends):
        sums = torch._grouped_mm(x, first.transpose(-2, -1), offs=ends)
        return torch._grouped_mm(swiglu(sums), down.transpose(-2, -1), offs=ends)

    peers = {}
    attempt(peers, "torch loop", lambda: loop, rows, 20)
    attempt(peers, "torch grouped_mm", lambda: lambda: grouped(x, first, down, ends), rows, 20)
    compiled = torch.compile(grouped)
    attempt(peers, "torch.compile grouped_mm", lambda: lambda: compiled(x, first, down, ends), rows, 20)
    return peers


def main():
    with torch.inference_mode():
        figures = {"gpu/bare-gelu": gelu_peers(), "gpu/bare-grouped": grouped_peers()}
    if len(sys.argv) < 2:
        print(json.dumps(figures, indent=2))
        return
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    for result in report["results"]:
        peers = figures.get(result["id"])
        if not peers:
            continue
        result["peers"] = peers
        result["referenceName"], result["reference"] = max(peers.items(), key=lambda peer: peer[1])
        result["ratio"] = result["value"] / result["reference"]
    report["machine"]["torch"] = torch.__version__
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
        file.write("\n")


main()
