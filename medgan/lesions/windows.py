"""Scans made ready once for lesions drawn again and again: the part with tissue, and what a crop needs to know.

Finding the tissue of a scan and its scale of values takes longer than putting a lesion in, and both are the scan's own:
a crop of it cannot tell them. `Ready` keeps a whole scan so, `Outline` in a few hundred kilobytes what its crops need.
"""

from __future__ import annotations

import copy
import functools
import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Augment, Config
from medgan.datasets.cases import Case
from medgan.errors import Refused
from medgan.imaging.geometry import reorient
from medgan.imaging.intensity import IntensityMap, intensity_maps, mapped
from medgan.imaging.volume import Volume
from medgan.lesions.compose import Made, compose, values_of
from medgan.lesions.library import Library
from medgan.lesions.makers import Maker
from medgan.lesions.placement import Ground
from medgan.lesions.removal import Tissue, without_lesions
from medgan.lesions.scans import Scan

#: Voxels kept around the tissue: what is averaged, blended or shown to a network there is as in the whole scan.
MARGIN = 12
#: Every n-th voxel along each axis is kept of a scan, to know its values again in a crop.
THINNED = 6
#: Values are the scan's own where at least this share of the kept voxels is unchanged; lesions may have changed some.
UNCHANGED = 0.5
#: Values follow the scan's own, on whatever scale, where they correlate so well; a crop whose affine was not moved
#: along does not, nor one that was turned.
FOLLOWS = 0.7
#: Fewer kept voxels say nothing of that.
FEWEST = 8
#: A lesion finds room in a crop that is this many times as wide.
ROOM = 1.5
#: How far a crop's voxels may lie from the scan's, in voxels: what single precision leaves of an affine.
OFF_GRID = 0.02
#: Hounsfield units are never all this small; values that are have been scaled.
SCALED_HU = 10.0

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Part(Scan):
    """A box of a scan whose tissue is known already.

    Args:
        inside: (X, Y, Z) bool: the tissue.
    """

    inside: NDArray[np.bool_]

    def tissue(self) -> NDArray[np.bool_]:
        """(X, Y, Z): the tissue as it was found in the whole scan."""
        return self.inside


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan that lesions can be put into at once, as often as wanted.

    Args:
        volume: The whole image, RAS where it is 3D.
        mask: Its mask, (1, X, Y[, Z]), values as in the data set.
        orientation: Axis codes of the file.
        box: The part with tissue and lesions.
        ground: What that part offers; it is copied, never changed.
        config: Settings.
    """

    volume: Volume
    mask: Volume
    orientation: str
    box: Box
    ground: Ground
    config: Config

    @functools.cached_property
    def emptied(self) -> tuple[Ground, NDArray[np.bool_]]:
        """The ground with the case's own lesions removed, and where they were: filled once, for that takes long."""
        scan, where = without_lesions(self.ground.scan, Tissue(), self.config.seed)
        return ground_of(scan, self.ground.library, self.config, density=self.config.augment.density), where

    def compose(self, maker: Maker, seed: int) -> Made | None:
        """The whole case with new lesions, in the file's orientation; None when not one found a place and passed."""
        kept, emptied = self.ground, None
        if removes(self.ground.scan, self.config.augment, seed):
            kept, emptied = self.emptied
        ground = copy.copy(kept)
        ground.taken = kept.taken.copy()
        made = compose(ground, maker, self.config.augment, seed, original=self.ground.scan, emptied=emptied)
        if made is None or self.volume.dims == 2:
            return made
        image, mask = (self._put_back(whole, part) for whole, part in
                       ((self.volume, made.image), (self.mask, made.mask)))
        changed = replace(made.image, array=made.changed[None])
        where = self._put_back(self.volume.with_array(np.zeros((1, *self.volume.shape), bool)), changed)
        return replace(made, image=image, mask=mask, changed=where.array[0])

    def original(self) -> tuple[Volume, Volume]:
        """Image and mask as they are in the files."""
        return (self.volume, self.mask) if self.volume.dims == 2 else (
            reorient(self.volume, self.orientation), reorient(self.mask, self.orientation))

    def _put_back(self, whole: Volume, part: Volume) -> Volume:
        array = whole.array.copy()
        array[(slice(None), *self.box)] = reorient(part).array
        return reorient(whole.with_array(array), self.orientation)


def ready(scan: Scan, library: Library, config: Config) -> Ready:
    """Makes a whole scan ready.

    Args:
        scan: The scan with its labels.
        library: The lesions to draw from.
        config: Settings: the working spacing and crop.
    """
    array = values_of(scan.labels, library, scan.organs)
    array = array if array.dtype == np.uint8 else array.astype(np.int32)
    mask = replace(scan.volume, array=array.reshape(1, *scan.volume.shape), slice_thickness_mm=None)
    tissue = scan.tissue()
    box = _box_around(tissue | (scan.labels > 0)) if not scan.planar else _all(tissue)
    ground = ground_of(part_of(scan, tissue, box), library, config, density=config.augment.density)
    return Ready(scan.volume, mask, scan.orientation, box, ground, config)


def removes(scan: Scan, settings: Augment, seed: int) -> bool:
    """Whether a scan's own lesions are to be removed before new ones are put in."""
    return bool(scan.labels.any()) and float(np.random.default_rng([seed, 5]).random()) < settings.removed


def compose_once(scan: Scan, library: Library, maker: Maker, config: Config, seed: int) -> Made | None:
    """New lesions in a scan that is not kept, which may be a crop; None when not one found a place and passed.

    Where real lesions lie in the body has no say here: a crop does not tell where in the body it is.
    """
    original, emptied = scan, None
    if removes(scan, config.augment, seed):
        scan, emptied = without_lesions(scan, Tissue(), seed)
    return compose(ground_of(scan, library, config), maker, config.augment, seed, original=original, emptied=emptied)


def part_of(scan: Scan, tissue: NDArray[np.bool_], box: Box) -> Part:
    """A box of a scan as a scan of its own; `tissue` (X, Y, Z) is the whole scan's."""
    # Copies: a view would keep the whole scan in memory.
    volume = scan.volume if scan.planar else cut(scan.volume, box)
    image, labels = scan.image[(slice(None), *box)].copy(), scan.labels[box].copy()
    return Part(scan.case, volume, image, labels, scan.spacing_mm, scan.maps, scan.orientation, tissue[box].copy(),
                organs=None if scan.organs is None else scan.organs[box].copy())


def cut(volume: Volume, box: Box) -> Volume:
    """A box of a 3D volume, in its place."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return replace(volume, array=volume.array[(slice(None), *box)].copy(), affine=affine)


def ground_of(scan: Scan, library: Library, config: Config, *, density: float = 0.0) -> Ground:
    """What a scan offers, at the working spacing that the settings ask for; `density` as for `Ground`."""
    finest = config.data.spacing_mm or float(np.min(scan.spacing_mm[:2]))
    return Ground(scan, library, finest_mm=finest, crop=config.data.crop, density=density)


@dataclass(frozen=True, eq=False)
class Outline:
    """What crops of a scan need to know of it.

    Args:
        case: The case.
        affine: (4, 4) of the scan, RAS where it is 3D.
        shape: (X, Y, Z).
        maps: The whole scan's intensity maps.
        thinned: (C, x, y, z) every `THINNED`-th voxel, raw.
        packed: Its tissue, as compressed bits.
    """

    case: Case
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    maps: tuple[IntensityMap, ...]
    thinned: NDArray[np.generic]
    packed: bytes

    @classmethod
    def of(cls, scan: Scan) -> Outline:
        """The outline of a scan."""
        x, y, z = scan.labels.shape
        packed = zlib.compress(np.packbits(scan.tissue()).tobytes(), 1)
        raw = scan.volume.array.reshape(-1, x, y, z)
        return cls(scan.case, scan.volume.affine, (x, y, z), scan.maps, raw[_thinned()].copy(), packed)

    def tissue(self) -> NDArray[np.bool_]:
        """(X, Y, Z): the tissue of the whole scan."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(self.shape))).reshape(self.shape).astype(bool)

    def box_of(self, volume: Volume) -> Box | None:
        """Where an image, RAS where it is 3D, lies in the scan; None where it is no box of the scan's voxels."""
        to_scan = np.linalg.inv(self.affine) @ volume.affine
        size = np.array((*volume.shape, 1)[:3])
        start = np.rint(to_scan[:3, 3]).astype(int)
        corners = to_scan[:3, :3] @ np.diag(size - 1) - np.diag(size - 1)
        off = max(np.abs(to_scan[:3, 3] - start).max(), np.abs(corners).max())
        if off > OFF_GRID or (start < 0).any() or (start + size > self.shape).any():
            return None
        x, y, z = (slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
        return x, y, z

    def likeness(self, raw: NDArray[np.generic], free: NDArray[np.bool_], box: Box) -> tuple[bool, bool]:
        """Whether a crop shows what the scan shows there, on whatever scale, and whether in the scan's own values.

        Args:
            raw: (C, x, y, z) of the crop.
            free: (x, y, z) voxels to compare: tissue without lesions.
            box: Where the crop says that it lies in the scan.
        """
        first = [-(-s.start // THINNED) for s in box]
        inner = tuple(slice(f * THINNED - s.start, None, THINNED) for f, s in zip(first, box, strict=True))
        where = free[inner]
        outer = tuple(slice(f, f + n) for f, n in zip(first, where.shape, strict=True))
        # Readers give single precision.
        ours = raw[(slice(None), *inner)][:, where].astype(np.float32)
        theirs = self.thinned[(slice(None), *outer)][:, where].astype(np.float32)
        if where.sum() < FEWEST:
            return True, True
        if (ours == theirs).mean() >= UNCHANGED:
            return True, True
        with np.errstate(invalid="ignore", divide="ignore"):
            follows = [np.corrcoef(one, other)[0, 1] for one, other in zip(ours, theirs, strict=True)]
        return bool(np.nanmax([-1.0, *follows]) >= FOLLOWS), False


def crop_scan(volume: Volume, labels: NDArray[np.uint8], case: Case, outline: Outline | None, config: Config, *,
              organs: NDArray[np.uint16] | None = None) -> Scan:
    """A scan of an image that may be a crop, made ready as its whole scan would be where that is known.

    Args:
        volume: The image in raw values, on the grid of its labels, RAS where it is 3D.
        labels: (X, Y, Z) label indices.
        case: Which case it is from.
        outline: Of the whole scan; None: the image speaks for itself.
        config: Settings.
        organs: (X, Y, Z) as for `Scan`.

    Raises:
        Refused: `DIM_UNSUPPORTED`, or `INPUT_KIND` for a CT that is not in Hounsfield units.
    """
    if volume.dims == 2 and config.data.dims == 3:
        raise Refused("DIM_UNSUPPORTED", case.id or "image", "a 2D image cannot take lesions of a 3D network",
                      "Use a run with data.dims=2")
    raw = volume.array.reshape(-1, *labels.shape)
    if config.intensity.knots is not None and np.abs(raw).max() <= SCALED_HU:
        raise Refused("INPUT_KIND", case.id or "image", "its values are scaled, not Hounsfield units",
                      "Put in lesions before intensities are scaled")
    tissue, maps = _told(outline, volume, raw, labels) if outline is not None else (None, None)
    maps = maps or intensity_maps(raw, config.intensity)
    image = mapped(raw, maps)
    spacing = np.array((*volume.spacing_mm, 1.0)[:3])
    scan = Scan(case, volume, image, labels, spacing, maps, "RAS", organs=organs)
    return scan if tissue is None else Part(**vars(scan), inside=tissue)


def _told(outline: Outline, volume: Volume, raw: NDArray[np.generic], labels: NDArray[np.uint8]
          ) -> tuple[NDArray[np.bool_] | None, tuple[IntensityMap, ...] | None]:
    """Tissue (X, Y, Z) and intensity maps of a crop as its whole scan has them; None where they are not the crop's."""
    box = outline.box_of(volume)
    if box is None or len(raw) != len(outline.maps):
        return None, None
    tissue = outline.tissue()[box]
    placed, own = outline.likeness(raw, tissue & (labels == 0), box)
    return tissue if placed else None, outline.maps if own else None


def fitting(library: Library, scan: Scan) -> Library:
    """The lesions that find room in a scan: in a small crop, large ones would only be tried in vain."""
    room = np.array(scan.labels.shape) * scan.spacing_mm
    edge = float(room[:2].min() if scan.planar else room.min())
    kept = tuple(lesion for lesion in library.lesions if lesion.size_mm * ROOM <= edge)
    return replace(library, lesions=kept)


def _thinned() -> tuple[slice, ...]:
    return (slice(None), *(slice(None, None, THINNED),) * 3)


def _all(array: NDArray[np.bool_]) -> Box:
    x, y, z = (slice(0, n) for n in array.shape)
    return x, y, z


def _box_around(mask: NDArray[np.bool_]) -> Box:
    if not mask.any():
        return _all(mask)
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    x, y, z = (slice(max(0, s.start - MARGIN), min(n, s.stop + MARGIN))
               for s, n in zip(found, mask.shape, strict=True))
    return x, y, z
