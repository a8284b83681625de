"""X-ray phantoms: chest radiographs projected (Beer-Lambert) through a finely sampled CT phantom."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.datasets.phantom_ct import paint_nodule
from medgan.datasets.phantom_shapes import Canvas, Field, Point, place, size_mm, smooth_step
from medgan.datasets.phantom_torso import ORGANS, Torso, paint_torso

BACKGROUND, NODULE, OPACITY = 0, 1, 2
#: Diameters in mm between which lesions are drawn.
NODULE_MM, OPACITY_MM = (10.0, 30.0), (56.0, 120.0)
#: A lesion is marked where it adds more than this share of the most that it adds along the beam.
_SHADOW_SHARE = 0.25
#: Attenuation of water at the mean energy of a 120 kVp beam, per mm.
_WATER_PER_MM = 0.0185


def xray_case(
    canvas: Canvas, rng: np.random.Generator, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A frontal chest radiograph, its lesion mask and its organ map, each (X, Z).

    Args:
        canvas: An empty canvas of -1000 HU; the beam runs along y.
        rng: Source of everything.
        count: How many lesions.

    Returns:
        Radiograph uint8 with bone bright, mask uint8, and the organ map: lung where the beam crosses more than
        20 mm of it, else bone, else the tissue that the beam crosses longest.
    """
    torso = paint_torso(canvas, rng, standing=True)
    shadows = np.zeros((canvas.image.shape[0], canvas.image.shape[2]), np.uint8)
    least = 1.5 * max(canvas.steps_mm[0] * canvas.scale[0], canvas.steps_mm[2] * canvas.scale[2])
    taken: list[tuple[Point, float]] = []
    hazes = [rng.random() < 0.45 for _ in range(count)]
    # Haze first, so that a nodule is never buried under one painted later.
    for is_haze in sorted(hazes, reverse=True):
        low, high = OPACITY_MM if is_haze else NODULE_MM
        radius = size_mm(low, high, least, rng)
        depth = 12.0 if is_haze else 0.75 * radius
        centre = place(canvas, torso.lung, depth, radius, rng, taken, middle=False)
        if centre is None:
            continue
        taken.append((centre, radius))
        before = canvas.image.copy()
        if is_haze:
            _haze(torso, centre, radius, rng)
        else:
            paint_nodule(torso, np.zeros_like(canvas.organs), centre, radius, rng)
        added = (canvas.image - before).sum(axis=1)
        shadows[added > _SHADOW_SHARE * added.max()] = OPACITY if is_haze else NODULE
    return _expose(canvas, rng), shadows, _flat_organs(canvas)


def _haze(torso: Torso, centre: Point, radius_mm: float, rng: np.random.Generator) -> None:
    """Patchy consolidation as in pneumonia: air spaces fill up, densest in the middle, with a cloudy border."""
    canvas = torso.canvas
    box, distance = canvas.lesion(centre, radius_mm, rng.uniform(0.15, 0.28), rng)
    lung = canvas.soft(torso.lung[box])
    clouds = np.clip(0.75 + 0.3 * canvas.noise(9, rng, box), 0.2, 1.1)
    filled = smooth_step(distance, 0.15 * radius_mm, -0.4 * radius_mm) * clouds * rng.uniform(0.55, 0.85)
    image = canvas.image[box]
    image += np.asarray(filled * lung, np.float32) * (20 - image)


def _expose(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Beam, scatter, quantum noise, and the logarithmic display curve of a digital detector."""
    density = 1 + canvas.image / np.float32(1000)
    # Bone's calcium absorbs more than its density alone.
    density += np.maximum(canvas.image - 130, 0) * np.float32(1.6e-3)
    path_mm = np.maximum(density, 0).sum(axis=1) * canvas.steps_mm[1] * canvas.scale[1]
    beam = np.exp(-_WATER_PER_MM * path_mm)
    steps = canvas.steps_mm[0] * canvas.scale[0], canvas.steps_mm[2] * canvas.scale[2]
    scatter = ndimage.gaussian_filter(beam, [35 / step for step in steps], mode="nearest")
    beam = ndimage.gaussian_filter(beam, [0.6 / step for step in steps]) + rng.uniform(0.15, 0.3) * scatter
    photons = rng.uniform(1.5e5, 4e5)
    beam = beam + np.sqrt(beam / photons) * rng.standard_normal(beam.shape)
    film = -np.log(np.maximum(beam, 1e-4))
    # Detectors flatten the broad differences so that lung and mediastinum both stay readable.
    broad = ndimage.gaussian_filter(film, [40 / step for step in steps], mode="nearest")
    film = film - rng.uniform(0.4, 0.55) * (broad - broad.mean())
    low, high = np.percentile(film, (6.0, 98.5))
    curve = np.clip((film - low) / (high - low), 0, 1) ** rng.uniform(1.15, 1.55)
    return np.asarray(np.rint(255 * curve), np.uint8)


def _flat_organs(canvas: Canvas) -> NDArray[np.uint8]:
    """Organ labels seen along the beam."""
    lengths: list[Field] = [
        np.asarray((canvas.organs == label).sum(axis=1) * canvas.steps_mm[1], np.float32) for label in ORGANS.values()
    ]
    stack = np.stack(lengths)
    flat = np.argmax(stack[1:], axis=0) + 1
    flat[stack[ORGANS["bone"]] > 6] = ORGANS["bone"]
    flat[stack[ORGANS["lung"]] > 20] = ORGANS["lung"]
    flat[stack[1:].sum(axis=0) == 0] = ORGANS["air"]
    return np.asarray(flat, np.uint8)
