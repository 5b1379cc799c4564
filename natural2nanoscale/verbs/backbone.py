"""The verb `backbone`: train the embedded backbone on dead-leaves images."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from natural2nanoscale.cli import add_settings, settings_from
from natural2nanoscale.workshop.recipe import PretrainingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="run folder; the backbone itself is written to OUT/backbone")
    add("--vae", type=Path, metavar="FOLDER", help="backbone whose VAE to keep, instead of training one")
    add_settings(parser, PretrainingSettings)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUT")


def run(args: argparse.Namespace) -> None:
    """Train the VAE, then the U-Net, into args.out."""
    from diffusers import AutoencoderKL

    from natural2nanoscale.device import select_device
    from natural2nanoscale.diffusion.backbone import weights_hash
    from natural2nanoscale.diffusion.parts import load_module
    from natural2nanoscale.runs import open_run
    from natural2nanoscale.workshop.captions import caption_sheet
    from natural2nanoscale.workshop.images import image_bank
    from natural2nanoscale.workshop.pretraining import train_unet, train_vae

    settings, device = settings_from(args, PretrainingSettings), select_device(args.device)
    vae = load_module(AutoencoderKL, args.vae / "vae").to(device) if args.vae else None
    config = {"kind": "backbone", "settings": asdict(settings), "data": {}, "vae": vae and weights_hash(vae)}
    folder = open_run(args.out, config, args.resume, may_change=("unet_steps",))
    bank = image_bank(settings)
    vae = vae or train_vae(settings, bank, folder, device)
    train_unet(settings, bank, vae, folder, device)
    caption_sheet(folder.path / "backbone", folder.path / "captions.png")
    print(f"backbone written to {folder.path}/backbone; what it makes of captions: {folder.path}/captions.png")
