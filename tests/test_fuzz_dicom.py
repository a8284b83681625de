"""Right DICOM series of many kinds, and one thing wrong with them: refused with its code, or read right and said."""

from __future__ import annotations

import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from fuzz_makers import NOTHING, ROOT, STEADY, Made, Wrong, dicom_series, encoded, judged, sane, written
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from medgan.errors import CODES

Apply = Callable[[st.DataObject, Made], Made]
#: Names of wrongs -> what they do to a classic, uncompressed series.
DICOM_WRONGS: dict[Wrong, Apply] = {}


def _dicom(name: str, *codes: str, notes: tuple[str, ...] = (), unsaid: bool = False) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        DICOM_WRONGS[Wrong(name, frozenset(codes), frozenset(notes), unsaid)] = apply
        return apply

    return register


def _any(data: st.DataObject, made: Made) -> Any:
    return data.draw(st.sampled_from(made.items))


def _set(name: str, keyword: str, values: tuple[Any, ...], *codes: str, every: bool = False,
         notes: tuple[str, ...] = (), unsaid: bool = False) -> None:
    """A wrong that gives one slice (or every) another value; None: none at all."""
    def apply(data: st.DataObject, made: Made) -> Made:
        value = data.draw(st.sampled_from(values))
        for item in made.items if every else [_any(data, made)]:
            if value is None:
                delattr(item, keyword)
            else:
                with pydicom.config.disable_value_validation():
                    _put(item, keyword, value)
        return made

    DICOM_WRONGS[Wrong(name, frozenset(codes), frozenset(notes), unsaid)] = apply


def _put(item: Any, keyword: str, value: Any) -> None:
    """Sets a value, of whatever kind, as text where it is text: decimal strings are then not checked."""
    if isinstance(value, bytes):
        vr = pydicom.datadict.dictionary_VR(keyword)
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
        item[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    else:
        setattr(item, keyword, value)


_NO_NUMBERS = (b"abc ", b"1\\x ", b"nan\\1 ", b"inf\\1 ", b"--1\\1 ")
_set("no spacing", "PixelSpacing", (None, b""), "GEOM_NO_SPACING")
_set("no spacing at all", "PixelSpacing", (None, b""), "GEOM_NO_SPACING", every=True)
_set("bad spacing", "PixelSpacing", ([0, 0], [1, 0], [-1, 1], [1, 1, 1], [1], b"1e400\\1 ", *_NO_NUMBERS),
     "GEOM_BAD_SPACING")
_set("no orientation", "ImageOrientationPatient", (None, b""), "GEOM_NO_ORIENTATION")
_set("bad orientation", "ImageOrientationPatient",
     ([0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 0.5, 0.5, 0.5], [2, 0, 0, 0, 2, 0], [1, 0, 0], b"1\\0\\0\\0\\nan\\0",
      *_NO_NUMBERS), "GEOM_BAD_ORIENTATION")
_set("no position", "ImagePositionPatient", (None, b"", [1, 2], b"1\\2\\nan ", b"1\\inf\\3 ", *_NO_NUMBERS),
     "GEOM_NO_POSITION")
_set("bad slope", "RescaleSlope", (0, b"nan ", b"inf ", b"abc ", b"1\\2 ", b"-0.0"), "PIX_BAD_RESCALE")
_set("bad intercept", "RescaleIntercept", (b"nan ", b"-inf", b"abc ", b"1\\2 ", b"1e400 "), "PIX_BAD_RESCALE")
_set("no rows or columns", "Rows", (0, None), "PIX_BAD_MATRIX")
_set("columns of no number", "Columns", (0, [3, 3]), "PIX_BAD_MATRIX")
_set("bad bits allocated", "BitsAllocated", (0, 7, 12, 17, 64, 65535, [16, 16]), "PIX_BAD_BITS")
_set("bad bits stored", "BitsStored", (0, 17, 33, 65535), "PIX_BAD_BITS")
_set("bad high bit", "HighBit", (16, 31, 65535), "PIX_BAD_BITS")
_set("bad sign", "PixelRepresentation", (2, 65535), "PIX_BAD_BITS")
_set("rows that lie", "Rows", (40, 1000, 65535), "PIX_TRUNCATED", "LIMIT_OR_TRUNCATED", "LIMIT")
_set("frames that lie", "NumberOfFrames", (2, 3, 1000, 2**31 - 1), "PIX_TRUNCATED", "LIMIT_OR_TRUNCATED")
_set("frames that are none", "NumberOfFrames", (0, -1, b"abc ", b"1.5 "), "PIX_BAD_MATRIX")
_set("no pixels", "PixelData", (None,), "PIX_MISSING")
_set("empty pixels", "PixelData", (b"",), "PIX_TRUNCATED", "LIMIT_OR_TRUNCATED", "PIX_MISSING")
_set("colour", "PhotometricInterpretation", ("RGB", "PALETTE COLOR", "YBR_FULL", ""), "PIX_COLOUR")
_set("samples", "SamplesPerPixel", (3, 0, 65535), "PIX_COLOUR", "PIX_TRUNCATED", "LIMIT_OR_TRUNCATED")
_set("bad instance UID", "SOPInstanceUID", ("../../x", "1..2", "1." * 40 + "1", "a"), "UID_INVALID")
_set("bad series UID", "SeriesInstanceUID", ("../../x", "/etc/passwd", "1,2"), "UID_INVALID", every=True)
_set("another frame of reference", "FrameOfReferenceUID", (f"{ROOT}.99", None), "GEOM_MIXED_FRAME_OF_REFERENCE")
_set("unknown character set", "SpecificCharacterSet", ("ISO_IR 999", "NOPE"), every=True, notes=("CHARSET_FALLBACK",))
_set("instance numbers that lie", "InstanceNumber", (None, 1, -5, 10**6), unsaid=True)
_set("thickness that lies", "SliceThickness", (0.1, 33), every=True, notes=("SPACING_FROM_POSITIONS",))
_set("thickness that is none", "SliceThickness", (None, 0, b"abc "), every=True, notes=("SPACING_FROM_POSITIONS",),
     unsaid=True)


@_dicom("a slice is missing", "GEOM_MISSING_SLICE", "GEOM_VARIABLE_SPACING")
def _missing(data: st.DataObject, made: Made) -> Made:
    del made.items[data.draw(st.integers(1, len(made.items) - 2))]
    return made


@_dicom("two at one position", "GEOM_DUPLICATE_POSITION")
def _twice(data: st.DataObject, made: Made) -> Made:
    again = deepcopy(_any(data, made))
    again.SOPInstanceUID = f"{ROOT}.98"
    made.items.append(again)
    return made


@_dicom("a copy of a file", notes=("DUP_INSTANCE_IGNORED",))
def _copy(data: st.DataObject, made: Made) -> Made:
    made.items.append(deepcopy(_any(data, made)))
    return made


@_dicom("one UID, two images", "DUP_UID_CONFLICT")
def _conflict(data: st.DataObject, made: Made) -> Made:
    again = deepcopy(_any(data, made))
    again.PixelData = bytes([again.PixelData[0] ^ 1]) + again.PixelData[1:]
    made.items.append(again)
    return made


@_dicom("tilted", "GEOM_GANTRY_TILT")
def _tilted(data: st.DataObject, made: Made) -> Made:
    share = np.tan(np.radians(data.draw(st.sampled_from((2, 15, -20, 30)))))
    along = np.array([float(x) for x in made.items[0].ImageOrientationPatient[3:]])
    for z, item in enumerate(made.items):
        place = np.array(item.ImagePositionPatient, dtype=float) + z * made.step * share * along
        item.ImagePositionPatient = [round(float(x), 6) for x in place]
    return made


@_dicom("uneven steps", "GEOM_VARIABLE_SPACING", "GEOM_MISSING_SLICE")
def _uneven(data: st.DataObject, made: Made) -> Made:
    factor = data.draw(st.sampled_from((0.3, 0.5, 1.4, 2.0, 3.7)))
    begin = data.draw(st.integers(1, len(made.items) - 2))
    for item in made.items[begin:]:
        place = np.array(item.ImagePositionPatient, dtype=float) + (factor - 1) * made.step * made.normal
        item.ImagePositionPatient = [round(float(x), 6) for x in place]
    return made


@_dicom("one slice aside", "GEOM_GANTRY_TILT")
def _aside(data: st.DataObject, made: Made) -> Made:
    along = np.array([float(x) for x in made.items[0].ImageOrientationPatient[:3]])
    item = made.items[data.draw(st.integers(1, len(made.items) - 1))]
    place = np.array(item.ImagePositionPatient, dtype=float) + 0.5 * made.step * along
    item.ImagePositionPatient = [round(float(x), 6) for x in place]
    return made


@_dicom("one turned slice", "GEOM_MIXED_ORIENTATION")
def _turned(data: st.DataObject, made: Made) -> Made:
    item = _any(data, made)
    old = list(item.ImageOrientationPatient)
    item.ImageOrientationPatient = data.draw(st.sampled_from((old[3:] + old[:3], [-float(x) for x in old])))
    return made


@_dicom("one slice of another spacing", "GEOM_MIXED_SPACING")
def _other_spacing(data: st.DataObject, made: Made) -> Made:
    item = _any(data, made)
    item.PixelSpacing = [float(item.PixelSpacing[0]) * data.draw(st.sampled_from((0.5, 1.01, 3))), item.PixelSpacing[1]]
    return made


@_dicom("one slice of another matrix", "GEOM_MIXED_MATRIX")
def _other_matrix(data: st.DataObject, made: Made) -> Made:
    item = _any(data, made)
    item.Rows, item.Columns = (item.Columns, item.Rows) if item.Rows != item.Columns else (1, item.Rows * item.Columns)
    return made


@_dicom("no rescale", notes=("NO_RESCALE_ASSUMED_IDENTITY",))
def _no_rescale(data: st.DataObject, made: Made) -> Made:
    slope, intercept = float(made.items[0].RescaleSlope), float(made.items[0].RescaleIntercept)
    for item in made.items:
        del item.RescaleSlope, item.RescaleIntercept
        item.Modality, item.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
    return replace(made, truth=replace(made.truth, array=(made.truth.array - intercept) / slope))


@_dicom("other files beside it", notes=("NON_DICOM_SKIPPED",))
def _junk(data: st.DataObject, made: Made) -> Made:
    junk = data.draw(st.sampled_from((b"", b"<html></html>", b"\0\5\x16\7" + bytes(200), b"%PDF-1.4" + bytes(900))))
    return replace(made, files=[*(encoded(item, made.syntax) for item in made.items), junk])


@_dicom("a pointer to a file", "FILE_IS_POINTER")
def _pointer(data: st.DataObject, made: Made) -> Made:
    files = [encoded(item, made.syntax) for item in made.items]
    files[data.draw(st.integers(0, len(files) - 1))] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    return replace(made, files=files)


@_dicom("no preamble", notes=("NO_PREAMBLE",))
def _bare(data: st.DataObject, made: Made) -> Made:
    return replace(made, files=[encoded(item, made.syntax)[132:] for item in made.items])


@_dicom("deep sequences", "FILE_TOO_DEEP", unsaid=True)
def _deep(data: st.DataObject, made: Made) -> Made:
    files = [encoded(item, uid.ExplicitVRLittleEndian) for item in made.items]
    depth = data.draw(st.sampled_from((2, 30, 300, 3000)))
    tag = struct.pack("<HH", 0x0021, 0x1001)
    deep = (tag + b"SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4) * depth \
        + (b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)) * depth
    at = files[0].index(struct.pack("<HH", 0x0028, 0x0002) + b"US")
    return replace(made, files=[files[0][:at] + deep + files[0][at:], *files[1:]])


@_dicom("a cut file", "FILE_TRUNCATED", "PIX_TRUNCATED", "PIX_MISSING", "FILE_NOT_DICOM", "GEOM_MISSING_SLICE",
        "GEOM_VARIABLE_SPACING", "FILE_EMPTY", "LIMIT_OR_TRUNCATED", "FILE_CORRUPT")
def _cut(data: st.DataObject, made: Made) -> Made:
    files = [encoded(item, made.syntax) for item in made.items]
    index = data.draw(st.integers(1, len(files) - 2))
    files[index] = files[index][: data.draw(st.integers(0, len(files[index]) - 1))]
    return replace(made, files=files)


@_dicom("an unknown transfer syntax", "TS_UNSUPPORTED")
def _syntax(data: st.DataObject, made: Made) -> Made:
    files = [encoded(item, uid.ExplicitVRLittleEndian) for item in made.items]
    other = data.draw(st.sampled_from((b"1.2.840.10008.1.9.1\0", b"1.2.840.10008.1.2.9\0", b"1.2.3.4.5.6.7.8.9.10")))
    index = data.draw(st.integers(0, len(files) - 1))
    files[index] = files[index].replace(b"1.2.840.10008.1.2.1\0", other, 1)
    return replace(made, files=files)


@_dicom("pixels of undefined length", "FILE_TRUNCATED")
def _undefined(data: st.DataObject, made: Made) -> Made:
    return _length(data, made, 0xFFFFFFFF)


@_dicom("more pixels announced than there are", "PIX_TRUNCATED")
def _announced(data: st.DataObject, made: Made) -> Made:
    return _length(data, made, data.draw(st.sampled_from((1000, 2**31 - 2, 2**31, 2**32 - 2))))


def _length(data: st.DataObject, made: Made, length: int) -> Made:
    files = [encoded(item, uid.ExplicitVRLittleEndian) for item in made.items]
    index = data.draw(st.integers(0, len(files) - 1))
    at = files[index].rindex(b"\xe0\x7f\x10\0O") + 8
    files[index] = files[index][:at] + struct.pack("<I", length) + files[index][at + 4 :]
    return replace(made, files=files)


# --- the tests ------------------------------------------------------------------------------------------------------

_NATIVE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


@settings(STEADY, max_examples=60)
@given(made=dicom_series())
def test_right_series_are_read_right(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert judged(written(made, tmp_path_factory.mktemp("right") / "s"), [made.truth], NOTHING) == ""


@pytest.mark.parametrize("wrong", DICOM_WRONGS, ids=str)
def test_one_thing_wrong_is_refused_or_said(wrong: Wrong, tmp_path_factory: pytest.TempPathFactory) -> None:
    answers = set()

    @settings(STEADY, max_examples=8)
    @given(data=st.data(), made=dicom_series(enhanced=False, syntaxes=_NATIVE))
    def check(data: st.DataObject, made: Made) -> None:
        made = DICOM_WRONGS[wrong](data, made)
        answers.add(judged(written(made, tmp_path_factory.mktemp("wrong") / "s"), [made.truth], wrong))

    check()
    assert answers


@settings(STEADY, max_examples=40)
@given(data=st.data(), made=dicom_series(enhanced=True, syntaxes=_NATIVE))
def test_enhanced_objects_with_wrong_groups_are_refused(data: st.DataObject, made: Made,
                                                        tmp_path_factory: pytest.TempPathFactory) -> None:
    item = made.items[0]
    groups = item.PerFrameFunctionalGroupsSequence
    frame = groups[data.draw(st.integers(1, len(groups) - 2))]
    kind = data.draw(st.sampled_from(("dropped", "none", "added", "no place", "moved", "no spacing", "slope",
                                      "frames")))
    code = {"dropped": "GEOM_FRAME_COUNT", "none": "GEOM_FRAME_COUNT", "added": "GEOM_FRAME_COUNT",
            "no place": "GEOM_NO_POSITION", "moved": "GEOM_DUPLICATE_POSITION", "no spacing": "GEOM_NO_SPACING",
            "slope": "PIX_BAD_RESCALE", "frames": "GEOM_FRAME_COUNT"}[kind]
    if kind == "dropped":
        item.PerFrameFunctionalGroupsSequence = groups[1:]
    elif kind == "none":
        del item.PerFrameFunctionalGroupsSequence
    elif kind == "added":
        item.PerFrameFunctionalGroupsSequence = [*groups, deepcopy(groups[0])]
    elif kind == "no place":
        del frame.PlanePositionSequence
    elif kind == "moved":
        frame.PlanePositionSequence = deepcopy(groups[0].PlanePositionSequence)
    elif kind == "no spacing":
        del item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    elif kind == "slope":
        item.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleSlope = 0
    else:
        item.NumberOfFrames = len(groups) - 1
    assert judged(written(made, tmp_path_factory.mktemp("groups") / "s"), [made.truth], Wrong(kind, frozenset({code})))


@settings(STEADY, max_examples=40)
@given(made=dicom_series(slices=4, enhanced=False, syntaxes=_NATIVE), other=dicom_series(slices=5, enhanced=False))
def test_two_series_are_kept_apart(made: Made, other: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    for number, item in enumerate(other.items):
        item.SeriesInstanceUID, item.SOPInstanceUID = f"{ROOT}.77", f"{ROOT}.78.{number + 1}"
    files = [encoded(item, each.syntax) for each in (made, other) for item in each.items]
    wrong = Wrong("two series", notes=frozenset({"SERIES_SPLIT"}))
    folder = written(replace(made, files=files), tmp_path_factory.mktemp("two") / "s")
    assert judged(folder, [made.truth, other.truth], wrong) == ""


@settings(STEADY, max_examples=60)
@given(data=st.data(), made=dicom_series(slices=4))
def test_any_cut_of_a_single_file_is_refused(data: st.DataObject, made: Made,
                                             tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = encoded(made.items[0], made.syntax)
    path = tmp_path_factory.mktemp("cut") / "a.dcm"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    codes = {"FILE_TRUNCATED", "PIX_TRUNCATED", "PIX_MISSING", "FILE_NOT_DICOM", "FILE_EMPTY", "LIMIT_OR_TRUNCATED",
             "FILE_CORRUPT", "NO_IMAGES"}
    assert judged(path, [], Wrong("cut", frozenset(codes)))


@settings(STEADY, max_examples=60)
@given(data=st.data(), made=dicom_series(slices=4))
def test_flipped_bytes_never_crash(data: st.DataObject, made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = [bytearray(encoded(item, made.syntax)) for item in made.items]
    for _ in range(data.draw(st.integers(1, 4))):
        file = data.draw(st.sampled_from(files))
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    sane(written(replace(made, files=[bytes(file) for file in files]), tmp_path_factory.mktemp("flip") / "s"))


@settings(STEADY, max_examples=60)
@given(data=st.data(), made=dicom_series(slices=4, enhanced=False, syntaxes=(uid.ExplicitVRLittleEndian,)))
def test_another_type_of_an_element_is_refused_or_read_right(data: st.DataObject, made: Made,
                                                             tmp_path_factory: pytest.TempPathFactory) -> None:
    files = [encoded(item, made.syntax) for item in made.items]
    tag, kind = data.draw(st.sampled_from(((0x0010, b"US"), (0x0011, b"US"), (0x0100, b"US"), (0x0101, b"US"),
                                           (0x0103, b"US"), (0x0030, b"DS"), (0x1053, b"DS"), (0x1052, b"DS"))))
    other = data.draw(st.sampled_from((b"SS", b"LO", b"CS", b"IS", b"AT", b"FL", b"FD", b"PN", b"UI", b"XX", b"SH")))
    old = struct.pack("<HH", 0x0028, tag) + kind
    changed = [file.replace(old, old[:4] + other, 1) for file in files]
    wrong = Wrong(f"{tag:04x} as {other!r}", frozenset(CODES), unsaid=True)
    judged(written(replace(made, files=changed), tmp_path_factory.mktemp("type") / "s"), [made.truth], wrong)
