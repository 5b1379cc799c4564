"""Every way in which a lab may hold a backbone: each tensor is right, or the reason is one sentence."""

import json
import shlex
import shutil
import socket
import time
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from backbones import SMALL, TINY, make_parts, save_backbone, save_tokenizer
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from original_layout import original_file
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from natural2nanoscale.diffusion import hub
from natural2nanoscale.diffusion.backbone import EMBEDDED, STABLE_DIFFUSION, backbone_name, load_backbone
from natural2nanoscale.diffusion.stable_diffusion import STABLE_DIFFUSION_15
from natural2nanoscale.errors import InputError
from natural2nanoscale.workshop.architecture import RECOMMENDED

CPU = torch.device("cpu")
PARTS = ("unet", "vae", "text_encoder")
PATIENCE, PATIENCE_WITH_NETWORK = hub.PATIENCE, hub.PATIENCE_WITH_NETWORK  # the real ones


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty local cache, and a hub that cannot be reached."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    monkeypatch.setattr(hub, "PATIENCE_WITH_NETWORK", 0.5)
    monkeypatch.setattr(hub, "getproxies", dict)
    return folder


def put_into_cache(cache, name, folder) -> None:
    """As the hub's client leaves a downloaded snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123456789")
    (repository / "snapshots").mkdir()
    shutil.copytree(folder, repository / "snapshots/0123456789")


def assert_same_weights(module, reference) -> None:
    weights, expected = module.state_dict(), reference.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.fixture(scope="module")
def tensors() -> dict:
    """What a file in the original layout holds; copies of the weights of `make_parts(SMALL)`."""
    return {name: tensor.clone() for name, tensor in original_file(*make_parts(SMALL)).items()}


@pytest.fixture
def one_file(tmp_path):
    """Save tensors as one file with a tokenizer beside it."""

    def save(tensors: dict):
        save_tokenizer(tmp_path / "tokenizer")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return save


# ------------------------------------------------------------------------------------------ one file


def test_one_file_equals_the_folder(tensors, one_file, small_backbone):
    backbone = load_backbone(str(one_file(tensors)), CPU, configs=SMALL)
    for part, reference in zip(("unet", "vae", "text_encoder"), make_parts(SMALL), strict=True):
        module = getattr(backbone, part)
        assert_same_weights(module, reference)
        assert not module.training and not any(p.requires_grad or p.is_meta for p in module.parameters())
    folder = load_backbone(str(small_backbone), CPU)
    assert backbone.fingerprint == folder.fingerprint
    assert torch.equal(backbone.scheduler.alphas_cumprod, folder.scheduler.alphas_cumprod)
    assert backbone.scheduler.config.prediction_type == "epsilon" and backbone.grid == folder.grid == 64
    assert backbone.vae.config.scaling_factor == 0.31


def test_half_precision_and_merged_names_load_as_float32(tensors, one_file):
    """Merging tools leave out `text_model.`, and save halves."""
    renamed = {name.replace("text_model.", ""): tensor for name, tensor in tensors.items()}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in renamed.items()}
    backbone = load_backbone(str(one_file(halves)), CPU, configs=SMALL)
    for part, reference in zip(("unet", "vae", "text_encoder"), make_parts(SMALL), strict=True):
        assert {p.dtype for p in getattr(backbone, part).parameters()} == {torch.float32}
        assert_same_weights(getattr(backbone, part), reference.half().float())


def test_constants_are_stable_diffusion():
    """Numbers of parameters of the published weights."""
    with torch.device("meta"):
        modules = (
            UNet2DConditionModel(**STABLE_DIFFUSION_15.unet),
            AutoencoderKL(**STABLE_DIFFUSION_15.vae),
            CLIPTextModel(CLIPTextConfig(**STABLE_DIFFUSION_15.text_encoder)),
        )
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    assert counts == [859_520_964, 83_653_863, 123_060_480]
    # what no count tells: 8 heads at every level, CLIP's own activation, the latents' scale, the noise schedule
    unet, vae, text_encoder = modules
    attention = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    assert {module.heads for module in attention} == {8} and len(attention) == 16
    assert text_encoder.config.hidden_act == "quick_gelu" and vae.config.scaling_factor == 0.18215
    scheduler = DDPMScheduler(**STABLE_DIFFUSION_15.scheduler)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert np.allclose(scheduler.alphas_cumprod.numpy(), np.cumprod(1 - betas), atol=1e-5)
    assert scheduler.config.prediction_type == "epsilon" and scheduler.config.steps_offset == 1


UNET, QUERY = "model.diffusion_model.", "first_stage_model.encoder.mid.attn_1.q.weight"
EDITS = {
    "1 missing tensor.*norm2": {UNET + "output_blocks.11.0.out_layers.0.bias": None},
    "1 missing tensor.*to_q": {QUERY: None},
    "1 missing tensor.*final_layer_norm": {"cond_stage_model.transformer.text_model.final_layer_norm.bias": None},
    "unexpected tensor.*adapter": {UNET + "adapter.weight": torch.zeros(3)},
    "unexpected tensor.*v_pred": {"v_pred": torch.zeros(3)},
    r"wrongly shaped.*\(7, 2\) in place of \(32, 32\)": {UNET + "time_embed.2.weight": torch.zeros(7, 2)},
    "cannot be read as AutoencoderKL.*up.1.upsample": {"first_stage_model.decoder.up.1.upsample.conv.bias": None},
    r"wrongly shaped.*conv_in.weight \(5,\)": {UNET + "input_blocks.0.0.weight": torch.zeros(5)},
    "noise schedule of its own": {"alphas_cumprod": torch.tensor(0.5)},
    "is an inpainting model": {UNET + "input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)},
    "is Stable Diffusion 2": {
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 1024),
    },
    "is Stable Diffusion XL": {"conditioner.embedders.1.model.ln_final.weight": torch.zeros(3)},
    "noise schedule of its own.*ends at 0.0000": {"alphas_cumprod": torch.linspace(1, 0, 1000)},
    "is a transformer model such as Stable Diffusion 3": {UNET + "joint_blocks.0.x_block.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("message", EDITS)
def test_other_tensors_are_refused(message, tensors, one_file):
    edited = {name: tensor for name, tensor in (tensors | EDITS[message]).items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        load_backbone(str(one_file(edited)), CPU, configs=SMALL)


def test_files_of_other_kinds_are_refused(tensors, one_file, tmp_path, monkeypatch):
    some = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
    with pytest.raises(InputError, match="holds no VAE"):
        load_backbone(str(one_file(some)), CPU, configs=SMALL)
    file = one_file({"control_model.zero_convs.0.0.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="natural2nanoscale convert"):
        load_backbone(str(file), CPU, configs=SMALL)
    file.write_bytes(one_file(tensors).read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_backbone(str(file), CPU, configs=SMALL)
    # what can run code is refused before anything else is asked for, such as a tokenizer; the tensors can be had
    shutil.rmtree(tmp_path / "tokenizer")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="expected a .safetensors file") as refusal:
        load_backbone(str(tmp_path / "model.ckpt"), CPU, configs=SMALL)
    file.unlink()
    run_printed(str(refusal.value), monkeypatch)
    assert load_file(file).keys() == tensors.keys()
    for name in ("none.ckpt", "none.bin"):
        with pytest.raises(InputError, match="neither a folder, nor a .safetensors file"):
            load_backbone(name, CPU)


def test_tokenizer_of_one_file(tensors, one_file, tmp_path, cache):
    file = one_file(tensors)
    with pytest.raises(InputError, match="expected the tokenizer of this model"):
        load_backbone(str(file), CPU, tokenizer_folder=EMBEDDED / "tokenizer", configs=SMALL)
    file.write_bytes(b"")  # the tokenizer comes first: once it is found, the file is what is wrong
    found = pytest.raises(InputError, match="cannot be read as safetensors")
    with found:
        load_backbone(str(file), CPU)
    other = (tmp_path / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="neither in the local cache nor in .*--tokenizer"):
        load_backbone(str(file), CPU)
    with pytest.raises(InputError, match="no tokenizer can be loaded from"):
        load_backbone(str(file), CPU, tokenizer_folder=tmp_path / "nowhere")
    with found:
        load_backbone(str(file), CPU, tokenizer_folder=other)
    shutil.copytree(other, tmp_path / "snapshot/tokenizer")
    (tmp_path / "snapshot/tokenizer/vocab.json").write_text("{}")  # the published snapshot has one
    put_into_cache(cache, STABLE_DIFFUSION, tmp_path / "snapshot")
    with found:
        load_backbone(str(file), CPU)


# ------------------------------------------------------------------------------------------- folders


def test_names_of_2022(tmp_path, small_backbone):
    folder = shutil.copytree(small_backbone, tmp_path / "old")
    renames = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = {}
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        for new, old in renames.items():
            name = name.replace(new, old)
        weights[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in weights
    save_file(weights, folder / "vae/diffusion_pytorch_model.safetensors", {"format": "pt"})
    texts = load_file(folder / "text_encoder/model.safetensors")
    texts = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in texts.items()}
    texts["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(texts, folder / "text_encoder/model.safetensors", {"format": "pt"})
    backbone = load_backbone(str(folder), CPU)
    for part, reference in zip(("unet", "vae", "text_encoder"), make_parts(SMALL), strict=True):
        assert_same_weights(getattr(backbone, part), reference)


@pytest.mark.parametrize(
    "dtype, options",
    [
        (torch.float16, {"variant": "fp16"}),
        (torch.bfloat16, {"variant": "bf16"}),
        (torch.float16, {"variant": "fp16", "max_shard_size": "10KB"}),
        (torch.float32, {"max_shard_size": "20KB"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_folder_of_a_variant_or_shards(dtype, options, tmp_path):
    folder = save_backbone(tmp_path / "backbone", TINY)
    for part, module in zip(PARTS, make_parts(TINY), strict=True):
        shutil.rmtree(folder / part)
        module.to(dtype).save_pretrained(folder / part, **options)
    assert len(list((folder / "unet").glob("*.safetensors"))) == 1 or "max_shard_size" in options
    backbone = load_backbone(str(folder), CPU)
    for part, module in zip(PARTS, make_parts(TINY), strict=True):
        assert_same_weights(getattr(backbone, part), module.to(dtype).float())


@pytest.mark.parametrize("part, name", [("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")])
def test_pickled_weights_are_refused_and_their_conversion_named(part, name, tmp_path, monkeypatch):
    folder = save_backbone(tmp_path / "my backbone", TINY)
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    torch.save(weights, folder / part / name)
    file.unlink()
    with pytest.raises(InputError, match=f"holds its weights as {name}, which can run code") as refusal:
        load_backbone(str(folder), CPU)
    run_printed(str(refusal.value), monkeypatch)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in load_file(file).items())
    load_backbone(str(folder), CPU)
    (folder / part / name).unlink()
    file.unlink()
    with pytest.raises(InputError, match=f"{part} holds no weights, found config.json: expected"):
        load_backbone(str(folder), CPU)


def run_printed(text: str, monkeypatch) -> None:
    """Run the `python -c` that a message names, in this process."""
    python, flag, code = shlex.split(text.split("`")[1])
    assert (python, flag) == ("python", "-c")
    exec(code, {})


def edit_config(folder, part, **values) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "message, values",
    [
        ("is an inpainting model", {"in_channels": 9}),
        ("is Stable Diffusion 2", {"cross_attention_dim": 1024}),
        ("is Stable Diffusion XL", {"addition_embed_type": "text_time"}),
        ("missing keys|unexpected keys|cannot be loaded", {"layers_per_block": 2}),
        ("unet cannot be loaded as UNet2DConditionModel", {"block_out_channels": [8, 32]}),
        ("parts of one model", {"cross_attention_dim": 8}),
    ],
)
def test_other_folders_are_refused(message, values, tmp_path):
    folder = save_backbone(tmp_path / "backbone", TINY)
    edit_config(folder, "unet", **values)
    if message == "parts of one model":
        (folder / "unet").rename(folder / "wrong")
        UNet2DConditionModel(**{**TINY.unet, **values}).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match=message):
        load_backbone(str(folder), CPU)


def test_wrong_shapes_and_missing_parts_of_folders_are_refused(tmp_path):
    folder = save_backbone(tmp_path / "backbone", TINY)
    edit_config(folder, "text_encoder", intermediate_size=40)
    with pytest.raises(InputError, match="text_encoder"):
        load_backbone(str(folder), CPU)
    other = save_backbone(tmp_path / "other", TINY)
    config = other / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(InputError, match="predicts 'sample'.*expected 'epsilon' or 'v_prediction'"):
        load_backbone(str(other), CPU)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(InputError, match="has no text_encoder/"):
        load_backbone(str(folder), CPU)
    (folder / "unet").rename(folder / "transformer")
    with pytest.raises(InputError, match="Stable Diffusion 3 or Flux"):
        load_backbone(str(folder), CPU)


# ------------------------------------------------------------------------------------------- the hub


def test_cache_is_asked_before_the_network(cache, tiny_backbone):
    put_into_cache(cache, "lab/small", tiny_backbone)
    assert_same_weights(load_backbone("lab/small", CPU).unet, make_parts(TINY)[0])
    shutil.rmtree(cache / "models--lab--small/snapshots/0123456789/vae")  # as an interrupted download leaves it
    with pytest.raises(InputError, match="not in the local cache"):
        load_backbone("lab/small", CPU)


def test_a_revision_is_pinned_where_one_is_given_and_recorded(cache, tiny_backbone, monkeypatch):
    put_into_cache(cache, "lab/small", tiny_backbone)
    for name in ("lab/small", "lab/small@0123456789"):
        assert load_backbone(name, CPU).revision == "0123456789"
    assert load_backbone(str(tiny_backbone), CPU).revision is None
    with pytest.raises(InputError, match="lab/small@abc is not in the local cache.*--revision abc"):
        load_backbone("lab/small@abc", CPU)
    asked = []
    answer = SimpleNamespace(siblings=[SimpleNamespace(rfilename=f"{part}/model.safetensors") for part in hub.WEIGHTS])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **named: asked.append(named) or answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **named: asked.append(named) or tiny_backbone)
    load_backbone("lab/other@abc", CPU)
    assert [named["revision"] for named in asked] == ["abc"] * 3


def test_no_network_is_one_sentence():
    with pytest.raises(InputError, match=r"hub cannot be asked.*hf download lab/none.*--backbone weights"):
        load_backbone("lab/none", CPU)
    with pytest.raises(InputError, match="neither a folder, nor a .safetensors file"):
        load_backbone("no/such/folder", CPU)
    with pytest.raises(InputError, match="neither a folder, nor a .safetensors file"):
        load_backbone("nosuchfile.safetensors", CPU)


def test_another_model_is_refused_before_its_weights_are_fetched(monkeypatch, tmp_path):
    fetched = []

    def snapshot(name: str, allow_patterns: list, revision: None) -> str:
        fetched.append(allow_patterns)
        return str(tmp_path)

    (tmp_path / "text_encoder_2").mkdir()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match="is Stable Diffusion XL"):
        load_backbone("lab/xl", CPU)
    assert fetched == [["*/config.json"]]


def test_a_hub_that_keeps_silent_is_asked_once_and_not_for_long(monkeypatch):
    """A first start on an offline machine, whose firewall swallows what is sent, is answered within two seconds."""
    monkeypatch.setattr(hub, "PATIENCE", PATIENCE)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the call, never answers
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(InputError, match="--backbone embedded"):
            load_backbone(backbone_name("auto", "prepared"), CPU)
        assert PATIENCE <= time.monotonic() - started < 2  # which is promised
        server.settimeout(0.1)
        server.accept()[0].close()
        with pytest.raises(TimeoutError):
            server.accept()


def test_who_has_a_network_is_given_time(monkeypatch):
    """A proxy may take seconds for its first answer; so may a hub that was asked for by name."""
    monkeypatch.setattr(hub, "PATIENCE_WITH_NETWORK", PATIENCE_WITH_NETWORK)
    monkeypatch.setattr(hub, "PATIENCE", PATIENCE)
    assert hub.patience(STABLE_DIFFUSION) == PATIENCE < 2 and hub.patience("lab/small") >= 10
    monkeypatch.setattr(hub, "getproxies", lambda: {"no": "localhost"})
    assert hub.patience(STABLE_DIFFUSION) == PATIENCE
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.patience(STABLE_DIFFUSION) >= 10


def test_weights_are_fetched_in_one_variant(monkeypatch, tiny_backbone):
    fetched = []
    files = {
        "unet": ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
        "vae": ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.bf16.safetensors"],
        "text_encoder": ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
    }

    def snapshot(name: str, allow_patterns: list, revision: None) -> str:
        fetched.extend(pattern for pattern in allow_patterns if "safetensors" in pattern)
        return str(tiny_backbone)

    def info(*_, **__):
        names = [f"{part}/{name}" for part, names in files.items() for name in names]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    load_backbone("lab/mixed", CPU)
    texts = [f"text_encoder/{name}" for name in files["text_encoder"]]
    assert sorted(fetched) == sorted([f"unet/{files['unet'][0]}", f"vae/{files['vae'][1]}", *texts])
    del files["vae"][1]
    with pytest.raises(
        InputError, match="no safetensors weights in vae/ on the hub, found diffusion_pytorch_model.bin"
    ):
        load_backbone("lab/mixed", CPU)


def test_embedded_backbone_carries_what_the_recipe_says():
    assert json.loads((EMBEDDED / "natural2nanoscale.json").read_text()) == {"recommended": RECOMMENDED}


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
@pytest.mark.parametrize("content", [0.5, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"])
def test_a_copy_that_broke_off_is_refused(tiny_backbone, tmp_path, part, content):
    folder = shutil.copytree(tiny_backbone, tmp_path / "weights")
    file = next((folder / part).glob("*model.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * content)] if isinstance(content, float) else content.encode())
    with pytest.raises(InputError, match=f"{part} cannot be loaded"):
        load_backbone(str(folder), torch.device("cpu"))
