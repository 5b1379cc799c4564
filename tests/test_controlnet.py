"""ControlNet's start, its loss and its sampling, each against diffusers' own composition."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from backbones import disturbed, pipeline
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)

from natural2nanoscale.diffusion.backbone import Backbone, encode_prompts, load_backbone
from natural2nanoscale.diffusion.controlnet import (
    Batch,
    Denoiser,
    computed_once,
    decode_latents,
    denoising_loss,
    latent_moments,
    make_controlnet,
    predict_noise,
)
from natural2nanoscale.diffusion.sampling import sample, sampling_scheduler
from natural2nanoscale.diffusion.settings import SamplingSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tiny", "small", "embedded"])
def backbone(request, tiny_backbone, small_backbone) -> Backbone:
    """Two levels; Stable Diffusion 1.5's structure; and the one that the package brings."""
    return load_backbone(str({"tiny": tiny_backbone, "small": small_backbone}.get(request.param, "embedded")), CPU)


def batch(backbone: Backbone, count: int = 2, size: int = 64):
    """Latents, noise, timesteps, prompt embeddings and conditioning of a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    side = size // backbone.downsampling
    shape = (count, backbone.unet.config.in_channels, side, side)
    latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    timesteps = torch.randint(1000, (count,), generator=generator)
    conditioning = torch.rand((count, 3, size, size), generator=generator).round()
    return latents, noise, timesteps, encode_prompts(backbone, ["dark cell", "grey nucleus"][:count]), conditioning


def test_untrained_controlnet_leaves_the_backbone_unchanged(backbone):
    latents, _, timesteps, hidden, conditioning = batch(backbone)
    with torch.no_grad():
        steered = predict_noise(backbone.unet, make_controlnet(backbone), latents, timesteps, hidden, conditioning)
        alone = backbone.unet(latents, timesteps, hidden).sample
    assert torch.equal(steered, alone)


def test_only_controlnet_learns(backbone):
    controlnet = make_controlnet(backbone)
    latents, noise, timesteps, hidden, conditioning = batch(backbone)
    denoiser = Denoiser(backbone.unet, controlnet, backbone.scheduler)
    denoising_loss(denoiser, Batch(latents, noise, timesteps, hidden, conditioning)).backward()
    # at the start the zero convolutions have gradients, and nothing of the frozen parts has
    assert controlnet.controlnet_mid_block.weight.grad.abs().sum() > 0
    frozen = [*backbone.unet.parameters(), *backbone.vae.parameters(), *backbone.text_encoder.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_equals_plain_composition_of_diffusers(backbone, prediction_type):
    controlnet = disturbed(backbone)
    scheduler = DDPMScheduler.from_config(backbone.scheduler.config, prediction_type=prediction_type)
    latents, noise, timesteps, hidden, conditioning = batch(backbone)
    drawn = Batch(latents, noise, timesteps, hidden, conditioning)
    ours = denoising_loss(Denoiser(backbone.unet, controlnet, scheduler), drawn)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    down, mid = controlnet(noisy, timesteps, hidden, conditioning, return_dict=False)
    output = backbone.unet(
        noisy, timesteps, hidden, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    target = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert abs(ours.item() - F.mse_loss(output, target).item()) < 1e-6


def test_noisy_timesteps_weigh_up_to_the_limit(backbone):
    controlnet = disturbed(backbone)
    latents, noise, _, hidden, conditioning = batch(backbone, count=1)
    arguments = backbone.unet, controlnet, backbone.scheduler
    for timestep in (50, 600, 990):
        timesteps = torch.tensor([timestep])
        drawn = Batch(latents, noise, timesteps, hidden, conditioning)
        plain, weighted = (denoising_loss(Denoiser(*arguments, limit), drawn).item() for limit in (1.0, 9.0))
        alpha = backbone.scheduler.alphas_cumprod[timestep].item()
        assert weighted / plain == pytest.approx(min(max((1 - alpha) / alpha, 1.0), 9.0), rel=1e-5)


def sampled_by_both(backbone, scheduler, settings):
    """Ours in [0,1], and diffusers' pipeline with a scheduler of its own, from the same noise."""
    controlnet = disturbed(backbone)
    _, noise, _, _, conditioning = batch(backbone, count=1)
    prompt = ["a dark cell"]
    embeds, negative = encode_prompts(backbone, prompt), encode_prompts(backbone, [""])
    generators = [torch.Generator().manual_seed(7)]
    ours = sample(backbone, controlnet, noise, conditioning, embeds, negative, settings, generators)
    theirs = pipeline(StableDiffusionControlNetPipeline, backbone, controlnet, scheduler)(
        prompt,
        image=conditioning,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        controlnet_conditioning_scale=settings.strength,
        eta=settings.eta,
        latents=noise.clone(),
        generator=[torch.Generator().manual_seed(7)],
        output_type="pt",  # (1,3,H,W) in [0,1]
    ).images
    return (ours / 2 + 0.5).clamp(0, 1), theirs


@pytest.mark.parametrize(
    "guidance, strength, eta, prediction_type",
    [(1.0, 1.0, 0.0, "epsilon"), (3.0, 0.7, 0.0, "epsilon"), (2.0, 1.0, 1.0, "v_prediction")],
)
def test_sample_equals_diffusers_pipeline(backbone, guidance, strength, eta, prediction_type):
    scheduler = DDPMScheduler.from_config(backbone.scheduler.config, prediction_type=prediction_type)
    ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    settings = SamplingSettings(steps=5, guidance=guidance, strength=strength, eta=eta)
    ours, theirs = sampled_by_both(replace(backbone, scheduler=scheduler), ddim, settings)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    "sampler, solver, prediction_type",
    [("dpm++", DPMSolverMultistepScheduler, "epsilon"), ("unipc", UniPCMultistepScheduler, "v_prediction")],
)
def test_the_other_samplers_equal_diffusers_pipeline(backbone, sampler, solver, prediction_type):
    scheduler = DDPMScheduler.from_config(backbone.scheduler.config, prediction_type=prediction_type)
    settings = SamplingSettings(sampler, steps=5, guidance=2.0)
    backbone = replace(backbone, scheduler=scheduler)
    ours, theirs = sampled_by_both(backbone, solver.from_config(scheduler.config), settings)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_start_from_the_real_slice_equals_diffusers_pipeline(tiny_backbone, sampler):
    backbone = load_backbone(str(tiny_backbone), CPU)
    controlnet = disturbed(backbone)
    real_latents, _, _, _, conditioning = batch(backbone, count=1)
    noise = torch.randn(real_latents.shape, generator=torch.Generator().manual_seed(3))
    embeds, negative = encode_prompts(backbone, ["a dark cell"]), encode_prompts(backbone, [""])
    settings = SamplingSettings(sampler, steps=10, guidance=2.0, start=0.6)
    ours = sample(backbone, controlnet, noise, conditioning, embeds, negative, settings, real_latents=real_latents)
    scheduler = sampling_scheduler(backbone, sampler)
    theirs = pipeline(StableDiffusionControlNetImg2ImgPipeline, backbone, controlnet, scheduler)(
        "a dark cell",
        image=real_latents,  # four channels: taken as latents
        control_image=conditioning,
        height=64,
        width=64,
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=2.0,
        controlnet_conditioning_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    assert ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-4


def test_what_no_timestep_changes_is_computed_once(backbone):
    controlnet = disturbed(backbone)
    latents, _, timesteps, hidden, conditioning = batch(backbone)
    once = [controlnet.controlnet_cond_embedding]
    for model in (backbone.unet, controlnet):
        once += [layer for name, layer in model.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    calls = []
    handles = [layer.register_forward_hook(lambda layer, *_: calls.append(layer)) for layer in once]
    arguments = backbone.unet, controlnet, latents, timesteps, hidden, conditioning
    with torch.no_grad():
        plain = predict_noise(*arguments)
        assert len(calls) == len(once) > 4
        with computed_once(backbone.unet, controlnet, hidden, conditioning):
            assert all(torch.equal(predict_noise(*arguments), plain) for _ in range(3))
        assert len(calls) == 2 * len(once)
        assert torch.equal(predict_noise(*arguments), plain) and len(calls) == 3 * len(once)
    for handle in handles:
        handle.remove()


def test_two_prompts_get_different_tokens(backbone):
    one, two = backbone.tokenizer(["dark nucleus", "bright cytoplasm"]).input_ids
    assert one != two
    embeds = encode_prompts(backbone, ["dark nucleus", "bright cytoplasm"])
    assert (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_moments_are_those_of_the_vae(backbone):
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = latent_moments(backbone, pixels)
    posterior = backbone.vae.encode(pixels).latent_dist
    scale = backbone.vae.config.scaling_factor
    assert torch.allclose(mean, posterior.mean * scale, atol=1e-6)
    assert torch.allclose(std, posterior.std * scale, atol=1e-6)


def test_a_reduced_decoder_is_within_a_grey_level():
    exact = load_backbone("embedded", CPU)
    latents = batch(exact)[0]
    expected = exact.vae.decode(latents / exact.vae.config.scaling_factor).sample
    pixels, reduced = (decode_latents(one, latents) for one in (exact, replace(exact, dtype=torch.bfloat16)))
    assert torch.allclose(pixels, expected, atol=1e-5) and reduced.dtype == torch.float32
    apart = (pixels - reduced).abs() * 127.5
    assert 0 < apart.mean() < 0.3 and apart.max() < 3


def test_the_share_of_steps_is_not_cut_by_rounding():
    """50 * 0.58 is a hair below 29 in floating point; what lies between two steps is rounded down as ever."""
    for steps, start, taken in ((50, 0.58, 29), (50, 0.57, 28), (20, 0.8, 16), (20, 0.33, 6), (7, 1.0, 7)):
        assert SamplingSettings(steps=steps, start=start).steps_taken == taken
