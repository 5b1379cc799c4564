"""The U-Net: sizes, the paper's channels, initial weights, and the file that describes itself."""

import math

import pytest
import torch
from safetensors.torch import save_file

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation import unet
from natural2nanoscale.segmentation.unet import (
    UNet,
    UNetInfo,
    initialize,
    load_unet,
    move_to,
    save_unet,
    select_precision,
)

CPU = torch.device("cpu")
CLASSES = Classes.named("background", "cytoplasm", "nucleus")


@pytest.mark.parametrize("size", [(64, 64), (50, 37), (1, 1), (3, 100), (17, 16)])
def test_logits_have_the_size_of_any_slice(size):
    model = UNet(3, width=4, depth=4)
    logits = model(torch.rand(2, 1, *size))
    assert logits.shape == (2, 3, *size) and logits.isfinite().all()


def test_paper_network_has_the_papers_channels():
    with torch.device("meta"):
        model = UNet(2, width=64, depth=4)
    assert [block[0].out_channels for block in model.down] == [64, 128, 256, 512]
    assert model.bottom[0].out_channels == 1024
    assert [block[0].in_channels for block in model.up] == [1024, 512, 256, 128]
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(convolutions) == 23  # as counted in the paper, section 2


def test_every_parameter_moves_and_every_pixel_within_reach_matters():
    model = UNet(2, width=4, depth=2)
    initialize(model, generator_for("test"))
    images = torch.rand(16, 1, 40, 40, generator=generator_for("images")).requires_grad_()  # in some a ReLU is shut
    model(images)[:, 0, 20, 20].sum().backward()
    assert (images.grad[:, 0, 16:25, 16:25] != 0).any(dim=0).all()
    body = [parameter for name, parameter in model.named_parameters() if "head" not in name]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in body)


def test_initial_weights_keep_the_signal_and_depend_on_the_seed_alone():
    one, two, other = UNet(3, 16, 3), UNet(3, 16, 3), UNet(3, 16, 3)
    initialize(one, generator_for(5))
    torch.manual_seed(77)
    initialize(two, generator_for(5))
    initialize(other, generator_for(6))
    kernel = one.down[1][0].weight
    assert abs(kernel.std().item() / math.sqrt(2 / (16 * 9)) - 1) < 0.05
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(kernel, other.down[1][0].weight)


def test_bfloat16_is_of_the_arithmetic_alone():
    """Weights, gradients and logits stay float32; what lies between is rounded, and no more than that."""
    model = UNet(3, 8, 2, "bfloat16")
    initialize(model, generator_for("precision"))
    images, seen = torch.rand(2, 1, 32, 32, generator=generator_for("images")), []
    model.bottom[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    logits = model(images)
    logits.square().sum().backward()
    assert seen == [torch.bfloat16] and logits.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    model.precision = "float32"
    exact = model(images)
    assert seen[1] == torch.float32 and not torch.equal(exact, logits)
    assert (exact - logits).abs().mean() < 0.02 * exact.std()


def test_auto_is_bfloat16_on_a_gpu_that_computes_in_it(monkeypatch):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert select_precision("auto", torch.device("cuda")) == expected
    assert select_precision("auto", CPU) == "float32"
    assert select_precision("bfloat16", CPU) == "bfloat16"


def test_a_network_is_loaded_in_the_precision_of_its_training_where_that_is_native(tmp_path, monkeypatch):
    save_unet(tmp_path, UNet(3, 4, 2), UNetInfo(4, 2, CLASSES, precision="bfloat16"))
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(unet, "native_bfloat16", lambda device, native=native: native)
        model, info = load_unet(tmp_path)
        assert (model.precision, info.precision) == (expected, "bfloat16")
    save_unet(tmp_path, UNet(3, 4, 2), UNetInfo(4, 2, CLASSES))
    monkeypatch.setattr(unet, "native_bfloat16", lambda device: True)
    assert load_unet(tmp_path)[0].precision == "float32"


def test_saved_network_knows_itself_and_computes_the_same(tmp_path):
    model = move_to(UNet(3, width=4, depth=2), torch.device("cpu")).eval()
    save_unet(tmp_path / "best", model, UNetInfo(4, 2, CLASSES, (12.5, 900.0), {"step": 7}))
    for path in (tmp_path / "best", tmp_path / "best" / "unet.safetensors"):
        loaded, info = load_unet(path)
        assert info == UNetInfo(4, 2, CLASSES, (12.5, 900.0), {"step": 7})
        image = encode_gray(torch.randint(0, 256, (1, 20, 30), dtype=torch.uint8), 1)
        assert torch.equal(loaded(image), model(image))


def test_foreign_damaged_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist.*train_unet.py"):
        load_unet(tmp_path)
    file = tmp_path / "unet.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="not a U-Net"):
        load_unet(file)
    file.write_bytes(b"\x00" * 30)
    with pytest.raises(InputError, match="not a U-Net"):
        load_unet(file)


def test_grey_values_map_to_minus_one_and_one():
    images = encode_gray(torch.tensor([[[0, 255]]], dtype=torch.uint8), 1)
    assert images.shape == (1, 1, 1, 2) and images.flatten().tolist() == [-1.0, 1.0]
