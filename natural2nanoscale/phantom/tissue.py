"""The phantom's anatomy: a layer of cells under a flat surface, ragged below; planes are cut and painted.

Lengths are in units of 1/128 of the image height in all three directions; arrays of coordinates are z, y, x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from natural2nanoscale.phantom import textures
from natural2nanoscale.phantom.textures import Greys, Organelles

BACKGROUND, CYTOPLASM, NUCLEUS = 0, 1, 2


@dataclass(frozen=True)
class Anatomy:
    """Geometry in units."""

    thickness: float = 1.5  # of one slice
    surface: float = 19.0  # depth of the flat upper membrane
    bottom: float = 103.0  # mean depth of the ragged lower edge
    bottom_swing: float = 5.0
    ragged: float = 4.5  # reach of overhangs; droplets fall further
    cell_pitch: tuple[float, float] = (66.0, 70.0)  # z, x: mean distance of cells
    cell_jitter: float = 0.13  # of the pitch
    radii: tuple[tuple[float, float], ...] = ((18.5, 24.5), (19.0, 25.0), (21.5, 31.5))  # of nuclei: z, y, x
    wobble: float = 0.14  # of the nuclear radius
    notched: float = 0.35  # share of nuclei with an indentation


# name: widths (z, y, x) in units of the random fields; each is drawn once for the whole volume
FIELDS = {
    "slow": (22, 30, 22),  # leans cell walls, bends surface and lower edge
    "drift": (22, 22, 22),  # the same, unrelated
    "wobble": (9, 9, 9),  # outline of nuclei
    "cleft": (9, 8, 7),  # where neighbours part
    "fringe": (2.6, 2.4, 1.5),  # teeth of the lower edge and of clefts
    "slit": (5, 1.3, 6),  # gaps under the surface
    "cistern": (4, 2.6, 3.2),  # endoplasmic reticulum
    "clump": (2.2, 1.6, 1.7),  # chromatin; droplets below the lower edge
    "mottle": (4.5, 4, 4),
    "grain": (1.6, 1.1, 1.1),
}


class Cells(NamedTuple):
    """One row per cell."""

    site: np.ndarray  # (N,2) z, x: the cell's territory is what lies nearest
    centre: np.ndarray  # (N,3) of the nucleus
    radii: np.ndarray  # (N,3) of the nucleus
    tilt: np.ndarray  # (N,) of the nucleus in the image plane, radians
    notch: np.ndarray  # (N,4) centre and radius of a ball taken off the nucleus (radius 0: none)
    nucleoli: np.ndarray  # (N,2,4) centres and radii (0: none)
    grey: np.ndarray  # (N,2) offsets of cytoplasm and nucleus
    clumping: np.ndarray  # (N,) more or less chromatin


class Plane(NamedTuple):
    """One plane through the cells, every array (H,W); distances in units, positive inside."""

    tissue: np.ndarray  # bool
    owner: np.ndarray  # row in Cells
    wall: np.ndarray  # to the nearest other cell's territory, less the cleft there
    inner: np.ndarray  # to the nuclear envelope
    below_surface: np.ndarray
    position: tuple[np.ndarray, np.ndarray, np.ndarray]  # z, y, x in the bent coordinates of Cells


def grow_cells(rng: np.random.Generator, extent: tuple[float, float, float], anatomy: Anatomy, greys: Greys) -> Cells:
    """Cells on a jittered grid that reaches past a volume of this extent (z,y,x): its border cuts some."""
    pitch = np.array(anatomy.cell_pitch)
    columns = np.arange(-1, extent[2] / pitch[1] + 1)
    rows = np.arange(-2, extent[0] / pitch[0] + 2)
    phase = (rng.uniform() + 0.618 * columns) % 1  # out of step: no plane cuts all nuclei or none
    z, x = np.broadcast_arrays((rows[:, None] + phase) * pitch[0], (columns + rng.uniform()) * pitch[1])
    site = np.stack([z.ravel(), x.ravel()], 1)
    count = len(site)
    site += rng.uniform(-1, 1, (count, 2)) * anatomy.cell_jitter * pitch
    low, high = np.array(anatomy.radii).T
    radii = rng.uniform(low, high, (count, 3))
    middle = (anatomy.surface + anatomy.bottom) / 2 - 3
    centre = np.stack([site[:, 0], rng.uniform(middle - 7, middle + 7, count), site[:, 1]], 1)

    def direction(*shape: int) -> np.ndarray:
        vector = rng.standard_normal((*shape, 3)) * (0.5, 1, 1)
        return vector / np.linalg.norm(vector, axis=-1, keepdims=True)

    notch_radius = np.where(rng.uniform(size=count) < anatomy.notched, rng.uniform(7, 11, count), 0)
    nucleoli = centre[:, None] + direction(count, 2) * rng.uniform(0.1, 0.55, (count, 2, 1)) * radii[:, None]
    nucleolus_radius = rng.uniform(3.5, 7.5, (count, 2)) * (rng.uniform(size=(count, 2)) < (1, 0.5))
    shared = rng.normal(0, greys.cell_spread, count)
    return Cells(
        site=site,
        centre=centre,
        radii=radii,
        tilt=rng.uniform(-0.6, 0.6, count),
        notch=np.concatenate([centre + direction(count) * radii * 1.05, notch_radius[:, None]], 1),
        nucleoli=np.concatenate([nucleoli, nucleolus_radius[..., None]], 2),
        grey=np.stack([shared, shared + rng.normal(0, greys.nucleus_spread, count)], 1),
        clumping=rng.normal(0, 0.2, count),
    )


def distance(position: tuple[np.ndarray, ...], centre: np.ndarray) -> np.ndarray:
    """(H,W) Euclidean distance of every pixel to its own centre (H,W,3 or more)."""
    return np.sqrt(sum((p - centre[..., i]) ** 2 for i, p in enumerate(position)))


def cut(z: float, height: int, width: int, cells: Cells, fields: dict[str, np.ndarray], anatomy: Anatomy) -> Plane:
    """The plane at depth z, sampled at height x width pixels; fields are (H,W)."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (128 / height))[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) * (128 / height))[None, :]
    slow, fringe, wobble = fields["slow"], fields["fringe"], fields["wobble"]

    # whose territory, and how far to its wall: a Voronoi diagram in bent coordinates
    position = (z + 6 * fields["drift"], y, x + 7 * slow + 2.5 * wobble)
    near = np.flatnonzero(np.abs(cells.site[:, 0] - z) < 1.8 * anatomy.cell_pitch[0])  # none beyond matters
    site_z, site_x = cells.site[near].T.astype(np.float32)[..., None, None]
    squares = (position[0] - site_z) ** 2 + (position[2] - site_x) ** 2
    first, nearest = squares.argmin(0), squares.min(0)
    np.put_along_axis(squares, first[None], np.inf, 0)
    owner, other = near[first], near[squares.argmin(0)]
    apart = np.hypot(*np.moveaxis(cells.site[owner] - cells.site[other], -1, 0))
    wall = (squares.min(0) - nearest) / (2 * apart)

    below_surface = y - anatomy.surface - 0.6 * slow
    above_bottom = anatomy.bottom + anatomy.bottom_swing * (fields["drift"] + 0.4 * slow) - y
    gap = np.maximum(3.2 * (fields["cleft"] - 0.75) + 2.2 * np.exp(-np.maximum(below_surface, 0) / 7), 0)
    slit = fields["slit"] - 0.9 - 0.25 * np.abs(below_surface - 4.5 - slow)
    cleft = (wall + 0.9 * fringe + 0.5 < gap) | (slit > 0)
    droplet = (fields["clump"] - 0.6 + above_bottom / 9 > 0) & (above_bottom < 0)
    layer = (below_surface > 0) & ((above_bottom + anatomy.ragged * fringe > 0) | droplet)

    # the nucleus: an ellipsoid that wobbles, is notched, and keeps off the borders of its cell
    centre, radii, notch = cells.centre[owner], cells.radii[owner], cells.notch[owner]
    cos, sin = np.cos(cells.tilt[owner]), np.sin(cells.tilt[owner])
    dz, dy, dx = (p - centre[..., i] for i, p in enumerate(position))
    q = np.sqrt(
        (dz / radii[..., 0]) ** 2
        + ((cos * dy - sin * dx) / radii[..., 1]) ** 2
        + ((sin * dy + cos * dx) / radii[..., 2]) ** 2
    )
    ellipsoid = (1 + anatomy.wobble * wobble - q) * radii.mean(-1)  # about the distance to its surface
    off_notch = distance(position, notch) - notch[..., 3]
    limits = (ellipsoid, off_notch, wall - 3, below_surface - 3.5, above_bottom - 8)
    # a minimum without corners
    inner = -2.5 * np.log(sum(np.exp(-np.clip(limit, -60, 60) / 2.5) for limit in limits))
    return Plane(layer & ~cleft, owner, wall - gap, inner, below_surface, position)


def paint(
    plane: Plane, z: float, cells: Cells, fields: dict[str, np.ndarray], organelles: Organelles, greys: Greys
) -> tuple[np.ndarray, np.ndarray]:
    """Grey values float32 (H,W) before the detector, and the class of every pixel, uint8 (H,W)."""
    unit = len(plane.tissue) / 128  # pixels
    mottle, grain, owner, inner = fields["mottle"], fields["grain"], plane.owner, plane.inner
    mask = np.where(plane.tissue, np.where(inner > 0, NUCLEUS, CYTOPLASM), BACKGROUND).astype(np.uint8)

    # cytoplasm: granules, cisternae, organelles
    cytoplasm = greys.cytoplasm + cells.grey[owner, 0] + greys.granules * grain + greys.mottling * mottle
    cistern = textures.ridge(fields["cistern"], 0.16) * textures.soft_step(mottle + 0.2, 1.0)
    cytoplasm -= greys.cistern * cistern
    room = (mask == CYTOPLASM) & (inner < -1.5) & (plane.wall > 1)
    textures.paint_organelles(cytoplasm, room, organelles, z)

    # nucleoplasm: clumps of chromatin, denser at the envelope; nucleoli
    plain = greys.nucleus + cells.grey[owner, 1]
    density = fields["clump"] + 0.4 * mottle - 0.35 + cells.clumping[owner]
    density = density + 1.1 * np.exp(-np.maximum(inner, 0) / 2.5)
    nucleoplasm = plain - greys.chromatin * textures.soft_step(density, 1.2) + 4 * grain
    for which in range(cells.nucleoli.shape[1]):
        nucleolus = cells.nucleoli[owner, which]
        depth = nucleolus[..., 3] * (1 + 0.25 * mottle) - distance(plane.position, nucleolus)
        cover = np.where(nucleolus[..., 3] > 0, textures.soft_step(depth, 1.5), 0)
        nucleoplasm += cover * (plain - greys.nucleolus + 4 * grain - nucleoplasm)
    grey = cytoplasm + np.clip(inner * unit + 0.5, 0, 1) * (nucleoplasm - cytoplasm)
    grey -= greys.envelope * textures.ridge(inner - 0.6, 0.8) - 12 * textures.ridge(inner + 1.3, 0.9)

    # membranes: the flat surface, walls between cells, every face towards resin (droplets darken throughout)
    open_side = 1 - textures.blur(plane.tissue.astype(np.float32), 1.3 * unit)
    grey -= greys.membrane * (
        0.9 * textures.ridge(plane.below_surface - 0.6, 0.9)
        + textures.ridge(np.maximum(plane.wall, 0), 0.7)
        + 1.5 * np.maximum(open_side - 0.1, 0)
    )
    shade = np.where(plane.below_surface < 0, 22 * np.exp(np.minimum(plane.below_surface, 0) / 6), 0)
    resin = greys.resin + 3 * mottle - shade
    return np.where(plane.tissue, np.maximum(grey, 25), resin).astype(np.float32), mask
