"""The DICOM reader: true geometry, real values, and a refusal with its code for everything it cannot vouch for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from medgan.errors import Refused
from medgan.imaging import dicom, dicom_file, dicom_pixels
from medgan.imaging.dicom import find_series, is_dicom, load_series, read_series, template
from medgan.imaging.geometry import reorient, resample, resample_to
from medgan.imaging.volume import Volume

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "odd" / "real"
ROWS, COLUMNS, SLICES = 40, 32, 5
ROOT = "1.2.826.0.1.3680043.10.54321.7"
Mutation = Callable[[list[Any]], Any]


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


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(Refused) as caught:
        read_series(path, **options)
    return caught.value.code


def codes(volumes: list[Volume]) -> set[str]:
    return {note.code for volume in volumes for note in volume.notes}


def one(path: Path) -> Volume:
    volumes = read_series(path)
    assert len(volumes) == 1
    return volumes[0]


# --- what a good series becomes -------------------------------------------------------------------------------------

def test_series_has_true_values_and_place(tmp_path: Path) -> None:
    items = make_series()
    for item, number in zip(items, (3, 1, 5, 2, 4), strict=True):
        item.InstanceNumber = number  # neither numbers nor names say where a slice lies
    volume = one(save(items, tmp_path))
    assert volume.array.dtype == np.int16 and volume.array.shape == (1, COLUMNS, ROWS, SLICES)
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))
    # LPS (-10, -20, -30) is RAS (10, 20, -30); columns are 0.75 mm apart, rows 1.5 mm.
    expected = [[-0.75, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-12)
    assert volume.modality == "ct" and volume.orientation == "LPS" and volume.notes == ()
    assert volume.source == tmp_path


def test_oblique_series_agrees_with_highdicom(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    row, column = turn[:, 0], turn[:, 1]
    normal = np.cross(row, column)
    items = [make_slice(z, values()[z], (5, 6, 7) + z * 3.1 * normal, (*row, *column)) for z in range(SLICES)]
    save(items, tmp_path)
    assert_same(one(tmp_path), highdicom.get_volume_from_series([pydicom.dcmread(p) for p in tmp_path.iterdir()]))


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


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    items = make_series()
    for z, item in enumerate(items):
        item.RescaleSlope, item.RescaleIntercept = z + 1, -z
    volume = one(save(items, tmp_path))
    expected = values().astype(int) * np.arange(1, 6)[:, None, None] - np.arange(5)[:, None, None]
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))
    assert volume.array.dtype == np.int16


def test_fractional_rescale_gives_float32(tmp_path: Path) -> None:
    items = make_series()
    for item in items:
        item.RescaleSlope, item.RescaleIntercept = "0.25", "-1.5"
    volume = one(save(items, tmp_path))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0) * 0.25 - 1.5)


def test_wide_values_get_the_smallest_type_that_holds_them(tmp_path: Path) -> None:
    for name, high, dtype in (("narrow", 4000, np.int16), ("wide", 65535, np.int32)):
        items = make_series()
        for item in items:
            pixels = np.linspace(0, high, ROWS * COLUMNS).astype(np.uint16)
            item.PixelRepresentation, item.RescaleIntercept, item.PixelData = 0, -1024, pixels.tobytes()
        volume = one(save(items, tmp_path / name))
        assert volume.array.dtype == dtype and volume.array.max() == high - 1024


def test_garbage_in_unused_bits_is_masked(tmp_path: Path) -> None:
    items = make_series()
    for item, plane in zip(items, values(), strict=True):
        item.BitsStored, item.HighBit = 12, 11
        item.PixelData = ((plane.astype(np.uint16) & 0x0FFF) | 0xA000).tobytes()
    np.testing.assert_array_equal(one(save(items, tmp_path)).array[0], values().transpose(2, 1, 0))


def test_high_bit_places_the_value(tmp_path: Path) -> None:
    items = make_series()
    for item, plane in zip(items, values(), strict=True):
        item.BitsStored, item.HighBit = 12, 15
        item.PixelData = ((plane.astype(np.uint16) & 0x0FFF) << 4 | 0x3).astype(np.uint16).tobytes()
    np.testing.assert_array_equal(one(save(items, tmp_path)).array[0], values().transpose(2, 1, 0))


@pytest.mark.parametrize("padding, wrong_sign", [(-2000, False), (-2000, True)])
def test_padding_becomes_the_lowest_real_value(tmp_path: Path, padding: int, wrong_sign: bool) -> None:
    items = make_series()
    for item, plane in zip(items, values(), strict=True):
        plane = plane.copy()
        plane[:2] = padding
        item.PixelData = plane.tobytes()
        item.add_new("PixelPaddingValue", "US" if wrong_sign else "SS", padding & 0xFFFF if wrong_sign else padding)
    volume = one(save(items, tmp_path))
    assert codes([volume]) == {"PADDING_MASKED"}
    expected = values().copy()
    expected[:, :2] = values()[:, 2:].min()
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))


def test_padding_wider_than_the_stored_bits_spares_real_values(tmp_path: Path) -> None:
    pixels = np.full((ROWS, COLUMNS), 2096, dtype=np.int16)  # -2000 & 0xFFF is 2096
    pixels[0] = -2000
    pixels[1] = 5
    item = make_slice(0, pixels, (0, 0, 0))
    item.BitsStored, item.HighBit, item.PixelRepresentation = 12, 11, 0
    item.add_new("PixelPaddingValue", "US", -2000 & 0xFFFF)
    array = one(save([item], tmp_path)).array[0]
    assert (array[:, 0] == 5).all() and (array[:, 2:] == 2096).all()


def test_monochrome1_is_inverted_only_without_physical_values(tmp_path: Path) -> None:
    items = make_series()
    for item in items:
        item.PhotometricInterpretation = "MONOCHROME1"
    volume = one(save(items, tmp_path / "ct"))
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))
    assert volume.notes == ()
    volume = one(save([radiograph(PhotometricInterpretation="MONOCHROME1")], tmp_path / "cr"))
    np.testing.assert_array_equal(volume.array[0], 4095 - np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).T)
    assert codes([volume]) == {"MONOCHROME1_INVERTED"}


def radiograph(**changes: Any) -> Any:
    item = make_slice(0, np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS), (0, 0, 0))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                    "RescaleIntercept", "SliceThickness", "FrameOfReferenceUID"):
        delattr(item, keyword)
    settings = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "BitsStored": 12, "HighBit": 11,
                "PixelRepresentation": 0, "ImagerPixelSpacing": [0.2, 0.1], **changes}
    for keyword, value in settings.items():
        setattr(item, keyword, value)
    return item


def test_radiograph_is_two_dimensional(tmp_path: Path) -> None:
    volume = one(save([radiograph()], tmp_path) / "001.dcm")
    assert volume.array.shape == (1, COLUMNS, ROWS) and volume.modality == "xray" and volume.notes == ()
    np.testing.assert_allclose(volume.spacing_mm, (0.1, 0.2))
    np.testing.assert_array_equal(volume.array[0].T.ravel(), np.arange(ROWS * COLUMNS))


def test_radiograph_without_spacing_says_so(tmp_path: Path) -> None:
    item = radiograph()
    del item.ImagerPixelSpacing
    assert codes(read_series(save([item], tmp_path))) == {"GEOM_NO_SPACING"}


def test_radiographs_of_one_series_stay_apart(tmp_path: Path) -> None:
    volumes = read_series(save([radiograph(), radiograph(SOPInstanceUID="1.2.9", Rows=ROWS - 1)], tmp_path))
    assert sorted(volume.shape for volume in volumes) == [(COLUMNS, ROWS - 1), (COLUMNS, ROWS)]
    assert codes(volumes) == {"SERIES_SPLIT"}


def test_modality_lut_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [2048, 0, 16])
    table.add_new("LUTData", "US", [1000 + 3 * n for n in range(2048)])
    volume = one(save([radiograph(ModalityLUTSequence=[table])], tmp_path))
    np.testing.assert_array_equal(volume.array[0].T.ravel(), 1000 + 3 * np.arange(ROWS * COLUMNS))


def test_single_slice_keeps_its_place(tmp_path: Path) -> None:
    volume = one(save(make_series()[2:3], tmp_path))
    assert volume.dims == 2 and codes([volume]) == {"SINGLE_SLICE"}
    np.testing.assert_allclose(volume.affine[:3, 3], [10, 20, -25])


@pytest.mark.parametrize("name", ["big endian", "deflated", "rle", "jpeg2000", "no preamble", "no meta"])
def test_encodings_give_the_same_volume(tmp_path: Path, name: str) -> None:
    items, expected = make_series(), set()
    for item in items:
        if name == "big endian":
            item.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            item.PixelData = np.frombuffer(item.PixelData, np.int16).byteswap().tobytes()
        elif name == "deflated":
            item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        elif name in ("rle", "jpeg2000"):
            item.compress(RLELossless if name == "rle" else JPEG2000Lossless, generate_instance_uid=False)
    save(items, tmp_path)
    for path in tmp_path.iterdir():
        if name == "no preamble":
            expected = {"NO_PREAMBLE"}
            path.write_bytes(path.read_bytes()[132:])
        elif name == "no meta":
            expected = {"NO_FILE_META"}
            data = path.read_bytes()
            path.write_bytes(data[144 + struct.unpack("<I", data[140:144])[0]:])
    volume = one(tmp_path)
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))
    assert codes([volume]) == expected


def test_big_endian_words_of_8_bit_pixels(tmp_path: Path) -> None:
    pixels = (np.arange(ROWS * COLUMNS) % 251).astype(np.uint8)
    item = radiograph(BitsAllocated=8, BitsStored=8, HighBit=7)
    item.PixelData = pixels.view(np.uint16).byteswap().tobytes()
    item.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    volume = one(save([item], tmp_path))
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[0].T.ravel(), pixels)


# --- enhanced multi-frame -------------------------------------------------------------------------------------------

def enhanced(order: list[int], times: int = 1) -> Any:
    """An enhanced CT whose frames are stored in the given order, each with its own rescale."""
    item = make_slice(0, np.concatenate([values()[z] for _ in range(times) for z in order]), (0, 0, 0))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                    "RescaleIntercept", "SliceThickness"):
        delattr(item, keyword)
    item.SOPClassUID, item.Rows, item.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", ROWS, len(order) * times

    def group(**sequences: dict[str, Any]) -> Dataset:
        result = Dataset()
        for keyword, elements in sequences.items():
            inner = Dataset()
            for name, value in elements.items():
                setattr(inner, name, value)
            setattr(result, keyword, [inner])
        return result

    item.SharedFunctionalGroupsSequence = [group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [1.5, 0.75], "SliceThickness": 2.5})]
    item.PerFrameFunctionalGroupsSequence = [group(
        PlanePositionSequence={"ImagePositionPatient": [-10, -20, -30 + 2.5 * z]},
        FrameContentSequence={"TemporalPositionIndex": time + 1, "StackID": "1"},
        PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 100 * z, "RescaleType": "HU"})
        for time in range(times) for z in order]
    return item


def test_enhanced_frames_are_sorted_and_rescaled_one_by_one(tmp_path: Path) -> None:
    volume = one(save([enhanced([3, 0, 4, 1, 2])], tmp_path) / "001.dcm")
    expected = values() + 100 * np.arange(SLICES, dtype=np.int16)[:, None, None]
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine[:3, 3], [10, 20, -30])
    assert volume.notes == ()


def test_enhanced_time_points_are_split(tmp_path: Path) -> None:
    volumes = read_series(save([enhanced([0, 1, 2, 3, 4], times=3)], tmp_path))
    assert len(volumes) == 3 and codes(volumes) == {"SERIES_SPLIT_4D"}


def test_enhanced_without_all_descriptions_is_refused(tmp_path: Path) -> None:
    item = enhanced([0, 1, 2, 3, 4])
    item.PerFrameFunctionalGroupsSequence = list(item.PerFrameFunctionalGroupsSequence)[:3]
    assert refusal(save([item], tmp_path)) == "GEOM_FRAME_COUNT"


# --- series that must be refused ------------------------------------------------------------------------------------

def _on(index: int, **changes: Any) -> Mutation:
    """Sets elements of one slice, or of all for index -1; None deletes."""
    def mutate(items: list[Any]) -> None:
        for item in items if index < 0 else [items[index]]:
            for keyword, value in changes.items():
                if value is None:
                    delattr(item, keyword)
                else:
                    setattr(item, keyword, value)
    return mutate


def _tilt(items: list[Any]) -> None:
    for z, item in enumerate(items):
        item.ImagePositionPatient = [-10, -20 + 2.5 * z * float(np.tan(np.radians(1))), -30 + 2.5 * z]


def _uneven(items: list[Any]) -> None:
    for item, z in zip(items, (0, 2.5, 5, 8.5, 12), strict=True):
        item.ImagePositionPatient = [-10, -20, -30 + z]


REFUSED: dict[str, tuple[str, Mutation]] = {
    "hole": ("GEOM_MISSING_SLICE", lambda items: items.pop(2)),
    "uneven": ("GEOM_VARIABLE_SPACING", _uneven),
    "1 degree of tilt": ("GEOM_GANTRY_TILT", _tilt),
    "sideways jump": ("GEOM_GANTRY_TILT", _on(2, ImagePositionPatient=[-8, -20, -25])),
    "same position": ("GEOM_DUPLICATE_POSITION", _on(2, ImagePositionPatient=[-10, -20, -27.5])),
    "same UID": ("DUP_UID_CONFLICT", _on(2, SOPInstanceUID=f"{ROOT}.1.1")),
    "no orientation": ("GEOM_NO_ORIENTATION", _on(-1, ImageOrientationPatient=None)),
    "no orientation in one": ("GEOM_NO_ORIENTATION", _on(3, ImageOrientationPatient=None)),
    "no position": ("GEOM_NO_POSITION", _on(3, ImagePositionPatient=None, SliceLocation=-22.5)),
    "no spacing": ("GEOM_NO_SPACING", _on(-1, PixelSpacing=None)),
    "zero spacing": ("GEOM_BAD_SPACING", _on(-1, PixelSpacing=[0, 0])),
    "spacing no number": ("GEOM_BAD_SPACING", _on(0, PixelSpacing=["NaN", "1"])),
    "skew cosines": ("GEOM_BAD_ORIENTATION", _on(-1, ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0])),
    "zero cosines": ("GEOM_BAD_ORIENTATION", _on(-1, ImageOrientationPatient=[0] * 6)),
    "turned slice": ("GEOM_MIXED_ORIENTATION", _on(1, ImageOrientationPatient=[0, 1, 0, -1, 0, 0])),
    "other matrix": ("GEOM_MIXED_MATRIX", _on(1, Rows=COLUMNS, Columns=ROWS)),
    "other spacing": ("GEOM_MIXED_SPACING", _on(1, PixelSpacing=[1.5, 0.8])),
    "other frame of reference": ("GEOM_MIXED_FRAME_OF_REFERENCE", _on(1, FrameOfReferenceUID="1.2.3")),
    "slope 0": ("PIX_BAD_RESCALE", _on(2, RescaleSlope=0)),
    "colour": ("PIX_COLOUR", _on(-1, PhotometricInterpretation="PALETTE COLOR")),
    "no pixels": ("PIX_MISSING", _on(2, PixelData=None)),
    "short pixels": ("PIX_TRUNCATED", _on(2, PixelData=b"\0" * 2000)),
    "giant matrix": ("LIMIT_OR_TRUNCATED", _on(2, Rows=65535, Columns=65535)),
    "2e9 frames": ("LIMIT_OR_TRUNCATED", _on(0, NumberOfFrames=2147483647)),
    "no rows": ("PIX_BAD_MATRIX", _on(0, Rows=0)),
    "7 bits": ("PIX_BAD_BITS", _on(0, BitsAllocated=7)),
    "path in UID": ("UID_INVALID", _on(0, SOPInstanceUID="../../../etc")),
    "echoes of unequal count at one position": (
        "GEOM_DUPLICATE_POSITION", lambda items: (_on(1, ImagePositionPatient=[-10, -20, -30])(items),
                                                  _on(1, AcquisitionNumber=2)(items))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_series_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("pixels were decoded before the headers were checked")

    monkeypatch.setattr(dicom, "load_frames", never)
    code, mutate = REFUSED[name]
    items = make_series()
    mutate(items)
    assert refusal(save(items, tmp_path)) == code


def test_size_cap_comes_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(make_series(), tmp_path)
    needed = SLICES * ROWS * COLUMNS * 2
    assert len(read_series(tmp_path, max_bytes=needed)) == 1
    monkeypatch.setattr(dicom, "load_frames", lambda *_: pytest.fail("decoded"))
    assert refusal(tmp_path, max_bytes=needed - 1) == "LIMIT"


# --- series that are taken with a note ------------------------------------------------------------------------------

def test_tolerates_rounded_positions(tmp_path: Path) -> None:
    items = make_series()
    for item, error in zip(items, (4e-4, -3e-4, 2e-4, -4e-4, 1e-4), strict=True):
        x, y, z = item.ImagePositionPatient
        item.ImagePositionPatient = [x + error, y - error, z + error]
    assert one(save(items, tmp_path)).notes == ()


def _time_points(items: list[Any]) -> None:
    _twice(items, "TemporalPositionIdentifier", (1, 2))


def _echoes(items: list[Any]) -> None:
    _twice(items, "EchoTime", (2.3, 4.6))


def _twice(items: list[Any], keyword: str, pair: tuple[float, float]) -> None:
    again = make_series()
    for item, copy in zip(list(items), again, strict=True):
        copy.SOPInstanceUID += ".2"
        setattr(item, keyword, pair[0])
        setattr(copy, keyword, pair[1])
        items.append(copy)


def _scout(same_series: bool) -> Mutation:
    def mutate(items: list[Any]) -> None:
        scout = make_slice(90, values()[0], (0, 0, 0), (0, 1, 0, 0, 0, -1))
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        if not same_series:
            scout.SeriesInstanceUID = f"{ROOT}.30"
        items.append(scout)
    return mutate


def _report(items: list[Any]) -> None:
    report = make_slice(91, values()[0], (0, 0, 0))
    report.SOPClassUID, report.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", f"{ROOT}.31"
    items.append(report)


def _other_series(items: list[Any]) -> None:
    for z, item in enumerate(make_series(3, step=4)):
        item.SOPInstanceUID, item.SeriesInstanceUID = f"{ROOT}.5.{z}", f"{ROOT}.32"
        item.SliceThickness = 4
        items.append(item)


def _capture(items: list[Any]) -> None:
    capture = make_slice(92, values()[0], (0, 0, 0))
    capture.PhotometricInterpretation, capture.SeriesInstanceUID = "RGB", f"{ROOT}.33"
    items.append(capture)


NOTED: dict[str, tuple[str, int, Mutation]] = {
    "two series": ("SERIES_SPLIT", 2, _other_series),
    "time points": ("SERIES_SPLIT_4D", 2, _time_points),
    "echoes": ("SERIES_SPLIT_ECHO", 2, _echoes),
    "scout": ("LOCALIZER_SKIPPED", 1, _scout(False)),
    "scout in the series": ("LOCALIZER_SKIPPED", 1, _scout(True)),
    "report": ("NON_IMAGE_SKIPPED", 1, _report),
    "colour capture": ("PIX_COLOUR", 1, _capture),
    "thickness": ("SPACING_FROM_POSITIONS", 1, _on(-1, SliceThickness=5, SpacingBetweenSlices=3)),
    "no rescale": ("NO_RESCALE_ASSUMED_IDENTITY", 1, _on(-1, RescaleSlope=None, RescaleIntercept=None)),
    "unknown characters": ("CHARSET_FALLBACK", 1, _on(-1, SpecificCharacterSet="ISO_IR 999")),
    "burned in": ("BURNED_IN_ANNOTATION", 1, _on(-1, BurnedInAnnotation="YES")),
    "address": ("PHI_NOT_COPIED", 1, _on(-1, PatientAddress="1 SECRET Street")),
    "constant": ("PIX_CONSTANT", 1, _on(-1, PixelData=b"\1\0" * (ROWS * COLUMNS))),
}


@pytest.mark.parametrize("name", NOTED)
def test_odd_series_is_taken_with_a_note(tmp_path: Path, name: str) -> None:
    code, count, mutate = NOTED[name]
    items = make_series()
    mutate(items)
    for item in items:
        if item.get("SpecificCharacterSet") == "ISO_IR 999":
            item.PatientName = "ascii"
    volumes = read_series(save(items, tmp_path))
    assert len(volumes) == count and codes(volumes) == {code}
    assert volumes[0].shape == (COLUMNS, ROWS, SLICES) or count > 1
    assert not any("SECRET" in str(note) for volume in volumes for note in volume.notes)


def test_copies_are_ignored(tmp_path: Path) -> None:
    save(make_series(), tmp_path)
    shutil.copy(tmp_path / "001.dcm", tmp_path / "copy.dcm")
    volume = one(tmp_path)
    assert codes([volume]) == {"DUP_INSTANCE_IGNORED"} and volume.shape[2] == SLICES


def test_everything_else_in_a_folder_is_passed_over_by_name(tmp_path: Path) -> None:
    save(make_series(), tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "page.dcm").write_text("<html></html>")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "001.dcm")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.dcm").mkdir()
    os.mkfifo(tmp_path / "pipe.dcm")
    volume = one(tmp_path)
    said = {note.code: note.why for note in volume.notes}
    assert set(said) == {"NON_DICOM_SKIPPED", "FS_SKIPPED"}
    assert all(name in said["NON_DICOM_SKIPPED"] for name in ("notes.txt", "empty.dcm", "page.dcm"))
    assert all(name in said["FS_SKIPPED"] for name in ("link.dcm", "loop", "folder.dcm", "pipe.dcm"))


def test_subfolders_are_searched_only_below_an_empty_folder(tmp_path: Path) -> None:
    other = make_series(3)
    for item in other:
        item.SeriesInstanceUID, item.SOPInstanceUID = "1.2.5", item.SOPInstanceUID + ".9"
    save(make_series(), tmp_path / "a" / "one")
    save(other, tmp_path / "a" / "two")
    assert [volume.shape[2] for volume in read_series(tmp_path)] == [SLICES, 3]
    save(make_series(), tmp_path / ".medgan-partial-1-out")  # what a killed run leaves is no data
    assert len(read_series(tmp_path)) == 2
    (tmp_path / "a" / "one" / "two").mkdir()
    assert codes(read_series(tmp_path / "a" / "one")) == {"FS_SKIPPED"}


def test_one_series_can_be_read_beside_a_bad_one(tmp_path: Path) -> None:
    items, bad = make_series(), make_series()
    for item in bad:
        item.SeriesInstanceUID, item.SOPInstanceUID = "1.2.5", item.SOPInstanceUID + ".9"
    bad[1].PixelSpacing = [2, 2]
    save([*items, *bad], tmp_path)
    assert refusal(tmp_path) == "GEOM_MIXED_SPACING"
    good = [series for series in find_series(tmp_path) if series.uid == f"{ROOT}.3"]
    assert load_series(good[0])[0].shape == (COLUMNS, ROWS, SLICES)


# --- damaged and hostile files --------------------------------------------------------------------------------------

def _file(tmp_path: Path, item: Any | None = None) -> Path:
    return save([item or make_series()[0]], tmp_path) / "001.dcm"


@pytest.mark.parametrize("name, change, code", [
    ("empty", lambda data: b"", "FILE_EMPTY"),
    ("preamble only", lambda data: data[:132], "FILE_TRUNCATED"),
    ("cut in the header", lambda data: data[:605], "FILE_TRUNCATED"),
    ("cut in the pixels", lambda data: data[:-20], "PIX_TRUNCATED"),
    ("noise after DICM", lambda data: data[:132] + np.random.default_rng(1).bytes(4000), "FILE_NOT_DICOM"),
    ("html", lambda data: b"<html><body>not found</body></html>", "FILE_NOT_DICOM"),
    ("git lfs", lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "FILE_IS_POINTER"),
    ("unknown syntax", lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0"),
     "TS_UNSUPPORTED"),
    ("undefined length", lambda data: data.replace(b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 2 * ROWS * COLUMNS),
                                                   b"\xe0\x7f\x10\0OW\0\0\xff\xff\xff\xff"), "FILE_TRUNCATED"),
])
@pytest.mark.parametrize("alone", [True, False])
def test_damaged_file_is_refused(tmp_path: Path, name: str, change: Callable[[bytes], bytes], code: str,
                                 alone: bool) -> None:
    path = _file(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    assert refusal(path if alone else tmp_path) == code


def test_missing_and_empty_places_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "FILE_MISSING"
    assert refusal(tmp_path) == "NO_IMAGES"
    (tmp_path / ".keep").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("x")
    assert refusal(tmp_path) == "NO_IMAGES"


def test_any_cut_of_a_file_is_refused_or_complete(tmp_path: Path) -> None:
    data = _file(tmp_path).read_bytes()
    path = tmp_path / "cut.dcm"
    for size in range(1, len(data) - 1, 23):
        path.write_bytes(data[:size])
        assert refusal(path) in {"FILE_TRUNCATED", "PIX_TRUNCATED", "PIX_MISSING", "FILE_NOT_DICOM"}


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    data = bytearray(_file(tmp_path).read_bytes())
    random = np.random.default_rng(5)
    path = tmp_path / "damaged.dcm"
    for _ in range(150):
        damaged = bytearray(data)
        for place in random.integers(132, len(data), 6):
            damaged[place] = random.integers(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(Refused):
            read_series(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    deep = b"".join([b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"] * 600)
    data = path.read_bytes()
    place = data.index(b"\x10\0\x10\0PN")
    path.write_bytes(data[:place] + deep + data[place:])
    assert refusal(path) == "FILE_TOO_DEEP"


def test_deflated_bomb_stays_small(tmp_path: Path) -> None:
    item = make_series()[0]
    item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = _file(tmp_path, item)
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    inside = packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS))
    inside += b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    path.write_bytes(data[:start] + inside)
    tracemalloc.start()
    try:
        assert refusal(path) == "LIMIT"
        assert tracemalloc.get_traced_memory()[1] < 5 * dicom_file.INFLATE_SLACK
    finally:
        tracemalloc.stop()


def test_codestream_larger_than_its_header_is_not_decoded(tmp_path: Path) -> None:
    item = make_series()[0]
    item.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = _file(tmp_path, item)
    data = bytearray(path.read_bytes())
    place = data.index(b"\xff\x4f\xff\x51")
    assert dicom_pixels.codestream_shape(bytes(data[place:])) == (ROWS, COLUMNS)
    data[place + 8:place + 16] = struct.pack(">2I", 60000, 60000)
    path.write_bytes(bytes(data))
    assert refusal(path) == "PIX_DECODE_FAILED"


def test_codestream_shape_reads_jpeg_frame_headers() -> None:
    tables = b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc4\0\x03x"
    for marker in (b"\xc0", b"\xc3", b"\xf7"):
        assert dicom_pixels.codestream_shape(tables + b"\xff" + marker + struct.pack(">HBHHB", 11, 8, 33, 44, 1)) \
            == (33, 44)
    assert dicom_pixels.codestream_shape(b"\0" * 64) is None


def test_truncated_rle_that_panics_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    item = make_series()[0]
    item.compress(RLELossless, generate_instance_uid=False)
    path = _file(tmp_path, item)
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<2I", 2, 64))  # two segments, the first after the 64 bytes of the header
    data[place + 8:place + 12] = struct.pack("<I", 60000)
    path.write_bytes(bytes(data))
    assert refusal(path) == "PIX_DECODE_FAILED"
    capfd.readouterr()


def test_codec_panic_is_a_refusal_and_an_interrupt_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    item = make_series()[0]
    item.compress(RLELossless, generate_instance_uid=False)
    path = _file(tmp_path, item)
    for error, expected in ((Panic, Refused), (KeyboardInterrupt, KeyboardInterrupt)):
        def explode(*_: Any, error: type[BaseException] = error) -> Any:
            raise error
            yield

        monkeypatch.setattr(dicom_pixels, "_run_decoder", explode)
        with pytest.raises(expected):
            read_series(path)


def test_dicomdir_is_never_followed(tmp_path: Path) -> None:
    save(make_series(), tmp_path)
    index = Dataset()
    record = Dataset()
    record.ReferencedFileID = ["..", "..", "secret"]
    index.DirectoryRecordSequence = [record]
    index.file_meta = FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID, index.file_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2"
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert codes(read_series(tmp_path)) == {"DICOMDIR_IGNORED"}
    assert refusal(tmp_path / "DICOMDIR") == "NO_IMAGES"


# --- small helpers --------------------------------------------------------------------------------------------------

def test_is_dicom_looks_at_the_first_bytes(tmp_path: Path) -> None:
    path = _file(tmp_path)
    assert is_dicom(path)
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    assert is_dicom(bare)
    for name, content in (("text", b"hello " * 50), ("nothing", b""), ("zeros", bytes(400)), ("gz", b"\x1f\x8b" * 90)):
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)
    assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "missing")


def test_template_is_a_header_without_pixels(tmp_path: Path) -> None:
    header = template(save(make_series(), tmp_path))
    assert header.PatientID == "N1" and "PixelData" not in header


def test_header_values_never_reach_a_message(tmp_path: Path) -> None:
    items = make_series()
    for item in items:
        item.PatientName, item.PatientAddress, item.PatientBirthDate = "CANARY^A", "CANARY Street", "CANARY"
    items[1].PixelSpacing = [9, 9]
    save(items, tmp_path)
    with pytest.raises(Refused) as caught:
        read_series(tmp_path)
    assert "CANARY" not in str(caught.value)


# --- slice thickness ------------------------------------------------------------------------------------------------

def _thicknesses(*given: Any) -> list[Any]:
    items = make_series()
    for item, thickness in zip(items, given, strict=True):
        del item.SliceThickness
        if thickness is not None:
            item.add_new("SliceThickness", "DS", thickness)
    return items


@pytest.mark.parametrize(("given", "expected"), [
    ((2.5,) * 5, 2.5),
    ((4.0,) * 5, 4.0),  # overlapping slices
    ((1,) * 5, 1.0),  # gaps
    ((3.0, 3.0001, 3.0, 2.9999, 3.0), 3.0),  # rounding
    ((None,) * 5, None),
    ((2.5, 2.5, None, 2.5, 2.5), None),
    ((2.5, 2.5, 2.5, 2.5, 3.0), None),
    ((0,) * 5, None),
    ((-2.5,) * 5, None),
    (("",) * 5, None),
    (([2.5, 2.5],) * 5, None),
])
def test_slice_thickness_is_told_where_all_slices_agree(tmp_path: Path, given: Any, expected: float | None) -> None:
    volume = one(save(_thicknesses(*given), tmp_path))
    assert volume.slice_thickness_mm == expected
    assert volume.spacing_mm[2] == pytest.approx(2.5)  # from the positions, whatever the thickness


@pytest.mark.parametrize("word", [b"oops", b"nan ", b"inf "])
def test_slice_thickness_that_is_no_number_is_not_told(tmp_path: Path, word: bytes) -> None:
    folder = save(_thicknesses(*(2.25,) * 5), tmp_path)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.count(b"2.25") == 1
        path.write_bytes(content.replace(b"2.25", word))
    assert one(folder).slice_thickness_mm is None


def test_infinite_slice_thickness_is_not_told(tmp_path: Path) -> None:
    items = _thicknesses(*(None,) * 5)
    for item in items:
        item.add_new("SliceThickness", "FD", float("inf"))  # as text pydicom takes it for no number
    assert one(save(items, tmp_path)).slice_thickness_mm is None


@pytest.mark.parametrize(("shared", "own", "expected"), [
    (2.0, None, 2.0), (None, None, None), (None, (3.0,) * 5, 3.0), (None, (3.0, 3.0, 2.0, 3.0, 3.0), None),
])
def test_enhanced_slice_thickness_comes_from_the_pixel_measures(
    tmp_path: Path, shared: float | None, own: Any, expected: float | None,
) -> None:
    item = enhanced([3, 0, 4, 1, 2])
    item.SliceThickness = 7.0  # not the place for it in such a file
    measures = item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SliceThickness
    if shared is not None:
        measures.SliceThickness = shared
    if own is not None:
        for group, thickness in zip(item.PerFrameFunctionalGroupsSequence, own, strict=True):
            group.PixelMeasuresSequence = [Dataset()]
            group.PixelMeasuresSequence[0].PixelSpacing = [1.5, 0.75]
            group.PixelMeasuresSequence[0].SliceThickness = thickness
    assert one(save([item], tmp_path) / "001.dcm").slice_thickness_mm == expected


def test_a_single_slice_and_a_radiograph_have_no_third_axis_to_be_thick_along(tmp_path: Path) -> None:
    assert one(save(make_series()[:1], tmp_path / "slice")).slice_thickness_mm is None
    assert one(save([radiograph(SliceThickness=2.5)], tmp_path / "xray")).slice_thickness_mm is None


def test_slice_thickness_stays_with_the_third_axis(tmp_path: Path) -> None:
    volume = one(save(make_series(), tmp_path))
    assert volume.orientation == "LPS" and volume.slice_thickness_mm == 2.5
    kept = [reorient(volume), reorient(volume, "PLI"), volume.with_array(volume.array * 2)]
    assert [v.slice_thickness_mm for v in kept] == [2.5] * 3
    lost = [reorient(volume, "SPL"), reorient(volume, "RSA"), resample(volume, (1.5, 1.5, 1.5)),
            resample_to(volume, volume.affine @ np.diag([1, 1, 2, 1]), (COLUMNS, ROWS, 3), order=1)]
    assert [v.slice_thickness_mm for v in lost] == [None] * 4


def test_real_slice_thickness_is_not_the_spacing() -> None:
    volume = one(_needs(SHARED / "data" / "ct-dicom" / "lungfcp"))
    assert volume.slice_thickness_mm == 2.0  # slices overlap
    assert volume.spacing_mm[2] == pytest.approx(1.0)


# --- real and odd files ---------------------------------------------------------------------------------------------

def _cases() -> list[Any]:
    path = SHARED / "odd" / "cases.json"
    if not path.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason="no ../shared/odd"))]
    return [pytest.param(case, id=case["id"]) for case in json.loads(path.read_text())
            if case["path"].startswith("dicom/")]


@pytest.mark.parametrize("case", _cases())
def test_odd_case_behaves_as_its_policy_says(case: dict[str, str]) -> None:
    path = SHARED / "odd" / case["path"]
    try:
        found, verdict = codes(read_series(path)), "accept"
    except Refused as error:
        found, verdict = {error.code}, "refuse"
    assert verdict in case["expect"], found
    assert case["code"] in found or (case["code"] == "OK" and not found)


def _needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize("name", ["data/ct-dicom/lungfcp", "odd/dicom/d_ok", "odd/dicom/d_oblique"])
def test_real_series_agrees_with_highdicom(name: str) -> None:
    highdicom = pytest.importorskip("highdicom")
    folder = _needs(SHARED / name)
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    assert_same(one(folder), highdicom.get_volume_from_series(files))


@pytest.mark.parametrize("name", ["d_enhanced_shuffled_frames", "d_enhanced_per_frame_rescale"])
def test_enhanced_file_agrees_with_highdicom(name: str) -> None:
    highdicom = pytest.importorskip("highdicom")
    path = _needs(SHARED / "odd" / "dicom" / name) / "IM000.dcm"
    theirs = highdicom.imread(path).get_volume(dtype=np.float32, apply_voi_transform=False)
    assert_same(one(path), theirs)


def test_nine_transfer_syntaxes_decode_equal() -> None:
    folder = _needs(REAL / "dcm_qa_ts_nine_transfer_syntaxes")
    volumes = [one(path) for path in sorted(folder.glob("*.dcm"))]
    assert len(volumes) == 9 and volumes[0].array.max() > 1000
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume.array, volumes[0].array)
        np.testing.assert_allclose(volume.affine, volumes[0].affine)


@pytest.mark.parametrize("codec", ["compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls",
                                   "compressed_rle"])
def test_codecs_agree_with_the_nifti(codec: str) -> None:
    folder = _needs(REAL / "dicom2nifti_generic" / codec)
    volume = one(folder / "001")
    truth = nibabel.as_closest_canonical(nibabel.load(folder / "001_ground_truth.nii.gz"))
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.array[0].astype(np.float32), volume.affine))
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-3)
    np.testing.assert_array_equal(ours.get_fdata(), truth.get_fdata())


def test_real_tilted_and_coloured_series_are_refused() -> None:
    assert refusal(_needs(REAL / "dcm_qa_ct_Philips_S21610")) in {"GEOM_GANTRY_TILT", "GEOM_MIXED_ORIENTATION"}
    assert refusal(_needs(REAL / "dicom2nifti_generic" / "rgb")) == "PIX_COLOUR"


def test_every_real_file_is_read_or_refused_with_a_code() -> None:
    files = [path for path in _needs(REAL / "pydicom_tests").rglob("*") if path.is_file()]
    read = {}
    for path in files:
        try:
            read[path.name] = codes(read_series(path))
        except Refused as error:
            assert error.code != "LIMIT"
    assert {"MR_small.dcm", "MR_small_RLE.dcm", "CT_small.dcm", "693_J2KI.dcm", "image_dfl.dcm"} <= set(read)
    assert not {"MR_truncated.dcm", "rtdose.dcm", "liver_1frame.dcm", "reportsi.dcm", "zipMR.gz"} & set(read)


def test_wrong_sign_in_a_codestream_is_corrected() -> None:
    volume = one(_needs(REAL / "pydicom_tests" / "J2K_pixelrep_mismatch.dcm"))
    assert (volume.array.min(), volume.array.max()) == (-2000, 1896)


def test_memory_stays_below_three_copies(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = [make_slice(z, random.integers(0, 4000, (256, 256)).astype(np.int16), (0, 0, 2.5 * z)) for z in range(40)]
    save(items, tmp_path)
    del items
    one(save(make_series(), tmp_path / "warm"))
    tracemalloc.start()
    try:
        volume = one(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * volume.array.nbytes
    finally:
        tracemalloc.stop()
