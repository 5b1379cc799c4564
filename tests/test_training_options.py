"""Memory, speed and training options of the fine-tuning: what may change the result, and what must not."""

import runpy
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backbones import disturbed
from safetensors.torch import load_file

from natural2nanoscale import device as measure
from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.diffusion import memory, progress, sampling, training, validation
from natural2nanoscale.diffusion.backbone import encode_prompts, load_backbone, weights_hash
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.controlnet import (
    denoising_loss,
    make_controlnet,
    part_state,
    predict_noise,
    unlock,
)
from natural2nanoscale.diffusion.memory import moved, plan
from natural2nanoscale.diffusion.saving import load_trained
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation import judge

CPU = torch.device("cpu")
counting = runpy.run_path(str(Path(__file__).with_name("benchmarks") / "memory.py"))


@pytest.fixture
def backbone(tiny_backbone):
    return load_backbone(str(tiny_backbone), CPU)


@pytest.fixture(autouse=True)
def no_strips(monkeypatch):
    """Validation loss and sample strips take most of a short run and have tests of their own."""
    monkeypatch.setattr(progress.Validation, "loss", lambda *_: 0.0)
    monkeypatch.setattr(progress.Validation, "write_strip", lambda *_: None)


@pytest.fixture
def tune(backbone, data_folder, tmp_path):
    """fine_tune on the tiny data; returns the run. Learning rate 1e-3, windows of 32x32."""

    def run(out: str, prompts=("a cell",), resume=False, agreement=None, **settings) -> RunFolder:
        (tmp_path / out).mkdir(exist_ok=True)
        folder = RunFolder(tmp_path / out)
        chosen = FineTuning((32, 32), 1e-3, **{"latent_variants": 2, "sample_every": 4, "max_steps": 1} | settings)
        parts = open_pairs(data_folder / "train"), open_pairs(data_folder / "val")
        fine_tune(folder, backbone, TrainingData(*parts, list(prompts)), chosen, resume, agreement=agreement)
        return folder

    return run


def gradients(run: RunFolder) -> torch.Tensor:
    """The first step's gradient, read off Adam's first moment, which is a tenth of it."""
    state = run.load_checkpoint().tensors
    return torch.cat([10 * state[name].flatten() for name in sorted(state) if name.endswith("exp_avg")])


def test_accumulated_gradients_are_those_of_the_large_batch(tune):
    one = gradients(tune("one", batch_size=4, clip=1e9))
    assert one.abs().max() > 1e-2
    for batch_size, accumulate in (2, 2), (3, 2), (1, 4):
        parts = gradients(tune(f"{batch_size}", batch_size=batch_size, accumulate=accumulate, clip=1e9))
        assert (one - parts).abs().max() < 1e-6


def test_gradient_is_clipped_as_a_whole(tune):
    free = gradients(tune("free", clip=1e9, unlock_decoder=1.0))
    limit = free.norm().item() / 5
    assert torch.allclose(gradients(tune("clipped", clip=limit, unlock_decoder=1.0)), free / 5, rtol=1e-3, atol=1e-7)


def test_epochs_count_what_is_accumulated():
    settings = FineTuning((32, 32), 1e-3, epochs=10, batch_size=2, accumulate=3)
    assert [settings.total_steps(slices) for slices in (6, 7, 2)] == [10, 20, 10]


@pytest.mark.parametrize("unlocked", [0.0, 0.1])
def test_gradient_checkpointing_gives_the_same_gradients(tune, unlocked, monkeypatch):
    seen = []

    def watched(denoiser, batch):
        seen.append((denoiser.unet.is_gradient_checkpointing, denoiser.controlnet.is_gradient_checkpointing))
        return denoising_loss(denoiser, batch)

    monkeypatch.setattr(training, "denoising_loss", watched)
    plain = gradients(tune("plain", unlock_decoder=unlocked))
    again = gradients(tune("again", unlock_decoder=unlocked, gradient_checkpointing=True))
    assert plain.norm() > 0 and torch.allclose(plain, again, rtol=1e-5, atol=1e-8)
    assert seen == [(False, False), (True, True)]


def test_compiled_prediction_is_used_and_gradients_have_their_own_memory(tune, monkeypatch):
    # generating code takes longer than all other tests: tests/benchmarks/training.py --compile does it
    calls, addresses = [], set()

    def compiled(function, **options):
        assert options == {"dynamic": False, "mode": None}  # CUDA graphs only where there is CUDA

        def run(unet, controlnet, *arguments):
            calls.append(function)
            addresses.add(controlnet.conv_in.weight.grad.data_ptr())
            return function(unet, controlnet, *arguments)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    plain, same = (tune(name, max_steps=3, compile=name == "same") for name in ("plain", "same"))
    assert calls == [predict_noise] * 3 and len(addresses) == 1
    assert torch.equal(gradients(plain), gradients(same))


def test_memory_grows_with_the_pixels_as_counted(backbone):
    """What tests/benchmarks/memory.py counts for the table of cards."""
    kept_bytes = counting["kept_bytes"]
    controlnet = make_controlnet(backbone)
    side = backbone.grid
    for checkpointing in (False, True):
        small, large = (kept_bytes(backbone, controlnet, side, n * side, checkpointing) for n in (1, 2))
        whole = kept_bytes(backbone, controlnet, 16 * side, 8 * side, checkpointing)
        assert small + (large - small) * (16 * 8 - 1) == pytest.approx(whole, rel=0.02)
    assert whole < 0.7 * kept_bytes(backbone, controlnet, 16 * side, 8 * side, False)


def test_estimated_memory(backbone):
    kept_bytes, needed_bytes = counting["kept_bytes"], counting["needed_bytes"]
    settings = FineTuning((16 * backbone.grid, 8 * backbone.grid), 1e-3)
    controlnet = make_controlnet(backbone)
    trained, frozen = (sum(p.numel() for p in model.parameters()) for model in (controlnet, backbone.unet))
    whole = kept_bytes(backbone, controlnet, 16 * backbone.grid, 8 * backbone.grid, False)
    expected = 16 * trained + 4 * frozen + 2 * whole
    assert needed_bytes(backbone, controlnet, 0, settings) == pytest.approx(expected, rel=0.02)
    latents = 4 * settings.crop[0] * settings.crop[1] // backbone.downsampling**2
    more = needed_bytes(backbone, controlnet, 3, settings) - needed_bytes(backbone, controlnet, 0, settings)
    assert more == 3 * 2 * 4 * latents  # three windows' means and deviations
    compiled = needed_bytes(backbone, controlnet, 0, replace(settings, compile=True))
    assert compiled - needed_bytes(backbone, controlnet, 0, settings) == 4 * trained  # gradients twice


def test_plan_times_a_step_and_leaves_no_trace(backbone, monkeypatch):
    settings = FineTuning((16 * backbone.grid, 8 * backbone.grid), 1e-3, accumulate=3, gradient_checkpointing=True)
    controlnet = make_controlnet(backbone)
    before = weights_hash(controlnet, backbone.unet)
    ticks = iter([0, 50, 60, 62, 0, 0, 0, 0])  # the first batch of all warms up
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(measure, "peak_bytes", lambda device: 3_000_000_000)
    latents = 9 * 2 * 4 * 4 * settings.crop[0] * settings.crop[1] // backbone.downsampling**2
    monkeypatch.setattr(memory, "gigabytes", lambda peak: f"{peak - latents} bytes and the cache")
    expected = "1000 steps of 6 slices in about 3000000000 bytes and the cache and 1.7 h"
    assert expected in plan(backbone, controlnet, 9, 9, 1000, settings)
    assert all(p.grad is None for p in (*controlnet.parameters(), *backbone.unet.parameters()))
    assert not controlnet.is_gradient_checkpointing and weights_hash(controlnet, backbone.unet) == before
    # where the system does not tell, the plan says so
    monkeypatch.undo()
    monkeypatch.setattr(measure, "resource", None)
    assert "an unknown amount of memory" in plan(backbone, controlnet, 9, 9, 1000, settings)
    assert [measure.duration(seconds) for seconds in (0.4, 89, 90, 5399, 5400)] == [
        "0 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
    ]


def test_idle_encoders_give_way_and_come_back(tune, backbone, monkeypatch):
    places = []

    @contextmanager
    def watched(modules, device):
        places.append((modules, device))
        with moved(modules, device):
            yield

    for module in (training, progress):
        monkeypatch.setattr(module, "moved", watched)
    before = [p.data_ptr() for p in backbone.vae.parameters()]
    tune("cached")
    assert places == [([backbone.text_encoder, backbone.vae], CPU), ([backbone.vae], backbone.device)]
    assert [p.data_ptr() for p in backbone.vae.parameters()] == before  # on a CPU nothing moves at all
    places.clear()
    tune("encoding", latent_variants=0)  # needs the VAE at every step
    assert places[0] == ([backbone.text_encoder], CPU)


def test_moved_restores_the_place_but_not_after_an_error():
    calls = []

    class Part(torch.nn.Linear):
        def to(self, device):
            calls.append(device)

    with moved([Part(1, 1)], torch.device("meta")):
        assert calls == [torch.device("meta")]
    assert calls.pop() == CPU
    with pytest.raises(KeyError), moved([Part(1, 1)], torch.device("meta")):
        raise KeyError
    assert calls == 2 * [torch.device("meta")]


def test_out_of_memory_names_what_helps(script, data_folder, tiny_backbone, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(training, "denoising_loss", full)
    common = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--max-steps", 1, "--out")
    error = script(*common, tmp_path / "one", expect=2).stderr
    helps = ["--gradient-checkpointing", "--batch-size 1 --accumulate 2", "smaller --crop than 32x32"]
    assert "out of memory" in error and "Traceback" not in error
    assert sorted(helps, key=error.index) == helps
    error = script(*common, tmp_path / "two", "--gradient-checkpointing", "--batch-size", 1, expect=2).stderr
    assert "--gradient" not in error and "--batch-size" not in error and "smaller --crop" in error
    # with a checkpoint there is more to be done than to begin anew
    with monkeypatch.context() as patch:
        patch.setattr(training, "denoising_loss", denoising_loss)
        script(*common, tmp_path / "three")
    error = script("train_controlnet.py", "--max-steps", 2, "--resume", "--out", tmp_path / "three", expect=2).stderr
    assert "go on with --resume --gradient-checkpointing, or start again" in error
    monkeypatch.setattr(sampling, "sample", full)
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "three", "--steps", 5)
    error = script(*make, expect=2).stderr
    assert "out of memory" in error and "--batch-size 1" in error and "prepare --size" in error
    assert "--batch-size" not in script(*make, "--batch-size", 1, expect=2).stderr


def test_decoder_learns_beside_the_frozen_backbone(tune, backbone):
    original = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    run = tune("run", unlock_decoder=0.1)
    # the given backbone is as it was, and so is its fingerprint
    assert all(torch.equal(value, original[name]) for name, value in backbone.unet.state_dict().items())
    assert weights_hash(backbone.unet, backbone.vae) == backbone.fingerprint
    assert not any(p.requires_grad for p in backbone.unet.parameters())
    # Adam's first step is as long as the learning rate, here a tenth of 1e-3
    _, trained = load_trained(run.path, backbone)
    moves = {n: (v - original[n]).abs().max().item() for n, v in trained.unet.state_dict().items()}
    decoder = part_state(backbone.unet, "decoder").keys()
    assert max(moves[name] for name in decoder) == pytest.approx(1e-4, rel=1e-2)
    assert moves["conv_out.weight"] > 0 and all(moves[name] == 0 for name in moves.keys() - decoder)
    assert trained.fingerprint == backbone.fingerprint


def test_unlocked_run_resumes_exactly_and_generates(script, data_folder, tiny_backbone, tmp_path):
    common = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--unlock-decoder")
    options = ("--latent-variants", 2, "--prompt-dropout", 0.5, "--accumulate", 2, "--batch-size", 1)
    script(*common, *options, "--max-steps", 4, "--out", tmp_path / "whole")
    script(*common, *options, "--max-steps", 2, "--out", tmp_path / "parts")
    script(*common, *options, "--max-steps", 4, "--out", tmp_path / "parts", "--resume")
    for file in ("state.safetensors", "unet_decoder.safetensors", "controlnet/diffusion_pytorch_model.safetensors"):
        one, two = (load_file(tmp_path / run / "checkpoints/step-000004" / file) for run in ("whole", "parts"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "whole", "--steps", 1)
    script(*make, "--out", tmp_path / "slices")
    assert len(open_pairs(tmp_path / "slices").stems) == 4


@pytest.mark.parametrize("unlocked", [False, True])
def test_bfloat16_comes_close_to_float32(tiny_backbone, unlocked):
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(str(tiny_backbone), CPU, dtype)
        controlnet = disturbed(backbone)  # whose answer counts
        if unlocked:
            backbone = unlock(backbone, "decoder")
            assert {p.dtype for p in backbone.unet.parameters() if p.requires_grad} == {torch.float32}
        assert backbone.unet.conv_in.weight.dtype == dtype
        latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        hidden = encode_prompts(backbone, ["a cell", "a nucleus"])
        arguments = (latents, torch.tensor([10, 900]), hidden, torch.ones(2, 3, 32, 32))
        answer = predict_noise(backbone.unet, controlnet, *arguments)
        answer.mean().backward()
        learn = [*controlnet.controlnet_down_blocks.parameters(), *(p for p in backbone.unet.parameters())]
        assert {p.grad.dtype for p in learn if p.requires_grad} == {torch.float32}
        answers.append(answer.detach())
    full, half = answers
    assert half.dtype == torch.float32 and 0 < (full - half).norm() < 0.03 * full.norm()


def test_dropped_prompts_are_empty_ones(tune):
    losses = {
        name: [row["loss"] for row in tune(name, prompts, max_steps=3, **settings).read_log() if "loss" in row]
        for name, prompts, settings in (
            ("none", ["a cell"], {}),
            ("all", ["a cell"], {"prompt_dropout": 1.0}),
            ("empty", [""], {}),
        )
    }
    assert losses["all"] == losses["empty"] != losses["none"]


def test_newest_checkpoints_stay(tune):
    run = tune("run", max_steps=5, checkpoint_every=1, keep=4)
    names = [f"step-00000{step}" for step in (2, 3, 4, 5)]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == names


def test_best_by_mask_agreement_is_kept_and_survives_a_resume(tune, backbone, data_folder):
    scores = iter([0.2, 0.6, 0.4])
    seen = []
    held_out = open_pairs(data_folder / "val")
    middles = np.stack([held_out.mask(stem)[:, 16:48] for stem in held_out.stems])

    def agreement(images: np.ndarray, masks: np.ndarray) -> float:
        seen.append(images)
        assert np.array_equal(masks, middles) and images.shape == masks.shape and images.dtype == np.uint8
        return next(scores)

    common = {"sample_every": 1, "agreement": agreement}
    run = tune("run", max_steps=2, **common)
    kept = run.load_checkpoint("best")
    assert kept.step == 2 and kept.state["best"] == 0.6 and not kept.tensors
    tune("run", max_steps=3, resume=True, **common)
    assert run.load_checkpoint("best").step == 2 and run.load_checkpoint().state["best"] == 0.6
    assert [row["mask_agreement"] for row in run.read_log() if "mask_agreement" in row] == [0.2, 0.6, 0.4]
    assert not np.array_equal(seen[0], seen[1])

    best, newest = (load_trained(run.path, backbone, name)[0] for name in ("best", "newest"))
    saved = load_file(run.path / "checkpoints/best/controlnet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in best.state_dict().items())
    assert weights_hash(best) != weights_hash(newest)


def test_judge_through_the_scripts(script, data_folder, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "train_judge", partial(judge.train_judge, steps=60))
    out = tmp_path / "run"
    common = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--latent-variants", 1)
    script(*common, "--judge", "--max-steps", 1, "--out", out)
    (row,) = [row for row in RunFolder(out).read_log() if "mask_agreement" in row]
    assert 0 <= row["mask_agreement"] <= 1
    make = ("generate.py", "--data", data_folder, "--steps", 1, "--controlnet", out)
    script(*make, "--checkpoint", "best", "--out", tmp_path / "best")
    assert len(open_pairs(tmp_path / "best").stems) == 4
    assert "holds no checkpoint step-9" in script(*make, "--checkpoint", "step-9", expect=2).stderr
    script("train_controlnet.py", "--max-steps", 2, "--out", out, "--resume")  # the judge stays
    assert sum("mask_agreement" in row for row in RunFolder(out).read_log()) == 2

    # the judge sees the classes of real slices in them, and is trained once
    train, val = open_pairs(data_folder / "train"), open_pairs(data_folder / "val")
    agreement = judge.train_judge(train, val, CPU, out / "judge", steps=10**9)
    images, masks = (np.stack(arrays) for arrays in train.load())
    assert agreement(images, masks) > 0.9 > agreement(images[:, ::-1].copy(), masks)
    assert agreement(images, np.full_like(masks, 255)) == 0.0


def test_the_judge_never_sees_a_real_slice_shine_through(tune, backbone, monkeypatch):
    """What is judged begins at pure noise, also over a backbone whose generation begins at the masks' real slices."""
    drawn, starts = validation.sample, []

    def watched(*arguments, **options):
        starts.append(arguments[6].start)
        assert len(arguments) == 7 and not options  # no real slices are handed in
        return drawn(*arguments)

    monkeypatch.setattr(validation, "sample", watched)
    object.__setattr__(backbone, "recommended", replace(backbone.recommended, start=0.5))
    tune("run", agreement=lambda images, masks: 0.5)
    assert starts == [1.0]


def test_peak_is_that_of_the_process():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc to compare with")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    largest = 1024 * int(lines["VmHWM"].split()[0])  # kB: the kernel's own count of the same
    assert measure.peak_bytes(CPU) == pytest.approx(largest, rel=0.02)
    cost = measure.measure(lambda: None, CPU)
    assert cost.peak >= largest and cost.seconds >= 0


def test_fewer_epochs_on_resume_leave_nothing_to_do(script, data_folder, tiny_backbone, tmp_path):
    common = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / "run")
    script(*common, "--max-steps", 3)
    printed = script(*common, "--max-steps", 1, "--resume").stdout
    assert "is at step 3 of 1: nothing is left to do" in printed and "-2 steps" not in printed
    assert RunFolder(tmp_path / "run").load_checkpoint().step == 3
