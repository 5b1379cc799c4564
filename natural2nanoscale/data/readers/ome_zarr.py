"""Zarr 2 and 3, and OME-Zarr."""

from __future__ import annotations

from pathlib import Path

from natural2nanoscale.data.readers.base import ReadOptions, nanometres, need, unreadable
from natural2nanoscale.data.readers.containers import ArraySource, axes_attribute, choose
from natural2nanoscale.errors import InputError


class ZarrSource(ArraySource):
    """An array of a Zarr group, version 2 or 3; of OME-Zarr the finest level unless the path names another."""

    def __init__(self, root: Path, inner: str, options: ReadOptions):
        zarr = need("zarr", root)
        try:
            node = zarr.open(str(root), mode="r", path=inner.strip("/") or None) if inner else zarr.open(root, mode="r")
            group = node if isinstance(node, zarr.Group) else _parent(zarr, root, inner)
            said = _multiscale(group)
            name = inner.strip("/")
            if isinstance(node, zarr.Group):
                arrays = [key for key, _array in node.arrays()]
                level = said["datasets"][0]["path"] if said else choose(root, arrays, separator="/")
                node, name = node[level], f"{name}/{level}".strip("/")
        except InputError:
            raise
        except Exception as error:  # zarr's own errors have no common base
            raise unreadable(root / inner.strip("/"), error) from error
        self.array = node
        names = getattr(node.metadata, "dimension_names", None) or ()
        if said and said.get("axes"):
            names = [axis["name"] if isinstance(axis, dict) else axis for axis in said["axes"]]
        axes = "".join(str(name)[:1].upper() for name in names) or axes_attribute(dict(node.attrs), node.ndim)
        super().__init__(root / name, node.shape, node.dtype, axes, options)
        self.pixel_size_nm = _scale(said, name) if said else None

    def open_array(self):
        return self.array


def _parent(zarr, root: Path, inner: str):
    """The group that an array lies in; None for an array that lies in none."""
    above = "/".join(inner.strip("/").split("/")[:-1])
    try:
        group = zarr.open(str(root), mode="r", path=above or None)
    except Exception:  # zarr's own errors have no common base; a lone array has no group
        return None
    return group if isinstance(group, zarr.Group) else None


def _multiscale(group) -> dict | None:
    """The first image of OME-Zarr's metadata, of version 0.4 or 0.5."""
    if group is None:
        return None
    attributes = dict(group.attrs)
    images = attributes.get("ome", attributes).get("multiscales") or [None]
    return images[0]


def _scale(said: dict, name: str) -> float | None:
    """Nanometres per pixel along the last axis, of a level of an OME-Zarr image."""
    axis = (said.get("axes") or [{}])[-1]
    unit = axis.get("unit", "") if isinstance(axis, dict) else ""
    level = next((level for level in said["datasets"] if level["path"] == name.split("/")[-1]), said["datasets"][0])
    factor = 1.0
    for step in [*level.get("coordinateTransformations", ()), *said.get("coordinateTransformations", ())]:
        factor *= float(step["scale"][-1]) if step.get("type") == "scale" else 1.0
    return nanometres(factor, unit)
