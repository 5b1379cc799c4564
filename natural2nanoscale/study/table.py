"""The demo's table: what synthetic slices were worth, in Markdown, from the log's lines alone."""

from __future__ import annotations

from collections.abc import Sequence

from natural2nanoscale.runs import mean_std
from natural2nanoscale.study.statistics import Difference, paired_difference

COMPARISONS = (
    ("real + synthetic", "real"),
    ("real + synthetic + rotation", "real + rotation"),
    ("real + synthetic", "real + rotation"),
    ("synthetic", "real"),
)


def markdown(rows: Sequence[dict], settings: dict, backbone: str, folders: dict) -> str:
    """Verdict, mIoU and IoU per condition, paired differences, and how all this was made.

    `rows` have redraw, seed, condition, miou and iou (per class, null where absent).
    """
    names = folders["train"].info.classes.names
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    lines = [f"**{verdict(rows)}**", "", "| training set | mIoU | " + " | ".join(names) + " |"]
    lines.append("|---|--:|" + "--:|" * len(names))
    for condition in conditions:
        chosen = [row for row in rows if row["condition"] == condition]
        cells = [_spread([row["miou"] for row in chosen])]
        for class_id in range(len(names)):
            cells.append(_spread([r["iou"][class_id] for r in chosen if r["iou"][class_id] is not None]))
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    lines += ["", "| difference in mIoU | mean | 95 % t interval | pairs |", "|---|--:|--:|--:|"]
    for with_it, without in COMPARISONS:
        change = difference(rows, with_it, without)
        interval = "–"
        if change.half_width is not None:
            low, high = change.mean - change.half_width, change.mean + change.half_width
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}" + (", reaches zero" if low <= 0 <= high else "")
        lines.append(f"| {with_it} − {without} | {100 * change.mean:+.1f} | {interval} | {change.pairs} |")
    judged = [row for row in rows if "synthetic_iou" in row]
    if judged:
        shares = [
            _spread([r["synthetic_iou"][k] / r["iou"][k] for r in judged if r["iou"][k] and r["synthetic_iou"][k]])
            for k in range(len(names))
        ]
        lines += [
            "",
            "Label consistency: IoU of the U-Nets trained on real + rotation on the synthetic slices, against the "
            "masks these were made from, in per cent of their IoU on the real test slices: "
            + ", ".join(f"{name} {share}" for name, share in zip(names, shares, strict=True))
            + ".",
        ]
    redraws = len({row["redraw"] for row in rows})
    repeats = (
        f"{redraws} redraws of slices, ControlNet, synthetic slices and U-Nets"
        if redraws > 1
        else f"{settings['seeds']} U-Net seeds on one draw of slices, ControlNet and synthetic slices"
    )
    lines += [
        "",
        f"Test IoU in per cent on {len(folders['test'].stems)} real slices of {folders['test'].info.name}, mean ± "
        f"sample standard deviation over {repeats}. {settings['slices']} annotated slices; "
        f"{settings['per_mask']} synthetic ones from each of their masks, by a ControlNet fine-tuned on the same "
        f"slices for {settings['controlnet_steps']} steps over the backbone {backbone}. Every U-Net (width "
        f"{settings['unet_width']}) takes {settings['unet_steps']} steps of {settings['unet_batch']} windows of "
        f"{settings['unet_crop'][0]}x{settings['unet_crop'][1]} pixels, half of them from real slices where both "
        f"are mixed, at learning rate {settings['unet_learning_rate']:g}, without early stopping; the "
        f"best of {settings['validations']} validations is tested. Rotation: ±16 degrees.",
    ]
    return "\n".join(lines) + "\n"


def difference(rows: Sequence[dict], with_it: str, without: str) -> Difference:
    """Paired by redraw when there are several (seeds averaged within), else by U-Net seed."""
    by_redraw = len({row["redraw"] for row in rows}) > 1
    values: dict[str, dict[int, list[float]]] = {with_it: {}, without: {}}
    for row in rows:
        if row["condition"] in values:
            key = row["redraw"] if by_redraw else row["seed"]
            values[row["condition"]].setdefault(key, []).append(row["miou"])
    keys = sorted(values[with_it].keys() & values[without].keys())
    means = [[mean_std(values[name][key])[0] for key in keys] for name in (with_it, without)]
    return paired_difference(*means)


def verdict(rows: Sequence[dict]) -> str:
    """One sentence: what synthetic slices added, alone and on top of rotation."""
    parts = []
    for with_it, without in COMPARISONS[:2]:
        change = difference(rows, with_it, without)
        certain = "an interval that reaches zero" if change.reaches_zero and change.mean > 0 else ""
        spread = f" ± {100 * change.half_width:.1f}" if change.half_width is not None else ""
        parts.append(f"{100 * change.mean:+.1f}{spread} mIoU beside {without}" + (f" ({certain})" if certain else ""))
    return f"Synthetic slices were worth {parts[0]} and {parts[1]}."


def _spread(values: list[float]) -> str:
    if not values:
        return "absent"
    mean, std = mean_std(values)
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")
