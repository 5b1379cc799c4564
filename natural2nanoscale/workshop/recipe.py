"""The recipe of the embedded backbone, apart from torch so that help is quick."""

from dataclasses import dataclass

from natural2nanoscale.cli import at_least, setting


@dataclass(frozen=True)
class PretrainingSettings:
    """The recipe; its defaults made the shipped weights."""

    seed: int = setting(0, "seed of images and weights", at_least(0))
    images: int = setting(2048, "dead-leaves images of 128x128 pixels", at_least(16))
    wide_images: int = setting(768, "and of 224x128, the shape of the phantom's crops", at_least(16))
    vae_steps: int = setting(1600, "steps of the VAE", at_least(1))
    vae_batch_size: int = 8
    vae_crop: int = 64  # pixels, square
    vae_learning_rate: float = 2e-3
    kl_weight: float = 5e-4  # per latent value: weak, so that fine texture has channels of its own
    unet_steps: int = setting(8000, "steps of the U-Net", at_least(1))
    precision: str = setting("float32", "what the U-Net's training computes in", choices=("float32", "bfloat16"))
    batch_size: int = setting(8, "images of 128x128 per step of the U-Net; wide ones hold as many pixels", at_least(1))
    unet_learning_rate: float = 1e-3
    caption_rate: float = 4.0  # of the layers that read captions, in parts of the learning rate
    caption_dropout: float = 0.1  # guidance needs an unconditional model
    noise_offset: float = 0.5  # std of one more value per channel: hides the tone, which the caption then has to tell
    snr_gamma: float = 5.0  # loss weight gamma / SNR where little noise is left (Hang et al. 2023)
    max_weight: float = 25.0  # and 1 / SNR up to this where noise prevails
    save_every: int = 250
