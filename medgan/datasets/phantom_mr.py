"""MR phantoms: a FLAIR-like head with folded cortex, white-matter lesions and a tumour with oedema.

Anatomical coordinates are millimetres of an average adult, x to the right, y to the front, z up, with the origin
near the middle of the brain. Values are arbitrary units in which white matter is near 100 before the receiver's gain.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.phantom_shapes import (
    Canvas,
    Field,
    Point,
    Segment,
    blur,
    path,
    place,
    size_mm,
    smooth_max,
    smooth_min,
    smooth_step,
    superellipsoid,
)

#: Organ labels of the MR phantom, by name.
ORGANS: dict[str, int] = {
    "air": 0, "scalp": 1, "skull": 2, "csf": 3, "grey": 4, "white": 5, "deep_grey": 6, "cerebellum": 7,
    "brainstem": 8, "muscle": 9, "eye": 10, "sinus": 11,
}  # fmt: skip

BACKGROUND, LESION, TUMOUR = 0, 1, 2
#: Diameters in mm between which lesions are drawn; the tumour's is that of the oedema.
LESION_MM, TUMOUR_MM = (4.5, 15.0), (32.0, 66.0)

_CSF, _WHITE, _GREY = 22.0, 96.0, 126.0


def mr_case(
    canvas: Canvas, rng: np.random.Generator, count: int, middle: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """A FLAIR-like head in arbitrary units, its lesion mask and its organ map.

    Args:
        canvas: An empty canvas of zeros.
        rng: Source of everything.
        count: How many lesions, a tumour counted as one.
        middle: Whether every lesion must cross the middle slice.
    """
    canvas.warp(rng.uniform(1.2, 2.2), 45.0, rng)
    brain = _head(canvas, rng)
    csf, white = _brain(canvas, brain, rng)
    inside = _white_matter(canvas, brain, csf)
    mask = np.zeros_like(canvas.organs)
    taken: list[tuple[Point, float]] = []
    least = 0.8 * max(step * scale for step, scale in zip(canvas.steps_mm, canvas.scale, strict=True))
    tumours = 1 if count and rng.random() < 0.45 else 0
    for number in range(count):
        is_tumour = number < tumours
        low, high = TUMOUR_MM if is_tumour else LESION_MM
        radius = size_mm(low, high, least, rng)
        # Oedema spreads around the sulci, so only the middle of a tumour has to lie in white matter.
        depth = min(radius, 5.0) if is_tumour else 0.7 * radius
        centre = place(canvas, inside, depth, radius, rng, taken, middle)
        if centre is None:
            continue
        taken.append((centre, radius))
        if is_tumour:
            _tumour(canvas, mask, centre, radius, csf, white, rng)
        else:
            _plaque(canvas, mask, centre, radius, csf, rng)
    return _scan(canvas, rng), mask, canvas.organs


def _head(canvas: Canvas, rng: np.random.Generator) -> Field:
    """Scalp, skull, face and neck; returns the level set of the cranial cavity."""
    x, y, z = canvas.x, canvas.y, canvas.z
    wide, long, high = rng.uniform(63, 68), rng.uniform(80, 86), rng.uniform(59, 63)
    # The skull is widest behind the middle.
    broad = 1 - 0.0011 * (y + 10)
    vault = superellipsoid(x / broad, y, z + 3, (wide, long, high), 2.25)
    floor = np.asarray((-34 + 7 * smooth_step(y, 10, 45) - 22 * smooth_step(y, 0, -22) - z) * 0.9, np.float32)
    cranium = smooth_max(np.asarray(vault, np.float32), floor, 10)
    temporal = superellipsoid(np.abs(x) - 37, y - 4, z + 34, (23, 36, 20), 2.2)
    cranium = smooth_min(cranium, temporal, 6)
    fossa = superellipsoid(x, y + 44, z + 44, (50, 34, 28), 2.2)
    cranium = smooth_min(cranium, fossa, 8)

    up = np.where(z > -14, z + 3, 0.28 * (z + 14) + 11).astype(np.float32)
    outer = superellipsoid(x / broad, y - 1, up, (wide + 15, long + 15, high + 14), 2.3)
    neck = smooth_step(z, -38, -72)
    # Behind, the head narrows to the neck; in front, nose and cheeks stay.
    outer = smooth_max(outer, np.asarray(-y - 62 - 40 * (1 - neck), np.float32), 12)
    fat = 4.5 + 1.5 * neck + 1.2 * canvas.noise(40, rng)
    canvas.paint(outer, 70, ORGANS["scalp"])
    canvas.paint(np.asarray(outer + 1.6, np.float32), rng.uniform(165, 190), ORGANS["scalp"])
    # Fat lies in sheets between the muscles of face and neck: the zero crossings of a smooth field.
    sheets = np.exp(-np.square(canvas.noise(14, rng) / 0.22))
    canvas.paint(np.asarray(outer + fat, np.float32), np.asarray(56 + 45 * sheets, np.float32), ORGANS["muscle"])
    table = rng.uniform(6.0, 7.5)
    canvas.paint(cranium - table, 8, ORGANS["skull"])
    diploe = np.abs(cranium - 0.52 * table) - (0.9 + 0.5 * canvas.noise(30, rng))
    canvas.paint(np.asarray(diploe, np.float32), 78, ORGANS["skull"])

    for side in (-1, 1):
        canvas.fill_ellipsoid((side * 31.0, 66, -36), (20, 22, 17), 170, ORGANS["scalp"])
        canvas.fill_ellipsoid((side * 31.0, 75, -36), (13.0, 13, 13), 60, ORGANS["eye"])
        canvas.fill_ellipsoid((side * 31.0, 75, -36), (11.4, 11.4, 11.4), 20, ORGANS["eye"])
        nerve = path([(side * 30.0, 64, -36), (side * 12.0, 36, -34)], 2.0, 2.0)
        canvas.blend(canvas.tubes(nerve), 90, ORGANS["muscle"])
        canvas.fill_ellipsoid((side * 32.0, 62, -66), (16, 18, 15), 6, ORGANS["sinus"])
        canvas.fill_ellipsoid((side * 7.0, 58, -50), (5, 26, 20), 6, ORGANS["sinus"])
        canvas.fill_ellipsoid((side * 54.0, -26, -50), (10, 14, 18), 14, ORGANS["sinus"])
        canvas.fill_ellipsoid((side * 10.0, 92, -2), (11, 5, 9), 6, ORGANS["sinus"])
    canvas.fill_ellipsoid((0, 26, -44), (13, 10, 9), 6, ORGANS["sinus"])
    canvas.fill_ellipsoid((0, 22, -78), (14, 9, 16), 4, ORGANS["sinus"])
    canvas.fill_ellipsoid((0, 4, -60), (17, 13, 22), 84, ORGANS["skull"])
    canvas.paint(cranium, _CSF, ORGANS["csf"])
    return cranium


def _folds(canvas: Canvas, where: NDArray[np.bool_], wave_mm: float, rng: np.random.Generator) -> Field:
    """Distance in mm to the nearest fold of a random labyrinth that runs straight down from the surface.

    A sum of plane waves of one wavelength is evaluated on the direction from the middle of the brain, so that the
    sheets where it vanishes stand upright like sulci; its gradient turns values into distances.
    """
    points = np.stack([c[where] for c in (canvas.x, canvas.y, canvas.z)], axis=-1).astype(np.float32)
    points[:, 2] -= 6
    radius = np.linalg.norm(points / np.array((66, 84, 64), np.float32), axis=-1, keepdims=True)
    points = points / np.maximum(radius, 0.35)
    value = np.zeros(len(points), np.float32)
    slope = np.zeros((3, len(points)), np.float32)
    for _ in range(22):
        k = rng.standard_normal(3)
        k = (k / np.linalg.norm(k) * 2 * np.pi / wave_mm * rng.uniform(0.85, 1.15)).astype(np.float32)
        angle = points[:, 0] * k[0] + points[:, 1] * k[1] + points[:, 2] * k[2] + np.float32(rng.uniform(0, 2 * np.pi))
        value += np.cos(angle)
        sine = np.sin(angle)
        for dim in range(3):
            slope[dim] -= k[dim] * sine
    steep = np.sqrt(np.square(slope).sum(axis=0)) + 0.25 * np.float32(2 * np.pi / wave_mm)
    folds = np.full(canvas.image.shape, 99, np.float32)
    folds[where] = np.abs(value) / steep * np.clip(radius[:, 0], 0.35, 1)
    return folds


def _brain(canvas: Canvas, cranium: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Cerebrum, ventricles, deep grey matter, cerebellum and stem; returns the shares of CSF and white matter."""
    x, y, z = canvas.x, canvas.y, canvas.z
    depth = -cranium - np.float32(rng.uniform(1.0, 2.2))
    atrophy = rng.uniform(0.5, 1.1)
    folds = _folds(canvas, cranium < 0, rng.uniform(21, 25), rng)
    reach = rng.uniform(13, 17) + 3 * canvas.noise(30, rng)
    sulci = np.hypot(folds, np.maximum(depth - reach, 0))
    # The fissure between the hemispheres ends on the corpus callosum.
    bow = superellipsoid(np.zeros_like(x), y + 4, z + 4, (1, 40, 27), 2.2)
    wander = np.abs(x + 1.2 * canvas.noise(22, rng))
    cleft = np.hypot(wander, np.maximum(-bow, 0))
    sheet = np.abs(z + 8 - 0.22 * y + 2.5 * canvas.noise(25, rng))
    outside = np.maximum(np.maximum(depth - 24, np.abs(y - 8) - 34), 0)
    lateral = np.hypot(sheet, np.maximum(outside, 0))
    surface = np.minimum(np.minimum(depth, sulci + 0.15), np.minimum(cleft + 0.3, lateral + 0.2))
    # Tent and brain stem separate the cerebrum from what lies below it.
    tent = np.asarray(z + 10 + 0.44 * np.maximum(-y - 28, 0) + 0.2 * np.abs(x), np.float32)
    behind = smooth_step(y, -16, -24)
    surface = np.minimum(surface, np.where(behind > 0, tent + 60 * (1 - behind), 99))
    surface = np.asarray(surface, np.float32)
    ribbon = rng.uniform(2.6, 3.2)
    tissue = canvas.paint(np.asarray(atrophy - surface, np.float32), _GREY, ORGANS["grey"])
    white = canvas.paint(np.asarray(atrophy + ribbon - surface, np.float32), _WHITE, ORGANS["white"])
    _deep(canvas, white, rng)
    csf = np.asarray(1 - tissue, np.float32)
    csf = np.maximum(csf, _ventricles(canvas, rng))
    _hindbrain(canvas, cranium, tent, rng)
    return csf, white


def _deep(canvas: Canvas, white: Field, rng: np.random.Generator) -> None:
    """Caudate, lentiform nucleus and thalamus."""
    for side in (-1, 1):
        m = np.array([[0.94, side * 0.34, 0], [side * -0.34, 0.94, 0], [0, 0, 1]])
        for centre, radii, value in (
            ((side * 26.0, 4.0, -2.0), (7.0, 17.0, 12.0), 114.0),
            ((side * 20.0, 1.0, -3.0), (4.5, 10.0, 8.0), 90.0),
            ((side * 12.0, -14.0, 2.0), (9.5, 15.0, 10.0), 112.0),
            ((side * 13.0, 20.0, 4.0), (6.0, 13.0, 11.0), 118.0),
        ):
            grown = rng.uniform(0.92, 1.08)
            a, b, c = radii
            canvas.fill_ellipsoid(centre, (a * grown, b * grown, c * grown), value, ORGANS["deep_grey"], m)


def _ventricles(canvas: Canvas, rng: np.random.Generator) -> Field:
    """Lateral, third and fourth ventricles; returns their coverage."""
    size = rng.uniform(0.8, 1.35)
    tubes: list[Segment] = []
    for side in (-1, 1):
        w = side * rng.uniform(0.92, 1.08)
        tubes += path([(w * 6, 32, 2), (w * 8, 20, 11), (w * 11, 0, 17), (w * 16, -20, 16), (w * 24, -38, 5)],
                      4.2 * size, 6.6 * size)  # fmt: skip
        tubes += path([(w * 24, -38, 5), (w * 25, -56, 0)], 5.5 * size, 1.5)
        tubes += path([(w * 24, -38, 5), (w * 31, -28, -12), (w * 31, -4, -24)], 4.5 * size, 1.5)
    horns = canvas.tubes(tubes)
    third = canvas.ellipsoid((0, -8, -4), (2.2 * size, 15, 11))
    fourth = canvas.ellipsoid((0, -34, -42), (7, 6, 11))
    for found in (third, fourth):
        if found is not None:
            horns[found[0]] = np.maximum(horns[found[0]], canvas.soft(found[1]))
    canvas.blend(horns, _CSF - 3, ORGANS["csf"])
    return horns


def _hindbrain(canvas: Canvas, cranium: Field, tent: Field, rng: np.random.Generator) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    cerebellum = superellipsoid(x, y + 44, z + 44, (60, 40, 36), 2.6)
    cerebellum = smooth_max(cerebellum, np.asarray(y + 15, np.float32), 8)
    vermis = 4 * np.exp(-np.square(x / 7)) * smooth_step(y, -56, -72)
    cerebellum = smooth_max(np.asarray(cerebellum + vermis, np.float32), tent + 1, 2)
    cerebellum = smooth_max(cerebellum, cranium + 1.5, 3)
    canvas.paint(cerebellum, 112, ORGANS["cerebellum"])
    # Leaves lie like the skins of an onion around the middle peduncle.
    ring = np.sqrt(np.square(x / 1.5) + np.square(y + 34) + np.square((z + 44) * 1.2)) + 3.5 * canvas.noise(11, rng)
    leaves = np.cos(ring * (np.pi / 6.0)) ** 6 * smooth_step(cerebellum, -15, -6)
    canvas.image -= np.asarray(34 * leaves * canvas.soft(cerebellum), np.float32)
    core = superellipsoid(np.abs(x) - 17, y + 42, z + 46, (17, 13, 10), 2.0) + 2.5 * canvas.noise(8, rng)
    canvas.paint(np.asarray(np.maximum(core, cerebellum + 3), np.float32), 94, ORGANS["cerebellum"])
    for segments, value in (
        (path([(0, -12, -12), (0, -14, -26)], 15, 13), 98.0),
        (path([(0, -15, -28), (0, -20, -46)], 15, 12), 96.0),
        (path([(0, -24, -50), (0, -34, -90)], 9, 7), 96.0),
    ):
        canvas.blend(canvas.tubes(segments), value, ORGANS["brainstem"])
    fourth = canvas.ellipsoid((0, -35, -42), (7, 5, 10))
    if fourth is not None:
        canvas.paint(fourth[1], _CSF, ORGANS["csf"], fourth[0])


def _white_matter(canvas: Canvas, cranium: Field, csf: Field) -> Field:
    """A level set, in mm, of the white matter of the hemispheres."""
    from scipy import ndimage

    inside = (canvas.organs == ORGANS["white"]) & (cranium < -6) & (csf < 0.1) & (canvas.z > -24)
    return np.asarray(-ndimage.distance_transform_edt(inside, sampling=canvas.steps_mm), np.float32)


def _plaque(
    canvas: Canvas, mask: NDArray[np.uint8], centre: Point, radius_mm: float, csf: Field, rng: np.random.Generator
) -> None:
    """A bright white-matter lesion with a fuzzy, irregular border."""
    box, distance = canvas.lesion(centre, radius_mm, rng.uniform(0.08, 0.25), rng)
    coverage = canvas.soft(distance) * (1 - csf[box])
    value = rng.uniform(165, 190) + 6 * canvas.noise(4, rng, box)
    if radius_mm > 5:
        value = value - 18 * smooth_step(distance, -0.4 * radius_mm, -0.8 * radius_mm)
    image = canvas.image[box]
    image += coverage * (value - image)
    mask[box][coverage >= 0.5] = LESION


def _tumour(canvas: Canvas, mask: NDArray[np.uint8], centre: Point, radius_mm: float, csf: Field, white: Field,
            rng: np.random.Generator) -> None:  # fmt: skip
    """Oedema that runs along the white matter around a bright ring with a dark, necrotic core."""
    box, distance = canvas.lesion(centre, radius_mm, rng.uniform(0.14, 0.24), rng)
    # Oedema respects the cortex: only what lies deep in the tumour takes the grey matter too.
    spread = np.maximum(white[box], smooth_step(distance, -0.35 * radius_mm, -0.6 * radius_mm))
    brain = np.isin(canvas.organs[box], [ORGANS[name] for name in ("grey", "white", "deep_grey", "csf")])
    coverage = canvas.soft(distance) * spread * (1 - csf[box]) * brain
    value = rng.uniform(158, 176) + 6 * canvas.noise(9, rng, box)
    rough = 0.07 * canvas.noise(0.3 * radius_mm + 2, rng, box)
    core = distance + (rng.uniform(0.45, 0.58) + rough) * radius_mm
    ring_mm = rng.uniform(0.13, 0.2) * radius_mm
    value = value + canvas.soft(np.asarray(core, np.float32)) * (rng.uniform(196, 212) - value)
    value = value + canvas.soft(np.asarray(core + ring_mm, np.float32)) * (rng.uniform(55, 80) - value)
    image = canvas.image[box]
    image += np.asarray(coverage, np.float32) * (value - image)
    mask[box][coverage >= 0.5] = TUMOUR


def _scan(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.int16]:
    """What the scanner makes of it: texture, point spread, the coils' uneven sensitivity, Rician noise, a gain."""
    living = canvas.image * (1 + np.float32(0.025) * canvas.noise(4, rng))
    bias = np.exp(np.float32(0.12) * canvas.noise(110, rng))
    signal = blur(np.asarray(living * bias, np.float32), canvas.steps_mm, 0.4 * canvas.edge_mm)
    sigma = np.float32(rng.uniform(1.8, 3.6))
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.rint(np.hypot(real, imaginary) * rng.uniform(4, 7)), np.int16)
