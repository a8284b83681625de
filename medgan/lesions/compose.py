"""Putting lesions into a scan: places, makers and gates at work together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medgan.config import Augment
from medgan.datasets.provenance import Lesion as Record
from medgan.imaging.geometry import reorient
from medgan.imaging.volume import Volume
from medgan.lesions.cores import with_core
from medgan.lesions.gates import Verdict, judge, tally
from medgan.lesions.library import Library, main_label
from medgan.lesions.makers import Maker
from medgan.lesions.placement import Ground, Site
from medgan.lesions.scans import Scan
from medgan.lesions.shapes import Lesion

if TYPE_CHECKING:
    from medgan.lesions.seer import Seer


@dataclass(frozen=True, eq=False)
class Made:
    """A synthetic case.

    Args:
        image: The image with its new lesions, on the parent's grid and in its type.
        mask: (1, X, Y[, Z]) old and new lesions, values as in the data set.
        lesions: What was put in.
        gates: Worst deviation and visibility, and mean contrast of the kept lesions; how many were rejected.
        changed: (X, Y[, Z]) where the image may differ from the parent.
    """

    image: Volume
    mask: Volume
    lesions: tuple[Record, ...]
    gates: dict[str, float]
    changed: NDArray[np.bool_]


def compose(ground: Ground, maker: Maker, settings: Augment, seed: int, *, count: int | None = None,
            label: str | None = None, size_mm: float | None = None, original: Scan | None = None,
            emptied: NDArray[np.bool_] | None = None, seer: Seer | None = None) -> Made | None:
    """Puts new lesions into a scan, redrawing what a gate rejects.

    Args:
        ground: The scan, its free tissue, and the library.
        maker: Draws them.
        settings: Counts, tries and gate widths.
        seed: The same seed gives the same case.
        count: How many lesions; None: as many as the settings or real cases say.
        label: Every lesion has to contain this label.
        size_mm: Equivalent diameter wanted; None: as in real lesions.
        original: The scan as read, where `ground` has one whose own lesions were taken out.
        emptied: (X, Y, Z) where they were.
        seer: The task network that has to see each lesion; None: no such gate.

    Returns:
        The case, or None when not one lesion found a place and passed.
    """
    scan, library = ground.scan, ground.library
    rng = np.random.default_rng([seed, 11])
    donors = library.with_label(label)
    # A patient's own lesions are copied into it only where no one else's are there.
    others = [lesion for lesion in donors if lesion.patient != scan.case.patient] or donors
    wanted = count if count is not None else _count(library, settings, rng)
    image = scan.image.copy()
    changed = np.zeros(scan.labels.shape, bool) if emptied is None else emptied.copy()
    labels = scan.labels.copy()
    kept: list[tuple[Site, Verdict]] = []
    tried: list[Verdict] = []
    cores = 0
    for _ in range(wanted):
        for _ in range(settings.tries):
            donor = library.shaped(others[rng.integers(len(others))], settings.made_shapes, rng)
            site = ground.site(donor, rng, size_mm=size_mm)
            if site is None:
                continue
            drawn = maker.draw(scan, site, int(rng.integers(2**62)))
            where = (slice(None), *site.box)
            before = image[where]
            after = before + site.weight * (drawn - before)
            verdict = judge(before, after, site, library, settings, seer=seer, image=image)
            tried.append(verdict)
            if not verdict.passed:
                continue
            if settings.cores and maker.cores:
                drawn, cored = with_core(scan, site, drawn, int(rng.integers(2**62)), settings.cores)
                after = before + site.weight * (drawn - before)
                cores += cored
            image[where] = after
            changed[site.box] |= site.weight > 0
            labels[site.box] = np.where(site.labels > 0, site.labels, labels[site.box])
            ground.occupy(site)
            kept.append((site, verdict))
            break
    if not kept:
        return None
    gates = tally(tried) | {"cores": float(cores)}
    records = tuple(_record(site, scan, library) for site, _ in kept)
    shape = scan.volume.shape
    back: Callable[[Volume], Volume] = (lambda v: v) if scan.planar else (lambda v: reorient(v, scan.orientation))
    made = back((original or scan).with_change(image, changed))
    values = values_of(labels, library, scan.organs).reshape(1, *shape)
    mask = back(replace(made if scan.planar else scan.volume, array=values))
    where_changed = back(replace(scan.volume, array=changed.reshape(1, *shape).astype(np.uint8))).array[0] > 0
    return Made(made, mask, records, gates, where_changed)


def _count(library: Library, settings: Augment, rng: np.random.Generator) -> int:
    if settings.lesions_per_case is not None:
        low, high = settings.lesions_per_case
        return int(rng.integers(low, high + 1))
    return int(np.clip(rng.choice(library.per_case), 1, settings.max_lesions))


def values_of(labels: NDArray[np.uint8], library: Library, organs: NDArray[np.uint16] | None) -> NDArray[np.generic]:
    """Label indices as mask values; voxels of an organ that are in no lesion keep the organ's."""
    table = np.zeros(max(library.labels, default=0) + 1, np.int64)
    for index, (value, _) in library.labels.items():
        table[index] = value
    values = table[labels]
    most = int(table.max())
    if organs is not None:
        values = np.where(labels > 0, values, organs)
        most = max(most, int(organs.max()))
    return values.astype(np.uint8 if most < 256 else np.uint16)


def _record(site: Site, scan: Scan, library: Library) -> Record:
    centre = scan.volume.affine @ np.append(site.centre, 1.0)
    shape: Lesion = replace(site.donor, labels=site.labels)
    return Record(label=library.labels[main_label(shape)][1], centre_mm=tuple(float(v) for v in centre[:3]),
                  size_mm=site.size_mm, voxels=site.voxels, donor=site.donor.case)
