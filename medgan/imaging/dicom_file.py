"""Opening one DICOM file: its header parsed and checked, its pixels located, none of them read.

Everything that can make a file unreadable is looked at here, so that a wrong or hostile file costs no memory.
No value that may identify a patient goes into a message.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pydicom
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.pixels import get_decoder
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medgan.errors import Note, Refused
from medgan.imaging.dicom_header import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    NATIVE,
    Instance,
    integer,
    text,
)
from medgan.imaging.dicom_identity import identity_notes

#: No real header is larger; what is, is refused before it fills the memory.
HEADER_LIMIT = 256 * 2**20
#: How much of a deflated data set is inflated to find its header, and how much may follow its pixels.
INFLATE_SLACK = 16 * 2**20
#: A header that claims more than this times the bytes that are there is a lie rather than a cut file.
LIE_FACTOR = 2

UNDEFINED_LENGTH = 0xFFFFFFFF

_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, _PIXEL_DATA)
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
#: SOP classes that hold something other than grey values of a patient: presentation states, waveforms, parametric
#: maps, spectroscopy, raw data, segmentations, registrations, reports, encapsulated documents, radiotherapy.
_NON_IMAGE = tuple(_STORAGE + tail for tail in ("9.", "11.", "30", "4.2", "66", "67", "88.", "104.", "481."))
_RT_IMAGE = _STORAGE + "481.1"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64
_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT OB OF OW PN SH SL SQ SS ST TM UI UL UN US UT".split())


class PassedOver(Exception):
    """A file that is left aside when images lie beside it, and refused when it stands alone.

    Args:
        code: The code of the note if the file is left aside.
        refusal: What to raise if there is nothing else.
    """

    def __init__(self, code: str, refusal: Refused) -> None:
        super().__init__(str(refusal))
        self.code, self.refusal = code, refusal


class _HeaderStream(io.RawIOBase):
    """A binary stream that notices when the file ends inside an element, and stops at `HEADER_LIMIT`."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        super().__init__()
        self._stream, self._path, self._total = stream, path, 0
        self.ended_inside, self._was_at_end = False, False
        self._size = stream.seek(0, io.SEEK_END)
        stream.seek(0)

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._stream.tell(), 0)
        asked = left if size is None or size < 0 else size
        self._total += min(asked, left)
        if self._total > HEADER_LIMIT:
            raise Refused("LIMIT", self._path, f"the header is larger than {HEADER_LIMIT // 2**20} MiB",
                          "Remove the oversized elements from the file")
        data = self._stream.read(min(asked, left))
        # Between two elements pydicom asks for the 8 bytes of the next tag and length; getting none is a clean end,
        # unless it then asks again: then the first question was for a value.
        at_end = asked == 8 and not data
        if len(data) < asked and (not at_end or self._was_at_end):
            self.ended_inside = True
        self._was_at_end = at_end
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = self._stream.seek(offset, whence)
        if position < self._size:  # it had looked ahead for a delimiter, and goes on from before the end
            self.ended_inside = False
        return position

    def tell(self) -> int:
        return self._stream.tell()


def is_dicom(path: Path) -> bool:
    """Whether the first bytes of a file look like DICOM, with or without preamble; opens nothing but a plain file."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _sniff(stream.read(132)) is not None


def _sniff(head: bytes) -> str | None:
    """`part10` with preamble, `bare` without, None if these are not the first bytes of a DICOM file."""
    if head[128:132] == b"DICM":
        return "part10"
    if len(head) < 16:
        return None
    for order in "<>":
        group, element, vr = struct.unpack(f"{order}HH2s", head[:6])
        if group in (2, 8) and element <= 0x0100:
            implicit_length = struct.unpack("<I", head[4:8])[0]
            if vr in _VRS or (order == "<" and implicit_length <= 1024):
                return "bare"
    return None


def read_instance(path: Path) -> Instance:
    """Reads and checks everything of a DICOM image file except its pixels.

    Raises:
        PassedOver: The file is no DICOM, a DICOMDIR, or an object without an image.
        Refused: It is DICOM and something is wrong with it.
    """
    kind, size = _check_kind(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as raw:
            # pydicom's warnings quote values, which may be a patient's; what matters is checked below.
            warnings.simplefilter("ignore")
            return _parse(path, raw, kind, size)
    except RecursionError:
        raise Refused("FILE_TOO_DEEP", path, "sequences are nested deeper than any real file nests them",
                      "Export the image again from its source") from None
    except (Refused, PassedOver):
        raise
    except zlib.error:
        raise Refused("FILE_CORRUPT", path, "the deflated data set cannot be inflated",
                      "Copy the file again from its source") from None
    except Exception as error:  # pydicom raises nearly every built-in exception on bytes that are not DICOM
        raise Refused("FILE_NOT_DICOM", path, f"it cannot be parsed as DICOM ({type(error).__name__})",
                      "Remove the file or copy it again from its source") from None


def _check_kind(path: Path) -> tuple[str, int]:
    """Returns the kind of `_sniff` and the file size; passes over what is not DICOM."""
    with path.open("rb") as stream:
        head = stream.read(1024)
        size = stream.seek(0, io.SEEK_END)
    if not head:
        raise PassedOver("NON_DICOM_SKIPPED", Refused("FILE_EMPTY", path, "the file has no bytes",
                                                      "Copy it again from its source"))
    if head.startswith(b"version https://git-lfs"):
        raise Refused("FILE_IS_POINTER", path, "it is a Git LFS pointer, not the image", "Run `git lfs pull`")
    kind = _sniff(head)
    if kind is None:
        fix = "Unpack it first" if head.startswith(b"\x1f\x8b") else "Give a DICOM file or a folder of them"
        raise PassedOver("NON_DICOM_SKIPPED", Refused("FILE_NOT_DICOM", path, "its first bytes are not DICOM", fix))
    if kind == "part10" and size <= 132 + 8:
        raise Refused("FILE_TRUNCATED", path, "the file ends after the preamble", "Copy it again from its source")
    return kind, size


def _parse(path: Path, raw: IO[bytes], kind: str, size: int) -> Instance:
    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found[:] = [(int(tag), vr, length)]
            return True
        return False

    deflated = DEFLATED.encode() in raw.read(1024)
    if deflated:
        meta = read_file_meta_info(path)
        deflated = text(meta, "TransferSyntaxUID") == DEFLATED
    if deflated:
        inflated = _inflate(path, INFLATE_SLACK, partly=True)
        stream = _HeaderStream(io.BytesIO(inflated), path)
        header = read_dataset(stream, False, True, stop_when=at_pixels)
        header.file_meta = meta
        implicit, little = False, True
    else:
        stream = _HeaderStream(raw, path)
        header = read_partial(stream, stop_when=at_pixels, force=True)
        meta = header.file_meta
        implicit, little = header.original_encoding
    position = stream.tell()
    cut = Refused("FILE_TRUNCATED", path, "the file ends inside its header", "Copy it again from its source")
    if not found and stream.ended_inside and len(meta) and not _is_known_class(header):
        raise cut
    _check_object(path, header, kind)
    if not found:
        if stream.ended_inside:
            raise cut
        raise Refused("PIX_MISSING", path, "an image object without pixel data", "Export it again with its pixels")
    _check_uids(path, header)
    tag, vr, length = found[0]
    if tag != _PIXEL_DATA:
        raise Refused("PIX_MISSING", path, "the pixels are floating-point maps, not an image", "Remove the file")
    offset = position + (12 if not implicit and vr in EXPLICIT_VR_LENGTH_32 else 8)
    syntax = text(meta, "TransferSyntaxUID")
    notes = [*identity_notes(path, header)]
    if kind == "bare":
        code = "NO_PREAMBLE" if len(meta) else "NO_FILE_META"
        notes.append(Note(code, str(path), "read all the same"))
    elif not syntax:
        notes.append(Note("NO_FILE_META", str(path), "no transfer syntax is named; it was told from the bytes"))
    if not syntax:
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    instance = _check_matrix(path, header, syntax, offset, length, vr, little, tuple(notes))
    return _check_length(instance, raw, None if deflated else size)


def _sop_class(header: Any) -> str:
    return text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID")


def _is_known_class(header: Any) -> bool:
    uid = pydicom.uid.UID(_sop_class(header))
    return bool(uid.name != uid)


def _check_object(path: Path, header: Any, kind: str) -> None:
    """Passes over or refuses what is not an image."""
    sop_class = _sop_class(header)
    if sop_class == _DICOMDIR_CLASS or "DirectoryRecordSequence" in header:
        # Never followed: its references may lead out of the folder (the shape of CVE-2026-32711).
        raise PassedOver("DICOMDIR_IGNORED", Refused("NO_IMAGES", path, "a DICOMDIR is an index, not an image",
                                                     "Give the folder that holds the images"))
    if not sop_class and "Rows" not in header:
        if kind == "part10" and text(header.file_meta, "TransferSyntaxUID"):
            raise PassedOver("NON_IMAGE_SKIPPED", _no_image(path))
        refusal = Refused("FILE_NOT_DICOM", path, "no DICOM object was found in it", "Remove the file")
        raise refusal if kind == "part10" else PassedOver("NON_DICOM_SKIPPED", refusal)
    is_map = sop_class.startswith(_NON_IMAGE) and sop_class != _RT_IMAGE
    named_image = "Image Storage" in pydicom.uid.UID(sop_class).name
    if is_map or ("Rows" not in header and not named_image):
        raise PassedOver("NON_IMAGE_SKIPPED", _no_image(path))


def _check_uids(path: Path, header: Any) -> None:
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        value = text(header, keyword)
        if value and (len(value) > _UID_LENGTH or not _UID.fullmatch(value)):
            raise Refused("UID_INVALID", path, f"{keyword} is not a UID", "Export the image again from its source")


def _no_image(path: Path) -> Refused:
    return Refused("NO_IMAGES", path, "the DICOM object is no image (a report, plan, segmentation or the like)",
                   "Give an image")


def _check_matrix(path: Path, header: Any, syntax: str, offset: int, length: int, vr: str | None, little: bool,
                  notes: tuple[Note, ...]) -> Instance:
    """Refuses an impossible matrix, bit depth or transfer syntax."""
    rows, columns = integer(header, "Rows", 0), integer(header, "Columns", 0)
    frames = integer(header, "NumberOfFrames", 1)
    if rows < 1 or columns < 1 or frames < 1:
        raise Refused("PIX_BAD_MATRIX", path, f"{rows} rows, {columns} columns and {frames} frames are no image",
                      "Export the image again from its source")
    allocated = integer(header, "BitsAllocated", 0)
    stored = integer(header, "BitsStored", allocated)
    high = integer(header, "HighBit", stored - 1)
    sign = integer(header, "PixelRepresentation", 0)
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or not stored - 1 <= high < allocated \
            or sign not in (0, 1):
        raise Refused("PIX_BAD_BITS", path, f"{stored} of {allocated} bits with high bit {high} cannot be read",
                      "Export the image again with 8, 16 or 32 bits a pixel")
    if syntax not in NATIVE:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:  # how pydicom says that it does not know the transfer syntax
            available = False
        if not available:
            raise Refused("TS_UNSUPPORTED", path, "no decoder for its transfer syntax is known",
                          "Convert the file to Explicit VR Little Endian")
    return Instance(path, header, syntax, offset, length, vr, little, rows, columns, frames, allocated, stored, high,
                    sign == 1, notes)


def _check_length(instance: Instance, stream: IO[bytes], size: int | None) -> Instance:
    """Refuses pixel data that is not all there; `size` is None where the end is unknown until it is inflated."""
    path, offset, length = instance.path, instance.offset, instance.length
    if instance.syntax not in NATIVE:
        assert size is not None
        return _check_fragments(instance, stream, size)
    if length == UNDEFINED_LENGTH:
        raise Refused("FILE_TRUNCATED", path, "pixel data of undefined length in an uncompressed file",
                      "Copy it again from its source")
    if size is not None and length > size - offset:
        raise Refused("PIX_TRUNCATED", path, f"{length} bytes of pixel data announced, {size - offset} present",
                      "Copy the file again from its source")
    colour = 3 if instance.is_colour else 1
    expected = instance.frame_bytes * instance.frames
    if expected > length:
        code = "LIMIT_OR_TRUNCATED" if expected > LIE_FACTOR * colour * length else "PIX_TRUNCATED"
        raise Refused(code, path, f"the header describes {expected} bytes of pixels, {length} are present",
                      "Copy the file again from its source")
    return instance


def _check_fragments(instance: Instance, stream: IO[bytes], size: int) -> Instance:
    """Walks the fragments of compressed pixel data; returns the instance with their whole length."""
    path = instance.path
    if instance.length != UNDEFINED_LENGTH:
        raise Refused("PIX_DECODE_FAILED", path, "compressed pixel data without fragments",
                      "Export the image again from its source")
    position, items = instance.offset, 0
    while True:
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            raise Refused("PIX_TRUNCATED", path, "the compressed pixel data ends early",
                          "Copy the file again from its source")
        group, element, length = struct.unpack("<HHI", head)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or length > size - position:
            raise Refused("PIX_TRUNCATED", path, "the compressed pixel data is broken or ends early",
                          "Copy the file again from its source")
        position, items = position + length, items + 1
    fragments = items - 1  # the first item is the offset table
    if fragments < instance.frames:
        raise Refused("LIMIT_OR_TRUNCATED", path,
                      f"the header claims {instance.frames} frames, the file holds {max(fragments, 0)} fragments",
                      "Copy the file again from its source")
    return replace(instance, length=position - instance.offset)


@contextlib.contextmanager
def open_data_set(instance: Instance) -> Iterator[IO[bytes]]:
    """Opens the bytes that `Instance.offset` counts in; a deflated data set is inflated as far as its header allows."""
    if instance.syntax == DEFLATED:
        yield io.BytesIO(_inflate(instance.path, instance.offset + instance.length + INFLATE_SLACK, partly=False))
    else:
        with instance.path.open("rb") as stream:
            yield stream


def _inflate(path: Path, limit: int, *, partly: bool) -> bytes:
    """Inflates at most `limit` bytes of a deflated data set.

    Raises:
        Refused: Unless `partly`, `LIMIT` if there is more than that, `FILE_TRUNCATED` if the stream is cut.
        zlib.error: If the stream is damaged.
    """
    raw = path.read_bytes()
    # Preamble, `DICM`, then the group length element (12 bytes), whose value counts from its own end.
    start = 144 + int(struct.unpack("<I", raw[140:144])[0])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(raw[start:], limit)
    if not partly and not inflater.eof:
        if inflater.unconsumed_tail:
            raise Refused("LIMIT", path, "the deflated data set is much larger than its header says",
                          "Export the image again from its source")
        raise Refused("FILE_TRUNCATED", path, "the deflated data set is cut", "Copy it again from its source")
    return data
