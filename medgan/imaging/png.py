"""How much image a PNG really holds: Pillow fills the rows that a whole but short stream lacks with zeros, silently."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

#: Samples a pixel of each colour type.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: First column, first row, and steps of both, of the seven passes of an interlaced image.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SIGNATURE_BYTES = 8
#: How much is inflated at a time.
_CHUNK_BYTES = 2**20


def missing_bytes(path: str | Path) -> int:
    """How many bytes of image data a PNG lacks for the size that its header gives; 0 where all is there.

    Nothing is kept, so that a bomb takes time only. Chunks and their checksums are taken to be right.

    Raises:
        ValueError: The file has no header as a PNG has it.
        zlib.error: The image data cannot be inflated.
    """
    inflater, found, expected = zlib.decompressobj(), 0, 0
    with open(path, "rb") as file:
        file.seek(_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8 and not inflater.eof:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IHDR":
                expected = _image_bytes(file.read(length))
            elif kind == b"IDAT":
                left = length
                while left > 0 and (data := file.read(min(left, _CHUNK_BYTES))):
                    left -= len(data)
                    while data and found < expected:
                        found += len(inflater.decompress(data, _CHUNK_BYTES))
                        data = inflater.unconsumed_tail
                if found >= expected:
                    return 0
            else:
                file.seek(length, 1)
            file.seek(4, 1)  # the checksum
    return expected - found


def _image_bytes(header: bytes) -> int:
    """What the rows of an image take before they are compressed, each with the byte that tells its filter."""
    if len(header) != 13:
        raise ValueError("a header of another length than PNG's")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if colour not in _SAMPLES:
        raise ValueError("a colour type that PNG does not have")
    bits = depth * _SAMPLES[colour]
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
