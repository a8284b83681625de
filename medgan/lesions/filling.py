"""Fillers of voids: smooth with borrowed texture, and from a trained generator.

Each is a `medgan.lesions.removal.Filler`. What may not be gone by is `scan.labels > 0`: the voids themselves and
other lesions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg, splu

from medgan.learning.checkpoints import Run
from medgan.lesions.crops import Grid, encode, working_spacing
from medgan.lesions.gan import BATCH, COHERENCE_MM, Gan
from medgan.lesions.removal import Void
from medgan.lesions.scans import Scan
from medgan.lesions.shapes import RIM_VOXELS, soft_mask

#: Up to so many voxels a void is solved at once; larger ones start from a coarser grid.
DIRECT = 8_000
#: Weight of a membrane's stiffness beside a plate's.
STIFFNESS = 1e-3
#: The membrane is solved to this relative residual.
TOLERANCE = 1e-4
#: Texture is what is finer than this many voxels in-plane.
TEXTURE_VOXELS = 1.5
#: Places at which texture is looked for, and how far from the void, in mm besides its own extent.
DONORS, DONOR_MM = 96, 30.0
#: Up to the first depth in a void, in in-plane voxels, its surroundings say more than any other place; from the second
#: on they say nothing of what is fine.
SHALLOW, DEEP = 2.0, 5.0
#: Texture is lent with at most this gain.
LARGEST_GAIN = 1.5


def smooth(values: NDArray[np.float32], unknown: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
           ) -> NDArray[np.float32]:
    """Fills unknown voxels by a thin plate through the known ones: least bent in the mean (biharmonic equation).

    Args:
        values: (C, x, y, z); what is unknown is not looked at.
        unknown: (x, y, z); at least one voxel is known.
        spacing_mm: (3,): neighbours that lie closer count more.

    Returns:
        (C, x, y, z), equal to `values` where known.
    """
    count = int(unknown.sum())
    if count > DIRECT:
        return _coarse_first(values, unknown, spacing_mm)
    # Only voxels within two steps of the unknown ones enter.
    near = ndimage.binary_dilation(unknown, iterations=2)
    laplacian = _laplacian(near, spacing_mm)
    bending = (laplacian.T @ laplacian).tocsr()
    hidden = np.flatnonzero(unknown[near])
    # A breath of membrane makes the plate stiff where nothing else holds it, as around a single known voxel.
    inner = (bending[hidden] + STIFFNESS * laplacian[hidden]).tocsc()
    solve = splu(inner[:, hidden], permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}, diag_pivot_thresh=0.1)
    filled = values.copy()
    for channel, result in zip(values, filled, strict=True):
        level = float(channel[near & ~unknown].mean())
        known = np.where(unknown, 0, channel - level)[near].astype(np.float64)
        result[unknown] = level + solve.solve(-(inner @ known))
    return filled


def _laplacian(near: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> sparse.csr_array:
    """The graph Laplacian of a set of voxels; neighbours count by the inverse square of their distance."""
    number = np.full(near.shape, -1)
    number[near] = np.arange(int(near.sum()))
    rows, columns, entries = [], [], []
    for axis, step in enumerate(spacing_mm):
        if near.shape[axis] == 1:
            continue
        first, second = np.take(number, range(near.shape[axis] - 1), axis), np.take(number, range(1, near.shape[axis]),
                                                                                    axis)
        both = (first >= 0) & (second >= 0)
        rows += [first[both], second[both]]
        columns += [second[both], first[both]]
        entries += [np.full(2 * int(both.sum()), float((spacing_mm.min() / step) ** 2))]
    size = int(near.sum())
    joined = sparse.coo_array((np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), (size, size))
    return sparse.csr_array(sparse.diags_array(joined.sum(axis=1)) - joined)


def _coarse_first(values: NDArray[np.float32], unknown: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
                  ) -> NDArray[np.float32]:
    """A large void: bent on a grid half as fine, and its edge made to fit by a membrane."""
    halves = [2 if n > 3 and step < 2 * spacing_mm.min() else 1
              for n, step in zip(unknown.shape, spacing_mm, strict=True)]
    pads = [(0, -n % half) for n, half in zip(unknown.shape, halves, strict=True)]
    cells = [m for (_, more), n, half in zip(pads, unknown.shape, halves, strict=True)
             for m in ((n + more) // half, half)]

    def pooled(array: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.pad(array, pads, mode="edge").reshape(cells).mean(axis=(1, 3, 5), dtype=np.float64))

    share = pooled(~unknown)
    coarse = np.stack([pooled(np.where(unknown, 0, channel)) / np.maximum(share, 1e-6) for channel in values])
    # A cell that is known in part has its mean in the wrong place.
    doubtful = share < 1 if (share == 1).any() else share == 0
    bent = smooth(coarse.astype(np.float32), doubtful, spacing_mm * halves) if doubtful.any() else coarse
    at = np.meshgrid(*[(np.arange(n) + 0.5) / half - 0.5 for n, half in zip(unknown.shape, halves, strict=True)],
                     indexing="ij")
    lifted = np.stack([ndimage.map_coordinates(channel, at, order=1, mode="nearest") for channel in bent])
    return values + np.where(unknown, lifted - values + membrane(values - lifted, unknown, spacing_mm), 0).astype(
        np.float32)


def membrane(values: NDArray[np.float32], unknown: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
             ) -> NDArray[np.float32]:
    """Fills unknown voxels by a membrane stretched over the known ones (Laplace's equation); as `smooth`."""
    near = ndimage.binary_dilation(unknown)
    laplacian = _laplacian(near, spacing_mm)
    hidden = np.flatnonzero(unknown[near])
    inner = laplacian[hidden]
    matrix = inner[:, hidden]
    scale = sparse.diags_array(1 / matrix.diagonal())
    filled = values.copy()
    for channel, result in zip(values, filled, strict=True):
        level = float(channel[near & ~unknown].mean())
        known = np.where(unknown, 0, channel - level)[near].astype(np.float64)
        result[unknown] = level + cg(matrix, -(inner @ known), rtol=TOLERANCE, M=scale)[0]
    return filled


def _base(scan: Scan, image: NDArray[np.float32], void: Void) -> NDArray[np.float32]:
    """(C, x, y, z) of the void's box: it and other unwanted parts filled smoothly."""
    return smooth(image[(slice(None), *void.box)], void.avoid, scan.spacing_mm)


class Smooth:
    """No training: bent through what is around, with texture from alike tissue of the scan where it is deep.

    Args:
        texture: 0, smooth, to 1, as textured as the surroundings.
    """

    name = "smooth"

    def __init__(self, texture: float = 1.0) -> None:
        self.texture = texture

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """As `Filler.fill`."""
        base = _base(scan, image, void)
        return base + np.float32(self.texture) * lend(scan, image, void, base, seed) if self.texture else base


class GanFiller(Gan):
    """The lesion-free side of a lesion run's generator, slice by slice with coherent noise in 2D, at once in 3D.

    The change against a smooth fill is what is brought from the working grid to the scan's, so that nothing of what
    lay in the void gets through; detail that the working grid lacks is borrowed like `Smooth`'s.

    Args:
        run: A finished run of the task lesion.
        device: `auto`, `cpu` or `cuda`.
        texture: As for `Smooth`.
    """

    name = "gan"

    def __init__(self, run: Run, device: str = "auto", texture: float = 1.0) -> None:
        super().__init__(run, device)
        self.finest_mm = float(run.interface["spacing_mm"])
        self.texture = texture

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """As `Filler.fill`."""
        base = _base(scan, image, void)
        calm = image.copy()
        calm[(slice(None), *void.box)] = base
        inside = np.argwhere(void.hard)
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        edges = (high - low) * scan.spacing_mm
        dims = self.config.data.dims
        spacing = working_spacing(float(edges[:dims].max()), max(self.finest_mm, float(scan.spacing_mm[:2].min())),
                                  self.config.data.crop)
        step = spacing / scan.spacing_mm
        corner = np.array([s.start for s in void.box])
        middle = corner + (low + high - 1) / 2
        if dims == 3:
            grid = Grid(middle, step, (self.config.data.crop,) * 3)
            generator = torch.Generator().manual_seed(seed)
            noise = [torch.randn(1, *shape, generator=generator)
                     for shape in self.generator.noise_shapes(grid.shape)]
            change = self._change(calm, void, [grid], noise, spacing)[0]
            wanted = base + np.stack([grid.back(channel, void.box) for channel in change])
        else:
            wanted = base + self._slices(scan, calm, void, middle, step, spacing, seed)
        return wanted + np.float32(self.texture) * lend(scan, image, void, wanted, seed) if self.texture else wanted

    def _slices(self, scan: Scan, image: NDArray[np.float32], void: Void, middle: NDArray[np.float64],
                step: NDArray[np.float64], spacing: float, seed: int) -> NDArray[np.float32]:
        """(C, x, y, z) change in the box, drawn slice by slice; rim slices go on with the nearest one's."""
        size = self.config.data.crop
        inside = np.flatnonzero(void.hard.any(axis=(0, 1)))
        grids = [Grid(np.array([middle[0], middle[1], void.box[2].start + k]), np.array([step[0], step[1], 1.0]),
                      (size, size, 1)) for k in inside]
        noise = self._noise(len(grids), COHERENCE_MM / float(scan.spacing_mm[2]), seed)
        drawn: list[NDArray[np.float32]] = []
        for first in range(0, len(grids), BATCH):
            part = slice(first, first + BATCH)
            made = self._change(image, void, grids[part], [level[part] for level in noise], spacing)
            for k, grid, change in zip(inside[part], grids[part], made, strict=True):
                box = (*void.box[:2], slice(void.box[2].start + int(k), void.box[2].start + int(k) + 1))
                drawn.append(np.stack([grid.back(channel[..., None], box)[..., 0] for channel in change]))
        return np.stack([drawn[int(np.abs(inside - k).argmin())] for k in range(void.hard.shape[2])], axis=-1)

    def _change(self, image: NDArray[np.float32], void: Void, grids: list[Grid], noise: list[torch.Tensor],
                spacing: float) -> NDArray[np.float32]:
        """(B, C, ...) drawing less smooth fill on each grid."""
        rows = []
        for grid in grids:
            crop = np.stack([grid.cut(channel, order=1) for channel in image])
            inner = Grid(grid.centre - [s.start for s in void.box] + 1, grid.step, grid.shape)
            hard = inner.cut(np.pad(void.hard, 1).astype(np.float32), order=1) >= 0.5
            if grid.shape[2] == 1:
                crop, hard = crop[..., 0], hard[..., 0]
            told = encode(np.zeros(hard.shape, np.uint8), self.labels, spacing)
            soft = soft_mask(hard.astype(np.uint8), np.ones(hard.ndim), RIM_VOXELS)
            rows.append({"image": crop.astype(np.float32), "void": soft[None], "labels": told.labels,
                         "distance": told.distance, "condition": told.condition})
        before, unknown = (np.stack([row[name] for row in rows]) for name in ("image", "void"))
        return np.asarray(np.where(unknown > 0, self._paint(rows, noise) - before, 0), np.float32)


def lend(scan: Scan, image: NDArray[np.float32], void: Void, base: NDArray[np.float32], seed: int
         ) -> NDArray[np.float32]:
    """Fine texture for the depth of a fill: that of the place of the scan whose coarse values are most like it.

    As much is lent as the fill lacks against the tissue around it; all channels borrow from the same place. Near the
    edge nothing is lent: there the surroundings say better what is fine.

    Args:
        scan: What is unwanted in it is no donor.
        image: (C, X, Y, Z) its values at present.
        void: Where.
        base: (C, x, y, z) the fill, on the void's box.
        seed: Draws the places that are tried.

    Returns:
        (C, x, y, z) to be added; 0 where there is no place to borrow from.
    """
    finest = float(scan.spacing_mm[:2].min())
    depth = ndimage.distance_transform_edt(np.pad(void.hard, 1, mode="edge"), sampling=scan.spacing_mm / finest)
    ramp = np.clip((depth[1:-1, 1:-1, 1:-1] - SHALLOW) / (DEEP - SHALLOW), 0, 1).astype(np.float32)
    lent = np.zeros_like(base)
    if not ramp.any():
        return lent
    rng = np.random.default_rng([seed, 23])
    spacing, size = scan.spacing_mm, np.array(image.shape[1:])
    sigma = TEXTURE_VOXELS * finest / spacing
    corner = np.array([s.start for s in void.box])
    inside = np.argwhere(ramp > 0)
    low, high = corner + inside.min(axis=0), corner + inside.max(axis=0) + 1
    reach = np.ceil((DONOR_MM + (high - low) * spacing) / spacing).astype(int)
    if scan.planar:
        sigma[2], reach[2] = 0, 0
    # Where slices are thick, the void's box reaches further than that.
    start = np.maximum(0, np.minimum(low - reach, corner))
    stop = np.minimum(size, np.maximum(high + reach, corner + void.hard.shape))
    region = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    free = scan.labels[region] == 0
    here = tuple(slice(int(a), int(b)) for a, b in zip(corner - start, corner - start + void.hard.shape, strict=True))
    free[here] &= ~(void.avoid | (void.weight > 0))
    coarse, fine = _bands(image[(slice(None), *region)], free, sigma)
    own_coarse, own_fine = _bands(base, np.ones(void.hard.shape, bool), sigma)
    at = inside + corner - start
    most, best = np.inf, None
    wanted = own_coarse[:, ramp > 0]
    for _ in range(DONORS):
        shift = rng.integers(start - low, stop - high + 1)
        there = tuple((at + shift).T)
        missing = 1 - float(free[there].mean())
        misfit = float(np.square(coarse[(slice(None), *there)] - wanted).mean()) + missing
        if misfit < most:
            most, best = misfit, there
    shell = ndimage.binary_dilation(void.weight > 0, iterations=3) & (void.weight == 0) & ~void.avoid
    if best is None or not shell.any():
        return lent
    usable = free[best]
    for channel in range(len(base)):
        donor = np.where(usable, fine[channel][best], 0)
        power = float(np.square(donor[usable]).mean()) if usable.any() else 0.0
        around = float(np.square(fine[channel][here][shell]).mean())
        own = float(np.square(own_fine[channel][ramp > 0]).mean())
        gain = min(LARGEST_GAIN, np.sqrt(max(0.0, around - own) / power)) if power > 0 else 0.0
        lent[channel][ramp > 0] = gain * donor
    return np.asarray(lent * ramp, np.float32)


def _bands(values: NDArray[np.float32], free: NDArray[np.bool_], sigma: NDArray[np.float64]
           ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coarse and fine part of values (C, x, y, z), averaged over what is free alone."""
    share = np.maximum(ndimage.gaussian_filter(free.astype(np.float32), sigma), 1e-3)
    coarse = np.stack([ndimage.gaussian_filter(np.where(free, v, 0), sigma) / share for v in values])
    return coarse, np.where(free, values - coarse, 0)
