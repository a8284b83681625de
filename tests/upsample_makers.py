"""Volumes that up-sampling is tested on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from medgan.datasets.phantoms import phantom
from medgan.imaging.volume import Volume

#: Oblique: turned by 0.2 about x, with spacings of 0.9, 1 and 3 mm.
AFFINE = np.array([[-0.9, 0, 0, 40], [0, np.cos(0.2), -3 * np.sin(0.2), -30], [0, np.sin(0.2), 3 * np.cos(0.2), 7.5],
                   [0, 0, 0, 1]])


def small(dtype: Any = np.int16, channels: int = 1) -> Volume:
    array = np.random.default_rng(0).normal(0, 300, (channels, 12, 14, 6))
    return Volume(ndimage.gaussian_filter(array, (0, 2, 2, 1)).astype(dtype), AFFINE, modality="mr")


def head() -> Volume:
    image, _ = phantom("mr", 77, shape=(60, 72, 48), spacing_mm=(1.2, 1.2, 1.2))
    return replace(image, array=image.array.astype(np.float32))
