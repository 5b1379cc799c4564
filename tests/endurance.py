"""Killed, signalled, starved, damaged, and run for long: one command, one table.

    python tests/endurance.py --jobs 2                          all of it
    python tests/endurance.py --rows kills --kills 5            a part of it

Each trial runs a command in a process forked from this one, which has imported all. What befalls it comes at a moment
of its own: a random one of its time, or the n-th save, write, training step or opening of a slice. Then the same
command goes on, with --resume where it takes that; what it has made must equal, bit by bit, what an undisturbed call
makes. Folders lie in memory (/dev/shm) where there is room, so that no disk is waited for.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import fuzz  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from conftest import blobs, save_tiny_backbone  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from natural2nanoscale import files, finite  # noqa: E402
from natural2nanoscale.checkpoints import damage_of, step_of  # noqa: E402
from natural2nanoscale.data.classes import Classes  # noqa: E402
from natural2nanoscale.data.folders import DatasetInfo, write_pairs  # noqa: E402
from natural2nanoscale.files import save_png  # noqa: E402
from natural2nanoscale.segmentation.unet import content_hash  # noqa: E402

SHORT = ("--checkpoint-every", 2, "--checkpoint-minutes", 0)
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
Told = tuple[str, list[str]]  # what was wrong with a trial, empty where nothing was; remarks that are counted


# ------------------------------------------------------------------------------------------------ processes


class Process:
    """A command in a process of its own; `befall` happens at the n-th moment of a kind, (kind, n).

    Kinds: "start"; "save", a sync or a rename; "write", of a file or folder; "step", of a training; "read", the opening
    of a slice.
    """

    def __init__(self, words: Sequence[object], moment: tuple[str, int] = ("", 0), befall: Callable[[], None] = bool):
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.code: int | None = None
        self.stopped, self.seconds = False, 0.0  # of computing
        self.pid = os.fork()
        if self.pid == 0:
            fuzz.speak_into(self.said)
            for name in SIGNALS:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = 99
            try:
                counts = count_moments(moment, befall)
                fuzz.front_door(*words)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else bool(stop.code)
            except BaseException:
                traceback.print_exc()
            finally:
                print("moments", json.dumps(counts))
                sys.stdout.flush()
                os._exit(code)

    def wait(self, limit: float = 300, computed: float | None = None) -> bool:
        """Whether it ends within `limit` seconds, before it has computed for so many, and before it stops itself."""
        ends = time.monotonic() + limit
        while self.code is None and time.monotonic() < ends and not (computed and fuzz.computed(self.pid) >= computed):
            done, status, used = os.wait4(self.pid, os.WNOHANG | os.WUNTRACED)
            self.stopped = bool(done) and os.WIFSTOPPED(status)
            if self.stopped:
                break
            if done:
                self.code, self.seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
                break
            time.sleep(0.005 if computed else 0.02)
        return self.code is not None

    def end(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def output(self) -> str:
        self.said.seek(0)
        return self.said.read()


def count_moments(moment: tuple[str, int], befall: Callable[[], None]) -> Counter:
    """Count what this process does from now on, and let something befall it."""
    counts, lock = Counter(), Lock()
    sync, replace, room, guard = files.sync, os.replace, files.enough_room, finite.SkippedSteps.guard

    def reach(kind: str) -> None:
        with lock:
            counts[kind] += 1
            now = (kind, counts[kind]) == moment
        if now:
            befall()

    def first(kind: str, call: Callable) -> Callable:
        def wrapped(*arguments: object) -> object:
            reach(kind)
            return call(*arguments)

        return wrapped

    @contextmanager
    def writing(path: Path, needed: int | None = None) -> Iterator[None]:
        with room(path, needed):
            reach("write")
            yield

    def opened(event: str, arguments: tuple) -> None:
        place = str(arguments[0]) if event == "open" else ""
        if place.endswith(".png") and ("/data/train/" in place or "/source/" in place):
            reach("read")

    files.sync, os.replace, files.enough_room = first("save", sync), first("save", replace), writing
    finite.SkippedSteps.guard = first("step", guard)
    sys.addaudithook(opened)
    reach("start")
    return counts


def finish(words: Sequence[object], moment: tuple[str, int] = ("", 0), befall: Callable[[], None] = bool) -> Process:
    """A command, until its end."""
    process = Process(words, moment, befall)
    process.wait()
    process.end()
    return process


# ------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Command:
    """words: the command, given where it writes. again: what is added when it goes on. saves: on request by signal."""

    words: Callable[[Path], tuple]
    again: tuple = ()
    saves: bool = True


def make_world(folder: Path) -> None:
    """Small inputs, and a ControlNet and a U-Net that were trained on them."""
    info = DatasetInfo("blobs", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    for seed, (part, count) in enumerate((("train", 4), ("val", 2), ("test", 2))):
        write_pairs(folder / "data" / part, info, blobs(count, 32, 32, seed=seed))
    for kind in ("images", "masks"):
        (folder / "source" / kind).mkdir(parents=True)
    for stem, image, mask in blobs(10, 32, 32, seed=9):
        save_png(folder / "source/images" / f"{stem}.png", image)
        save_png(folder / "source/masks" / f"{stem}.png", mask)
    save_tiny_backbone(folder / "backbone")
    for name, steps in (("train_controlnet.py", 4), ("train_unet.py", 4)):
        out = folder / {"train_controlnet.py": "controlnet", "train_unet.py": "unet"}[name]
        done = finish((*commands(folder)[name].words(out), "--max-steps", steps))
        assert done.code == 0, done.output()


def commands(folder: Path) -> dict[str, Command]:
    """The five that are to be disturbed, over a world."""
    data, images, masks = ("--data", folder / "data"), folder / "source/images", folder / "source/masks"
    control = ("train_controlnet.py", *data, "--backbone", folder / "backbone", *fuzz.FP32, "--batch-size", 1,
               "--latent-variants", 2, "--sample-every", 50, *SHORT, "--max-steps", 8)  # fmt: skip
    unet = ("train_unet.py", *data, "--width", 4, "--depth", 2, "--seeds", 1, "--batch-size", 2, *SHORT,
            "--max-steps", 24)  # fmt: skip
    draw = ("generate.py", *data, "--controlnet", folder / "controlnet", *fuzz.FP32, "--steps", 2, "--batch-size", 1)
    prepare = ("n2n", "prepare", "--images", images, "--masks", masks)
    return {
        "train_controlnet.py": Command(lambda out: (*control, "--out", out), ("--resume",)),
        "train_unet.py": Command(lambda out: (*unet, "--out", out), ("--resume",)),
        "generate.py": Command(lambda out: (*draw, "--per-mask", 3, "--out", out)),
        "segment": Command(lambda out: ("n2n", "segment", folder / "unet", "--images", images, "--out", out)),
        "prepare": Command(lambda out: (*prepare, "--out", out), saves=False),
    }


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
        if path.name in ("config.json", "dataset.json"):  # which slices it has learned from, or holds
            said = json.loads(path.read_text())
            found[name] = json.dumps([said.get(key) for key in ("data", "slices", "digests")])
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows = [{key: value for key, value in row.items() if key not in ("seconds", "epoch")} for row in rows]
            found[name] = json.dumps(sorted(rows, key=json.dumps))
    newest = max((name.split("/")[-2] for name in found if "step-" in name and "controlnet" not in name), default="")
    return {name: value for name, value in found.items() if "step-" not in name or (newest and newest in name)}


def unlike(truth: dict[str, str], out: Path, logs: bool = True) -> list[str]:
    """Names of what differs. Without logs: a training that is stopped on request logs where it stops."""
    got = made(out)
    return sorted(name for name in truth.keys() | got.keys()
                  if truth.get(name) != got.get(name) and (logs or not name.endswith("log.jsonl")))[:5]  # fmt: skip


def resumes(command: Command, out: Path) -> tuple:
    """--resume where the command takes that and has begun."""
    return command.again if (out / "config.json").is_file() else ()


def ends_equal(command: Command, out: Path, truth: dict[str, str], logs: bool = True) -> str:
    """Let the same command go on until its end; what is wrong with that."""
    process = finish((*command.words(out), *resumes(command, out)))
    differ = unlike(truth, out, logs)
    return f"goes on to exit code {process.code}, {differ}: {process.output()[-400:]}" if process.code or differ else ""


def no_sentence(process: Process, *parts: object) -> str:
    """What is wrong with a refusal: it is exit code 2 and one sentence in which all of these parts stand."""
    said = process.output()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    fits = process.code == 2 and len(errors) == 1 and all(str(part) in errors[0] for part in parts)
    return "" if fits else f"exit code {process.code}, expected one sentence with {parts}: {said[-500:]}"


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: what it makes, seconds of computing, and how many moments of each kind it has."""

    truth: dict[str, str]
    seconds: float
    moments: dict[str, int]
    pages: int  # of memory, that its files take


def whole(command: Command, out: Path) -> Whole:
    process = finish(command.words(out))
    said = process.output()
    assert process.code == 0, said
    pages = sum(-(-path.stat().st_size // 4096) for path in out.rglob("*") if path.is_file())
    return Whole(made(out), process.seconds, json.loads(said.rpartition("moments ")[2]), pages)


def spread(count: int, last: int) -> list[int]:
    """At most `count` numbers from 1 to `last`, evenly spaced."""
    count = min(count, last)
    return [1 + round(i * (last - 1) / max(1, count - 1)) for i in range(count)]


# ------------------------------------------------------------------------------- trials: killed and signalled
# Each gets a command's name, what is known of it, the world, an empty place of its own, a source of chance, and what
# distinguishes it from the other trials of its row.


def killed(name: str, known: Whole, world: Path, place: Path, rng: random.Random, _: int) -> Told:
    """SIGKILL at a random moment of the command's time, or between two steps of its saves."""
    command, out, remarks = commands(world)[name], place / "out", []
    if rng.random() < 0.4:
        remarks = ["inside a save"]
        moment = ("save", rng.randint(1, known.moments["save"]))
        process = finish(command.words(out), moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        for _attempt in range(20):  # until one comes before the end
            process = Process(command.words(out))
            process.wait(computed=rng.uniform(0.02, 1.0) * known.seconds)
            time.sleep(0.01 * rng.random())  # the clock of computing ticks every hundredth of a second
            process.end()
            if process.code == -signal.SIGKILL:
                break
            shutil.rmtree(out, ignore_errors=True)
    if process.code != -signal.SIGKILL:
        return f"exit code {process.code}, expected a kill: {process.output()[-300:]}", []
    if name == "prepare" and out.exists():  # which makes a folder anew or not at all: it stands, and is whole
        return str(unlike(known.truth, out) or ""), [*remarks, "just after its result stood"]
    remarks += [] if saved_anything(out) else ["before its first result"]
    return ends_equal(command, out, known.truth), remarks


def saved_anything(out: Path) -> bool:
    """Whether a checkpoint, an image or a mask stands."""
    return any(path.name.startswith("step-") or path.suffix == ".png" and path.parent.name in ("images", "masks")
               for path in out.rglob("*") if not path.name.endswith(".tmp"))  # fmt: skip


def signalled(name: str, known: Whole, world: Path, place: Path, rng: random.Random, which: str) -> Told:
    """One signal: saved within a step, exit code 128 + n. Two: it leaves at once with one of them, and saves nothing
    more. Both go on to the same end."""
    command, out, numbers = commands(world)[name], place / "out", [getattr(signal, one) for one in which.split("+")]
    trains = bool(known.moments.get("step"))
    at = rng.randint(2, 6) if trains else rng.randint(8, known.moments["save"] * 3 // 4)

    def come() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.02)

    rarely = ("--checkpoint-every", 1000) if trains else ()  # what is saved is saved by the signal
    process = finish((*command.words(out), *rarely), ("step" if trains else "save", at), come)
    if process.code not in [128 + number for number in numbers]:
        return f"exit code {process.code}: {process.output()[-300:]}", []
    saved = sorted(step_of(path) for path in out.glob("**/checkpoints/step-*") if not damage_of(path))
    if trains and saved != ([at] if len(numbers) == 1 else []):
        return f"signalled in step {at}, saved are {saved}", []
    if not trains and not unlike(known.truth, out):
        return "it was through before it left", []
    return ends_equal(command, out, known.truth, logs=False), []


def refused_beside_another(name: str, known: Whole, world: Path, place: Path, rng: random.Random, _: int) -> Told:
    """A second command on the same --out, or the same shard of it, while the first one is held in mid-run."""
    command, out = commands(world)[name], place / "out"
    shard = ("--shard", "1/2") if name == "generate.py" and rng.random() < 0.5 else ()
    at = rng.randint(1, known.moments["save"] // (2 if shard else 1))
    process = Process((*command.words(out), *shard), ("save", at), lambda: os.kill(os.getpid(), signal.SIGSTOP))
    process.wait()
    second = finish((*command.words(out), *resumes(command, out), *shard)) if process.stopped else process
    os.kill(process.pid, signal.SIGCONT)
    process.wait()
    process.end()
    wrong = no_sentence(second, "another command is writing into", out)
    if not wrong and process.code:
        wrong = f"the first one: exit code {process.code}: {process.output()[-300:]}"
    if shard:
        return wrong or ends_equal(command, out, known.truth), ["of one shard"]
    return wrong or str(unlike(known.truth, out) or ""), []


# --------------------------------------------------------------------------------------------- trials: starved


def disk_full(name: str, known: Whole, world: Path, place: Path, _: random.Random, at: int) -> Told:
    """The n-th write finds no room: one sentence with the path, and the command goes on."""
    command, out = commands(world)[name], place / "out"

    def no_room() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    process = finish(command.words(out), ("write", at), no_room)
    return no_sentence(process, "no space left on the disk: ", place) or ends_equal(command, out, known.truth), []


def small_disk(name: str, known: Whole, world: Path, place: Path, _: random.Random, share: float) -> Told:
    """A file system with room for a share of the result: one sentence; with more room the command goes on."""
    command, out = commands(world)[name], place / "disk/out"
    out.parent.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o")
    subprocess.run([*mount, f"size={4 * max(1, int(share * known.pages))}k", "none", out.parent], check=True)
    try:
        process = finish(command.words(out))
        wrong = "" if process.code == 0 else no_sentence(process, "no space left on the disk", out.parent)
        subprocess.run([*mount, "remount,size=1g", "none", out.parent], check=True)
        return wrong or ends_equal(command, out, known.truth), ["fitted"] * (process.code == 0)
    finally:
        subprocess.run(["umount", "-l", out.parent], check=True)


def can_mount() -> bool:
    """Whether this process may mount a file system in memory."""
    with tempfile.TemporaryDirectory() as place:
        try:
            done = [subprocess.run(words, capture_output=True, check=False).returncode
                    for words in (("mount", "-t", "tmpfs", "none", place), ("umount", place))]  # fmt: skip
        except OSError:
            return False
    return done == [0, 0]


def read_only(name: str, known: Whole, world: Path, place: Path, _: random.Random, at: int) -> Told:
    """From the n-th write on (0: from the start) nothing may be written: one sentence; then the command goes on."""
    command, out = commands(world)[name], place / "out"

    def permit(mode: int) -> None:
        for folder in [path for path in place.rglob("*") if path.is_dir()] + [place]:
            folder.chmod(mode)

    def forbid() -> None:
        obey_permissions()
        permit(0o555)

    process = finish(command.words(out), ("write", at) if at else ("start", 1), forbid)
    permit(0o755)
    return no_sentence(process, place) or ends_equal(command, out, known.truth), []


def obey_permissions() -> None:
    """From now on this process writes only where it is permitted, also as root."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "the rights of root cannot be given up")


def slices_of(name: str, world: Path) -> Path:
    """Where a command finds its slices: images/ and masks/."""
    return world / "source" if name in ("segment", "prepare") else world / "data/train"


def vanishing(name: str, known: Whole, world: Path, place: Path, _: random.Random, at: int) -> Told:
    """The slices' folder vanishes before the n-th is opened: the result, or one sentence; the command goes on once they
    are back."""
    world, out = fuzz.copy_of(world, place / "world"), place / "out"
    folder = slices_of(name, world)
    aside = folder.with_name("aside")
    process = finish(commands(world)[name].words(out), ("read", at), lambda: folder.rename(aside))
    aside.rename(folder)
    wrong = "" if process.code == 0 else no_sentence(process, folder)
    return wrong or ends_equal(commands(world)[name], out, known.truth), ["done all the same"] * (process.code == 0)


def replaced(name: str, known: Whole, world: Path, place: Path, rng: random.Random, at: int) -> Told:
    """A slice or its mask is replaced before the n-th opening: the result of the old or of the new one, with the
    digests of the same, or one sentence that names it; with the old one back the command goes on."""
    world, out = fuzz.copy_of(world, place / "world"), place / "out"
    command, kind = commands(world)[name], "images" if name == "segment" or rng.random() < 0.5 else "masks"
    file = rng.choice(sorted((slices_of(name, world) / kind).iterdir()))
    stem, image, mask = next(blobs(1, 32, 32, seed=77))
    save_png(place / "new.png", image if kind == "images" else mask)
    old = shutil.copy2(file, place / "old.png")
    process = finish(command.words(out), ("read", at), lambda: os.rename(place / "new.png", file))
    if process.code:
        os.rename(old, file)
        return no_sentence(process, file) or ends_equal(command, out, known.truth), ["refused"]
    truth = whole(command, place / "of the new one").truth
    if name == "segment":  # it makes anew what has changed, and its log tells of both
        return ends_equal(command, out, truth, logs=False), []
    mixed = unlike(truth, out) and unlike(known.truth, out)
    return f"neither of the old nor of the new slice alone: {mixed}" if mixed else "", []


# --------------------------------------------------------------------------------------------- trials: damaged



def damage(folder: Path, weights: Path, rng: random.Random) -> str:
    """Damage a checkpoint, or the one file of best weights; what was done."""
    checkpoint = folder / "manifest.json"
    every = sorted(path for path in folder.rglob("*") if path.is_file()) if checkpoint.is_file() else [weights]
    kinds = ("flip", "cut", "gone", "other content", "not finite", *["foreign file"] * (len(every) > 1))
    kind, file = rng.choice(kinds), rng.choice(every)
    content = bytearray(file.read_bytes())
    if kind == "not finite":
        file = weights
        not_finite(file, rng)
        if len(every) > 1:
            fuzz.rehash(folder)
    elif kind == "gone":
        file.unlink()
    elif kind == "foreign file":
        file = folder / "strange.safetensors"
        shutil.copy(weights, file)
    else:
        if kind == "flip":
            for _ in range(rng.choice((1, 1, 8))):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[rng.randrange(len(content)) :]
        else:
            content = rng.randbytes(len(content))
        file.write_bytes(content)
    return f"{kind}: {file.relative_to(folder)}"


def not_finite(file: Path, rng: random.Random) -> None:
    """One weight is NaN or infinite, behind right hashes."""
    with safe_open(file, framework="pt") as opened:
        said, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    spoilt = tensors[rng.choice([name for name, value in tensors.items() if value.is_floating_point()])]
    spoilt.view(-1)[rng.randrange(spoilt.numel())] = rng.choice((math.nan, math.inf))
    if "sha256" in (said or {}):
        said["sha256"] = content_hash(said["unet"], tensors)
    save_file(tensors, file, said)


def damaged(name: str, known: Whole, world: Path, place: Path, rng: random.Random, what: str) -> Told:
    """The newest checkpoint is damaged: the one before is taken and named. Both are, or the best weights: a stop that
    names them and the remedy; once it is followed, all is as if nothing had been."""
    world, out = fuzz.copy_of(world, place / "world"), place / "out"
    command, run = commands(world)[name], world / ("unet" if name == "train_unet.py" else "controlnet")
    newest, before = sorted(run.glob("**/checkpoints/step-*"), reverse=True)
    checkpoints, truth, words = newest.parent, known.truth, command.words(out)
    if name != "generate.py":
        words, out = (*command.words(run), "--resume"), run
    elif what == "newest":
        truth = whole(Command(lambda out: (*words, "--checkpoint", before.name)), out).truth
        shutil.rmtree(out)
    if what == "best":
        truth, words = made(run), ("n2n", "evaluate", run, "--data", world / "data")
    hurt = {"newest": [newest], "both": [newest, before], "best": [run / "seed-0/best"]}[what]
    model = "controlnet/diffusion_pytorch_model" if run.name == "controlnet" else "state"
    shutil.copytree(checkpoints, place / "whole")
    done = [damage(one, one / (f"{model}.safetensors" if what != "best" else "unet.safetensors"), rng) for one in hurt]
    process = finish(words)
    if what == "newest":
        said = process.output()
        named = f"{newest} is passed over" in said and f"{before} is taken" in said
        wrong = unlike(truth, out, logs=False) or ("" if named and process.code == 0 else said[-500:])
        return f"{done}: {wrong}" if wrong else "", ["the one before taken"]
    remedy = "bring a whole one back from a copy"
    if what == "best":
        remedy = "train it anew" if "not finite" in done[0] else "--resume"
    wrong = no_sentence(process, hurt[0] if what == "best" else checkpoints, remedy)
    if what == "best":
        after = finish((*command.words(run), "--max-steps", 4, "--resume"))
    else:  # back from a copy
        shutil.rmtree(checkpoints)
        shutil.copytree(place / "whole", checkpoints)
        after = finish(words)
    differ = unlike(truth, out, logs=False)
    if not wrong and (after.code or differ):
        wrong = f"then exit code {after.code}, {differ}: {after.output()[-300:]}"
    return f"{done}: {wrong}" if wrong else "", ["stopped with the remedy"]


# ------------------------------------------------------------------------------------------- trials: for long


def long_run(name: str, _: object, world: Path, place: Path, __: random.Random, count: int) -> Told:
    """Memory and open files of a long command, in the second and in the last third of its time."""
    words = long_command(name, world, place, count)
    process = Process(words)
    sizes: list[tuple[float, int, int]] = []
    while not process.wait(0.05):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(status.split("VmRSS:")[1].split()[0])
            sizes.append((time.monotonic(), resident, len(os.listdir(f"/proc/{process.pid}/fd"))))
        except (OSError, IndexError):
            pass
    if process.code or len(sizes) < 6:
        return f"exit code {process.code}, looked at {len(sizes)} times: {process.output()[-400:]}", []
    third = sizes[len(sizes) // 3 : 2 * len(sizes) // 3]
    last = sizes[2 * len(sizes) // 3 : -1]
    before, after = (sum(size for _, size, _ in part) / len(part) / 1000 for part in (third, last))
    opened = [min(count for _, _, count in part) for part in (third, last)]  # more only while something is written
    told = f"{before:.0f} -> {after:.0f} MB, {opened[0]} -> {opened[1]} files, {process.seconds:.0f} s"
    return told if after > 1.05 * before + 20 or opened[1] > opened[0] + 2 else "", [f"{count}: {told}"]


def long_command(name: str, world: Path, place: Path, count: int) -> tuple:
    """A command that makes so many images or masks, or takes so many steps."""
    out, rarely = place / "out", ("--checkpoint-every", max(1, count // 4), "--max-steps", count)
    words = commands(world)[name].words(out)
    if name == "train_controlnet.py":
        return (*words, *rarely, "--sample-every", count)
    if name == "train_unet.py":
        return (*words, *rarely, "--patience", 0, "--validate-every", 500)
    if name == "generate.py":
        return (*words, "--per-mask", -(-count // 4), "--steps", 1, "--batch-size", 16)
    (place / "many").mkdir()
    chance = np.random.default_rng(0)
    for i in range(count):
        save_png(place / "many" / f"s{i:05d}.png", chance.integers(0, 256, (32, 32), dtype=np.uint8))
    return (*words, "--images", place / "many")


# --------------------------------------------------------------------------------------------------- the table

TRIALS: dict[str, Callable[..., Told]] = {
    "long": long_run,
    "kills": killed,
    "signals": signalled,
    "locks": refused_beside_another,
    "disk": disk_full,
    "small disk": small_disk,
    "read-only": read_only,
    "vanish": vanishing,
    "replace": replaced,
    "damage": damaged,
}
SAVING = ("train_controlnet.py", "train_unet.py", "generate.py", "segment")
HURT = [("train_controlnet.py", "newest"), ("train_unet.py", "newest"), ("generate.py", "newest"),
        ("train_controlnet.py", "both"), ("train_unet.py", "both"), ("generate.py", "both"), ("train_unet.py", "best"),
        ("train_unet.py", "best")]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much of each row is done."""

    kills: int = 50
    repeats: int = 3
    writes: int = 1000
    moments: int = 10
    damages: int = 100
    images: int = 10_000
    slices: int = 1000
    steps: int = 20_000


def trials(row: str, name: str, size: Size, known: Whole) -> list:
    """What distinguishes the trials of a row for a command."""
    if row == "kills":
        return list(range(size.kills))
    if row == "signals":
        both = ("SIGINT+SIGTERM", "SIGTERM+SIGINT")
        return [*SIGNALS, *both] * size.repeats if name in SAVING else []
    if row == "locks":
        return list(range(size.moments))
    if row == "disk":
        return spread(size.writes, known.moments["write"])
    if row == "small disk":
        return [(i + 1) / (size.moments + 1) for i in range(size.moments)]
    if row == "read-only":
        return [0, *spread(size.moments - 1, known.moments["write"])]
    if row in ("vanish", "replace"):
        return spread(size.moments, known.moments["read"])
    if row == "damage":
        return [what for i in range(size.damages) for command, what in [HURT[i % len(HURT)]] if command == name]
    counts = dict(zip(SAVING, (size.steps, size.steps, size.images, size.slices), strict=True))
    return [counts[name]] if name in counts else []


def computed() -> float:
    """Seconds of computing of this process and of those that it has started and seen end."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run_trial(task: tuple) -> tuple[str, str, str, list[str], float]:
    row, name, known, world, seed, number, what = task
    before = computed()
    with tempfile.TemporaryDirectory(dir=world.parent) as place:
        try:
            chance = random.Random(f"{seed} {row} {name} {number}")
            wrong, remarks = TRIALS[row](name, known, world, Path(place), chance, what)
        except Exception:  # a fault of the trial itself is not passed over either
            wrong, remarks = traceback.format_exc(), []
    told = f"{row} {number} ({what}) of {name}: {wrong}" if wrong else ""
    return row, name, told, remarks, computed() - before


def endure(
    rows: Sequence[str] = tuple(TRIALS), size: Size = Size(), seed: int = 0, only: Sequence[str] = (), jobs: int = 1
) -> tuple[list[str], list[str]]:
    """The table's lines, and what was wrong."""
    torch.set_num_threads(1)
    fuzz.import_all()
    if "small disk" in rows and not can_mount():
        print("small disk: skipped, this user may not mount a file system in memory")
        rows = [row for row in rows if row != "small disk"]
    right, count, seconds, remarks, lines, wrong = Counter(), Counter(), Counter(), {}, [], []
    with tempfile.TemporaryDirectory(dir=fuzz.SCRATCH) as scratch:
        world = Path(scratch) / "world"
        world.mkdir()
        make_world(world)
        names = [name for name in commands(world) if not only or name in only]
        known = {name: whole(commands(world)[name], Path(scratch) / f"whole-{name}") for name in names}
        tasks = [(row, name, known[name], world, seed, number, what) for row in rows for name in names
                 for number, what in enumerate(trials(row, name, size, known[name]))]  # fmt: skip
        planned = Counter((row, name) for row, name, *_ in tasks)
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            for row, name, bad, said, used in pool.imap_unordered(run_trial, tasks):
                one = row, name
                count[one] += 1
                right[one] += not bad
                seconds[one] += used
                remarks.setdefault(one, Counter()).update(said)
                if bad:
                    wrong.append(bad)
                    print(bad, flush=True)
                if count[one] == planned[one]:
                    told = [remark if row == "long" else f"{n} {remark}" for remark, n in sorted(remarks[one].items())]
                    figure = f"{right[one]} of {count[one]} | {', '.join(told)} | {seconds[one]:.0f}"
                    lines.append(f"| {row} | {name} | {figure} |")
                    print(lines[-1], flush=True)
    return lines, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", choices=tuple(TRIALS), default=tuple(TRIALS))
    add("--only", nargs="+", default=(), help="commands such as generate.py or segment")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="trials at a time")
    for field in fields(Size):
        add(f"--{field.name}", type=int, default=field.default, help="(default: %(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    size = Size(**{field.name: getattr(args, field.name) for field in fields(Size)})
    lines, wrong = endure(args.rows, size, args.seed, args.only, args.jobs)
    lines.sort(key=lambda line: list(TRIALS).index(line.split(" | ")[0][2:]))
    print("\n| row | command | right | of these | core seconds |\n|---|---|--:|---|--:|", *lines, sep="\n")
    print(f"\nseed {args.seed}, {time.monotonic() - started:.0f} s, {computed() / 60:.1f} minutes of a core, "
          f"{len(wrong)} broken promises", *wrong, sep="\n- ")  # fmt: skip
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
