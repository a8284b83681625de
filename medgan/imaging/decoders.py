"""What runs in the decoding program: compressed DICOM frames through pylibjpeg, rasters through Pillow.

Each decoder takes a request and yields (head, pixels): `dtype` and `shape` of an array and its bytes, or, without
bytes, how many `pixels` are to come, which allows it more time; the last one says that it is. Sizes are checked before
anything is decoded.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.arrays import DEFLATE_RATIO
from medgan.imaging.png import missing_bytes

#: Bytes a pixel that decoding a compressed frame takes at most: JPEG 2000 works in 32 bits, several times over.
FRAME_BYTES_PER_PIXEL = 24
#: Bytes a pixel that a raster takes in this program, for each byte that its grey values have: Pillow's, and copies.
GREY_COPIES = 5
#: The same for a raster in colour, in all: the decoded image, its conversion, and their copies.
COLOUR_BYTES_PER_PIXEL = 28
#: What a raster may really be; other formats that Pillow knows are surface for attacks (EPS starts Ghostscript).
RASTER_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
#: Above so many pixels the other side is told that it will take longer.
ANNOUNCED_PIXELS = 2**22

_GREY_BYTES = {"1": 1, "L": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I": 4, "F": 4}

Answer = tuple[dict[str, Any], memoryview | None]


def frames(request: dict[str, Any]) -> Iterator[Answer]:
    """Decodes the wanted frames of one DICOM file, in order.

    Args:
        request: `file`, `offset` and `length` of the encapsulated pixel data; `syntax`, `rows`, `columns`, `frames`,
            `bits_allocated`, `bits_stored`, `signed`, the wanted `indices`, and, where there are such, the tables
            of `offsets` and `lengths` in hexadecimal digits.

    Raises:
        Refused: `PIX_DECODE_FAILED`; a codec may raise anything else.
    """
    from pydicom.encaps import generate_frames
    from pydicom.pixels import get_decoder

    rows, columns, count = request["rows"], request["columns"], request["frames"]
    with open(request["file"], "rb") as stream:
        stream.seek(request["offset"])
        data = stream.read(request["length"])
    offsets = {}
    if request.get("offsets"):
        offsets = {"extended_offsets": (bytes.fromhex(request["offsets"]), bytes.fromhex(request["lengths"]))}
    # A codec that warns has guessed; a guess about pixels is a failure.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for encoded in generate_frames(data, number_of_frames=count, **offsets):
            shape = codestream_shape(encoded)
            if shape is not None and shape != (rows, columns):
                # Decoding would allocate what the codestream claims, not what was checked.
                raise Refused("PIX_DECODE_FAILED", request["file"], f"the header says {rows}x{columns} pixels, the "
                              f"compressed image {shape[0]}x{shape[1]}", "Export the image again from its source")
        decoded = get_decoder(request["syntax"]).iter_array(
            data, indices=request["indices"], raw=True, decoding_plugin="pylibjpeg", rows=rows, columns=columns,
            number_of_frames=count, samples_per_pixel=1, photometric_interpretation="MONOCHROME2",
            bits_allocated=request["bits_allocated"], bits_stored=request["bits_stored"],
            pixel_representation=int(request["signed"]), pixel_keyword="PixelData", **offsets,
        )
        for number, (array, _) in enumerate(decoded, 1):
            head, pixels = _packed(array)
            yield {**head, "last": number == len(request["indices"])}, pixels


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


def raster(request: dict[str, Any]) -> Iterator[Answer]:
    """Decodes the raster image `file` to grey values (rows, columns), taking at most `limit` bytes.

    The head says in `mode` where grey values were stored as colour.

    Raises:
        Refused: `FILE_FORMAT`, `FILE_TRUNCATED`, `LIMIT`, `DIM_UNSUPPORTED`, `PIX_COLOUR` or `PIX_DECODE_FAILED`.
    """
    from PIL import Image, UnidentifiedImageError

    path, limit = request["file"], request["limit"]
    Image.MAX_IMAGE_PIXELS = None  # the size is held against the limit below, before anything is decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=RASTER_FORMATS) as image:
                image.verify()  # checks every chunk's checksum, which decoding does not
            with Image.open(path, formats=RASTER_FORMATS) as image:
                width, height = image.size
                needed = width * height * raster_bytes_per_pixel(image.mode)
                if needed > limit:
                    raise Refused("LIMIT", path, f"decoding {width} x {height} pixels takes {needed:,} bytes, above "
                                  f"the cap of {limit:,}", "Crop the image, or raise data.max_gib")
                stored = os.path.getsize(path)
                if image.format == "PNG" and width * height // 8 > stored * DEFLATE_RATIO:  # a pixel is a bit at least
                    raise Refused("FILE_TRUNCATED", path, f"{width} x {height} pixels are claimed, which {stored:,} "
                                  "bytes cannot hold", "Fetch or save the file again")
                if getattr(image, "n_frames", 1) > 1:
                    raise Refused("DIM_UNSUPPORTED", path, "several pages or frames", "Save one page, or use NIfTI")
                if width * height > ANNOUNCED_PIXELS:
                    yield {"pixels": width * height}, None
                if image.format == "PNG" and (missing := missing_bytes(path)):
                    raise Refused("FILE_TRUNCATED", path, f"{missing:,} bytes of its pixels are missing",
                                  "Fetch or save the file again")
                image.load()
                mode = "" if image.mode in _GREY_BYTES else image.mode
                head, pixels = _packed(_grey(image, path))
    except UnidentifiedImageError as error:
        raise Refused("FILE_FORMAT", path, "it does not begin like an image",
                      "Check what the file really is") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, struct.error, zlib.error,
            Warning) as error:
        code = "FILE_TRUNCATED" if "truncated" in str(error).lower() else "PIX_DECODE_FAILED"
        raise Refused(code, path, f"the image cannot be decoded ({error})", "Fetch or save the file again") from error
    yield {**head, "mode": mode, "last": True}, pixels


def raster_bytes_per_pixel(mode: str) -> int:
    """Bytes a pixel that decoding a raster of one of Pillow's modes takes."""
    return GREY_COPIES * _GREY_BYTES[mode] if mode in _GREY_BYTES else COLOUR_BYTES_PER_PIXEL


def _grey(image: Any, path: str) -> NDArray[Any]:
    """The image's values as (rows, columns); grey stored as colour is taken as grey."""
    if image.mode in _GREY_BYTES:
        pixels = np.asarray(image)
        if image.mode == "1":
            return pixels.astype(np.uint8) * np.uint8(255)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if image.mode == "CMYK":
        raise _colour(path, "a CMYK image")
    pixels = np.asarray(image.convert("RGBA"))
    if (pixels[..., 3] != 255).any():
        raise _colour(path, "an image with transparent pixels")
    if (pixels[..., 0] != pixels[..., 1]).any() or (pixels[..., 0] != pixels[..., 2]).any():
        raise _colour(path, f"a colour image ({image.mode})")
    return pixels[..., 0]


def _colour(path: str, what: str) -> Refused:
    return Refused("PIX_COLOUR", path, f"{what} where grey values are expected",
                   "Convert it to a grey PNG of 8 or 16 bits")


def _packed(array: NDArray[Any]) -> tuple[dict[str, Any], memoryview]:
    array = np.ascontiguousarray(array)
    return {"dtype": array.dtype.str, "shape": array.shape}, memoryview(array.data).cast("B")


#: Kind of request -> what answers it.
DECODERS: dict[str, Callable[[dict[str, Any]], Iterator[Answer]]] = {"frames": frames, "raster": raster}
