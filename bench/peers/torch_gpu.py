"""The bare expert FFN by PyTorch on one GPU, for the figures gpu/bare-* of gpu_bench: rows per second, one peer a line.

    python3 bench/peers/torch_gpu.py [gpu.json]

In the report of gpu_bench each figure gets its ratio to the best of torch so far, as soon as a peer is known.
"""

import itertools
import json
import os
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


class Report:
    """The file of gpu_bench, whole at any time; without a path, or where there is no such file, peers are only printed."""

    def __init__(self, path):
        self.path = path if path and os.path.exists(path) else None
        if self.path:
            with open(self.path, encoding="utf-8") as file:
                self.report = json.load(file)
            self.report["machine"]["torch"] = torch.__version__

    def attempt(self, figure, name, make, rows, turns):
        """A peer that this version of torch lacks is named on standard error and left out."""
        try:
            rate = rows_per_second(make(), rows, turns)
        except Exception as error:  # noqa: BLE001
            print(f"torch_gpu: {name} does not run: {error}", file=sys.stderr)
            return
        print(f"{figure} {name} {rate:.6g} rows/s", flush=True)
        if self.path:
            self.add(figure, name, rate)

    def add(self, figure, name, rate):
        for result in self.report["results"]:
            if result["id"] != figure:
                continue
            peers = result.setdefault("peers", {})
            peers[name] = rate
            result["referenceName"], result["reference"] = max(peers.items(), key=lambda peer: peer[1])
            result["ratio"] = result["value"] / result["reference"]
        unfinished = f"{self.path}.unfinished"
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(self.report, file, indent=2)
            file.write("\n")
        os.replace(unfinished, self.path)


def call(function, *arguments):
    return lambda: function(*arguments)


def gelu_peers(report):
    """Yields after each, as grouped_peers does: the slowest to compile come last."""
    figure = "gpu/bare-gelu"
    x, up, down = matrix(2048, HIDDEN), matrix(16384, HIDDEN), matrix(HIDDEN, 16384)

    def ffn(x, up, down):
        return F.linear(F.gelu(F.linear(x, up)), down)

    report.attempt(figure, "torch eager", lambda: call(ffn, x, up, down), len(x), 50)
    yield
    for mode in ("default", "max-autotune-no-cudagraphs"):
        report.attempt(figure, f"torch.compile {mode}", lambda: call(torch.compile(ffn, mode=mode), x, up, down), len(x), 50)
        yield


def grouped_peers(report):
    figure = "gpu/bare-grouped"
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

    report.attempt(figure, "torch loop", lambda: loop, rows, 20)
    report.attempt(figure, "torch grouped_mm", lambda: call(grouped, x, first, down, ends), rows, 20)
    yield
    report.attempt(figure, "torch.compile grouped_mm", lambda: call(torch.compile(grouped), x, first, down, ends), rows, 20)
    yield


def main():
    report = Report(sys.argv[1] if len(sys.argv) > 1 else None)
    with torch.inference_mode():
        for _ in itertools.zip_longest(gelu_peers(report), grouped_peers(report)):
            pass


main()
