"""The `check` verb: look at a data root before training on it, or at files before preparing them."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from natural2nanoscale.cli import DATA, add_settings, command, settings_from
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "data root with train/, val/ and test/, one pair folder, or slices as `prepare --images` takes them"
    add("data", type=Path, nargs="?", default=DATA, metavar="PATH", help=what)
    add("--masks", type=Path, metavar="PATH", help="of slices: their masks, as `prepare` takes them")
    add("--contact", type=Path, metavar="FILE", help="contact sheet (default: DATA/contact.png; of slices: here)")
    add("--backbone", metavar="NAME", help="what its VAE keeps of the slices: embedded, a folder, file or hub id")
    add("--device", default="auto", help="of the VAE: auto, cpu or cuda")
    add_settings(parser.add_argument_group("of slices, as for `prepare`"), Preparation)


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.data.check import open_root, report, tell
    from natural2nanoscale.data.check_files import holds_slices, preview, tell_round_trip
    from natural2nanoscale.data.folders import PARTS, evenly_spaced
    from natural2nanoscale.data.sheets import contact_sheet

    of_files = holds_slices(args.data)
    path = args.contact or (Path("contact.png") if of_files else args.data / "contact.png")
    if args.masks and not of_files:
        raise InputError(f"--masks goes with slices, but {args.data} is no folder, file or container of such")
    round_trip = vae_of(args.backbone, args.device) if args.backbone else None
    with ExitStack() as opened:
        if of_files:
            settings = settings_from(args, Preparation, images=args.data, masks=args.masks or args.data, out=DATA)
            count, folder = opened.enter_context(preview(settings, args.masks is not None))
            folders = {args.data.name: folder}
            found = tell(folders, {part: folder.of(part) for part in PARTS})
            call = command("python -m natural2nanoscale prepare", images=args.data, masks=args.masks or "MASKS")
            fit = f"{count} slices can be read, `{call}` takes them with the flags of this call"
        else:
            found, fit, folders = report(args.data), "nothing stands in the way of training", open_root(args.data)
        if round_trip:
            folder = next(iter(folders.values()))
            tell_round_trip([folder.image(stem) for stem in evenly_spaced(folder.stems, 4)], round_trip)
        try:
            contact_sheet(folders, path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error}): name another file with --contact") from error
    print(f"contact sheet: {path}")
    print(f"verdict: {fit}" + (f"; look at the {len(found)} warning(s) first" if found else ""))


def vae_of(name: str, device: str):
    """The way of a slice (H,W) uint8 through a backbone's VAE and back."""
    import numpy as np
    import torch

    from natural2nanoscale.data.encoders import decode_gray, encode_gray
    from natural2nanoscale.device import select_device
    from natural2nanoscale.diffusion.backbone import load_backbone
    from natural2nanoscale.diffusion.controlnet import decode_latents, latent_moments

    backbone = load_backbone(name, select_device(device))

    def round_trip(image: np.ndarray) -> np.ndarray:
        pixels = encode_gray(torch.tensor(image, device=backbone.device)[None])
        return decode_gray(decode_latents(backbone, latent_moments(backbone, pixels)[0]))[0].cpu().numpy()

    return round_trip
