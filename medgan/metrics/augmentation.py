"""The usual augmentation of training crops: flips, rotation, scale, gamma and brightness, a batch at a time.

What MONAI's RandFlip, RandAffine, RandAdjustContrast, RandScaleIntensity and RandShiftIntensity do with these ranges.
Their dictionary versions take 5 ms a crop of 96², longer than a network this small takes to learn from it, so the
geometry goes through MONAI's batched `AffineTransform` and the intensities through the same formulas for all at once.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from monai.networks.layers import AffineTransform
from torch import Tensor

from medgan.metrics.examples import OUTSIDE

#: Degrees, and parts of the size.
TURN, ZOOM = 15.0, 0.15
#: Half of the crops are mirrored along their first axis, left and right; the others are not symmetrical in a body.
MIRRORED = 0.5
#: How often gamma changes, between these two; and each of scale and shift, by up to these network values.
OFTEN, GAMMA, SCALE, SHIFT = 0.5, (0.7, 1.5), 0.1, 0.1
#: How far above `OUTSIDE` a value is tissue, and not rounding.
INSIDE = 1e-3


def disturbed(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Crops turned, scaled, mirrored, and changed in gamma, scale and shift, each by itself.

    Args:
        images: (B, C, X, Y) network values, `OUTSIDE` where there is no tissue.
        labels: (B, 1, X, Y) indices.
        rng: Draws it all; two arms that pass the same get the same.

    Returns:
        Both, changed alike; where nothing was seen the images are `OUTSIDE` and the labels 0.
    """
    count = len(images)
    angle = np.deg2rad(rng.uniform(-TURN, TURN, count))
    zoom = 1 + rng.uniform(-ZOOM, ZOOM, count)
    mirror = np.where(rng.random(count) < MIRRORED, -1.0, 1.0)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    rows = np.array([[cos * mirror, -sin, 0 * cos], [sin * mirror, cos, 0 * cos]], np.float32).transpose(2, 0, 1)
    theta = torch.from_numpy(rows.copy()).to(images.device)
    # Above OUTSIDE, so that the zeros beyond the edge are outside too.
    above = _mover("bilinear")(images - OUTSIDE, theta)
    moved = _mover("nearest")(labels.to(images.dtype), theta)
    return contrasted(above, rng) + OUTSIDE, moved.to(labels.dtype)


def contrasted(above: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (B, C, X, Y) as values above `OUTSIDE` with another gamma, scale and shift; 0 stays 0."""
    count = len(above)
    often = rng.random((3, count)) < OFTEN
    gamma = np.where(often[0], rng.uniform(*GAMMA, count), 1.0)
    scale = np.where(often[1], 1 + rng.uniform(-SCALE, SCALE, count), 1.0)
    shift = np.where(often[2], rng.uniform(-SHIFT, SHIFT, count), 0.0)
    factors = [torch.from_numpy(values.astype(np.float32)).to(above.device)[:, None, None, None]
               for values in (gamma, scale, shift)]
    # As MONAI does it: over the crop's own range, whose lower end is 0 here.
    top = above.amax((1, 2, 3), keepdim=True).clamp_min(INSIDE)
    tissue = above > INSIDE
    curved = top * (above.clamp_min(0) / top) ** factors[0]
    # Scale and shift are of network values, which lie `OUTSIDE` higher than these.
    return torch.where(tissue, (curved + OUTSIDE) * factors[1] + factors[2] - OUTSIDE, 0.0)


@functools.cache
def _mover(mode: str) -> AffineTransform:
    return AffineTransform(normalized=True, mode=mode, padding_mode="zeros", align_corners=False)
