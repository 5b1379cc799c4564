"""The defaults of the demo, free of heavy imports: its help reads them."""

from __future__ import annotations

from dataclasses import dataclass

from natural2nanoscale.segmentation.settings import SHORT


@dataclass(frozen=True)
class DemoSettings:
    """Budgets of the demo: every U-Net takes equally many steps of equally many slices."""

    slices: int = 8  # annotated slices: all that ControlNet and the U-Nets learn from
    redraws: int = 1  # repetitions with other slices, another ControlNet and other synthetic slices
    seeds: int = 3  # U-Nets per condition and redraw
    seed: int = 0
    controlnet_steps: int = 900
    per_mask: int = 8  # synthetic slices per annotated one
    unet_width: int = SHORT.width
    unet_steps: int = SHORT.max_steps
    unet_batch: int = SHORT.batch_size  # windows per step; half of them real where real and synthetic are mixed
    unet_crop: tuple[int, int] = SHORT.crop  # width, height in pixels
    unet_learning_rate: float = SHORT.learning_rate
    class_balance: float = SHORT.class_balance
    validations: int = 8  # the best of them, by validation mIoU, is what the test slices see
