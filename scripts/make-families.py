#!/usr/bin/env python3
"""Makes a small random checkpoint of every MoE family with Hugging Face transformers, and what it computes.

Needs Python packages that the product itself does not: pip install torch transformers safetensors

Writes for every family NAME a directory NAME:
  config.json, model.safetensors   as save_pretrained writes them, less the tensors that no MoE layer needs
  expected.safetensors
      input        BF16 [tokens, hidden]
      token_ids    I64 [tokens], only where experts depend on them
      moe.N        F32, the MoE block of layer N alone on the input: no norm, no residual
      untyped.N    F32, the same without ids of tokens; only where images have experts of their own, for which ids are left out of text
      stack        F32, x + MoE(RMSNorm(x)) through all layers with experts; only where the family's layers are so
Expected values come from the float32 run of the saved weights by the library's own modules.

The committed fixtures are made by
  scripts/make-families.py test/fixtures/families
"""

import argparse
import json
import re
import shutil
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch
import transformers
from safetensors.torch import load_file, save_file

from family_checkpoints import COMMON, FAMILIES, FUSED, PUBLISHED, QUANTISED, bare_only, build, inner, load, norm_offset
from family_checkpoints import EXPERTS as EXPERT_COUNT
from quantise import EXPERTS, FORMS

TOKENS = 32
TOKEN_IDS = torch.arange(TOKENS) * 5 % COMMON["vocab_size"]
NEEDED = re.compile(r"(layers|blocks)\.\d+\..*(mlp|moe|ffn|feed_forward|mixer|expert|router|gate|norm)")
NOT_NEEDED = re.compile(r"attn|attention\.|mamba|conv|indexer|linear_attn|hc_|hyper_connection|visual|vision(?!_moe)|^vit\.|audio|mtp|A_log|dt_bias")


def randomise(model, name):
    """The library's initial weights are so small that every layer is nearly the identity; these keep values O(1)."""
    with torch.no_grad():
        for path, weight in [*model.named_parameters(), *model.named_buffers()]:
            if "tid2eid" in path:
                weight.copy_(torch.stack([torch.randperm(EXPERT_COUNT)[: weight.shape[1]] for _ in weight]))
                weight[0] = weight[0, 0]  # The library takes an expert that a token has twice.
            if "rotary" in path or not weight.is_floating_point():
                continue
            if "correction_bias" in path or "expert_bias" in path or "router_bias" in path:
                centre = 6.0 if name == "glm4_moe" else -0.7 if name == "glm_moe_dsa" else 0.0
                weight.copy_(centre + 0.1 * torch.randn(weight.shape))
            elif "bias" in path:
                weight.copy_(0.5 * torch.randn(weight.shape))
            elif "norm" in path and weight.dim() == 1:
                weight.copy_(torch.rand(weight.shape) + 0.5 - norm_offset(name))
            elif weight.dim() < 2:
                weight.copy_(torch.rand(weight.shape) + 0.5)
            else:
                steep = 2 if re.search(r"(gate|router|wg|classifier)\.weight$|router\.proj|gate\.weight", path) else 1
                weight.copy_(steep * weight.shape[-1] ** -0.5 * torch.randn(weight.shape))


class RoutedExperts(torch.nn.Module):
    """A router and its experts that stand in the layer itself, on the same rows."""

    def __init__(self, layer):
        super().__init__()
        self.router, self.experts = layer.router, layer.experts

    def forward(self, rows):
        rows = rows.reshape(-1, rows.shape[-1])
        _, weights, experts = self.router(rows)
        return self.experts(rows, experts, weights)


class WithTypes(torch.nn.Module):
    """A block that takes types of tokens, which the processor makes of their ids."""

    def __init__(self, block, config):
        super().__init__()
        processor = transformers.models.ernie4_5_vl_moe.processing_ernie4_5_vl_moe.Ernie4_5_VLMoeProcessor
        types = processor.create_moe_mm_token_type_ids(config, TOKEN_IDS.unsqueeze(0))
        self.block, self.types = block, torch.as_tensor(types)

    def forward(self, rows):
        return self.block(rows, self.types)


class Sum(torch.nn.Module):
    """A block and the shared experts that stand beside it."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, rows):
        return sum(run(part, rows) for part in self.parts)


def blocks(model):
    """The MoE block and the norm in front of it, by layer."""
    held = inner(model)
    for number, layer in enumerate(held.layers if hasattr(held, "layers") else held.blocks):
        apart = getattr(layer, "router", None) is not None
        found = [RoutedExperts(layer)] if apart else [child for path, child in layer.named_children() if "attention" not in path and has_experts(child)]
        if not found:
            continue
        if hasattr(layer, "shared_mlp") and layer.shared_mlp is not None:
            found = [Sum(found[0], layer.shared_mlp)]
        if hasattr(found[0], "vision_moe"):
            found = [WithTypes(found[0], model.config)]
        norms = [getattr(layer, each, None) for each in
                 ("post_attention_layernorm", "pre_ff_layernorm", "ffn_norm", "pre_mlp_layernorm", "norm")]
        yield number, found[0], next((norm for norm in norms if norm is not None), None)


def has_experts(module):
    return any(path.split(".")[-1] in ("experts", "router") for path, _ in module.named_modules())


def is_hash(block):
    return getattr(block, "is_hash", False)


def run(block, rows):
    result = block(rows, input_ids=TOKEN_IDS) if is_hash(block) else block(rows)
    result = result[0] if isinstance(result, tuple) else result
    return result.reshape(rows.shape)


def expected(model, rows, name):
    """The tensors; None if rows in BF16 between the steps lead to other experts, as near ties do."""
    start = rows.float().unsqueeze(0)
    tensors = {"input": rows}
    layers = list(blocks(model))
    if any(is_hash(block) or isinstance(block, WithTypes) for _, block, _ in layers):
        tensors["token_ids"] = TOKEN_IDS
    with torch.no_grad():
        for number, block, _ in layers:
            tensors[f"moe.{number}"] = run(block, start).squeeze(0).contiguous()
            if isinstance(block, WithTypes):
                tensors[f"untyped.{number}"] = run(block.block, start).squeeze(0).contiguous()
        if name in bare_only:
            return tensors
        stack = through(layers, start, lambda values: values)
        # As rounding does, in many places.
        noise = lambda values: values * (1 + 2**-8 * torch.randn(values.shape))
        for _ in range(8):
            if torch.linalg.norm(through(layers, start, noise) - stack) > 1.2e-2 * torch.linalg.norm(stack):
                return None
        tensors["stack"] = stack.squeeze(0).contiguous()
    return tensors


def through(layers, rows, disturb):
    for _, block, norm in layers:
        rows = disturb(rows + disturb(run(block, disturb(norm(rows)))))
    return rows


def make(name, directory, seed):
    torch.manual_seed(seed)
    model = build(name)
    randomise(model, name)
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, save_original_format=name not in FUSED)
    stored, quantization = quantise(name, directory)
    rows = torch.randn(TOKENS, inner(model).config.hidden_size).to(torch.bfloat16)
    tensors = expected(load(name, directory), rows, name)
    if quantization is not None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}, indent=2) + "\n")
    return tensors and (published(name, directory, stored), tensors)


def published(name, directory, stored):
    """Writes config.json as the publisher does. Returns the tensors under the publisher's names."""
    keys, prefixes = PUBLISHED.get(name, ({}, {}))
    config = json.loads((directory / "config.json").read_text())
    config.get("text_config", config).update(keys)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for old, new in prefixes.items():
        stored = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in stored.items()}
    return stored


def quantise(name, directory):
    """What the file shall hold; the one that is there gets the values that it stands for."""
    whole = load_file(directory / "model.safetensors")
    form = QUANTISED.get(name, (None, None))[1]
    if not isinstance(form, str):
        return whole, None
    pack, quantization = FORMS[form]
    stored, values = {}, {}
    for key, weight in whole.items():
        parts = {key: weight}
        if re.search(EXPERTS, key) and "bias" not in key:
            parts, weight = pack(key, weight.float())
        stored.update(parts)
        values[key] = weight
    save_file(values, directory / "model.safetensors", {"format": "pt"})
    return stored, quantization


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for name in options.families:
        directory = options.output / name
        whole, tensors = next(made for seed in range(100) if (made := make(name, directory, seed)) is not None)
        kept = {key: value for key, value in whole.items() if NEEDED.search(key) and not NOT_NEEDED.search(key)}
        save_file(kept, directory / "model.safetensors", {"format": "pt"})
        (directory / "generation_config.json").unlink(missing_ok=True)
        save_file(tensors, directory / "expected.safetensors")
        for file in directory.iterdir():
            file.chmod(0o644)
        print(f"{name}: {', '.join(tensors)}")


if __name__ == "__main__":
    main()
