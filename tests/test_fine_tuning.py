"""The fine-tuning loop and the synthesis, through the scripts' own entry points, on a tiny backbone."""

import json
import shlex
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import disturbed
from safetensors.torch import load_file, save_file

from natural2nanoscale.checkpoints import SavingTimer
from natural2nanoscale.data.folders import open_pairs, read_gray, read_info
from natural2nanoscale.diffusion import batches, synthesis
from natural2nanoscale.diffusion.backbone import encode_prompts, load_backbone
from natural2nanoscale.diffusion.batches import (
    LatentCache,
    TrainingData,
    augmented_window,
    variants_kept,
    variants_visited,
)
from natural2nanoscale.diffusion.controlnet import Batch, Denoiser, denoising_loss, predict_noise
from natural2nanoscale.diffusion.sampling import Drawn, draw_slices
from natural2nanoscale.diffusion.settings import FineTuning, SamplingSettings, read_prompts
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.files import save_png
from natural2nanoscale.runs import RunFolder


@pytest.fixture
def train(script, data_folder, tiny_backbone, tmp_path):
    """Run train_controlnet.py with a few more arguments into tmp_path / out."""

    def run(out: str, *arguments: object, expect: int = 0):
        return script(
            "train_controlnet.py",
            *("--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / out),
            *("--sample-every", 4, "--checkpoint-every", 4, "--latent-variants", 3),
            *arguments,
            expect=expect,
        )

    return run


@pytest.fixture
def no_strips(monkeypatch):
    """Sample strips take most of a short run."""
    monkeypatch.setattr(Validation, "write_strip", lambda *_: None)


def test_eight_steps_equal_four_and_four_more(train, tmp_path):
    train("whole", "--max-steps", 8)
    train("parts", "--max-steps", 4)
    train("parts", "--max-steps", 8, "--resume", "--keep", 1)
    for file in ("state.safetensors", "controlnet/diffusion_pytorch_model.safetensors"):
        one = load_file(tmp_path / "whole/checkpoints/step-000008" / file)
        two = load_file(tmp_path / "parts/checkpoints/step-000008" / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert not (tmp_path / "parts/checkpoints/step-000004").exists()
    assert sorted(p.name for p in (tmp_path / "whole/samples").iterdir()) == [
        f"step-00000{step}.png" for step in (0, 4, 8)
    ]
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "parts")]
    assert "validation_loss" in logs[0]
    finals = [[line for line in log.splitlines() if '"step": 8' in line and "val" in line] for log in logs]
    assert finals[0] == finals[1]


def test_no_silent_start_and_no_silent_resume(train, data_folder, tmp_path):
    assert "--resume finds no run" in train("run", "--max-steps", 1, "--resume", expect=2).stderr
    assert not (tmp_path / "run").exists()
    train("run", "--max-steps", 1)
    assert "already exists" in train("run", "--max-steps", 2, expect=2).stderr
    error = train("run", "--max-steps", 2, "--lr", 0.5, "--resume", expect=2).stderr
    assert "learning_rate was 0.001 and is now 0.5" in error and "Traceback" not in error
    (data_folder / "train/images/slice_0003.png").unlink()
    (data_folder / "train/masks/slice_0003.png").unlink()
    error = train("run", "--max-steps", 2, "--resume", expect=2).stderr
    assert "in train/ 1 was removed (slice_0003)" in error and f"--controlnet-init {tmp_path / 'run'}" in error


def test_damaged_checkpoint_is_refused_in_a_sentence(train, tmp_path):
    train("run", "--max-steps", 1)
    weights = tmp_path / "run/checkpoints/step-000001/controlnet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    error = train("run", "--max-steps", 2, "--resume", expect=2).stderr
    assert "damaged" in error and "Traceback" not in error


def test_generation(script, train, data_folder, tmp_path):
    train("run", "--max-steps", 1)
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 2)
    out = data_folder / "synthetic"
    script(*make, "--per-mask", 1, "--batch-size", 1)
    first = {file.name: file.read_bytes() for file in (out / "images").iterdir()}
    assert len(first) == 4

    # a second call makes only what is missing; a longer one extends; whole pairs with the source's masks
    (out / "images/slice_0002_s000.png").unlink()
    assert "1 new slices" in script(*make, "--per-mask", 1).stdout
    script(*make, "--per-mask", 2, "--batch-size", 3)
    pairs = open_pairs(out)
    assert len(pairs.stems) == 8
    assert all((out / "images" / name).read_bytes() == content for name, content in first.items())
    assert np.array_equal(pairs.mask("slice_0003_s001"), read_gray(data_folder / "train/masks/slice_0003.png"))
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len({row["seed"] for row in rows}) == 8 and len(rows) == 8
    assert all(row["prompt"] in read_prompts(None) for row in rows)
    assert not np.array_equal(pairs.image("slice_0003_s000"), pairs.image("slice_0003_s001"))

    # other settings are refused and nothing changes
    error = script(*make, "--guidance", 3, expect=2).stderr
    assert "another guidance" in error and len(list((out / "images").iterdir())) == 8

    # seeds, noise and prompts do not depend on the batch; pixels agree to a grey level
    script(*make, "--per-mask", 2, "--batch-size", 4, "--out", tmp_path / "again")
    again = open_pairs(tmp_path / "again")
    difference = np.stack([np.abs(again.image(s).astype(int) - pairs.image(s)) for s in pairs.stems])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert {json.dumps(row) for row in rows} == set((tmp_path / "again/manifest.jsonl").read_text().splitlines())


def test_a_killed_generation_is_no_pair_folder_until_a_call_completes_it(
    script, train, data_folder, tmp_path, monkeypatch
):
    train("run", "--max-steps", 1)
    out = data_folder / "a folder"
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1, "--batch-size", 1)
    make += ("--out", out)
    learn = ("train_unet.py", "--data", data_folder, "--synthetic", out, "--max-steps", 1, "--seeds", 1)

    def killed_after(count: int, *arguments: object) -> None:
        drawn, left = synthesis.draw_slices, iter(range(count))

        def draw(*inputs):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return drawn(*inputs)

        with monkeypatch.context() as patch:
            patch.setattr(synthesis, "draw_slices", draw)
            script(*make, *arguments, expect=130)

    def refused() -> str:
        assert not (out / "dataset.json").exists()
        error = script(*learn, "--out", tmp_path / "unet", expect=2).stderr
        assert "is unfinished" in error and error.count("\n") == 1 and not (tmp_path / "unet").exists()
        return error.split("`")[1]

    killed_after(0)  # before the first slice
    killed_after(3)
    assert "another guidance" in script(*make, "--guidance", 3, expect=2).stderr  # its settings are known
    python, *finish = shlex.split(refused())
    assert python == "python" and "1 new slices" in script(*finish).stdout
    complete = read_info(out)
    assert not (out / "generation.json").exists() and len(open_pairs(out).stems) == 4

    # on the way to more it is unfinished again; a call for fewer makes what it was asked for and no more
    killed_after(5, "--per-mask", 3)
    assert "--per-mask 3" in refused()
    script(*make, "--per-mask", 2)
    finish = shlex.split(refused())[1:]
    assert "--per-mask 3" in " ".join(finish)
    script(*finish)
    assert len(open_pairs(out).stems) == 12 and read_info(out) == complete

    # a folder of before, killed: dataset.json alone
    for part in ("images", "masks"):
        (out / part / "slice_0001_s002.png").unlink()
    killed_after(0, "--per-mask", 3)
    refused()
    assert "1 new slices" in script(*make, "--per-mask", 3).stdout and read_info(out) == complete


def test_what_a_full_disk_leaves_of_the_first_file_is_no_folder(script, train, data_folder, tmp_path):
    train("run", "--max-steps", 1)
    out = data_folder / "synthetic"
    out.mkdir()
    (out / ".generation.json.tmp").touch()
    script("generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1)
    assert len(open_pairs(out).stems) == 4


def test_sizes_off_the_grid_keep_their_size(script, train, data_folder, tmp_path):
    train("run", "--max-steps", 1)
    for part in ("images", "masks"):
        for file in (data_folder / "train" / part).iterdir():
            pixels = read_gray(file)[:29, :51]
            file.unlink()
            save_png(file, pixels)
    script(
        "generate.py",
        *("--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1, "--out", tmp_path / "odd"),
    )
    assert open_pairs(tmp_path / "odd").image("slice_0001_s000").shape == (29, 51)


def test_generate_before_training_names_the_command(script, data_folder, tmp_path):
    error = script("generate.py", "--data", data_folder, "--controlnet", tmp_path / "none", expect=2).stderr
    assert "python train_controlnet.py" in error and "Traceback" not in error
    assert not (data_folder / "synthetic").exists()


def test_generation_refuses_what_does_not_belong_together(script, train, data_folder, tmp_path):
    train("run", "--max-steps", 1)
    make = ("generate.py", "--data", data_folder, "--steps", 2)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text('{"kind": "unet"}')
    assert "a run of kind unet" in script(*make, "--controlnet", tmp_path / "unet", expect=2).stderr
    assert "eta from 0 to 1" in script(*make, "--controlnet", tmp_path / "run", "--eta", 2, expect=2).stderr
    # a ControlNet that was trained on what is now the test part
    (data_folder / "test").rename(tmp_path / "test")
    shutil.copytree(data_folder / "train", data_folder / "test")
    assert "trained on the slices of" in script(*make, "--controlnet", tmp_path / "run", expect=2).stderr
    # and one for other classes
    for part in ("train", "val", "test"):
        file = data_folder / part / "dataset.json"
        file.write_text(file.read_text().replace("nucleus", "vacuole"))
    assert "other classes" in script(*make, "--controlnet", tmp_path / "run", expect=2).stderr
    assert not (data_folder / "synthetic").exists()


def test_windows_reach_every_pixel_and_keep_the_labels(tiny_backbone):
    image = np.arange(40 * 70, dtype=np.float32).reshape(40, 70) / 12
    mask = np.zeros((40, 70), np.uint8)
    mask[:, 50:] = 2
    mask[30:] = 255
    settings = FineTuning(crop=(32, 32), learning_rate=1e-3, noise=0.0)
    drawn = [augmented_window(image.astype(np.uint8), mask, settings, 0, i)[:2] for i in range(10)]
    windows, ids = map(torch.stack, zip(*drawn, strict=True))
    assert windows.shape == ids.shape == (10, 32, 32)
    assert set(ids.unique().tolist()) <= {0, 2, 255}
    # the first 3 x 2 windows are a grid of plain crops that holds every pixel
    for window, (y, x) in zip(windows, [(0, 0), (0, 19), (0, 38), (8, 0), (8, 19), (8, 38)], strict=False):
        crop = torch.from_numpy(image.astype(np.uint8)[y : y + 32, x : x + 32]).float()
        assert torch.allclose(window, crop, atol=0.01)


def test_cached_latents_are_those_of_encoding_every_step(tiny_backbone, data_folder):
    backbone = load_backbone(str(tiny_backbone), torch.device("cpu"))
    folder = open_pairs(data_folder / "train")
    cached, plain = (LatentCache(backbone, folder, FineTuning((32, 32), 1e-3, latent_variants=k)) for k in (3, 0))
    assert cached.batch([1, 3], epoch=2)[3] is None  # no padding
    for kept, fresh in zip(cached.batch([1, 3], epoch=2)[:3], plain.batch([1, 3], epoch=2)[:3], strict=True):
        assert torch.allclose(kept.float(), fresh.float(), atol=1e-5)
    # two windows hold a slice, as many are drawn; after the last one the first comes round again
    assert cached.variants == 4 and not torch.equal(cached.batch([0], epoch=3)[0], cached.batch([0], epoch=0)[0])
    assert torch.equal(cached.batch([0], epoch=4)[0], cached.batch([0], epoch=0)[0])


def test_only_windows_that_will_be_visited_are_encoded(tiny_backbone, data_folder, monkeypatch):
    backbone, folder = load_backbone(str(tiny_backbone), torch.device("cpu")), open_pairs(data_folder / "train")
    encoded, moments = [], batches.latent_moments

    def counted(backbone, pixels):
        encoded.append(len(pixels))
        return moments(backbone, pixels)

    monkeypatch.setattr(batches, "latent_moments", counted)
    settings = FineTuning((32, 32), 1e-3, max_steps=5)  # four slices, two a step: two epochs and a half
    assert variants_visited(folder.shapes, settings) == [0, 1, 2]
    short = LatentCache(backbone, folder, settings)
    assert sum(encoded) == 3 * 4
    long = replace(settings, max_steps=400)
    assert variants_visited(folder.shapes, long) == variants_visited(folder.shapes, long, step=7) == list(range(16))
    assert variants_visited(folder.shapes, replace(settings, latent_variants=0)) == []
    # on the way from step 30 to 36, epochs 15, 16 and 17 are seen; what they see depends on no length, bit for bit
    late = replace(settings, max_steps=36)
    assert variants_visited(folder.shapes, late, step=30) == [0, 1, 15]
    whole, resumed = LatentCache(backbone, folder, long), LatentCache(backbone, folder, late, step=30)
    for cache, epochs in ((short, (0, 1, 2)), (resumed, (15, 16, 17))):
        for epoch in epochs:
            for one, two in zip(cache.batch([1, 3], epoch)[:3], whole.batch([1, 3], epoch)[:3], strict=True):
                assert torch.equal(one, two)


@pytest.mark.usefixtures("no_strips")
def test_killed_run_resumes(train, tmp_path):
    """A checkpoint half written by kill -9 stands under a temporary name and is never loaded."""
    train("run", "--max-steps", 4)
    checkpoints = tmp_path / "run/checkpoints"
    shutil.copytree(checkpoints / "step-000004", checkpoints / ".step-000008.tmp")
    (checkpoints / ".step-000008.tmp" / "state.json").write_text('{"step": 8, "state": {}}')
    train("whole", "--max-steps", 5)
    (tmp_path / "run/log.jsonl").open("a").write('{"step": 5, "lo')
    train("run", "--max-steps", 5, "--resume", "--keep", 1)
    assert [path.name for path in checkpoints.iterdir()] == ["step-000005"]
    weights = "checkpoints/step-000005/controlnet/diffusion_pytorch_model.safetensors"
    one, two = load_file(tmp_path / "run" / weights), load_file(tmp_path / "whole" / weights)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("no_strips")
def test_run_stopped_before_its_first_checkpoint_begins_again(train, tmp_path, monkeypatch):
    """Killed while the slices are encoded, or later: config.json stands, and log lines that nothing was saved for."""
    train("whole", "--max-steps", 2)
    with monkeypatch.context() as patch:
        patch.setattr(LatentCache, "__init__", lambda *_: signal.raise_signal(signal.SIGINT))
        assert "interrupted" in train("run", "--max-steps", 2, expect=130).stderr
    run = tmp_path / "run"
    assert (run / "config.json").is_file() and not (run / "checkpoints").exists()
    (run / "checkpoints/.step-000001.tmp").mkdir(parents=True)  # half written
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    told = train("run", "--max-steps", 2, "--resume").stdout
    assert f"no checkpoint was ever completed in {run}: it begins at step 0" in told and "disk: " in told
    rows = [[row | {"seconds": 0} for row in RunFolder(tmp_path / name).read_log()] for name in ("run", "whole")]
    assert rows[0] == rows[1]
    weights = "checkpoints/step-000002/controlnet/diffusion_pytorch_model.safetensors"
    one, two = load_file(run / weights), load_file(tmp_path / "whole" / weights)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.usefixtures("no_strips")
def test_checkpoints_by_the_clock_change_nothing(train, tmp_path, monkeypatch):
    saved, save = [], RunFolder.save
    monkeypatch.setattr(
        RunFolder, "save", lambda run, state, *a, **k: saved.append(state.counts.step) or save(run, state, *a, **k)
    )
    train("steps", "--max-steps", 3, "--checkpoint-every", 9, "--checkpoint-minutes", 0)
    assert saved == [3]
    monkeypatch.setattr(SavingTimer, "FIRST", 0.0)  # due after the first step, then after ten minutes
    saved.clear()
    train("clock", "--max-steps", 3, "--checkpoint-every", 9)
    assert saved == [1, 3]
    shutil.rmtree(tmp_path / "clock/checkpoints/step-000003")
    train("clock", "--max-steps", 3, "--resume")
    rows = [[row | {"seconds": 0} for row in RunFolder(tmp_path / name).read_log()] for name in ("clock", "steps")]
    assert rows[0] == rows[1]
    one, two = (load_file(tmp_path / name / "checkpoints/step-000003/state.safetensors") for name in ("clock", "steps"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_padding_carries_no_loss(small_backbone, data_folder):
    """Slices of 64x32 in windows of 128x64: a quarter of each window is real, unrotated the middle of it."""
    backbone = load_backbone(str(small_backbone), torch.device("cpu"))
    settings = FineTuning((128, 64), 1e-3, rotation=0.0, latent_variants=1)
    mean, _, _, share, _ = LatentCache(backbone, open_pairs(data_folder / "train"), settings).batch([0, 2], epoch=0)
    expected = torch.zeros(2, 1, 8, 16)
    expected[:, :, 2:6, 4:12] = 1
    assert torch.equal(share, expected)
    # the loss is the mean over what is real
    controlnet, generator = disturbed(backbone), torch.Generator().manual_seed(0)
    noise = torch.randn(mean.shape, generator=generator)
    conditioning = torch.zeros(2, 3, 64, 128)
    hidden = encode_prompts(backbone, ["a", "b"])
    timesteps = torch.tensor([100, 700])
    denoiser = Denoiser(backbone.unet, controlnet, backbone.scheduler)
    noisy = backbone.scheduler.add_noise(mean, noise, timesteps)
    with torch.no_grad():
        loss = denoising_loss(denoiser, Batch(mean, noise, timesteps, hidden, conditioning, share))
        prediction = predict_noise(backbone.unet, controlnet, noisy, timesteps, hidden, conditioning)
    middle = (..., slice(2, 6), slice(4, 12))
    assert loss.item() == pytest.approx(F.mse_loss(prediction[middle], noise[middle]).item(), rel=1e-5)
    # and so is the validation's
    data = TrainingData(*(open_pairs(data_folder / part) for part in ("train", "val")), ["a"])
    validation = Validation(backbone, None, data, settings)
    assert torch.equal(validation.share, expected)


def test_windows_of_large_slices_are_rotated_too():
    """32 windows hold a slice of 256x128; as many are drawn, and only the grid's keep its rows."""
    settings = FineTuning((32, 32), 1e-3, noise=0.0)
    image = np.repeat(np.arange(128, dtype=np.uint8)[:, None], 256, axis=1)
    count = variants_kept([image.shape, (20, 20)], settings)
    assert count == 64
    windows = torch.stack([augmented_window(image, np.zeros_like(image), settings, 0, i)[0] for i in range(count)])
    level = (windows - windows[:, :, :1]).abs().amax(dim=(1, 2)) < 1e-3
    assert level[:32].all() and level[32:].sum() <= 2
    assert variants_kept([(20, 20)], settings) == settings.latent_variants == 16
    assert variants_kept([image.shape], replace(settings, latent_variants=0)) == 0


def test_slices_of_mixed_sizes_in_one_folder(script, train, data_folder, tmp_path):
    sizes = {}
    for number, file in enumerate(sorted((data_folder / "train/images").iterdir())):
        sizes[file.stem] = (32 - 7 * (number % 2), 64 - 20 * (number // 2))  # two are lower than the window
        for part in ("images", "masks"):
            pixels = read_gray(data_folder / "train" / part / file.name)[: sizes[file.stem][0], : sizes[file.stem][1]]
            save_png(data_folder / "train" / part / file.name, pixels)
    train("run", "--max-steps", 2)
    script(
        "generate.py",
        *("--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1, "--out", tmp_path / "mixed"),
    )
    made = open_pairs(tmp_path / "mixed")
    assert {stem: made.image(f"{stem}_s000").shape for stem in sizes} == sizes


def test_off_the_grid_equals_the_mirrored_mask(tiny_backbone):
    """A slice of 29x51 is what the slice from its mask, mirrored to 32x52, shows in these 29x51 pixels."""
    backbone = load_backbone(str(tiny_backbone), torch.device("cpu"))
    controlnet = disturbed(backbone)
    mask = (np.indices((29, 51)).sum(axis=0) // 9 % 3).astype(np.uint8)
    whole = np.concatenate([mask, mask[:-4:-1]])
    whole = np.concatenate([whole, whole[:, :-2:-1]], axis=1)
    embeds, negative = encode_prompts(backbone, ["a"]), encode_prompts(backbone, [""])
    colors, settings = ((0, 0, 0), (0, 255, 0), (255, 0, 0)), SamplingSettings(steps=2)
    cut, full = (
        draw_slices(backbone, controlnet, Drawn([ids], [ids], embeds, negative, [5]), colors, settings)[0]
        for ids in (mask, whole)
    )
    assert backbone.grid == 4 and full.shape == (1, 32, 52) and cut.shape == (1, 29, 51)
    assert np.array_equal(cut, full[:, :29, :51])


def test_a_wrong_start_leaves_no_phantom_behind(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there are no slices: the phantom would be made here
    script("train_controlnet.py", "--controlnet-init", "nowhere", expect=2)
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_strips")
def test_training_starts_from_another_controlnet(train, data_folder, small_backbone, tmp_path):
    train("first", "--max-steps", 1)
    weights = "controlnet/diffusion_pytorch_model.safetensors"
    folder = shutil.copytree(tmp_path / "first/checkpoints/step-000001", tmp_path / "kept")
    # a run folder, and the diffusers folder in it, are one ControlNet: a learning rate of 0 leaves it as it is
    for number, init in enumerate((tmp_path / "first", folder / "controlnet")):
        train(f"next{number}", "--max-steps", 1, "--lr", 0, "--controlnet-init", init)
        one, two = load_file(folder / weights), load_file(tmp_path / f"next{number}/checkpoints/step-000001" / weights)
        assert all(torch.equal(one[key], two[key]) for key in one)
    # a run with a checkpoint needs them no more: the other run may go on, or go; what it was is on record
    before = json.loads((tmp_path / "next0/config.json").read_text())["controlnet_init"]
    train("first", "--max-steps", 2, "--resume")
    train("next0", "--max-steps", 2, "--resume")
    (tmp_path / "first").rename(tmp_path / "away")
    train("next0", "--max-steps", 3, "--resume")
    (tmp_path / "away").rename(tmp_path / "first")
    assert json.loads((tmp_path / "next0/config.json").read_text())["controlnet_init"] == before
    train("other", "--max-steps", 1, "--seed", 5)
    for resume in (("--controlnet-init", tmp_path / "other"), ("--controlnet-init", tmp_path / "nowhere")):
        error = train("next0", "--max-steps", 4, *resume, "--resume", expect=2).stderr
        assert "--controlnet-init was" in error
    shutil.rmtree(tmp_path / "next0/checkpoints")  # at step 0 it does need them, and the same
    error = train("next0", "--max-steps", 3, "--resume", expect=2).stderr
    assert "controlnet_init was" in error

    def refusal(init) -> str:
        message = train("refused", "--max-steps", 1, "--controlnet-init", init, expect=2).stderr
        assert not (tmp_path / "refused").exists() and message.count("\n") == 1
        return message

    assert "neither a run folder nor a diffusers ControlNet" in refusal(tmp_path / "nowhere")
    disturbed(load_backbone(str(small_backbone), torch.device("cpu"))).save_pretrained(tmp_path / "wider")
    assert "but the backbone" in refusal(tmp_path / "wider")
    train("unlocked", "--max-steps", 1, "--unlock-decoder", 0.1)
    for init in ("unlocked", "unlocked/checkpoints/step-000001/controlnet"):
        assert "was trained with --unlock-decoder" in refusal(tmp_path / init)
    damaged = shutil.copytree(folder / "controlnet", tmp_path / "damaged")
    some = load_file(damaged / "diffusion_pytorch_model.safetensors")
    del some["controlnet_mid_block.bias"]
    save_file(some, damaged / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert "1 missing keys for ControlNetModel, such as controlnet_mid_block.bias" in refusal(damaged)
    (data_folder / "test").rename(tmp_path / "test")
    shutil.copytree(data_folder / "train", data_folder / "test")
    assert "was trained on the slices of" in refusal(tmp_path / "first")


def test_generation_takes_the_tokenizer_of_the_training(script, train, data_folder, tiny_backbone, tmp_path):
    tokenizer = shutil.copytree(tiny_backbone / "tokenizer", tmp_path / "letters")
    train("run", "--max-steps", 1, "--tokenizer", tokenizer)
    shutil.rmtree(tokenizer)
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "run", "--steps", 1)
    assert "no tokenizer can be loaded from" in script(*make, expect=2).stderr
    script(*make, "--tokenizer", tiny_backbone / "tokenizer")
    assert len(open_pairs(data_folder / "synthetic").stems) == 4


def test_resume_takes_over_what_is_not_said_again(script, train, tmp_path):
    """`--resume --out RUN` alone goes on with the lengths, intervals and settings that the run began with."""
    train("run", "--max-steps", 2, "--lr", 5e-4, "--keep", 3, "--crop", "32x16")
    script("train_controlnet.py", "--out", tmp_path / "run", "--resume", "--max-steps", 4)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["settings"]["keep"] == 3 and config["settings"]["crop"] == [32, 16]
    assert config["settings"]["sample_every"] == 4 and config["settings"]["max_steps"] == 4
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == 2
    script("train_controlnet.py", "--out", tmp_path / "run", "--resume", "--epochs", 3)  # not the old --max-steps
    assert (tmp_path / "run/checkpoints/step-000006").is_dir()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_not_ours_is_one_sentence(script, train, tmp_path, content):
    train("run", "--max-steps", 1)
    (tmp_path / "run/config.json").write_text(content)
    for name, flag in (("train_controlnet.py", "--out"), ("generate.py", "--controlnet")):
        resume = ["--resume"] if flag == "--out" else []
        error = script(name, flag, tmp_path / "run", *resume, expect=2).stderr
        assert error.startswith("error: ") and "config.json cannot be read" in error and error.count("\n") == 1
