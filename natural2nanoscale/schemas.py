"""What every JSON file on disk looks like: one schema per file, as data; `records` reads by them.

A schema is a type (float takes whole numbers too, int takes no bool), None, a pattern that the whole text matches, a
`Between`, a list of one schema, a tuple of alternatives, or a dict: of the keys that an object has, "key?" where it may
lack it, others being left alone; {...: schema} of any keys; {} of none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMAT = 1  # raised when what an older version makes of a file would be wrong


@dataclass(frozen=True)
class Between:
    """A number of a kind, int or float, from `low` to `high`."""

    kind: type
    low: float
    high: float


NATURAL = Between(int, 0, 2**63 - 1)
LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,500}")  # no control characters: it is shown on terminals
HASH = re.compile(r"[0-9a-f]{16,64}")
PNG = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.png")  # a name, no path
WINDOW = (None, [Between(float, -1e12, 1e12)])
CLASSES = [{"id": Between(int, 0, 255), "name": LINE, "color": [Between(int, 0, 255)]}]
LEARNED = {"slices?": {...: str}, "fingerprints?": [str], "intensity_window?": WINDOW}
DATASET = {
    "name": LINE,
    "origin": LINE,
    "classes": CLASSES,
    "intensity_window?": WINDOW,
    "pixel_size_nm?": (None, Between(float, 1e-6, 1e9)),
    "split?": (None, {"rule?": (None, LINE), "source?": (None, {"part?": LINE, "fingerprint?": HASH})}),
    "digests?": (None, {...: HASH}),
    "learned?": (None, LEARNED),
    "transductive?": bool,
}
GENERATION = DATASET | {"per_mask?": NATURAL, "call?": (None, LINE, str)}
MANIFEST_ROW = {
    "file": PNG,
    "seed": NATURAL,
    "prompt": str,
    "source": str,
    "source_digest?": (None, HASH),
    "checkpoint": HASH,
    "sha256?": (None, HASH),
    "tint?": Between(float, 0.0, 256.0),
}
SOURCE_ROW = {"file": PNG, "source?": str, "source_digest?": (None, str)}  # what tells of leaks
SETTINGS = {
    "condition?": str,
    "processes?": Between(int, 1, 10_000),
    "finetune_after?": (None, NATURAL),
    "seed?": NATURAL,
    "seeds?": Between(int, 1, 10_000),
    "adapt?": NATURAL,
    "adapt_part?": re.compile("all|decoder|attention"),
}
CONFIG = {
    "kind?": LINE,
    "settings?": SETTINGS,
    "data?": {...: str},
    "slices?": {...: {...: str}},
    "learned?": LEARNED,
    "classes?": CLASSES,
    "backbone?": (str, {"name": str, "weights": HASH, "tokenizer?": (None, str)}),
    "hub_revision?": (None, LINE),
    "arguments?": dict,
    "environments?": [dict],
}
CONTROLNET_CONFIG = CONFIG | {  # of a run that slices are drawn by
    "settings": SETTINGS,
    "classes": CLASSES,
    "backbone": {"name": str, "weights": HASH, "tokenizer?": (None, str)},
}
BEST = {"step": NATURAL, "val_loss": float, "val_miou": (None, float)}
STATE = {"step": NATURAL, "state": {"best?": (float, {}, BEST)}}
UNET = {
    "width": Between(int, 1, 4096),
    "depth": Between(int, 1, 10),
    "classes": CLASSES,
    "intensity_window": WINDOW,
    "precision?": re.compile("float32|bfloat16"),
    "pixel_size_nm?": (None, Between(float, 1e-6, 1e9)),
    "trained": {"seed?": NATURAL, "steps?": NATURAL, "best?": ({}, BEST)},
}
CURVES = ("loss", "validation_loss", "mask_agreement", "val_loss", "val_miou")
LOG_ROW = {"step?": NATURAL, "seconds?": float} | {f"{name}?": (None, float) for name in CURVES}
SCORES = [(None, float)]  # per class
RESULT_ROW = {  # a U-Net of a study
    **{name: LINE for name in ("experiment", "condition", "split", "budget", "precision")},
    **{name: NATURAL for name in ("slices", "size", "redraw", "seed", "val_slices", "steps")},
    **{name: float for name in ("ratio", "miou", "validation", "seconds")},
    "unconverged": bool,
    "curve": [[float]],
    "iou": SCORES,
    "synthetic_iou?": SCORES,
    "confusion": [[NATURAL]],
    "images": [[[NATURAL]]],
    "test?": LINE,
    "pool?": (None, NATURAL),
}
SEGMENT_ROW = {"image": str, "file": [NATURAL], "pixels": [NATURAL], "clipped": NATURAL, "sha256?": HASH}
HASHES = {...: HASH}
RECOMMENDED = {
    "recommended": {
        "learning_rate?": Between(float, 1e-12, 1.0),
        "crop?": [Between(int, 1, 100_000)],
        "adapt_learning_rate?": Between(float, 1e-12, 1.0),
        "max_weight?": Between(float, 1.0, 1e6),
        "strength?": Between(float, 0.0, 100.0),
        "start?": Between(float, 0.0, 1.0),
        "conditioning_embedding_out_channels?": [Between(int, 1, 100_000)],
    }
}
COUNT, WIDTH = Between(int, 0, 100), Between(int, 1, 1_000_000)
PART = {  # config.json of a model's part: what would take for ever to build
    "num_hidden_layers?": COUNT,
    "layers_per_block?": (None, COUNT, [COUNT]),
    "transformer_layers_per_block?": (None, COUNT, [COUNT]),
    "block_out_channels?": (None, [WIDTH]),
    **{f"{name}?": (None, WIDTH) for name in ("vocab_size", "hidden_size", "intermediate_size", "projection_dim")},
    "max_position_embeddings?": (None, WIDTH),
}
DIFFUSERS_UNET = {"in_channels?": (None, int), "cross_attention_dim?": (None, int, [int])}
SECONDS = {...: float}
MODE = re.compile("joint|pretrain-finetune")
CANDIDATE = (
    {"strength": None, "start": None, "ratio": Between(float, 0.0, 0.0), "mode": MODE},  # real slices alone
    {
        "strength": Between(float, 0.0, 100.0),
        "start": Between(float, 0.001, 1.0),
        "ratio": Between(float, 1e-6, 1e6),
        "mode": MODE,
    },
)
CANDIDATE_ROW = tuple(one | {"seed": NATURAL, "validation": float} for one in CANDIDATE)
CALIBRATION = {
    "controlnet": HASH,
    "data": {"train": HASH, "val": HASH},
    "real": float,  # validation mIoU
    "chosen": float,
    "choice": CANDIDATE,
}
PILOT = {"trainings": [{"steps": NATURAL, "validation": float, "curve": [[float]]}]}
