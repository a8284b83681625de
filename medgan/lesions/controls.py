"""Healthy controls: places without a lesion, filled with tissue in the shapes and with the rims of lesions.

Where only lesions have a blended rim, a model may learn the rim. With as many rims around tissue it cannot.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medgan.imaging.geometry import reorient
from medgan.imaging.volume import Volume
from medgan.lesions.compose import Made
from medgan.lesions.library import Library
from medgan.lesions.placement import Ground, Site
from medgan.lesions.removal import CONTEXT, Filler, Void
from medgan.lesions.scans import Scan

#: Shapes tried for one control; a scan with much lesion may have no free place for a large one.
TRIES = 8


def add_controls(made: Made, ground: Ground, filler: Filler, seed: int, count: int) -> Made:
    """Fills places of a synthetic case that have no lesion; the mask stays as it is.

    Shapes, places and rims are drawn as those of the new lesions are, off all lesions and all that was changed.

    Args:
        made: The case with its new lesions.
        ground: What it was made on.
        filler: Makes the tissue.
        seed: The same seed gives the same controls.
        count: How many are wanted; there are fewer where there is no room.

    Returns:
        The case with its controls, their number among its gates as `controls`.
    """
    rng = np.random.default_rng([seed, 29])
    scan, changed = _as_scan(made, ground.scan, ground.library)
    free = copy.copy(ground)
    free.scan, free.taken = scan, (scan.labels > 0) | changed
    lesions = ground.library.lesions
    donors = [lesion for lesion in lesions if lesion.patient != scan.case.patient] or list(lesions)
    image = scan.image.copy()
    filled = np.zeros(changed.shape, bool)
    done = 0
    for _ in range(count):
        for _ in range(TRIES):
            site = free.site(donors[rng.integers(len(donors))], rng)
            if site is None:
                continue
            void = _void(site, scan)
            # To a filler, what is to be filled is no tissue to go by.
            labels = scan.labels.copy()
            labels[void.box] = np.where(void.weight > 0, np.maximum(labels[void.box], 1), labels[void.box])
            wanted = filler.fill(replace(scan, image=image, labels=labels), image, void, int(rng.integers(2**62)))
            if not np.isfinite(wanted[:, void.weight > 0]).all():
                continue
            where = (slice(None), *void.box)
            image[where] += void.weight * (wanted - image[where])
            filled[void.box] |= void.weight > 0
            free.occupy(site)
            done += 1
            break
    gates = {**made.gates, "controls": float(done)}
    if not done:
        return replace(made, gates=gates)
    volume = _back(scan.with_change(image, filled), scan)
    where_filled = _back(replace(scan.volume, array=_flat(filled, scan)), scan).array[0] > 0
    return replace(made, image=volume, gates=gates, changed=made.changed | where_filled)


def _as_scan(made: Made, origin: Scan, library: Library) -> tuple[Scan, NDArray[np.bool_]]:
    """The case as a scan on the grid of its origin, and (X, Y, Z) what was changed in it."""
    shape = origin.labels.shape
    turned = [volume if origin.planar else reorient(volume)
              for volume in (made.image, made.mask, replace(made.mask, array=made.changed[None].astype(np.uint8)))]
    image = np.stack([values_map.forward(channel, np.float32).reshape(shape)
                      for values_map, channel in zip(origin.maps, turned[0].array, strict=True)])
    values = turned[1].array[0].reshape(shape)
    labels = np.zeros(shape, np.uint8)
    for index, (value, _) in library.labels.items():
        labels[values == value] = index
    return (replace(origin, volume=turned[0], image=image, labels=labels),
            np.asarray(turned[2].array[0].reshape(shape) > 0))


def _void(site: Site, scan: Scan) -> Void:
    """The site as a void: the same shape and rim, in a box with `CONTEXT` voxels around where the scan has them."""
    pads = [CONTEXT, CONTEXT, 0 if scan.planar else CONTEXT]
    lows = [min(pad, s.start) for pad, s in zip(pads, site.box, strict=True)]
    highs = [min(pad, n - s.stop) for pad, s, n in zip(pads, site.box, scan.labels.shape, strict=True)]
    x, y, z = (slice(s.start - low, s.stop + high) for s, low, high in zip(site.box, lows, highs, strict=True))
    margins = list(zip(lows, highs, strict=True))
    hard = np.pad(site.labels > 0, margins)
    return Void((x, y, z), hard, np.pad(site.weight, margins), hard | (scan.labels[x, y, z] > 0))


def _flat(mask: NDArray[np.bool_], scan: Scan) -> NDArray[np.uint8]:
    return mask.reshape(1, *scan.volume.shape).astype(np.uint8)


def _back(volume: Volume, scan: Scan) -> Volume:
    return volume if scan.planar else reorient(volume, scan.orientation)
