"""Numbers that went bad: steps that are not made, weights that are neither saved nor loaded, pictures never written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from natural2nanoscale.checkpoints import State
from natural2nanoscale.diffusion.synthesis import refuse_blank
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import SkippedSteps, add_finite, gradient_norm, not_finite
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.inference import predict_mask
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, load_unet, save_unet

SMALL = ["--width", 4, "--depth", 2, "--seeds", 1, "--batch-size", 2, "--checkpoint-minutes", 0]
NAN = float("nan")


def test_what_is_not_finite_is_named():
    tensors = {
        "a": torch.ones(2),
        "b": torch.tensor([1.0, NAN]),
        "c": torch.tensor([-float("inf")]),
        "d": torch.arange(3),
    }
    tensors["e"] = torch.zeros(0)
    assert not_finite(tensors) == ["b", "c"] and not_finite({}) == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(device):
    """Three steps, the second one bad, equal the two good ones: weights, moments and Adam's count of steps."""

    def start():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        return model, optimizer, SkippedSteps(optimizer, torch.device(device))

    ends = []
    for values in ((1.0, NAN, 2.0), (1.0, 2.0)):
        model, optimizer, skipped = start()
        for value in values:
            optimizer.zero_grad()
            (model(torch.ones(1, 3, device=device)) * value).sum().backward()
            skipped.guard(gradient_norm(model.parameters()))
            optimizer.step()
        ends.append(State(None, model=model, optimizer=optimizer).tensors())
        assert skipped.counts.tolist() == ([0, 1, 1] if len(values) == 3 else [0, 0, 0])
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_five_in_a_row_end_a_run_and_five_in_all_do_not():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], fused=True)
    skipped = SkippedSteps(optimizer, torch.device("cpu"))
    for step in range(20):
        skipped.guard(torch.tensor(1.0 if step % 5 == 0 else NAN))
        skipped.refuse_too_many(step, "run")
    assert skipped.counts.tolist() == [4, 4, 16]
    skipped.guard(torch.tensor(NAN))
    with pytest.raises(InputError, match="run was not finite 5 times in a row by step 20.*lower --lr"):
        skipped.refuse_too_many(20, "run")


def test_losses_add_up_without_those_that_are_not_finite():
    total = torch.zeros(2)
    for loss in (2.0, NAN, float("inf"), 4.0):
        add_finite(total, torch.tensor([loss, 1.0]))
    assert total.tolist() == [6.0, 2.0]


def test_a_unet_that_diverges_never_saves_nan_and_stops_with_a_remedy(script, data_folder, tmp_path):
    run = tmp_path / "run"
    command = ["train_unet.py", "--data", data_folder, "--out", run, *SMALL, "--checkpoint-every", 1, "--lr", 1e6]
    error = script(*command, "--max-steps", 30, "--validate-every", 100, expect=2).stderr
    assert "not finite 5 times in a row" in error and "lower --lr" in error
    folder = RunFolder(run / "seed-0")
    saved = folder.load_checkpoint()
    assert saved.step > 1 and not not_finite(saved.tensors) and saved.tensors["skipped"][2] >= 4
    assert len(folder.checkpoints()) == 2


def test_what_is_not_finite_is_not_saved_and_the_checkpoint_before_stands(tmp_path):
    run = RunFolder(tmp_path)

    def state(step: int, value: float) -> State:
        return State(SimpleNamespace(step=step), a=torch.tensor([1.0, value]))

    run.save(state(1, 1.0))
    with pytest.raises(InputError, match="a in state.safetensors is not finite.*step-000001 stands.*--lr"):
        run.save(state(2, NAN))
    with pytest.raises(InputError, match="is not finite"):
        run.save(state(2, 1.0), lambda f: save_file({"w": torch.tensor(NAN)}, f / "m.safetensors"))
    assert run.load_checkpoint().step == 1 and len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_best_weights_have_a_hash_and_nan_is_neither_written_nor_read(tmp_path):
    from natural2nanoscale.data.classes import Classes

    info, model = UNetInfo(4, 2, Classes.named("a", "b", "c")), UNet(3, 4, 2)
    save_unet(tmp_path, model, info)
    file = tmp_path / "unet.safetensors"
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*rng.integers(0, len(good), 60), 40, len(good) - 1]:
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match="--resume"):
            load_unet(tmp_path)
    file.write_bytes(good)
    load_unet(tmp_path)
    model.head.weight.data[0] = NAN
    with pytest.raises(InputError, match="not finite.*--lr"):
        save_unet(tmp_path / "other", model, info)
    assert not (tmp_path / "other").exists() and file.read_bytes() == good
    save_file(load_file(file) | {"head.bias": torch.full((3,), NAN)}, file,
              {"format": "pt", "unet": json.dumps(info.to_json())})  # fmt: skip
    with pytest.raises(InputError, match="not finite"):
        load_unet(tmp_path)


def test_no_mask_of_an_answer_that_is_not_finite():
    model = UNet(3, 4, 2).eval()
    model.head.weight.data.fill_(3e38)
    with pytest.raises(InputError, match="not finite, and no mask"):
        predict_mask([model], torch.full((1, 16, 16), 200, dtype=torch.uint8))


def test_blank_slices_are_refused():
    from natural2nanoscale.diffusion.request import Image

    image = Image("a", 0, 1, "p")
    refuse_blank([image], np.arange(16, dtype=np.uint8).reshape(1, 4, 4))
    with pytest.raises(InputError, match="a_s000 would be of one grey value, 0"):
        refuse_blank([image], np.zeros((1, 4, 4), np.uint8))


@pytest.mark.parametrize("part, file", [("vae", "decoder"), ("unet", "conv_out")])
def test_backbones_that_hold_nan_are_refused(tiny_backbone, tmp_path, part, file):
    from shutil import copytree

    from natural2nanoscale.diffusion.backbone import load_backbone

    copytree(tiny_backbone, tmp_path / "bb")
    weights = tmp_path / "bb" / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if file in name)
    tensors[name].view(-1)[0] = NAN
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match=f"{part}: 1 of .* are not finite, such as {name}"):
        load_backbone(str(tmp_path / "bb"), torch.device("cpu"))
