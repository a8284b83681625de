"""From the paths of a case to its voxels: channels stacked, the mask checked and put on the image's grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.cases import Case, Dataset
from medgan.errors import Note, Refused
from medgan.imaging import files
from medgan.imaging.geometry import align_mask, same_grid
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume

#: How far a stored mask value may be from a whole number: what float32 scaling leaves, not what interpolation makes.
WHOLE_TOLERANCE = 1e-4
#: Masks are kept as uint8 or uint16.
MAX_LABEL = 65535


def load_case(dataset: Dataset, case: Case) -> tuple[Volume, Volume | None]:
    """Reads a case's image (C, X, Y[, Z]) and its mask (1, X, Y[, Z], uint8 or uint16) on the image's grid.

    Args:
        dataset: What the case is from: its channels, labels and modality.
        case: The case.

    Returns:
        The image, and the mask or None. An empty or a full mask carries a note.

    Raises:
        Refused: Whatever is wrong with a file; `GEOM_CHANNELS_DIFFER` or `DATASET_JSON` when the channels do not fit
            together or the description; `LABEL_*` when the mask does not fit the image or the labels.
    """
    if case.row is not None:
        from medgan.datasets.layout_npz import read_row

        image = read_row(case, dataset.rules)
    else:
        image = _stacked(dataset, case)
    if dataset.channels and image.channels != len(dataset.channels):
        raise Refused("DATASET_JSON", case.images[0],
                      f"it has {image.channels} channels where {len(dataset.channels)} are declared",
                      "Correct the image or the names of the channels")
    if image.modality is None:
        image = replace(image, modality=dataset.modality)
    if case.mask is None:
        return image, None
    return image, _mask_on(image, case.mask, dataset)


def found_labels(cases: Iterable[Case], rules: Rules = DEFAULT_RULES) -> dict[int, str]:
    """Mask value -> name for layouts that do not name their labels: the values found in the masks, as `label1`, ...

    Masks that cannot be read, and values that no label may have, are passed over: loading refuses them by name.
    """
    values: set[int] = set()
    masked = False
    for case in cases:
        if case.mask is None:
            continue
        masked = True
        try:
            values |= set(_values(_read_mask(case.mask, rules), case.mask))
        except Refused:
            continue
    kept = sorted(value for value in values if 0 < value <= MAX_LABEL)
    return {0: "background", **{value: f"label{value}" for value in kept}} if masked else {}


def _stacked(dataset: Dataset, case: Case) -> Volume:
    if len(case.images) == 1:
        several = dataset.layout == "decathlon" and len(dataset.channels) > 1
        return files.read(case.images[0], channels=several, rules=dataset.rules)
    volumes = _channels(case, dataset.rules)
    first = volumes[0]
    for volume, path in zip(volumes[1:], case.images[1:], strict=True):
        if not same_grid(first, volume):
            raise Refused("GEOM_CHANNELS_DIFFER", path,
                          f"shape {volume.shape} or place differs from {case.images[0].name} ({first.shape})",
                          "Resample the channels of a case onto one grid")
    notes = tuple(note for volume in volumes for note in volume.notes)
    return replace(first, array=np.concatenate([volume.array for volume in volumes]), notes=notes)


def _channels(case: Case, rules: Rules) -> list[Volume]:
    """Reads each channel from its file, with what the ones before have left of the memory; all are held together."""
    volumes: list[Volume] = []
    for path in case.images:
        # Stacking them takes each once more.
        held = 2 * sum(volume.array.nbytes for volume in volumes)
        volumes.append(files.read(path, rules=replace(rules, max_bytes=max(rules.limit - held, 1))))
    if 2 * sum(volume.array.nbytes for volume in volumes) > rules.limit:
        raise Refused("LIMIT", case.images[0], f"its {len(volumes)} channels do not fit into the cap of "
                      f"{rules.limit:,} bytes together", "Crop the images, or raise data.max_gib")
    return volumes


def _read_mask(path: Path, rules: Rules) -> Volume:
    return files.read(path, channels=True, labels=True, rules=rules)


def _values(mask: Volume, path: Path) -> list[int]:
    """The whole numbers that a mask holds, found plane by plane: a mask may be as large as memory allows."""
    found = np.array([], dtype=mask.array.dtype)
    for plane in np.moveaxis(mask.array, 1, 0):
        if plane.dtype.kind == "f":
            rounded = np.rint(plane)
            apart = np.abs(plane - rounded)
            if float(apart.max()) > WHOLE_TOLERANCE:
                value = float(plane.flat[int(apart.argmax())])
                raise Refused("LABEL_NON_INTEGER", path, f"the mask holds the value {value:.6g}",
                              "Store whole numbers; resample masks with nearest-neighbour interpolation")
            plane = rounded
        found = np.union1d(found, plane)
    return [int(value) for value in found]


def _whole(mask: Volume, dtype: Any) -> NDArray[Any]:
    """The mask's values as integers of a type that holds them."""
    array = np.empty(mask.array.shape, dtype)
    for target, plane in zip(np.moveaxis(array, 1, 0), np.moveaxis(mask.array, 1, 0), strict=True):
        target[:] = np.rint(plane) if plane.dtype.kind == "f" else plane
    return array


def _mask_on(image: Volume, path: Path, dataset: Dataset) -> Volume:
    mask, labels = _read_mask(path, dataset.rules), dataset.labels
    if mask.channels != 1 or mask.dims != image.dims:
        raise Refused("LABEL_DIM", path,
                      f"a mask of shape {mask.array.shape} for an image of shape {image.array.shape}",
                      "Give one label map with whole numbers, on the image's grid")
    values = _values(mask, path)
    wrong = [value for value in values if not 0 <= value <= MAX_LABEL or (value and labels and value not in labels)]
    if wrong:
        raise Refused("LABEL_OUT_OF_RANGE", path, f"the mask holds the value {wrong[0]}, which no label has",
                      f"The labels are {', '.join(map(str, labels)) or f'0 to {MAX_LABEL}'}; correct the mask or them")
    small = _whole(mask, np.uint8 if max(values) <= 255 else np.uint16)
    # What the image reader finds odd about a flat image is no news about a mask.
    notes = tuple(note for note in mask.notes if note.code not in ("PIX_CONSTANT", "SINGLE_SLICE"))
    if values == [0]:
        notes = (*notes, Note("LABEL_EMPTY", str(path), "the mask marks nothing"))
    elif 0 not in values:
        notes = (*notes, Note("LABEL_FULL", str(path), "the mask marks every voxel"))
    return align_mask(replace(mask, array=small, modality=None, notes=notes), image)
