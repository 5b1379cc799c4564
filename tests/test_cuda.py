"""What only a card can show: bfloat16 and compiled passes beside float32 and plain ones, and memory that runs out."""

from dataclasses import replace

import pytest
import torch
from backbones import disturbed

from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.device import native_bfloat16
from natural2nanoscale.diffusion.backbone import load_backbone
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.controlnet import predict_noise
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.settings import SHORT
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.segmentation.training import train

pytestmark = pytest.mark.cuda


@pytest.fixture
def card():
    return torch.device("cuda")


def losses(run: RunFolder) -> list[float]:
    return [row["loss"] for row in run.read_log() if "loss" in row]


def test_bfloat16_predicts_what_float32_does(card, small_backbone):
    if not native_bfloat16(card):
        pytest.skip("this card only emulates bfloat16")
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(str(small_backbone), card, dtype)
        draws = torch.Generator().manual_seed(0)
        latents, hint = torch.randn(2, 4, 8, 8, generator=draws), torch.rand(2, 3, 64, 64, generator=draws)
        width, length = backbone.unet.config.cross_attention_dim, backbone.tokenizer.model_max_length
        states = torch.randn(2, length, width, generator=draws).to(card, dtype)
        timesteps = torch.tensor([100, 700], device=card)
        with torch.no_grad():
            controlnet = disturbed(backbone)
            answers.append(
                predict_noise(backbone.unet, controlnet, latents.to(card), timesteps, states, hint.to(card))
            )
    assert (answers[0] - answers[1]).norm() < 0.05 * answers[0].norm()


def test_a_compiled_fine_tuning_learns_what_a_plain_one_does(card, tiny_backbone, data_folder, tmp_path):
    settings = FineTuning((32, 32), 1e-4, max_steps=40, latent_variants=2, sample_every=40)
    data = TrainingData(open_pairs(data_folder / "train"), open_pairs(data_folder / "val"), ["a cell"])
    seen = []
    for name, chosen in (("plain", settings), ("compiled", replace(settings, compile=True))):
        (tmp_path / name).mkdir()
        run = RunFolder(tmp_path / name)
        fine_tune(run, load_backbone(str(tiny_backbone), card), data, chosen)
        seen.append(losses(run))
    assert seen[0] == pytest.approx(seen[1], rel=1e-2)


def test_a_unet_learns_in_bfloat16(card, data_folder):
    slices = {part: load_slices(open_pairs(data_folder / part)) for part in ("train", "val")}
    settings = replace(SHORT, max_steps=60, validate_every=30, crop=None, precision="bfloat16")
    trained = train(slices["train"], slices["val"], settings, card)
    assert trained.best["val_miou"] > 0.5


def test_memory_that_runs_out_names_what_helps(card, script, tiny_backbone, data_folder, tmp_path):
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        common = ("--data", data_folder, "--backbone", tiny_backbone, "--max-steps", 1, "--out", tmp_path / "run")
        error = script("train_controlnet.py", *common, "--device", "cuda", expect=2).stderr
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in error and "Traceback" not in error
