"""`Scan`: a case made ready for putting lesions in, in network values and one orientation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.errors import Refused
from medgan.imaging.convert import cast
from medgan.imaging.geometry import reorient
from medgan.imaging.intensity import BACKGROUND_SHARE, IntensityMap, intensity_maps
from medgan.imaging.volume import Volume

#: Below this many Hounsfield units is air.
AIR_HU = -500.0
#: Lesions keep this far from the tissue's edge, in voxels.
EDGE_VOXELS = 1


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
    """

    case: Case
    volume: Volume
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing_mm: NDArray[np.float64]
    maps: tuple[IntensityMap, ...]
    orientation: str

    @property
    def planar(self) -> bool:
        """Whether this is a 2D image."""
        return self.volume.dims == 2

    def tissue(self) -> NDArray[np.bool_]:
        """(X, Y, Z): inside the body (CT), the head or brain (MR), or the picture (X-ray, ultrasound)."""
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

    def with_change(self, image: NDArray[np.float32], changed: NDArray[np.bool_]) -> Volume:
        """The scan with other network values where `changed`; every other voxel keeps its bits.

        Args:
            image: (C, X, Y, Z) network values.
            changed: (X, Y, Z).
        """
        raw = self.volume.array.copy()
        flat = raw.reshape(self.image.shape)
        for channel, values_map in enumerate(self.maps):
            was, now = self.image[channel][changed], image[channel][changed]
            # Only the difference is added, so that what the map had clipped is not lost.
            step = values_map.inverse(now) - values_map.inverse(was)
            flat[channel][changed] = cast(flat[channel][changed] + step, raw.dtype)
        return self.volume.with_array(raw)


def open_scan(dataset: Dataset, case: Case, config: Config) -> Scan:
    """Reads a case and makes it ready; `labels` are all 0 where the case has no mask.

    Raises:
        Refused: What reading refuses, and `DIM_UNSUPPORTED` for 3D training on 2D images.
    """
    volume, mask = dataset.load(case)
    orientation = volume.orientation
    if volume.dims == 2 and config.data.dims == 3:
        raise Refused("DIM_UNSUPPORTED", case.images[0], "a 2D image cannot train a 3D network",
                      "Use --set data.dims=2")
    if volume.dims == 3:
        volume = reorient(volume)
        mask = reorient(mask) if mask is not None else None
    shape = (*volume.shape, 1)[:3]
    maps = intensity_maps(volume.array, config.intensity)
    image = np.stack([m.forward(c, np.float32).reshape(shape) for m, c in zip(maps, volume.array, strict=True)])
    if mask is None:
        labels = np.zeros(shape, np.uint8)
    else:
        values = mask_values(dataset)
        table = np.zeros(max(values, default=0) + 1, np.uint8)
        table[values] = np.arange(1, len(values) + 1)
        labels = table[mask.array[0].reshape(shape)]
    spacing = np.array((*volume.spacing_mm, 1.0)[:3])
    return Scan(case, volume, image, labels, spacing, maps, orientation)


def mask_values(dataset: Dataset) -> list[int]:
    """The mask values that mean a lesion, in ascending order."""
    return sorted(value for value in dataset.labels if value != 0)


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
    edge = ndimage.generate_binary_structure(3, 1)
    edge[:, :, [0, 2]] = False
    return np.asarray(ndimage.binary_erosion(body, edge, iterations=EDGE_VOXELS))
