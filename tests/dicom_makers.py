"""DICOM series made slice by slice, and what the reader says of them: for the tests of the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
)

from medgan.errors import Refused
from medgan.imaging.dicom import read_series
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume

ROWS, COLUMNS, SLICES = 40, 32, 5
ROOT = "1.2.826.0.1.3680043.10.54321.7"


def values(count: int = SLICES) -> np.ndarray:
    """(count, ROWS, COLUMNS) int16 from -900 to 1999, no two rows or planes alike."""
    return (np.arange(count * ROWS * COLUMNS) * 7 % 2900 - 900).astype(np.int16).reshape(count, ROWS, COLUMNS)


def make_slice(number: int, pixels: np.ndarray, position: Any, orientation: Any = (1, 0, 0, 0, 1, 0)) -> Any:
    """A classic CT slice of 16 signed bits."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = Dataset()
    item.file_meta = meta
    fields: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": f"{ROOT}.1.{number + 1}", "Modality": "CT",
        "PatientName": "Nobody", "PatientID": "N1", "StudyInstanceUID": f"{ROOT}.2", "SeriesInstanceUID": f"{ROOT}.3",
        "SeriesNumber": 1, "InstanceNumber": number + 1, "FrameOfReferenceUID": f"{ROOT}.4", "AcquisitionNumber": 1,
        "ImagePositionPatient": [float(x) for x in position],
        "ImageOrientationPatient": [float(x) for x in orientation],
        "PixelSpacing": [1.5, 0.75], "SliceThickness": 2.5, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": pixels.shape[0], "Columns": pixels.shape[1],
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "RescaleSlope": 1, "RescaleIntercept": 0,
    }
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    item.add_new("PixelData", "OW", pixels.tobytes())
    return item


def make_series(count: int = SLICES, step: float = 2.5) -> list[Any]:
    """An axial CT series about the origin."""
    return [make_slice(z, values(count)[z], (-10, -20, -30 + step * z)) for z in range(count)]


def save(items: list[Any], folder: Path, names: list[str] | None = None) -> Path:
    """Writes data sets into a folder, by default under names in reverse order of position."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(items):
        item.file_meta.MediaStorageSOPClassUID = item.get("SOPClassUID", "1.2.3")
        item.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        name = names[number] if names else f"{len(items) - number:03d}.dcm"
        with pydicom.config.disable_value_validation():
            item.save_as(folder / name, enforce_file_format=True)
    return folder


def refusal(path: Path, rules: Rules = DEFAULT_RULES) -> str:
    with pytest.raises(Refused) as caught:
        read_series(path, rules)
    return caught.value.code


def codes(volumes: list[Volume]) -> set[str]:
    return {note.code for volume in volumes for note in volume.notes}


def one(path: Path) -> Volume:
    volumes = read_series(path)
    assert len(volumes) == 1
    return volumes[0]


def assert_same(volume: Volume, other: Any) -> None:
    """Compares with a highdicom volume, whose axes are (slice, row, column), by the place of every voxel."""
    theirs = np.asarray(other.array)
    permuted = np.array(other.affine)[:, [2, 1, 0, 3]]
    permuted[:2] *= -1
    theirs = theirs.transpose(2, 1, 0)
    if permuted[:3, 2] @ volume.affine[:3, 2] < 0:
        theirs = theirs[..., ::-1]
        permuted[:, 3] += permuted[:, 2] * (theirs.shape[2] - 1)
        permuted[:, 2] *= -1
    np.testing.assert_allclose(volume.affine, permuted, atol=1e-3)
    np.testing.assert_allclose(volume.array[0], theirs, rtol=1e-6, atol=0)  # whole numbers agree exactly


def change(item: Any, **changes: Any) -> Any:
    """Sets elements; None deletes one."""
    for keyword, value in changes.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    return item


def radiograph(**changes: Any) -> Any:
    item = make_slice(0, np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS), (0, 0, 0))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                    "RescaleIntercept", "SliceThickness", "FrameOfReferenceUID"):
        delattr(item, keyword)
    settings = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "BitsStored": 12, "HighBit": 11,
                "PixelRepresentation": 0, "ImagerPixelSpacing": [0.2, 0.1], **changes}
    return change(item, **settings)


# --- enhanced multi-frame -------------------------------------------------------------------------------------------

def group(**sequences: dict[str, Any]) -> Dataset:
    """A data set of sequences of one item each, as functional groups are."""
    result = Dataset()
    for keyword, elements in sequences.items():
        setattr(result, keyword, [change(Dataset(), **elements)])
    return result


def enhanced(order: list[int], times: int = 1) -> Any:
    """An enhanced CT whose frames are stored in the given order, each with its own rescale."""
    item = make_slice(0, np.concatenate([values()[z] for _ in range(times) for z in order]), (0, 0, 0))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                    "RescaleIntercept", "SliceThickness"):
        delattr(item, keyword)
    item.SOPClassUID, item.Rows, item.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", ROWS, len(order) * times

    item.SharedFunctionalGroupsSequence = [group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [1.5, 0.75], "SliceThickness": 2.5})]
    item.PerFrameFunctionalGroupsSequence = [group(
        PlanePositionSequence={"ImagePositionPatient": [-10, -20, -30 + 2.5 * z]},
        FrameContentSequence={"TemporalPositionIndex": time + 1, "StackID": "1"},
        PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 100 * z, "RescaleType": "HU"})
        for time in range(times) for z in order]
    return item
