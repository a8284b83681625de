"""Gates: what a made lesion must pass before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from medgan.config import Augment
from medgan.lesions.library import Library
from medgan.lesions.placement import Site

if TYPE_CHECKING:
    from medgan.lesions.seer import Seer

#: Why a lesion is rejected, in the order in which the gates stand; an empty string where it is kept.
Reason = Literal["", "intensity", "contrast", "unseen"]
REASONS: tuple[Reason, ...] = ("intensity", "contrast", "unseen")


@dataclass(frozen=True)
class Verdict:
    """What the gates say of one made lesion.

    Args:
        reason: Why it is rejected: `intensity` (values that no real lesion has, or no numbers at all), `contrast`
            (it stands out less than real ones), `unseen` (the task network does not see it); empty: it is kept.
        deviation: Largest distance of a label's mean from the real lesions' mean, in their standard deviations.
        visibility: Difference of its commonest label from what surrounds it over that of real lesions, in the channel
            where real ones stand out most: 1 is as visible as the mean real lesion, below 0 the wrong way round.
        contrast: Mean absolute difference from what stood there before, in network values.
        seen: The task network's mean probability in its mask; None where it was not asked.
    """

    reason: Reason
    deviation: float
    visibility: float
    contrast: float
    seen: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it is kept."""
        return not self.reason


def judge(before: NDArray[np.float32], after: NDArray[np.float32], site: Site, library: Library,
          settings: Augment, *, seer: Seer | None = None, image: NDArray[np.float32] | None = None) -> Verdict:
    """Holds a made lesion's values against the real lesions', label by label, and shows it to the task network.

    A mask over tissue that looks like tissue would teach a model something false, so an invisible lesion is
    rejected as well as one like no real lesion. The network is asked last, and only of what passed the rest.

    Args:
        before: (C, x, y, z) network values of the box as they were.
        after: The same with the lesion.
        site: Where it is.
        library: The real lesions.
        settings: How wide the gates are.
        seer: The task network; None: no such gate.
        image: (C, X, Y, Z) the whole scan as it is before the lesion; the task network needs it.
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
    if not np.isfinite(after).all() or not worst <= settings.sigmas:
        return Verdict("intensity", worst, visibility, contrast)
    if not visibility >= settings.visibility:
        return Verdict("contrast", worst, visibility, contrast)
    if seer is None or image is None or settings.seen <= 0:
        return Verdict("", worst, visibility, contrast)
    sight = seer.sight(image, after, site)
    return Verdict("" if seer.passes(sight, settings.seen) else "unseen", worst, visibility, contrast, sight.after)


def tally(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Scores of a case for its provenance and `augmentation.csv`: of the kept lesions, and how many were rejected.

    Args:
        verdicts: Of every lesion tried, kept or not; at least one was kept.
    """
    kept = [verdict for verdict in verdicts if verdict.passed]
    scores = {"deviation": max(v.deviation for v in kept), "visibility": min(v.visibility for v in kept),
              "contrast": float(np.mean([v.contrast for v in kept]))}
    seen = [verdict.seen for verdict in kept if verdict.seen is not None]
    if seen:
        scores["seen"] = min(seen)
    scores["rejected"] = float(len(verdicts) - len(kept))
    return scores | {f"rejected_{reason}": float(sum(v.reason == reason for v in verdicts)) for reason in REASONS}


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
