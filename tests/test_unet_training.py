"""U-Net training: exact micro-batches and resume, seeded order, mixing, early stopping, reports, refusals."""

import json
import re
import runpy
import shutil
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from natural2nanoscale.checkpoints import SavingTimer
from natural2nanoscale.cli import flags_of, resumable, settings_from
from natural2nanoscale.data.classes import IGNORE_ID, Classes
from natural2nanoscale.data.folders import DatasetInfo, fingerprint, open_pairs, write_pairs
from natural2nanoscale.data.roots import learned_by_synthetic, refuse_unfit
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation.batches import DeviceSlices, draw_batch, read_batch
from natural2nanoscale.segmentation.evaluation import evaluate_run, score, summarize
from natural2nanoscale.segmentation.monitor import validate
from natural2nanoscale.segmentation.report import markdown
from natural2nanoscale.segmentation.schedule import check, steps_between_validations
from natural2nanoscale.segmentation.settings import RECOMMENDED, Settings, complete, shown
from natural2nanoscale.segmentation.slices import Slices, combine, load_slices, spread_evenly
from natural2nanoscale.segmentation.training import accumulate_gradient, class_weights, learning_rate, train
from natural2nanoscale.segmentation.unet import UNet, initialize, load_unet, select_precision
from natural2nanoscale.signals import Interrupted

CLASSES = Classes.named("background", "cell")
CPU = torch.device("cpu")
SMALL = Settings(width=4, depth=2, batch_size=4, max_steps=8, augment="rotation", patience=0)


def blobs(count: int, seed: int, shape: tuple[int, int] = (24, 32), real: bool = True) -> Slices:
    """Bright discs on a dark ground, noisy enough that a network has something to learn."""
    random = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(count):
        y, x = np.ogrid[: shape[0], : shape[1]]
        center = random.uniform(6, 18, 2)
        mask = ((y - center[0]) ** 2 + (x - center[1]) ** 2 < 36).astype(np.uint8)
        images.append(np.clip(90 + 60 * mask + random.normal(0, 25, shape), 0, 255).astype(np.uint8))
        masks.append(mask)
    return Slices(images, masks, CLASSES, count if real else 0)


def write(path: Path, slices: Slices, origin: str = "prepared", split: dict | None = None) -> Path:
    items = [(f"s_{i}", *pair) for i, pair in enumerate(zip(slices.images, slices.masks, strict=True))]
    write_pairs(path, DatasetInfo("blobs", origin, slices.classes, split=split or {}), items)
    return path


# ------------------------------------------------------------------------------------- gradient step


@pytest.mark.parametrize("weights", [torch.ones(2), torch.tensor([0.4, 2.5])], ids=["plain", "weighted"])
def test_micro_batches_give_the_gradient_of_the_big_batch(weights):
    model = UNet(2, 8, 2).double()  # in float32 a rounding may turn a ReLU or a maximum over: another gradient
    initialize(model, generator_for("gradient"))
    images, masks = read_batch(DeviceSlices(blobs(8, 1), CPU), torch.tensor([(0, i) for i in range(8)]), SMALL)
    images = images.double()
    masks[2, :10] = IGNORE_ID
    masks[6:] = IGNORE_ID  # with micro-batches of two, one holds no label at all
    F.cross_entropy(model(images).float(), masks, weights, ignore_index=IGNORE_ID).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    for size in (1, 2, 8):
        model.zero_grad()
        parts = zip(images.split(size), masks.split(size), strict=True)
        _, weight = accumulate_gradient(model, parts, weights)
        assert weight.item() == pytest.approx(weights[masks[masks != IGNORE_ID]].sum().item())
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-6)


def test_batch_without_any_label_leaves_a_zero_gradient():
    model = UNet(2, 4, 2)
    accumulate_gradient(model, [(torch.rand(2, 1, 8, 8), torch.full((2, 8, 8), IGNORE_ID))], torch.ones(2))
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_class_weights_follow_the_shares_of_labelled_pixels():
    mask = np.array([[0, 0, 0, 1], [0, 0, 0, IGNORE_ID]], np.uint8)  # 6 : 1 pixels, one without a label
    slices = Slices([mask], [mask], Classes.named("a", "b", "absent"), 1)
    share = np.array([6 / 7, 1 / 7])
    for balance in (0.0, 0.5, 1.0):
        expected = share**-balance / (share ** (1 - balance)).sum()
        assert class_weights(slices, balance)[:2].tolist() == pytest.approx(expected.tolist())
    assert class_weights(slices, 1.0).isfinite().all()


def test_training_learns():
    settings = replace(SMALL, max_steps=40, learning_rate=5e-3)
    trained = train(blobs(8, 1), blobs(4, 2), settings, CPU)
    assert trained.best["val_miou"] > 0.8 and trained.steps == 40


# -------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_eight_steps_equal_four_and_a_resume_to_eight_bit_for_bit(tmp_path, precision):
    training, validation = blobs(6, 1), blobs(3, 2)
    settings = replace(
        SMALL, validate_every=3, precision=precision
    )  # 4 is no multiple: the resumed run must not see its end
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    whole = train(training, validation, settings, CPU, RunFolder(once))
    train(training, validation, replace(settings, max_steps=4), CPU, RunFolder(twice))
    resumed = train(training, validation, settings, CPU, RunFolder(twice))

    last = [RunFolder(folder).checkpoints()[0] / "state.safetensors" for folder in (once, twice)]
    a, b = (load_file(file) for file in last)
    assert a.keys() == b.keys() and any(name.startswith("best.") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.best["step"] == whole.best["step"] and resumed.model.precision == precision
    assert all(tensor.dtype == torch.float32 for tensor in a.values())  # master weights and moments
    rows = [[row | {"seconds": 0} for row in RunFolder(folder).read_log()] for folder in (once, twice)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [3, 6]
    one, two = (load_file(folder / "best" / "unet.safetensors") for folder in (once, twice))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    training, validation, settings = blobs(6, 1), blobs(3, 2), replace(SMALL, validate_every=2)

    def validate_and_stop(*args):
        signal.raise_signal(signal.SIGTERM)
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr("natural2nanoscale.segmentation.monitor.validate", validate_and_stop)
        with pytest.raises(Interrupted, match="at step 2 of 8, .* is saved: .*--resume"):
            train(training, validation, settings, CPU, RunFolder(tmp_path))
    resumed = train(training, validation, settings, CPU, RunFolder(tmp_path))
    whole = train(training, validation, settings, CPU)
    assert resumed.best | {"seconds": 0} == whole.best | {"seconds": 0}
    one, two = resumed.model.parameters(), whole.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_first_checkpoint_comes_soon_by_the_clock(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(SavingTimer, "FIRST", 0.0)
    monkeypatch.setattr(RunFolder, "save", lambda _, state: saved.append(state.counts.step))
    train(blobs(6, 1), blobs(3, 2), SMALL, CPU, RunFolder(tmp_path))
    train(blobs(6, 1), blobs(3, 2), replace(SMALL, checkpoint_minutes=0.0), CPU, RunFolder(tmp_path))
    assert saved == [1, 8, 8]


def test_early_stopping_restores_the_best_weights(tmp_path):
    settings = replace(SMALL, max_steps=300, validate_every=1, patience=2, learning_rate=0.05, augment="none")
    trained = train(blobs(4, 1), blobs(2, 9), settings, CPU, RunFolder(tmp_path))
    losses = [row["val_loss"] for row in trained.rows]
    assert trained.steps < 300 and len(losses) >= 3
    assert trained.best["val_loss"] == min(losses) == losses[-3]
    shorter = replace(settings, max_steps=trained.best["step"])
    again = train(blobs(4, 1), blobs(2, 9), shorter, CPU)
    model, info = load_unet(tmp_path / "best")
    assert info.trained["best"] == trained.best
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.model.parameters(), strict=True))


# ---------------------------------------------------------------------------------- order and mixing


def drawn(*arguments) -> list[tuple[int, int]]:
    """The pairs of `draw_batch` as tuples."""
    return [tuple(pair) for pair in draw_batch(*arguments).tolist()]


def test_plain_epoch_takes_every_slice_once_and_the_order_does_not_depend_on_the_batch_size():
    def epoch(size):
        steps = -(-10 // size)
        settings = replace(SMALL, batch_size=size)
        return [pair for step in range(steps, 2 * steps) for pair in drawn(step, 10, 10, settings)]

    assert sorted(index for _, index in epoch(4)) == list(range(10))
    assert epoch(4) == epoch(3) == epoch(512) and {e for e, _ in epoch(4)} == {1}


def test_full_batches_are_full_and_see_every_slice_equally_often():
    settings = replace(SMALL, batch_size=7, full_batches=True)
    batches = [drawn(step, 3, 3, settings) for step in range(9)]
    assert all(len(batch) == 7 for batch in batches)
    pairs = [pair for batch in batches for pair in batch]
    assert len(set(pairs)) == 63  # no (epoch, index) twice
    assert np.bincount([index for _, index in pairs]).tolist() == [21, 21, 21]


@pytest.mark.parametrize("balance", [None, 0.25], ids=["synthetic first", "both first"])
def test_finetuning_takes_real_slices_alone_in_the_same_number_of_full_steps(balance):
    settings = replace(SMALL, batch_size=8, balance=balance, finetune_after=6)
    batches = [drawn(step, 3 + 40, 3, settings) for step in range(12)]
    real = [sum(index < 3 for _, index in batch) for batch in batches]
    assert real == [2 if balance else 0] * 6 + [8] * 6 and {len(batch) for batch in batches} == {8}
    pairs = [pair for batch in batches for pair in batch]
    assert len(set(pairs)) == len(pairs)  # no slice is augmented alike twice
    assert max(np.bincount([index for _, index in pairs])[:3]) - min(np.bincount([i for _, i in pairs])[:3]) <= 1


def test_early_stopping_waits_for_finetuning():
    mixed = combine(blobs(4, 1), blobs(4, 2, real=False))
    still = replace(SMALL, learning_rate=0.0, validate_every=1, patience=2, augment="none", max_steps=20)
    assert train(mixed, blobs(2, 9), still, CPU).steps == 3
    assert train(mixed, blobs(2, 9), replace(still, finetune_after=7), CPU).steps == 9


def test_validation_takes_a_twentieth_of_the_time_at_most():
    """Two slices take 2 / 2.5 of what a slice takes in training: a twentieth of four steps of four slices."""
    few, many = blobs(2, 9), blobs(40, 9)
    assert steps_between_validations(blobs(64, 1), few, SMALL) == 16  # an epoch
    assert steps_between_validations(blobs(4, 1), few, SMALL) == 4
    assert steps_between_validations(blobs(64, 1), many, SMALL) == 80
    assert steps_between_validations(blobs(64, 1), many, replace(SMALL, crop=(16, 12))) == 320
    assert steps_between_validations(blobs(64, 1), many, replace(SMALL, validate_every=3)) == 3


def test_balance_gives_every_batch_its_share_of_real_slices():
    settings = replace(SMALL, batch_size=8, balance=0.5)
    batches = [drawn(step, 3 + 40, 3, settings) for step in range(10)]
    assert all(sum(index < 3 for _, index in batch) == 4 and len(batch) == 8 for batch in batches)
    synthetic = [index for batch in batches for _, index in batch if index >= 3]
    assert sorted(synthetic) == list(range(3, 43))


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    small, large = blobs(2, 1), blobs(2, 2, (40, 30))
    mixed = Slices(small.images + large.images, small.masks + large.masks, CLASSES, 4)
    pool, settings = DeviceSlices(mixed, CPU), replace(SMALL, crop=(20, 16))
    images, masks = read_batch(pool, torch.tensor([[3, 0], [3, 2]]), settings)
    assert images.shape == (2, 1, 16, 20) and masks.shape == (2, 16, 20) and masks.dtype == torch.int64
    alone, _ = read_batch(pool, torch.tensor([[3, 2]]), settings)
    torch.testing.assert_close(images[1:], alone, rtol=0, atol=1e-6)
    later, _ = read_batch(pool, torch.tensor([[4, 2]]), settings)
    assert not torch.equal(alone, later)
    keys = torch.tensor([[3, 2], [3, 0], [5, 3], [3, 1]])  # shapes alternate; the batch keeps their order
    each = torch.cat([read_batch(pool, key[None], settings)[0] for key in keys])
    torch.testing.assert_close(read_batch(pool, keys, settings)[0], each, rtol=0, atol=1e-6)
    assert set(masks.unique().tolist()) <= {0, 1}


def test_without_augmentation_the_network_sees_the_slices_untouched():
    slices = blobs(3, 1)
    still = replace(SMALL, augment="none")
    images, masks = read_batch(DeviceSlices(slices, CPU), torch.tensor([[0, 2], [0, 0]]), still)
    assert np.array_equal(((images[0, 0] + 1) * 127.5).round().numpy(), slices.images[2])
    assert np.array_equal(masks[1].numpy(), slices.masks[0])


def test_ratio_adds_synthetic_slices_spread_evenly_over_their_masks():
    sources = [k // 3 for k in range(12)]  # four masks, three slices of each
    assert spread_evenly(sources, 4) == [0, 3, 6, 9]
    assert spread_evenly(sources, 2) == [0, 6]
    assert np.bincount([i // 3 for i in spread_evenly(sources, 10)]).tolist() == [3, 2, 3, 2]
    assert spread_evenly(sources, 12) == list(range(12))
    blank = [np.zeros((24, 32), np.uint8)] * 12  # equal masks of different slices stay apart
    synthetic = replace(blobs(12, 2, real=False), masks=blank, sources=tuple("abcd"[k // 3] for k in range(12)))
    chosen = combine(None, synthetic, 1.0, real_count=4).images
    assert all(image is synthetic.images[k] for image, k in zip(chosen, (0, 3, 6, 9), strict=True))
    real, synthetic = blobs(4, 1), blobs(6, 2, real=False)
    both = combine(real, synthetic, 1.5)
    assert (len(both), both.real) == (10, 4) and both.images[0] is real.images[0]
    only = combine(None, synthetic, 1.0, real_count=4)
    assert (len(only), only.real) == (4, 0)
    with pytest.raises(InputError, match=r"needs 8 .* found 6.*--per-mask 2"):
        combine(real, synthetic, 2.0)


def test_synthetic_slices_from_test_masks_are_refused(tmp_path):
    train_folder = open_pairs(write(tmp_path / "train", blobs(2, 1)))
    test_folder = open_pairs(write(tmp_path / "test", blobs(2, 2)))
    for source, allowed in ((train_folder, True), (test_folder, False)):
        split = {"source": {"part": source.path.name, "fingerprint": fingerprint(source)}}
        path = write(tmp_path / f"synthetic-{source.path.name}", blobs(2, 3), "synthetic", split)
        if allowed:
            refuse_unfit([learned_by_synthetic(open_pairs(path))], [test_folder])
        else:
            with pytest.raises(InputError, match="were used to make"):
                refuse_unfit([learned_by_synthetic(open_pairs(path))], [test_folder])
    assert load_slices(open_pairs(path)).real == 0


def test_a_single_held_out_mask_among_the_synthetic_ones_is_refused_but_not_blank_ones_or_twins(tmp_path):
    train_slices, test_slices, made = blobs(3, 1), blobs(2, 2), blobs(3, 3)
    blank = np.zeros((24, 32), np.uint8)
    blank[:2] = IGNORE_ID
    test_slices.masks[0] = made.masks[0] = blank
    folders = {}

    def refuse():
        for name, slices in (("train", train_slices), ("test", test_slices), ("synthetic", made)):
            folders[name] = open_pairs(write(tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}", slices))
        refuse_unfit([learned_by_synthetic(folders["synthetic"], folders["train"])], [folders["test"]])

    refuse()
    made.masks[2] = test_slices.masks[1]
    with pytest.raises(InputError, match="such as 's_1' were used to make"):
        refuse()
    train_slices.masks[0] = test_slices.masks[1]
    refuse()


# ------------------------------------------------------------------------------------------ refusals


def test_the_learning_rate_is_constant_or_rises_and_falls():
    assert {learning_rate(step, 40, SMALL) for step in range(40)} == {SMALL.learning_rate}
    decayed = [learning_rate(step, 40, replace(SMALL, decay=True, learning_rate=2.0)) for step in range(40)]
    assert decayed[0] == pytest.approx(0.5) and decayed[20] == pytest.approx(1.0)  # a quarter of the rise; half way
    assert 0 < decayed[39] < 0.01 and max(decayed) == decayed[3] < 2.0


def test_unusable_data_is_refused_with_the_flag_that_helps():
    small, large = blobs(2, 1), blobs(2, 1, (40, 30))
    mixed = Slices(small.images + large.images, small.masks + large.masks, CLASSES, 4)
    with pytest.raises(InputError, match="--crop"):
        check(mixed, small, SMALL)
    check(mixed, mixed, replace(SMALL, crop=(16, 16)))
    with pytest.raises(InputError, match="--balance"):
        check(small, small, replace(SMALL, balance=0.5))
    with pytest.raises(InputError, match="--mode pretrain-finetune"):
        check(small, small, replace(SMALL, finetune_after=4))
    with pytest.raises(InputError, match="classes"):
        check(small, replace(small, classes=Classes.named("a", "b", "c")), SMALL)
    blank = replace(small, masks=[np.full((24, 32), IGNORE_ID, np.uint8)] * 2)
    with pytest.raises(InputError, match="label"):
        check(small, blank, SMALL)


# ------------------------------------------------------------------------------------------- reports


def test_scores_pool_the_matrix_and_spread_over_seeds():
    matrices = torch.tensor([[[90, 10], [0, 0]], [[0, 0], [50, 50]]])
    one = score(matrices, ["a", "b"])
    assert one["iou"] == [90 / 150, 50 / 110] and one["images"][0]["iou"] == [0.9, 0.0]
    summary = summarize([one | {"miou": 0.5}, one | {"miou": 0.7}], CLASSES)
    assert summary["miou_mean"] == pytest.approx(0.6) and summary["miou_std"] == pytest.approx(0.02**0.5)
    assert summarize([one], CLASSES)["miou_std"] is None


def test_script_trains_scores_and_resumes_and_refuses_what_it_should(tmp_path, monkeypatch, capsys):
    root = tmp_path / "data"
    for part, seed in (("train", 1), ("val", 2), ("test", 3)):
        write(root / part, blobs(4, seed))
    script = Path(__file__).parents[1] / "train_unet.py"

    def call(*extra):
        flags = ["--data", root, "--width", 4, "--depth", 2, "--max-steps", 3, "--seeds", 2]
        flags += ["--device", "cpu", "--synthetic-ratio", 1.0, "--out", tmp_path / "run", *extra]
        monkeypatch.setattr(sys, "argv", [str(part) for part in (script, *flags)])
        runpy.run_path(str(script), run_name="__main__")

    def refused(*extra):
        with pytest.raises(SystemExit) as stopped:
            call(*extra)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "generate.py" in refused() and not (tmp_path / "run").exists()
    write(root / "synthetic", blobs(4, 4), "synthetic")
    call()
    printed = capsys.readouterr().out
    assert "4 real + 4 synthetic" in printed
    assert re.search(r"memory    about \d+\.\d GB with 8 of 32x24 at once", printed)  # all there are, not all that fit
    assert re.search(r"at most 3 steps, 1 per epoch, about \d+ s and what validation takes", printed)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [seed["seed"] for seed in report["seeds"]] == [0, 1] and 0 <= report["miou_mean"] <= 1
    assert [entry["name"] for entry in report["per_class"]] == ["background", "cell"]
    assert (tmp_path / "run" / "report.md").read_text().startswith("**mIoU ")
    card = (tmp_path / "run" / "README.md").read_text()
    assert (
        f"{100 * report['miou_mean']:.1f} ± " in card and "4 synthetic slices" in card and "4 annotated slices" in card
    )
    assert "not an empty folder" in refused()  # not a second time into the same folder
    assert "width" in refused("--resume", "--width", 8)
    trained_in = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["precision"]
    assert trained_in == select_precision("auto", CPU) == report["seeds"][0]["precision"]
    other = "float32" if trained_in == "bfloat16" else "bfloat16"
    assert f"precision was {trained_in} and is now {other}" in refused("--resume", "--precision", other)
    call("--max-steps", 5, "--resume")
    assert load_unet(tmp_path / "run" / "seed-1" / "best")[1].trained["steps"] == 5

    call("--max-steps", 5, "--resume", "--seeds", 1)  # the second network stays, the report is of the first
    assert [seed["seed"] for seed in json.loads((tmp_path / "run" / "report.json").read_text())["seeds"]] == [0]
    flags = ["--out", tmp_path / "tuned", "--mode", "pretrain-finetune", "--augment", "paper-all", "--enlarge-to", 6]
    call(*flags, "--seeds", 1)
    printed = capsys.readouterr().out
    assert "order     1 steps on synthetic slices" in printed and "enlarged  to 10 slices" in printed
    # a longer run keeps its beginning: what was learned in it is what would be learned again
    call(*flags, "--seeds", 1, "--max-steps", 8, "--resume")
    assert "order     1 steps on synthetic slices" in capsys.readouterr().out
    assert json.loads((tmp_path / "tuned/config.json").read_text())["settings"]["finetune_after"] == 1
    assert load_unet(tmp_path / "tuned/seed-0/best")[1].trained["steps"] == 8
    assert "--mode was pretrain-finetune and is now joint" in refused(*flags, "--mode", "joint", "--resume")
    image = root / "train/images/s_2.png"
    before = image.read_bytes()
    shutil.copy(root / "train/images/s_1.png", image)
    assert "in train/ 1 was changed (s_2): bring the old ones back, or name another" in refused(*flags, "--resume")
    image.write_bytes(before)

    # stopped before a seed's first checkpoint, it begins that seed at step 0; a damaged checkpoint never does
    for folder in (tmp_path / "run" / "seed-0").iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    call("--max-steps", 5, "--resume", "--seeds", 1)
    assert f"completed in {tmp_path / 'run' / 'seed-0'}: it begins at step 0" in capsys.readouterr().out
    weights = next((tmp_path / "run" / "seed-0" / "checkpoints").iterdir()) / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "damaged" in refused("--max-steps", 5, "--resume", "--seeds", 1)
    (tmp_path / "run" / "config.json").rename(tmp_path / "config.json")
    assert "--resume finds no run" in refused("--resume")
    (tmp_path / "config.json").rename(tmp_path / "run" / "config.json")

    other = write(tmp_path / "other", replace(blobs(2, 5), classes=Classes.named("background", "nucleus")))
    with pytest.raises(InputError, match="nucleus"):
        evaluate_run(tmp_path / "run", open_pairs(other), CPU)
    again = evaluate_run(tmp_path / "run", open_pairs(root / "test"), CPU)
    assert again["seeds"][0]["trained"]["steps"] == 5 and "| cell | " in markdown(again)


def flags(monkeypatch, *words) -> Settings:
    """The settings that flags of train_unet.py spell, None where what is recommended is still to be asked."""
    script = Path(__file__).parents[1] / "train_unet.py"
    monkeypatch.setattr(sys, "argv", [str(word) for word in (script, *words)])
    return settings_from(runpy.run_path(str(script))["parse_arguments"](), Settings)


def test_flags_have_the_defaults_of_the_settings(monkeypatch, capsys):
    assert complete(flags(monkeypatch), "prepared") == Settings() and not capsys.readouterr().out
    for name, (_, argument) in flags_of(Settings).items():
        value = getattr(Settings(), name)
        asked = any(name in values for values in RECOMMENDED.values())
        assert argument["default"] is None if asked else argument["default"] == value, name
        assert not asked or f"(default: {shown(value)}; " in argument["help"]
    named = {flag for flag, _ in flags_of(Settings).values()}
    assert {"--lr", "--select", "--balance", "--enlarge-to", "--class-balance"} <= named
    assert set(asdict(Settings())) - set(flags_of(Settings)) == {"full_batches", "finetune_after"}


def test_what_an_origin_recommends_gives_way_to_flags_and_a_resumed_run_to_its_own(tmp_path, monkeypatch, capsys):
    few = ("--checkpoint-every", 9, "--seed", 3)
    assert complete(flags(monkeypatch, *few), "prepared") == replace(Settings(), checkpoint_every=9, seed=3)
    assert not capsys.readouterr().out
    advised = complete(flags(monkeypatch, *few), "phantom")
    assert advised == replace(Settings(), checkpoint_every=9, seed=3, **RECOMMENDED["phantom"])
    assert "width 8, epochs 60, " in capsys.readouterr().out
    given = flags(monkeypatch, *few, "--width", 16, "--no-decay", "--lr", 0.0, "--crop", "20x16")
    expected = replace(advised, width=16, decay=False, learning_rate=0.0, crop=(20, 16))
    assert complete(given, "phantom") == expected

    monkeypatch.setattr(sys, "argv", ["train_unet.py", *map(str, few), "--width", "16", "--crop", "20x16", "--lr", "0"])
    args = runpy.run_path(str(Path(__file__).parents[1] / "train_unet.py"))["parse_arguments"]()
    (tmp_path / "config.json").write_text(json.dumps({"arguments": resumable(args)}))
    resumed = flags(monkeypatch, "--resume", "--out", tmp_path, "--no-decay", "--checkpoint-every", 5)
    assert complete(resumed, "phantom") == replace(expected, checkpoint_every=5)


def test_compiled_training_moves_the_same_weights(monkeypatch):
    """What is compiled is the network that is kept; that it computes the same is torch's to promise."""
    calls = []

    def compiled(model, **_):
        calls.append(model)
        return torch.nn.Sequential(model)

    monkeypatch.setattr(torch, "compile", compiled)
    settings = replace(SMALL, max_steps=3)
    plain = train(blobs(4, 1), blobs(2, 2), settings, CPU)
    fast = train(blobs(4, 1), blobs(2, 2), replace(settings, compile=True), CPU)
    assert calls == [fast.model]
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), fast.model.parameters(), strict=True))
