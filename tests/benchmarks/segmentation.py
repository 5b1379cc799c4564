"""Time of a training step of the U-Net and of MONAI's BasicUNet: `python tests/benchmarks/segmentation.py`.

Both take the same rotated phantom slices through the same loss, gradient and optimiser, with GroupNorm and the same
channels in every stage, both compiled (`--compile`) or neither, in float32 and, by autocast, in bfloat16; ours in the
memory layout that it chooses. BasicUNet keeps twice the channels in its last up-sampling, so it computes more: hence
the ratio per FLOP beside the raw one. The steps alternate; medians are compared. Needs `pip install monai`. The
last lines compare each at its best precision; the aim is 1.3 per FLOP.

Neither compiled, on two idle cores with AMX: 1.55 in float32, 1.26 in bfloat16 and at each one's best (raw 1.64 and
1.34); on one busy core 1.43 and 1.34, and 1.20 and 1.11 against a BasicUNet without its padding of odd sizes, which
`--compile` leaves out since torch fails on it.
Of a bfloat16 step of width 8 (4 windows of 112x112, 45 ms) the convolutions take 62 %, copies between precisions and
layouts 12 %, pooling 8 %, the norms 7 %, ReLU 6 %, Adam 3 %, drawing and augmenting 3 %.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from itertools import count

import torch
from monai.networks.nets import BasicUNet
from torch.utils.flop_counter import FlopCounterMode

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.device import native_bfloat16
from natural2nanoscale.phantom.volume import PhantomSettings, volume
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation.batches import DeviceSlices, draw_batch, read_batch
from natural2nanoscale.segmentation.settings import RECOMMENDED, Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.training import accumulate_gradient, class_weights
from natural2nanoscale.segmentation.unet import CPU, UNet, initialize, move_to

DEPTH = 4  # BasicUNet has no other


def training_step(model: torch.nn.Module, slices: Slices, settings: Settings) -> Callable[[], None]:
    """A function that takes the next optimiser step: read and augment, gradient, Adam."""
    pool, weights = DeviceSlices(slices, CPU), class_weights(slices, settings.class_balance)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    steps = count()

    def step() -> None:
        samples = draw_batch(next(steps), len(slices), slices.real, settings)
        optimizer.zero_grad()
        accumulate_gradient(model, [read_batch(pool, samples, settings)], weights)
        optimizer.step()

    return step


class Autocast(torch.nn.Module):
    """BasicUNet as UNet computes: autocast in the precision, float32 logits."""

    def __init__(self, network: BasicUNet, precision: str):
        super().__init__()
        self.network, self.reduced = network, precision == "bfloat16"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.reduced):
            return self.network(images).float()


def build(width: int, precision: str, padding: bool) -> dict[str, torch.nn.Module]:
    """Both networks with the same initial distribution of weights.

    Without `padding` BasicUNet leaves out its padding of odd sizes, of which there are none here.
    """
    ours = UNet(3, width, DEPTH, precision)
    features = [width * 2**level for level in range(DEPTH + 1)] + [width]
    norm = ("group", {"num_groups": ours.down[0][1].num_groups})
    peer = BasicUNet(spatial_dims=2, in_channels=1, out_channels=3, features=features, norm=norm)
    if not padding:
        for module in peer.modules():
            if hasattr(module, "is_pad"):
                module.is_pad = False
    networks = {"U-Net": move_to(ours, CPU), "BasicUNet": Autocast(peer, precision)}
    for network in networks.values():
        initialize(network, generator_for("benchmark"))
    return networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--width", type=int, default=RECOMMENDED["phantom"]["width"], help="channels of the first stage"
    )
    parser.add_argument("--batch-size", type=int, default=RECOMMENDED["phantom"]["batch_size"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="both, as with `train_unet.py --compile`")
    args = parser.parse_args()
    width, height = PhantomSettings().size
    images, masks = volume(args.batch_size, height, width, seed=0)
    slices = Slices(list(images), list(masks), Classes.named("background", "cytoplasm", "nucleus"), len(images))
    settings = Settings(width=args.width, depth=DEPTH, batch_size=args.batch_size, augment="rotation")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.batch_size} slices of {width}x{height}, width {args.width}, depth {DEPTH}")
    steps, flops = {}, {}
    for precision in ("float32", "bfloat16") if native_bfloat16(CPU) else ("float32",):
        for name, network in build(args.width, precision, padding=not args.compile).items():
            with FlopCounterMode(display=False) as counter:
                training_step(network, slices, settings)()
            flops[name] = counter.get_total_flops()
            compiled = torch.compile(network, dynamic=False) if args.compile else network
            steps[name, precision] = training_step(compiled, slices, settings)
            steps[name, precision]()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(args.repeats):
        for key, step in steps.items():
            started = time.perf_counter()
            step()
            times[key].append(time.perf_counter() - started)
    seconds = {key: statistics.median(values) for key, values in times.items()}
    for (name, precision), value in seconds.items():
        speed = flops[name] / value / 1e9
        print(f"{name}, {precision}: {flops[name] / 1e9:.2f} GFLOP, {1000 * value:.0f} ms a step, {speed:.0f} GFLOP/s")
    best = {name: min(value for (other, _), value in seconds.items() if other == name) for name in flops}
    pairs = {precision: {name: seconds[name, precision] for name in flops} for _, precision in seconds}
    for precision, pair in (pairs | {"each at its best": best}).items():
        ratio = pair["BasicUNet"] / pair["U-Net"]
        print(f"{precision}, per FLOP, ratio: {ratio * flops['U-Net'] / flops['BasicUNet']:.2f}")
        print(f"{precision}, ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
