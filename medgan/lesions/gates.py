"""Gates: what a made lesion must pass before it is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgan.config import Augment
from medgan.lesions.library import Library
from medgan.lesions.placement import Site


@dataclass(frozen=True)
class Verdict:
    """What the gates say of one made lesion.

    Args:
        passed: Whether it is kept.
        deviation: Largest distance of a label's mean from the real lesions' mean, in their standard deviations.
        visibility: Difference of its commonest label from what surrounds it over that of real lesions, in the channel
            where real ones stand out most: 1 is as visible as the mean real lesion, below 0 the wrong way round.
        contrast: Mean absolute difference from what stood there before, in network values.
    """

    passed: bool
    deviation: float
    visibility: float
    contrast: float


def judge(before: NDArray[np.float32], after: NDArray[np.float32], site: Site, library: Library,
          settings: Augment) -> Verdict:
    """Holds a made lesion's values against the real lesions', label by label and channel by channel.

    A mask over tissue that looks like tissue would teach a model something false, so an invisible lesion is
    rejected as well as one like no real lesion.

    Args:
        before: (C, x, y, z) network values of the box as they were.
        after: The same with the lesion.
        site: Where it is.
        library: The real lesions.
        settings: How wide the gates are.
    """
    lesion = site.labels > 0
    worst = 0.0
    for index in np.unique(site.labels[lesion]):
        known = library.statistics.get(int(index))
        if known is not None:
            mean = after[:, site.labels == index].mean(axis=1)
            worst = max(worst, float((np.abs(mean - known.mean) / np.maximum(known.deviation, 1e-3)).max()))
    contrast = float(np.abs(after[:, lesion] - before[:, lesion]).mean())
    visibility = _visibility(before, after, site, library)
    passed = bool(np.isfinite(after).all()) and worst <= settings.sigmas and visibility >= settings.visibility
    return Verdict(passed, worst, visibility, contrast)


def _visibility(before: NDArray[np.float32], after: NDArray[np.float32], site: Site, library: Library) -> float:
    index = int(np.bincount(site.labels[site.labels > 0]).argmax())
    known = library.statistics.get(index)
    rim = (site.weight > 0) & (site.labels == 0)
    if known is None or not rim.any():
        return 1.0
    channel = int((np.abs(known.contrast) / np.maximum(known.contrast_deviation, 1e-3)).argmax())
    made = after[channel, site.labels == index].mean() - before[channel, rim].mean()
    real = float(known.contrast[channel])
    return float(made) / real if abs(real) > 1e-3 else 1.0
