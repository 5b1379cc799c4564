"""Backbones by hub id: the local cache first, then the network, else an error that says how to bring the weights."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from natural2nanoscale.diffusion.stable_diffusion import STABLE_DIFFUSION, refuse_other_folder
from natural2nanoscale.diffusion.weights import WEIGHTS_FILE, variant_of
from natural2nanoscale.errors import InputError

MODEL_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = ("vae", "unet", "text_encoder")  # the parts that have some
# Seconds to wait for the hub's first answer. A closed network fails at once; one that keeps silent is waited for: long
# by those who asked for a hub id or have a proxy, who have a network; not so by a first start on an offline machine.
PATIENCE, PATIENCE_WITH_NETWORK = 1.5, 10.0


def from_hub(name: str) -> Path:
    """The folder of a hub id, from the cache or else downloaded, configs first: what they show to be another model is
    refused before its weights are fetched. Raises InputError where it is to be had neither way."""
    neither = InputError(
        f"--backbone {name} is neither a folder, nor a .safetensors file, nor a hub id: check the path, or pass "
        "--backbone embedded for the small backbone of this package"
    )
    if name.endswith((".safetensors", ".ckpt", ".pth", ".pt", ".bin")):
        raise neither
    try:
        folder = cached(name, "unet/config.json")
    except HFValidationError:
        raise neither from None
    if folder is not None and is_complete(folder):
        return folder
    answer = _ask(name)
    reason = answer if isinstance(answer, str) else None
    try:
        if reason is None:
            refuse_other_folder(Path(huggingface_hub.snapshot_download(name, allow_patterns=["*/config.json"])))
            patterns = [f"{part}/*.{kind}" for part in MODEL_PARTS for kind in ("json", "txt")]
            patterns += _weights(name, [sibling.rfilename for sibling in answer.siblings or ()])
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
    return all((folder / part).is_dir() for part in MODEL_PARTS) and all(
        any((folder / part).glob("*.safetensors")) for part in WEIGHTS
    )


def _weights(name: str, files: list[str]) -> list[str]:
    """Those of a repository's files that hold the parts' weights, in one variant each."""
    chosen = []
    for part in WEIGHTS:
        names = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        try:
            variant = variant_of(names)
        except LookupError:
            raise InputError(
                f"{name} has no safetensors weights in {part}/ on the hub, found {', '.join(names) or 'nothing'}: "
                "expected a repository that has, as other kinds can run code when opened"
            ) from None
        matches = {n: WEIGHTS_FILE.fullmatch(n) for n in names}
        chosen += [f"{part}/{n}" for n, match in matches.items() if match and match[1] == variant]
    return chosen


def patience(name: str) -> float:
    """How long to wait for the hub's first answer, in seconds. Stable Diffusion is what `--backbone auto` asks for."""
    network = name != STABLE_DIFFUSION or getproxies().keys() & {"http", "https", "all"}
    return PATIENCE_WITH_NETWORK if network else PATIENCE


def _ask(name: str) -> huggingface_hub.ModelInfo | str:
    """What the hub says of `name`, or why it does not answer.

    Asked in a thread, as neither a name server nor a proxy that keeps silent obeys the client's timeout.
    """
    seconds = patience(name)
    answers: list[huggingface_hub.ModelInfo | str] = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        try:
            answers.append(huggingface_hub.HfApi().model_info(name, timeout=seconds))
        except Exception as error:
            answers.append(type(error).__name__)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[-1]
