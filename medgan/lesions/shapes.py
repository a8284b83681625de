"""Lesions as objects: found in masks, deformed, and the soft border they are blended with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.scans import Scan

#: Smaller components are annotation noise, not something to learn from or to copy, in voxels.
SMALLEST_VOXELS = 8
#: Voxels kept around a lesion, so that its surroundings are known.
MARGIN = 4
#: Tissue is compared after averaging over this much, in mm.
TISSUE_SCALE_MM = 3.0
#: Width of the blended rim outside a lesion, in working voxels.
RIM_VOXELS = 2.0
#: The same in radiographs and other thin places is never less than this many native voxels.
RIM_NATIVE = 2.0


@dataclass(frozen=True, eq=False)
class Lesion:
    """A real lesion, cut out with its surroundings.

    Args:
        case: The case's id.
        patient: Its patient.
        image: (C, x, y, z) network values, `MARGIN` voxels around the lesion where the image has them.
        labels: (x, y, z) label indices; other lesions in the box are 0.
        spacing_mm: (3,).
        corner: (3,) voxel of the case at which `labels` begins.
        centre: (3,) voxel position of its centroid in the case.
        surroundings: (C,) median network value of the tissue around it.
        band: Range of the tissue around it: central half of the smoothed network values of channel 0.
        planar: Whether it comes from a 2D image.
    """

    case: str
    patient: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing_mm: NDArray[np.float64]
    corner: NDArray[np.intp]
    centre: NDArray[np.float64]
    surroundings: NDArray[np.float32]
    band: tuple[float, float]
    planar: bool

    @property
    def size_mm(self) -> float:
        """Diameter of the ball (2D: disc) of the same volume (area)."""
        return equivalent_diameter(int((self.labels > 0).sum()), self.spacing_mm, self.planar)

    @property
    def extent_mm(self) -> float:
        """Largest in-plane edge of its bounding box."""
        box = ndimage.find_objects((self.labels > 0).astype(np.uint8))[0]
        return float(max((box[i].stop - box[i].start) * self.spacing_mm[i] for i in range(2)))

    def present(self) -> set[int]:
        """The label indices in it."""
        return {int(v) for v in np.unique(self.labels)} - {0}


def without_specks(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A lesion's labels without what bending or an edge of tissue cut off it in fewer than `SMALLEST_VOXELS` voxels.

    The largest part stays, however small it is.
    """
    parts, count = ndimage.label(labels > 0, ndimage.generate_binary_structure(labels.ndim, labels.ndim))
    if count < 2:
        return labels
    sizes = np.bincount(parts.ravel())[1:]
    kept = sizes >= min(SMALLEST_VOXELS, sizes.max())
    return np.where(np.concatenate([[False], kept])[parts], labels, 0).astype(np.uint8)


def equivalent_diameter(voxels: int, spacing_mm: NDArray[np.float64], planar: bool) -> float:
    """Diameter in mm of the ball (disc when `planar`) with the volume (area) of so many voxels."""
    if planar:
        return float(2 * np.sqrt(voxels * np.prod(spacing_mm[:2]) / np.pi))
    return float(2 * np.cbrt(voxels * np.prod(spacing_mm) * 3 / (4 * np.pi)))


def find_lesions(scan: Scan) -> list[Lesion]:
    """The connected lesions of a scan, largest first, those under `SMALLEST_VOXELS` left out."""
    parts, _ = ndimage.label(scan.labels > 0, ndimage.generate_binary_structure(3, 3))
    found = []
    for index, tight in enumerate(ndimage.find_objects(parts), start=1):
        box = tuple(slice(max(0, s.start - MARGIN), s.stop + MARGIN) for s in tight)
        own = parts[box] == index
        if own.sum() < SMALLEST_VOXELS:
            continue
        shell = ndimage.binary_dilation(own, iterations=3) & (parts[box] == 0)
        image = scan.image[(slice(None), *box)].copy()
        around = image[:, shell] if shell.any() else image.reshape(len(image), -1)
        free = (parts[box] == 0).astype(np.float32)
        # Averaged over the tissue alone: the lesion itself must not colour what is called its surroundings.
        sigma = tissue_sigma(scan)
        share = np.maximum(ndimage.gaussian_filter(free, sigma), 1e-3)
        smooth = ndimage.gaussian_filter(image[0] * free, sigma) / share
        low, high = np.percentile(smooth[shell], [25, 75]) if shell.any() else (float(around[0].min()),) * 2
        corner = np.array([s.start for s in box])
        centre = np.array(ndimage.center_of_mass(own)) + corner
        found.append(Lesion(scan.case.id, scan.case.patient, image, np.where(own, scan.labels[box], 0).astype(np.uint8),
                            scan.spacing_mm, corner, centre, np.median(around, axis=1),
                            (float(low), float(high)), scan.planar))
    return sorted(found, key=lambda lesion: -int((lesion.labels > 0).sum()))


def tissue_sigma(scan: Scan) -> NDArray[np.float64]:
    """(3,) widths in voxels of the Gaussian over which tissue is averaged before it is compared."""
    sigma = TISSUE_SCALE_MM / scan.spacing_mm / 2
    if scan.planar:
        sigma[2] = 0
    return np.asarray(sigma)


@dataclass(frozen=True, eq=False)
class Deformed:
    """A lesion after deformation, on the grid of the scan it goes to.

    Args:
        labels: (x, y, z) label indices.
        image: (C, x, y, z) the lesion's own values, moved along.
    """

    labels: NDArray[np.uint8]
    image: NDArray[np.float32]


def deform(lesion: Lesion, spacing_mm: NDArray[np.float64], rng: np.random.Generator, *,
           scale: float = 1.0, elastic: float = 0.12) -> Deformed:
    """Turns, flips, scales and bends a lesion, and samples it on a grid of another spacing.

    Args:
        lesion: What to deform.
        spacing_mm: (3,) grid of the result.
        rng: Draws the deformation.
        scale: Isotropic size factor.
        elastic: Amplitude of the smooth random displacement, as a share of half the lesion's extent.
    """
    extent = np.array(lesion.labels.shape) * lesion.spacing_mm * scale
    edge = extent.max() if lesion.planar else extent[:2].max()
    size_mm = np.array([edge, edge, extent[2]]) * 1.25
    shape = np.maximum(1, np.ceil(size_mm / spacing_mm)).astype(int)
    if lesion.planar:
        shape[2] = 1
    grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)],
                                indexing="ij"))
    # In-plane turns are free; out of plane a thick slice would show, so the axis only tips a little.
    tips = np.zeros(2) if lesion.planar else rng.normal(0, np.deg2rad(8), 2)
    turn = _rotation(rng.uniform(0, 2 * np.pi), *tips)
    flips = np.array([rng.choice([-1, 1]), 1, 1 if lesion.planar else rng.choice([-1, 1])])
    own_mm = lesion.extent_mm * scale
    bend = np.stack([smooth_field(tuple(shape), spacing_mm, 0.5 * own_mm, rng) * elastic * own_mm * 0.5
                     for _ in range(3)])
    if shape[2] == 1:
        bend[2] = 0
    source = np.einsum("ij,jxyz->ixyz", turn, grid + bend) * flips[:, None, None, None] / scale
    at = source / lesion.spacing_mm[:, None, None, None]
    at += (np.array(lesion.labels.shape)[:, None, None, None] - 1) / 2
    labels = np.zeros(tuple(shape), np.uint8)
    best = np.full(tuple(shape), 0.5, np.float32)
    inside = ndimage.map_coordinates((lesion.labels > 0).astype(np.float32), at, order=1, cval=0.0) > 0.5
    within = at[:, inside]
    chosen, best = labels[inside], best[inside]
    for value in sorted(lesion.present()):
        share = ndimage.map_coordinates((lesion.labels == value).astype(np.float32), within, order=1, cval=0.0)
        better = (share > best) | (chosen == 0)
        chosen[better], best[better] = value, share[better]
    labels[inside] = chosen
    image = np.stack([ndimage.map_coordinates(channel, at, order=1, mode="nearest") for channel in lesion.image])
    return Deformed(labels, image.astype(np.float32))


def soft_mask(labels: NDArray[np.uint8], spacing_mm: NDArray[np.float64], rim_mm: float) -> NDArray[np.float32]:
    """1 in the lesion, falling smoothly to exactly 0 at `rim_mm` outside it; where it is above 0 may change."""
    if not labels.any():
        return np.zeros(labels.shape, np.float32)
    distance = ndimage.distance_transform_edt(labels == 0, sampling=spacing_mm[: labels.ndim])
    linear = np.clip(1 - distance / rim_mm, 0, 1)
    return np.asarray(linear * linear * (3 - 2 * linear), np.float32)


def signed_distance(labels: NDArray[np.uint8], scale: float) -> NDArray[np.float32]:
    """Distance to the lesion's border in voxels over `scale`, positive inside, clipped to [-1, 1]."""
    if not labels.any():
        return np.full(labels.shape, -1.0, np.float32)
    inside = ndimage.distance_transform_edt(labels > 0)
    outside = ndimage.distance_transform_edt(labels == 0)
    return np.asarray(np.clip((inside - outside) / scale, -1, 1), np.float32)


def _rotation(angle: float, tip_x: float, tip_y: float) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("zxy", [angle, tip_x, tip_y]).as_matrix())


def smooth_field(shape: tuple[int, ...], spacing_mm: NDArray[np.float64], scale_mm: float,
                  rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian noise smoothed at `scale_mm`, of unit standard deviation."""
    # Drawn on a coarse grid: a smooth field holds no detail that the fine one could add.
    coarse = [max(2, int(np.ceil(n * s / max(scale_mm, s) * 1.5)) + 3) if n > 1 else 1
              for n, s in zip(shape, spacing_mm, strict=True)]
    field = rng.standard_normal(coarse)
    # One axis after the other: the spline is a product of three, and so is the grid.
    smooth = field
    for axis, (n, c) in enumerate(zip(shape, coarse, strict=True)):
        along = np.linspace(0.5, c - 1.5, n) if n > 1 else np.zeros(1)
        spline = np.stack([ndimage.map_coordinates(unit, along[None], order=3, mode="nearest") for unit in np.eye(c)])
        smooth = np.moveaxis(np.tensordot(spline, smooth, (0, axis)), 0, axis)
    return np.asarray(smooth / max(1e-6, float(smooth.std())))
