"""Odd DICOM of the policy's kinds with other numbers, modalities and places than the collection's, made in code.

Each maker writes into an empty folder and returns what is to be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dicom_makers import COLUMNS, ROOT, ROWS, change, enhanced, make_series, make_slice, radiograph, save
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, RLELossless

Maker = Callable[[Path], Path]

# --- tools -----------------------------------------------------------------------------------------------------------


def grid(positions: Any, rows: int = 24, columns: int = 20, orientation: Any = (1, 0, 0, 0, 1, 0), **changes: Any
         ) -> list[Any]:
    """A series with a slice at each of the positions (x, y, z), and elements changed in all of them; None deletes."""
    pixels = np.random.default_rng(3).integers(0, 900, (len(positions), rows, columns)).astype(np.int16)
    items = [make_slice(number, pixels[number], position, orientation) for number, position in enumerate(positions)]
    step = float(np.linalg.norm(np.subtract(positions[1], positions[0]))) if len(positions) > 1 else 2.5
    for item in items:
        change(item, **{"SliceThickness": round(step, 6), **changes})
    return items


def stack(zs: Any, **more: Any) -> list[Any]:
    """Axial slices at some heights."""
    return grid([(3.5, -7.25, float(z)) for z in zs], **more)


MR = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}


def tilted(degrees: float, plane: str = "axial", count: int = 6, step: float = 3.0) -> list[Any]:
    """A series whose slices are shifted along a column by the tangent of an angle."""
    row, column, normal = {"axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)), "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
                           "sagittal": ((0, 1, 0), (0, 0, -1), (-1, 0, 0))}[plane]
    shift = np.tan(np.radians(degrees))
    positions = [np.round(np.array(normal) * step * z + np.array(column) * step * z * shift, 6) for z in range(count)]
    return grid(positions, orientation=(*row, *column))


def multiframe(edit: Callable[[list[Any]], Any], order: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Maker:
    """An enhanced CT whose per-frame groups are edited."""
    def make(folder: Path) -> Path:
        item = enhanced(list(order))
        edit(item.PerFrameFunctionalGroupsSequence)
        return save([item], folder)
    return make


def at(group: Any, x: float, y: float, z: float) -> None:
    """Moves a frame."""
    group.PlanePositionSequence[0].ImagePositionPatient = [x, y, z]


def series(items: Callable[[], list[Any]]) -> Maker:
    """Writes data sets that are made when they are asked for."""
    return lambda folder: save(items(), folder)


def last(**changes: Any) -> Maker:
    """A good series whose last slice differs."""
    def make(folder: Path) -> Path:
        items = make_series()
        change(items[-1], **changes)
        return save(items, folder)
    return make


def every(**changes: Any) -> Maker:
    """A good series with elements changed in all slices."""
    return lambda folder: save([change(item, **changes) for item in make_series()], folder)


def damaged(edit: Callable[[bytes], bytes], number: int = 3) -> Maker:
    """A good series with the bytes of one file changed."""
    def make(folder: Path) -> Path:
        save(make_series(), folder)
        path = folder / f"{number:03d}.dcm"
        path.write_bytes(edit(path.read_bytes()))
        return folder
    return make


def alone(sop_class: str, modality: str, **changes: Any) -> Maker:
    """A DICOM object without pixels."""
    def make(folder: Path) -> Path:
        item = change(make_slice(0, np.zeros((2, 2), np.int16), (0, 0, 0)), SOPClassUID=sop_class, Modality=modality,
                      PixelData=None, Rows=None, Columns=None, **changes)
        return save([item], folder)
    return make


def float_map(value: float) -> Maker:
    """A parametric map with float pixels, one voxel of which is given."""
    def make(folder: Path) -> Path:
        item = enhanced([0, 1, 2])
        pixels = np.linspace(0, 1, 3 * ROWS * COLUMNS, dtype=np.float32)
        pixels[777] = value
        change(item, SOPClassUID="1.2.840.10008.5.1.4.1.1.30", Modality="MR", PixelData=None, BitsAllocated=32,
               BitsStored=None, HighBit=None, PixelRepresentation=None)
        item.add_new("FloatPixelData", "OF", pixels.tobytes())
        return save([item], folder)
    return make


def encapsulated(syntax: str, edit: Callable[[bytes], bytes]) -> Maker:
    """A compressed series, one codestream of which is edited."""
    def make(folder: Path) -> Path:
        from pydicom.encaps import encapsulate, generate_frames

        items = make_series()
        for item in items:
            item.compress(syntax, generate_instance_uid=False)
        frame = next(generate_frames(items[2].PixelData, number_of_frames=1))
        items[2].PixelData = encapsulate([edit(frame)])
        return save(items, folder)
    return make


#: What must be refused -> the codes that may say so, and how it is made.
DICOM_REFUSED: dict[str, tuple[set[str], Maker]] = {
    # holes
    "a hole of two slices": ({"GEOM_MISSING_SLICE"}, series(lambda: stack([0, 2, 4, 6, 8, 14, 16, 18]))),
    "two holes": ({"GEOM_MISSING_SLICE"}, series(lambda: stack([-9, -6, 0, 3, 6, 9, 15, 18, 21, 24]))),
    "a hole of an MR": ({"GEOM_MISSING_SLICE"}, series(lambda: stack([0, .7, 1.4, 2.8, 3.5, 4.2], **MR))),
    "a hole after the first slice": ({"GEOM_MISSING_SLICE", "GEOM_VARIABLE_SPACING"},
                                     series(lambda: stack([0, 10, 15, 20, 25, 30]))),
    "a hole before the last slice": ({"GEOM_MISSING_SLICE", "GEOM_VARIABLE_SPACING"},
                                     series(lambda: stack([0, 5, 10, 15, 20, 30]))),
    "a hole of three slices": ({"GEOM_MISSING_SLICE", "GEOM_VARIABLE_SPACING"}, series(lambda: stack([0, 5, 15]))),
    "a hole between frames": ({"GEOM_MISSING_SLICE"}, multiframe(lambda groups: at(groups[-1], -10, -20, -17.5))),
    # duplicates
    "a frame at another's place": ({"GEOM_DUPLICATE_POSITION"}, multiframe(lambda g: at(g[3], -10, -20, -25))),
    "a slice 20 um beside another": ({"GEOM_DUPLICATE_POSITION", "GEOM_VARIABLE_SPACING"},
                                     series(lambda: stack([0, 2, 4, 4.02, 6, 8]))),
    "a slice 0.5 um beside another": ({"GEOM_DUPLICATE_POSITION"}, series(lambda: stack([0, 2, 4, 4.0000005, 6, 8]))),
    "all slices at one place": ({"GEOM_DUPLICATE_POSITION"}, series(lambda: stack([1, 1, 1]))),
    # tilt and steps
    **{f"{degrees} degrees of tilt, {plane}": ({"GEOM_GANTRY_TILT"}, series(
        lambda degrees=degrees, plane=plane: tilted(degrees, plane)))
       for degrees, plane in ((1, "coronal"), (5, "axial"), (-12.5, "sagittal"), (30, "axial"))},
    "tilted frames": ({"GEOM_GANTRY_TILT"}, multiframe(
        lambda groups: [at(g, -10, -20 + 0.2 * n, -30 + 2.5 * n) for n, g in enumerate(groups)])),
    "steps that grow by a fifth": ({"GEOM_VARIABLE_SPACING"}, series(lambda: stack([0, 1, 2, 3, 4.2, 5.4, 6.6]))),
    "steps that alternate": ({"GEOM_VARIABLE_SPACING"}, series(lambda: stack([0, 2, 5, 7, 10, 12]))),
    "steps from 5 to 1": ({"GEOM_VARIABLE_SPACING", "GEOM_MISSING_SLICE"},
                          series(lambda: stack([0, 5, 10, 15, 16, 17, 18, 19]))),
    "frames at uneven steps": ({"GEOM_VARIABLE_SPACING"}, multiframe(
        lambda g: [at(g[3], -10, -20, -21.5), at(g[4], -10, -20, -17)])),
    # mixed
    "another spacing in the last slice": ({"GEOM_MIXED_SPACING"}, last(PixelSpacing=[1.5, 0.76])),
    "another orientation in the last slice": ({"GEOM_MIXED_ORIENTATION"},
                                              last(ImageOrientationPatient=[1, 0, 0, 0, 0.995004, 0.099833])),
    "a mirrored last slice": ({"GEOM_MIXED_ORIENTATION"}, last(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])),
    "one row less in the last slice": ({"GEOM_MIXED_MATRIX"}, last(
        Rows=ROWS - 1, PixelData=b"\1\0" * ((ROWS - 1) * COLUMNS))),
    "another frame of reference in the last": ({"GEOM_MIXED_FRAME_OF_REFERENCE"}, last(FrameOfReferenceUID="1.2.9")),
    "frames of two orientations": ({"GEOM_MIXED_ORIENTATION", "GEOM_NO_ORIENTATION"}, multiframe(
        lambda groups: setattr(groups[2], "PlaneOrientationSequence", Sequence([change(
            type(groups[2])(), ImageOrientationPatient=[0, 1, 0, -1, 0, 0])])))),
    "a frame without position": ({"GEOM_NO_POSITION"}, multiframe(lambda g: delattr(g[1], "PlanePositionSequence"))),
    "one description too many": ({"GEOM_FRAME_COUNT"}, multiframe(lambda groups: groups.append(groups[0]))),
    # values of geometry
    "a negative pixel spacing": ({"GEOM_BAD_SPACING"}, every(PixelSpacing=[-1.5, 0.75])),
    "an infinite pixel spacing": ({"GEOM_BAD_SPACING"}, every(PixelSpacing=["inf", "1"])),
    "one pixel spacing": ({"GEOM_BAD_SPACING", "GEOM_NO_SPACING"}, every(PixelSpacing=["1.5"])),
    "three pixel spacings": ({"GEOM_BAD_SPACING", "GEOM_NO_SPACING"}, every(PixelSpacing=[1, 1, 1])),
    "an empty pixel spacing": ({"GEOM_NO_SPACING"}, every(PixelSpacing="")),
    "five cosines": ({"GEOM_BAD_ORIENTATION", "GEOM_NO_ORIENTATION"}, every(ImageOrientationPatient=[1, 0, 0, 0, 1])),
    "a cosine that is no number": ({"GEOM_BAD_ORIENTATION"},
                                   every(ImageOrientationPatient=["nan", "0", "0", "0", "1", "0"])),
    "cosines of length two": ({"GEOM_BAD_ORIENTATION"}, every(ImageOrientationPatient=[2, 0, 0, 0, 2, 0])),
    "parallel cosines": ({"GEOM_BAD_ORIENTATION"}, every(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
    "two coordinates": ({"GEOM_NO_POSITION", "GEOM_BAD_AFFINE"}, last(ImagePositionPatient=[1, 2])),
    "an infinite position": ({"GEOM_NO_POSITION", "GEOM_BAD_AFFINE"}, last(ImagePositionPatient=["inf", "0", "0"])),
    "an empty position": ({"GEOM_NO_POSITION"}, last(ImagePositionPatient="")),
    "an MR without orientation": ({"GEOM_NO_ORIENTATION"}, every(**MR, ImageOrientationPatient=None)),
    # pixels
    "a slope of NaN": ({"PIX_BAD_RESCALE"}, last(RescaleSlope="nan")),
    "an intercept that is infinite": ({"PIX_BAD_RESCALE"}, last(RescaleIntercept="-inf")),
    "a slope that is a letter": ({"PIX_BAD_RESCALE"}, damaged(
        lambda content: content.replace(b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10DS\x04\x00x   "))),
    "palette colour": ({"PIX_COLOUR"}, every(PhotometricInterpretation="PALETTE COLOR")),
    "YBR": ({"PIX_COLOUR"}, every(PhotometricInterpretation="YBR_FULL", SamplesPerPixel=3, BitsAllocated=8,
                                  BitsStored=8, HighBit=7, PixelData=b"\0" * (ROWS * COLUMNS * 3))),
    "two samples a pixel": ({"PIX_COLOUR"}, every(SamplesPerPixel=2)),
    "no columns": ({"PIX_BAD_MATRIX"}, last(Columns=0)),
    "24 bits allocated": ({"PIX_BAD_BITS"}, every(BitsAllocated=24)),
    "17 of 16 bits": ({"PIX_BAD_BITS"}, every(BitsStored=17, HighBit=16)),
    "no bits": ({"PIX_BAD_BITS"}, every(BitsAllocated=0)),
    "pixels of no length": ({"PIX_TRUNCATED", "PIX_MISSING", "LIMIT_OR_TRUNCATED"}, last(PixelData=b"")),
    "a byte less": ({"PIX_TRUNCATED"}, last(PixelData=b"\0" * (ROWS * COLUMNS * 2 - 2))),
    "NaN in a parametric map": ({"PIX_NONFINITE", "NO_IMAGES"}, float_map(np.nan)),
    "infinity in a parametric map": ({"PIX_NONFINITE", "NO_IMAGES"}, float_map(np.inf)),
    # files
    "a last slice of its preamble alone": ({"FILE_TRUNCATED"}, damaged(lambda content: content[:132], 1)),
    "a slice of zeros in the middle": ({"GEOM_MISSING_SLICE"}, damaged(lambda content: bytes(len(content)), 3)),
    "a file cut in its meta": ({"FILE_TRUNCATED"}, damaged(lambda content: content[:200])),
    "a file cut in its header": ({"FILE_TRUNCATED"}, damaged(lambda content: content[:700], 1)),
    "a file cut before its last byte": ({"PIX_TRUNCATED", "FILE_TRUNCATED"}, damaged(lambda content: content[:-1], 5)),
    "DICM, then noise": ({"FILE_NOT_DICOM", "FILE_TRUNCATED"}, damaged(
        lambda content: content[:132] + np.random.default_rng(1).bytes(4000))),
    "an RLE frame cut short": ({"PIX_DECODE_FAILED", "PIX_TRUNCATED"}, encapsulated(
        RLELossless, lambda frame: frame[:200])),
    "an RLE frame of zeros": ({"PIX_DECODE_FAILED", "PIX_TRUNCATED"}, encapsulated(
        RLELossless, lambda frame: b"\0" * len(frame))),
    "a JPEG 2000 frame cut short": ({"PIX_DECODE_FAILED", "PIX_TRUNCATED"}, encapsulated(
        JPEG2000Lossless, lambda frame: frame[:len(frame) // 3])),
    "a JPEG 2000 frame of noise": ({"PIX_DECODE_FAILED"}, encapsulated(
        JPEG2000Lossless, lambda frame: frame[:90] + np.random.default_rng(2).bytes(len(frame)))),
    "an empty codestream": ({"PIX_DECODE_FAILED", "PIX_TRUNCATED", "PIX_MISSING"}, encapsulated(
        JPEG2000Lossless, lambda frame: b"\0\0")),
    # what is no image
    "a structured report": ({"NO_IMAGES", "PIX_MISSING"}, alone("1.2.840.10008.5.1.4.1.1.88.33", "SR")),
    "a structure set": ({"NO_IMAGES", "PIX_MISSING"}, alone("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")),
    "a presentation state": ({"NO_IMAGES", "PIX_MISSING"}, alone("1.2.840.10008.5.1.4.1.1.11.1", "PR")),
    "a waveform": ({"NO_IMAGES", "PIX_MISSING"}, alone("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG")),
    "a plan": ({"NO_IMAGES", "PIX_MISSING"}, alone("1.2.840.10008.5.1.4.1.1.481.5", "RTPLAN")),
    # names
    "a UID of letters": ({"UID_INVALID"}, last(SOPInstanceUID="one.two")),
    "a UID of 65 characters": ({"UID_INVALID"}, last(SOPInstanceUID="1." + "2" * 63)),
    "a series UID that is a path": ({"UID_INVALID"}, every(SeriesInstanceUID="1.2/../../etc")),
}


def _named(*names: str | bytes) -> Maker:
    """A good series under odd file names."""
    def make(folder: Path) -> Path:
        save(make_series(len(names)), folder)
        for number, name in enumerate(names):
            os.rename(folder / f"{number + 1:03d}.dcm", os.fsencode(folder) + b"/" + os.fsencode(name))
        return folder
    return make


def _charset(name: Any, text: str) -> Maker:
    return every(SpecificCharacterSet=name, PatientName=text)


def _beside(add: Callable[[Path], Any]) -> Maker:
    def make(folder: Path) -> Path:
        save(make_series(), folder)
        add(folder)
        return folder
    return make


def _compressed(syntax: str) -> Maker:
    return encapsulated(syntax, lambda frame: frame)


def _bits(dtype: Any, stored: int, sign: int) -> Maker:
    """A series of another pixel type, with the whole range of its stored bits."""
    def make(folder: Path) -> Path:
        low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if sign else (0, 2**stored)
        pixels = np.linspace(low, high - 1, 3 * ROWS * COLUMNS).astype(dtype).reshape(3, ROWS, COLUMNS)
        items = [make_slice(z, pixels[z], (0, 0, 4.0 * z)) for z in range(3)]
        for item in items:
            change(item, SliceThickness=4, BitsAllocated=pixels.dtype.itemsize * 8, BitsStored=stored,
                   HighBit=stored - 1, PixelRepresentation=sign)
        return save(items, folder)
    return make


#: What must be taken -> what is said of it (nothing for an empty set), the shape, and how it is made.
DICOM_GOOD: dict[str, tuple[set[str], tuple[int, ...], Maker]] = {
    "a coronal series": (set(), (20, 24, 6), series(lambda: tilted(0, "coronal"))),
    "a sagittal series": (set(), (20, 24, 6), series(lambda: tilted(0, "sagittal"))),
    "slices from head to feet": (set(), (20, 24, 5), series(lambda: stack([8, 6, 4, 2, 0]))),
    "two slices": (set(), (20, 24, 2), series(lambda: stack([0, 7.5]))),
    "positions rounded to 0.01": (set(), (20, 24, 7), series(
        lambda: stack([round(z * 0.6667, 2) for z in range(7)], SliceThickness=0.67))),
    "slices of 0.3 mm": (set(), (20, 24, 9), series(lambda: stack(np.arange(9) * 0.3, SliceThickness=0.3))),
    "slices of 12 mm": (set(), (20, 24, 4), series(lambda: stack(np.arange(4) * 12, SliceThickness=12))),
    "a turned and tipped patient": (set(), (20, 24, 4), series(lambda: grid(
        [np.cross([0.96, 0.28, 0], [-0.224, 0.768, 0.6]) * 3 * z for z in range(4)],
        orientation=(0.96, 0.28, 0, -0.224, 0.768, 0.6)))),
    "one row": (set(), (20, 1, 4), series(lambda: grid([(0, 0, 2.5 * z) for z in range(4)], rows=1))),
    "an MR without rescale": (set(), (20, 24, 5), series(lambda: stack(np.arange(5) * 2.5, **MR))),
    "the same instance number everywhere": (set(), (COLUMNS, ROWS, 5), every(InstanceNumber=1)),
    "a slice location that lies": (set(), (COLUMNS, ROWS, 5), every(SliceLocation=7.5)),
    "acquisition numbers that differ": (set(), (20, 24, 4), series(lambda: [
        change(item, AcquisitionNumber=number + 1) for number, item in enumerate(stack([0, 2.5, 5, 7.5]))])),
    "times that differ": (set(), (20, 24, 4), series(lambda: [
        change(item, ContentTime=f"1000{number:02d}") for number, item in enumerate(stack([0, 2.5, 5, 7.5]))])),
    "a rescale of each slice's own": (set(), (20, 24, 4), series(lambda: [
        change(item, RescaleSlope=1 + number, RescaleIntercept=-5 * number) for number, item in enumerate(
            stack([0, 2.5, 5, 7.5]))])),
    "12 unsigned bits": (set(), (COLUMNS, ROWS, 3), _bits(np.uint16, 12, 0)),
    "12 signed bits": (set(), (COLUMNS, ROWS, 3), _bits(np.int16, 12, 1)),
    "16 unsigned bits": (set(), (COLUMNS, ROWS, 3), _bits(np.uint16, 16, 0)),
    "8 bits": (set(), (COLUMNS, ROWS, 3), _bits(np.uint8, 8, 0)),
    "32 signed bits": (set(), (COLUMNS, ROWS, 3), _bits(np.int32, 24, 1)),
    "RLE": (set(), (COLUMNS, ROWS, 5), _compressed(RLELossless)),
    "JPEG 2000": (set(), (COLUMNS, ROWS, 5), _compressed(JPEG2000Lossless)),
    "frames from last to first": (set(), (COLUMNS, ROWS, 5), multiframe(lambda groups: None, (4, 3, 2, 1, 0))),
    "Latin-1 names": (set(), (COLUMNS, ROWS, 5), _charset("ISO_IR 100", "Müller^Jörg")),
    "Chinese names": (set(), (COLUMNS, ROWS, 5), _charset("GB18030", "王^小东")),
    "Japanese names": (set(), (COLUMNS, ROWS, 5), _charset(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")),
    "Korean names": (set(), (COLUMNS, ROWS, 5), _charset(["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞")),
    "Greek names": (set(), (COLUMNS, ROWS, 5), _charset("ISO_IR 126", "Διονυσιος")),
    "no character set": (set(), (COLUMNS, ROWS, 5), every(SpecificCharacterSet=None)),
    "an unknown character set": ({"CHARSET_FALLBACK"}, (COLUMNS, ROWS, 5), every(SpecificCharacterSet="KLINGON")),
    "names in Unicode": (set(), (COLUMNS, ROWS, 3), _named("größe ά.dcm", "画像.dcm", "e\u0301🩻.dcm")),
    "names that are no text": (set(), (COLUMNS, ROWS, 3), _named(b"\xff\xfe.dcm", b"a\xe9b", b"\x80\x81.dcm")),
    "spaces, newlines and no suffix": (set(), (COLUMNS, ROWS, 3), _named("a b .dcm", "line\nline.dcm", "IM 0001")),
    "names like options": (set(), (COLUMNS, ROWS, 3), _named("-rf.dcm", "$HOME.dcm", "*.dcm")),
    "upper-case suffixes": (set(), (COLUMNS, ROWS, 3), _named("A.DCM", "B.IMA", "C.Dicom")),
    "a dangling link": ({"FS_SKIPPED"}, (COLUMNS, ROWS, 5), _beside(
        lambda folder: (folder / "x.dcm").symlink_to("nowhere"))),
    "a link out": ({"FS_SKIPPED"}, (COLUMNS, ROWS, 5), _beside(
        lambda folder: (folder / "x.dcm").symlink_to("/etc/passwd"))),
    "a link to itself": ({"FS_SKIPPED"}, (COLUMNS, ROWS, 5), _beside(
        lambda folder: (folder / "x.dcm").symlink_to(folder / "x.dcm"))),
    "a pipe": ({"FS_SKIPPED"}, (COLUMNS, ROWS, 5), _beside(lambda folder: os.mkfifo(folder / "x.dcm"))),
    "a structure set beside it": ({"NON_IMAGE_SKIPPED"}, (COLUMNS, ROWS, 5), _beside(lambda folder: save([change(
        make_slice(77, np.zeros((2, 2), np.int16), (0, 0, 0)), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
        Modality="RTSTRUCT", SeriesInstanceUID=f"{ROOT}.77", PixelData=None, Rows=None, Columns=None)], folder,
        ["z"]))),
    # What is left of a file that is no DICOM any more is passed over by name: no hole in the series tells of it.
    "a last slice cut in its preamble": ({"NON_DICOM_SKIPPED"}, (COLUMNS, ROWS, 4), damaged(lambda c: c[:131], 1)),
    "an empty last slice": ({"NON_DICOM_SKIPPED"}, (COLUMNS, ROWS, 4), damaged(lambda c: b"", 1)),
    "a radiograph": (set(), (COLUMNS, ROWS), series(lambda: [radiograph()])),
    "a dark radiograph": ({"MONOCHROME1_INVERTED"}, (COLUMNS, ROWS), series(
        lambda: [radiograph(PhotometricInterpretation="MONOCHROME1")])),
}
