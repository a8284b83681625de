"""Reading takes no more memory than the rules allow, whatever a file claims; what its pixels need is counted whole."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_makers import make_series, save
from PIL import Image
from pydicom import Dataset as Header
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from medgan import inspect, upsample
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.imaging import decoding, files
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume

MIB = 2**20
#: What Python takes beside the pixels: pieces of a few MiB, and code that is loaded on first use.
MARGIN = 48 * MIB


@dataclass
class Peak:
    """The most memory that was taken since it was made, by this process and the decoding program together."""

    def __post_init__(self) -> None:
        # What was freed before must not make room unseen.
        decoding.close_all()
        _reset("self")
        self.before = _now("self", "VmRSS")

    def grown(self) -> int:
        """In bytes."""
        theirs = sum(_now(str(program.process.pid), "VmHWM") for program in decoding._idle)
        return _now("self", "VmHWM") - self.before + theirs


def _reset(pid: str) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        _now(pid, "VmHWM")
    except (OSError, ValueError):
        pytest.skip("this system does not tell how much memory was taken")


def _now(pid: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def _nifti(folder: Path, shape: tuple[int, ...], stored: int, dtype: Any = np.int16, name: str = "a.nii.gz",
           slope: float = 1.0) -> Path:
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, slope, 0
    path = folder / name
    opened = gzip.GzipFile(path, "wb", 6) if name.endswith(".gz") else path.open("wb")
    with opened as file:
        first = np.ones(1, dtype).tobytes()
        file.write(bytes(header.binaryblock) + b"\0" * 4 + first)
        for start in range(len(first), stored, MIB):
            file.write(bytes(min(MIB, stored - start)))
    return path


def _npy(folder: Path, array: np.ndarray[Any, Any], name: str) -> Path:
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, array)
    else:
        np.savez_compressed(path, image=array)
    return path


def _raster(folder: Path, name: str, side: int, mode: str = "L") -> Path:
    image = Image.new(mode, (side, side))
    image.paste((99, 99, 99) if mode == "RGB" else 99, (0, 0, 8, 8))
    image.save(folder / name)
    return folder / name


def _dicom(folder: Path, side: int, syntax: str | None = None, frames: int = 1, **elements: Any) -> Path:
    item: Header = make_series()[0]
    pixels = np.zeros((frames, side, side), np.int16)
    pixels[:, 0, 0] = 1000
    item.Rows = item.Columns = side
    item.PixelData = pixels.tobytes()
    if frames > 1:
        item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
        item.NumberOfFrames = frames
    if syntax == DeflatedExplicitVRLittleEndian:
        item.file_meta.TransferSyntaxUID = syntax
    elif syntax:
        item.compress(syntax, generate_instance_uid=False)
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return save([item], folder)


#: Name -> (file, what reading it may take in MiB: less is refused, and this much is enough).
HONEST: dict[str, tuple[Callable[[Path], Path], int]] = {
    "zeros in gzip": (lambda f: _nifti(f, (512, 512, 100), 2 * 512 * 512 * 100), 100),
    "bytes scaled to floats": (lambda f: _nifti(f, (512, 512, 64), 512 * 512 * 64, np.uint8, "a.nii", 0.5), 80),
    "doubles": (lambda f: _nifti(f, (256, 256, 64), 8 * 256 * 256 * 64, np.float64, "a.nii"), 48),
    "columns first": (lambda f: _npy(f, np.asfortranarray(np.eye(2048)), "a.npy"), 64),
    "array in an archive": (lambda f: _npy(f, np.eye(3000), "a.npz"), 69),
    "grey png": (lambda f: _raster(f, "a.png", 4096), 80),
    "jpeg": (lambda f: _raster(f, "a.jpg", 4096), 80),
    "grey stored as colour": (lambda f: _raster(f, "a.tif", 2048, "RGB"), 112),
    "one large slice": (lambda f: _dicom(f, 4096), 96),
    "deflated": (lambda f: _dicom(f, 3072, DeflatedExplicitVRLittleEndian), 91),
    "run lengths": (lambda f: _dicom(f, 2048, RLELossless), 121),
    "wavelets": (lambda f: _dicom(f, 1024, JPEG2000Lossless), 31),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_files_stay_under_what_they_may_take(tmp_path: Path, name: str) -> None:
    make, mebibytes = HONEST[name]
    path = make(tmp_path)
    peak = Peak()
    volume = files.read(path, rules=Rules(mebibytes * MIB))
    assert float(volume.array.max()) > 0
    # The program itself, without the image, is not counted: it takes the same for the smallest one.
    interpreter = 40 * MIB if decoding._idle else 0
    assert peak.grown() < mebibytes * MIB + MARGIN + interpreter
    del volume
    peak = Peak()
    with pytest.raises(Refused) as refused:
        files.read(path, rules=Rules(mebibytes * MIB * 9 // 10))
    assert refused.value.code == "LIMIT"
    assert peak.grown() < MARGIN + interpreter


def _member_that_lies(folder: Path) -> Path:
    """An archive whose list says that little is much."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": (4096, 4096)})
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", data.getvalue() + bytes(1000))
    content = bytearray((folder / "a.npz").read_bytes())
    place = content.rindex(b"PK\1\2") + 24
    content[place : place + 4] = struct.pack("<I", 4096 * 4096 * 8 + len(data.getvalue()))
    (folder / "a.npz").write_bytes(content)
    return folder / "a.npz"


def _endless_header(folder: Path) -> Path:
    """An array's header of 4 GiB, which a bomb of a megabyte would give."""
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31 - 1))
        for _ in range(256):
            file.write(b" " * MIB)
    return path


def _png(folder: Path, side: int, lines: int) -> Path:
    """A PNG of which only some lines are there."""
    packer = zlib.compressobj(9)
    data = b"".join([*(packer.compress(bytes(side + 1)) for _ in range(lines)), packer.flush()])

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return folder / "a.png"


def _wavelets_that_lie(folder: Path) -> Path:
    """A JPEG 2000 slice whose codestream has the right size, and tiles that begin far away."""
    path = _dicom(folder, 64, JPEG2000Lossless)
    [file] = path.iterdir()
    content = bytearray(file.read_bytes())
    place = content.index(b"\xff\x4f\xff\x51") + 8
    values = list(struct.unpack_from(">8I", content, place))
    struct.pack_into(">8I", content, place, 2**31 + 64 - 1, 2**31 + 64 - 1, 2**31 - 1, 2**31 - 1, *values[4:])
    file.write_bytes(content)
    return path


GIB_OF_RULES = Rules(1024 * MIB)

#: Name -> (file, rules, codes that are right); none may take more than a few MiB.
LIES: dict[str, tuple[Callable[[Path], Path], Rules, set[str]]] = {
    "400 MB of zeros in 390 kB": (
        lambda f: _nifti(f, (1000, 1000, 400), 400 * 10**6, np.uint8), Rules(256 * MIB), {"LIMIT"}),
    "70 TB": (lambda f: _nifti(f, (32767, 32767, 32767), 128, name="a.nii"), DEFAULT_RULES, {"LIMIT_OR_TRUNCATED"}),
    "more than gzip can hold": (lambda f: _nifti(f, (1000, 1000, 200), 10**5), GIB_OF_RULES, {"FILE_TRUNCATED"}),
    "zeros behind": (lambda f: _nifti(f, (8, 8, 8), 300 * 10**6), DEFAULT_RULES, {"FILE_TRAILING_DATA"}),
    "an archive's list": (_member_that_lies, GIB_OF_RULES, {"FILE_TRUNCATED", "FILE_CORRUPT"}),
    "an endless header": (_endless_header, GIB_OF_RULES, {"FILE_CORRUPT"}),
    "a png of 1 Gpx": (lambda f: _png(f, 32768, 2), GIB_OF_RULES, {"LIMIT"}),
    "a png of few lines": (lambda f: _png(f, 12000, 2), GIB_OF_RULES, {"FILE_TRUNCATED"}),
    "frames": (lambda f: _dicom(f, 64, RLELossless, NumberOfFrames=2**31 - 1), DEFAULT_RULES, {"LIMIT_OR_TRUNCATED"}),
    "a matrix of 8 GB": (
        lambda f: _dicom(f, 64, RLELossless, Rows=65535, Columns=65535), GIB_OF_RULES, {"LIMIT", "LIMIT_OR_TRUNCATED"}),
    "wavelets far away": (_wavelets_that_lie, Rules(64 * MIB), {"PIX_DECODE_FAILED", "LIMIT"}),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_cost_next_to_nothing(tmp_path: Path, name: str) -> None:
    make, rules, codes = LIES[name]
    path = make(tmp_path)
    peak = Peak()
    with pytest.raises(Refused) as refused:
        files.read(path, rules=rules)
    assert refused.value.code in codes
    assert peak.grown() < MARGIN + (40 * MIB if decoding._idle else 0)


def test_rows_of_an_archive_share_what_may_be_taken(tmp_path: Path) -> None:
    """Arrays of the splits make room for each other where they do not fit together."""
    size = 24 * MIB
    shape = (size // 512**2, 512, 512)
    images = np.zeros(shape, np.uint8)
    images[:, 0, 0] = 1
    labels = np.zeros(shape[0], np.uint8)
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **{f"{split}_{what}": values for split in ("train", "val", "test")
                                 for what, values in (("images", images), ("labels", labels))})  # type: ignore[arg-type]
    dataset = open_dataset(path, Rules(30 * MIB))
    cases = [next(case for case in dataset.cases if case.split == split) for split in ("train", "val", "test")]
    peak = Peak()
    for case in (*cases, *cases):
        assert dataset.load(case)[0].array.max() == 1
    assert peak.grown() < 30 * MIB + MARGIN // 2
    with pytest.raises(Refused, match="LIMIT"):
        open_dataset(path, Rules(size - 1))


def test_channels_of_a_case_share_what_may_be_taken(tmp_path: Path) -> None:
    volume = Volume(np.random.default_rng(0).integers(0, 99, (1, 64, 64, 16)).astype(np.int16))
    for channel in "01":
        files.write(volume, tmp_path / "set" / "imagesTr" / f"a_000{channel}.nii.gz")
    (tmp_path / "set" / "dataset.json").write_text(
        '{"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0}, "file_ending": ".nii.gz", '
        '"numTraining": 1}')
    enough = 4 * volume.array.nbytes
    dataset = open_dataset(tmp_path / "set", Rules(enough))
    assert dataset.load(dataset.cases[0])[0].channels == 2
    less = open_dataset(tmp_path / "set", Rules(enough - 1))
    with pytest.raises(Refused, match="LIMIT"):
        less.load(less.cases[0])


def test_settings_reach_the_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    files.write(Volume(np.random.default_rng(0).normal(size=(1, 16, 16, 8)).astype(np.float32)), path)
    config = tmp_path / "small.toml"
    config.write_text("[data]\nmax_gib = 0.000001\n", encoding="utf-8")
    small = ["data.max_gib=0.000001"]
    ways: list[dict[str, Any]] = [{"settings": small}, {"config": config}, {"settings": {"data.max_gib": 1e-6}}]
    for options in ways:
        assert inspect(path, **options).codes == ("LIMIT",)
    assert inspect(path).status == "ok"
    with pytest.raises(Refused, match="CFG_VALUE"):
        inspect(path, settings=["training.batch=2"])
    with pytest.raises(Refused, match="LIMIT"):
        upsample(path, method="linear", settings=small)
    assert upsample(path, factor=(1, 1, 2), method="linear", settings=["data.max_gib=1"]).shape == (16, 16, 16)
