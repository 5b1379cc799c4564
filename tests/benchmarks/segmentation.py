"""Time of a training step of the U-Net and of MONAI's BasicUNet: `python tests/benchmarks/segmentation.py`.

Both take the same rotated phantom slices through the same loss, gradient and optimiser, in float32 with
GroupNorm and the same channels in every stage. BasicUNet keeps twice the channels in its last up-sampling, so
it computes more: hence the ratio per FLOP beside the raw one. The steps alternate; medians are compared. Needs
`pip install monai`. The last line is what the package promises for two cores: a ratio of at least 1.3, which takes
`--compile`. Three quarters of a step are convolutions, which are the same for both; what compiling fuses is the rest.
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
from natural2nanoscale.phantom.volume import PhantomSettings, volume
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.segmentation.batches import DeviceSlices, draw_batch, read_batch
from natural2nanoscale.segmentation.settings import RECOMMENDED, Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.training import accumulate_gradient, class_weights
from natural2nanoscale.segmentation.unet import UNet, initialize

DEPTH = 4  # BasicUNet has no other


def training_step(model: torch.nn.Module, slices: Slices, settings: Settings) -> Callable[[], None]:
    """A function that takes the next optimiser step: read and augment, gradient, Adam."""
    pool, weights = DeviceSlices(slices, torch.device("cpu")), class_weights(slices, settings.class_balance)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    steps = count()

    def step() -> None:
        samples = draw_batch(next(steps), len(slices), slices.real, settings)
        optimizer.zero_grad()
        accumulate_gradient(model, [read_batch(pool, samples, settings)], weights)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--width", type=int, default=RECOMMENDED["phantom"]["width"], help="channels of the first stage"
    )
    parser.add_argument("--batch-size", type=int, default=RECOMMENDED["phantom"]["batch_size"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="ours as with `train_unet.py --compile`")
    args = parser.parse_args()
    width, height = PhantomSettings().size
    images, masks = volume(args.batch_size, height, width, seed=0)
    slices = Slices(list(images), list(masks), Classes.named("background", "cytoplasm", "nucleus"), len(images))
    settings = Settings(width=args.width, depth=DEPTH, batch_size=args.batch_size, augment="rotation")
    features = [args.width * 2**level for level in range(DEPTH + 1)] + [args.width]
    ours = UNet(3, args.width, DEPTH)
    norm = ("group", {"num_groups": ours.down[0][1].num_groups})
    peer = BasicUNet(spatial_dims=2, in_channels=1, out_channels=3, features=features, norm=norm)
    networks, steps, flops = {"U-Net": ours, "BasicUNet": peer}, {}, {}
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.batch_size} slices of {width}x{height}, width {args.width}, depth {DEPTH}")
    for name, network in networks.items():
        initialize(network, generator_for("benchmark"))
        steps[name] = training_step(network, slices, settings)
        with FlopCounterMode(display=False) as counter:
            steps[name]()
        flops[name] = counter.get_total_flops()
    if args.compile:
        steps["U-Net"] = training_step(torch.compile(ours, dynamic=False), slices, settings)
        steps["U-Net"]()
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(args.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    for name, network in networks.items():
        parameters = sum(parameter.numel() for parameter in network.parameters())
        print(
            f"{name}: {parameters:,} parameters, {flops[name] / 1e9:.2f} GFLOP and "
            f"{1000 * seconds[name]:.0f} ms per step, {flops[name] / seconds[name] / 1e9:.0f} GFLOP/s"
        )
    ratio = seconds["BasicUNet"] / seconds["U-Net"]
    print(f"ratio per FLOP: {ratio * flops['U-Net'] / flops['BasicUNet']:.2f}")
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
