"""Backbones by hub id: the local cache first, then the network, else an error that says how to bring the weights."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from natural2nanoscale.diffusion.stable_diffusion import refuse_other_folder
from natural2nanoscale.errors import InputError

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = ("vae", "unet", "text_encoder")  # the parts that have some
PATIENCE = 1.5  # seconds to wait for the hub's first answer


def from_hub(name: str) -> Path:
    """The folder of a hub id, from the cache or else downloaded, configs first: what they show to be another model is
    refused before its weights are fetched. Raises InputError where it is to be had neither way."""
    neither = InputError(
        f"--backbone {name} is neither a folder, nor a .safetensors file, nor a hub id: check the path, or pass "
        "--backbone embedded for the small backbone of this package"
    )
    if name.endswith(".safetensors"):
        raise neither
    try:
        folder = cached(name, "unet/config.json")
    except HFValidationError:
        raise neither from None
    if folder is not None and is_complete(folder):
        return folder
    reason = _unreachable(name)
    try:
        if reason is None:
            refuse_other_folder(Path(huggingface_hub.snapshot_download(name, allow_patterns=["*/config.json"])))
            patterns = [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "txt")]
            patterns += [f"{part}/*model.safetensors" for part in WEIGHTS]
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except InputError:
        raise
    except Exception as error:  # the hub client raises many kinds; each of them means: not to be had now
        reason = type(error).__name__
    include = " ".join(f"--include '{pattern}'" for pattern in ("*/*.json", "*/*.txt", "*model.safetensors"))
    raise InputError(
        f"backbone {name} is not in the local cache and the hub cannot be asked for it ({reason}): on a machine with "
        f"network run `hf download {name} {include} --exclude 'safety_checker/*' --local-dir weights`, copy the "
        "folder `weights` here and pass --backbone weights; "
        "or pass --backbone embedded for the small backbone of this package"
    ) from None


def cached(name: str, file: str) -> Path | None:
    """The cached folder of a hub id if it holds `file`; no network is asked."""
    found = huggingface_hub.try_to_load_from_cache(name, file)
    return Path(found).parents[file.count("/")] if isinstance(found, str) else None


def is_complete(folder: Path) -> bool:
    """Whether all parts are there; an interrupted download leaves some out."""
    return all((folder / part).is_dir() for part in PARTS) and all(
        any((folder / part).glob("*.safetensors")) for part in WEIGHTS
    )


def _unreachable(name: str) -> str | None:
    """Why the hub does not answer for `name`; None if it does.

    Asked in a thread, as neither a name server nor a proxy that keeps silent obeys the client's timeout.
    """
    reasons: list[str | None] = [f"no answer within {PATIENCE} s"]

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(name, timeout=PATIENCE)
            reasons.append(None)
        except Exception as error:
            reasons.append(type(error).__name__)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return reasons[-1]
