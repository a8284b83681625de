"""Where real lesions lie, as a smoothed density in body coordinates: the share of each axis of the tissue's box."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: Points along each axis on which the density is kept; it is far smoother than this grid.
GRID = 24
#: Kernel width for one lesion, as a share of the box's edge; n lesions allow n^(-1/7) of it and no less, or a few
#: that happen to lie close would be taken for all the places there are.
WIDTH = 0.25
#: Multiples of that least width that are tried.
WIDER = (1.0, 1.4, 2.0)
#: Share of the density that is even over the tissue: no place is impossible because few lesions were seen.
FLOOR = 0.05
#: Tissue whose mirror image overlaps it less than this (Dice) is not taken to be left-right symmetric.
SYMMETRIC = 0.9


@dataclass(frozen=True, eq=False)
class Places:
    """What one scan tells of places.

    Args:
        tissue: (g, g, g) share of tissue around each point of the body grid; g is 1 along a 2D image's third axis.
        centres: (n, 3) lesion centroids in body coordinates.
    """

    tissue: NDArray[np.float32]
    centres: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlaceDensity:
    """Where lesions lie in the body, left-right first.

    Args:
        grid: (g, g, g) density over that of even places, 1 in the mean over tissue; g is 1 along a 2D third axis.
        width: Kernel width, as a share of the box's edge.
        mirrored: Whether each lesion also counts on the other side.
        gain: Mean log density of held-out lesions over that of even places, in nats; None where none was held out.
    """

    grid: NDArray[np.float32]
    width: float
    mirrored: bool
    gain: float | None

    @classmethod
    def fit(cls, scans: Iterable[tuple[NDArray[np.bool_], NDArray[np.uint8]]]) -> PlaceDensity | None:
        """From (tissue, labels) of each training case; None where no lesion lies in any.

        Width and mirroring are those under which held-out cases' lesions (with one case: held-out lesions) are
        likeliest.
        """
        return cls.of([seen(tissue, labels) for tissue, labels in scans])

    @classmethod
    def of(cls, places: Sequence[Places]) -> PlaceDensity | None:
        """As `fit`, from what `seen` told of each case."""
        places = [place for place in places if len(place.centres)]
        if not places:
            return None
        tissue = np.mean([place.tissue for place in places], axis=0)
        groups = [place.centres for place in places]
        if len(groups) == 1:
            groups = [centre[None] for centre in groups[0]]
        centres = np.concatenate(groups)
        least = WIDTH * len(centres) ** (-1 / 7)
        if len(groups) == 1:
            return cls(_density(centres, least, False, tissue), least, False, None)
        sides = (False, True) if _symmetric(tissue) else (False,)
        best: tuple[float, float, bool] | None = None
        for mirrored in sides:
            for width in (least * times for times in WIDER):
                gain = _held_out(groups, width, mirrored, tissue)
                if best is None or gain > best[0]:
                    best = gain, width, mirrored
        assert best is not None
        gain, width, mirrored = best
        return cls(_density(centres, width, mirrored, tissue), width, mirrored, gain)

    def over(self, tissue: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(X, Y, Z) weights of places, 1 in the mean over the tissue and 0 outside it."""
        low, high = _box(tissue)
        x, y, z = (_between(b - a, n) for a, b, n in zip(low, high, self.grid.shape, strict=True))
        inner = np.einsum("ai,bj,ijk->abk", x, y, self.grid, optimize=True) @ z.T
        weights = np.zeros(tissue.shape, np.float32)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        weights[box] = inner * tissue[box]
        return np.asarray(weights / max(1e-12, float(weights.sum(dtype=np.float64)) / max(1, int(tissue.sum()))),
                          np.float32)


def seen(tissue: NDArray[np.bool_], labels: NDArray[np.uint8]) -> Places:
    """What a scan's tissue (X, Y, Z) and label indices tell; lesions outside the tissue's box count at its edge."""
    low, high = _box(tissue)
    planar = tissue.shape[2] == 1
    parts, count = ndimage.label(labels > 0, ndimage.generate_binary_structure(3, 3))
    centres = np.array(ndimage.center_of_mass(parts > 0, parts, range(1, count + 1))).reshape(-1, 3)
    body = np.clip((centres + 0.5 - low) / (high - low), 0, 1)
    cut = tissue[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return Places(_shrunk(cut, (GRID, GRID, 1 if planar else GRID)), body)


def _box(tissue: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and one past the last voxel of the tissue along each axis; the whole array where there is none."""
    ends = []
    for axis in range(3):
        along = np.flatnonzero(tissue.any(axis=tuple(i for i in range(3) if i != axis)))
        ends.append((along[0], along[-1] + 1) if len(along) else (0, tissue.shape[axis]))
    low, high = np.array(ends).T
    return low, high


def _shrunk(array: NDArray[np.bool_], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Means of an array over the cells of a coarser grid; cells thinner than a voxel take the nearest one."""
    out = array.astype(np.float32)
    for axis, cells in enumerate(shape):
        edges = np.linspace(0, out.shape[axis], cells + 1)
        first = np.minimum(np.floor(edges[:-1]).astype(int), out.shape[axis] - 1)
        last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
        out = np.stack([out.take(range(a, b), axis).mean(axis) for a, b in zip(first, last, strict=True)], axis)
    return out


@functools.lru_cache(maxsize=16)
def _between(voxels: int, points: int) -> NDArray[np.float32]:
    """(voxels, points) weights that interpolate linearly from cell middles to voxel middles."""
    at = np.clip((np.arange(voxels) + 0.5) / voxels * points - 0.5, 0, points - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(points))), np.float32)


def _symmetric(tissue: NDArray[np.float32]) -> bool:
    body = tissue > 0.5
    return bool(2 * (body & body[::-1]).sum() >= SYMMETRIC * 2 * body.sum())


def _density(centres: NDArray[np.float64], width: float, mirrored: bool, tissue: NDArray[np.float32]
             ) -> NDArray[np.float32]:
    """Sum of Gaussian kernels over the body grid, relative to even places, `FLOOR` of it even."""
    if mirrored:
        centres = np.concatenate([centres, centres * (-1, 1, 1) + (1, 0, 0)])
    lines = []
    for axis, points in enumerate(tissue.shape):
        middle = (np.arange(points) + 0.5) / points
        lines.append(np.exp(-0.5 * ((middle - centres[:, axis, None]) / width) ** 2))
    # Each kernel is one lesion: what of it would lie outside the tissue lies inside instead.
    kernels = np.einsum("ni,nj,nk->nijk", *lines)
    inside = np.maximum((kernels * tissue).sum(axis=(1, 2, 3)), 1e-9)
    even = max(1e-9, float(tissue.sum()))
    density = np.einsum("nijk,n->ijk", kernels, even / inside) / len(centres)
    return np.asarray((1 - FLOOR) * density + FLOOR, np.float32)


def _held_out(groups: Sequence[NDArray[np.float64]], width: float, mirrored: bool, tissue: NDArray[np.float32]
              ) -> float:
    """Mean log density of each group's lesions under the other groups', each group counting alike."""
    gains = []
    for number, group in enumerate(groups):
        others = np.concatenate([g for i, g in enumerate(groups) if i != number])
        density = _density(others, width, mirrored, tissue)
        cell = np.minimum((group * density.shape).astype(int), np.array(density.shape) - 1)
        gains.append(float(np.log(density[tuple(cell.T)]).mean()))
    return float(np.mean(gains))
