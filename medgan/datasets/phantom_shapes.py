"""The drawing tools of the phantoms: smooth random fields, level sets, tubes, soft painting, irregular lesions.

A level set is an approximate signed distance in mm, negative inside. Everything is drawn with an edge as wide as
a voxel, so that borders carry partial volumes. Sums are written out tap by tap instead of going through BLAS,
whose result may depend on the number of threads: the same seed has to give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]

#: The mean squared weight of a cubic B-spline, by which filtering white noise lowers its variance per axis.
_SPLINE_POWER = 151 / 315
#: How far, in mm, the warp of `Canvas` may move an organ out of the box in which it is drawn.
_WARP_MARGIN_MM = 14.0


def smooth_noise(axes: tuple[Field, Field, Field], scale_mm: float, rng: np.random.Generator) -> Field:
    """Band-limited Gaussian noise of unit variance on a regular grid.

    Args:
        axes: Coordinates along x, y and z in mm, evenly spaced.
        scale_mm: Distance of the knots of the cubic spline, about half of the smallest wavelength.
        rng: Source of the knots.

    Returns:
        (X, Y, Z) float32.
    """
    starts = rng.random(3)
    positions = [(axis - axis[0]) / scale_mm + start for axis, start in zip(axes, starts, strict=True)]
    knots = rng.standard_normal([int(position[-1]) + 5 for position in positions], dtype=np.float32)
    for dim, position in enumerate(positions):
        first = position.astype(np.intp)
        t = (position - first).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
        along = [1, 1, 1]
        along[dim] = -1
        taps = [weight.reshape(along) * np.take(knots, first + tap, axis=dim) for tap, weight in enumerate(weights)]
        knots = taps[0] + taps[1] + taps[2] + taps[3]
    return np.asarray(knots / np.float32(_SPLINE_POWER**1.5), dtype=np.float32)


def smooth_max(a: Field, b: Field, radius_mm: float) -> Field:
    """The intersection of two level sets with a rounded edge."""
    overlap = np.maximum(radius_mm - np.abs(a - b), 0)
    return np.asarray(np.maximum(a, b) + overlap * overlap / (4 * radius_mm), dtype=np.float32)


def smooth_min(a: Field, b: Field, radius_mm: float) -> Field:
    """The union of two level sets with a filled crease."""
    return -smooth_max(-a, -b, radius_mm)


def smooth_step(values: Field, low: float, high: float) -> Field:
    """Rises from 0 at `low` to 1 at `high` without a kink; `low` may be the larger of the two."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def superellipsoid(x: Field, y: Field, z: Field, radii_mm: Point, power: float = 2.0) -> Field:
    """The level set of a superellipsoid around the origin; the distance is measured along the ray to the centre."""
    a, b, c = radii_mm
    if power == 2.0:
        rho = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    else:
        rho = (np.abs(x / a) ** power + np.abs(y / b) ** power + np.abs(z / c) ** power) ** (1 / power)
    # Along the ray the surface lies at r / rho; near the centre, where r and rho vanish, the least radius stands in.
    rho = np.maximum(rho, 1e-3)
    return np.asarray(np.sqrt(x * x + y * y + z * z) * (1 - 1 / rho), dtype=np.float32)


def rotation(rng: np.random.Generator, angle_rad: float) -> NDArray[np.float64]:
    """A rotation by up to `angle_rad` about a random axis, (3, 3)."""
    from scipy.spatial.transform import Rotation

    axis = rng.standard_normal(3)
    axis *= rng.uniform(-angle_rad, angle_rad) / np.linalg.norm(axis)
    return np.asarray(Rotation.from_rotvec(axis).as_matrix(), dtype=np.float64)


@dataclass(frozen=True)
class Segment:
    """A tapering piece of a tube: ends and radii in mm."""

    start: Point
    end: Point
    start_mm: float
    end_mm: float


def path(points: Iterable[Point], start_mm: float, end_mm: float) -> list[Segment]:
    """A tube through points, its radius going linearly from `start_mm` to `end_mm`."""
    nodes = list(points)
    radii = np.linspace(start_mm, end_mm, len(nodes))
    return [Segment(nodes[i], nodes[i + 1], float(radii[i]), float(radii[i + 1])) for i in range(len(nodes) - 1)]


def tree(
    root: Point, towards: Point, length_mm: float, radius_mm: float, depth: int, rng: np.random.Generator
) -> list[Segment]:
    """A branching tree of tubes: each segment splits into two thinner, shorter ones that lean apart."""
    segments: list[Segment] = []
    origin, heading = np.array(root), np.array(towards, dtype=np.float64)
    pending = [(origin, heading / np.linalg.norm(heading), length_mm, radius_mm, depth)]
    while pending:
        base, direction, length, radius, left = pending.pop()
        tip = base + direction * length * rng.uniform(0.8, 1.2)
        segments.append(Segment(_point(base), _point(tip), radius, radius * 0.85))
        if left > 1:
            lean = np.cross(direction, rng.standard_normal(3))
            lean /= np.linalg.norm(lean) + 1e-9
            for sign in (-1, 1):
                turned = direction + sign * lean * rng.uniform(0.35, 0.75)
                turned /= np.linalg.norm(turned)
                shorter, thinner = length * rng.uniform(0.74, 0.9), radius * rng.uniform(0.68, 0.84)
                pending.append((tip, turned, shorter, thinner, left - 1))
    return segments


def _point(array: NDArray[np.float64]) -> Point:
    return float(array[0]), float(array[1]), float(array[2])


@dataclass
class Canvas:
    """A grid on which tissue is painted: values and the organ that owns each voxel.

    Args:
        axes: Anatomical coordinates along x, y and z in mm, before the warp; x to the right, y to the front, z up.
        scale: Physical mm per anatomical mm along each axis, so that lesions keep their size in a stretched body.
        background: The value of air.
        tilt: Rotation (3, 3) of the patient: from the grid's axes to the body's.
    """

    axes: tuple[Field, Field, Field]
    scale: Point
    background: float
    tilt: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    image: Field = field(init=False)
    organs: NDArray[np.uint8] = field(init=False)
    x: Field = field(init=False)
    y: Field = field(init=False)
    z: Field = field(init=False)

    def __post_init__(self) -> None:
        shape = tuple(len(axis) for axis in self.axes)
        self.image = np.full(shape, self.background, dtype=np.float32)
        self.organs = np.zeros(shape, dtype=np.uint8)
        grid, m = np.ix_(*self.axes), self.tilt.astype(np.float32)
        self.x, self.y, self.z = (m[i, 0] * grid[0] + m[i, 1] * grid[1] + m[i, 2] * grid[2] for i in range(3))

    @property
    def steps_mm(self) -> Point:
        """The voxel's size in anatomical mm."""
        x, y, z = (float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in self.axes)
        return x, y, z

    @property
    def edge_mm(self) -> float:
        """The width of a soft edge."""
        return float(np.mean(self.steps_mm))

    def warp(self, amplitude_mm: float, scale_mm: float, rng: np.random.Generator) -> None:
        """Bends the anatomical coordinates smoothly, so that no organ keeps its textbook shape."""
        limit = _WARP_MARGIN_MM - 2
        self.x, self.y, self.z = (
            coordinate + np.clip(amplitude_mm * smooth_noise(self.axes, scale_mm, rng), -limit, limit)
            for coordinate in (self.x, self.y, self.z)
        )

    def to_grid(self, point: Point) -> Point:
        """Where on the grid's axes a place in the unwarped body lies, in anatomical mm."""
        return _point(self.tilt.T @ np.array(point))

    def noise(self, scale_mm: float, rng: np.random.Generator, box: Box | None = None) -> Field:
        """`smooth_noise` on the canvas, or on a box of it."""
        axes = self.axes if box is None else (self.axes[0][box[0]], self.axes[1][box[1]], self.axes[2][box[2]])
        return smooth_noise(axes, scale_mm, rng)

    def box(self, low: Point, high: Point) -> Box | None:
        """The part of the grid between two corners in mm, or None where it is empty."""
        spans = [np.searchsorted(axis, (a, b)) for axis, a, b in zip(self.axes, low, high, strict=True)]
        if any(begin >= end for begin, end in spans):
            return None
        return slice(*map(int, spans[0])), slice(*map(int, spans[1])), slice(*map(int, spans[2]))

    def around(self, centre: Point, reach_mm: float | Point) -> Box | None:
        """The part of the grid within `reach_mm` of a point, or None where it is empty."""
        reach = (reach_mm,) * 3 if isinstance(reach_mm, float) else reach_mm
        low, high = np.subtract(centre, reach), np.add(centre, reach)
        return self.box(_point(low), _point(high))

    def soft(self, distance_mm: Field) -> Field:
        """How much of a voxel lies inside a level set, 0 to 1."""
        return np.asarray(np.clip(0.5 - distance_mm / self.edge_mm, 0, 1), dtype=np.float32)

    def paint(self, distance_mm: Field, value: float | Field, organ: int, box: Box | None = None) -> Field:
        """Fills a level set with a value and an organ label; returns the coverage that was used."""
        return self.blend(self.soft(distance_mm), value, organ, box)

    def blend(self, coverage: Field, value: float | Field, organ: int, box: Box | None = None) -> Field:
        """Mixes a value in by its coverage; more than half covered voxels go to the organ."""
        where = box if box is not None else (slice(None),) * 3
        image = self.image[where]
        image += coverage * (value - image)
        self.organs[where][coverage > 0.5] = organ
        return coverage

    def ellipsoid(
        self, centre: Point, radii_mm: Point, tilt: NDArray[np.float64] | None = None, power: float = 2.0
    ) -> tuple[Box, Field] | None:
        """The level set of an ellipsoid in warped coordinates and the box it lies in; None off the grid."""
        reach = tuple(max(radii_mm) + _WARP_MARGIN_MM for _ in range(3)) if tilt is not None else tuple(
            radius + _WARP_MARGIN_MM for radius in radii_mm
        )
        box = self.around(self.to_grid(centre), (reach[0], reach[1], reach[2]))
        if box is None:
            return None
        x, y, z = self.x[box] - centre[0], self.y[box] - centre[1], self.z[box] - centre[2]
        if tilt is not None:
            m = tilt.astype(np.float32)
            x, y, z = (m[i, 0] * x + m[i, 1] * y + m[i, 2] * z for i in range(3))
        return box, superellipsoid(x, y, z, radii_mm, power)

    def fill_ellipsoid(
        self, centre: Point, radii_mm: Point, value: float, organ: int, tilt: NDArray[np.float64] | None = None
    ) -> None:
        """Paints an ellipsoid."""
        found = self.ellipsoid(centre, radii_mm, tilt)
        if found is not None:
            self.paint(found[1], value, organ, found[0])

    def tubes(self, segments: Iterable[Segment], *, posed: bool = True) -> Field:
        """The coverage of tapering tubes; one thinner than a voxel fills only its share of it.

        Args:
            segments: The pieces.
            posed: Whether they are given in the body, and so turn with `tilt`, or on the grid's axes.
        """
        coverage = np.zeros_like(self.image)
        edge = self.edge_mm
        for segment in segments:
            start, end = segment.start, segment.end
            if posed:
                start, end = self.to_grid(start), self.to_grid(end)
            thick = max(segment.start_mm, segment.end_mm) + edge
            low, high = np.minimum(start, end) - thick, np.maximum(start, end) + thick
            box = self.box(_point(low), _point(high))
            if box is None:
                continue
            x, y, z = np.ix_(*(axis[part] - a for axis, part, a in zip(self.axes, box, start, strict=True)))
            dx, dy, dz = np.subtract(end, start).astype(np.float32)
            t = np.clip((x * dx + y * dy + z * dz) / max(float(dx * dx + dy * dy + dz * dz), 1e-6), 0, 1)
            distance = np.sqrt((x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2)
            radius = segment.start_mm + t * (segment.end_mm - segment.start_mm)
            share = np.minimum(2 * radius / edge, 1) ** 2
            part = coverage[box]
            np.maximum(part, share * np.clip(0.5 + (radius - distance) / edge, 0, 1), out=part)
        return coverage

    def lesion(
        self, centre: Point, radius_mm: float, roughness: float, rng: np.random.Generator
    ) -> tuple[Box, Field]:
        """An irregular lesion: a tilted ellipsoid whose level set is roughened by noise at two scales.

        Args:
            centre: Anatomical mm; a point on the grid.
            radius_mm: Mean physical radius.
            roughness: Standard deviation of the border, as a share of the radius.
            rng: Source of shape and border.

        Returns:
            The box it lies in and its level set there, in physical mm.
        """
        reach = 1.7 * radius_mm / np.array(self.scale) + 2 * np.array(self.steps_mm)
        box = self.around(centre, _point(reach))
        if box is None:
            raise ValueError(f"a lesion at {centre} lies outside of the grid")
        offsets = [(axis[part] - c) * s for axis, part, c, s in zip(self.axes, box, centre, self.scale, strict=True)]
        x, y, z = np.ix_(*offsets)
        m = rotation(rng, np.pi).astype(np.float32)
        x, y, z = (m[i, 0] * x + m[i, 1] * y + m[i, 2] * z for i in range(3))
        ratios = rng.uniform(0.78, 1.28, 3)
        a, b, c = radius_mm * ratios / np.prod(ratios) ** (1 / 3)
        distance = superellipsoid(x, y, z, (float(a), float(b), float(c)))
        axes = (offsets[0], offsets[1], offsets[2])
        coarse = smooth_noise(axes, max(radius_mm * 0.8, 2.0), rng)
        fine = smooth_noise(axes, max(radius_mm * 0.35, 1.5), rng)
        # Clipped: an outlier of the noise must not swallow the lesion or blow it out of its box.
        border = np.clip(0.8 * coarse + 0.6 * fine, -1.8, 1.8) * roughness * radius_mm
        # The middle stays inside whatever the border does.
        return box, np.asarray(distance + border * smooth_step(distance, -radius_mm, -0.5 * radius_mm), np.float32)


def blur(image: Field, steps_mm: tuple[float, ...], sigma_mm: float) -> Field:
    """Gaussian point-spread function of a scanner."""
    return np.asarray(ndimage.gaussian_filter(image, [sigma_mm / step for step in steps_mm], truncate=3.0), np.float32)


def place(canvas: Canvas, level_set: Field, depth_mm: float, radius_mm: float, rng: np.random.Generator,
          taken: list[tuple[Point, float]], middle: bool) -> Point | None:  # fmt: skip
    """A grid point deep enough in an organ for a lesion, and clear of the lesions already there.

    Args:
        canvas: Gives the grid.
        level_set: The organ, in anatomical mm.
        depth_mm: How far inside the organ the centre must lie.
        radius_mm: Physical radius of the lesion.
        rng: Chooses among the points.
        taken: Centres and radii of the other lesions; the caller adds the new one.
        middle: Whether the lesion must be centred in the middle slice.

    Returns:
        Anatomical mm, or None where there is no room.
    """
    allowed = level_set < -depth_mm / min(canvas.scale)
    if middle:
        keep = np.zeros_like(allowed)
        keep[..., allowed.shape[2] // 2] = True
        allowed = allowed & keep
    spots = np.flatnonzero(allowed)
    for _ in range(20 if len(spots) else 0):
        index = np.unravel_index(spots[rng.integers(len(spots))], allowed.shape)
        x, y, z = (float(axis[i]) for axis, i in zip(canvas.axes, index, strict=True))
        gaps = [
            float(np.linalg.norm(np.subtract((x, y, z), other) * canvas.scale)) - radius for other, radius in taken
        ]
        if not gaps or min(gaps) > 1.6 * radius_mm + 2:
            return x, y, z
    return None


def size_mm(low: float, high: float, least: float, rng: np.random.Generator) -> float:
    """A radius in mm between two diameters: small lesions are commoner, and none is too small for the grid."""
    return max(float(np.exp(rng.uniform(np.log(low), np.log(high)))) / 2, least)
