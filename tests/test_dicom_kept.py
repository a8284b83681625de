"""What a derived series keeps of its source: valid values as they are, nothing else, and an object without errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dicom_makers as make
import numpy as np
import pydicom
import pytest
import test_dicom_write as writing
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medgan.imaging.dicom import read_series
from medgan.imaging.dicom_header import text, texts
from medgan.imaging.dicom_kept import KEPT, is_uid, usable_uid
from medgan.imaging.dicom_write import write_synthetic
from medgan.imaging.volume import Volume

TEXTS = tuple(keyword for keyword in (*KEPT, "SeriesNumber", "Modality") if not keyword.endswith("UID"))
#: Bytes that a broken or foreign exporter may put anywhere.
HOSTILE = {
    "empty": b"", "spaces": b"   ", "long": b"X" * 300, "lower": b"lower case", "utf8": "é日本".encode(),
    "not utf8": b"\xff\xfe", "many": rb"A\B\C\D", "empty values": b"\\\\", "whole": b"12345",
    "negative": b"-1",
    "zero": b"0",
    "fraction": b"1.5", "no day": b"19700229", "range": b"19700101-19800101", "control": b"a\x01b\nc",
    "name": b"A^B^C^D^E^F=G=H=I", "nan": b"NaN", "infinite": b"1e400", "nul": b"AB\0\0", "largest": b"2147483647",
    "escape": b"\x1b$B", "code": b"M",
}  # fmt: skip


def scan(modality: Any, dims: int) -> Volume:
    array = np.random.default_rng(1).integers(0, 900, (1, 6, 5, 2)).astype(np.int16)
    place = np.diag([0.1, 0.2, 1.0, 1.0]) if dims == 2 else writing.affine()
    return Volume(array if dims == 3 else array[..., 0], place, modality)


def spoil(folder: Path, values: dict[str, bytes]) -> Path:
    """Puts bytes where elements are, unchecked, in every file."""
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        for keyword, value in values.items():
            tag, padded = Tag(tag_for_keyword(keyword) or 0), value + b" " * (len(value) % 2)
            item._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(padded), padded, 0, False, True)
        item.save_as(path)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("modality, dims", [("ct", 3), ("mr", 3), ("xray", 2), ("us", 3)])
def test_a_source_of_hostile_values_has_a_valid_derived_series(tmp_path: Path, name: str, modality: Any,
                                                               dims: int) -> None:
    item = scan(modality, dims)
    source = writing.write(item, tmp_path / "scan")[0].parent
    spoil(source, dict.fromkeys(TEXTS if modality == "us" else TEXTS[:-1], HOSTILE[name]))
    files = writing.derive(item, tmp_path / "out", source)
    assert writing.complaints(files[0]) == []
    np.testing.assert_array_equal(pydicom.dcmread(files[0]).pixel_array, item.array[0].T if dims == 2
                                  else item.array[0, :, :, 0].T)


@pytest.mark.parametrize("value", [b"12345", b"19700229", b"1.5", b"0", b"", b"1.2.840.010.3", b"2.25.1." + b"9" * 56])
def test_uids_that_are_none_are_replaced_or_not_referred_to(tmp_path: Path, value: bytes) -> None:
    item = scan("ct", 3)
    source = writing.write(item, tmp_path / "scan")[0].parent
    spoil(source, {"StudyInstanceUID": value, "FrameOfReferenceUID": value})
    files = writing.derive(item, tmp_path / "out", source)
    assert writing.complaints(files[0]) == [] and len(pydicom.dcmread(files[0]).SourceImageSequence) > 0
    again = writing.derive(item.with_array(item.array + 1), tmp_path / "again", source)
    studies = [pydicom.dcmread(each).StudyInstanceUID for each in (files[0], again[0])]
    assert (studies[0] == studies[1]) == (value != b"")  # one study of the source is one study of what is made from it


def test_a_source_image_without_a_class_is_not_referred_to(tmp_path: Path) -> None:
    item = scan("mr", 3)
    source = spoil(writing.write(item, tmp_path / "scan")[0].parent, {"SOPClassUID": b"1.5"})
    files = writing.derive(item, tmp_path / "out", source)
    assert writing.complaints(files[0]) == [] and "SourceImageSequence" not in pydicom.dcmread(files[0])


@pytest.mark.parametrize("value, valid", [
    ("1.2.840.10008.1.1", True), ("2.25.0", True), ("2.999.3", True), ("0.9.1", True), ("1.4.1", False), ("3.1", False),
    ("1.2.03", False), ("1..2", False), ("1.2.", False), ("1", False), ("", False), ("1.2\n", False),
    ("1." + "2" * 63, False), ("2." + "2" * 62, True), ("2." + "2" * 63, False)])
def test_which_uids_are_valid(value: str, valid: bool) -> None:
    assert is_uid(value) == valid and is_uid(usable_uid(value)) and (usable_uid(value) == value) == valid


def test_good_values_are_kept_as_they_are(tmp_path: Path) -> None:
    good = {"PatientName": "山田^太郎=ヤマダ^タロウ", "PatientID": "Ä-17", "PatientBirthDate": "19600229",
            "PatientSex": "F", "PatientAge": "060Y", "PatientWeight": "61.5", "StudyTime": "101112.123",
            "ScanningSequence": ["GR", "IR"], "SequenceVariant": ["SP", "MP"], "InversionTime": "900",
            "RepetitionTime": "2300.5",
            "EchoTrainLength": "1", "MagneticFieldStrength": "3", "WindowCenter": ["40", "600"],
            "WindowWidth": ["400", "1500"],
            "StudyDescription": "頭部MRI検査・造影剤なし・経過観察", "PatientPosition": "FFS", "Laterality": "L"}
    item = scan("mr", 3)
    source = writing.write(item, tmp_path / "scan")[0].parent
    for path in source.iterdir():
        data = pydicom.dcmread(path)
        for keyword, value in good.items():
            setattr(data, keyword, value)
        data.save_as(path)
    files = writing.derive(item, tmp_path / "out", source)
    assert writing.complaints(files[0]) == []
    before, after = pydicom.dcmread(source / files[0].name), pydicom.dcmread(files[0])
    assert [keyword for keyword in good if before[keyword].value != after[keyword].value] == []


@pytest.mark.parametrize("name", ["Yamada^Tarou", "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", "A", ""])
def test_a_name_is_one_text(name: str) -> None:
    header = pydicom.Dataset()
    header.PatientName, header.OtherPatientNames = name, ["Doe^Jane", "Roe^Jane"]
    assert texts(header, "PatientName") == [name] and text(header, "PatientName") == name
    assert texts(header, "OtherPatientNames") == ["Doe^Jane", "Roe^Jane"]


def test_the_position_of_a_patient_is_not_made_up(tmp_path: Path) -> None:
    item = scan("ct", 3)
    source = writing.write(item, tmp_path / "scan")[0].parent
    for path in source.iterdir():
        data = pydicom.dcmread(path)
        del data.PatientPosition
        data.save_as(path)
    files = writing.derive(item, tmp_path / "out", source)
    assert pydicom.dcmread(files[0]).PatientPosition == "" and writing.complaints(files[0]) == []


def test_an_enhanced_parent_has_valid_children(tmp_path: Path) -> None:
    source = make.save([make.enhanced([2, 0, 1, 4, 3])], tmp_path / "scan")
    [parent] = read_series(source)
    derived = writing.derive(parent, tmp_path / "derived", source)
    made = write_synthetic(parent, tmp_path / "made", model_hash="sha256:abc", seed=1, derivation="a\\b\nc" * 500)
    for files in (derived, made):
        assert len(files) == 5 and writing.complaints(files[0]) == [] == writing.complaints(files[-1])
        [back] = read_series(files[0].parent)
        np.testing.assert_array_equal(back.array, parent.array)
