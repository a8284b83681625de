"""What a DICOM header says: the description of one image file, and of every frame in it.

Nothing is read or decoded here. No value that may identify a patient leaves these descriptions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import PersonName

from medgan.errors import Note, Refused

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)

#: Types of elements that hold numbers as text, as they should or by mistake, and those that hold binary ones.
_TEXT_VRS = frozenset(("DS", "IS", "LO", "SH", "ST", "LT", "UT", "UC", "CS"))
_BINARY_VRS = frozenset(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "US or SS"))


@dataclass(frozen=True, eq=False)
class Instance:
    """A checked DICOM image file whose pixels have not been read.

    Args:
        path: The file.
        header: Its data set up to the pixels, with `file_meta`.
        syntax: Transfer syntax UID.
        offset: Where the pixel data value begins in `open_data_set`.
        length: Its length in bytes.
        pixel_vr: `OB` or `OW`, or None if the file does not say.
        little_endian: The byte order.
        rows: Matrix height.
        columns: Matrix width.
        frames: The number of frames.
        bits_allocated: 8, 16 or 32.
        bits_stored: Bits that carry the value.
        high_bit: Position of the highest of them.
        signed: Whether they are two's complement.
        notes: What is odd about this file.
    """

    path: Path
    header: Any
    syntax: str
    offset: int
    length: int
    pixel_vr: str | None
    little_endian: bool
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    notes: tuple[Note, ...] = ()

    @property
    def stored_range(self) -> tuple[int, int]:
        """Lowest and highest value that the stored bits can hold."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame as stored."""
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def modality(self) -> str:
        """The DICOM modality, such as `CT`."""
        return text(self.header, "Modality").upper()

    @property
    def is_colour(self) -> bool:
        """Whether the pixels are something other than one grey value each."""
        photometric = text(self.header, "PhotometricInterpretation").upper()
        return integer(self.header, "SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2")

    @property
    def is_localizer(self) -> bool:
        """Whether the file says that it is a scout."""
        return bool({"LOCALIZER", "SCOUT"} & {value.upper() for value in texts(self.header, "ImageType")})


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of an instance, with what the header says about it; lengths are in mm, directions in LPS.

    Args:
        instance: The file it is in.
        index: Its number in the file, from 0.
        position: (3,) centre of the first pixel, or None.
        orientation: (6,) row and column cosines, or None.
        spacing: (2,) distance between rows and between columns, or None.
        slope: Rescale slope, or None.
        intercept: Rescale intercept, or None.
        keys: What tells frames at the same position apart.
        has_lut: Whether a Modality LUT Sequence stands in the place of slope and intercept.
        thickness: Slice thickness, or None where none is recorded or it is no positive number.
    """

    instance: Instance
    index: int
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing: NDArray[np.float64] | None
    slope: float | None
    intercept: float | None
    keys: dict[str, str] = field(default_factory=dict)
    has_lut: bool = False
    thickness: float | None = None


def _value(data_set: Any, keyword: str) -> Any:
    """The value of an element or None; pydicom's warnings quote values, which may be a patient's, and are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data_set.get(keyword)


def texts(data_set: Any, keyword: str) -> list[str]:
    """The values of an element as stripped strings; empty where it is absent or unreadable."""
    try:
        value = _value(data_set, keyword)
        if value is None:
            return []
        # A name has several ways of writing, and is one value all the same.
        is_one = isinstance(value, str | int | float | PersonName) or not hasattr(value, "__iter__")
        values = [value] if is_one else list(value)
        return [str(item).strip(" \0") for item in values]
    except Exception:  # pydicom raises nearly every built-in exception on values that are none
        return []


def text(data_set: Any, keyword: str) -> str:
    """The first value of an element as a stripped string, or an empty one."""
    return next(iter(texts(data_set, keyword)), "")


def numbers(data_set: Any, keyword: str, count: int) -> NDArray[np.float64] | None:
    """The numbers of an element, (count,); None where it is absent or empty, NaN where it holds something else."""
    try:
        if keyword not in data_set:
            return None
        value = _value(data_set, keyword)
        # A decimal string read as binary numbers, or the other way round, gives numbers that nobody wrote.
        if _is_text(data_set[keyword].VR) != _is_text(dictionary_VR(keyword)):
            return np.full(count, np.nan)
        if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
            return None
        result = np.array(value, dtype=np.float64).reshape(-1)
    except Exception:  # pydicom raises nearly every built-in exception on values that are none
        return np.full(count, np.nan)
    return result if len(result) == count else np.full(count, np.nan)


def _is_text(vr: str) -> bool:
    """Whether a type holds numbers as text or as binary values.

    Raises:
        ValueError: It holds none.
    """
    if vr not in _TEXT_VRS | _BINARY_VRS:
        raise ValueError(vr)
    return vr in _TEXT_VRS


def integer(data_set: Any, keyword: str, default: int) -> int:
    """The whole number of an element; `default` where it is absent, -1 where it holds something else."""
    value = numbers(data_set, keyword, 1)
    if value is None:
        return default
    return int(value[0]) if np.isfinite(value[0]) and value[0] == int(value[0]) else -1


def frames_of(instance: Instance) -> list[Frame]:
    """Describes every frame of an instance from its header or its functional groups.

    Raises:
        Refused: `GEOM_FRAME_COUNT`, `FILE_TOO_DEEP`, or `FILE_CORRUPT` for sequences that cannot be read.
    """
    try:
        return _frames_of(instance)
    except Refused:
        raise
    except RecursionError:
        raise Refused("FILE_TOO_DEEP", instance.path, "sequences are nested deeper than any real file nests them",
                      "Export the image again from its source") from None
    except Exception as error:  # sequences are parsed when they are asked for, and pydicom raises nearly everything
        raise Refused("FILE_CORRUPT", instance.path, f"its sequences cannot be parsed ({type(error).__name__})",
                      "Copy the file again from its source") from None


def _frames_of(instance: Instance) -> list[Frame]:
    header = instance.header
    groups = _items(header, "PerFrameFunctionalGroupsSequence")
    if instance.frames == 1 and not groups:
        return [_frame(instance, 0, lambda _: header, header)]
    if len(groups) != instance.frames:
        raise Refused("GEOM_FRAME_COUNT", instance.path,
                      f"{len(groups)} frame descriptions for {instance.frames} frames",
                      "Give one file a slice, or an enhanced multi-frame object that describes each frame")
    shared = (_items(header, "SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]

    def describe(index: int, own: Any) -> Frame:
        def group(keyword: str) -> Any:
            return (_items(own, keyword) or _items(shared, keyword) or [pydicom.Dataset()])[0]

        return _frame(instance, index, group, header)

    return [describe(index, own) for index, own in enumerate(groups)]


def _items(data_set: Any, keyword: str) -> list[Any]:
    value = _value(data_set, keyword)
    return list(value) if value else []


def _frame(instance: Instance, index: int, group: Any, header: Any) -> Frame:
    content, timing = group("FrameContentSequence"), group("CardiacSynchronizationSequence")
    values = group("PixelValueTransformationSequence")
    diffusion = group("MRDiffusionSequence")
    gradient = (_items(diffusion, "DiffusionGradientDirectionSequence") or [diffusion])[0]
    slope, intercept = numbers(values, "RescaleSlope", 1), numbers(values, "RescaleIntercept", 1)
    echo = group("MREchoSequence")
    measures = group("PixelMeasuresSequence")
    thickness = numbers(measures, "SliceThickness", 1)
    keys = {
        "stack": text(content, "StackID"),
        "echo": f"{text(echo, 'EffectiveEchoTime') or text(header, 'EchoTime')} {text(header, 'EchoNumbers')}",
        "time": text(content, "TemporalPositionIndex") or text(header, "TemporalPositionIdentifier"),
        "kind": "\\".join(texts(group("MRImageFrameTypeSequence"), "FrameType")
                          or texts(group("CTImageFrameTypeSequence"), "FrameType") or texts(header, "ImageType")),
        "diffusion": f"{texts(diffusion, 'DiffusionBValue')} {texts(gradient, 'DiffusionGradientOrientation')}",
        "trigger": text(timing, "NominalCardiacTriggerDelayTime") or text(header, "TriggerTime"),
        "acquisition": text(content, "FrameAcquisitionNumber") or text(header, "AcquisitionNumber"),
    }
    return Frame(
        instance, index,
        position=numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation=numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        spacing=numbers(measures, "PixelSpacing", 2),
        slope=None if slope is None else float(slope[0]),
        intercept=None if intercept is None else float(intercept[0]),
        keys=keys,
        has_lut=bool(_items(header, "ModalityLUTSequence")),
        thickness=float(thickness[0]) if thickness is not None and 0 < thickness[0] < np.inf else None,
    )
