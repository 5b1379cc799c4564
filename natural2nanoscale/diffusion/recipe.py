"""The recipe of the embedded backbone, apart from torch so that help is quick."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainingSettings:
    """The recipe; its defaults made the shipped weights."""

    seed: int = 0
    images: int = 2048  # dead-leaves images of 128x128
    wide_images: int = 768  # and of 224x128, the shape of the phantom's crops
    vae_steps: int = 1600
    vae_batch_size: int = 8
    vae_crop: int = 64  # pixels, square
    vae_learning_rate: float = 2e-3
    kl_weight: float = 5e-4  # per latent value: weak, so that fine texture has channels of its own
    unet_steps: int = 2600
    batch_size: int = 8  # of 128x128; wide batches hold as many pixels
    unet_learning_rate: float = 1e-3
    caption_dropout: float = 0.1  # guidance needs an unconditional model
    snr_gamma: float = 5.0  # loss weight min(SNR, gamma) / SNR (Hang et al. 2023)
    save_every: int = 250
