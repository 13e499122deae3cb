"""Expert parallelism over PyTorch's gloo backend: the peer of `bench -- hosts`.

Every rank is a process with one thread and holds an even share of the experts of every layer. A chunk of tokens is gated,
copied once per chosen expert, exchanged with all_to_all_single, computed expert by expert, exchanged back, weighed and
summed. Prints one line of JSON: tokens per second of this rank's bare expert FFN, and of the whole group's run.

  torch_ep.py --rank 0 --master 10.0.0.1:29500 --hidden 4096 --ffn 1536 --experts 32 --top-k 8 --layers 1 --tokens 4096
"""

import argparse
import json
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F


def options():
    parser = argparse.ArgumentParser()
    for name in ("rank", "hidden", "ffn", "experts", "top-k", "layers", "tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--master", required=True)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--activation", choices=("swiglu", "gelu"), default="swiglu")
    parser.add_argument("--bare-seconds", type=float, default=2)
    return parser.parse_args()


class Expert:
    def __init__(self, hidden, ffn, activation):
        def weight(rows, columns):
            return (torch.randn(rows, columns) / columns**0.5).to(torch.bfloat16)

        self.up, self.down = weight(ffn, hidden), weight(hidden, ffn)
        self.gate = weight(ffn, hidden) if activation == "swiglu" else None

    def __call__(self, rows):
        up = F.linear(rows, self.up)
        inner = F.gelu(up) if self.gate is None else F.silu(F.linear(rows, self.gate)) * up
        return F.linear(inner, self.down)


class Layer:
    """One MoE layer: RMSNorm, gate, this rank's experts, residual."""

    def __init__(self, args):
        self.top_k, self.world = args.top_k, args.world
        self.local = args.experts // args.world
        self.gate = torch.randn(args.experts, args.hidden) / args.hidden**0.5
        self.experts = [Expert(args.hidden, args.ffn, args.activation) for _ in range(self.local)]
        self.norm = torch.ones(args.hidden, dtype=torch.bfloat16)

    def __call__(self, x):
        rows = F.rms_norm(x, (x.shape[1],), self.norm)
        weights, chosen = torch.topk(F.softmax(F.linear(rows.float(), self.gate), dim=-1), self.top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)

        # A copy of the row for every choice, in the order of the experts.
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        copies = rows[order // self.top_k]
        sent = torch.bincount(flat, minlength=self.local * self.world)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        splits_out = sent.view(self.world, -1).sum(1).tolist()
        splits_in = received.view(self.world, -1).sum(1).tolist()
        arrived = copies.new_empty(sum(splits_in), copies.shape[1])
        dist.all_to_all_single(arrived, copies, splits_in, splits_out)

        # What arrived is sorted by rank, then by expert; experts want all of theirs together.
        owner = torch.arange(self.local).repeat(self.world).repeat_interleave(received)
        grouping = owner.argsort(stable=True)
        groups = arrived[grouping].split(torch.bincount(owner, minlength=self.local).tolist())
        computed = torch.cat([expert(group) for expert, group in zip(self.experts, groups)])
        answers = torch.empty_like(computed)
        answers[grouping] = computed
        returned = torch.empty_like(copies)
        dist.all_to_all_single(returned, answers, splits_out, splits_in)

        results = torch.empty_like(returned)
        results[order] = returned
        results = results.view(x.shape[0], self.top_k, -1)
        return x + (results * weights.unsqueeze(-1)).sum(1)


def bare_tokens_per_second(layers, args):
    """Rows already grouped and in memory: nothing but the experts' matrices."""
    experts = layers[0].experts[:4]
    rows = torch.randn(1024, args.hidden).to(torch.bfloat16)
    for expert in experts:
        expert(rows)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.bare_seconds:
        for expert in experts:
            expert(rows)
        count += len(experts) * rows.shape[0]
    return count / (time.perf_counter() - start) / (args.top_k * args.layers)


def main():
    args = options()
    torch.set_num_threads(1)
    torch.manual_seed(args.rank)
    address, port = args.master.rsplit(":", 1)
    store = dist.TCPStore(address, int(port), args.world, is_master=args.rank == 0)
    dist.init_process_group("gloo", store=store, rank=args.rank, world_size=args.world)
    with torch.inference_mode():
        layers = [Layer(args) for _ in range(args.layers)]
        batch = torch.randn(args.tokens, args.hidden).to(torch.bfloat16)

        def forward():
            for chunk in batch.split(args.chunk):
                for layer in layers:
                    chunk = layer(chunk)
            dist.barrier()

        dist.barrier()
        bare = bare_tokens_per_second(layers, args)
        dist.barrier()
        for layer in layers:
            layer(batch[:256])
        dist.barrier()
        start = time.perf_counter()
        forward()
        seconds = time.perf_counter() - start
    print(json.dumps({"bare": bare, "tokensPerSecond": args.tokens * args.world / seconds}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
