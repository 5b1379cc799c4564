"""The tutorial: from one 16-bit TIFF stack with twelve annotated slices to masks of the whole stack.

    python tests/tutorial.py FOLDER           runs every command in FOLDER and writes FOLDER/TUTORIAL.md
    python tests/tutorial.py FOLDER --write   and puts text and pictures into natural2nanoscale/data

The stack is a phantom, so that anybody can repeat it; in the commands only the names of your own files change.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from natural2nanoscale.data.folders import evenly_spaced, open_pairs
from natural2nanoscale.data.sheets import colored, sheet
from natural2nanoscale.phantom.volume import volume
from natural2nanoscale.segmentation.metrics import confusion, iou

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "natural2nanoscale" / "data"
CLASSES = "background,cytoplasm,nucleus"
EVERY = 4  # slices from one annotated one to the next
SHOWN, LONGEST = 16, 160  # lines of what a command prints, and letters of a line
STEPS = (  # heading, what is said of it, command, picture that it leaves, which part of it, what to look for there
    (
        "Look at the files",
        "The masks are a stack of as many pages, of which every fourth is annotated; the others hold nothing but 0.",
        f"python -m natural2nanoscale check stack.tif --masks masks.tif --classes {CLASSES}",
        "contact.png",
        (0, 0, 688, 322),
        "Do the colours lie on what they are named after, and does nothing look mirrored, shifted or inverted? What is "
        "wrong here is wrong in everything that follows.",
    ),
    (
        "Make a data root",
        "Blank masks are left out, 16 bits become 8 by percentiles of the training part, and blocks of slices are kept "
        "for validation and test.",
        f"python -m natural2nanoscale prepare --images stack.tif --masks masks.tif --classes {CLASSES} --gap 0",
        "data/contact.png",
        (0, -454, 688, 454),
        "Do the parts have one brightness and contrast, and every class in each of them?",
    ),
    (
        "Train the ControlNet",
        "The phantom is drawn well by the embedded backbone. Leave `--backbone` out for slices of a microscope: they "
        "take Stable Diffusion, and a GPU.",
        "python train_controlnet.py --backbone embedded --epochs {controlnet}",
        "runs/controlnet/samples/*.png",
        (0, 0, 916, 600),
        "Do the drawn slices follow their masks, with nuclei where nuclei are asked for? If not, it needs more epochs: "
        "the loss hardly shows it.",
    ),
    (
        "Draw slices",
        "Two for every training mask.",
        "python generate.py --per-mask 2",
        "data/synthetic",
        (0, 0, 916, 600),
        "Borders, clefts and membranes should lie where the mask has them, in the brightness of the real slices. The "
        "finest grain is smoother than theirs: a VAE cannot hold it, which `check --backbone` measures.",
    ),
    (
        "Train the U-Net",
        "As many synthetic slices as real ones, half of those drawn, and one network; three, the default, show how far "
        "chance moves the score. The flags after these make it small enough for a CPU; leave them out on a GPU.",
        "python train_unet.py --synthetic-ratio 1 --seeds 1 --width 8 --crop 112x112 --batch-size 8 --lr 8e-3 --decay "
        "--class-balance 0.5 --select miou --epochs {unet} --validate-every {look} --patience 0",
        "runs/unet/seed-0/progress.png",
        (0, 0, 916, 600),
        "The validation curve should be flat at its end, and not rise again as the training loss falls.",
    ),
    (
        "Mask the whole stack",
        "Slices that nobody annotated lie between those that the network learned from.",
        "python -m natural2nanoscale segment runs/unet --images stack.tif --out masks --format tiff",
        "masks/contact.png",
        (0, 0, 688, 418),
        "Look for holes in cells, specks in the background and nuclei that end too early. `masks/masks.ome.tif` opens "
        "in Fiji and napari over the stack.",
    ),
    (
        "Take the slices elsewhere",
        "The same split for nnU-Net, synthetic slices in its training set.",
        "python -m natural2nanoscale export nnunet --out nnunet",
        None,
        None,
        "",
    ),
)


def make_stack(folder: Path, count: int, width: int, height: int) -> np.ndarray:
    """stack.tif (Z,Y,X) uint16 of 8 nm per pixel, and masks.tif of which every fourth page is annotated; returns all
    masks (Z,Y,X) uint8."""
    images, truth = volume(count, height, width, seed=7)
    deep = images.astype(np.uint16) * 150 + 4000
    tags = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(folder / "stack.tif", deep, imagej=True, metadata=tags, resolution=(125, 125))
    masks = truth.copy()
    masks[[i for i in range(count) if i % EVERY]] = 0
    tifffile.imwrite(folder / "masks.tif", masks, metadata={"axes": "ZYX"}, photometric="minisblack")
    return truth


def run(folder: Path, command: str) -> str:
    """What a command prints, without progress bars."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *shlex.split(command)[1:]]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{command}\n{result.stdout}{result.stderr}")
    lines = result.stdout.replace(str(folder.resolve()) + "/", "").splitlines()
    lines = [line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..." for line in lines]
    return "\n".join(lines if len(lines) <= SHOWN else [*lines[: SHOWN - 5], "...", *lines[-4:]])


def save_picture(found: Path, box: tuple[int, int, int, int], path: Path) -> None:
    """A part of a picture (left, top, width, height; a negative top counts from below) in few colours, as PNG.

    Of a pair folder four masks, and below them their slices.
    """
    if found.is_dir():
        pairs = open_pairs(found)
        stems = evenly_spaced(pairs.stems, 4)
        masks = [colored(pairs.mask(stem), pairs.info.classes) for stem in stems]
        sheet([masks, [pairs.image(stem) for stem in stems]], path, labels=["training masks", "drawn from them"])
        found = path
    with Image.open(found) as shown:
        left, top, width, height = box
        top = max(0, shown.height + top) if top < 0 else top
        part = shown.convert("RGB").crop((left, top, min(shown.width, left + width), min(shown.height, top + height)))
    part.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def agreement(truth: np.ndarray, masks: Path) -> str:
    """How far masks of the slices that were not annotated agree with the phantom's own."""
    files = sorted(masks.iterdir())
    hidden = [i for i in range(len(truth)) if i % EVERY]
    matrix = sum(confusion(torch.tensor(truth[i]), torch.tensor(np.array(Image.open(files[i]))), 3) for i in hidden)
    scores = zip(CLASSES.split(","), iou(matrix).tolist(), strict=True)
    return (
        f"The phantom's own masks of the {len(hidden)} slices that were not annotated are known: the IoU with them is "
        + ", ".join(f"{100 * score:.1f} % for {name}" for name, score in scores)
        + ". Neighbours of these slices were annotated, which flatters such a figure; on slices from elsewhere the "
        "test part's score counts."
    )


def write_tutorial(folder: Path, slices: int, size: tuple[int, int], lengths: dict[str, int]) -> Path:
    """Run all steps in a new folder; write TUTORIAL.md and tutorial/*.png there."""
    (folder / "tutorial").mkdir(parents=True)
    for script in ("train_controlnet.py", "generate.py", "train_unet.py"):
        (folder / script).symlink_to(ROOT / script)
    truth, parts = make_stack(folder, slices, *size), []
    for number, (heading, said, command, picture, box, look) in enumerate(STEPS, 1):
        command = command.format(**lengths)
        print(f"{number}. {heading}: {command}", flush=True)
        parts += [f"## {number}. {heading}", said, f"```bash\n{command}\n```", f"```text\n{run(folder, command)}\n```"]
        if picture:
            found = sorted(folder.glob(picture))
            if not found:
                raise SystemExit(f"{command} left no {picture}")
            name = f"tutorial/{number}.png"
            save_picture(found[-1], box, folder / name)
            parts += [f"![{heading}]({name})", f"From `{found[-1].relative_to(folder)}`. {look}"]
        if picture == "masks/contact.png":
            parts.append(agreement(truth, folder / "masks" / "masks"))
    minutes = sum(os.times()[2:4]) / 60  # that the commands have computed
    begin = [
        "# Tutorial: from one stack to masks of all its slices",
        f"`stack.tif` has {slices} slices of 16 bits, `masks.tif` annotates {-(-slices // EVERY)} of them. Everything "
        f"below is what `python tests/tutorial.py` printed, in {minutes:.0f} minutes of one CPU core. The stack is a "
        "phantom, so that anybody can repeat it; for your own slices only names of files and the backbone change.",
    ]
    path = folder / "TUTORIAL.md"
    path.write_text("\n\n".join([*begin, *parts]) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--write", action="store_true", help="put text and pictures into natural2nanoscale/data")
    args = parser.parse_args()
    path = write_tutorial(args.folder, 48, (224, 128), {"controlnet": 200, "unet": 300, "look": 50})
    assert not re.search(r"(/home|/tmp|/work)/", path.read_text(encoding="utf-8")), "a path of this machine"
    if args.write:
        shutil.copy(path, HOME)
        shutil.rmtree(HOME / "tutorial", ignore_errors=True)
        shutil.copytree(args.folder / "tutorial", HOME / "tutorial")


if __name__ == "__main__":
    main()
