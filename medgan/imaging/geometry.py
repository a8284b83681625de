"""Where voxels are: reorienting, comparing grids, and resampling with the field of view kept.

Everything here works in RAS+ millimetres on 2D and 3D volumes alike. A 2D volume owns the first two
columns of its affine; the third is its normal and is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.errors import Refused
from medgan.imaging.volume import Volume

Affine = NDArray[np.float64]

#: Two grids are the same when no corner voxel lies further apart than this part of the smallest spacing. Wide enough
#: for a qform's rounded quaternion (up to 0.08 mm at the far corner of a head), far below half a voxel.
GRID_TOLERANCE_VOXELS = 0.1
#: A matrix element below this part of a voxel is rounding, so the resampling may go axis by axis.
DIAGONAL_TOLERANCE = 1e-9
#: Full width at half maximum of a Gaussian, in standard deviations.
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))

_CODES = (("L", "R"), ("P", "A"), ("I", "S"))


def axis_directions(affine: Affine) -> tuple[tuple[int, int], ...]:
    """Gives for each of the three voxel axes the world axis (0 x, 1 y, 2 z) nearest to it and the sign of its growth.

    Each world axis is given out once, the best aligned voxel axis first.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    found: dict[int, tuple[int, int]] = {}
    left = np.abs(cosines)
    for _ in range(3):
        world, voxel = np.unravel_index(int(np.argmax(left)), left.shape)
        found[int(voxel)] = (int(world), 1 if cosines[world, voxel] > 0 else -1)
        left[world, :] = left[:, voxel] = -1.0
    return tuple(found[voxel] for voxel in range(3))


def reorient(volume: Volume, codes: str = "RAS") -> Volume:
    """Flips and permutes voxel axes, without touching a value, until they grow in the directions of `codes`.

    A 2D volume keeps its plane: its two axes are ordered and flipped as `codes` says for their two directions.

    Args:
        volume: Any volume.
        codes: Three letters, one of each of the pairs R/L, A/P, S/I.

    Returns:
        The same voxels at the same places; where nothing had to be flipped the array is a view of the old one.

    Raises:
        ValueError: `codes` does not name three different directions.
    """
    wanted = [(w, pair.index(letter)) for letter in codes.upper() for w, pair in enumerate(_CODES) if letter in pair]
    if len(codes) != 3 or len({world for world, _ in wanted}) != 3:
        raise ValueError(f"{codes!r} are not three axis codes such as RAS")
    directions = axis_directions(volume.affine)[: volume.dims]
    signs = {world: 2 * grows - 1 for world, grows in wanted}
    rank = {world: position for position, (world, _) in enumerate(wanted)}
    order = sorted(range(volume.dims), key=lambda axis: rank[directions[axis][0]])
    flips = [directions[axis][1] != signs[directions[axis][0]] for axis in order]
    return rearranged(volume, order, flips)


def rearranged(volume: Volume, order: Sequence[int], flips: Sequence[bool]) -> Volume:
    """Takes the spatial axes in `order` and then flips those marked in `flips`; the affine follows.

    A slice thickness is kept where the third axis stays the third.
    """
    array = volume.array.transpose(0, *(axis + 1 for axis in order))
    affine = volume.affine.copy()
    affine[:, : volume.dims] = volume.affine[:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis + 1)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis + 1] - 1)
            affine[:3, axis] *= -1
    if any(flips):
        array = np.ascontiguousarray(array)  # torch takes no negative strides
    thickness = volume.slice_thickness_mm if list(order[2:]) == [2] else None
    return replace(volume, array=array, affine=affine, slice_thickness_mm=thickness)


def corners(affine: Affine, shape: Sequence[int]) -> Affine:
    """World positions of the corner voxels' centres, (2**n, 3) in mm."""
    index = np.array(np.meshgrid(*([0, n - 1] for n in shape), indexing="ij"), dtype=np.float64).reshape(len(shape), -1)
    return (affine[:3, : len(shape)] @ index).T + affine[:3, 3]


def same_grid(a: Volume, b: Volume, tolerance_mm: float | None = None) -> bool:
    """Says whether two volumes have the same shape and their voxels the same places.

    Args:
        a: A volume.
        b: Another one; the number of channels does not matter.
        tolerance_mm: How far apart corner voxels may lie; a tenth of the smallest spacing by default.
    """
    if a.shape != b.shape:
        return False
    if tolerance_mm is None:
        tolerance_mm = GRID_TOLERANCE_VOXELS * min(*a.spacing_mm, *b.spacing_mm)
    apart = np.linalg.norm(corners(a.affine, a.shape) - corners(b.affine, b.shape), axis=1)
    return bool(apart.max() <= tolerance_mm)


def align_mask(mask: Volume, image: Volume) -> Volume:
    """Puts a mask stored with flipped or permuted axes onto its image's grid, without resampling.

    Args:
        mask: One channel.
        image: The image it belongs to.

    Returns:
        The mask with the image's own affine.

    Raises:
        Refused: `LABEL_DIM` for another number of dimensions or several channels, `LABEL_GRID` where the voxels
            of the two are not the same places.
    """
    where = mask.source or "mask"
    if mask.dims != image.dims or mask.channels != 1:
        why = f"a mask of shape {mask.array.shape} for an image of shape {image.array.shape}"
        raise Refused("LABEL_DIM", where, why, "Give one label map with whole numbers, on the image's grid")
    # Voxel axes are matched by direction, so an oblique image is matched as well as a straight one.
    unit = [volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0) for volume in (image, mask)]
    cosines = (unit[0].T @ unit[1])[: image.dims, : image.dims]
    order = [int(axis) for axis in np.argmax(np.abs(cosines), axis=1)]
    if len(set(order)) == len(order):
        flips = [bool(cosines[i, axis] < 0) for i, axis in enumerate(order)]
        aligned = rearranged(mask, order, flips)
        if same_grid(aligned, image):
            return replace(aligned, affine=image.affine)
    raise Refused(
        "LABEL_GRID", where,
        f"the mask's grid ({_grid(mask)}) is not the image's ({_grid(image)})",
        "Resample the mask onto the image with nearest-neighbour interpolation (medgan.imaging.geometry.resample_to)",
    )


def _grid(volume: Volume) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in volume.spacing_mm)
    origin = ", ".join(f"{o:.2f}" for o in volume.affine[:3, 3])
    return f"shape {volume.shape}, spacing {spacing} mm, origin {origin}"


def zoomed_affine(affine: Affine, factors: Sequence[float]) -> Affine:
    """The affine after making the grid finer by `factors`, one for each spatial axis, with the field of view kept.

    With factor f the first output voxel's centre sits at (1/f - 1)/2 input voxels, so that the outer edges of the
    first input and the first output voxel coincide.
    """
    inverse = 1.0 / np.asarray(factors, dtype=np.float64)
    n = len(inverse)
    result = np.array(affine, dtype=np.float64)
    result[:3, 3] += result[:3, :n] @ ((inverse - 1.0) / 2.0)
    result[:3, :n] *= inverse
    return result


def resample(
    volume: Volume, spacing_mm: Sequence[float], *, order: int = 1, shape: Sequence[int] | None = None
) -> Volume:
    """Changes the voxel spacing and keeps the field of view.

    The outer edge of the first voxel stays where it is and the spacing comes out exactly as asked for; where the
    field of view is not a whole number of new voxels, its far edge moves by less than half of one.

    Args:
        volume: Any volume.
        spacing_mm: The new spacing, one number for each spatial axis.
        order: 0 nearest (labels), 1 linear, 3 cubic B-spline. Beyond the outer voxels the edge is repeated.
            Where the grid gets coarser, orders above 0 smooth first with a Gaussian that takes the
            voxel's width from the old to the new one.
        shape: The new shape; by default whatever covers the field of view best.

    Returns:
        The resampled volume: of the same dtype for order 0, else float32 (float64 stays).

    Raises:
        Refused: `GEOM_BAD_SPACING`.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (volume.dims,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise Refused(
            "GEOM_BAD_SPACING", volume.source or "volume", f"{tuple(spacing_mm)} is not a spacing of this image",
            f"Give {volume.dims} positive numbers in mm",
        )
    factors = np.asarray(volume.spacing_mm) / spacing
    if shape is None:
        shape = [max(1, round(n * f)) for n, f in zip(volume.shape, factors, strict=True)]
    array = _interpolated(volume.array, 1.0 / factors, (1.0 / factors - 1.0) / 2.0, shape, order)
    return replace(volume, array=array, affine=zoomed_affine(volume.affine, factors.tolist()), slice_thickness_mm=None)


def resized(volume: Volume, shape: Sequence[int], *, order: int = 1) -> Volume:
    """The volume on a grid of `shape` voxels over the same field of view, as `resample` does it."""
    if volume.shape == tuple(shape):
        return volume
    spacing = [s * n / m for s, n, m in zip(volume.spacing_mm, volume.shape, shape, strict=True)]
    return resample(volume, spacing, order=order, shape=shape)


def resample_to(
    volume: Volume, affine: Affine, shape: Sequence[int], *, order: int, outside: float | None = None
) -> Volume:
    """Resamples onto any grid.

    Args:
        volume: Any volume; a 2D one must lie in the plane of the new grid.
        affine: (4, 4) affine of the new grid, RAS+ mm.
        shape: Its spatial shape.
        order: As in `resample`.
        outside: The value of voxels beyond the volume's field of view; by default its edge is repeated there.

    Raises:
        ValueError: A 2D volume and the new grid lie in different planes.
    """
    n = volume.dims
    to_index = np.linalg.inv(volume.affine) @ np.asarray(affine, dtype=np.float64)
    if n == 2 and (np.abs(to_index[2, :2] * np.asarray(shape)).max() > 0.5 or abs(to_index[2, 3]) > 0.5):
        raise ValueError("the new grid does not lie in the image's plane")
    matrix, offset = to_index[:n, :n], to_index[:n, 3]
    diagonal = np.diag(matrix)
    if np.abs(matrix - np.diag(diagonal)).max() < DIAGONAL_TOLERANCE:
        matrix = diagonal
    array = _interpolated(volume.array, matrix, offset, shape, order)
    if outside is not None:
        array[:, ~_inside(to_index[:n, :n], offset, shape, volume.shape)] = outside
    return replace(volume, array=array, affine=np.asarray(affine, dtype=np.float64), slice_thickness_mm=None)


def _inside(matrix: NDArray[Any], offset: NDArray[Any], shape: Sequence[int], field: Sequence[int]) -> NDArray[Any]:
    """Marks the voxels of a grid whose centres lie within the field of view of an array of shape `field`."""
    index = np.ogrid[tuple(slice(n) for n in shape)]
    inside = np.ones(tuple(shape), dtype=bool)
    for row, start, n in zip(matrix, offset, field, strict=True):
        position = start + sum(step * i for step, i in zip(row, index, strict=True))
        inside &= (position >= -0.5) & (position <= n - 0.5)
    return inside


def _interpolated(
    array: NDArray[Any], matrix: NDArray[Any], offset: NDArray[Any], shape: Sequence[int], order: int
) -> NDArray[Any]:
    """Interpolates each channel at `matrix` @ output index + `offset`; a 1-D matrix is a diagonal, and separable."""
    if order not in (0, 1, 3):
        raise ValueError(f"interpolation order {order} is not 0, 1 or 3")
    dtype = array.dtype
    if dtype == np.float16 or (order and dtype != np.float64):
        dtype = np.dtype(np.float32)
    if matrix.ndim == 1:
        for axis in sorted(range(len(shape)), key=lambda axis: shape[axis] / array.shape[axis + 1]):
            array = _along_axis(array, axis + 1, matrix[axis], offset[axis], shape[axis], order, dtype)
        return np.ascontiguousarray(array, dtype=dtype)
    # What the smoothing must cover: how far one output step reaches along each input axis.
    sigma = _antialias_sigma(np.linalg.norm(matrix, axis=1)) if order else np.zeros(len(shape))
    working = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    output = np.empty((array.shape[0], *shape), dtype=working)
    for channel, target in zip(array, output, strict=True):
        source = channel.astype(working, copy=False)
        if sigma.any():
            source = ndimage.gaussian_filter(source, sigma, mode="nearest")
        ndimage.affine_transform(source, matrix, offset, tuple(shape), output=target, order=order, mode="nearest")
    return output.astype(dtype, copy=False)


def _antialias_sigma(step: Any) -> NDArray[Any]:
    """Width, in input voxels, of the Gaussian that takes a voxel of width 1 to one of width `step`."""
    sigma: NDArray[np.float64] = np.sqrt(np.maximum(np.asarray(step) ** 2 - 1.0, 0.0)) / FWHM_PER_SIGMA
    return sigma


def _along_axis(
    array: NDArray[Any], axis: int, step: float, start: float, count: int, order: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Interpolates along one axis at `start` + `step` * (0 .. count - 1), repeating the edge voxels beyond the ends."""
    n = array.shape[axis]
    if step == 1.0 and start == 0.0 and count == n:
        return array
    position = np.clip(start + step * np.arange(count), 0, n - 1)
    if order == 0:
        nearest: NDArray[Any] = np.take(array, np.floor(position + 0.5).astype(np.intp), axis=axis)
        return nearest
    array = array.astype(dtype, copy=False)
    sigma = float(_antialias_sigma(step))
    if sigma > 0:
        array = ndimage.gaussian_filter1d(array, sigma, axis=axis, mode="nearest")
    below = np.floor(position).astype(np.intp)
    t = position - below
    taps: list[tuple[int, NDArray[Any]]] = [(0, 1 - t), (1, t)]
    if order == 3 and n > 1:
        array = ndimage.spline_filter1d(array, order, axis=axis, output=dtype, mode="mirror")
        taps = [(-1, (1 - t) ** 3 / 6), (0, 2 / 3 - t**2 + t**3 / 2)]
        taps += [(1, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2), (2, t**3 / 6)]
    shape = [1] * array.ndim
    shape[axis] = count
    result = np.zeros((*array.shape[:axis], count, *array.shape[axis + 1 :]), dtype=dtype)
    for tap, weight in taps:
        # The B-spline coefficients were made for a signal mirrored at its end voxels; linear taps need no mirror.
        index = _mirrored(below + tap, n)
        result += np.take(array, index, axis=axis) * weight.astype(dtype).reshape(shape)
    return result


def _mirrored(index: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Reflects indices outside 0 .. n-1 at the end voxels."""
    if n == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * n - 2)
    return np.minimum(index, 2 * n - 2 - index)
