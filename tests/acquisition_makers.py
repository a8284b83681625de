"""Volumes and measures of the scanner's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.imaging.slices import _cumulative


def density(profile: Any, thickness_mm: float, at_mm: NDArray[Any], step_mm: float = 1e-4) -> NDArray[Any]:
    """The profile itself, from the integral that the matrices are made of."""
    ends = (_cumulative(profile, (at_mm + side * step_mm / 2) / thickness_mm) for side in (1, -1))
    return np.asarray(np.subtract(*ends) / step_mm)
