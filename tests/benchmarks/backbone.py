"""What the embedded backbone loses and what it earns: `python tests/benchmarks/backbone.py [DATA]`.

Without DATA each seed has a phantom of its own. Two tables, a line per seed:
- the VAE's round trip: PSNR, the share of spectral power kept in the top octave, and the test mIoU of a U-Net
  trained on real slices, on real and on decoded test slices;
- label consistency (IoU of that U-Net on synthetic slices against their masks) of a ControlNet over the frozen
  backbone, and of one over random frozen U-Net weights, after equally many steps.
"""

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from natural2nanoscale.data.encoders import decode_gray, encode_gray
from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.diffusion.backbone import Backbone, load_backbone
from natural2nanoscale.diffusion.controlnet import decode_latents, latent_moments
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.segmentation.evaluation import image_matrices, score
from natural2nanoscale.segmentation.settings import SHORT
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.segmentation.training import train
from natural2nanoscale.study.conditions import mixed
from natural2nanoscale.study.presets import PRESETS, Place
from natural2nanoscale.study.synthetic import draw_synthetic, train_controlnet
from natural2nanoscale.study.training_sets import draw_train, redraw_root
from natural2nanoscale.study.trial import Drawing, Trial

CPU = torch.device("cpu")


def decoded(backbone: Backbone, image: np.ndarray) -> np.ndarray:
    """A slice (H,W) uint8 through the VAE and back."""
    height, width = image.shape
    filled = np.pad(image, ((0, -height % backbone.grid), (0, -width % backbone.grid)), mode="symmetric")
    latents, _ = latent_moments(backbone, encode_gray(torch.from_numpy(filled)[None]))
    return decode_gray(decode_latents(backbone, latents))[0, :height, :width].numpy()


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / ((image.astype(float) - other) ** 2).mean())


def top_octave(image: np.ndarray) -> float:
    """Power between a half and all of the Nyquist frequency, under a Hann window."""
    height, width = image.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return power[(radius > 0.25) & (radius <= 0.5)].sum()


def random_unet(backbone: Backbone, seed: int) -> Backbone:
    """The same backbone with a U-Net that has learned nothing."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config(backbone.unet.config).requires_grad_(False).eval()
    return replace(backbone, unet=unet.to(memory_format=torch.channels_last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--out", type=Path, default=Path("runs/backbone-benchmark"))
    args = parser.parse_args()
    backbone = load_backbone("embedded", CPU)
    preset, ratios = replace(PRESETS["worth"], seed=args.seed, controlnet_steps=args.steps), []
    for turn in range(args.seeds):
        here = args.out / f"seed-{turn}"
        root = redraw_root(Place(here, args.data), preset, turn)
        folders = {part: open_pairs(root / part) for part in ("train", "val", "test")}
        folders["train"] = draw_train(here / "train", folders["train"], args.slices, args.seed, turn)
        slices = {part: load_slices(folder) for part, folder in folders.items()}
        seed = seed_for(args.seed, "redraw", turn)
        judge = train(
            slices["train"],
            slices["val"],
            replace(SHORT, augment="rotation", seed=turn),
            CPU,
        ).model

        def scores(these: Slices, judge=judge) -> dict:
            return score(image_matrices(judge, these, CPU), [""] * len(these))

        test = slices["test"]
        trips = [decoded(backbone, image) for image in test.images]
        pairs = list(zip(test.images, trips, strict=True))
        real, trip = scores(test), scores(replace(test, images=trips))
        ratios.append(trip["miou"] / real["miou"])
        print(
            f"seed {turn}: round trip {statistics.fmean(psnr(*pair) for pair in pairs):.1f} dB, top octave kept "
            f"{100 * statistics.fmean(top_octave(b) / top_octave(a) for a, b in pairs):.0f} %, mIoU real "
            f"{100 * real['miou']:.1f}, decoded {100 * trip['miou']:.1f}: {100 * ratios[-1]:.1f} % kept",
            flush=True,
        )
        for name, model in (("frozen", backbone), ("random", random_unet(backbone, turn))):
            trial = Trial(preset, Place(here / name), turn, "given", args.slices, [mixed(1.0)])
            drawing = Drawing(trial, "plain")
            train_controlnet(drawing, model, folders, seed)
            draw_synthetic(drawing, model, folders["train"], folders["val"], seed)
            found = scores(load_slices(open_pairs(drawing.folder)))
            shares = [f"{100 * a / b:.1f}" for a, b in zip(found["iou"], real["iou"], strict=True) if a and b]
            print(
                f"seed {turn}: label consistency over {name} weights {100 * found['miou']:.1f}, "
                f"per class {', '.join(shares)} % of the IoU on real test slices",
                flush=True,
            )
    print(f"mIoU kept by the round trip: {100 * statistics.fmean(ratios):.1f} % over {args.seeds} seeds")


if __name__ == "__main__":
    main()
