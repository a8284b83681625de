"""From stored bits to real values: decoding, unused bits, padding, rescale, MONOCHROME1.

Frames are decoded one at a time straight into the volume, so that the peak stays below three copies of it.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, get_decoder

from medgan.errors import Note, Refused
from medgan.imaging.dicom_file import open_data_set
from medgan.imaging.dicom_header import NATIVE, Frame, Instance, integer, text

#: Where stored values are physical quantities, MONOCHROME1 says how to show them, not what they mean.
PHYSICAL_MODALITIES = frozenset({"CT", "MR", "PT", "NM"})
#: Integer types a volume may have, smallest first; int16 before uint16 because most tools know it better.
INTEGER_TYPES = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32))
#: Above this, float32 no longer holds every whole number.
FLOAT32_EXACT = 2**24

_RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class Rescale:
    """How stored values become real ones: `stored * slope + intercept`, or a look-up table."""

    slope: float
    intercept: float
    has_lut: bool

    @property
    def is_integral(self) -> bool:
        """Whether whole stored values give whole real values."""
        return self.has_lut or (self.slope.is_integer() and self.intercept.is_integer())

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


def load_frames(frames: Sequence[Frame], where: Path) -> tuple[NDArray[Any], list[Note]]:
    """Decodes frames of one matrix size, in the given order, to real values.

    Returns:
        The values, (X, Y, N) with X the column and Y the row index, in the smallest type that holds them exactly
        (float32 where the rescale is not integral), and what was odd about them.

    Raises:
        Refused: `PIX_DECODE_FAILED`, `PIX_TRUNCATED`, `PIX_NONFINITE`, `LIMIT`, `FILE_CORRUPT`.
    """
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
        for index, stored, padding in _stored_frames(instance, set(wanted)):
            number, frame = wanted[index]
            planes[number] = _real_values(stored, frame)
            if padding is not None and padding.any():
                if padded is None:
                    padded = np.zeros(planes.shape, dtype=np.bool_)
                padded[number] = padding
    notes = [] if padded is None else _mask_padding(planes, padded, where)
    planes, more = _finish(planes, where)
    return planes.transpose(2, 1, 0), notes + more


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


def _stored_frames(instance: Instance, wanted: set[int]
                   ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_] | None]]:
    """Yields (index, stored values (rows, columns), padding mask or None) of the wanted frames."""
    source = _native_frames(instance, wanted) if instance.syntax in NATIVE else _decoded_frames(instance, wanted)
    for index, raw in source:
        significant = _significant_bits(raw, instance)
        yield index, significant, _padding(raw, significant, instance)


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


def _native_frames(instance: Instance, wanted: set[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
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
            yield index, np.frombuffer(data, dtype=dtype).reshape(instance.rows, instance.columns).astype(np.int64)


def _decoded_frames(instance: Instance, wanted: set[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    decoder = _run_decoder(instance, wanted)
    while True:
        try:
            with warnings.catch_warnings():
                # A codec that warns has guessed; a guess about pixels is a failure.
                warnings.simplefilter("error", UserWarning)
                decoded = next(decoder, None)
        except (KeyboardInterrupt, SystemExit, Refused):
            raise
        except BaseException as error:  # the Rust codecs raise PanicException, which is no Exception
            raise Refused("PIX_DECODE_FAILED", instance.path,
                          f"the compressed pixels cannot be decoded ({type(error).__name__})",
                          "Decompress the file with the tool of its maker") from error
        if decoded is None:
            return
        yield decoded


def _run_decoder(instance: Instance, wanted: set[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    with instance.path.open("rb") as stream:
        stream.seek(instance.offset)
        data = stream.read(instance.length)
    table = instance.header.get("ExtendedOffsetTable"), instance.header.get("ExtendedOffsetTableLengths")
    offsets = {"extended_offsets": table} if all(table) else {}
    for encoded in generate_frames(data, number_of_frames=instance.frames, **offsets):
        shape = codestream_shape(encoded)
        if shape is not None and shape != (instance.rows, instance.columns):
            # Decoding would allocate what the codestream claims, not what was checked.
            raise Refused("PIX_DECODE_FAILED", instance.path, f"the header says {instance.rows}x{instance.columns} "
                          f"pixels, the compressed image {shape[0]}x{shape[1]}",
                          "Export the image again from its source")
    indices = sorted(wanted)
    decoded = get_decoder(instance.syntax).iter_array(
        data, indices=indices, raw=True, decoding_plugin="pylibjpeg", rows=instance.rows, columns=instance.columns,
        number_of_frames=instance.frames, samples_per_pixel=1, photometric_interpretation="MONOCHROME2",
        bits_allocated=instance.bits_allocated, bits_stored=instance.bits_stored,
        pixel_representation=int(instance.signed), pixel_keyword="PixelData", **offsets,
    )
    for index, (array, _) in zip(indices, decoded, strict=True):
        yield index, array.astype(np.int64)


def codestream_shape(data: bytes) -> tuple[int, int] | None:
    """The (rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream claims; None for another or a broken one."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 1024)  # SOC and SIZ, also inside the JP2 box that some writers leave
    if start >= 0 and len(data) >= start + 24:
        right, lower, left, upper = struct.unpack(">4I", data[start + 8:start + 24])
        return lower - upper, right - left
    position = 2 if data.startswith(b"\xff\xd8") else len(data)
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">HH", data[position + 5:position + 9])
            return rows, columns
        position += 2 + int(struct.unpack(">H", data[position + 2:position + 4])[0])
    return None
