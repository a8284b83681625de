"""From stored bits to real values: decoding, unused bits, padding, rescale, MONOCHROME1.

Frames come one at a time straight into the volume, and are worked on a few lines at a time. What is compressed is
decoded by another program (`decoding.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut

from medgan.errors import Note, Refused
from medgan.imaging import decoders, decoding
from medgan.imaging.dicom_file import open_data_set
from medgan.imaging.dicom_header import DEFLATED, NATIVE, Frame, Instance, integer, text
from medgan.imaging.rules import DEFAULT_RULES, Rules

#: Where stored values are physical quantities, MONOCHROME1 says how to show them, not what they mean.
PHYSICAL_MODALITIES = frozenset({"CT", "MR", "PT", "NM"})
#: Integer types a volume may have, smallest first; int16 before uint16 because most tools know it better.
INTEGER_TYPES = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32))
#: How many pixels are worked on at once, in 64 bits.
BLOCK_PIXELS = 2**18
#: Above this, float32 no longer holds every whole number.
FLOAT32_EXACT = 2**24
#: Up to these, whole numbers of 32 bits are rescaled in 64 bits without overflow; beyond them, in floating point.
INTEGRAL_SLOPE, INTEGRAL_INTERCEPT = 2**30, 2**62

_RLE = "1.2.840.10008.1.2.5"

#: Frames by their number, as they are stored.
Stored = Generator[tuple[int, NDArray[Any]], None, None]


@dataclass(frozen=True)
class Rescale:
    """How stored values become real ones: `stored * slope + intercept`, or a look-up table."""

    slope: float
    intercept: float
    has_lut: bool

    @property
    def is_integral(self) -> bool:
        """Whether whole stored values give whole real values."""
        whole = self.slope.is_integer() and self.intercept.is_integer()
        small = abs(self.slope) <= INTEGRAL_SLOPE and abs(self.intercept) <= INTEGRAL_INTERCEPT
        return self.has_lut or (whole and small)

    def bounds(self, instance: Instance) -> tuple[float, float]:
        """Lowest and highest real value that the stored bits can give."""
        if self.has_lut:
            return 0.0, 65535.0
        ends = [self.slope * value + self.intercept for value in instance.stored_range]
        return min(ends), max(ends)


def rescale_of(frame: Frame) -> Rescale:
    """Checks the rescale of a frame; a missing half is taken as identity.

    Raises:
        Refused: `PIX_BAD_RESCALE`.
    """
    slope = 1.0 if frame.slope is None else frame.slope
    intercept = 0.0 if frame.intercept is None else frame.intercept
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise Refused("PIX_BAD_RESCALE", frame.instance.path, "the rescale slope is zero or not a finite number",
                      "Export the image again with its real rescale slope and intercept")
    return Rescale(slope, intercept, frame.has_lut)


def working_type(frames: Sequence[Frame]) -> np.dtype[Any]:
    """The type that surely holds every value the frames can have; int64 or float32 if no small integer does."""
    rescales = [rescale_of(frame) for frame in frames]
    if not all(rescale.is_integral for rescale in rescales):
        return np.dtype(np.float32)
    ends = [rescale.bounds(frame.instance) for rescale, frame in zip(rescales, frames, strict=True)]
    return _smallest(min(low for low, _ in ends), max(high for _, high in ends)) or np.dtype(np.int64)


def _smallest(low: float, high: float) -> np.dtype[Any] | None:
    for dtype in INTEGER_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return None


def memory_kept(frames: Sequence[Frame]) -> int:
    """The most bytes that the values of frames take while they are put together."""
    dtype = working_type(frames)
    voxels = sum(frame.instance.rows * frame.instance.columns for frame in frames)
    padding = 2 if any("PixelPaddingValue" in frame.instance.header for frame in frames) else 0
    narrower = 4 if dtype.kind in "iu" and dtype.itemsize > 2 else 0
    return voxels * (dtype.itemsize + padding + narrower)


def memory_beside(frames: Sequence[Frame]) -> int:
    """The most bytes that reading one of the frames takes beside that, here and in the decoding program."""
    return max(_stored_bytes(instance) + _decoding_bytes(instance) for instance in {f.instance for f in frames})


def _stored_bytes(instance: Instance) -> int:
    """What one frame takes here until its values are in place."""
    whole = instance.offset + instance.length if instance.syntax == DEFLATED else 0
    return 2 * whole + 2 * instance.frame_bytes


def _decoding_bytes(instance: Instance) -> int:
    """What decoding one frame honestly takes in the decoding program."""
    if instance.syntax in NATIVE:
        return 0
    return 2 * instance.length + decoders.FRAME_BYTES_PER_PIXEL * instance.rows * instance.columns


def load_frames(frames: Sequence[Frame], where: Path, rules: Rules = DEFAULT_RULES) -> tuple[NDArray[Any], list[Note]]:
    """Decodes frames of one matrix size, in the given order, to real values.

    Args:
        frames: What to decode.
        where: What notes are about.
        rules: The most memory that may be taken.

    Returns:
        The values, (X, Y, N) with X the column and Y the row index, in the smallest type that holds them exactly
        (float32 where the rescale is not integral), and what was odd about them.

    Raises:
        Refused: `PIX_DECODE_FAILED`, `PIX_TRUNCATED`, `PIX_NONFINITE`, `LIMIT`, `FILE_CORRUPT`.
    """
    needed = memory_kept(frames) + memory_beside(frames)
    if needed > rules.limit:
        raise Refused("LIMIT", where, f"decoding takes up to {needed:,} bytes, above the cap of {rules.limit:,}",
                      "Give fewer or smaller images, or raise data.max_gib")
    first = frames[0].instance
    # Planes lie one after the other in memory, so that each is written in one go; the result is a view on that.
    planes = np.empty((len(frames), first.rows, first.columns), dtype=working_type(frames))
    places: dict[int, list[tuple[int, Frame]]] = {}
    for number, frame in enumerate(frames):
        places.setdefault(id(frame.instance), []).append((number, frame))
    padded: NDArray[np.bool_] | None = None
    for group in places.values():
        instance = group[0][1].instance
        wanted = {frame.index: (number, frame) for number, frame in group}
        # Whatever is not needed here may be taken by the decoding program: a codestream that lies gets no more.
        spare = rules.limit - needed + _decoding_bytes(instance)
        with contextlib.closing(_stored_frames(instance, set(wanted), spare)) as source:
            for index, raw in source:
                number, frame = wanted[index]
                for lines in _blocks(raw):
                    values, padding = _values(raw[lines].astype(np.int64), frame)
                    with np.errstate(over="ignore"):  # what becomes infinite is refused below
                        planes[number, lines] = values
                    if padding is not None and padding.any():
                        if padded is None:
                            padded = np.zeros(planes.shape, dtype=np.bool_)
                        padded[number, lines] = padding
    notes = [] if padded is None else _mask_padding(planes, padded, where)
    planes, more = _finish(planes, where)
    return planes.transpose(2, 1, 0), notes + more


def _blocks(plane: NDArray[Any]) -> Iterator[slice]:
    """Lines of about `BLOCK_PIXELS` together: values are widened to 64 bits, which a large plane has no room for."""
    step = max(1, BLOCK_PIXELS // plane.shape[1])
    for start in range(0, len(plane), step):
        yield slice(start, start + step)


def _values(raw: NDArray[np.int64], frame: Frame) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Real values of stored ones, and the mask of padding or None."""
    significant = _significant_bits(raw, frame.instance)
    return _real_values(significant, frame), _padding(raw, significant, frame.instance)


def _mask_padding(planes: NDArray[Any], padded: NDArray[np.bool_], where: Path) -> list[Note]:
    if padded.all():
        return []
    highest = np.inf if planes.dtype.kind == "f" else np.iinfo(planes.dtype).max
    lowest = planes.min(where=~padded, initial=highest)
    planes[padded] = lowest
    return [Note("PADDING_MASKED", str(where), f"{int(padded.sum())} padding voxels were set to {lowest:g}, the lowest "
                                               "real value")]


def _finish(planes: NDArray[Any], where: Path) -> tuple[NDArray[Any], list[Note]]:
    """Shrinks wide integers to what the values need; checks that floats are finite and that values differ."""
    low, high = planes.min(), planes.max()
    if not np.isfinite([low, high]).all():  # min and max carry a NaN through
        raise Refused("PIX_NONFINITE", where, "the rescaled values are not finite", "Check the rescale of the image")
    notes = []
    if planes.dtype.kind in "iu" and planes.dtype.itemsize > 2:
        small = _smallest(float(low), float(high))
        if small is None:
            small = np.dtype(np.float32)
            if max(abs(int(low)), abs(int(high))) > FLOAT32_EXACT:
                notes.append(Note("PIX_PRECISION_LOSS", str(where), "values beyond 32 bits were rounded to float32"))
        planes = planes.astype(small, copy=False)
        low, high = planes.min(), planes.max()  # rounding may have made different values one
    if low == high:
        notes.append(Note("PIX_CONSTANT", str(where), f"every voxel has the value {float(low):g}"))
    return planes, notes


def _real_values(stored: NDArray[np.int64], frame: Frame) -> NDArray[Any]:
    """Applies MONOCHROME1 inversion and the Modality LUT or rescale to one plane, (rows, columns)."""
    instance = frame.instance
    if is_inverted(instance):
        low, high = instance.stored_range
        stored = low + high - stored
    rescale = rescale_of(frame)
    if rescale.has_lut:
        try:
            return np.asarray(apply_modality_lut(stored, instance.header))
        except Exception as error:  # a broken table raises whatever its reader stumbles on
            raise Refused("PIX_BAD_RESCALE", instance.path, f"the Modality LUT cannot be used ({type(error).__name__})",
                          "Export the image again with a rescale slope and intercept") from None
    if rescale.is_integral:
        return stored * int(rescale.slope) + int(rescale.intercept)
    return stored * rescale.slope + rescale.intercept


def is_inverted(instance: Instance) -> bool:
    """Whether small stored values are bright and mean no physical quantity, so that the image is inverted."""
    photometric = text(instance.header, "PhotometricInterpretation").upper()
    return photometric == "MONOCHROME1" and instance.modality not in PHYSICAL_MODALITIES


def _stored_frames(instance: Instance, wanted: set[int], spare: int) -> Stored:
    """Yields (index, values as stored (rows, columns)) of the wanted frames."""
    native = instance.syntax in NATIVE
    return _native_frames(instance, wanted) if native else _decoded_frames(instance, wanted, spare)


def _significant_bits(raw: NDArray[np.int64], instance: Instance) -> NDArray[np.int64]:
    """Keeps the bits that carry the value: the others may hold overlays or garbage (PS3.5, 8.1.1)."""
    # A codec returns values whose lowest bit is bit 0, whatever HighBit says.
    shift = instance.high_bit + 1 - instance.bits_stored if instance.syntax in (*NATIVE, _RLE) else 0
    value = (raw >> shift) & ((1 << instance.bits_stored) - 1)
    if instance.signed:
        sign = 1 << (instance.bits_stored - 1)
        value = (value ^ sign) - sign
    return value


def _padding(raw: NDArray[np.int64], value: NDArray[np.int64], instance: Instance) -> NDArray[np.bool_] | None:
    """The mask of padding pixels, or None if the header names no padding value."""
    if "PixelPaddingValue" not in instance.header:
        return None
    full = (1 << instance.bits_allocated) - 1
    low, high = instance.stored_range

    def meant(keyword: str) -> int:
        # The element's VR often contradicts the pixels' sign: -2000 then reads 63536.
        number = integer(instance.header, keyword, 0) & full
        return number - full - 1 if instance.signed and number > full >> 1 else number

    padding = meant("PixelPaddingValue")
    limit = meant("PixelPaddingRangeLimit") if "PixelPaddingRangeLimit" in instance.header else padding
    if low <= min(padding, limit) and max(padding, limit) <= high:
        mask: NDArray[np.bool_] = (value >= min(padding, limit)) & (value <= max(padding, limit))
    else:  # a padding value that does not fit the stored bits fills the unused ones as well
        mask = (raw & full) == (padding & full)
    return mask


def _native_frames(instance: Instance, wanted: set[int]) -> Stored:
    dtype = np.dtype(f"{'<' if instance.little_endian else '>'}u{instance.bits_allocated // 8}")
    # Big-endian OW swaps the bytes of 8-bit pixels pairwise.
    swapped = not instance.little_endian and instance.bits_allocated == 8 and instance.pixel_vr == "OW"
    size = instance.frame_bytes
    with open_data_set(instance) as stream:
        for index in sorted(wanted):
            begin = instance.offset + index * size
            lead = (index * size) & 1 if swapped else 0
            stream.seek(begin - lead)
            data = stream.read(lead + size + ((lead + size) & 1 if swapped else 0))
            if swapped:
                data = np.frombuffer(data, dtype=np.uint16).byteswap().tobytes()
            data = data[lead:lead + size]
            if len(data) < size:
                raise Refused("PIX_TRUNCATED", instance.path, "the pixel data ends early",
                              "Copy the file again from its source")
            yield index, np.frombuffer(data, dtype=dtype).reshape(instance.rows, instance.columns)


def _decoded_frames(instance: Instance, wanted: set[int], spare: int) -> Stored:
    """Has the wanted frames decoded, all in one request, by a program that may crash."""
    indices = sorted(wanted)
    request: dict[str, Any] = {
        "file": os.path.abspath(instance.path), "offset": instance.offset, "length": instance.length,
        "syntax": instance.syntax, "rows": instance.rows, "columns": instance.columns, "frames": instance.frames,
        "bits_allocated": instance.bits_allocated, "bits_stored": instance.bits_stored, "signed": instance.signed,
        "indices": indices,
    }  # fmt: skip
    tables = [instance.header.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    if all(tables):
        request["offsets"], request["lengths"] = (table.hex() for table in tables)
    shape, left = (instance.rows, instance.columns), list(indices)
    answers = decoding.decoded("frames", request, instance.path, limit=spare, pixels=instance.rows * instance.columns)
    with contextlib.closing(answers):
        for _, plane in answers:
            if not left or plane.shape != shape or plane.dtype.kind not in "iu":
                raise _not_decoded(instance, f"pixels of shape {plane.shape} came out where {shape} was expected")
            yield left.pop(0), plane
    if left:
        raise _not_decoded(instance, f"{len(left)} of {len(indices)} frames did not come out")


def _not_decoded(instance: Instance, why: str) -> Refused:
    return Refused("PIX_DECODE_FAILED", instance.path, why, "Decompress the file with the tool of its maker")
