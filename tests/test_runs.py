"""Run folders: atomic checkpoints, honest resume, seeds, and stopping on request."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from natural2nanoscale import runs, signals
from natural2nanoscale.checkpoints import Checkpoint, State
from natural2nanoscale.device import select_device
from natural2nanoscale.errors import InputError
from natural2nanoscale.guard import main_guard
from natural2nanoscale.runs import RunFolder, open_run
from natural2nanoscale.seeds import generator_for, permutation_for, seed_for
from natural2nanoscale.signals import Interrupted, StopSignal

CONFIG = {"kind": "unet", "settings": {"lr": 0.1, "epochs": 3}, "data": {"train": "abc"}}


def test_seeds_are_functions_of_their_parts():
    assert seed_for(0, "noise", 3) == seed_for(0, "noise", 3)
    assert len({seed_for(0, "noise", 3), seed_for(0, "noise", 30), seed_for(0, "noise3"), seed_for(1, "noise", 3)}) == 4
    assert seed_for(1, 23) != seed_for(12, 3)  # parts are not run together
    assert all(0 <= seed_for(i) < 2**63 for i in range(100))
    assert torch.equal(torch.randn(4, generator=generator_for("a")), torch.randn(4, generator=generator_for("a")))
    assert sorted(permutation_for(9, 1)) == list(range(9)) and permutation_for(9, 1) != permutation_for(9, 2)


def save(run: RunFolder, step: int, value: float, **options) -> None:
    state = State(SimpleNamespace(step=step, value=value), weights=torch.full((3,), value))
    run.save(state, lambda f: (f / "model.txt").write_text("m"), **options)


def test_checkpoints_round_trip_and_rotate(tmp_path):
    run = RunFolder(tmp_path)
    assert run.load_checkpoint() is None
    for step in (5, 10):
        save(run, step, float(step))
    save(run, 5, -1.0, name="best")
    checkpoint = run.load_checkpoint()
    assert checkpoint.step == 10 and checkpoint.state == {"value": 10.0} and checkpoint.tensors["weights"][0] == 10
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best", "step-000005", "step-000010"]
    assert run.load_checkpoint("best").tensors["weights"][0] == -1
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".pt", ".pth", ".pkl", ".ckpt")]


def test_interrupted_save_leaves_the_older_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5, 5.0)

    def dies(folder):
        (folder / "half").write_text("...")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save(State(SimpleNamespace(step=10), weights=torch.zeros(1)), dies)
    assert RunFolder(tmp_path).load_checkpoint().step == 5


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "model.txt", "manifest.json"])
def test_damage_is_noticed_and_the_older_checkpoint_taken(tmp_path, capsys, file):
    run = RunFolder(tmp_path)
    save(run, 5, 5.0)
    os.rename(tmp_path / "checkpoints/step-000005", tmp_path / "kept")
    save(run, 10, 10.0)
    os.rename(tmp_path / "kept", tmp_path / "checkpoints/step-000005")
    damaged = tmp_path / "checkpoints/step-000010" / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run.load_checkpoint().step == 5
    assert "step-000010 is passed over" in capsys.readouterr().out
    os.remove(tmp_path / "checkpoints/step-000005/manifest.json")
    with pytest.raises(InputError, match="every checkpoint"):
        run.load_checkpoint()


def test_resume_refuses_what_has_changed(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(InputError, match="finds no run"):
        open_run(out, CONFIG, resume=True)
    assert not out.exists()
    open_run(out, CONFIG, resume=False)
    written = json.loads((out / "config.json").read_text())
    assert written["settings"] == CONFIG["settings"] and "torch" in written["environments"][0]["versions"]
    with pytest.raises(InputError, match="already exists"):
        open_run(out, CONFIG, resume=False)
    longer = CONFIG | {"settings": {"lr": 0.1, "epochs": 9}}
    with pytest.raises(InputError, match="epochs was 3 and is now 9"):
        open_run(out, longer, resume=True).settle()
    open_run(out, longer, resume=True, may_change=("epochs",)).settle()
    assert len(json.loads((out / "config.json").read_text())["environments"]) == 1  # the same one
    monkeypatch.setattr(runs, "environment", lambda: {"versions": {"torch": "9.9"}})
    open_run(out, longer, resume=True).settle()
    environments = json.loads((out / "config.json").read_text())["environments"]
    assert len(environments) == 2 and environments[1]["versions"]["torch"] == "9.9"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(InputError, match="holds no run"):
        open_run(tmp_path / "other", CONFIG, resume=False)
    with pytest.raises(InputError, match="train was abc and is now xyz"):
        open_run(out, longer | {"data": {"train": "xyz"}}, resume=True)


def test_changed_slices_are_named(tmp_path):
    out, first = tmp_path / "run", {"train": {"a": "1", "b": "2", "c": "3"}, "val": {"v": "1"}}
    config = CONFIG | {"data": {"train": "abc", "val": "x"}, "slices": first}
    open_run(out, config, resume=False)

    def refusal(train: dict, **options: str) -> str:
        changed = config | {"data": {"train": "xyz", "val": "x"}, "slices": first | {"train": train}}
        with pytest.raises(InputError) as refused:
            open_run(out, changed, resume=True, **options)
        return str(refused.value)

    told = refusal({"a": "1", "b": "9"} | {f"new{i}": "1" for i in range(7)}, serves="begin anew")
    assert "in train/ 7 were added (new0, new1, new2, new3, new4, ...), 1 was removed (c), 1 was changed (b)" in told
    assert told.endswith("bring the old ones back, or begin anew")
    assert "the classes in train/dataset.json" in refusal(first["train"])
    # a run from before slices were listed
    file = out / "config.json"
    saved = json.loads(file.read_text())
    del saved["slices"]
    file.write_text(json.dumps(saved))
    assert "train was abc and is now xyz" in refusal({})


def test_log_forgets_later_steps_and_survives_a_torn_line(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.read_log()] == [1, 2, 3]
    run.drop_log_after(2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path):
    def steps(parameter, optimizer, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=torch.channels_last)
            optimizer.step()

    def start():
        parameter = torch.nn.Parameter(torch.ones(4, 3, 3, 3).to(memory_format=torch.channels_last))
        return parameter, torch.optim.Adam([parameter], lr=0.1, fused=True)

    whole, optimizer = start()
    steps(whole, optimizer, 3, seed=1)
    weights = whole.detach().clone()
    saved = State(None, optimizer=optimizer).tensors()
    on_disk = {name: value.contiguous().clone() for name, value in saved.items()}
    steps(whole, optimizer, 2, seed=2)
    parts, optimizer = start()
    with torch.no_grad():
        parts.copy_(weights)
    State(SimpleNamespace(step=0), optimizer=optimizer).restore(Checkpoint(3, on_disk, {}, tmp_path))
    steps(parts, optimizer, 2, seed=2)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_first_signal_asks_second_interrupts(number, monkeypatch, capsys):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.number == number
        os.kill(os.getpid(), number)  # the same notice, by another way
        monkeypatch.setattr(signals, "ECHO", 0.0)
        with pytest.raises(Interrupted) as left:
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before

    def leave(_):
        raise left.value

    with pytest.raises(SystemExit) as code:
        main_guard(dict, leave)
    assert code.value.code == 128 + number and capsys.readouterr().err.startswith("interrupted")


def test_another_signal_interrupts_and_an_ignored_one_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_while_saving_leaves_at_once_and_the_older_checkpoint_stands(tmp_path, capsys):
    run = RunFolder(tmp_path)
    save(run, 5, 5.0)

    def saving(folder):
        (folder / "half").write_text("...")
        os.kill(os.getpid(), signal.SIGTERM)  # asks; the save goes on
        (folder / "more").write_text("...")
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the save went on")

    def training(_):
        with StopSignal():
            run.save(State(SimpleNamespace(step=10), weights=torch.zeros(1)), saving)

    with pytest.raises(SystemExit) as left:
        main_guard(dict, training)
    assert left.value.code == 128 + signal.SIGINT and "at once, with what was last saved" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000005"]
    assert RunFolder(tmp_path).load_checkpoint().step == 5


def test_registered_state_comes_back_into_the_same_tensors(tmp_path):
    def start(value: float) -> State:
        model = torch.nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last)
        torch.nn.init.constant_(model.weight, value)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 3, 4, 4)).sum().backward()
        optimizer.step()
        counts = SimpleNamespace(step=int(value), best={"step": 1, "val_loss": value, "val_miou": None})
        return State(counts, model=model, optimizer=optimizer, sums=torch.full((2,), value), kept={"a": torch.ones(1)})

    run, saved, other = RunFolder(tmp_path), start(7.0), start(3.0)
    assert run.restore(other) is None and other.counts.step == 3
    run.save(saved)
    places = {name: value.data_ptr() for name, value in other.tensors().items() if "optimizer" not in name}
    assert run.restore(other).step == other.counts.step == 7 and other.counts.best["val_loss"] == 7
    assert all(torch.equal(value, other.tensors()[name]) for name, value in saved.tensors().items())
    assert all(other.tensors()[name].data_ptr() == place for name, place in places.items())
    assert other.parts["model"].weight.is_contiguous(memory_format=torch.channels_last)


def test_unusable_device_is_one_sentence():
    with pytest.raises(InputError, match="--device nonsense"):
        select_device("nonsense")
