"""Damaged and hostile DICOM files: a refusal with its code, never a crash."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_makers import (
    COLUMNS,
    ROWS,
    codes,
    make_series,
    refusal,
    save,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from medgan.errors import Refused
from medgan.imaging import decoders, decoding, dicom_file
from medgan.imaging.dicom import is_dicom, read_series, template

# --- damaged and hostile files --------------------------------------------------------------------------------------

def _file(tmp_path: Path, item: Any | None = None) -> Path:
    return save([item or make_series()[0]], tmp_path) / "001.dcm"


@pytest.mark.parametrize("name, change, code", [
    ("empty", lambda data: b"", "FILE_EMPTY"),
    ("preamble only", lambda data: data[:132], "FILE_TRUNCATED"),
    ("cut in the header", lambda data: data[:605], "FILE_TRUNCATED"),
    ("cut in the pixels", lambda data: data[:-20], "PIX_TRUNCATED"),
    ("noise after DICM", lambda data: data[:132] + np.random.default_rng(1).bytes(4000), "FILE_NOT_DICOM"),
    ("html", lambda data: b"<html><body>not found</body></html>", "FILE_NOT_DICOM"),
    ("git lfs", lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "FILE_IS_POINTER"),
    ("unknown syntax", lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0"),
     "TS_UNSUPPORTED"),
    ("undefined length", lambda data: data.replace(b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 2 * ROWS * COLUMNS),
                                                   b"\xe0\x7f\x10\0OW\0\0\xff\xff\xff\xff"), "FILE_TRUNCATED"),
])
@pytest.mark.parametrize("alone", [True, False])
def test_damaged_file_is_refused(tmp_path: Path, name: str, change: Callable[[bytes], bytes], code: str,
                                 alone: bool) -> None:
    path = _file(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    assert refusal(path if alone else tmp_path) == code


def test_missing_and_empty_places_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "FILE_MISSING"
    assert refusal(tmp_path) == "NO_IMAGES"
    (tmp_path / ".keep").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("x")
    assert refusal(tmp_path) == "NO_IMAGES"


def test_any_cut_of_a_file_is_refused_or_complete(tmp_path: Path) -> None:
    data = _file(tmp_path).read_bytes()
    path = tmp_path / "cut.dcm"
    for size in range(1, len(data) - 1, 23):
        path.write_bytes(data[:size])
        assert refusal(path) in {"FILE_TRUNCATED", "PIX_TRUNCATED", "PIX_MISSING", "FILE_NOT_DICOM"}


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    data = bytearray(_file(tmp_path).read_bytes())
    random = np.random.default_rng(5)
    path = tmp_path / "damaged.dcm"
    for _ in range(150):
        damaged = bytearray(data)
        for place in random.integers(132, len(data), 6):
            damaged[place] = random.integers(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(Refused):
            read_series(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    deep = b"".join([b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"] * 600)
    data = path.read_bytes()
    place = data.index(b"\x10\0\x10\0PN")
    path.write_bytes(data[:place] + deep + data[place:])
    assert refusal(path) == "FILE_TOO_DEEP"


def test_deflated_bomb_stays_small(tmp_path: Path) -> None:
    item = make_series()[0]
    item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = _file(tmp_path, item)
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    inside = packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS))
    inside += b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    path.write_bytes(data[:start] + inside)
    tracemalloc.start()
    try:
        assert refusal(path) == "LIMIT"
        assert tracemalloc.get_traced_memory()[1] < 5 * dicom_file.INFLATE_SLACK
    finally:
        tracemalloc.stop()


def test_codestream_larger_than_its_header_is_not_decoded(tmp_path: Path) -> None:
    item = make_series()[0]
    item.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = _file(tmp_path, item)
    data = bytearray(path.read_bytes())
    place = data.index(b"\xff\x4f\xff\x51")
    assert decoders.codestream_shape(bytes(data[place:])) == (ROWS, COLUMNS)
    data[place + 8:place + 16] = struct.pack(">2I", 60000, 60000)
    path.write_bytes(bytes(data))
    assert refusal(path) == "PIX_DECODE_FAILED"


def test_codestream_shape_reads_jpeg_frame_headers() -> None:
    tables = b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc4\0\x03x"
    for marker in (b"\xc0", b"\xc3", b"\xf7"):
        assert decoders.codestream_shape(tables + b"\xff" + marker + struct.pack(">HBHHB", 11, 8, 33, 44, 1)) \
            == (33, 44)
    assert decoders.codestream_shape(b"\0" * 64) is None


def test_truncated_rle_that_panics_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    item = make_series()[0]
    item.compress(RLELossless, generate_instance_uid=False)
    path = _file(tmp_path, item)
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<2I", 2, 64))  # two segments, the first after the 64 bytes of the header
    data[place + 8:place + 12] = struct.pack("<I", 60000)
    path.write_bytes(bytes(data))
    assert refusal(path) == "PIX_DECODE_FAILED"
    capfd.readouterr()


def test_an_interrupt_while_decoding_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = make_series()[0]
    item.compress(RLELossless, generate_instance_uid=False)
    path = _file(tmp_path, item)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(decoding._Program, "receive", interrupted)
        read_series(path)
    assert len(read_series(path)) == 1


def test_dicomdir_is_never_followed(tmp_path: Path) -> None:
    save(make_series(), tmp_path)
    index = Dataset()
    record = Dataset()
    record.ReferencedFileID = ["..", "..", "secret"]
    index.DirectoryRecordSequence = [record]
    index.file_meta = FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID, index.file_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2"
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert codes(read_series(tmp_path)) == {"DICOMDIR_IGNORED"}
    assert refusal(tmp_path / "DICOMDIR") == "NO_IMAGES"


# --- small helpers --------------------------------------------------------------------------------------------------

def test_is_dicom_looks_at_the_first_bytes(tmp_path: Path) -> None:
    path = _file(tmp_path)
    assert is_dicom(path)
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    assert is_dicom(bare)
    for name, content in (("text", b"hello " * 50), ("nothing", b""), ("zeros", bytes(400)), ("gz", b"\x1f\x8b" * 90)):
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)
    assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "missing")


def test_template_is_a_header_without_pixels(tmp_path: Path) -> None:
    header = template(save(make_series(), tmp_path))
    assert header.PatientID == "N1" and "PixelData" not in header


def test_header_values_never_reach_a_message(tmp_path: Path) -> None:
    items = make_series()
    for item in items:
        item.PatientName, item.PatientAddress, item.PatientBirthDate = "CANARY^A", "CANARY Street", "CANARY"
    items[1].PixelSpacing = [9, 9]
    save(items, tmp_path)
    with pytest.raises(Refused) as caught:
        read_series(tmp_path)
    assert "CANARY" not in str(caught.value)
