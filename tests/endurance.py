"""Killed, signalled and starved at random moments, and run for long: one command, one table.

    python tests/endurance.py                             50 kills of each command, 10,000 images, 20,000 steps
    python tests/endurance.py --kills 5 --rows kills      a short one

A kill is a SIGKILL at a random moment, or inside the save: between the checkpoint's files, before its rename. Then the
same command goes on, with --resume where it takes that, until it ends; what it has made must equal, bit by bit, what a
call makes that nobody stopped.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import fuzz  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from conftest import blobs, save_tiny_backbone  # noqa: E402

import natural2nanoscale.diffusion.synthesis  # noqa: E402
import natural2nanoscale.diffusion.training  # noqa: E402
import natural2nanoscale.segmentation.segment  # noqa: E402, F401  once, for all processes
from natural2nanoscale import files  # noqa: E402
from natural2nanoscale.data.classes import Classes  # noqa: E402
from natural2nanoscale.data.folders import DatasetInfo, write_pairs  # noqa: E402
from natural2nanoscale.files import save_png  # noqa: E402

SHORT = ("--checkpoint-every", 2, "--checkpoint-minutes", 0)


@dataclass(frozen=True)
class Command:
    """words: the command, given where it writes. again: what is added when it goes on. result: what it has made."""

    words: Callable[[Path], tuple]
    again: tuple = ()
    signals: bool = True  # whether it saves and leaves on request


class Process:
    """A front door in a process of its own, forked from this one, which has imported all: no time is lost.

    wait: in its n-th sync it waits, so that a kill finds it inside a save. full: the n-th write finds the disk full.
    """

    def __init__(self, words: Sequence[object], wait: int = 0, full: int = 0):
        self.said = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(self.said.fileno(), 1)
            os.dup2(self.said.fileno(), 2)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            code = 99
            try:
                disturb(wait, full)
                fuzz.front_door(*words)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else bool(stop.code)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self, seconds: float, until: Callable[[], object] = lambda: None) -> bool:
        """Whether it ends within these seconds; `until` something is so, at most."""
        ends = time.monotonic() + seconds
        while self.code is None and time.monotonic() < ends and not until():
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.002)
        return self.code is not None

    def send(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        self.said.seek(0)
        return self.said.read()


def disturb(wait: int, full: int) -> None:
    """What the forked process finds: a sync that takes long, a disk without room."""
    counts, sync, room = {"sync": 0, "write": 0}, files.sync, files.enough_room

    def slow(path: Path) -> None:
        counts["sync"] += 1
        if counts["sync"] == wait:
            print("SAVING", flush=True)
            time.sleep(60)
        sync(path)

    @contextmanager
    def without_room(path: Path, needed: int | None = None):
        counts["write"] += 1
        with room(path, needed):
            if counts["write"] == full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield

    files.sync, files.enough_room = slow, without_room


def finish(words: Sequence[object], full: int = 0) -> tuple[int | None, str]:
    process = Process(words, full=full)
    if not process.wait(600):
        process.send(signal.SIGKILL)
        process.wait(10)
    return process.code, process.output()


def world(folder: Path) -> dict[str, Command]:
    """Small inputs, a trained ControlNet and U-Net, and the five commands that are to be stopped."""
    info = DatasetInfo("blobs", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    for seed, (part, count) in enumerate((("train", 4), ("val", 2), ("test", 2))):
        write_pairs(folder / "data" / part, info, blobs(count, 32, 64, seed=seed))
    for kind in ("images", "masks"):
        (folder / "source" / kind).mkdir(parents=True)
    for stem, image, mask in blobs(24, 32, 64, seed=9):
        save_png(folder / "source/images" / f"{stem}.png", image)
        save_png(folder / "source/masks" / f"{stem}.png", mask)
    data, backbone = ("--data", folder / "data"), save_tiny_backbone(folder / "backbone")
    control = (
        "train_controlnet.py",
        *data,
        "--backbone",
        backbone,
        "--latent-variants",
        2,
        "--sample-every",
        50,
        *SHORT,
    )
    unet = ("train_unet.py", *data, "--width", 4, "--depth", 2, "--seeds", 1, "--batch-size", 2, *SHORT)
    for words in ((*control, "--max-steps", 2, "--out", folder / "controlnet"),
                  (*unet, "--max-steps", 2, "--out", folder / "unet")):  # fmt: skip
        code, said = finish(words)
        assert code == 0, said
    draw = ("generate.py", *data, "--controlnet", folder / "controlnet", "--steps", 2, "--batch-size", 1)
    images, masks = folder / "source/images", folder / "source/masks"
    return {
        "train_controlnet.py": Command(lambda out: (*control, "--max-steps", 16, "--out", out), ("--resume",)),
        "train_unet.py": Command(lambda out: (*unet, "--max-steps", 60, "--out", out), ("--resume",)),
        "generate.py": Command(lambda out: (*draw, "--per-mask", 6, "--out", out)),
        "segment": Command(lambda out: ("n2n", "segment", folder / "unet", "--images", images, "--out", out)),
        "prepare": Command(
            lambda out: ("n2n", "prepare", "--images", images, "--masks", masks, "--out", out), signals=False
        ),
    }  # fmt: skip


def made(out: Path) -> dict[str, str]:
    """What a finished command has made: hashes of its weights and pictures, and its lines without times, each once."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name.endswith((".tmp", ".lock")) or "/.old-" in f"/{name}":
            continue  # a stopped writer's, which the next one replaces
        if path.suffix == ".safetensors":  # what it says beside the weights holds times
            found[name] = hashlib.sha256(repr(sorted(fuzz.tensors_of(path).items())).encode()).hexdigest()
        if path.suffix == ".png" and "samples" not in name and path.name != "progress.png":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows = [{key: value for key, value in row.items() if key not in ("seconds", "epoch")} for row in rows]
            found[name] = json.dumps(sorted(rows, key=json.dumps))
    newest = max((name.split("/")[-2] for name in found if "step-" in name and "controlnet" not in name), default="")
    return {name: value for name, value in found.items() if "step-" not in name or (newest and newest in name)}


def without_logs(found: dict[str, str]) -> dict[str, str]:
    """A training that is stopped on request logs where it stops."""
    return {name: value for name, value in found.items() if not name.endswith("log.jsonl")}


def goes_on(command: Command, out: Path, tries: int = 5) -> tuple[int, str]:
    """The same command until it ends; with --resume where it takes that and has begun."""
    code, said = 1, ""
    for _ in range(tries):
        again = command.again if (out / "config.json").is_file() else ()
        code, said = finish((*command.words(out), *again))
        if code == 0:
            break
    return code, said


def kill_at_random(command: Command, out: Path, seconds: float, rng: random.Random) -> str:
    """Kill the command at a random moment of its `seconds`, or inside one of its saves."""
    saving = rng.random() < 0.4
    process = Process(command.words(out), wait=rng.randrange(1, 40) if saving else 0)
    if saving:
        process.wait(60, until=lambda: "SAVING" in process.output())
        time.sleep(rng.random() * 0.02)
    else:
        process.wait(rng.uniform(0.02, 1.0) * seconds)
    process.send(signal.SIGKILL)
    process.wait(10)
    return "inside a save" if saving and "SAVING" in process.output() else "anywhere"


def kills(command: Command, folder: Path, count: int, seed: int) -> tuple[str, list[str]]:
    """`count` kills, each followed by the command going on; how many ended equal, and what was wrong."""
    started = time.monotonic()
    code, said = finish(command.words(folder / "whole"))
    seconds = time.monotonic() - started
    assert code == 0, said
    truth, wrong, inside = made(folder / "whole"), [], 0
    for i in range(count):
        out = folder / f"kill-{i}"
        rng = random.Random(f"{seed} {i}")
        place = kill_at_random(command, out, seconds, rng)
        inside += place == "inside a save"
        code, said = goes_on(command, out)
        got = made(out)
        differ = sorted(name for name in truth.keys() | got.keys() if truth.get(name) != got.get(name))
        if code or differ:
            wrong.append(f"kill {i} ({place}): exit code {code}, {differ[:5]}: {said.strip()[-400:]}")
        else:
            shutil.rmtree(out, ignore_errors=True)
    return f"{count - len(wrong)}/{count} equal ({inside} inside a save)", wrong


def signals(command: Command, folder: Path, seed: int) -> tuple[str, list[str]]:
    """Each signal once: exit code 128 + n, and the command goes on to the same end; twice at once: it leaves."""
    code, said = finish(command.words(folder / "whole"))
    truth, wrong, right = made(folder / "whole"), [], 0
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        number = getattr(signal, name)
        out = folder / name
        process = Process(command.words(out))
        process.wait(60, until=lambda out=out: begun(out))
        process.send(number)
        process.wait(60)
        ended, said = process.code, process.output()
        if ended != 128 + number:
            wrong.append(f"{name}: exit code {ended}: {said[-300:]}")
            continue
        code, said = goes_on(command, out)
        if code or without_logs(made(out)) != without_logs(truth):
            wrong.append(f"{name}: then exit code {code}: {said[-300:]}")
        else:
            right += 1
    return f"{right}/4 saved, 128 + n, equal", wrong


def begun(out: Path) -> Path | None:
    """What a command has written of its first step, image or mask."""
    places = ("checkpoints/step-*", "seed-0/checkpoints/step-*", "images/*.png", "masks/*.png")
    return next((path for place in places for path in out.glob(place)), None)


def full_disk(command: Command, folder: Path, most: int) -> tuple[str, list[str]]:
    """A disk that is full at the n-th write, for every n: one sentence that names the path, and the command goes on."""
    code, said = finish(command.words(folder / "whole"))
    truth, wrong, right = made(folder / "whole"), [], 0
    for n in range(1, most + 1):
        out = folder / f"full-{n}"
        code, said = finish(command.words(out), full=n)
        if code == 0:
            break  # it writes no more often
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        sentence = len(errors) == 1 and "no space left on the disk: " in errors[0] and str(folder) in errors[0]
        code_then, said_then = goes_on(command, out)
        if code != 2 or not sentence or code_then or made(out) != truth:
            wrong.append(f"write {n}: exit code {code}, then {code_then}: {said.strip()[-300:]} | {said_then[-300:]}")
        else:
            right += 1
        shutil.rmtree(out, ignore_errors=True)
    return f"{right}/{right + len(wrong)} writes", wrong


def long_run(words: Sequence[object]) -> tuple[str, list[str]]:
    """Memory and open files of a long command, at its first third and at its end."""
    process = Process(words)
    sizes: list[tuple[float, int, int]] = []
    while not process.wait(0.2):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(status.split("VmRSS:")[1].split()[0])
            sizes.append((time.monotonic(), resident, len(os.listdir(f"/proc/{process.pid}/fd"))))
        except (OSError, IndexError):
            pass
    said = process.output()
    if process.code or len(sizes) < 6:
        return "failed", [f"exit code {process.code}: {said[-400:]}"]
    third = sizes[len(sizes) // 3 : 2 * len(sizes) // 3]
    last = sizes[2 * len(sizes) // 3 : -1]
    before, after = (sum(size for _, size, _ in part) / len(part) / 1000 for part in (third, last))
    files = max(count for _, _, count in third), max(count for _, _, count in last)
    seconds = sizes[-1][0] - sizes[0][0]
    told = f"{before:.0f} -> {after:.0f} MB, {files[0]} -> {files[1]} files, {seconds:.0f} s"
    return told, [told] if after > 1.05 * before + 20 or files[1] > files[0] + 2 else []


def long_runs(folder: Path, images: int, slices: int, steps: int) -> dict[str, tuple[str, list[str]]]:
    """Generation, segmentation and both trainings at length, in the second and the last third of their time."""
    (folder / "many").mkdir()
    rng = np.random.default_rng(0)
    for i in range(slices):
        save_png(folder / "many" / f"s{i:05d}.png", rng.integers(0, 256, (32, 64), dtype=np.uint8))
    data = ("--data", folder / "data")
    rarely = ("--checkpoint-every", max(1, steps // 4), "--checkpoint-minutes", 0)
    control = ("train_controlnet.py", *data, "--backbone", folder / "backbone", "--latent-variants", 2, *rarely)
    unet = (
        "train_unet.py",
        *data,
        "--width",
        4,
        "--depth",
        2,
        "--seeds",
        1,
        "--batch-size",
        2,
        "--patience",
        0,
        *rarely,
    )
    per_mask, out = max(1, images // 4), folder / "long"
    draw = ("generate.py", *data, "--controlnet", folder / "controlnet", "--steps", 1, "--batch-size", 16)
    out.mkdir()
    return {
        f"generate.py, {4 * per_mask} images": long_run((*draw, "--per-mask", per_mask, "--out", out / "synthetic")),
        f"segment, {slices} slices": long_run(
            ("n2n", "segment", folder / "unet", "--images", folder / "many", "--out", out / "masks")
        ),
        f"train_controlnet.py, {steps} steps": long_run(
            (*control, "--sample-every", steps, "--max-steps", steps, "--out", out / "controlnet")
        ),
        f"train_unet.py, {steps} steps": long_run(
            (*unet, "--validate-every", 500, "--max-steps", steps, "--out", out / "unet")
        ),
    }


ROWS = ("kills", "signals", "disk", "long")


def endure(rows: Sequence[str], kill_count: int, writes: int, images: int, slices: int, steps: int,
           seed: int = 0, only: Sequence[str] = ()) -> tuple[list[tuple[str, str]], list[str]]:  # fmt: skip
    """The table's rows (what, figure), and what was wrong."""
    torch.set_num_threads(1)
    table, wrong = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        commands = world(folder)
        for name, command in commands.items():
            if only and name not in only:
                continue
            for row, run in (
                ("kills", lambda place, c=command: kills(c, place, kill_count, seed)),
                ("signals", lambda place, c=command: signals(c, place, seed)),
                ("disk", lambda place, c=command: full_disk(c, place, writes)),
            ):
                if row not in rows or (row == "signals" and not command.signals):
                    continue
                place = folder / f"{row}-{name}"
                place.mkdir()
                figure, bad = run(place)
                table.append((f"{name}: {row}", figure))
                wrong += [f"{name}: {row}: {one}" for one in bad]
                print(f"{name}: {row}: {figure}", *bad, sep="\n  ", flush=True)
                shutil.rmtree(place, ignore_errors=True)
        if "long" in rows:
            for what, (figure, bad) in long_runs(folder, images, slices, steps).items():
                table.append((what, figure))
                wrong += [f"{what}: {one}" for one in bad]
                print(f"{what}: {figure}", flush=True)
    return table, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=ROWS)
    add("--only", nargs="+", default=(), help="commands such as generate.py or segment")
    add("--kills", type=int, default=50)
    add("--writes", type=int, default=1000, help="the disk is full at each of the first N writes")
    add("--images", type=int, default=10_000)
    add("--slices", type=int, default=1000)
    add("--steps", type=int, default=20_000)
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    table, wrong = endure(
        args.rows, args.kills, args.writes, args.images, args.slices, args.steps, args.seed, args.only
    )
    print("\n| what | figure |\n|---|---|")
    for what, figure in table:
        print(f"| {what} | {figure} |")
    print(f"\n{time.monotonic() - started:.0f} s; {len(wrong)} broken promises", *wrong, sep="\n- ")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
