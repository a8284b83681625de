"""`Scan`: a case made ready for putting lesions in, in network values and one orientation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.errors import Refused
from medgan.imaging.convert import cast
from medgan.imaging.geometry import reorient
from medgan.imaging.intensity import BACKGROUND_SHARE, IntensityMap, intensity_maps, mapped
from medgan.imaging.volume import Volume

#: Below this many Hounsfield units is air.
AIR_HU = -500.0
#: Lesions keep this far from the tissue's edge, in voxels.
EDGE_VOXELS = 1
#: A voxel that changes by this much, in network values, shows something else than before.
REPLACED = 0.25


@dataclass(frozen=True, eq=False)
class Scan:
    """One case in network values, RAS where it is 3D; a 2D image is a volume of one slice.

    Args:
        case: Where it comes from.
        volume: The image as read, reoriented.
        image: (C, X, Y, Z) float32 network values.
        labels: (X, Y, Z) mask values as indices 1..L into the sorted labels; 0 background.
        spacing_mm: (3,) spacing; 1 along the third axis of a 2D image.
        maps: One intensity map a channel.
        orientation: Axis codes of the file, to write the result back as it was.
        organs: (X, Y, Z) mask value of the organ at each voxel, 0 outside; a lesion in an organ has the value around
            it. None where the settings name no organs or the case has no mask.
    """

    case: Case
    volume: Volume
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing_mm: NDArray[np.float64]
    maps: tuple[IntensityMap, ...]
    orientation: str
    organs: NDArray[np.uint16] | None = field(default=None, kw_only=True)

    @property
    def planar(self) -> bool:
        """Whether this is a 2D image."""
        return self.volume.dims == 2

    def tissue(self) -> NDArray[np.bool_]:
        """(X, Y, Z): inside the organs where they are known, else the body."""
        return self._tissue

    def body(self) -> NDArray[np.bool_]:
        """(X, Y, Z): the body (CT), head or brain (MR), or picture, as values alone tell it."""
        return self._body

    @functools.cached_property
    def _tissue(self) -> NDArray[np.bool_]:
        return self._body if self.organs is None else _eroded(self.organs > 0)

    @functools.cached_property
    def _body(self) -> NDArray[np.bool_]:
        first = self.volume.array[0].reshape(self.labels.shape)
        if self.volume.modality == "ct":
            return _largest_filled(first > AIR_HU)
        if self.volume.modality in ("xray", "us"):
            inside = np.zeros(first.shape, bool)
            inside[2:-2, 2:-2] = True
            return inside
        values, counts = np.unique(first, return_counts=True)
        if counts.max() > BACKGROUND_SHARE * first.size:
            return _largest_filled(first != values[counts.argmax()])
        from skimage.filters import threshold_otsu

        return _largest_filled(ndimage.gaussian_filter(first.astype(np.float32), 1) > 0.5 * threshold_otsu(first))

    def air(self) -> NDArray[np.bool_] | None:
        """(X, Y, Z) voxels that are air, lungs among them; None where values do not tell air from tissue."""
        if self.volume.modality != "ct":
            return None
        return np.asarray(self.volume.array[0].reshape(self.labels.shape) < AIR_HU)

    def air_value(self) -> float:
        """The network value of channel 0 below which CT is air."""
        return float(self.maps[0].forward(np.array([AIR_HU]), np.float32)[0])

    def with_change(self, image: NDArray[np.float32], changed: NDArray[np.bool_]) -> Volume:
        """The scan with other network values where `changed`; every other voxel keeps its bits.

        Nothing becomes darker than the darkest voxel of its channel: below air there is nothing, and a reader that
        scales by the range would be thrown off.

        Args:
            image: (C, X, Y, Z) network values.
            changed: (X, Y, Z).
        """
        raw = self.volume.array.copy()
        flat = raw.reshape(self.image.shape)
        for channel, values_map in enumerate(self.maps):
            was, now = self.image[channel][changed], image[channel][changed]
            old, back = flat[channel][changed], values_map.inverse(was)
            # What the map had clipped stays where little changes, and goes where something else takes its place.
            clipped = (old - back) * np.clip(1 - np.abs(now - was) / REPLACED, 0, 1)
            wanted = np.maximum(values_map.inverse(now) + clipped, flat[channel].min())
            flat[channel][changed] = cast(wanted, raw.dtype)
        return self.volume.with_array(raw)


def open_scan(dataset: Dataset, case: Case, config: Config) -> Scan:
    """Reads a case and makes it ready; `labels` are all 0 where the case has no mask.

    Raises:
        Refused: What reading refuses, and `DIM_UNSUPPORTED` for 3D training on 2D images.
    """
    volume, mask = dataset.load(case)
    # A NIfTI file does not say, and what is tissue depends on it.
    volume = replace(volume, modality=volume.modality or config.modality)
    orientation = volume.orientation
    if volume.dims == 2 and config.data.dims == 3:
        raise Refused("DIM_UNSUPPORTED", case.images[0], "a 2D image cannot train a 3D network",
                      "Use --set data.dims=2")
    if volume.dims == 3:
        volume = reorient(volume)
        mask = reorient(mask) if mask is not None else None
    shape = (*volume.shape, 1)[:3]
    maps = intensity_maps(volume.array, config.intensity)
    image = mapped(volume.array, maps).reshape(-1, *shape)
    labels, organs = (np.zeros(shape, np.uint8), None) if mask is None else lesions_and_organs(
        mask.array[0].reshape(shape), dataset, config.data.organs)
    spacing = np.array((*volume.spacing_mm, 1.0)[:3])
    return Scan(case, volume, image, labels, spacing, maps, orientation, organs=organs)


def lesions_and_organs(mask: NDArray[np.integer], dataset: Dataset, organs: Sequence[str]
                       ) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """The lesions of a mask as label indices, and the organ values around them; None where no organs are named.

    Args:
        mask: (X, Y, Z) values that the data set names.
        dataset: Names its mask values.
        organs: As for `mask_values`.
    """
    values, organ_values = mask_values(dataset, organs), _organ_values(dataset, organs)
    table = np.zeros(max(dataset.labels, default=0) + 1, np.uint8)
    table[values] = np.arange(1, len(values) + 1)
    labels = table[mask]
    return labels, _organs(mask, labels > 0, organ_values) if organ_values else None


def mask_values(dataset: Dataset, organs: Sequence[str] = ()) -> list[int]:
    """The mask values that mean a lesion, in ascending order.

    Args:
        dataset: Names its mask values.
        organs: Names of labels that are organs (`data.organs`), not lesions.

    Raises:
        Refused: `LABEL_UNKNOWN` for an organ that is no label of the data set.
    """
    return sorted(set(dataset.labels) - {0} - set(_organ_values(dataset, organs)))


def _organ_values(dataset: Dataset, organs: Sequence[str]) -> list[int]:
    names = {name: value for value, name in dataset.labels.items() if value != 0}
    for organ in organs:
        if organ not in names:
            raise Refused("LABEL_UNKNOWN", f"data.organs: {organ!r}", f"no mask label of {dataset.name} is called so",
                          f"Use names of {', '.join(names)}" if names else "Leave data.organs out: there are no masks")
    return sorted({names[organ] for organ in organs})


def _organs(mask: NDArray[np.integer], lesions: NDArray[np.bool_], values: Sequence[int]) -> NDArray[np.uint16]:
    """(X, Y, Z) organ values; lesions that touch an organ belong to it and have the value of its nearest voxel."""
    own = np.isin(mask, values)
    organs = np.where(own, mask, 0).astype(np.uint16)
    parts, count = ndimage.label(own | lesions, ndimage.generate_binary_structure(3, 3))
    touching = np.zeros(count + 1, bool)
    touching[np.unique(parts[own])] = True
    within = lesions & ~own & touching[parts]
    if within.any():
        nearest = ndimage.distance_transform_edt(~own, return_distances=False, return_indices=True)
        organs[within] = organs[tuple(axis[within] for axis in nearest)]
    return organs


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask less its edge in each slice; the edge of the picture is an edge too."""
    cross = ndimage.generate_binary_structure(3, 1)
    cross[:, :, [0, 2]] = False
    return np.asarray(ndimage.binary_erosion(mask, cross, iterations=EDGE_VOXELS))


def _largest_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part, its holes filled slice by slice, its edge taken off."""
    mask = ndimage.binary_opening(mask, iterations=1)
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = parts == sizes.argmax()
    for k in range(body.shape[2]):
        body[:, :, k] = ndimage.binary_fill_holes(body[:, :, k])
    return _eroded(body)
