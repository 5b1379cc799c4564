"""The demo's table: what synthetic slices were worth, in Markdown, from the log's lines alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from natural2nanoscale.runs import mean_std
from natural2nanoscale.study.statistics import Difference, paired_difference

COMPARISONS = (
    ("real + synthetic", "real"),
    ("real + synthetic + rotation", "real + rotation"),
    ("real + synthetic", "real + rotation"),
    ("synthetic", "real"),
)


def markdown(rows: Sequence[dict], settings: dict, sampling: dict, backbone: str, folders: dict) -> str:
    """Verdict, mIoU and IoU per condition, paired differences, and how all this was made.

    `rows` have redraw, seed, condition, miou and iou (per class, null where absent).
    """
    names = folders["train"].info.classes.names
    lines = [f"**{verdict(rows)}**", "", "| training set | mIoU | " + " | ".join(names) + " |"]
    lines.append("|---|--:|" + "--:|" * len(names))
    for condition in dict.fromkeys(row["condition"] for row in rows):
        cells = [_spread(repetitions(rows, condition, lambda row: row["miou"]))]
        cells += [_spread(repetitions(rows, condition, lambda row, k=k: row["iou"][k])) for k in range(len(names))]
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    lines += ["", "| difference in mIoU | mean | 95 % t interval | pairs |", "|---|--:|--:|--:|"]
    for with_it, without in COMPARISONS:
        change = difference(rows, with_it, without)
        interval = "–"
        if change.half_width is not None:
            low, high = change.mean - change.half_width, change.mean + change.half_width
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}" + (", reaches below zero" if low < 0 else "")
        lines.append(f"| {with_it} − {without} | {100 * change.mean:+.1f} | {interval} | {change.pairs} |")
    judge = next((row["condition"] for row in rows if "synthetic_iou" in row), None)
    if judge:
        shares = [_spread(repetitions(rows, judge, lambda row, k=k: agreement(row, k))) for k in range(len(names))]
        lines += [
            "",
            f"Label consistency: IoU of the U-Nets trained on {judge} on the synthetic slices, against the masks that "
            "these were made from, in per cent of their IoU on the real test slices: "
            + ", ".join(f"{name} {share}" for name, share in zip(names, shares, strict=True))
            + ".",
        ]
    redraws = len({row["redraw"] for row in rows})
    repeats = (
        f"{redraws} redraws of slices, ControlNet, synthetic slices and U-Nets"
        if redraws > 1
        else f"{settings['seeds']} U-Net seeds on one draw of slices, ControlNet and synthetic slices"
    )
    began = ""
    if sampling["start"] < 1:
        began = (
            f", of which the first {100 * (1 - sampling['start']):.0f} % are left out: sampling begins at the mask's "
            "own slice, noised to that level"
        )
    lines += [
        "",
        f"Test IoU in per cent on {len(folders['test'].stems)} real slices of {folders['test'].info.name}, mean ± "
        f"sample standard deviation over {repeats}. {settings['slices']} annotated slices; "
        f"{settings['per_mask']} synthetic ones from each of their masks, by a ControlNet fine-tuned on the same "
        f"slices for {settings['controlnet_steps']} steps over the backbone {backbone}, in {sampling['steps']} DDIM "
        f"steps at strength {sampling['strength']:g}{began}. Every U-Net (width {settings['unet_width']}) takes "
        f"{settings['unet_steps']} steps of {settings['unet_batch']} windows of {settings['unet_crop'][0]}x"
        f"{settings['unet_crop'][1]} pixels, half of them from real slices where both are mixed, at a learning rate "
        f"that rises to {settings['unet_learning_rate']:g} and falls to 0, and class balance "
        f"{settings['class_balance']:g}, without early stopping; the best of {settings['validations']} "
        "validations is tested. Rotation: ±16 degrees.",
    ]
    return "\n".join(lines) + "\n"


def repetitions(rows: Sequence[dict], condition: str, value: Callable[[dict], float | None]) -> list[float]:
    """The values that spread and pairs are over: of redraws when there are several (their seeds averaged), else
    of U-Net seeds. Rows whose value is None (an absent class) are left out."""
    by_redraw = len({row["redraw"] for row in rows}) > 1
    groups: dict[int, list[float]] = {}
    for row in rows:
        if row["condition"] == condition and value(row) is not None:
            groups.setdefault(row["redraw"] if by_redraw else row["seed"], []).append(value(row))
    return [mean_std(groups[key])[0] for key in sorted(groups)]


def agreement(row: dict, class_id: int) -> float | None:
    """A network's IoU on the synthetic slices as a share of its IoU on the test slices."""
    on_synthetic, on_test = row["synthetic_iou"][class_id], row["iou"][class_id]
    return on_synthetic / on_test if on_test and on_synthetic is not None else None


def difference(rows: Sequence[dict], with_it: str, without: str) -> Difference:
    """Paired difference in mIoU between two conditions, which have the same redraws and seeds."""
    return paired_difference(*(repetitions(rows, name, lambda row: row["miou"]) for name in (with_it, without)))


def verdict(rows: Sequence[dict]) -> str:
    """One sentence: what synthetic slices added, alone and on top of rotation."""
    parts = []
    for with_it, without in COMPARISONS[:2]:
        change = difference(rows, with_it, without)
        certain = "an interval that reaches below zero" if change.reaches_zero and change.half_width is not None else ""
        spread = f" ± {100 * change.half_width:.1f}" if change.half_width is not None else ""
        parts.append(f"{100 * change.mean:+.1f}{spread} mIoU beside {without}" + (f" ({certain})" if certain else ""))
    return f"Synthetic slices were worth {parts[0]} and {parts[1]}."


def _spread(values: list[float]) -> str:
    if not values:
        return "absent"
    mean, std = mean_std(values)
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")
