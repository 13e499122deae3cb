"""Generates greedily with a model alone, and with its MoE blocks on a cluster that serves the same checkpoint, and compares:
generate.py HOST:PORT FOLDER [TOKENS]"""

import sys
import time

import torch
import transformers
from switchyard_moe import Cluster, replace_moe


class Nothing(torch.nn.Module):
    def forward(self, hidden_states, **_):
        return torch.zeros_like(hidden_states)


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generate(model, tokens):
    """The tokens behind a prompt of 16, and seconds a token."""
    prompt = torch.arange(1, 17)[None]
    settings = dict(do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=0)
    model.generate(prompt, max_new_tokens=2, **settings)
    started = time.perf_counter()
    output = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
    return output[0, 16:].tolist(), (time.perf_counter() - started) / tokens


def main(address, folder, tokens=64):
    tokens = int(tokens)
    # Products so small gain nothing by more threads.
    torch.set_num_threads(1)
    alone, alone_seconds = generate(load(folder), tokens)
    cluster = Cluster(address)
    model = load(folder)
    layers = replace_moe(model, cluster)
    remote, remote_seconds = generate(model, tokens)
    print("alone:     ", *alone)
    print("on cluster:", *remote)
    for layer in layers:
        model.model.layers[layer].mlp = Nothing()
    without, _ = generate(model, tokens)
    cluster.close()
    if without == alone:
        sys.exit("the MoE blocks of this checkpoint change nothing, so this shows nothing")
    if remote != alone:
        sys.exit("the tokens are not the same")
    overhead = (remote_seconds - alone_seconds) * 1e3
    print(
        f"{tokens} tokens, the same; {alone_seconds * 1e3:.2f} ms a token alone, {remote_seconds * 1e3:.2f} ms on the cluster: "
        f"{overhead:.2f} ms more for {len(layers)} MoE blocks"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
