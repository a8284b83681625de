"""How a scanner sees: `Scanner`, a linear operator with its adjoint, and `simulate`, which scans a sharp volume anew.

The order is that of the scan: the in-plane point spread blurs (CT), slice profiles weigh, k-space ends early on the
scan's own grid (MR), and noise comes last. All but the noise works on one axis at a time and is one small matrix there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.geometry import zoomed_affine
from medgan.imaging.slices import COARSEST, FACTORS, Acquisition, Profile, along, positive_mm
from medgan.imaging.volume import Volume

NoiseKind = Literal["gaussian", "rician"]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)

#: Slice spacing, thickness and gap may miss their sum by this, in mm.
SUM_TOLERANCE_MM = 1e-6
#: A factor this close outside the allowed range is rounding of the affine.
FACTOR_ROUNDING = 1e-6
#: Frequencies this far above the cut, in cycles a field of view, are on it.
FREQUENCY_ROUNDING = 1e-6

Numbers = float | Sequence[float]


@dataclass(frozen=True)
class Scanner:
    """A scan of one fine grid as a linear operator on (C, X, Y[, Z]) arrays: y = forward(x), without noise.

    `Scanner.of` builds one from lengths in mm. Arrays are worked on in float32, and in float64 where they are that.

    Args:
        shape: Spatial shape of the fine grid.
        spacing_mm: Its spacing.
        scans: How the slices along each axis are taken; None leaves an axis alone.
        truncation: Share of k-space kept along each axis, above 0 up to 1: frequencies of more than this share of
            the scanned grid's highest become zero. Like a scanner's, this wraps round at the ends of the axis.
        blur_mm: Full width at half maximum of a Gaussian point spread along each axis; 0 for none.

    Raises:
        ValueError: The arguments do not fit together.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    scans: tuple[Acquisition | None, ...]
    truncation: tuple[float, ...] = ()
    blur_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        axes = len(self.shape)
        for name, nothing in (("truncation", 1.0), ("blur_mm", 0.0)):
            object.__setattr__(self, name, tuple(getattr(self, name)) or (nothing,) * axes)
        if {len(self.spacing_mm), len(self.scans), len(self.truncation), len(self.blur_mm)} != {axes}:
            raise ValueError(f"{self} does not name every one of {axes} axes")
        for n, scan in zip(self.shape, self.scans, strict=True):
            if scan is not None and scan.fine != n:
                raise ValueError(f"an acquisition of {scan.fine} fine voxels for an axis of {n}")
        if not all(0 < share <= 1 for share in self.truncation):
            raise ValueError(f"the share of k-space kept, {self.truncation}, is not above 0 and up to 1")
        if not all(0 <= width < np.inf for width in self.blur_mm):
            raise ValueError(f"a blur of {self.blur_mm} mm is not possible")

    @classmethod
    def of(
        cls, volume: Volume, *, axis: int | Sequence[int] = 2, spacing_mm: Numbers | None = None,
        thickness_mm: Numbers | None = None, profile: Profile = "gaussian", gap_mm: Numbers = 0.0,
        truncation: Numbers = 1.0, blur_mm: Numbers = 0.0,
    ) -> Scanner:
        """The scanner of a volume's grid; arguments and errors as in `simulate`."""
        axes = _axes(axis, volume.dims)
        spacings, thicknesses, gaps = (_each(name, value, len(axes)) for name, value in (
            ("spacing_mm", spacing_mm), ("thickness_mm", thickness_mm), ("gap_mm", gap_mm)))
        scans: list[Acquisition | None] = [None] * volume.dims
        for i, spacing, thickness, gap in zip(axes, spacings, thicknesses, gaps, strict=True):
            scans[i] = _acquisition(volume, i, spacing, thickness, gap or 0.0, profile)
        in_plane = [i for i in range(volume.dims) if i not in axes] or list(range(volume.dims))
        shares, widths = [1.0] * volume.dims, [0.0] * volume.dims
        for whole, name, value in ((shares, "truncation", truncation), (widths, "blur_mm", blur_mm)):
            for i, one in zip(in_plane, _each(name, value, len(in_plane)), strict=True):
                whole[i] = np.nan if one is None else one
        return cls(volume.shape, volume.spacing_mm, tuple(scans), tuple(shares), tuple(widths))

    @property
    def factors(self) -> tuple[float, ...]:
        """Fine voxels a slice spacing along each axis; 1 where it is left alone."""
        return tuple(1.0 if scan is None else scan.factor for scan in self.scans)

    @property
    def thick_shape(self) -> tuple[int, ...]:
        """Spatial shape of what `forward` gives."""
        return tuple(n if scan is None else scan.slices for n, scan in zip(self.shape, self.scans, strict=True))

    @property
    def thick_spacing_mm(self) -> tuple[float, ...]:
        """Its spacing."""
        return tuple(mm * factor for mm, factor in zip(self.spacing_mm, self.factors, strict=True))

    @cached_property
    def matrices(self) -> tuple[NDArray[np.float64] | None, ...]:
        """What each line along an axis is multiplied by, (M, N); None where nothing happens to an axis."""
        return tuple(_axis_matrix(*one) for one in zip(
            self.shape, self.spacing_mm, self.scans, self.truncation, self.blur_mm, strict=True))

    def forward(self, array: NDArray[Any]) -> NDArray[Any]:
        """Scans: (C, *shape) of any real dtype to (C, *thick_shape), float32, or float64 where it is that.

        Raises:
            ValueError: An array of another shape, or of complex numbers.
        """
        return _applied(self.matrices, array, self.shape)

    def adjoint(self, array: NDArray[Any]) -> NDArray[Any]:
        """The transpose of `forward`: (C, *thick_shape) to (C, *shape); dtypes and errors as there."""
        return _applied([None if m is None else m.T for m in self.matrices], array, self.thick_shape)

    def with_noise(self, array: NDArray[Any], noise: float, *, kind: NoiseKind = "gaussian",
                   seed: int = 0) -> NDArray[np.float32]:
        """Adds noise to what `forward` gave.

        Args:
            array: (C, *thick_shape).
            noise: Standard deviation in the array's units; for `rician`, of the real and of the imaginary part.
                It has no frequencies that truncation cut, and this standard deviation in the voxels all the same.
            kind: `gaussian`, or `rician`: the magnitude of the values with complex Gaussian noise.
            seed: Of the noise.

        Returns:
            float32; nothing changes where `noise` is 0.

        Raises:
            ValueError: An impossible `noise`, `kind` or shape.
        """
        if kind not in NOISE_KINDS:
            raise ValueError(f"{kind!r} is not one of {', '.join(NOISE_KINDS)}")
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise of standard deviation {noise} is not possible")
        if array.shape[1:] != self.thick_shape:
            raise ValueError(f"an array of shape {array.shape} for slices of shape {self.thick_shape}")
        result = np.array(array, dtype=np.float32)
        if noise:
            rng = np.random.default_rng(seed)
            result += self._noise(rng, noise, len(array))
            if kind == "rician":
                np.hypot(result, self._noise(rng, noise, len(array)), out=result)
        return result

    def _noise(self, rng: np.random.Generator, noise: float, channels: int) -> NDArray[np.float32]:
        result = np.empty((channels, *self.thick_shape), np.float32)
        for line in result.reshape(-1, *self.thick_shape[1:]):  # numbers are drawn in float64: not all at once
            line[...] = rng.normal(0.0, noise, line.shape)
        for axis, (n, share) in enumerate(zip(self.thick_shape, self.truncation, strict=True)):
            if share < 1:
                kept = _truncation(n, share)
                result = along(kept / np.sqrt(kept[0, 0]), result, axis + 1)
        return result


def simulate(
    volume: Volume, *, axis: int | Sequence[int] = 2, spacing_mm: Numbers | None = None,
    thickness_mm: Numbers | None = None, profile: Profile = "gaussian", gap_mm: Numbers = 0.0,
    truncation: Numbers = 1.0, blur_mm: Numbers = 0.0, noise: float = 0.0, noise_kind: NoiseKind = "gaussian",
    seed: int = 0,
) -> Volume:
    """Scans a sharp volume again with thick slices along one axis or several.

    Args:
        volume: (C, X, Y[, Z]), sharp along `axis`.
        axis: Spatial axis, 0 to 2, or several; `axis=(0, 1, 2), spacing_mm=2` makes voxels of 2 mm each way.
        spacing_mm: Distance of the slices' centres; by default `thickness_mm` + `gap_mm`. Like those two, one number
            for all of `axis` or one for each.
        thickness_mm: Full width at half maximum of the profile; by default `spacing_mm` - `gap_mm`.
        profile: The slice profile's shape.
        gap_mm: Distance between a slice's end and the next one's start; negative where slices overlap.
        truncation: Share of k-space kept along the in-plane axes (MR), above 0 up to 1; one number, or one for each
            of them. In plane are the axes that `axis` does not name, or all where it names all.
        blur_mm: Full width at half maximum of the in-plane Gaussian point spread (CT); numbers as for `truncation`.
        noise: Standard deviation of the noise added, in the volume's units; see `Scanner.with_noise`.
        noise_kind: `gaussian`, or `rician` for a magnitude image (MR).
        seed: Of the noise.

    Returns:
        The thick volume, float32. Its first slice's outer edge is where the first voxel's was: with factor f the
        first centre lies at (1/f - 1)/2 thick slices, seen from the thick grid.

    Raises:
        Refused: `FACTOR_RANGE` where a new spacing is not 1 to 64 times the old one; `CFG_VALUE` for a thickness
            that is not positive.
        ValueError: Neither `spacing_mm` nor `thickness_mm` is given, or the three do not agree; or another argument
            is impossible.
    """
    if noise_kind == "rician" and volume.modality == "ct":
        raise ValueError("CT values are no magnitudes: their noise is gaussian")
    scanner = Scanner.of(volume, axis=axis, spacing_mm=spacing_mm, thickness_mm=thickness_mm, profile=profile,
                         gap_mm=gap_mm, truncation=truncation, blur_mm=blur_mm)
    # float64 brings nothing to a float32 result, and takes twice the memory.
    fine = volume.array.astype(np.float32) if volume.array.dtype == np.float64 else volume.array
    array = scanner.with_noise(scanner.forward(fine), noise, kind=noise_kind, seed=seed)
    # A simulated scan says as little of its slices as a file without a header does: whoever knows has to tell.
    sliced = any(scan is not None for scan in scanner.scans[2:])
    return replace(volume, array=array, affine=zoomed_affine(volume.affine, [1.0 / f for f in scanner.factors]),
                   slice_thickness_mm=None if sliced else volume.slice_thickness_mm)


def _axes(axis: int | Sequence[int], dims: int) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= set(range(dims)):
        raise ValueError(f"axis {axis} does not name spatial axes from 0 to {dims - 1}")
    return tuple(int(one) for one in axes)


def _each(name: str, value: Numbers | None, count: int) -> tuple[float | None, ...]:
    if value is None:
        return (None,) * count
    given = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if given.ndim != 1 or given.size not in (1, count):
        raise ValueError(f"{name}={value} is not one number, nor one for each of {count} axes")
    return tuple(float(one) for one in np.broadcast_to(given, count))


def _acquisition(volume: Volume, axis: int, spacing: float | None, thickness: float | None, gap: float,
                 profile: Profile) -> Acquisition:
    if spacing is None:
        if thickness is None:
            raise ValueError("give spacing_mm, thickness_mm or both")
        spacing = thickness + gap
    thickness = positive_mm(spacing - gap if thickness is None else thickness)
    if gap and not abs(thickness + gap - spacing) <= SUM_TOLERANCE_MM:
        raise ValueError(f"thickness {thickness} mm and gap {gap} mm do not add up to spacing {spacing} mm")
    fine, now = volume.shape[axis], volume.spacing_mm[axis]
    factor = spacing / now
    if not FACTORS[0] - FACTOR_ROUNDING <= factor <= COARSEST:
        raise Refused("FACTOR_RANGE", f"axis {axis}", f"a slice spacing of {spacing:g} mm is {factor:.3g} times the "
                      f"present {now:.4g} mm, and {FACTORS[0]:g} to {COARSEST:g} are possible",
                      "Ask for slices no finer than the present ones")
    factor = max(factor, FACTORS[0])
    return Acquisition(max(1, round(fine / factor)), factor, thickness / spacing, profile, fine=fine)


def _axis_matrix(n: int, spacing_mm: float, scan: Acquisition | None, share: float,
                 blur_mm: float) -> NDArray[np.float64] | None:
    """Truncation after slices after blur, along one axis."""
    steps = []
    if blur_mm:
        # A Gaussian "slice" at every voxel: the same integral over whole voxels, and the same edges.
        steps.append(Acquisition(n, 1.0, blur_mm / spacing_mm, "gaussian", fine=n).matrix)
    if scan is not None:
        steps.append(scan.matrix)
    if share < 1:
        steps.append(_truncation(n if scan is None else scan.slices, share))
    result = None
    for step in steps:
        result = step if result is None else step @ result
    return result


def _truncation(n: int, share: float) -> NDArray[np.float64]:
    """The projection, (n, n) and symmetric, onto frequencies of at most `share` of the highest; the mean is kept."""
    spectrum = np.fft.rfft(np.eye(n), axis=0)
    spectrum[np.arange(len(spectrum)) > share * n / 2 + FREQUENCY_ROUNDING] = 0
    projection = np.fft.irfft(spectrum, n, axis=0)
    return np.asarray((projection + projection.T) / 2)  # to the last bit, whatever the transform rounds


def _applied(matrices: Sequence[NDArray[Any] | None], array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Multiplies along every axis, those that shrink most first."""
    if array.shape[1:] != tuple(shape) or array.dtype.kind not in "biuf":
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype} is not a real (C, *{tuple(shape)})")
    todo = [(m.shape[0] / m.shape[1], axis + 1, m) for axis, m in enumerate(matrices) if m is not None]
    result = array
    for _, axis, matrix in sorted(todo, key=lambda one: one[0]):
        if array.dtype == np.float64:
            result = np.moveaxis(np.tensordot(result, matrix, axes=(axis, 1)), -1, axis)
        else:
            result = along(matrix, result, axis)
    dtype = np.float64 if array.dtype == np.float64 else np.float32
    return np.array(array, dtype) if result is array else np.ascontiguousarray(result, dtype)
