"""Backbones by hub id: the local cache first, then the network, else an error that says how to bring the weights."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from natural2nanoscale.diffusion.parts import choose_weights
from natural2nanoscale.diffusion.stable_diffusion import STABLE_DIFFUSION, refuse_other_folder
from natural2nanoscale.errors import InputError

WEIGHTS = ("vae", "unet", "text_encoder")  # the parts that have some
MODEL_PARTS = (*WEIGHTS, "tokenizer", "scheduler")
# Seconds to wait for the hub's first answer. A closed network fails at once; one that keeps silent is waited for: long
# by those who named another model or have a proxy, who have a network; not so by a first start on an offline machine.
PATIENCE, PATIENCE_WITH_NETWORK = 1.5, 10.0


def from_hub(choice: str) -> Path:
    """The folder of a hub id, "name" or "name@revision", from the cache or else downloaded, configs first: what they
    show to be another model is refused before its weights are fetched. It is called after the revision that it holds.
    Raises InputError where it is to be had neither way."""
    name, _, revision = choice.partition("@")
    pinned = {"revision": revision or None}
    neither = InputError(
        f"--backbone {choice} is neither a folder, nor a .safetensors file, nor a hub id: check the path, or pass "
        "--backbone embedded for the small backbone of this package"
    )
    if name.endswith((".safetensors", ".ckpt", ".pth", ".pt", ".bin")):
        raise neither
    try:
        folder = cached(name, "unet/config.json", **pinned)
        if folder and is_complete(folder):
            return folder
        answer = ask(name, **pinned)
        configs = huggingface_hub.snapshot_download(name, allow_patterns=["*/config.json"], **pinned)
        refuse_other_folder(Path(configs))
        patterns = [f"{part}/*.{kind}" for part in MODEL_PARTS for kind in ("json", "txt")]
        patterns += weights_of(name, [sibling.rfilename for sibling in answer.siblings or ()])
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **pinned))
    except HFValidationError:
        raise neither from None
    except InputError:
        raise
    except Exception as error:  # the hub client raises many kinds; each of them means: not to be had now
        reason = str(error) if isinstance(error, Silence) else type(error).__name__
    include = f"--revision {revision} " * bool(revision)
    include += " ".join(f"--include '{pattern}'" for pattern in ("*/*.json", "*/*.txt", "*model.safetensors"))
    raise InputError(
        f"backbone {choice} is not in the local cache and the hub cannot be asked for it ({reason}): on a machine with "
        f"network run `hf download {name} {include} --exclude 'safety_checker/*' --local-dir weights`, copy the "
        "folder `weights` here and pass --backbone weights; "
        "or pass --backbone embedded for the small backbone of this package"
    )


def revision_of(folder: Path) -> str | None:
    """The commit of the hub that a folder of its cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def cached(name: str, file: str, revision: str | None = None) -> Path | None:
    """The cached folder of a hub id if it holds `file`; no network is asked."""
    found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
    return Path(found).parents[file.count("/")] if isinstance(found, str) else None


def is_complete(folder: Path) -> bool:
    """Whether all parts are there; an interrupted download leaves some out."""
    return all((folder / part).is_dir() for part in MODEL_PARTS) and all(
        any((folder / part).glob("*.safetensors")) for part in WEIGHTS
    )


def weights_of(name: str, files: list[str]) -> list[str]:
    """Those of a repository's files that hold the parts' weights, in one variant each."""
    found = []
    for part in WEIGHTS:
        names = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        chosen = choose_weights(names)[1]
        if not chosen:
            raise InputError(
                f"{name} has no safetensors weights in {part}/ on the hub, found {', '.join(names) or 'nothing'}: "
                "expected a repository that has, as other kinds can run code when opened"
            )
        found += [f"{part}/{file}" for file in chosen]
    return found


def patience(name: str) -> float:
    """How long to wait for the hub's first answer, in seconds. Stable Diffusion is what `--backbone auto` asks for."""
    network = name != STABLE_DIFFUSION or getproxies().keys() & {"http", "https", "all"}
    return PATIENCE_WITH_NETWORK if network else PATIENCE


class Silence(Exception):
    """The hub does not answer in time."""


def ask(name: str, revision: str | None) -> huggingface_hub.ModelInfo:
    """What the hub says of `name`, or its client's error, or Silence. Asked in a thread, as neither a name server nor a
    proxy that keeps silent obeys the client's timeout."""
    seconds, answers = patience(name), []

    def wait() -> None:
        try:
            answers.append(huggingface_hub.HfApi().model_info(name, timeout=seconds, revision=revision))
        except Exception as error:
            answers.append(error)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise Silence(f"no answer within {seconds:g} s")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]
