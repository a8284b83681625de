"""Mutations that know a format, so that more than the first check of a reader is reached.

Blind changes to a compressed or checksummed file only ever reach the check of its checksum. Here a file is opened,
changed inside and closed again with its lengths and checksums right, half the time or so; the other times the bytes
themselves are changed.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import fuzz_seeds
from fuzz_values import FLOATS, LONG_VRS, NUMBERS, TAGS, TEXTS, VRS, WORDS

#: Changes bytes without knowing them: (data, largest size) -> data.
Blind = Callable[[bytes, int], bytes]


def mutate(reader: str, data: bytes, most: int, seed: int, blind: Blind) -> bytes:
    """A changed input for `reader`, at most `most` bytes."""
    draw = random.Random(seed)
    if len(data) < 2 or draw.random() < 0.04:
        return blind(data, most)
    flag, content = data[:1], data[1:]
    if draw.random() < 0.02:
        flag = bytes([draw.randrange(6)])
    changed = _KNOWN[reader](flag[0], content, most - 1, draw, blind)
    return (flag + changed)[:most]


# --- DICOM ----------------------------------------------------------------------------------------------------------

def _dicom(flag: int, content: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    if flag % 2 == 0:
        return _data_set(content, most, draw, blind)
    files = fuzz_seeds.unpacked(content)
    if not files:
        return blind(content, most)
    index, kind = draw.randrange(len(files)), draw.random()
    if kind < 0.04:
        del files[index]
    elif kind < 0.08:
        files.append(files[index])
    else:
        files[index] = _data_set(files[index], max(16, most - len(content) + len(files[index])), draw, blind)
    return fuzz_seeds.packed(files)


def _data_set(file: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    kind = draw.random()
    if kind < 0.08 or len(file) < 200:
        return blind(file, most) if file else b"\0"
    if kind < 0.11:
        return file[: draw.randrange(len(file))]
    start = 0
    if file[128:132] == b"DICM":
        start = 144 + min(int(struct.unpack("<I", file[140:144])[0]), len(file))
    if b"1.2.840.10008.1.2.1.99\0" in file[:start] or b"1.2.840.10008.1.2.1.99" in file[start - 30 : start]:
        try:
            inside = zlib.decompressobj(-15).decompress(file[start:], 2**20)
        except zlib.error:
            return blind(file, most)
        return file[:start] + _deflated(_elements_changed(inside, 0, draw, blind, most))
    if draw.random() < 0.06 and start:
        start = 132  # the file meta group too
    return _elements_changed(file, start, draw, blind, most)


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _walk(file: bytes, position: int) -> tuple[list[tuple[int, int, bytes, int, int]], str]:
    """(begin, tag, VR, begin of value, length) of every element and item, flat; and the byte order."""
    order = ">" if file[position : position + 1] == b"\0" and file[position + 1 : position + 2] != b"\0" else "<"
    explicit = file[position + 4 : position + 6].isalpha()
    found = []
    while position + 8 <= len(file) and len(found) < 400:
        group, element = struct.unpack(f"{order}HH", file[position : position + 4])
        vr = file[position + 4 : position + 6] if explicit and group != 0xFFFE else b""
        head = 12 if vr in LONG_VRS else 8
        if head == 12 or not vr:
            raw = file[position + head - 4 : position + head]
            length = struct.unpack(f"{order}I", raw)[0] if len(raw) == 4 else 0
        else:
            length = struct.unpack(f"{order}H", file[position + 6 : position + 8])[0]
        value, tag = position + head, group << 16 | element
        found.append((position, tag, vr, value, length))
        enters = vr == b"SQ" or group == 0xFFFE or length == 0xFFFFFFFF or (not vr and group in (0x5200, 0x0028)
                                                                           and element in (0x9229, 0x9230, 0x3000))
        position = value if enters else value + length
    return found, order


def _element(tag: int, vr: bytes, value: bytes, order: str, explicit: bool, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if tag >> 16 == 0xFFFE or not explicit:
        return head + struct.pack(f"{order}I", length & 0xFFFFFFFF) + value
    if vr in LONG_VRS:
        return head + vr + b"\0\0" + struct.pack(f"{order}I", length & 0xFFFFFFFF) + value
    return head + vr[:2].ljust(2) + struct.pack(f"{order}H", length & 0xFFFF) + value


def _value(vr: bytes, draw: random.Random) -> bytes:
    number = draw.choice(NUMBERS)
    sizes = {b"US": 2, b"SS": 2, b"UL": 4, b"SL": 4, b"AT": 4, b"OV": 8, b"UV": 8, b"SV": 8}
    if vr in sizes:
        size = sizes[vr]
        count = draw.choice((0, 1, 1, 1, 1, 1, 2, 3))
        return (number % (1 << 8 * size)).to_bytes(size, "little") * count
    if vr in (b"FD", b"FL"):
        with_type = "<d" if vr == b"FD" else "<f"
        try:
            return struct.pack(with_type, draw.choice(FLOATS))
        except OverflowError:
            return struct.pack(with_type, 1.0)
    text = draw.choice(TEXTS)
    if draw.random() < 0.2:
        text = str(draw.choice((*NUMBERS, *FLOATS))).encode()
    return text + b" " * (len(text) & 1)


def _elements_changed(file: bytes, start: int, draw: random.Random, blind: Blind, most: int) -> bytes:
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found, order = _walk(file, start)
        if not found:
            return blind(file, most)
        explicit = any(vr.isalpha() for _, _, vr, _, _ in found)
        begin, tag, vr, value, length = draw.choice(found)
        end = min(value + (0 if length == 0xFFFFFFFF else length), len(file))
        old, kind = file[value:end], draw.random()
        if kind < 0.28:
            new = _element(tag, vr, _value(vr, draw), order, explicit)
        elif kind < 0.42:
            new = _element(tag, vr, blind(old or b"\0", max(len(old), 8) + 8), order, explicit)
        elif kind < 0.50:
            new = _element(tag, vr, old, order, explicit, draw.choice((*NUMBERS, length + 1, length + 2, length - 2)))
        elif kind < 0.58:
            new = _element(tag, draw.choice(VRS), old, order, explicit)
        elif kind < 0.66:
            new = b""
        elif kind < 0.70:
            new = 2 * file[begin:end]
        elif kind < 0.74:
            new = _element(draw.choice(TAGS)[0], vr, old, order, explicit)
        elif kind < 0.88:
            other, kin = draw.choice(TAGS)
            new = _element(other, kin, _value(kin, draw), order, explicit) + file[begin:end]
        elif kind < 0.90:
            deep = draw.choice((3, 40, 300))
            undefined = _element(0x00081140, b"SQ", b"", order, explicit, 0xFFFFFFFF) \
                + _element(0xFFFEE000, b"", b"", order, explicit, 0xFFFFFFFF)
            new = undefined * deep + file[begin:end]
        else:
            file = _pixels_changed(file, found, order, explicit, draw, blind)
            continue
        file = (file[:begin] + new + file[end:])[:most]
    return file


def _pixels_changed(file: bytes, found: list[tuple[int, int, bytes, int, int]], order: str, explicit: bool,
                    draw: random.Random, blind: Blind) -> bytes:
    """Changes one fragment of compressed pixels, or native pixels, with their length kept right."""
    pixels = [each for each in found if each[1] == 0x7FE00010]
    if not pixels:
        return file
    fragments = [each for each in found
                 if each[1] == 0xFFFEE000 and each[0] > pixels[0][0] and each[4] not in (0, 0xFFFFFFFF)]
    begin, tag, vr, value, length = draw.choice(fragments or pixels)
    end = min(value + (0 if length == 0xFFFFFFFF else length), len(file))
    new = _element(tag, vr, blind(file[value:end] or b"\0", end - value + 16), order, explicit)
    return file[:begin] + new + file[end:]


# --- NIfTI ----------------------------------------------------------------------------------------------------------

#: Fields of a NIfTI-1 header: offset, format, how many.
_FIELDS = ((0, "i", 1), (40, "h", 8), (70, "h", 2), (76, "f", 8), (108, "f", 1), (112, "f", 2), (123, "B", 1),
           (252, "h", 2), (256, "f", 6), (280, "f", 12), (344, "4s", 1))
_FIELDS_2 = ((0, "i", 1), (4, "8s", 1), (12, "h", 2), (16, "q", 8), (104, "d", 8), (168, "q", 1), (176, "d", 2),
             (344, "i", 2), (352, "d", 6), (400, "d", 12), (500, "i", 1))
_MAGICS = (b"n+1\0", b"ni1\0", b"n+2\0\r\n\x1a\n", b"ni2\0", b"\0" * 8)


def _nifti(flag: int, content: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    if flag % 3 == 2:
        files = fuzz_seeds.unpacked(content, 2)
        if not files:
            return blind(content, most)
        index = draw.randrange(len(files))
        files[index] = _image(files[index], most, draw, blind) if index == 0 else blind(files[index] or b"\0", most)
        return fuzz_seeds.packed(files)
    if content[:2] == b"\x1f\x8b" and draw.random() < 0.85:
        inside = fuzz_seeds.grown(content)
        if inside:
            return gzip.compress(_image(inside, 2**16, draw, blind), 6, mtime=0)
    return _image(content, most, draw, blind)


def _image(file: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    kind = draw.random()
    if kind < 0.06 or len(file) < 352:
        return blind(file or b"\0", most)
    if kind < 0.16:
        return file[: draw.randrange(len(file))]
    if kind < 0.20:
        return file + bytes(draw.choice((1, 16, 1000, 70000)))
    changed = bytearray(file)
    order = "<" if struct.unpack("<i", file[:4])[0] in (348, 540) else ">"
    fields = _FIELDS_2 if 540 in struct.unpack("<i", file[:4]) + struct.unpack(">i", file[:4]) else _FIELDS
    for _ in range(draw.choice((1, 1, 2, 3))):
        offset, form, count = draw.choice(fields)
        size = struct.calcsize(form)
        offset += size * draw.randrange(count)
        if form[-1] == "s":
            changed[offset : offset + size] = draw.choice(_MAGICS)[:size].ljust(size, b"\0")
            continue
        if form in "fd":
            number: Any = draw.choice((*FLOATS, 2.0, 352.0, 544.0, 1000.0, 0.7071))
            if form == "f" and abs(number) > 3.4e38 and abs(number) != float("inf"):
                number = 3e38
        else:
            number = draw.choice((*NUMBERS, 4, 512, 768, 1024, 1280, 128, 2304, 1792))
            half = 0 if form == "B" else 1 << 8 * size - 1
            number = (number + half) % (1 << 8 * size) - half
        changed[offset : offset + size] = struct.pack(order + form, number)
    return bytes(changed)


# --- rasters and archives -------------------------------------------------------------------------------------------

def _planar(flag: int, content: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    if content[:4] == b"\x89PNG" and draw.random() < 0.8:
        return _png(content, draw, blind)
    if content[:2] == b"PK" and draw.random() < 0.8:
        return _zip(flag, content, most, draw, blind)
    if content[:6] == b"\x93NUMPY":
        return _npy(content, most, draw, blind)
    return blind(content, most)


def _png(file: bytes, draw: random.Random, blind: Blind) -> bytes:
    chunks, position = [], 8
    while position + 12 <= len(file):
        length, name = struct.unpack(">I4s", file[position : position + 8])
        chunks.append((name, file[position + 8 : position + 8 + length]))
        position += 12 + length
    if not chunks:
        return file[:4]
    index = draw.randrange(len(chunks))
    name, data = chunks[index]
    if name == b"IDAT" and draw.random() < 0.7:
        data = zlib.compress(blind(fuzz_seeds.grown(data) or b"\0", 4096))
    else:
        data = blind(data or b"\0", len(data) + 16)
    if draw.random() < 0.05:
        name = draw.choice((b"tRNS", b"PLTE", b"gAMA", b"iCCP", b"zTXt", b"acTL"))
    chunks[index] = (name, data)
    if draw.random() < 0.1:
        chunks.insert(draw.randrange(len(chunks)), draw.choice(chunks))
    return file[:8] + b"".join(struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))
                               for name, data in chunks)


def _zip(flag: int, file: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            members = [(info.filename, archive.read(info)[:2**16], info.compress_type) for info in archive.infolist()]
    except Exception:  # damaged by an earlier mutation
        return blind(file, most)
    if not members:
        return blind(file, most)
    index, kind = draw.randrange(len(members)), draw.random()
    name, data, how = members[index]
    if kind < 0.06:
        del members[index]
    elif kind < 0.12:
        name = draw.choice(("train_images.npy", "train_labels.npy", "train_ids.npy", "test_images.npy", "image.npy",
                            "affine.npy", "spacing_mm.npy", "../x.npy", "x.txt", ""))
        members[index] = (name, data, how)
    else:
        members[index] = (name, _npy(data, most, draw, blind), how)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, how in members:
            info = zipfile.ZipInfo(name or "\0")
            info.compress_type = how
            archive.writestr(info, data)
    return buffer.getvalue()


def _npy(data: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    if len(data) < 12 or data[:6] != b"\x93NUMPY" or draw.random() < 0.25:
        return blind(data or b"\0", most)
    length = struct.unpack("<H", data[8:10])[0]
    header, body = data[10 : 10 + length], data[10 + length :]
    kind = draw.random()
    if kind < 0.2:
        body = blind(body or b"\0", len(body) + 8)
    elif kind < 0.4:
        dtype = draw.choice(("<f8", "<f4", "|u1", ">i4", "<c8", "|O", "<U9", "|S3", "|b1", "<f2", "<f16", "<M8[s]",
                             "|V4", "<i8", "(3,)<i2", "x", "[('a','<i4')]", "<u8"))
        header = re.sub(rb"'descr': '[^']*'", f"'descr': '{dtype}'".encode(), header)
    elif kind < 0.75:
        axes = [draw.choice((0, 1, 2, 3, 4, 5, 6, 8, -1, 2**31, 2**63, 2**70)) for _ in range(draw.randrange(6))]
        header = re.sub(rb"'shape': \([^)]*\)", f"'shape': {tuple(axes)}".encode(), header)
    else:
        header = blind(header or b"\0", len(header) + 8)
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + body


# --- text -----------------------------------------------------------------------------------------------------------

def _leaf(draw: random.Random) -> Any:
    return draw.choice((None, True, {}, [], [[]], {"$x": 1}, {"_target_": "os"}, {"a": {"b": []}}, [1, [2]], *NUMBERS,
                        *WORDS, 1e308, -1e308, 0.1))


def _tree(value: Any, draw: random.Random) -> Any:
    """The value with one node replaced, renamed, dropped or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key, kind = draw.choice(sorted(value)), draw.random()
        if kind < 0.08:
            return {name: inner for name, inner in value.items() if name != key}
        if kind < 0.16:
            return value | {str(_leaf(draw)): value[key]}
        return value | {key: _tree(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        index = draw.randrange(len(value))
        return [*value[:index], _tree(value[index], draw), *value[index + (draw.random() < 0.8) :]]
    return _leaf(draw)


def _text(flag: int, content: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    kind = draw.random()
    if content[:1] == b"{" and kind < 0.85:
        try:
            return json.dumps(_tree(json.loads(content), draw), ensure_ascii=draw.random() < 0.7).encode(
                errors="surrogatepass")
        except (ValueError, RecursionError):
            return blind(content, most)
    text = content.decode("utf-8", "surrogateescape")
    words = re.split(r"(\w+|[^\w])", text)
    kind = draw.random()
    if kind < 0.6 and words:
        words[draw.randrange(len(words))] = draw.choice(WORDS)
        return "".join(words).encode("utf-8", "surrogateescape")
    if kind < 0.9:
        lines = text.splitlines(keepends=True) or [""]
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
        if draw.random() < 0.5:
            del lines[draw.randrange(len(lines))]
        return "".join(lines).encode("utf-8", "surrogateescape")
    return blind(content or b"\0", most)


def _checkpoint(flag: int, content: bytes, most: int, draw: random.Random, blind: Blind) -> bytes:
    if flag % 2 == 0 or len(content) < 9:
        return _text(flag, content, most, draw, blind)
    length = min(struct.unpack("<Q", content[:8])[0], len(content) - 8)
    header, body = content[8 : 8 + length], content[8 + length :]
    if draw.random() < 0.2:
        body = blind(body or b"\0", len(body) + 8)
    else:
        header = _text(0, header.rstrip(b" "), most, draw, blind)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header) if draw.random() < 0.95 else draw.choice(NUMBERS) % 2**64) + header + body


#: Reader -> its mutation: (flag, content, largest size, generator, blind mutation) -> content.
_KNOWN = {"dicom": _dicom, "nifti": _nifti, "planar": _planar, "npz": _zip, "tables": _text, "checkpoints": _checkpoint,
          "config": _text}
