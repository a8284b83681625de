"""Series that must be refused, tolerated, sorted out: everything a folder of slices can be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_makers import (
    COLUMNS,
    ROOT,
    ROWS,
    SLICES,
    change,
    codes,
    make_series,
    make_slice,
    one,
    refusal,
    save,
    values,
)

from medgan.imaging import dicom
from medgan.imaging.dicom import find_series, load_series, read_series
from medgan.imaging.rules import Rules

Mutation = Callable[[list[Any]], Any]


# --- series that must be refused ------------------------------------------------------------------------------------

def _on(index: int, **changes: Any) -> Mutation:
    """Sets elements of one slice, or of all for index -1; None deletes."""
    def mutate(items: list[Any]) -> None:
        for item in items if index < 0 else [items[index]]:
            change(item, **changes)
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
    needed = (SLICES + 2) * ROWS * COLUMNS * 2  # the volume, and one slice as it is read and decoded
    assert len(read_series(tmp_path, Rules(needed))) == 1
    monkeypatch.setattr(dicom, "load_frames", lambda *_: pytest.fail("decoded"))
    assert refusal(tmp_path, Rules(needed - 1)) == "LIMIT"


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
