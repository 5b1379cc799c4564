"""The names that Stable Diffusion's and ControlNet's authors give their tensors, written from diffusers' names.

Written from the layout of the original U-Net (a list of input blocks, a middle block, a list of output blocks),
apart from diffusers' conversion, so that each checks the other. For models of any number of levels.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}


def unet_name(name: str, layers_per_block: int) -> str:
    """Name in a diffusers U-Net or ControlNet -> name in the original, without the prefix of the model."""
    stem, kind = name.rsplit(".", 1)
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)", stem):
        return f"zero_convs.{found[1]}.0.{kind}"
    if found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", stem):
        return f"input_hint_block.{2 * int(found[1]) + 2}.{kind}"
    if found := re.match(r"mid_block\.(\w+\.\d)\.(.*)", name):
        return f"middle_block.{MIDDLE[found[1]]}.{_layer(found[2], found[1])}"
    side, level, group, index, rest = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
    level, index = int(level), int(index)
    if side == "down":  # block 0 is the first convolution; each level ends with its down-sampling
        number = 1 + level * (layers_per_block + 1) + (layers_per_block if group == "downsamplers" else index)
        place = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[group]
        rest = rest.replace("conv.", "op.") if group == "downsamplers" else rest
        return f"input_blocks.{number}.{place}.{_layer(rest, group)}"
    number = level * (layers_per_block + 1) + (layers_per_block if group == "upsamplers" else index)
    # up-sampling follows the resnet and the attention of the level's last block, where it has one
    place = {"resnets": "0", "attentions": "1", "upsamplers": "{after}"}[group]
    return f"output_blocks.{number}.{place}.{_layer(rest, group)}"


def _layer(rest: str, group: str) -> str:
    if group.startswith("resnets"):
        layer, kind = rest.split(".")
        return f"{RESNET[layer]}.{kind}"
    return rest


def original_unet(weights: dict, config, prefix: str) -> dict:
    named = {unet_name(name, config["layers_per_block"]): tensor for name, tensor in weights.items()}
    result = {}
    for name, tensor in named.items():
        if "{after}" in name:
            block = name.split(".{after}")[0]
            name = name.format(after=2 if any(other.startswith(f"{block}.1.") for other in named) else 1)
        result[prefix + name] = tensor
    return result


def original_vae(weights: dict, levels: int) -> dict:
    """Attention's linear layers were 1x1 convolutions, and the decoder counted its levels from the finest."""
    result = {}
    for name, tensor in weights.items():
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        if "attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        result["first_stage_model." + name] = tensor
    return result


def original_file(unet, vae, text_encoder) -> dict:
    """All tensors of a checkpoint such as v1-5-pruned.safetensors, its extras included."""
    text = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    unet_tensors = original_unet(unet.state_dict(), unet.config, "model.diffusion_model.")
    return {
        **unet_tensors,
        **original_vae(vae.state_dict(), len(vae.config.block_out_channels)),
        **{f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()},
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.tensor(4.6),
        "betas": betas,
        "alphas_cumprod": (1 - betas).cumprod(0),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(4),
    }
