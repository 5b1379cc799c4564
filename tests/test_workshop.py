"""Dead-leaves images, the training of the embedded backbone, and the weights that are shipped."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from natural2nanoscale import runs
from natural2nanoscale.data.encoders import encode_gray, normalize
from natural2nanoscale.diffusion.backbone import EMBEDDED
from natural2nanoscale.phantom.volume import volume
from natural2nanoscale.workshop import architecture, dead_leaves, pretraining, scenes
from natural2nanoscale.workshop.images import SHAPES, tokenize, with_mirror_images

SCENE = scenes.Scene(
    "mid", "grey", "high contrast", "many", "coarse", "round", "granular", "", "", "sharp", "clean", ""
)


def spectrum_slope(images: list[np.ndarray]) -> float:
    """Exponent of the mean radial power spectrum between 3 and 32 cycles per image of 128 pixels."""
    size = len(images[0])
    window = np.hanning(size)[:, None] * np.hanning(size)
    power = np.zeros((size, size))
    for image in images:
        grey = image.mean(axis=2) / 255
        power += np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size) * size] * 2))
    edges = np.geomspace(3, 32, 10)
    rings = [(frequency >= low) & (frequency < high) for low, high in zip(edges, edges[1:], strict=False)]
    return np.polyfit(
        [np.log(frequency[ring].mean()) for ring in rings], [np.log(power[ring].mean()) for ring in rings], 1
    )[0]


def test_spectrum_is_natural():
    slope = spectrum_slope([dead_leaves.draw(7, i, 128, 128)[0] for i in range(64)])
    assert -2.4 < slope < -1.6  # power ~ 1/f^2


def test_spectrum_slope_measures_what_it_should():
    rng = np.random.default_rng(0)
    white = [np.repeat(rng.integers(0, 255, (128, 128, 1)), 3, axis=2) for _ in range(16)]
    assert abs(spectrum_slope(white)) < 0.2


def test_images_are_functions_of_seed_and_index():
    image, text = dead_leaves.draw(3, 5, 64, 96)
    again, same_text = dead_leaves.draw(3, 5, 64, 96)
    other, _ = dead_leaves.draw(3, 6, 64, 96)
    assert image.shape == (64, 96, 3) and image.dtype == np.uint8
    assert np.array_equal(image, again) and text == same_text
    assert not np.array_equal(image, other)


def test_captions_state_how_images_were_drawn():
    def mean_of(pixels=lambda image: image, **phrases) -> float:
        scene = dataclasses.replace(SCENE, **phrases)
        return float(np.mean([
            pixels(dead_leaves.render(scene, np.random.default_rng(i), 96, 128).astype(float)) for i in range(6)
        ]))  # fmt: skip

    def roughness(image):
        return np.abs(np.diff(image, axis=1)).mean()

    def chroma(image):
        return image.std(axis=2).mean()

    assert mean_of(tone="dark") + 40 < mean_of(tone="mid") < mean_of(tone="bright") - 30
    assert mean_of(chroma) == 0 and mean_of(chroma, colour="coloured") > 3
    assert mean_of(roughness, scale="fine") > 1.2 * mean_of(roughness)
    assert mean_of(roughness, noise="noisy") > 1.2 * mean_of(roughness)
    assert mean_of(roughness, focus="blurred") < 0.7 * mean_of(roughness)
    assert mean_of(np.std, contrast="low contrast") < 0.6 * mean_of(np.std)
    assert mean_of(lambda image: image[:3], tone="dark", horizon="bright sky above") > 200
    assert mean_of(lambda image: image[-3:], tone="bright", horizon="dark ground below") < 60
    assert mean_of(lambda image: image[:, :3], tone="dark", horizon="bright wall left") > 200
    assert mean_of(lambda image: image[:, -3:], tone="bright", horizon="dark wall right") < 60


def test_every_caption_word_is_one_token_and_other_prompts_are_told_apart():
    tokenizer = architecture.make_tokenizer()
    for word in scenes.caption_words() + architecture.EXTRA_WORDS:
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end
    longest = max((dead_leaves.draw(0, i, 8, 8)[1] for i in range(50)), key=len)
    assert tokenizer.unk_token_id not in tokenizer(longest).input_ids[:-1]
    first, second, odd = (tokenizer(text).input_ids for text in ("a quirky ox", "a quirky yak", "é 漢 1.5 µm"))
    assert first != second and len(odd) > 6 and tokenizer.unk_token_id not in odd[:-1]


def test_noise_loss_is_the_weighted_squared_error():
    scheduler = architecture.make_scheduler()
    latents, noise = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 500, 999])

    class Half(torch.nn.Module):  # predicts half of what it is given
        def forward(self, x, t, states):
            return type("Output", (), {"sample": x / 2})

    loss = pretraining.noise_loss(Half(), scheduler, latents, None, noise, t, snr_gamma=5.0, max_weight=25.0)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    error = ((a.sqrt() * latents + (1 - a).sqrt() * noise) / 2 - noise).square().mean(dim=(1, 2, 3))
    snr = (a / (1 - a)).flatten()
    assert snr[0] > 5 and 1 / 25 < snr[1] < 1 and snr[2] < 1 / 25
    expected = (5 / snr[0] * error[0] + error[1] / snr[1] + 25 * error[2]) / 3
    assert torch.allclose(loss, expected)


def small_bank() -> dict:
    bank = {}
    for height, width in SHAPES:
        drawn = [dead_leaves.draw(0, i, height, width) for i in range(2)]
        images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
        bank[height, width] = images, [text for _, text in drawn]
    return bank


def test_mirror_images_have_mirrored_captions():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    captions = ["a dark grey image, bright wall left", "a bright image with rims, dark sky above"]
    both, texts = with_mirror_images(images, captions)
    assert torch.equal(both[:2], images) and torch.equal(both[2], images[0, :, :, [4, 3, 2, 1, 0]])
    assert texts == [*captions, "a dark grey image, bright wall right", captions[1]]


def test_training_resumes_exactly_and_writes_a_loadable_folder(tmp_path, monkeypatch):
    settings = pretraining.PretrainingSettings(
        vae_steps=4, vae_batch_size=1, vae_crop=32, unet_steps=4, batch_size=1, save_every=2
    )
    device, bank = torch.device("cpu"), small_bank()

    def train(folder):
        folder.mkdir(exist_ok=True)
        run = runs.RunFolder(folder)
        vae = pretraining.train_vae(settings, bank, run, device)
        pretraining.train_unet(settings, bank, vae, run, device)
        return {part: weights(folder / "backbone" / part) for part in ("vae", "unet", "text_encoder")}

    straight = train(tmp_path / "straight")

    for name in ("vae_loss", "noise_loss"):  # interrupted once in each loop, in its fourth step
        original, calls = getattr(pretraining, name), []

        def interrupting(*args, original=original, calls=calls):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(pretraining, name, interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken")
    resumed = train(tmp_path / "broken")
    for part, expected in straight.items():
        assert all(torch.equal(expected[key], resumed[part][key]) for key in expected), part


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}
    return tensors


@pytest.fixture(scope="module")
def shipped():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return (
        AutoencoderKL.from_pretrained(EMBEDDED / "vae"),
        UNet2DConditionModel.from_pretrained(EMBEDDED / "unet").eval(),
        CLIPTextModel.from_pretrained(EMBEDDED / "text_encoder").eval(),
        CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
    )


def test_shipped_weights_are_small_fp16_safetensors():
    files = list(EMBEDDED.rglob("*.safetensors"))
    assert len(files) == 3 and sum(file.stat().st_size for file in files) <= 12e6
    assert not [file for file in EMBEDDED.rglob("*") if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]
    for part in ("vae", "unet", "text_encoder"):
        assert {tensor.dtype for tensor in weights(EMBEDDED / part).values()} == {torch.float16}


@torch.no_grad()
def test_shipped_vae_keeps_grey_slices(shipped):
    """What it is for: grey slices come back with their contrast, and closer than from half the resolution."""
    vae = shipped[0]
    slices, _ = volume(4, 128, 224, seed=5)
    pixels = encode_gray(torch.from_numpy(slices))
    posterior = vae.encode(pixels).latent_dist
    decoded = vae.decode(posterior.mean).sample.clamp(-1, 1)
    halved = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear", align_corners=False)
    assert (decoded - pixels).square().mean() < 0.7 * (halved - pixels).square().mean()
    contrast = decoded.std(dim=(1, 2, 3)) / pixels.std(dim=(1, 2, 3))
    assert contrast.min() > 0.97 and contrast.max() < 1.03


@torch.no_grad()
def test_latents_have_unit_variance_on_what_the_vae_was_trained_on(shipped):
    vae = shipped[0]
    images = torch.stack([torch.from_numpy(dead_leaves.draw(99, i, 128, 128)[0]).permute(2, 0, 1) for i in range(8)])
    latents = vae.encode(normalize(images)).latent_dist.mean * vae.config.scaling_factor
    assert abs(latents.std().item() - 1) < 0.25


@torch.no_grad()
def test_shipped_unet_predicts_noise_and_heeds_captions(shipped):
    vae, unet, text_encoder, tokenizer = shipped
    scheduler = architecture.make_scheduler()
    drawn = [dead_leaves.draw(98, i, 128, 128) for i in range(16)]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in drawn])
    latents = vae.encode(normalize(images)).latent_dist.mean * vae.config.scaling_factor
    states = text_encoder(tokenize(tokenizer, [text for _, text in drawn])).last_hidden_state
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((16,), 700)
    noisy = scheduler.add_noise(latents, noise, t)
    error = (unet(noisy, t, states).sample - noise).square().mean().item()
    wrong_caption = (unet(noisy, t, states.roll(1, 0)).sample - noise).square().mean().item()
    signal = (1 - scheduler.alphas_cumprod[700]).sqrt() * noisy - noise  # error of the best guess for white latents
    assert error < 0.7 * signal.square().mean().item()
    assert error < wrong_caption
