"""Arrays as numpy saves them, alone or in an archive: claims first, then exactly the bytes that were claimed."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused

#: Deflate cannot compress better than 1032 to 1, so what claims more than this is lying.
DEFLATE_RATIO = 1032
#: No header of an array of numbers is longer; numpy itself stops at a tenth of this, but only after reading all of it.
HEADER_BYTES = 2**17
#: How much is read at a time.
CHUNK_BYTES = 2**22

Header = tuple[tuple[int, ...], bool, "np.dtype[Any]"]


class _Start:
    """The beginning of a stream, which a header may not read beyond."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or fewer at the end; never all there are."""
        if not 0 <= size <= HEADER_BYTES:
            raise ValueError("a header of impossible length")
        return self._stream.read(size)


def read_header(stream: IO[bytes], path: Path) -> Header:
    """Reads shape, whether columns lie together, and type of one `.npy` stream.

    Raises:
        Refused: `FILE_CORRUPT` or `FILE_UNSAFE`.
    """
    start, npy = _Start(stream), np.lib.format
    try:
        version = npy.read_magic(start)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"version {version} of the format")
        shape, by_column, dtype = read[version](start)
    except Exception as error:  # numpy parses the header as Python; its tokenizer fails in many ways
        raise Refused("FILE_CORRUPT", path, f"its header cannot be read ({error})", "Save the array again") from error
    if dtype.hasobject:
        raise Refused("FILE_UNSAFE", path, "an array of Python objects, which are pickled code",
                      "Save a plain array of numbers")
    if any(size < 0 for size in shape):
        raise Refused("FILE_CORRUPT", path, f"the shape {shape} is impossible", "Save the array again")
    return shape, by_column, dtype


def claimed_bytes(header: Header) -> int:
    """The bytes that follow a header, as a Python integer that cannot overflow."""
    return math.prod(header[0]) * header[2].itemsize


def taken_bytes(header: Header) -> int:
    """The bytes that reading the array takes: the array, and a copy where its values lie in another order."""
    shape, by_column, dtype = header
    copied = (by_column and len(shape) > 1) or not dtype.isnative
    return claimed_bytes(header) * (2 if copied else 1)


def stored_bytes(info: zipfile.ZipInfo, path: Path) -> int:
    """The most bytes that an archive's member can hold, from its compressed ones.

    Raises:
        Refused: `FILE_CORRUPT` where it is compressed in a way that numpy does not write.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused("FILE_CORRUPT", path, f"{info.filename} is compressed in a way that is not numpy's",
                      "Save the archive again with numpy.savez_compressed")
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
    return min(info.file_size, info.compress_size * ratio, path.stat().st_size * ratio)


def read_array(stream: IO[bytes], stored: int, path: Path, limit: int, *, image: bool = True) -> NDArray[Any]:
    """Reads one `.npy` stream that can hold `stored` bytes, taking at most `limit` bytes.

    Args:
        stream: Where it begins.
        stored: How many bytes there can be.
        path: The file, for refusals.
        limit: The most memory to take.
        image: Whether it must be of a type that images have; else anything but Python objects will do.

    Returns:
        The array, in C order and native byte order.

    Raises:
        Refused: `FILE_*`, `LIMIT*`, `PIX_COMPLEX` or `HDR_BAD_DTYPE`.
    """
    header = read_header(stream, path)
    shape, by_column, dtype = header
    if image and dtype.kind == "c":
        raise Refused("PIX_COMPLEX", path, "complex values", "Save the magnitude as an image of its own")
    if image and (dtype.kind not in "biuf" or dtype.itemsize > 8):
        raise Refused("HDR_BAD_DTYPE", path, f"dtype {dtype} is not an image's", "Save it as integers or floats")
    claimed = claimed_bytes(header)
    if taken_bytes(header) > limit:
        raise Refused("LIMIT" if claimed <= stored else "LIMIT_OR_TRUNCATED", path,
                      f"reading the {claimed:,} bytes that the header claims takes {taken_bytes(header):,}, above the "
                      f"cap of {limit:,}", "Crop it, or raise data.max_gib")
    if claimed > stored:
        raise Refused("FILE_TRUNCATED", path, f"{claimed:,} bytes claimed, {stored:,} there", "Save the array again")
    data = np.empty(claimed, dtype=np.uint8)
    view, filled = memoryview(data.data), 0
    while filled < claimed and (piece := stream.read(min(claimed - filled, CHUNK_BYTES))):
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled < claimed:
        raise Refused("FILE_TRUNCATED", path, f"{filled:,} of {claimed:,} bytes are there", "Save the array again")
    if stream.read(1):  # in an archive this also reaches the end, where the checksum is compared
        raise Refused("FILE_TRAILING_DATA", path, "bytes follow the array", "Save one array a file, or an .npz")
    array: NDArray[Any] = np.ndarray(shape, dtype, data, order="F" if by_column else "C")
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))
