"""A data root: the folder that holds train/, val/ and test/."""

from __future__ import annotations

from pathlib import Path

from natural2nanoscale.errors import InputError


def data_root(data: Path | None) -> Path:
    """The folder that holds train/, val/ and test/; the phantom is made in data/ when nothing is there.

    Only the default is ever filled: a --data that does not exist is an InputError.
    """
    root = Path(data) if data is not None else Path("data")
    if data is None and not root.exists():
        from natural2nanoscale.phantom.volume import PhantomSettings, write_phantom

        print(f"no --data given and no {root}/ here: making the embedded phantom dataset in {root}/")
        write_phantom(root, PhantomSettings())
    missing = [part for part in ("train", "val", "test") if not (root / part / "dataset.json").is_file()]
    if missing:
        raise InputError(
            f"{root} has no pair folder {missing[0]}/, expected train/, val/ and test/ with dataset.json in each: "
            "make them with `python -m natural2nanoscale prepare`, or give their folder with --data"
        )
    return root
