"""Made-up shapes: random smooth level sets with the size, sphericity and roughness of real lesions.

A shape is where `1 - distance from the centre of an ellipsoid + smooth noise` is above 0. Two noises of different
scale bend it: the coarse one makes lobes, the fine one a ragged border. How much of each a wanted sphericity and
roughness takes is looked up in a bank of shapes drawn beforehand, and the best of a few draws is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from medgan.lesions.shapes import MARGIN, SMALLEST_VOXELS, Lesion, equivalent_diameter

#: Shapes are measured and drawn on a grid on which the equal ball (2D: disc) has this radius, in voxels.
RADIUS = {3: 7.0, 2: 14.0}
#: Half the edge of the grid that shapes are drawn on, in radii: room for long ones.
REACH = 3.0
#: Smoothing over this share of the radius is what roughness is measured against.
ROUGH_SCALE = 1 / 3
#: Correlation lengths of the coarse and the fine noise, in radii.
NOISE_SCALES = (0.9, 0.3)
#: Largest amplitudes of the two noises in the bank, in radii.
AMPLITUDES = (0.9, 0.7)
#: Shapes in the bank.
BANK = 160
#: Draws of which the one nearest to the wanted sphericity and roughness is kept.
DRAWS = 4
#: Spread of (log size, log sphericity, log roughness, log elongations) taken where too few lesions tell it.
SPREAD = np.array([0.25, 0.08, 0.25, 0.15, 0.15])
#: Lesions whose own spread weighs as much as `SPREAD`.
SPREAD_WEIGHT = 4.0
#: How far the long axis is tipped away from the donor's, standard deviation in degrees.
TIP_DEG = 15.0
#: So many voxels around a lesion are copied as its surroundings; no blended rim is wider.
SHELL_VOXELS = 4.0
#: Donor voxels at like depth and direction whose mean a voxel takes; fewer leave streaks, as the map is not smooth.
NEAREST = 6
#: What is finer than this many voxels (a Gaussian's width) is texture: it is shifted along, not mapped by depth.
TEXTURE_VOXELS = 1.5


@dataclass(frozen=True, eq=False)
class Form:
    """What is measured of a lesion's shape.

    Args:
        size_mm: Diameter of the equal ball (2D: disc).
        sphericity: Surface of the equal ball over the shape's own (2D: circumferences); 1 is a ball.
        roughness: Share of its volume that changes sides when the shape is smoothed over `ROUGH_SCALE` radii.
        elongation: Longest over middle and middle over shortest axis (2D: the second is 1).
        axes: (3, 3) unit columns, longest axis first.
    """

    size_mm: float
    sphericity: float
    roughness: float
    elongation: tuple[float, float]
    axes: NDArray[np.float64]

    @property
    def vector(self) -> NDArray[np.float64]:
        """(5,) logarithms of size, sphericity, roughness, elongations."""
        return np.log([self.size_mm, self.sphericity, max(self.roughness, 1e-3), *self.elongation])


def measure(inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64], planar: bool) -> Form:
    """Measures a shape (x, y, z) on a grid as fine as its size asks for, so that large and small ones compare."""
    points = np.argwhere(inside) * spacing_mm
    size_mm = equivalent_diameter(len(points), spacing_mm, planar)
    step = size_mm / 2 / RADIUS[2 if planar else 3]
    axes, lengths = _axes(points, spacing_mm, planar)
    tight = ndimage.find_objects(inside.astype(np.uint8))[0]
    box = np.pad(inside[tight].astype(np.float32), [(1, 1), (1, 1), (0, 0) if planar else (1, 1)])
    # Averaged over the measuring voxel where that is the coarser one.
    blur = 0.5 * np.sqrt(np.maximum(0, (step / spacing_mm) ** 2 - 1))
    ratio = step / spacing_mm
    if planar:
        blur[2], ratio[2] = 0, 1
    shape = np.ceil(np.array(box.shape) / ratio).astype(int) + 5
    offset = (np.array(box.shape) - 1 - ratio * (shape - 1)) / 2
    if planar:
        shape[2], offset[2] = 1, 0
    field = ndimage.affine_transform(ndimage.gaussian_filter(box, blur), ratio, offset, output_shape=tuple(shape),
                                     order=1, cval=0.0)
    sphericity, roughness = _compactness(field[..., 0] if planar else field)
    return Form(size_mm, sphericity, roughness,
                (float(lengths[0] / lengths[1]), 1.0 if planar else float(lengths[1] / lengths[2])), axes)


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """The distribution of shapes in real lesions, and how to draw from it.

    Args:
        forms: The real lesions' measures.
        planar: Whether they are 2D.
    """

    forms: tuple[Form, ...]
    planar: bool

    @classmethod
    def fit(cls, lesions: Sequence[Lesion]) -> ShapeModel:
        """Measures the lesions; one is enough, its spread is then assumed."""
        return cls(tuple(form_of(lesion) for lesion in lesions), lesions[0].planar)

    @functools.cached_property
    def spread(self) -> NDArray[np.float64]:
        """(5, 5) matrix that turns unit noise into the real lesions' spread of `Form.vector`."""
        known = np.array([form.vector for form in self.forms])
        own = np.cov(known.T, bias=True) if len(known) > 1 else np.zeros((5, 5))
        # With few lesions their covariance is a poor guess: it is drawn towards an assumed one.
        mixed = (len(known) - 1) * own + SPREAD_WEIGHT * np.diag(SPREAD**2)
        if self.planar:
            mixed[4] = mixed[:, 4] = 0
        values, vectors = np.linalg.eigh(mixed / (len(known) - 1 + SPREAD_WEIGHT))
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))

    def draw(self, like: Lesion, rng: np.random.Generator, size_mm: float | None = None) -> Lesion:
        """A lesion of a made-up shape in a donor's manner.

        Over donors drawn evenly, the shapes follow the kernel density of the real ones: each is its donor's measures
        and a random step, shrunk towards the mean so that the whole spreads no wider than real lesions do.

        Args:
            like: Gives measures to vary, spacing, labels from rim to core, and values.
            rng: Draws the shape.
            size_mm: Wanted equivalent diameter; None: the donor's, varied.

        Returns:
            The lesion; its labels and values are the donor's at like depth and direction, outside it lies what
            surrounds the donor.
        """
        form = form_of(like)
        wanted = self._varied(form, rng)
        if size_mm is not None:
            wanted[0] = np.log(size_mm)
        inside = self._shape(wanted, form.axes, like, rng)
        return _clothed(like, inside)

    def _varied(self, form: Form, rng: np.random.Generator) -> NDArray[np.float64]:
        """(5,) a step from a real lesion's measures: the smoothed bootstrap with its variance corrected."""
        count, own = len(self.forms), form.vector
        if count == 1:
            wanted = own + self.spread @ rng.standard_normal(5)
        else:
            width = float(count ** (-1 / 9))
            mean = np.mean([known.vector for known in self.forms], axis=0)
            wanted = mean + (own - mean + width * self.spread @ rng.standard_normal(5)) / np.hypot(1, width)
        wanted[1] = min(wanted[1], -0.005)
        wanted[3:] = np.clip(wanted[3:], 0, np.log(REACH))
        return np.asarray(wanted)

    def _shape(self, wanted: NDArray[np.float64], axes: NDArray[np.float64], like: Lesion,
               rng: np.random.Generator) -> NDArray[np.bool_]:
        """(x, y, z) the best of a few level sets, on the donor's spacing."""
        bank, amplitudes = _bank(self.planar)
        # How one unit of either measure counts: by how much real lesions differ in it.
        unit = np.array([SPREAD[1], SPREAD[2], SPREAD[3], SPREAD[4]])
        order = np.argsort((((bank - wanted[1:]) / unit) ** 2).sum(axis=1))[:DRAWS]
        best: tuple[float, NDArray[np.bool_]] | None = None
        for row in order:
            elongation = np.exp(amplitudes[row, 2:])
            level = _level_set(elongation, amplitudes[row, :2], _tipped(axes, self.planar, rng), self.planar, rng)
            inside = _on_grid(level, float(np.exp(wanted[0])), like.spacing_mm, self.planar, rng)
            if inside is None:
                continue
            got = measure(inside, like.spacing_mm, self.planar).vector
            miss = float((((got - wanted)[1:3] / unit[:2]) ** 2).sum() + 4 * ((got - wanted)[0] / SPREAD[0]) ** 2)
            if best is None or miss < best[0]:
                best = miss, inside
        if best is not None:
            return best[1]
        # Too small for its grid whichever way it was drawn: the smallest ball that is a lesion.
        ball = _level_set(np.ones(2), np.zeros(2), np.eye(3), self.planar, rng)
        size = float(np.exp(wanted[0]))
        while (inside := _on_grid(ball, size, like.spacing_mm, self.planar, rng)) is None:
            size *= 1.2
        return inside


def form_of(lesion: Lesion) -> Form:
    """A lesion's measures."""
    return measure(lesion.labels > 0, lesion.spacing_mm, lesion.planar)


def _axes(points: NDArray[np.float64], spacing_mm: NDArray[np.float64], planar: bool
          ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal axes as columns and standard deviations along them, longest first; a voxel's own extent counts in."""
    centred = points - points.mean(axis=0)
    moments = centred.T @ centred / len(points) + np.diag(spacing_mm**2 / 12)
    if planar:
        moments[2, :2] = moments[:2, 2] = 0
        moments[2, 2] = 1e-9
    values, vectors = np.linalg.eigh(moments)
    return vectors[:, ::-1], np.sqrt(values[::-1])


def _compactness(field: NDArray[np.float32]) -> tuple[float, float]:
    """Sphericity and roughness of where a field, on a grid of unit spacing, is above one half."""
    from skimage.measure import find_contours, marching_cubes, mesh_surface_area

    field = np.pad(field, 2)
    inside = field > 0.5
    if not inside.any():
        return 1.0, 0.0
    volume = float(inside.sum())
    if field.ndim == 2:
        around = sum(float(np.hypot(*np.diff(line, axis=0).T).sum()) for line in find_contours(field, 0.5))
        sphericity = 2 * np.sqrt(np.pi * volume) / around
        radius = np.sqrt(volume / np.pi)
    else:
        vertices, faces, _, _ = marching_cubes(field, 0.5)
        sphericity = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / mesh_surface_area(vertices, faces)
        radius = np.cbrt(volume * 3 / (4 * np.pi))
    smooth = ndimage.gaussian_filter(inside.astype(np.float32), ROUGH_SCALE * radius)
    level = np.partition(smooth.ravel(), -int(volume))[-int(volume)]
    return min(1.0, float(sphericity)), float(((smooth >= level) != inside).sum() / volume)


def _level_set(elongation: NDArray[np.float64], amplitudes: NDArray[np.float64], axes: NDArray[np.float64],
               planar: bool, rng: np.random.Generator) -> NDArray[np.float32]:
    """(n, n, n) or (n, n, 1) field whose positive part is one shape without holes, `RADIUS` voxels in radius or so."""
    radius = RADIUS[2 if planar else 3]
    half = int(np.ceil(REACH * radius))
    line = np.arange(-half, half + 1) / radius
    grid = np.stack(np.meshgrid(line, line, np.zeros(1) if planar else line, indexing="ij")).astype(np.float32)
    lengths = np.array([elongation[0], 1.0, 1 / elongation[1]])
    lengths /= np.sqrt(lengths[0] * lengths[1]) if planar else np.cbrt(lengths.prod())
    turned = np.einsum("ij,jxyz->ixyz", (axes / lengths).T.astype(np.float32), grid)
    level = 1 - np.sqrt((turned**2).sum(axis=0))
    for amplitude, scale in zip(amplitudes, NOISE_SCALES, strict=True):
        if amplitude > 0:
            sigma = 0.5 * scale * radius
            noise = ndimage.gaussian_filter(rng.standard_normal(level.shape).astype(np.float32),
                                            (sigma, sigma, 0 if planar else sigma), truncate=3)
            level += amplitude * noise / max(1e-6, float(noise.std()))
    # The largest part, and what is not joined to the grid's corner: its holes are filled.
    inside = _largest(level > 0)
    outside, _ = ndimage.label(~inside)
    inside = outside != outside[0, 0, 0]
    # Beside the one shape nothing is positive, within it nothing negative: the border alone decides.
    return np.asarray(np.where(inside, np.maximum(level, 1e-3), np.minimum(level, -1e-3)), np.float32)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(mask)
    return mask if count < 2 else np.asarray(parts == np.bincount(parts.ravel())[1:].argmax() + 1)


def _on_grid(level: NDArray[np.float32], size_mm: float, spacing_mm: NDArray[np.float64], planar: bool,
             rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """(x, y, z) the level set at a size on a grid, `MARGIN` voxels around it; None where that is no lesion."""
    inside = level > 0
    count = int(inside.sum())
    if count == 0 or any(inside.take(edge, axis).any() for axis in range(2 if planar else 3) for edge in (0, -1)):
        return None
    own = equivalent_diameter(count, np.ones(3), planar)
    ratio = spacing_mm / (size_mm / own)
    tight = ndimage.find_objects(inside.astype(np.uint8))[0]
    low, high = np.array([s.start for s in tight]), np.array([s.stop for s in tight])
    if planar:
        ratio[2] = 1
    shape = np.ceil((high - low) / ratio).astype(int) + 2 * MARGIN + 1
    # Where the grid's voxels fall on the shape is chance, as in a scan.
    offset = (low + high - 1) / 2 - ratio * ((shape - 1) / 2 + rng.uniform(-0.5, 0.5, 3))
    if planar:
        shape[2], offset[2] = 1, 0
    made = ndimage.affine_transform(level, ratio, offset, output_shape=tuple(shape), order=1, cval=-1.0) > 0
    made = _largest(made)
    return made if made.sum() >= SMALLEST_VOXELS else None


def _tipped(axes: NDArray[np.float64], planar: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    tips = rng.normal(0, np.deg2rad(TIP_DEG), 3)
    if planar:
        tips[:2] = 0
    return np.asarray(Rotation.from_rotvec(tips).as_matrix() @ axes)


@functools.lru_cache(maxsize=2)
def _bank(planar: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 4) `Form.vector` less the size, and (n, 4) amplitudes and log elongations asked for, of drawn shapes."""
    rng = np.random.default_rng([23, int(planar)])
    got: list[NDArray[np.float64]] = []
    asked: list[list[float]] = []
    while len(got) < BANK:
        amplitudes = rng.uniform(0, 1, 2) ** 1.5 * AMPLITUDES
        elongation = rng.uniform(0, np.log(REACH), 2) * (1, 0 if planar else 1)
        level = _level_set(np.exp(elongation), amplitudes, np.eye(3), planar, rng)
        made = _on_grid(level, 2 * RADIUS[2 if planar else 3], np.ones(3), planar, rng)
        if made is not None:
            got.append(measure(made, np.ones(3), planar).vector[1:])
            asked.append([*amplitudes, *elongation])
    return np.array(got), np.array(asked)


def _ball(inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64], planar: bool, where: NDArray[np.bool_]
          ) -> NDArray[np.float64]:
    """(n, 3) place of the voxels `where` in the unit ball that a shape is mapped to by direction and depth.

    Depth is ranked, so that equal shares of two shapes lie at equal radii; outside, 1 + distance over the radius.
    """
    depth = ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    beyond = ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    ranks = np.searchsorted(np.sort(depth[inside]), depth[where], side="right") / max(1, int(inside.sum()))
    radius_mm = equivalent_diameter(int(inside.sum()), spacing_mm, planar) / 2
    radius = np.where(inside[where], np.clip(1 - ranks, 0, 1) ** (1 / (2 if planar else 3)),
                      1 + beyond[where] / radius_mm)
    # The deepest point, not the centroid: a bent lesion's centroid may lie outside it.
    deepest = np.argwhere(depth >= 0.95 * depth.max()).mean(axis=0)
    direction = (np.argwhere(where) - deepest) * spacing_mm
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
    return np.asarray(direction * radius[:, None])


def _clothed(donor: Lesion, inside: NDArray[np.bool_]) -> Lesion:
    """A lesion of another shape with the donor's labels and values at like depth and direction."""
    own = donor.labels > 0
    spacing, planar = donor.spacing_mm, donor.planar
    labels = np.zeros(inside.shape, np.uint8)
    at, donor_at = _ball(inside, spacing, planar, inside), _ball(own, spacing, planar, own)
    first = donor.labels[own][cKDTree(donor_at).query(at)[1]]
    labels[inside] = first
    # A nearest-neighbour map leaves single stray voxels; each takes the commonest label around it.
    shares = np.stack([ndimage.gaussian_filter((labels == v).astype(np.float32), (0.7, 0.7, 0 if planar else 0.7))
                       for v in sorted(donor.present())])
    labels = np.where(inside, np.array(sorted(donor.present()), np.uint8)[shares.argmax(axis=0)], 0).astype(np.uint8)
    image = np.broadcast_to(donor.surroundings[:, None, None, None], (len(donor.image), *inside.shape)).copy()
    texture, smooth = _texture(donor)
    for value in np.unique(labels[inside]):
        source, target = donor.labels[own] == value, labels[inside] == value
        tree = cKDTree(donor_at[source])
        near = tree.query(at[target], k=range(1, 1 + min(NEAREST, int(source.sum()))))[1]
        image[:, labels == value] = smooth[:, donor.labels == value][:, near].mean(axis=-1)
    image[:, inside] += texture[:, own][:, _moved(own, inside)]
    _surround(image, inside, donor)
    centre = np.array(ndimage.center_of_mass(inside))
    return replace(donor, image=image.astype(np.float32), labels=labels,
                   corner=np.round(donor.centre - centre).astype(np.intp))


def _texture(donor: Lesion) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(C, x, y, z) the donor's fine texture, and what is left without it; averages stay within each label."""
    sigma = TEXTURE_VOXELS * np.array([1, 1, 0 if donor.planar else 1])
    smooth = donor.image.copy()
    for value in donor.present():
        where = donor.labels == value
        share = np.maximum(ndimage.gaussian_filter(where.astype(np.float32), sigma), 1e-6)
        for channel in smooth:
            channel[where] = (ndimage.gaussian_filter(np.where(where, channel, 0), sigma) / share)[where]
    return donor.image - smooth, smooth


def _moved(own: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(n,) for each voxel of a shape, which of the donor's voxels (in order) lies there, or beside it reflected.

    Unlike a map by depth, a shift keeps neighbours together, and with them texture.
    """
    points, home = np.argwhere(inside), np.argwhere(own)
    places = points + np.round(home.mean(axis=0) - points.mean(axis=0)).astype(int)
    tree = cKDTree(home)
    away, nearest = tree.query(places)
    outside = away > 0
    mirrored = 2 * home[nearest[outside]] - places[outside]
    nearest[outside] = tree.query(mirrored)[1]
    return np.asarray(nearest)


def _surround(image: NDArray[np.float32], inside: NDArray[np.bool_], donor: Lesion) -> None:
    """Writes what lies around the donor into the shell around a shape: the median at each distance.

    The median, since a donor at the brain's edge has the dark beyond it on one side, and the new place may not.
    """
    spacing = donor.spacing_mm
    step = float(spacing[:2].min())
    ours = ndimage.distance_transform_edt(~inside, sampling=spacing) / step
    theirs = ndimage.distance_transform_edt(donor.labels == 0, sampling=spacing) / step
    for ring in range(int(SHELL_VOXELS)):
        source, target = (theirs > ring) & (theirs <= ring + 1), (ours > ring) & (ours <= ring + 1)
        if source.any() and target.any():
            image[:, target] = np.median(donor.image[:, source], axis=1)[:, None]
