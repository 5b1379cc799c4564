"""A refused --resume leaves the run as it was, and says what is wrong with it and what to do."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from natural2nanoscale.checkpoints import State
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import sha256
from natural2nanoscale.runs import RunFolder, open_run

NAN = float("nan")


@pytest.fixture
def run(script, data_folder, tiny_backbone, tmp_path):
    """A ControlNet's run of two steps with a checkpoint of each, and the command that goes on with it."""
    out = tmp_path / "run"
    start = ["--data", data_folder, "--backbone", tiny_backbone, "--latent-variants", 1, "--sample-every", 99]
    script("train_controlnet.py", *start, "--out", out, "--max-steps", 2, "--checkpoint-every", 1)
    more = ["train_controlnet.py", "--out", out, "--resume", "--max-steps", 3]
    return out, lambda **options: script(*more, **options)


def rehash(checkpoint):
    names = json.loads((checkpoint / "manifest.json").read_text()).keys() - {"format"}
    (checkpoint / "manifest.json").write_text(json.dumps({name: sha256(checkpoint / name) for name in names}))


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_state_of_another_shape_behind_right_hashes(run):
    out, resume = run
    for state in ([], {"best": 0.0}, {"step": "2", "state": {}}, {"step": 2, "state": {"best": "x"}},
                  {"step": 2, "state": {"strange": 1}}):  # fmt: skip
        for checkpoint in (out / "checkpoints").iterdir():
            (checkpoint / "state.json").write_text(json.dumps(state))
            rehash(checkpoint)
        before = contents(out)
        error = resume(expect=2).stderr
        assert error.startswith("error: ") and error.count("\n") == 1 and "checkpoint" in error, state
        assert contents(out) == before


def test_nan_and_foreign_files_are_found_before_use_and_the_good_one_is_named(run):
    out, resume = run
    newest = out / "checkpoints" / "step-000002"
    weights = newest / "controlnet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] = NAN
    save_file(tensors, weights, {"format": "pt"})
    rehash(newest)
    printed = resume().stdout
    assert "step-000002 is passed over" in printed and "is not finite" in printed and "step-000001 is taken" in printed
    (newest.with_name("step-000003") / "controlnet" / "model.bin").write_bytes(b"x")
    assert "model.bin does not belong to it" in resume().stdout


def test_remembered_arguments_are_read_as_if_they_were_typed(run):
    out, resume = run
    good = json.loads((out / "config.json").read_text())
    for name, value in (("batch_size", []), ("epochs", "x"), ("crop", 7), ("lr", True), ("judge", "no"), ("keep", 0),
                        ("condition", "other"), ("seed", 1.5)):  # fmt: skip
        (out / "config.json").write_text(json.dumps(good | {"arguments": good["arguments"] | {name: value}}))
        before = contents(out)
        error = resume(expect=2).stderr
        assert error.startswith("error: ") and error.count("\n") == 1 and "--" + name.replace("_", "-") in error
        assert contents(out) == before


def test_a_checkpoint_of_other_tensors_changes_nothing(tmp_path):
    model = torch.nn.Linear(2, 2)
    counts = SimpleNamespace(step=0)
    run = open_run(tmp_path / "run", {"kind": "unet"}, resume=False)
    run.save(State(SimpleNamespace(step=5), model=torch.nn.Linear(3, 2)))
    weights = model.weight.clone()
    with pytest.raises(InputError, match="model.weight is not of this one"):
        RunFolder(tmp_path / "run").restore(State(counts, model=model))
    assert counts.step == 0 and torch.equal(model.weight, weights)


def test_where_no_checkpoint_is_good_the_remedy_is_named(run):
    out, resume = run
    for file in out.glob("checkpoints/*/state.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    before = contents(out)
    error = resume(expect=2).stderr
    assert "every checkpoint in" in error and "--resume begins at step 0" in error and contents(out) == before
