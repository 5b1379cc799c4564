"""`train_controlnet.py --adapt`: the U-Net learns slices without masks, and generation takes what it learned along."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from natural2nanoscale.data.folders import open_images, open_pairs, read_info, write_images
from natural2nanoscale.data.roots import TRANSDUCTIVE, learned_by_run, learned_from_folder, refuse_unfit
from natural2nanoscale.diffusion import training
from natural2nanoscale.diffusion.backbone import encode_prompts, load_backbone, weights_hash
from natural2nanoscale.diffusion.batches import TrainingData, WithoutMasks
from natural2nanoscale.diffusion.controlnet import belongs, decode_latents
from natural2nanoscale.diffusion.sampling import sample, sampling_scheduler
from natural2nanoscale.diffusion.saving import ADAPTED, ADAPTED_FILE, load_adapted
from natural2nanoscale.diffusion.settings import FineTuning, SamplingSettings
from natural2nanoscale.diffusion.training import adapt
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.signals import Interrupted

CPU = torch.device("cpu")


@pytest.fixture
def backbone(tiny_backbone):
    return load_backbone(str(tiny_backbone), CPU)


@pytest.fixture
def unlabelled(data_folder):
    """Four slices that nobody annotated, in the data root."""
    rng = np.random.default_rng(1)
    info = read_info(data_folder / "train")
    slices = ((f"more_{i}", rng.integers(0, 256, (32, 64), dtype=np.uint8)) for i in range(4))
    return write_images(data_folder / "unlabelled", info, slices)


@pytest.fixture
def learn(backbone, data_folder, unlabelled, tmp_path):
    """adapt on the tiny data; the adapted backbone and the run folder."""

    def run(out: str, **settings):
        (tmp_path / out).mkdir(exist_ok=True)
        parts = open_pairs(data_folder / "train"), open_pairs(data_folder / "val")
        given = {"adapt": 1, "latent_variants": 2, "sample_every": 100, "adapt_learning_rate": 1e-3} | settings
        chosen, run = FineTuning((32, 32), 1e-3, **given), RunFolder(tmp_path / out)
        images = WithoutMasks.of(parts[0], unlabelled)
        return adapt(run, backbone, images, TrainingData(*parts, ["a cell"]), chosen), run

    return run


@pytest.mark.parametrize("part", ["all", "decoder", "attention"])
def test_only_the_chosen_part_learns(learn, backbone, part):
    before = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    adapted, run = learn("run", adapt_part=part)
    assert all(torch.equal(value, before[name]) for name, value in backbone.unet.state_dict().items())
    moves = {name: (value - before[name]).abs().max().item() for name, value in adapted.unet.state_dict().items()}
    # Adam's first step is as long as the learning rate
    assert max(moves.values()) == pytest.approx(1e-3, rel=1e-2)
    assert {name for name, moved in moves.items() if moved > 0} <= {name for name in moves if belongs(name, part)}
    saved = load_file(next((run.path / ADAPTED / "checkpoints").iterdir()) / ADAPTED_FILE)
    assert saved.keys() == {name for name in before if belongs(name, part)} and len(saved) > 5
    assert adapted.fingerprint == weights_hash(adapted.unet, adapted.vae) != backbone.fingerprint
    assert not any(parameter.requires_grad for parameter in adapted.unet.parameters())


def test_it_learns(learn, backbone):
    _, run = learn("run", adapt=60, batch_size=8)
    losses = [row["loss"] for row in RunFolder(run.path / ADAPTED).read_log() if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("part", ["all", "decoder", "attention"])
def test_it_learns_in_bfloat16(learn, backbone, part):
    """What learns is float32 and computes in bfloat16; in the end all of it is bfloat16 again, and in files float32."""
    object.__setattr__(backbone, "dtype", torch.bfloat16)
    backbone.unet.to(torch.bfloat16)
    adapted, run = learn("run", adapt=2, adapt_part=part)
    assert {parameter.dtype for parameter in adapted.unet.parameters()} == {torch.bfloat16}
    checkpoint = RunFolder(run.path / ADAPTED).load_checkpoint()
    assert {value.dtype for value in load_file(checkpoint.path / ADAPTED_FILE).values()} == {torch.float32}
    rows = RunFolder(run.path / ADAPTED).read_log()
    assert all(np.isfinite(row.get(name, 0)) for row in rows for name in ("loss", "validation_loss"))


def test_masks_are_never_opened(data_folder, unlabelled):
    for file in (data_folder / "train" / "masks").iterdir():
        file.unlink()
    train = open_images(data_folder / "train")
    images, masks = WithoutMasks.of(train, unlabelled).load()
    assert len(images) == 8 and not np.any(masks)
    assert np.array_equal(images[5], unlabelled.image("more_1"))


def test_stopped_adaptation_goes_on_bit_for_bit(learn, monkeypatch):
    whole, _ = learn("whole", adapt=6, checkpoint_every=2)
    save, times = training.Progress.save, iter(range(99))

    def stopped(self):
        save(self)
        if next(times) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Progress, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        learn("parts", adapt=6, checkpoint_every=2)
    parts, run = learn("parts", adapt=6, checkpoint_every=2)
    assert parts.fingerprint == whole.fingerprint
    again, _ = learn("parts", adapt=6, checkpoint_every=2)  # nothing is left to do
    assert again.fingerprint == whole.fingerprint


def test_its_log_has_each_step_once_also_after_a_kill_before_the_first_checkpoint(learn, monkeypatch):
    def killed(self):
        if self.counts.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Progress, "save", killed)
    monkeypatch.setattr("natural2nanoscale.diffusion.progress.LOG_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        learn("run", adapt=4)
    monkeypatch.undo()
    monkeypatch.setattr("natural2nanoscale.diffusion.progress.LOG_EVERY", 1)
    _, run = learn("run", adapt=4)
    steps = [row["step"] for row in RunFolder(run.path / ADAPTED).read_log() if "loss" in row]
    assert steps == [1, 2, 3, 4]


def test_a_signal_in_its_last_step_stops_the_run(learn, monkeypatch):
    """What comes after the adaptation is not begun: the signal was meant for the whole run."""
    sample = training.Progress._sample

    def signalled(self):
        signal.raise_signal(signal.SIGUSR1)
        sample(self)

    monkeypatch.setattr(training.Progress, "_sample", signalled)
    with pytest.raises(Interrupted, match="at step 2 of 2 of the adaptation: go on with --resume") as stop:
        learn("run", adapt=2)
    assert stop.value.number == signal.SIGUSR1
    monkeypatch.undo()
    _, run = learn("run", adapt=2)
    assert RunFolder(run.path / ADAPTED).load_checkpoint().step == 2


def test_gradient_checkpointing_gives_the_same(learn, monkeypatch):
    seen, loss = [], training.denoising_loss
    monkeypatch.setattr(
        training, "denoising_loss", lambda *given: seen.append(given[0].unet.is_gradient_checkpointing) or loss(*given)
    )
    plain, _ = learn("plain", adapt=2)
    again, _ = learn("again", adapt=2, gradient_checkpointing=True)
    assert seen == 2 * [False] + 2 * [True]
    for name, value in plain.unet.state_dict().items():
        assert torch.allclose(value, again.unet.state_dict()[name], atol=1e-5), name


def test_processes_that_would_adapt_from_different_states_are_refused(learn, monkeypatch, tmp_path):
    monkeypatch.setattr("natural2nanoscale.distributed.world_size", lambda: 2)
    monkeypatch.setattr("natural2nanoscale.distributed.same", lambda number: False)
    with pytest.raises(InputError, match="the processes differ"):
        learn("run")
    monkeypatch.setattr("natural2nanoscale.distributed.is_main", lambda: False)
    with pytest.raises(SystemExit):  # the first process has said why, and writes alone
        learn("other")
    assert not any((tmp_path / "other").iterdir())


def test_controlnet_over_it_resumes_and_generation_takes_it_along(
    script, data_folder, unlabelled, backbone, tiny_backbone, tmp_path
):
    train = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--adapt", 2)
    train += ("--latent-variants", 2, "--adapt-lr", 0.01)
    script(*train, "--max-steps", 4, "--out", tmp_path / "whole")
    script(*train, "--max-steps", 2, "--out", tmp_path / "parts")
    script(*train, "--max-steps", 4, "--out", tmp_path / "parts", "--resume")
    for file in ("state.safetensors", "controlnet/diffusion_pytorch_model.safetensors"):
        one, two = (load_file(tmp_path / run / "checkpoints/step-000004" / file) for run in ("whole", "parts"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert "adapted for 2 steps" in (tmp_path / "whole/checkpoints/step-000004/controlnet/README.md").read_text()

    generate = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "whole")
    script(*generate, "--steps", 1)
    adapted = load_adapted(tmp_path / "whole", backbone)
    assert read_info(data_folder / "synthetic").split["backbone"] == adapted.fingerprint != backbone.fingerprint
    # neither without what was adapted, nor with a bit of it changed
    weights = next((tmp_path / "whole" / ADAPTED / "checkpoints").iterdir()) / ADAPTED_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "damaged" in script(*generate, expect=2).stderr
    file = tmp_path / "whole/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"settings": config["settings"] | {"adapt": "x"}}))
    assert "settings.adapt is" in script(*generate, expect=2).stderr
    file.write_text(json.dumps(config))
    init = ("--controlnet-init", tmp_path / "whole", "--out", tmp_path / "other")
    plain = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone)
    assert "trained with --adapt" in script(*plain, *init, expect=2).stderr
    inner = ("--controlnet-init", tmp_path / "whole/checkpoints/step-000004/controlnet", "--out", tmp_path / "other")
    assert "trained with --adapt" in script(*plain, *inner, expect=2).stderr


def test_what_it_needs_and_what_it_must_not_see(script, data_folder, tiny_backbone, tmp_path):
    train = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--adapt", 1, "--max-steps", 1)
    train += ("--latent-variants", 1, "--out", tmp_path / "run")
    assert "prepare --unlabelled" in script(*train, expect=2).stderr

    val, info = open_pairs(data_folder / "val"), replace(read_info(data_folder / "train"), digests={})
    held_out = [(stem, val.image(stem)) for stem in val.stems]
    folder = write_images(data_folder / "unlabelled", info, held_out)
    assert "scores on them are worthless" in script(*train, expect=2).stderr
    assert not (tmp_path / "run").exists()

    described = json.loads((data_folder / "unlabelled/dataset.json").read_text()) | {"transductive": True}
    (data_folder / "unlabelled/dataset.json").write_text(json.dumps(described))
    script(*train)
    assert learned_by_run(tmp_path / "run").transductive
    refuse_unfit([learned_from_folder(open_images(folder.path))], [val])


@pytest.mark.parametrize("seen", [True, False])
def test_reports_and_cards_say_where_held_out_slices_were_adapted_to(
    script, data_folder, unlabelled, tiny_backbone, tmp_path, seen
):
    file = unlabelled.path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transductive": seen}))
    data, run, unet = ("--data", data_folder), tmp_path / "run", tmp_path / "unet"
    short = ("--max-steps", 1, "--latent-variants", 1)
    script("train_controlnet.py", *data, "--backbone", tiny_backbone, "--adapt", 1, *short, "--out", run)
    # a run that starts from a ControlNet, and its card, know what that had seen
    init = run / "checkpoints/step-000001/controlnet"
    assert (TRANSDUCTIVE in (init / "README.md").read_text()) is seen
    script("generate.py", *data, "--controlnet", run, "--steps", 1)
    assert read_info(data_folder / "synthetic").learned.get("transductive", False) is seen
    small = ("--width", 4, "--depth", 2, "--seeds", 1, "--batch-size", 2, "--max-steps", 1)
    printed = script("train_unet.py", *data, "--synthetic-ratio", 1, *small, "--out", unet).stdout
    for said in (printed, (unet / "report.md").read_text(), (unet / "README.md").read_text()):
        assert (TRANSDUCTIVE in said) is seen
    script("train_unet.py", *data, *small, "--out", tmp_path / "real")  # which learned nothing of it
    assert TRANSDUCTIVE not in (tmp_path / "real/report.md").read_text()
    # whoever checks the slices has learned, too
    filtered = ("--filter", unet, "--filter-agreement", 0, "--out", tmp_path / "filtered")
    script("train_controlnet.py", *data, "--backbone", tiny_backbone, *short, "--out", tmp_path / "plain")
    script("generate.py", *data, "--controlnet", tmp_path / "plain", "--steps", 1, *filtered)
    assert read_info(tmp_path / "filtered").learned.get("transductive", False) is seen


def test_out_of_memory_names_a_smaller_part(script, data_folder, unlabelled, tiny_backbone, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(training, "denoising_loss", full)
    train = ("train_controlnet.py", "--data", data_folder, "--backbone", tiny_backbone, "--adapt", 1, "--out")
    assert "--adapt-part attention" in script(*train, tmp_path / "run", expect=2).stderr
    error = script(*train, tmp_path / "less", "--adapt-part", "attention", expect=2).stderr
    assert "out of memory" in error and "--adapt-part" not in error


def test_slices_from_noise_alone_are_the_pipelines(backbone):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    embeds, empty = encode_prompts(backbone, ["a cell", "a nucleus"]), encode_prompts(backbone, [""])
    settings = SamplingSettings(steps=3, guidance=3.0)
    blank = torch.zeros(2, 3, 32, 32)
    ours = sample(backbone, None, noise, blank, embeds, empty, settings)
    parts = {name: getattr(backbone, name) for name in ("vae", "unet", "text_encoder", "tokenizer")}
    theirs = StableDiffusionPipeline(
        **parts, scheduler=sampling_scheduler(backbone), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )(
        prompt_embeds=embeds, negative_prompt_embeds=empty.expand(2, -1, -1), latents=noise, num_inference_steps=3,
        guidance_scale=3.0, output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(ours, decode_latents(backbone, theirs), atol=1e-4)
