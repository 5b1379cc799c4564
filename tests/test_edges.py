"""Edges and boundaries on the mask's colours, from the picture to training and generation."""

import json
from dataclasses import astuple, replace

import numpy as np
import torch
from backbones import disturbed
from safetensors.torch import load_file

from natural2nanoscale.data.classes import color_table, palette
from natural2nanoscale.data.edges import class_boundaries, image_edges
from natural2nanoscale.data.encoders import EDGE_SHADE, encode_gray, encode_mask
from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.diffusion import training
from natural2nanoscale.diffusion.backbone import encode_prompts, load_backbone
from natural2nanoscale.diffusion.batches import LatentCache, TrainingData, augmented_window
from natural2nanoscale.diffusion.controlnet import decode_latents, latent_moments
from natural2nanoscale.diffusion.sampling import Drawn, draw_slices
from natural2nanoscale.diffusion.settings import FineTuning, SamplingSettings
from natural2nanoscale.diffusion.training import fine_tune
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.runs import RunFolder

CPU = torch.device("cpu")


def texture(height: int = 40, width: int = 56) -> torch.Tensor:
    """(1,H,W) of grey values in 40..200."""
    return torch.randint(40, 201, (1, height, width), generator=torch.Generator().manual_seed(0))


def test_boundaries_of_a_handmade_mask():
    mask = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [2, 2, 2, 0, 0, 0],
        [2, 2, 2, 0, 0, 0],
        [2, 2, 2, 255, 255, 255],
        [2, 2, 2, 255, 255, 255],
    ]
    expected = [
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],  # 2 meets 0 over the corner; unlabelled pixels are no class
        [0, 0, 0, 0, 0, 0],
    ]
    assert class_boundaries(torch.tensor([mask], dtype=torch.uint8))[0].int().tolist() == expected


def test_edges_lie_where_the_grey_value_changes():
    step = torch.full((1, 16, 48), 100)
    step[:, :, 24:] = 150
    edges = image_edges(step)
    assert edges.dtype == torch.uint8 and edges.shape == step.shape
    assert (edges[0, :, 23:25] == 255).all()  # the two sides of the step
    assert (edges[0, :, :21] == 0).all() and (edges[0, :, 27:] == 0).all()  # three pixels away
    assert (edges == edges[:, :1]).all()  # and no edge where the picture ends


def test_slopes_are_those_of_a_smoothed_sobel_filter():
    gray = texture()
    planes = torch.nn.functional.pad(gray[:, None].double(), (3,) * 4, mode="replicate")
    smooth = torch.tensor([1.0, 4, 6, 4, 1]).double()
    planes = torch.nn.functional.conv2d(planes, smooth.outer(smooth)[None, None])
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).double()
    x, y = (torch.nn.functional.conv2d(planes, kernel[None, None])[0, 0] for kernel in (sobel, sobel.T))
    squares = x**2 + y**2
    expected = 255 * squares / (squares + squares.quantile(0.85, interpolation="lower"))
    assert (image_edges(gray)[0] - expected).abs().max() < 0.501  # rounded


def test_edges_do_not_depend_on_brightness_contrast_or_orientation():
    gray = texture()
    edges = image_edges(gray)
    assert 30 < edges.float().mean() < 150
    assert torch.equal(image_edges(gray + 55), edges)
    assert (image_edges(gray // 4 * 4).int() - image_edges(gray // 4).int()).abs().max() <= 1
    assert torch.equal(image_edges(gray.flip(2)), edges.flip(2))
    assert torch.equal(image_edges(gray.transpose(1, 2)), edges.transpose(1, 2))
    assert torch.equal(image_edges(torch.cat([gray, gray // 3]))[:1], edges)  # nor on the batch
    assert image_edges(torch.full((1, 8, 8), 77)).max() == 0


def test_colours_with_and_without_lines():
    mask = torch.from_numpy(np.repeat([0, 3, 1, 255], 8)).expand(1, 4, -1)
    colors = palette(4)  # white is among them
    plain = torch.from_numpy(color_table(colors)).float()[mask] / 255
    assert torch.equal(encode_mask(mask, colors), plain.permute(0, 3, 1, 2))
    edges = torch.zeros(1, 4, 32, dtype=torch.uint8)
    edges[:, 1] = 255
    drawn = encode_mask(mask, colors, edges).permute(0, 2, 3, 1)
    lines = class_boundaries(mask)
    dark = lines | (edges == 255)
    assert 0 < lines.sum() < 32 and torch.equal(drawn[~dark], plain[~dark])
    assert torch.allclose(drawn[dark], (1 - EDGE_SHADE) * plain[dark])


def test_windows_show_the_edges_of_their_slice(tiny_backbone, data_folder):
    image, edges = texture()[0].to(torch.uint8).numpy(), image_edges(texture())[0]
    settings = FineTuning((32, 32), 1e-3, condition="mask+edges", latent_variants=3)
    plain = [augmented_window(image, image, settings, 0, i) for i in range(6)]
    windows = [augmented_window(image, image, settings, 0, i, edges.numpy()) for i in range(6)]
    for one, other in zip(plain, windows, strict=True):
        assert one[3] is None and all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert torch.equal(windows[3][3], edges[8:40, 24:56])  # the fourth of 2 x 2 unrotated windows
    assert not torch.equal(windows[4][3], windows[5][3])  # the others are drawn

    backbone, folder = load_backbone(str(tiny_backbone), CPU), open_pairs(data_folder / "train")
    cached = LatentCache(backbone, folder, settings)
    assert LatentCache(backbone, folder, replace(settings, condition="mask")).batch([0], epoch=1)[4] is None
    expected = image_edges(torch.from_numpy(folder.image(folder.stems[2]))[None])[0, :, 32:]
    assert torch.equal(cached.batch([0, 2], epoch=1)[4][1], expected)


def test_training_draws_what_it_drew_without_edges(tiny_backbone, data_folder, tmp_path, monkeypatch):
    """Latents, noise, timesteps and prompts stay the same bit for bit; some of the samples lose their edges."""
    monkeypatch.setattr(Validation, "loss", lambda *_: 0.0)
    monkeypatch.setattr(Validation, "write_strip", lambda *_: None)
    seen = []

    def watched(denoiser, batch):
        seen[-1].append(astuple(batch)[:5])
        return denoising_loss(denoiser, batch)

    denoising_loss = training.denoising_loss
    monkeypatch.setattr(training, "denoising_loss", watched)
    parts = [open_pairs(data_folder / part) for part in ("train", "val")]
    backbone = load_backbone(str(tiny_backbone), CPU)

    def conditionings(**options) -> torch.Tensor:
        name = tmp_path / str(len(seen))
        name.mkdir()
        seen.append([])
        settings = FineTuning((32, 32), 1e-3, max_steps=6, latent_variants=2, prompt_dropout=0.3, **options)
        fine_tune(RunFolder(name), backbone, TrainingData(*parts, ["a cell", "a nucleus"]), settings)
        for one, other in zip(seen[0], seen[-1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        return torch.cat([arguments[4] for arguments in seen[-1]])  # (12,3,32,32)

    plain = conditionings()
    known, unknown, half = (conditionings(condition="mask+edges", edge_dropout=share) for share in (0.0, 1.0, 0.5))
    lines = (unknown < plain).any(dim=1, keepdim=True)
    assert torch.allclose(unknown, plain * (1 - EDGE_SHADE * lines)) and lines.any(dim=(1, 2, 3)).all()
    assert (known <= unknown).all() and (known < unknown).any(dim=(1, 2, 3)).all()
    with_edges = [torch.equal(a, b) for a, b in zip(half, known, strict=True)]
    without = [torch.equal(a, b) for a, b in zip(half, unknown, strict=True)]
    assert with_edges == [not flag for flag in without] and 0 < sum(without) < 12


def test_slices_are_drawn_from_boundaries_or_edges(tiny_backbone):
    backbone = load_backbone(str(tiny_backbone), CPU)
    controlnet = disturbed(backbone)
    mask = (np.indices((29, 51)).sum(axis=0) // 9 % 3).astype(np.uint8)  # off the grid
    image = texture(29, 51)[0].to(torch.uint8).numpy()
    embeds, negative = encode_prompts(backbone, ["a"]), encode_prompts(backbone, [""])

    def draw(condition: str, gray: np.ndarray) -> np.ndarray:
        settings = SamplingSettings(steps=2, strength=20.0, condition=condition)
        drawn = Drawn([mask], [gray], embeds, negative, [5])
        return draw_slices(backbone, controlnet, drawn, palette(3), settings)[0]

    plain, bounded, edged = (draw(c, image) for c in ("mask", "mask+boundaries", "mask+edges"))
    assert not np.array_equal(plain, bounded) and not np.array_equal(bounded, edged)
    assert np.array_equal(bounded, draw("mask+boundaries", image[::-1].copy()))  # the slice is not looked at
    assert not np.array_equal(edged, draw("mask+edges", image[::-1].copy()))


def test_run_with_edges_resumes_exactly_and_generation_obeys(script, data_folder, tiny_backbone, tmp_path):
    def train(out: str, *arguments: object, expect: int = 0):
        common = ("--data", data_folder, "--backbone", tiny_backbone, "--out", tmp_path / out, "--latent-variants", 2)
        return script("train_controlnet.py", *common, *arguments, expect=expect)

    train("whole", "--condition", "mask+edges", "--max-steps", 2)
    train("parts", "--condition", "mask+edges", "--max-steps", 1)
    error = train("parts", "--condition", "mask", "--max-steps", 2, "--resume", expect=2).stderr
    assert "condition was mask+edges and is now mask:" in error
    train("parts", "--condition", "mask+edges", "--max-steps", 2, "--resume")
    for file in ("state.safetensors", "controlnet/diffusion_pytorch_model.safetensors"):
        one, two = (load_file(tmp_path / run / "checkpoints/step-000002" / file) for run in ("whole", "parts"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    card = (tmp_path / "whole/checkpoints/step-000002/controlnet/README.md").read_text()
    assert "darkened at class boundaries" in card and "condition: mask+edges" in card

    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path / "whole", "--steps", 1)
    for edges, condition in (("none", "mask+boundaries"), ("real", "mask+edges")):
        script(*make, "--edges", edges, "--out", tmp_path / edges)
        rows = [json.loads(line) for line in (tmp_path / edges / "manifest.jsonl").read_text().splitlines()]
        assert [row["condition"] for row in rows] == 4 * [condition] and len(open_pairs(tmp_path / edges).stems) == 4
    error = script(*make, "--out", tmp_path / "real", expect=2).stderr
    assert "another condition (mask+edges, now mask+boundaries)" in error


def test_edges_are_refused_by_a_controlnet_that_saw_masks_alone(script, data_folder, tmp_path):
    said = {"kind": "controlnet", "settings": {"condition": "mask"}, "backbone": {"name": "x", "weights": 64 * "0"}}
    classes = open_pairs(data_folder / "train").info.classes.to_json()
    (tmp_path / "config.json").write_text(json.dumps(said | {"classes": classes}))
    make = ("generate.py", "--data", data_folder, "--controlnet", tmp_path, "--edges", "real")
    error = script(*make, expect=2).stderr
    assert "was trained on masks alone" in error and "--condition mask+edges" in error and error.count("\n") == 1
    assert not (data_folder / "synthetic").exists()


def test_detail_is_what_the_vae_loses_of_the_masks_slice(tiny_backbone):
    backbone = load_backbone(str(tiny_backbone), CPU)
    mask, image = np.zeros((32, 64), np.uint8), texture(32, 64)[0].to(torch.uint8).numpy()
    embeds, negative = encode_prompts(backbone, ["a"]), encode_prompts(backbone, [""])
    drawn = Drawn([mask], [image], embeds, negative, [5])
    plain, detailed = (
        draw_slices(backbone, disturbed(backbone), drawn, palette(3), SamplingSettings(steps=2, detail=detail))[0]
        for detail in (False, True)
    )
    real = encode_gray(torch.from_numpy(image)[None])
    lost = (real - decode_latents(backbone, latent_moments(backbone, real)[0])).mean(1).numpy() * 127.5
    within = (plain > 0) & (plain < 255) & (detailed > 0) & (detailed < 255)
    assert within.mean() > 0.1 and np.abs(lost).mean() > 5
    assert np.abs(detailed.astype(float) - plain - lost)[within].max() <= 1.01
