"""Other people's ControlNets: converted exactly, refused in a sentence, and trained on."""

import json
from argparse import Namespace

import pytest
import torch
from backbones import SMALL, disturbed
from diffusers import ControlNetModel
from original_layout import original_unet
from safetensors.torch import load_file, save_file

from natural2nanoscale.diffusion import convert as module
from natural2nanoscale.diffusion.backbone import load_backbone
from natural2nanoscale.diffusion.convert import convert
from natural2nanoscale.diffusion.saving import load_initial
from natural2nanoscale.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def controlnet(small_backbone) -> ControlNetModel:
    return disturbed(load_backbone(str(small_backbone), CPU))


@pytest.fixture(scope="module")
def tensors(controlnet) -> dict:
    """As the authors publish them: here beside a tensor of the whole model, and one of its noise schedule."""
    ours = original_unet(controlnet.state_dict(), controlnet.config, "control_model.")
    extras = {"first_stage_model.decoder.conv_in.bias": torch.zeros(3), "betas": torch.zeros(1000)}
    return {name: tensor.detach().clone().contiguous() for name, tensor in (ours | extras).items()}


def saved(file, tensors: dict, **beside: object):
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "global_step": 300, **beside} if beside else tensors, file)
    return file


@pytest.mark.parametrize("name, beside", [("a.safetensors", {}), ("a.pth", {}), ("a.ckpt", {"epoch": 3})])
def test_round_trip_is_exact(name, beside, tensors, controlnet, tmp_path, verb, monkeypatch, small_backbone):
    file = saved(tmp_path / name, tensors, **beside)
    monkeypatch.setattr(module.convert, "__defaults__", (SMALL,))  # the verb knows Stable Diffusion 1.5 alone
    out = tmp_path / "controlnet"
    printed = verb("convert", file, "--out", out).stdout
    assert f"next: python train_controlnet.py --controlnet-init {out}\n" in printed
    weights = load_file(out / "diffusion_pytorch_model.safetensors")
    reference = controlnet.state_dict()
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[key], reference[key]) for key in weights)
    assert "Assumed" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["controlnet_conditioning_channel_order"] == "rgb"
    # it answers as the one that it was made from, in diffusers' hands and as the start of a training
    generator = torch.Generator().manual_seed(0)
    latents, hidden = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 16, generator=generator)
    inputs = (latents, torch.tensor([500]), hidden, torch.rand(1, 3, 64, 64, generator=generator))
    initial = load_initial(out, load_backbone(str(small_backbone), CPU))
    assert all(parameter.requires_grad for parameter in initial.parameters())
    with torch.no_grad():
        down, mid = controlnet(*inputs, return_dict=False)
        expected = (*down, mid)
        for other in (ControlNetModel.from_pretrained(out, low_cpu_mem_usage=False).eval(), initial.eval()):
            down, mid = other(*inputs, return_dict=False)
            assert all(torch.allclose(*pair, atol=1e-6) for pair in zip((*down, mid), expected, strict=True))


def test_what_is_no_controlnet_for_stable_diffusion_15_is_refused(tensors, tmp_path):
    hint = "control_model.input_hint_block.0.weight"
    wide = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for edit, message in (
        ({hint: torch.zeros(16, 4, 3, 3)}, "reads 4 channels, expected one that reads 3"),
        ({wide: torch.zeros(8, 1024)}, "is Stable Diffusion 2"),
        ({"control_model.label_emb.0.0.weight": torch.zeros(8, 4)}, "is Stable Diffusion XL"),
        ({"control_model.zero_convs.0.0.weight": None}, "1 missing tensor.*controlnet_down_blocks.0.weight"),
        ({"control_model.input_hint_block.6.bias": torch.zeros(5)}, "wrongly shaped"),
        ({"control_model.difference": torch.zeros(3)}, "unexpected tensor.*control_model.difference"),
        ({"lora.up": torch.zeros(3)}, "unexpected tensor.*lora.up"),
    ):
        edited = {name: tensor for name, tensor in (tensors | edit).items() if tensor is not None}
        with pytest.raises(InputError, match=message):
            convert(saved(tmp_path / "a.safetensors", edited), SMALL)
    with pytest.raises(InputError, match="holds no ControlNet: expected tensors named") as refusal:
        convert(saved(tmp_path / "a.safetensors", {"zero_convs.0.0.bias": torch.zeros(3)}))
    assert "natural2nanoscale convert" not in str(refusal.value)  # which has just been called


def test_bare_names_and_those_of_diffusers_are_taken_too(tensors, controlnet, tmp_path):
    prefix = "control_model."
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    ours = {name: tensor.clone().contiguous() for name, tensor in controlnet.state_dict().items()}
    for name, named in (("bare.pth", bare), ("diffusers.safetensors", ours)):
        converted = convert(saved(tmp_path / name, named), SMALL).state_dict()
        assert converted.keys() == ours.keys()
        assert all(torch.equal(converted[key], ours[key]) for key in ours)
        some = dict(list(named.items())[:-1])
        with pytest.raises(InputError, match="1 missing tensor"):
            convert(saved(tmp_path / name, some), SMALL)
    wide = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    with pytest.raises(InputError, match="is Stable Diffusion 2"):
        convert(saved(tmp_path / "bare.pth", bare | {wide: torch.zeros(8, 1024)}), SMALL)


class Opened:
    """Unpickled by running code: what a file from elsewhere must never do."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the file has run code')",)


def test_a_file_that_needs_more_than_tensors_is_refused(tmp_path, verb):
    file = tmp_path / "a.ckpt"
    for legacy in (False, True):  # the format of today, and of torch before 1.6
        torch.save({"state_dict": {}, "callbacks": Namespace(lr=1e-5)}, file, _use_new_zipfile_serialization=not legacy)
        message = verb("convert", file, "--out", tmp_path / "out", expect=2).stderr
        assert "argparse.Namespace" in message and message.count("\n") == 1
    torch.save({"state_dict": {}, "callbacks": Opened()}, file)
    assert "exec" in verb("convert", file, "--out", tmp_path / "out", expect=2).stderr
    torch.save({"state_dict": {"control_model.a": 3}}, file)
    assert "is of type int" in verb("convert", file, "--out", tmp_path / "out", expect=2).stderr
    file.write_bytes(b"not a pickle")
    assert "cannot be read" in verb("convert", file, "--out", tmp_path / "out", expect=2).stderr
    assert "cannot be read" in verb("convert", tmp_path / "b.ckpt", "--out", tmp_path / "out", expect=2).stderr
    assert not (tmp_path / "out").exists()
