"""ControlNet over a frozen natural-image backbone, for segmentation of scarce FIB-SEM data."""

__version__ = "0.1.0"
