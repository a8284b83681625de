"""The readers that `reliability.py` puts side by side, each used as its documentation shows.

MONAI `LoadImage()` on the file or folder (PydicomReader and NibabelReader are its choice; ITKReader where itk is
installed), SimpleITK `ReadImage` on the file or on the names that `GetGDCMSeriesFileNames` gives for each series of a
folder, nibabel `load(...).get_fdata()`, highdicom `get_volume_from_series` for each series of the folder and
`imread(...).get_volume()` for a multi-frame file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Each volume's values and its affine to RAS+ in mm.
Loaded = list[tuple[Any, Any]]


def _medgan() -> Callable[[Path], Loaded]:
    import medgan
    from medgan.errors import Refused
    from medgan.imaging.files import read_all

    def load(path: Path) -> Loaded:
        found = medgan.inspect(path)
        if found.status == "refused":
            note = found.notes[0]
            raise Refused(found.codes[0], note["where"], note["why"], note.get("fix", ""))
        for note in found.notes:
            logging.getLogger("reliability").warning(f"[{note['code']}] {note['why']}")
        if found.kind == "weights" or found.summary.get("layout") not in (None, "dicom"):
            return []
        return [(volume.array[0], volume.affine) for volume in read_all(path)]

    return load


def _monai() -> Callable[[Path], Loaded]:
    import monai  # noqa: F401
    from monai.transforms import LoadImage

    def load(path: Path) -> Loaded:
        image = LoadImage(image_only=True)(str(_where_files_are(path)))
        return [(image.numpy(), image.affine.numpy())]

    return load


def _simpleitk() -> Callable[[Path], Loaded]:
    import numpy as np
    import SimpleITK as sitk

    def volume(image: Any) -> tuple[Any, Any]:
        array = sitk.GetArrayFromImage(image)
        axes = image.GetDimension()
        if image.GetNumberOfComponentsPerPixel() == 1:
            array = array.transpose()
        affine = np.eye(4)
        if axes == 3:
            affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
            affine[:3, 3] = image.GetOrigin()
            affine[:2] *= -1  # LPS to RAS
        return array, affine

    def load(path: Path) -> Loaded:
        path = _where_files_are(path)
        if not path.is_dir():
            return [volume(sitk.ReadImage(str(path)))]
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if not series:
            raise RuntimeError("GDCM finds no series")
        named = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), uid) for uid in series]
        return [volume(sitk.ReadImage(list(names) if len(names) > 1 else names[0])) for names in named]

    return load


def _nibabel() -> Callable[[Path], Loaded]:
    import nibabel

    def load(path: Path) -> Loaded:
        image = nibabel.load(path)
        return [(image.get_fdata(), image.affine)]

    return load


def _highdicom() -> Callable[[Path], Loaded]:
    import highdicom
    import numpy as np
    import pydicom
    from pydicom.errors import InvalidDicomError

    def volume(found: Any) -> tuple[Any, Any]:
        # Axes (slice, row, column) and LPS there.
        affine = np.array(found.affine)[:, [2, 1, 0, 3]]
        affine[:2] *= -1
        return np.asarray(found.array).transpose(2, 1, 0, *range(3, np.ndim(found.array))), affine

    def load(path: Path) -> Loaded:
        # What is no DICOM file in a folder is passed over, and what holds no image; a file that is named is read.
        path = _where_files_are(path)
        groups: dict[str, list[Any]] = {}
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            try:
                item = pydicom.dcmread(file)
            except InvalidDicomError:
                if not path.is_dir():
                    raise
                continue
            if "PixelData" in item or not path.is_dir():
                groups.setdefault(str(item.get("SeriesInstanceUID", "")), []).append(item)
        if not groups:
            raise ValueError("there is no DICOM image")
        loaded = []
        for items in groups.values():
            if len(items) == 1 and int(items[0].get("NumberOfFrames") or 1) > 1:
                loaded.append(volume(highdicom.Image.from_dataset(items[0]).get_volume()))
            else:
                loaded.append(volume(highdicom.get_volume_from_series(items)))
        return loaded

    return load


OPENERS: dict[str, Callable[[], Callable[[Path], Loaded]]] = {
    "medgan": _medgan, "MONAI": _monai, "SimpleITK": _simpleitk, "nibabel": _nibabel, "highdicom": _highdicom}


def _where_files_are(path: Path) -> Path:
    """For readers of one folder: the folder below that holds the images, where beside a DICOMDIR there is none."""
    if path.is_dir() and not any(file.is_file() and file.name != "DICOMDIR" for file in path.iterdir()):
        below = (file.parent for file in sorted(path.rglob("*")) if file.is_file() and file.name != "DICOMDIR")
        return next(below, path)
    return path


def version_of(reader: str) -> str:
    """The installed version, or an empty string where the reader is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(reader.lower())
    except PackageNotFoundError:
        return ""
