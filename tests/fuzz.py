"""Mutated inputs for every reader: no traceback, no hang, nothing half made, no wrong result.

    python tests/fuzz.py --count 2000          prints the counts of each reader; exit code 1 where a promise is broken

Each input is a good one that a seed has damaged: bits flipped, cut short, filled up, nested, replaced, linked, a FIFO.
Readers run in processes of their own, which a codec may crash and a clock may kill. The end may be the result of the
good input or a refusal. Damage that may leave another good input, as a name or a number in JSON, may change the result.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import random
import shutil
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 2e9 else None
LIMIT = 10.0  # seconds of computing, or of sleep: a busy machine lets a command wait for longer
VALUES = [None, True, -1, 0, 1.5, 1e308, 10**18, "", "x", "../../x.png", "/etc/passwd", "\x1b[2J", [], {}, [[]], ["x"]]
RAW = [b"1" * 4300, b"1e999", b"NaN", b"\xff", b'"\\ud800"', b"[" * 2000 + b"]" * 2000, b"-", b"{}", b'"row"', b""]


# ------------------------------------------------------------------------------------------------ damage


def mutate(file: Path, rng: random.Random) -> str:
    """Damage one file in place; what was done, in a word."""
    content = file.read_bytes()
    kinds = ["flip", "flip", "cut", "zero", "insert", "repeat", "link", "fifo", "folder", "gone"]
    if file.suffix in (".json", ".jsonl"):
        kinds = ["value"] * 8 + ["raw"] * 5 + kinds
    kind = rng.choice(kinds)
    at = rng.randrange(len(content) + 1)
    if kind == "flip":
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 8, 64))):
            if damaged:
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(damaged))
    elif kind == "cut":
        file.write_bytes(content[:at])
    elif kind == "zero":
        length = rng.randrange(1, 200)
        file.write_bytes(content[:at] + bytes(length) + content[at + length :])
    elif kind == "insert":
        file.write_bytes(content[:at] + rng.randbytes(rng.randrange(1, 50)) + content[at:])
    elif kind == "repeat":
        file.write_bytes(content * 2)
    elif kind == "value":
        lines = file.suffix == ".jsonl"
        texts = content.decode().splitlines() if lines else [content.decode()]
        i = rng.randrange(len(texts))
        texts[i] = json.dumps(_with_other_value(json.loads(texts[i]), rng))
        file.write_text("\n".join(texts) + "\n")
    elif kind == "raw":
        places = [i for i, byte in enumerate(content) if byte in b":,["]
        start = rng.choice(places) + 1 if places else 0
        end = next((i for i in range(start, len(content)) if content[i] in b",]}\n"), len(content))
        file.write_bytes(content[:start] + rng.choice(RAW) + content[end:])
    else:
        file.unlink()
        if kind == "link":
            file.symlink_to(rng.choice(["/etc/passwd", "/dev/zero", "nowhere", "."]))
        elif kind == "fifo":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
    return kind


def _with_other_value(data: object, rng: random.Random) -> object:
    """JSON in which one value, at any depth, is another one, or is missing."""
    places: list[tuple[object, object]] = []

    def walk(value: object) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, one in pairs:
            places.append((value, key))
            walk(one)

    walk(data)
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    if rng.random() < 0.15:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return data


# ----------------------------------------------------------------------------------------------- readers


def front_door(*words: object) -> None:
    """A verb or a script in this process."""
    import runpy

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # of its own: who is killed keeps one that all processes share
    sys.argv = [str(word) for word in words]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    else:
        runpy.run_module("natural2nanoscale", run_name="__main__", alter_sys=False)


FP32 = ("--precision", "fp32")
UNET = ("--width", 4, "--depth", 2, "--seeds", 1, "--batch-size", 2, "--max-steps", 1)


def draw(world: Path, data: str = "data") -> tuple:
    return ("generate.py", "--data", world / data, "--controlnet", world / "controlnet", *FP32, "--steps", 1)


def go_on(world: Path, name: str, steps: int) -> tuple:
    return (f"train_{name}.py", "--resume", "--out", world / name, "--max-steps", steps)


READERS: dict[str, tuple[str, Callable[[Path], tuple]]] = {  # name: files to damage, and the command on a copy
    "dataset.json": ("data/train/dataset.json", lambda w: ("n2n", "check", w / "data")),
    "pictures": ("data/train/*/*.png", lambda w: ("n2n", "check", w / "data")),
    "prepare": ("source/*/*", lambda w: ("n2n", "prepare", "--images", w / "source/images", "--masks",
                                         w / "source/masks", "--val", 0.3, "--test", 0.3, "--out", w / "out")),
    "manifest.jsonl": ("data/synthetic/manifest.jsonl", draw),
    "generation.json": ("begun/generation.json", lambda w: (*draw(w), "--out", w / "begun")),
    "leaks": ("data/synthetic/*.json*", lambda w: ("train_unet.py", "--data", w / "data", "--synthetic-ratio", 1,
                                                   "--out", w / "out", *UNET)),
    "config.json": ("controlnet/config.json", lambda w: go_on(w, "controlnet", 3)),
    "config.json of a U-Net": ("unet/config.json", lambda w: go_on(w, "unet", 2)),
    "config.json, scored": ("unet/config.json", lambda w: ("n2n", "evaluate", w / "unet", "--data", w / "data")),
    "checkpoint": ("controlnet/checkpoints/*/*", lambda w: go_on(w, "controlnet", 3)),
    "ControlNet": ("controlnet/checkpoints/*/controlnet/*", lambda w: (*draw(w), "--out", w / "out")),
    "checkpoint of a U-Net": ("unet/seed-0/checkpoints/*/*", lambda w: go_on(w, "unet", 2)),
    "state.json with its hash": ("controlnet/checkpoints/*/state.json", lambda w: go_on(w, "controlnet", 3)),
    "log.jsonl": ("controlnet/log.jsonl", lambda w: go_on(w, "controlnet", 3)),
    "best weights": ("unet/seed-0/best/unet.safetensors", lambda w: ("n2n", "evaluate", w / "unet", "--data",
                                                                     w / "data")),
    "masks that were segmented": ("masks/log.jsonl", lambda w: ("n2n", "segment", w / "unet", "--images",
                                                                w / "source/images", "--out", w / "masks")),
    "backbone": ("backbone/*/*.json", lambda w: ("train_controlnet.py", "--data", w / "data", "--backbone",
                                                 w / "backbone", *FP32, "--batch-size", 1, "--max-steps", 1,
                                                 "--out", w / "out")),
    "convert": ("weights.pth", lambda w: ("n2n", "convert", w / "weights.pth", "--out", w / "out")),
    "prompts": ("prompts.txt", lambda w: (*draw(w), "--prompts", w / "prompts.txt", "--out", w / "out")),
    "calibration.json": ("chosen/calibration.json", lambda w: ("train_unet.py", "--data", w / "chosen", "--out",
                                                               w / "out", *UNET)),
    "calibration.json, drawn by": ("chosen/calibration.json", lambda w: (*draw(w, "chosen"), "--out", w / "out")),
}  # fmt: skip
FORMATS = {"TIFF": "a.tif", "OME-TIFF": "a.ome.tif", "MRC": "a.mrc", "HDF5": "a.h5", "Zarr": "a.zarr",
           "NumPy": "a.npy", "NumPy, packed": "a.npz"}  # fmt: skip
for kind, name in FORMATS.items():
    READERS[kind] = (f"volumes/{name}/**/*" if kind == "Zarr" else f"volumes/{name}", lambda w, name=name: (
        "n2n", "check", w / "volumes" / name, "--contact", w / "contact.png"))  # fmt: skip
MAY_DIFFER = {
    *("dataset.json", "config.json", "config.json of a U-Net", "config.json, scored", "leaks", "pictures", "prepare"),
    *("prompts", "backbone", "generation.json", "log.jsonl", "masks that were segmented"),
    *("calibration.json", "calibration.json, drawn by", *FORMATS),
}


def import_all() -> None:
    """Once, for all children: what the front doors import when they are called."""
    for module in pkgutil.walk_packages([str(ROOT / "natural2nanoscale")], "natural2nanoscale."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)


def make_world(world: Path) -> None:
    """Good inputs for all readers, small."""
    import torch
    from conftest import blobs, save_tiny_backbone

    from natural2nanoscale.data.classes import Classes
    from natural2nanoscale.data.folders import DatasetInfo, fingerprint, open_pairs, write_pairs
    from natural2nanoscale.files import save_png, write_json

    info = DatasetInfo("blobs", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    for seed, (part, count) in enumerate((("train", 3), ("val", 2), ("test", 2))):
        write_pairs(world / "data" / part, info, blobs(count, 32, 32, seed=seed))
    for kind in ("images", "masks"):
        (world / "source" / kind).mkdir(parents=True)
    for stem, image, mask in blobs(6, 32, 32, seed=9):
        save_png(world / "source/images" / f"{stem}.png", image)
        save_png(world / "source/masks" / f"{stem}.png", mask)
    save_volumes(world / "volumes")
    (world / "prompts.txt").write_text("a cell\nan electron micrograph\n")
    torch.save({"control_model.x": torch.ones(3)}, world / "weights.pth")  # of a ControlNet too small to be taken
    backbone, data = save_tiny_backbone(world / "backbone"), ("--data", world / "data")
    short = ("--latent-variants", 1, "--batch-size", 1, "--sample-every", 9, "--checkpoint-every", 1, *FP32)
    for words in (
        ("train_controlnet.py", *data, "--backbone", backbone, "--out", world / "controlnet", "--max-steps", 2, *short),
        draw(world),
        ("train_unet.py", *data, "--out", world / "unet", *UNET[:-1], 2, "--checkpoint-every", 1),
        ("n2n", "segment", world / "unet", "--images", world / "source/images", "--out", world / "masks"),
    ):
        assert isolated(lambda words=words: front_door(*words), 120.0)[0] == "taken", words
    shutil.copytree(world / "data/synthetic", world / "begun")
    shutil.copytree(world / "data", world / "chosen")
    row = json.loads((world / "chosen/synthetic/manifest.jsonl").read_text().splitlines()[0])
    parts = {part: fingerprint(open_pairs(world / "chosen" / part)) for part in ("train", "val")}
    choice = {"strength": row["strength"], "start": row["start"], "ratio": 1.0, "mode": "joint"}
    calibration = {"controlnet": row["checkpoint"], "data": parts, "choice": choice, "chosen": 0.7, "real": 0.6}
    write_json(world / "chosen/calibration.json", calibration)
    said = json.loads((world / "begun/dataset.json").read_text())
    (world / "begun/generation.json").write_text(json.dumps(said | {"per_mask": 1, "call": "python generate.py"}))
    (world / "begun/dataset.json").unlink()


def save_volumes(folder: Path) -> None:
    """The same four slices as stacks and volumes of the field."""
    import h5py
    import mrcfile
    import numpy as np
    import tifffile
    import zarr
    from conftest import blobs

    folder.mkdir()
    data = np.stack([image for _stem, image, _mask in blobs(4, 32, 32, seed=9)]).astype(np.uint16) * 200
    tifffile.imwrite(folder / "a.tif", data, photometric="minisblack", compression="zlib", rowsperstrip=5)
    said = {"axes": "ZYX", "PhysicalSizeX": 8}
    tifffile.imwrite(folder / "a.ome.tif", data, photometric="minisblack", tile=(16, 16), metadata=said)
    with mrcfile.new(folder / "a.mrc") as mrc:
        mrc.set_data(data)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("raw", data=data, chunks=(1, 32, 32), compression="gzip")
        file["raw"].attrs["element_size_um"] = [0.1, 0.1, 0.1]
    group = zarr.open_group(folder / "a.zarr", mode="w")
    group.create_array("0", shape=data.shape, chunks=(1, 32, 32), dtype="u2")[:] = data
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.1, 0.1, 0.1]}]}
    group.attrs["multiscales"] = [{"axes": [{"name": name, "unit": "um"} for name in "zyx"], "datasets": [level]}]
    np.save(folder / "a.npy", data)
    np.savez_compressed(folder / "a.npz", raw=data)


def speak_into(file: IO) -> None:
    """From now on all that this process prints goes into a file, also what does not come from Python."""
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))


def isolated(call: Callable[[], None], limit: float = LIMIT) -> tuple[str, str]:
    """Run a front door in a process of its own: taken, refused, hang, crash or traceback, and what it printed."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                speak_into(said)
                call()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code or 0)
        asleep, before = 0.0, time.monotonic()
        while asleep < limit and computed(child) < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            asleep += (time.monotonic() - before) * (state(child) == "S")
            before = time.monotonic()
            time.sleep(0.01)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "hang", ""
        said.seek(0)
        text = said.read()
    if os.WIFSIGNALED(status):
        return "crash", text
    code = os.WEXITSTATUS(status)
    if "Traceback" in text or code not in (0, 2):
        return "traceback", text
    return ("refused" if code else "taken"), text


def computed(process: int) -> float:
    """Seconds that a process has computed, by /proc."""
    return (int(status_of(process)[11]) + int(status_of(process)[12])) / os.sysconf("SC_CLK_TCK")


def state(process: int) -> str:
    """R for one that computes or waits for a core, S for one that sleeps."""
    return status_of(process)[0]


def status_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def contents(folder: Path) -> dict[str, bytes]:
    """All regular files below a folder but locks, samples and pictures of curves; links and FIFOs by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = str(path.relative_to(folder))
        if stat.S_ISREG(mode):
            found[name] = path.read_bytes()
        elif not stat.S_ISDIR(mode):
            found[name] = str(stat.S_IFMT(mode)).encode()
    return found


def leftovers(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """What a refused command has changed. Notes of a run that had begun already may have grown: they are no output."""
    return [name for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name) and not name.endswith("contact.png")]  # fmt: skip


def result(world: Path) -> dict[str, object]:
    """Of a command that was taken: what counts as its result, without times."""
    scores = {}
    for path in sorted(world.rglob("*")):
        name = str(path.relative_to(world))
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".safetensors":
            scores[name] = tensors_of(path)
        if path.suffix == ".png" and ("synthetic" in name or "masks/masks" in name):
            scores[name] = path.read_bytes()
        if path.name == "report.json":
            scores["miou"] = json.loads(path.read_text())["miou_mean"]
    return scores


def tensors_of(file: Path) -> dict[str, bytes]:
    """Of a safetensors file, without what it says of times."""
    from safetensors.torch import load_file

    try:
        return {name: bytes(tensor.contiguous().view(-1).numpy().data) for name, tensor in load_file(file).items()}
    except Exception:  # a damaged one that was passed over
        return {}


def rehash(checkpoint: Path) -> None:
    """Right hashes for damaged files: what a careful forger leaves."""
    from natural2nanoscale.files import sha256

    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name != "manifest.json"]
    hashes = {str(file.relative_to(checkpoint)): sha256(file) for file in files if not file.is_symlink()}
    (checkpoint / "manifest.json").write_text(json.dumps(hashes))


def trial(world: Path, scratch: Path, reader: str, rng: random.Random, truth: dict) -> tuple[str, str]:
    """One damaged input: its end, and what is wrong with it, empty where nothing is."""
    pattern, words = READERS[reader]
    place = copy_of(world, scratch / "world")
    file = rng.choice(sorted(path for path in place.glob(pattern) if path.is_file()))
    kind = mutate(file, rng)
    if "with its hash" in reader and file.is_file() and not file.is_symlink():
        rehash(file.parent)
    before = contents(place)
    end, said = isolated(lambda: front_door(*words(place)))
    where = f"{reader}: {kind} in {file.relative_to(place)}: {end}"
    if end in ("hang", "crash", "traceback"):
        return end, f"{where}\n{said[-1500:]}"
    if end == "refused":
        errors = [line for line in said.splitlines() if line.startswith("error: ") or ": error: " in line]
        changed = leftovers(before, contents(place))
        if len(errors) != 1:
            return "no sentence", f"{where}\n{said[-800:]}"
        return ("partial output", f"{where}: {changed}\n{errors[0]}") if changed else (end, "")
    if reader not in MAY_DIFFER:
        got = result(place)
        wrong = [name for name, value in truth.items() if got.get(name) != value and "checkpoints" not in name]
        if wrong:
            return "wrong result", f"{where}: {wrong}"
    return end, ""


def truth_of(world: Path, scratch: Path, reader: str) -> dict[str, object]:
    """The result of the good input."""
    end, said = isolated(lambda: front_door(*READERS[reader][1](copy_of(world, scratch / "world"))), 120.0)
    assert end == ("refused" if reader == "convert" else "taken"), f"{reader}: {said}"
    return result(scratch / "world")


def copy_of(world: Path, place: Path) -> Path:
    """A copy of the good inputs, whose runs name their data and backbone in it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(world, place)
    for config in place.glob("*/config.json"):
        config.write_text(config.read_text().replace(str(world), str(place)))
    return place


def run_trial(task: tuple[Path, str, int, int, dict]) -> tuple[str, str, str]:
    world, reader, seed, i, truth = task
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        end, wrong = trial(world, Path(scratch), reader, random.Random(f"{seed} {i}"), truth)
    return reader, end, f"#{i} {wrong}" if wrong else ""


def fuzz(count: int, seed: int, only: list[str] | None = None, jobs: int = 1) -> tuple[Counter, list[str]]:
    """`count` inputs dealt to the readers in turn; how often each end came, and what is broken."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch

    import_all()
    torch.set_num_threads(1)
    readers, table, broken = only or list(READERS), Counter(), []
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        world = Path(folder) / "good"
        world.mkdir()
        make_world(world)
        truth = {reader: truth_of(world, Path(folder), reader) for reader in readers}
        tasks = [(world, readers[i % len(readers)], seed, i, truth[readers[i % len(readers)]]) for i in range(count)]
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            for reader, end, wrong in pool.imap_unordered(run_trial, tasks):
                table[reader, end] += 1
                if wrong:
                    broken.append(wrong)
                    print(wrong, flush=True)
    return table, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=tuple(READERS))
    args = parser.parse_args()
    started = time.monotonic()
    table, broken = fuzz(args.count, args.seed, args.only, args.jobs)
    ends = ("taken", "refused", "traceback", "no sentence", "hang", "crash", "partial output", "wrong result")
    print(f"\n| reader | {' | '.join(ends)} |\n|---|{'--:|' * len(ends)}")
    for reader in args.only or READERS:
        print(f"| {reader} | {' | '.join(str(table[reader, end]) for end in ends)} |")
    print(
        f"| all {args.count} | {' | '.join(str(sum(n for (_, e), n in table.items() if e == end)) for end in ends)} |"
    )
    print(f"\nseed {args.seed}, {time.monotonic() - started:.0f} s, {len(broken)} broken promises")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
