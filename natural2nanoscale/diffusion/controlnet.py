"""ControlNet over the frozen U-Net: how it starts, what it adds, and the loss it learns from (paper 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel

from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.seeds import seed_for


def make_controlnet(backbone: Backbone, seed: int = 0) -> ControlNetModel:
    """A ControlNet whose encoder is a copy of the U-Net's, float32, on the backbone's device. Its outputs pass through
    zero convolutions, so it changes nothing yet; only the hint layers, which read the mask, start at random."""
    channels = backbone.recommended.conditioning_embedding_out_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "hint layers"))
        controlnet = ControlNetModel.from_unet(backbone.unet, conditioning_embedding_out_channels=channels)
    return controlnet.float().to(backbone.device).to(memory_format=torch.channels_last)


# what ControlNet's authors let learn with sd_locked = False: all that comes after the middle block
DECODER = ("up_blocks", "conv_norm_out", "conv_out")


def belongs(name: str, part: str) -> bool:
    """Whether a U-Net's weight of this name belongs to a part: "all", "decoder" or "attention"."""
    return part == "all" or (".attentions." in name if part == "attention" else name.split(".")[0] in DECODER)


def unlock(backbone: Backbone, part: str) -> Backbone:
    """The same backbone with another U-Net, of which a part (as `belongs` takes it) is a float32 copy that learns.

    The other weights are shared and stay frozen; the given backbone never changes.
    """
    frozen = {id(p): p for name, p in backbone.unet.named_parameters() if not belongs(name, part)}
    unet = copy.deepcopy(backbone.unet, frozen)  # what the memo holds is taken over, not copied
    for name, parameter in unet.named_parameters():
        if belongs(name, part):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return replace(backbone, unet=unet)


def part_state(unet: UNet2DConditionModel, part: str) -> dict[str, torch.Tensor]:
    """The weights of a part of the U-Net by diffusers' names."""
    return {name: value for name, value in unet.state_dict().items() if belongs(name, part)}


def latent_moments(backbone: Backbone, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """pixel_values (B,3,H,W) in [-1,1] -> mean and std (B,C,H/f,W/f) of the scaled latents' posterior."""
    scale = backbone.vae.config.scaling_factor
    with torch.no_grad():
        posterior = backbone.vae.encode(pixel_values.contiguous(memory_format=torch.channels_last)).latent_dist
    return posterior.mean * scale, posterior.std * scale


def decode_latents(backbone: Backbone, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents (B,C,H/f,W/f) -> pixel_values (B,3,H,W) float32, about [-1,1].

    It computes in the U-Net's precision: bfloat16 moves a pixel by 0.1 grey levels on average.
    """
    latents = (latents.float() / backbone.vae.config.scaling_factor).contiguous(memory_format=torch.channels_last)
    reduced = torch.autocast(latents.device.type, backbone.dtype, enabled=backbone.dtype != torch.float32)
    with torch.no_grad(), reduced:  # one by one: the decoder's activations at full resolution are the largest of all
        return torch.cat([backbone.vae.decode(one).sample for one in latents.split(1)]).float()


def predict_noise(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel | None,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    controlnet_cond: torch.Tensor | None,
    conditioning_scale: float = 1.0,
) -> torch.Tensor:
    """The U-Net's output for noisy latents (B,C,h,w), steered by controlnet_cond (B,3,H,W) in [0,1], or by nothing.

    timesteps (B,) or scalar; encoder_hidden_states (B,L,D), whose dtype is that of the arithmetic. What learns is
    float32 and takes part by autocast; what is frozen has that dtype throughout and needs none. Returns (B,C,h,w)
    float32: the noise, or the velocity where the scheduler says so.
    """
    device, dtype, residuals = noisy_latents.device.type, encoder_hidden_states.dtype, {}
    if controlnet is not None:
        own = controlnet.conv_in.weight.dtype
        with torch.autocast(device, dtype=dtype, enabled=own != dtype):
            down_block_res_samples, mid_block_res_sample = controlnet(
                noisy_latents.to(own),
                timesteps,
                encoder_hidden_states=encoder_hidden_states,
                controlnet_cond=controlnet_cond.to(own),
                conditioning_scale=conditioning_scale,
                return_dict=False,
            )
        residuals["down_block_additional_residuals"] = [sample.to(dtype) for sample in down_block_res_samples]
        residuals["mid_block_additional_residual"] = mid_block_res_sample.to(dtype)
    elif device == "cpu" and torch.is_grad_enabled():  # torch 2.13: a group norm that learns crashes the process where
        noisy_latents.requires_grad_()  # its input, channels last, needs no gradient
    learns = controlnet is None or unet.conv_out.weight.dtype != dtype  # of the U-Net's parts, see `belongs`
    with torch.autocast(device, dtype=dtype, enabled=learns and dtype != torch.float32):
        return unet(
            noisy_latents.to(dtype),
            timesteps,
            encoder_hidden_states=encoder_hidden_states,
            return_dict=False,
            **residuals,
        )[0].float()


class Constant(torch.nn.Module):
    """Answers with the same tensor whatever it is asked."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = value

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self.value


@contextmanager
def computed_once(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel | None,
    encoder_hidden_states: torch.Tensor,
    controlnet_cond: torch.Tensor | None,
) -> Iterator[None]:
    """Within it what no timestep changes is not computed anew at each: the mask's embedding, and the keys and values
    of the prompt in every cross-attention. Arguments as for `predict_noise`, which then does not look at them."""
    dtype, layers = encoder_hidden_states.dtype, []  # (owner, name, input) of the layers that are replaced
    if controlnet is not None:
        layers.append((controlnet, "controlnet_cond_embedding", controlnet_cond.to(controlnet.conv_in.weight.dtype)))
    for model in filter(None, (unet, controlnet)):
        for name, layer in model.named_modules():
            if name.endswith("attn2"):  # by diffusers' names; attn1 attends to the image itself
                layers += [(layer, "to_k", encoder_hidden_states), (layer, "to_v", encoder_hidden_states)]
    before = [getattr(owner, name) for owner, name, _ in layers]
    with torch.autocast(unet.device.type, dtype=dtype, enabled=dtype != torch.float32):
        constants = [Constant(layer(given)) for layer, (_, _, given) in zip(before, layers, strict=True)]
    try:
        for (owner, name, _), constant in zip(layers, constants, strict=True):
            setattr(owner, name, constant)
        yield
    finally:
        for (owner, name, _), layer in zip(layers, before, strict=True):
            setattr(owner, name, layer)


@dataclass(frozen=True)
class Batch:
    """What a training step draws for its slices, on the device."""

    latents: torch.Tensor  # (B,C,h,w) scaled
    noise: torch.Tensor  # (B,C,h,w) standard normal
    timesteps: torch.Tensor  # (B,) int64
    encoder_hidden_states: torch.Tensor  # (B,L,D) of the prompts
    controlnet_cond: torch.Tensor  # (B,3,H,W) in [0,1]
    share: torch.Tensor | None = None  # (B,1,h,w) in [0,1]: how much of each latent carries loss; None: all do


@dataclass(frozen=True)
class Denoiser:
    """What predicts the noise, and how its errors are weighed."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    scheduler: DDPMScheduler
    max_weight: float = 1.0  # largest weight of a noisy timestep; 1 is the plain loss
    predict: Callable[..., torch.Tensor] = predict_noise  # plain or compiled


def denoising_loss(denoiser: Denoiser, batch: Batch) -> torch.Tensor:
    """Mean squared error between predicted and true noise: w(t) || eps - eps_theta(z_t, t, prompt, mask) ||^2.

    With a v-prediction scheduler the target is the velocity. w(t) = 1 / SNR(t) within [1, max_weight]: above 1 it makes
    up for what the plain loss hardly sees, errors in brightness and contrast, which are decided where noise prevails.
    """
    scheduler, timesteps = denoiser.scheduler, batch.timesteps
    noisy_latents = scheduler.add_noise(batch.latents, batch.noise, timesteps)
    prediction = denoiser.predict(
        denoiser.unet, denoiser.controlnet, noisy_latents, timesteps, batch.encoder_hidden_states, batch.controlnet_cond
    )
    target = batch.noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
    error = F.mse_loss(prediction, target, reduction="none")  # (B,C,h,w)
    if batch.share is not None:
        error = error * batch.share / batch.share.mean(dim=(1, 2, 3), keepdim=True)
    error = error.mean(dim=(1, 2, 3))  # (B,)
    alphas = scheduler.alphas_cumprod.to(error.device)[timesteps]
    return (((1 - alphas) / alphas).clamp(1.0, denoiser.max_weight) * error).mean()
