"""The verb `evaluate`: score a U-Net run on any pair folder."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a U-Net run")
    parser.add_argument("--data", type=Path, required=True, help="pair folder, or root of a test/")
    parser.add_argument("--out", type=Path, help="folder for both reports (default: inside RUN)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Score the run on --data, write both reports, print the readable one."""
    from natural2nanoscale.data.folders import open_pairs
    from natural2nanoscale.device import select_device
    from natural2nanoscale.records import read_config
    from natural2nanoscale.segmentation.evaluation import evaluate_run
    from natural2nanoscale.segmentation.report import markdown, write_report

    folder = open_pairs(args.data / "test" if (args.data / "test").is_dir() else args.data)
    report = evaluate_run(args.run, folder, select_device(args.device))
    hash_ = report["data_fingerprint"]
    out = args.out or args.run / f"evaluate-{'-'.join(folder.path.resolve().parts[-2:])}-{hash_[:8]}"
    write_report(out, report)
    print(markdown(report))
    used = read_config(args.run).get("data", {})
    for part in ("val", "synthetic"):
        if used.get(part) == hash_:
            print(f"note: these are the {part} slices of the run: the scores say nothing about new ones")
    print(f"written to {out}/report.json and report.md")
