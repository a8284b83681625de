"""Gates: what a made lesion must pass before it is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgan.lesions.library import Library
from medgan.lesions.placement import Site


@dataclass(frozen=True)
class Verdict:
    """What the gates say of one made lesion.

    Args:
        passed: Whether it is kept.
        deviation: Largest distance of a label's mean from the real lesions' mean, in their standard deviations.
        contrast: Mean absolute difference from what stood there before, in network values.
    """

    passed: bool
    deviation: float
    contrast: float


def judge(before: NDArray[np.float32], after: NDArray[np.float32], site: Site, library: Library,
          sigmas: float) -> Verdict:
    """Holds a made lesion's values against the real lesions', label by label and channel by channel.

    Args:
        before: (C, x, y, z) network values of the box as they were.
        after: The same with the lesion.
        site: Where it is.
        library: The real lesions.
        sigmas: The largest deviation that passes.
    """
    worst = 0.0
    for index in np.unique(site.labels[site.labels > 0]):
        known = library.statistics.get(int(index))
        if known is None:
            continue
        mean = after[:, site.labels == index].mean(axis=1)
        worst = max(worst, float((np.abs(mean - known.mean) / np.maximum(known.deviation, 1e-3)).max()))
    lesion = site.labels > 0
    contrast = float(np.abs(after[:, lesion] - before[:, lesion]).mean())
    finite = bool(np.isfinite(after).all())
    return Verdict(finite and worst <= sigmas, worst, contrast)
