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
from PIL import Image

from natural2nanoscale.phantom.volume import volume

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "natural2nanoscale" / "data"
CLASSES = "background,cytoplasm,nucleus"
EVERY = 4  # slices from one annotated one to the next
SHOWN = 16  # lines of what a command prints
STEPS = (  # heading, what is said of it, command, picture that it leaves
    (
        "Look at the files",
        "The masks are a stack of as many pages, of which every fourth is annotated; the others hold nothing but 0.",
        f"python -m natural2nanoscale check stack.tif --masks masks.tif --classes {CLASSES}",
        "contact.png",
    ),
    (
        "Make a data root",
        "Blank masks are left out, and 16 bits become 8 by percentiles of the training part.",
        f"python -m natural2nanoscale prepare --images stack.tif --masks masks.tif --classes {CLASSES} --gap 0",
        "data/contact.png",
    ),
    (
        "Train the ControlNet",
        "The phantom is drawn well by the embedded backbone. Leave `--backbone` out for slices of a microscope: they "
        "take Stable Diffusion, and a GPU.",
        "python train_controlnet.py --backbone embedded --epochs {controlnet}",
        "runs/controlnet/samples/*.png",
    ),
    ("Draw slices", "Two for every training mask.", "python generate.py --per-mask 2", "data/synthetic/images/*.png"),
    (
        "Train the U-Nets",
        "As many synthetic slices as real ones.",
        "python train_unet.py --synthetic-ratio 1 --seeds 2 --width 8 --lr 8e-3 --decay --class-balance 0.5 "
        "--epochs {unet} --batch-size 8",
        "runs/unet/seed-0/progress.png",
    ),
    (
        "Mask the whole stack",
        "",
        "python -m natural2nanoscale segment runs/unet --images stack.tif --out masks --format tiff",
        "masks/contact.png",
    ),
    ("Take the slices elsewhere", "", "python -m natural2nanoscale export nnunet --out nnunet", None),
)


def make_stack(folder: Path, count: int, width: int, height: int) -> None:
    """stack.tif (Z,Y,X) uint16 of 8 nm per pixel, and masks.tif of which every fourth page is annotated."""
    images, masks = volume(count, height, width, seed=7)
    deep = images.astype(np.uint16) * 150 + 4000
    tags = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(folder / "stack.tif", deep, imagej=True, metadata=tags, resolution=(125, 125))
    masks[[i for i in range(count) if i % EVERY]] = 0
    tifffile.imwrite(folder / "masks.tif", masks, metadata={"axes": "ZYX"}, photometric="minisblack")


def run(folder: Path, command: str) -> str:
    """What a command prints, without progress bars."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *shlex.split(command)[1:]]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{command}\n{result.stdout}{result.stderr}")
    lines = [line[:160] for line in result.stdout.replace(str(folder.resolve()) + "/", "").splitlines()]
    return "\n".join(lines if len(lines) <= SHOWN else [*lines[: SHOWN - 5], "...", *lines[-4:]])


def write_tutorial(folder: Path, slices: int, size: tuple[int, int], lengths: dict[str, int]) -> Path:
    """Run all steps in a new folder; write TUTORIAL.md and tutorial/*.png there."""
    (folder / "tutorial").mkdir(parents=True)
    for script in ("train_controlnet.py", "generate.py", "train_unet.py"):
        (folder / script).symlink_to(ROOT / script)
    make_stack(folder, slices, *size)
    annotated = -(-slices // EVERY)
    text = [
        "# Tutorial: from one stack to masks of all its slices",
        f"`stack.tif` has {slices} slices of 16 bits, `masks.tif` annotates {annotated} of them. Everything below is "
        "what `python tests/tutorial.py` printed. The stack is a phantom; for your own slices only the names of the "
        "files change.",
    ]
    for number, (heading, said, command, picture) in enumerate(STEPS, 1):
        command = command.format(**lengths)
        print(f"{number}. {heading}: {command}", flush=True)
        text += [f"## {number}. {heading}", *([said] if said else []), f"```bash\n{command}\n```"]
        text += [f"```text\n{run(folder, command)}\n```"]
        found = sorted(folder.glob(picture)) if picture else []
        if picture and not found:
            raise SystemExit(f"{command} left no {picture}")
        if found:
            name = f"tutorial/{number}.png"
            several = found[:: max(1, len(found) // 4)][:4] if "images/" in picture else found[-1:]
            shown = Image.fromarray(np.hstack([np.asarray(Image.open(file).convert("RGB")) for file in several]))
            shown.crop((0, 0, shown.width, min(shown.height, shown.width))).quantize(64).save(
                folder / name, optimize=True
            )
            text.append(f"![{heading}]({name})")
    path = folder / "TUTORIAL.md"
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--write", action="store_true", help="put text and pictures into natural2nanoscale/data")
    args = parser.parse_args()
    path = write_tutorial(args.folder, 48, (224, 128), {"controlnet": 600, "unet": 200})
    assert not re.search(r"(/home|/tmp|/work)/", path.read_text(encoding="utf-8")), "a path of this machine"
    if args.write:
        shutil.copy(path, HOME)
        shutil.rmtree(HOME / "tutorial", ignore_errors=True)
        shutil.copytree(args.folder / "tutorial", HOME / "tutorial")


if __name__ == "__main__":
    main()
