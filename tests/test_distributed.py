"""Fine-tuning in two processes: the numbers of one process, a single writer, and honest ends."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from conftest import blobs
from safetensors.torch import load_file

from natural2nanoscale.data.folders import read_info, write_images
from natural2nanoscale.device import select_device
from natural2nanoscale.diffusion import progress
from natural2nanoscale.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
# forks of a process that has imported everything and computed nothing: two at the price of one import
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["natural2nanoscale.diffusion.training", "pytest"])


def no_strip(validation: progress.Validation, folder: Path, step: int) -> None:
    """In place of a sample strip, which takes most of a short run."""
    folder.mkdir(exist_ok=True)
    (folder / f"{step}-by-{os.environ.get('RANK', 0)}").touch()


@pytest.fixture(autouse=True)
def no_strips(monkeypatch):
    monkeypatch.setattr(progress.Validation, "write_strip", no_strip)


def process(rank: int, port: int, output: Path, arguments: list[str], number: int | None) -> None:
    """train_controlnet.py as torchrun starts it; the signal `number` reaches the second process in its third step."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    adam, steps = torch.optim.Adam.step, []

    def step(*given: object) -> None:
        steps.append(1)
        if rank == 1 and len(steps) == 3:
            os.kill(os.getpid(), number)
        adam(*given)

    if number:
        torch.optim.Adam.step = step
    progress.Validation.write_strip = no_strip
    sys.argv = ["train_controlnet.py", *(argument.format(rank=rank) for argument in arguments)]
    with (output / f"output-{rank}").open("w") as file:
        sys.stdout = sys.stderr = file
        runpy.run_path(str(ROOT / "train_controlnet.py"), run_name="__main__")


@pytest.fixture
def common(data_folder, tiny_backbone):
    """Arguments of every training here: 3 slices, so that in steps of 2 every other one leaves a process without."""
    for part in ("images", "masks"):
        (data_folder / "train" / part / "slice_0003.png").unlink()
    return (
        *("--data", data_folder, "--backbone", tiny_backbone, "--device", "cpu", "--lr", 1e-5),
        *("--precision", "fp32", "--latent-variants", 2, "--clip", 1e9, "--checkpoint-every", 2, "--keep", 9),
        "--batch-size",
    )


@pytest.fixture
def two(tmp_path, common):
    """Run train_controlnet.py in two processes with batches of 1; returns their exit codes and what they printed."""

    def run(*arguments: object, number: int | None = None) -> tuple[list[int], list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = [str(argument) for argument in (*common, 1, *arguments)]
        processes = [
            CONTEXT.Process(target=process, args=(rank, port, tmp_path, given, number), daemon=True) for rank in (0, 1)
        ]
        for one in processes:
            one.start()
        for one in processes:
            one.join()
        return [one.exitcode for one in processes], [(tmp_path / f"output-{rank}").read_text() for rank in (0, 1)]

    return run


def load(run: Path, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Adam's first moments, in the first step a tenth of the gradients, and the weights."""
    checkpoint = RunFolder(run).load_checkpoint(f"step-{step:06d}")
    moments = [value for name, value in sorted(checkpoint.tensors.items()) if name.endswith("exp_avg")]
    weights = load_file(checkpoint.path / "controlnet/diffusion_pytorch_model.safetensors")
    return torch.cat([value.flatten() for value in moments]), torch.cat(
        [value.flatten() for _, value in sorted(weights.items())]
    )


def test_two_processes_are_one_of_the_double_batch(two, script, common, tmp_path):
    one, pair, four = tmp_path / "one", tmp_path / "pair", ("--max-steps", 4, "--checkpoint-every", 1)
    script("train_controlnet.py", *common, 2, "--out", one, *four)
    codes, (told, silent) = two("--out", pair, *four)
    assert codes == [0, 0]
    (expected, start), (found, _) = load(one, 1), load(pair, 1)
    assert expected.norm() > 1e-4 and (found - expected).norm() < 1e-5 * expected.norm()
    (_, expected), (_, found) = load(one, 4), load(pair, 4)
    assert (expected - start).abs().max() > 1e-5 and (found - expected).abs().max() < 1e-6

    # the first one alone printed and wrote
    assert "done: samples in" in told and "4/4" in told and silent == ""
    assert "steps of 2 slices" in told and "in each of 2 processes" in told
    rows = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, pair)]
    assert [row.get("loss", 0) for row in rows[0]] == pytest.approx([row.get("loss", 0) for row in rows[1]], abs=2e-5)
    assert sorted(p.name for p in pair.rglob("*")) == sorted(p.name for p in one.rglob("*"))

    # other numbers of processes go on alike: the steps keep their size
    script("train_controlnet.py", *common, 1, "--out", pair, "--max-steps", 6, "--resume")
    codes, _ = two("--out", one, "--max-steps", 6, "--resume", "--batch-size", 2)
    assert codes == [0, 0]
    (_, expected), (_, found) = load(one, 6), load(pair, 6)
    assert (expected - start).abs().max() > 2e-5 and (found - expected).abs().max() < 1e-6


def test_two_processes_adapt_as_one_does(two, script, common, data_folder, tmp_path):
    slices = [(stem, image) for stem, image, _ in blobs(2, 32, 64, seed=9)]
    write_images(data_folder / "unlabelled", read_info(data_folder / "train"), slices)
    few = ("--adapt", 3, "--adapt-lr", 1e-5, "--max-steps", 1)
    script("train_controlnet.py", *common, 2, "--out", tmp_path / "one", *few)
    codes, (told, silent) = two("--out", tmp_path / "pair", *few)
    assert codes == [0, 0] and "3 steps of 2 slices" in told and silent == ""
    moments = []
    for run in ("one", "pair"):
        saved = RunFolder(tmp_path / run / "adapted").load_checkpoint()
        assert saved.step == 3
        found = [value.flatten() for name, value in sorted(saved.tensors.items()) if name.endswith("exp_avg")]
        moments.append(torch.cat(found))
    assert moments[0].norm() > 1e-4 and (moments[0] - moments[1]).norm() < 1e-3 * moments[0].norm()


def test_lost_process_ends_the_run_with_its_newest_checkpoint(two, script, common, tmp_path):
    codes, (told, _) = two("--out", tmp_path / "run", "--max-steps", 9, number=signal.SIGKILL)
    assert codes == [2, -signal.SIGKILL]
    assert "error: process 0 of 2 has lost another one" in told and "--resume" in told and "Traceback" not in told
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000002"]
    script("train_controlnet.py", *common, 1, "--out", tmp_path / "run", "--max-steps", 3, "--resume")
    assert RunFolder(tmp_path / "run").load_checkpoint().step == 3


def test_signal_to_one_process_stops_all_in_the_same_step(two, tmp_path):
    codes, (told, silent) = two("--out", tmp_path / "run", "--max-steps", 9, number=signal.SIGUSR1)
    assert codes == 2 * [128 + signal.SIGUSR1]
    assert "interrupted at step 3 of 9" in told and silent == ""
    assert RunFolder(tmp_path / "run").load_checkpoint().step == 3


def test_refusals_are_told_once(two, data_folder, tmp_path):
    codes, (told, silent) = two("--out", tmp_path / "run", "--crop", "33x32")
    assert codes == [2, 2] and told.startswith("error: --crop") and silent == ""
    assert not (tmp_path / "run").exists()
    data_folder.rename(tmp_path / "data-0")
    shutil.copytree(tmp_path / "data-0", tmp_path / "data-1")
    for part in ("images", "masks"):
        (tmp_path / "data-1/train" / part / "slice_0000.png").unlink()
    codes, (told, silent) = two("--out", tmp_path / "run", "--data", str(tmp_path / "data-{rank}"))
    assert codes == [2, 2] and "error: the processes differ in arguments, slices" in told and silent == ""
    codes, (told, silent) = two("--out", tmp_path / "other", "--data", tmp_path / "data-0", "--seed", "{rank}")
    assert codes == [2, 2] and "error: the processes differ" in told and silent == ""


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    asked, current = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: asked.append(device))
    assert select_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert select_device("auto") == select_device("cuda") == torch.device("cuda:3") == asked[-1]
    assert current == 2 * [torch.device("cuda:3")]  # what asks for the current one, as bfloat16's check does, means it
    assert select_device("cpu") == torch.device("cpu")
