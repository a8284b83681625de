"""Hypothesis strategies: right DICOM series of many kinds, and what the reader may say where one thing is wrong.

A wrong says which codes are a right refusal, and which notes make a right volume all the same. `judged` holds what the
reader says against that: another refusal, a volume that is not the known one, and a silent one are failures.
"""

from __future__ import annotations

import io
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_makers import group, make_slice
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydicom import uid

from medgan.errors import CODES, Refused
from medgan.imaging.files import read_all
from medgan.imaging.nifti_header import rigid
from medgan.imaging.volume import Volume

#: The same examples in every run, however slow the machine.
STEADY = settings(derandomize=True, deadline=None, database=None, print_blob=True,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                         HealthCheck.function_scoped_fixture])

ROOT = "1.2.826.0.1.3680043.10.54321.8"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong.

    Args:
        name: What it is.
        codes: Refusals that are right.
        notes: Notes of which one must be there where the known volume is read all the same; none: it must be refused.
        unsaid: The known volume may also be read without a word, because nothing it says is wrong.
    """

    name: str
    codes: frozenset[str] = frozenset()
    notes: frozenset[str] = frozenset()
    unsaid: bool = False

    def __post_init__(self) -> None:
        assert (self.codes | self.notes) <= set(CODES)

    def __repr__(self) -> str:
        return self.name


#: Nothing is wrong.
NOTHING = Wrong("nothing", unsaid=True)


@dataclass(frozen=True)
class Truth:
    """What a right reader gives: (X, Y[, Z]) values and their affine."""

    array: Any
    affine: Any

    def equals(self, volume: Volume) -> bool:
        """Whether a volume holds these values at these places."""
        if volume.array.shape != (1, *self.array.shape):
            return False
        same = np.allclose(volume.array[0].astype(np.float64), self.array, rtol=1e-6, atol=1e-6)
        # The third column of a single slice is its normal, whose length means nothing.
        columns = [0, 1, 3] if self.array.ndim == 2 else [0, 1, 2, 3]
        return same and np.allclose(volume.affine[:, columns], self.affine[:, columns], atol=1e-3)


def judged(path: Path, truths: list[Truth], wrong: Wrong) -> str:
    """Reads a path and fails unless the answer is a right one; returns the code of a refusal, or an empty string."""
    try:
        volumes = read_all(path)
    except Refused as refused:
        assert refused.code in wrong.codes, f"{wrong}: refused with {refused}"
        str(refused).encode()
        return refused.code
    said = {note.code for volume in volumes for note in volume.notes}
    assert wrong.unsaid or said & wrong.notes, f"{wrong}: read with the notes {sorted(said)}"
    assert len(volumes) == len(truths), f"{wrong}: {len(volumes)} volumes instead of {len(truths)}"
    left = list(volumes)
    for truth in truths:
        match = next((volume for volume in left if truth.equals(volume)), None)
        assert match is not None, f"{wrong}: another volume than the known one was read"
        left.remove(match)
    return ""


def sane(path: Path) -> None:
    """Reads damaged input, of which nobody knows what it should give; fails unless that is a refusal or an image."""
    try:
        volumes = read_all(path)
    except Refused as refused:
        str(refused).encode()
        return
    assert volumes
    for volume in volumes:
        assert volume.array.size and np.isfinite(volume.array).all() and rigid(volume.affine)
        assert min(volume.spacing_mm) > 0 and np.isfinite(volume.affine).all()


# --- DICOM ----------------------------------------------------------------------------------------------------------

@dataclass
class Made:
    """A DICOM series before it is written.

    Args:
        items: A data set a slice, or one for all in an enhanced object.
        truth: What they hold.
        syntax: The transfer syntax they get.
        step: The slice spacing in mm.
        normal: (3,) slice normal, LPS.
        files: Their bytes, once they are written.
    """

    items: list[Any]
    truth: Truth
    syntax: Any
    step: float
    normal: Any
    files: list[bytes] = field(default_factory=list)


_SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
             uid.DeflatedExplicitVRLittleEndian, uid.RLELossless)
#: Bits allocated, stored, and signed.
_BITS = ((16, 16, 1), (16, 12, 0), (8, 8, 0), (16, 16, 0), (16, 12, 1))


@st.composite
def rotations(draw: st.DrawFn) -> Any:
    """(3, 3) right-handed rotations: along the axes in any order, or oblique."""
    quaternion = np.array([draw(st.integers(-4, 4)) for _ in range(4)], dtype=np.float64)
    if not quaternion.any():
        quaternion[0] = 1
    a, b, c, d = quaternion / np.linalg.norm(quaternion)
    return np.array([[a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                     [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                     [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c]])


_lengths = st.sampled_from((0.4, 0.75, 1.0, 1.5, 2.5, 5.0, 7.3))


@st.composite
def dicom_series(draw: st.DrawFn, slices: int | None = None, enhanced: bool | None = None,
                 syntaxes: tuple[Any, ...] = _SYNTAXES) -> Made:
    """A right CT or MR series; four slices at least, so that a hole can be told from uneven steps."""
    count = slices or draw(st.integers(4, 7))
    rows, columns = draw(st.integers(3, 9)), draw(st.integers(3, 9))
    turn, spacing = draw(rotations()), (draw(_lengths), draw(_lengths))
    step = draw(_lengths)
    origin = np.array([draw(st.integers(-200, 200)) for _ in range(3)], dtype=np.float64)
    allocated, stored, signed = draw(st.sampled_from(_BITS))
    many = draw(st.booleans()) if enhanced is None else enhanced
    syntax = draw(st.sampled_from(syntaxes))
    slope, intercept = draw(st.sampled_from((1.0, 2.0, 0.5))), draw(st.sampled_from((0.0, -1024.0, 10.5)))
    modality = draw(st.sampled_from(("CT", "MR")))
    low, high = (-(1 << stored - 1), 1 << stored - 1) if signed else (0, 1 << stored)
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    planes = random.integers(low, high, (count, rows, columns)).astype(f"<{'i' if signed else 'u'}{allocated // 8}")
    planes[0, 0, :2] = low, high - 1  # never constant

    places = np.round([origin + step * z * turn[:, 2] for z in range(count)], 6)
    cosines = [round(float(x), 8) for x in (*turn[:, 0], *turn[:, 1])]
    items = []
    for z in range(1 if many else count):
        item = make_slice(z, planes if many else planes[z], places[z], cosines)
        for name, value in (("PixelSpacing", list(spacing)), ("SliceThickness", step), ("Modality", modality),
                            ("BitsAllocated", allocated), ("BitsStored", stored), ("HighBit", stored - 1),
                            ("PixelRepresentation", signed), ("RescaleSlope", slope), ("RescaleIntercept", intercept),
                            ("Rows", rows), ("Columns", columns), ("SOPInstanceUID", f"{ROOT}.1.{z + 1}"),
                            ("SOPClassUID", "1.2.840.10008.5.1.4.1.1." + {"CT": "2", "MR": "4"}[modality])):
            setattr(item, name, value)
        item.add_new("PixelData", "OB" if allocated == 8 else "OW", _even((planes if many else planes[z]).tobytes()))
        items.append(item)
    if many:
        _enhance(items[0], places, count)
    truth = _truth(planes.astype(np.float64) * slope + intercept, turn, spacing, step, places[0])
    return Made(items, truth, syntax, step, turn[:, 2])


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) & 1)


def _truth(planes: Any, turn: Any, spacing: tuple[float, float], step: float, origin: Any) -> Truth:
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ turn * [spacing[1], spacing[0], step]
    affine[:3, 3] = _LPS_TO_RAS @ origin
    return Truth(planes.transpose(2, 1, 0), affine)


def _enhance(item: Any, places: Any, count: int) -> None:
    moved = {name: getattr(item, name) for name in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                                                    "RescaleSlope", "RescaleIntercept")}
    for name in (*moved, "ImagePositionPatient"):
        delattr(item, name)
    item.SOPClassUID = item.SOPClassUID + ".1"
    item.NumberOfFrames = count
    item.SharedFunctionalGroupsSequence = [group(
        PlaneOrientationSequence={"ImageOrientationPatient": moved["ImageOrientationPatient"]},
        PixelMeasuresSequence={"PixelSpacing": moved["PixelSpacing"], "SliceThickness": moved["SliceThickness"]},
        PixelValueTransformationSequence={"RescaleSlope": moved["RescaleSlope"], "RescaleType": "US",
                                          "RescaleIntercept": moved["RescaleIntercept"]})]
    item.PerFrameFunctionalGroupsSequence = [group(
        PlanePositionSequence={"ImagePositionPatient": [float(x) for x in place]},
        FrameContentSequence={"StackID": "1", "InStackPositionNumber": z + 1}) for z, place in enumerate(places)]


def encoded(item: Any, syntax: Any) -> bytes:
    """The data set as the bytes of a file."""
    item = deepcopy(item)
    item.file_meta.MediaStorageSOPClassUID = item.get("SOPClassUID", "1.2.3")
    item.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    buffer = io.BytesIO()
    with pydicom.config.disable_value_validation():
        if syntax.is_compressed and syntax.is_encapsulated and "PixelData" in item:
            item.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            item.compress(syntax, generate_instance_uid=False)
        item.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian and item.get("BitsAllocated") == 16 and "PixelData" in item:
            item.add_new("PixelData", "OW", np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes())
        item.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def written(made: Made, folder: Path) -> Path:
    """The files of a series in a folder, in no order of names."""
    folder.mkdir(parents=True)
    files = made.files or [encoded(item, made.syntax) for item in made.items]
    for number, data in enumerate(files):
        (folder / f"{(number * 5) % 97:02d}.dcm").write_bytes(data)
    return folder
