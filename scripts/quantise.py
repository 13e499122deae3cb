"""Quantises weights as publishers do. Each form gives what a file holds in place of a tensor, and the values that it stands for."""

import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def blocks(weight, rows, columns):
    """The largest magnitude of each block, and the same for every element."""
    padded = torch.nn.functional.pad(weight.abs(), (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows))
    most = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).amax((1, 3))
    return most, lambda scale: scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: weight.shape[0], : weight.shape[1]]


def fp8(name, weight, rows=128, columns=128, suffix="_scale_inv"):
    most, spread = blocks(weight, rows, columns)
    scale = most / 448
    codes = (weight / spread(scale)).to(torch.float8_e4m3fn)
    return {name: codes, name + suffix: scale}, codes.float() * spread(scale)


def fp8_channel(name, weight):
    stored, values = fp8(name, weight, 1, weight.shape[1], "_scale")
    return stored, values


def integers(bits, group):
    def quantise(name, weight):
        size = group or weight.shape[1]
        most, spread = blocks(weight, 1, size)
        scale = (most / (2 ** (bits - 1) - 1)).to(torch.bfloat16)
        half = 2 ** (bits - 1)
        codes = torch.clamp(torch.round(weight / spread(scale.float())), -half, half - 1).to(torch.int64)
        values = codes * spread(scale.float())
        if bits == 8 and group is None:
            return {name: codes.to(torch.int8), name + "_scale": scale}, values
        words = (codes + half).unflatten(1, (-1, 32 // bits)) << (bits * torch.arange(32 // bits))
        packed = words.sum(2).to(torch.uint32).view(torch.int32)
        shape = torch.tensor(weight.shape, dtype=torch.int64)
        return {name + "_packed": packed, name + "_scale": scale, name + "_shape": shape}, values

    return quantise


def mxfp4(name, weight):
    """Of [experts, inputs, outputs]; blocks are along the inputs."""
    rows = weight.transpose(1, 2)
    groups = rows.unflatten(2, (-1, 32))
    exponent = torch.floor(torch.log2(groups.abs().amax(3))) - 2
    scaled = groups / torch.exp2(exponent).unsqueeze(3)
    codes = (scaled.abs().clamp(max=6).unsqueeze(4) - E2M1).abs().argmin(4) + 8 * (scaled < 0)
    values = (E2M1[codes % 8] * torch.where(codes >= 8, -1.0, 1.0) * torch.exp2(exponent).unsqueeze(3)).flatten(2)
    packed = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    return {name + "_blocks": packed, name + "_scales": (exponent + 127).to(torch.uint8)}, values.transpose(1, 2).contiguous()


def compressed(fmt, **weights):
    group = dict(targets=["Linear"], input_activations=None, output_activations=None,
                 weights=dict(dict(dynamic=False, symmetric=True, group_size=None), **weights))
    return dict(quant_method="compressed-tensors", format=fmt, config_groups=dict(group_0=group), ignore=["lm_head"])


# By name: how a tensor is quantised, which ones are, and what config.json says of it.
EXPERTS = r"(experts?\.(\d+\.)?\w+|latent_proj)(\.weight)?$"
FORMS = {
    "fp8": (fp8, dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])),
    "fp8_channel": (fp8_channel, compressed("float-quantized", num_bits=8, type="float", strategy="channel")),
    "int8": (integers(8, None), compressed("int-quantized", num_bits=8, type="int", strategy="channel")),
    "int8_packed": (integers(8, 32), compressed("pack-quantized", num_bits=8, type="int", strategy="group", group_size=32)),
    "int4": (integers(4, 32), compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)),
    "mxfp4": (mxfp4, dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])),
}
