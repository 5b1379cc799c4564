"""ControlNet over a frozen natural-image backbone, for segmentation of scarce FIB-SEM data."""

import os

__version__ = "0.1.0"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the hub's client is imported
