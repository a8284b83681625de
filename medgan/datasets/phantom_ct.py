"""CT phantoms: the torso with lung nodules and liver lesions, seen by a scanner, and the same body for X-ray."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.phantom_shapes import Canvas, Field, Point, Segment, blur, place, size_mm, smooth_step
from medgan.datasets.phantom_torso import ORGANS, Torso, paint_torso

BACKGROUND, NODULE, LIVER_LESION = 0, 1, 2
#: Diameters in mm between which lesions are drawn.
NODULE_MM, LIVER_LESION_MM = (6.0, 25.0), (10.0, 40.0)


def ct_case(
    canvas: Canvas, rng: np.random.Generator, count: int, middle: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """A CT in HU, its lesion mask and its organ map.

    Args:
        canvas: An empty canvas of -1000 HU.
        rng: Source of everything.
        count: How many lesions.
        middle: Whether every lesion must cross the middle slice.
    """
    torso = paint_torso(canvas, rng)
    mask = np.zeros_like(canvas.organs)
    least = 0.8 * max(step * scale for step, scale in zip(canvas.steps_mm, canvas.scale, strict=True))
    taken: list[tuple[Point, float]] = []
    for _ in range(count):
        order = [NODULE, LIVER_LESION] if rng.random() < 0.5 else [LIVER_LESION, NODULE]
        for kind in order:
            low, high = NODULE_MM if kind == NODULE else LIVER_LESION_MM
            organ = torso.lung if kind == NODULE else torso.liver
            radius = size_mm(low, high, least, rng)
            centre = place(canvas, organ, 0.75 * radius, radius, rng, taken, middle)
            if centre is not None:
                taken.append((centre, radius))
                paint_nodule(torso, mask, centre, radius, rng) if kind == NODULE else _liver_lesion(
                    torso, mask, centre, radius, rng
                )
                break
    return _scan(canvas, rng), mask, canvas.organs


def paint_nodule(
    torso: Torso, mask: NDArray[np.uint8], centre: Point, radius_mm: float, rng: np.random.Generator
) -> None:
    """A solid lung nodule of about 30 HU, often spiculated, with a softer core when it is large."""
    canvas = torso.canvas
    box, distance = canvas.lesion(centre, radius_mm, rng.uniform(0.08, 0.28), rng)
    coverage = canvas.soft(distance) * canvas.soft(torso.lung[box] - 1)
    value = rng.uniform(20, 42) + 7 * canvas.noise(4, rng, box)
    if radius_mm > 9:
        value = value - 14 * smooth_step(distance, -0.35 * radius_mm, -0.7 * radius_mm)
    canvas.blend(coverage, np.asarray(value, np.float32), ORGANS["lung"], box)
    mask[box][coverage >= 0.5] = NODULE
    if rng.random() < 0.5:
        spicules = []
        for _ in range(int(rng.integers(4, 9))):
            heading = rng.standard_normal(3)
            heading *= 1 / np.linalg.norm(heading) / np.array(canvas.scale)
            tip = np.array(centre) + heading * radius_mm * rng.uniform(1.5, 2.1)
            spicules.append(Segment(centre, (float(tip[0]), float(tip[1]), float(tip[2])), 0.22 * radius_mm, 0.3))
        strands = canvas.tubes(spicules, posed=False) * canvas.soft(torso.lung)
        # Strands are no part of the labelled nodule, and must not paint over it.
        canvas.blend(np.asarray(strands * (mask == 0), np.float32), 0, ORGANS["lung"])


def _liver_lesion(
    torso: Torso, mask: NDArray[np.uint8], centre: Point, radius_mm: float, rng: np.random.Generator
) -> None:
    """A hypodense lesion 30 to 60 HU below the liver; larger ones have a brighter rim and a darker core."""
    canvas = torso.canvas
    box, distance = canvas.lesion(centre, radius_mm, rng.uniform(0.06, 0.2), rng)
    liver = canvas.soft(torso.liver[box])
    coverage = canvas.soft(distance) * liver
    drop = rng.uniform(34, 54) + 5 * canvas.noise(6, rng, box)
    if radius_mm > 9:
        inner = smooth_step(distance, -0.25 * radius_mm, -0.6 * radius_mm)
        drop = drop - 6 + 12 * inner - rng.uniform(0, 8) * (1 - smooth_step(distance, 0, -0.2 * radius_mm))
    canvas.blend(coverage, np.asarray(106 - drop, np.float32), ORGANS["liver"], box)
    mask[box][coverage >= 0.5] = LIVER_LESION


def _scan(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.int16]:
    """What the scanner makes of it: point spread, then noise that is correlated within the slice."""
    sharp = blur(canvas.image, canvas.steps_mm, 0.45 * canvas.edge_mm)
    noise = _slice_noise(sharp.shape, rng)
    sigma = rng.uniform(10, 22)
    # Rays through the middle of the body are weakened most.
    dose = 0.75 + 0.25 * np.exp(-np.square(canvas.x / 110) - np.square(canvas.y / 80))
    return np.asarray(np.rint(np.clip(sharp + sigma * dose * noise, -1024, 3071)), np.int16)


def _slice_noise(shape: tuple[int, ...], rng: np.random.Generator) -> Field:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0.55, 0.55, 0.3))
    return np.asarray(noise / noise.std(), np.float32)
