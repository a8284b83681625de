"""Small right files of every kind that medgan reads, made in code, as starting points for `fuzz.py`.

A seed is one byte that says how the rest is stored (a suffix, one file or a folder) and the content. Of a folder the
content is `packed`: each file's length in four bytes, then its bytes.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ROWS, COLUMNS, SLICES = 8, 6, 3
ROOT = "1.2.826.0.1.3680043.10.54321.9"
#: (ROWS, COLUMNS) values of the JPEG below, which no encoder at hand writes.
PLANE = (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) * 37 % 4000).astype(np.uint16)
#: `PLANE` as JPEG lossless, process 14, first-order prediction.
JPEG_LOSSLESS = base64.b64decode(
    "/9j/wwALEAAIAAYBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABggQ/9oACAEBAAEAAMlSpUqW3kqVKlS28lSpUqW3"
    "kqVKlS28lSpUqW3kqVKlS28lSpUqW3kqVKlS/wD/2QA=")


def packed(files: list[bytes]) -> bytes:
    """Several files as one string of bytes."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def unpacked(data: bytes, most: int = 8) -> list[bytes]:
    """What `packed` made; of damaged bytes as much as there is, and of lengths that lie whatever follows."""
    files = []
    while len(data) >= 4 and len(files) < most:
        length = struct.unpack("<I", data[:4])[0]
        files.append(data[4 : 4 + length])
        data = data[4 + length :]
    return files


# --- DICOM ----------------------------------------------------------------------------------------------------------

def dicom() -> list[bytes]:
    """Single files (flag 0) in eleven transfer syntaxes and of several kinds, and folders (flag 1)."""
    from pydicom import uid

    native = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
              uid.DeflatedExplicitVRLittleEndian)
    coded = (uid.RLELossless, uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000)
    files = [_bytes(_slice(0), syntax) for syntax in native]
    files += [_bytes(_coded(_slice(0), syntax), syntax) for syntax in coded]
    files.append(_bytes(_with_frames(_slice(0), [JPEG_LOSSLESS]), uid.JPEGLosslessSV1))
    files.append(_bytes(_baseline(_slice(0)), uid.JPEGBaseline8Bit))
    files += [_bytes(_enhanced()), _bytes(_coded(_enhanced(), uid.RLELossless), uid.RLELossless),
              _bytes(_radiograph()), _bytes(_with_lut(_slice(0))), _bytes(_padded(_slice(0)))]
    whole = _bytes(_slice(0))
    files.append(whole[132:])  # no preamble
    implicit = _bytes(_slice(0), native[1])
    files.append(implicit[144 + struct.unpack("<I", implicit[140:144])[0] :])  # no file meta information either
    series = [_bytes(_slice(z)) for z in range(SLICES)]
    mixed = [_bytes(_slice(z), native[z]) for z in range(SLICES)]
    report = _bytes(_report())
    folders = [series, mixed, [*series[:2], series[1], report, b"text"], [_bytes(_radiograph()), whole, report],
               [_bytes(_slice(z, EchoTime=echo)) for echo in (10, 20) for z in range(2)]]
    return [b"\0" + file for file in files] + [b"\1" + packed(folder) for folder in folders]


def _slice(number: int, **changes: Any) -> Any:
    """A classic CT slice of 16 bits."""
    from pydicom.dataset import Dataset, FileMetaDataset

    item = Dataset()
    item.file_meta = FileMetaDataset()
    fields: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": f"{ROOT}.1.{number + 1}.{len(changes)}"
        + "".join(f".{value}" for value in changes.values()),
        "Modality": "CT", "PatientName": "N", "StudyInstanceUID": f"{ROOT}.2", "SeriesInstanceUID": f"{ROOT}.3",
        "InstanceNumber": number + 1, "FrameOfReferenceUID": f"{ROOT}.4", "SliceThickness": 2.5,
        "ImagePositionPatient": [-10.0, -20.0, -30 + 2.5 * number],
        "ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0], "PixelSpacing": [1.5, 0.75], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": ROWS, "Columns": COLUMNS, "BitsAllocated": 16,
        "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": -1024,
        **changes,
    }
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    item.add_new("PixelData", "OW", (PLANE + number).astype("<u2").tobytes())
    return item


def _bytes(item: Any, syntax: Any = None) -> bytes:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    syntax = syntax or ExplicitVRLittleEndian
    item.file_meta.TransferSyntaxUID = syntax
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    if not syntax.is_little_endian:
        words = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()
        item.add_new("PixelData", "OW", words)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, item, enforce_file_format=True)
    return buffer.getvalue()


def _coded(item: Any, syntax: Any) -> Any:
    from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSNearLossless

    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in (JPEG2000, JPEG2000Lossless):  # whose encoder refuses tiny images
        plane = np.tile(PLANE, (4, 6))
        item.Rows, item.Columns = plane.shape
        item.add_new("PixelData", "OW", plane.astype("<u2").tobytes())
    options = {"j2k_cr": [2.0]} if syntax == JPEG2000 else {"jls_error": 2} if syntax == JPEGLSNearLossless else {}
    item.compress(syntax, generate_instance_uid=False, **options)
    return item


def _with_frames(item: Any, frames: list[bytes]) -> Any:
    from pydicom.encaps import encapsulate

    item.add_new("PixelData", "OB", encapsulate(frames))
    return item


def _baseline(item: Any) -> Any:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((PLANE % 256).astype(np.uint8)).save(buffer, "JPEG")
    item.BitsAllocated, item.BitsStored, item.HighBit = 8, 8, 7
    return _with_frames(item, [buffer.getvalue()])


def _enhanced() -> Any:
    from pydicom.dataset import Dataset

    item = _slice(0)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                    "RescaleIntercept", "SliceThickness"):
        delattr(item, keyword)
    item.SOPClassUID, item.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", SLICES

    def group(**sequences: dict[str, Any]) -> Any:
        result = Dataset()
        for keyword, elements in sequences.items():
            inner = Dataset()
            for name, value in elements.items():
                setattr(inner, name, value)
            setattr(result, keyword, [inner])
        return result

    item.SharedFunctionalGroupsSequence = [group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [1.5, 0.75], "SliceThickness": 2.5})]
    item.PerFrameFunctionalGroupsSequence = [group(
        PlanePositionSequence={"ImagePositionPatient": [-10, -20, 2.5 * z]},
        FrameContentSequence={"TemporalPositionIndex": 1, "StackID": "1"},
        PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 100 * z, "RescaleType": "HU"})
        for z in range(SLICES)]
    item.add_new("PixelData", "OW", b"".join((PLANE + z).astype("<u2").tobytes() for z in range(SLICES)))
    return item


def _radiograph() -> Any:
    item = _slice(0, Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1", SeriesInstanceUID=f"{ROOT}.5",
                  ImagerPixelSpacing=[0.2, 0.1], PhotometricInterpretation="MONOCHROME1", SOPInstanceUID=f"{ROOT}.6")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(item, keyword)
    return item


def _with_lut(item: Any) -> Any:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [16, 0, 16], "HU"
    table.add_new("LUTData", "OW", np.arange(16, dtype="<u2").tobytes())
    del item.RescaleSlope, item.RescaleIntercept
    item.ModalityLUTSequence = [table]
    return item


def _padded(item: Any) -> Any:
    item.add_new("PixelPaddingValue", "US", 37)
    item.add_new("PixelPaddingRangeLimit", "US", 111)
    return item


def _report() -> Any:
    item = _slice(0, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", SOPInstanceUID=f"{ROOT}.7")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(item, keyword)
    return item


# --- NIfTI ----------------------------------------------------------------------------------------------------------

def nifti() -> list[bytes]:
    """`.nii` (flag 0), `.nii.gz` (1), and pairs (2: `packed` header and voxels)."""
    import nibabel

    affine = np.array([[-1.5, 0, 0, 4], [0, 0.75, 0, 5], [0, 0, 2.5, 6], [0, 0, 0, 1]])
    plain = []
    for dtype in (np.int16, np.uint8, np.float32, np.uint16, np.int32, np.float64):
        plain.append(nibabel.Nifti1Image(np.arange(60).reshape(5, 4, 3).astype(dtype), affine))
    plain.append(nibabel.Nifti2Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine))
    plain.append(nibabel.Nifti1Image(np.arange(20, dtype=np.int16).reshape(5, 4), affine))
    plain.append(nibabel.Nifti1Image(np.arange(40, dtype=np.int16).reshape(5, 4, 1, 2), affine))
    only_qform = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
    only_qform.set_qform(affine, 1)
    only_qform.set_sform(None, 0)
    scaled = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
    scaled.header.set_slope_inter(2, -1024)
    big = nibabel.Nifti1Image(np.arange(60, dtype=">i2").reshape(5, 4, 3), affine, nibabel.Nifti1Header(endianness=">"))
    files = [image.to_bytes() for image in (*plain, only_qform, scaled, big)]
    pair = nibabel.Nifti1Pair(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
    with tempfile.TemporaryDirectory() as folder:
        nibabel.save(pair, Path(folder) / "a.img")
        halves = packed([(Path(folder) / "a.hdr").read_bytes(), (Path(folder) / "a.img").read_bytes()])
    packed_too = [b"\1" + gzip.compress(file, mtime=0) for file in files]
    return [*(b"\0" + file for file in files), *packed_too, b"\2" + halves]


# --- rasters and arrays ---------------------------------------------------------------------------------------------

def planar() -> list[bytes]:
    """Flag: which of `fuzz_targets.PLANAR_SUFFIXES`."""
    from PIL import Image

    grey, deep = (PLANE % 256).astype(np.uint8), PLANE
    images = {"L": Image.fromarray(grey), "I;16": Image.fromarray(deep), "1": Image.fromarray(grey > 99),
              "P": Image.fromarray(grey).convert("P"), "RGB": Image.merge("RGB", [Image.fromarray(grey)] * 3),
              "F": Image.fromarray(PLANE.astype(np.float32))}
    kinds = (("PNG", 0, ("L", "I;16", "1", "P", "RGB")), ("TIFF", 1, ("L", "I;16", "1", "P", "F", "RGB")),
             ("JPEG", 2, ("L", "RGB")), ("BMP", 3, ("L", "1", "RGB")))
    seeds = []
    for name, flag, modes in kinds:
        for mode in modes:
            for options in ([{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}]
                            if name == "TIFF" else [{}, {"progressive": True}] if name == "JPEG" else [{}]):
                buffer = io.BytesIO()
                images[mode].save(buffer, name, **options)
                seeds.append(bytes([flag]) + buffer.getvalue())
    arrays = [grey, deep, PLANE.astype(np.float32), np.arange(60, dtype=">i2").reshape(5, 4, 3), grey > 99]
    seeds += [b"\4" + _npy(array) for array in arrays]
    affine = np.diag([1.5, 2, 2.5, 1])
    sets = [{"image": arrays[3], "affine": affine, "spacing_mm": np.array([1.5, 2, 2.5])}, {"image": grey},
            {"x": arrays[2], "spacing_mm": np.array([0.5, 0.5])}]
    return seeds + [b"\5" + _npz(each, save) for each in sets for save in (np.savez, np.savez_compressed)]


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(arrays: dict[str, Any], save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npz() -> list[bytes]:
    """MedMNIST archives; the flag means nothing."""
    images = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    labels = np.array([[0], [1], [0], [1]], dtype=np.uint8)
    split = {f"{name}_{what}": each for name in ("train", "val", "test")
             for what, each in (("images", images), ("labels", labels))}
    sets = [split, {"train_images": images}, {"train_images": images.astype(np.float32), "train_labels": labels[:, 0]},
            {"train_images": images.reshape(4, 5, 3, 2), "train_labels": np.array(["a", "b", "a", "b"]),
             "train_ids": np.array(["p", "q", "r", "s"])}]
    return [b"\0" + _npz(each, save) for each in sets for save in (np.savez, np.savez_compressed)]


# --- tables, run folders, settings ----------------------------------------------------------------------------------

def tables() -> list[bytes]:
    """A manifest (flag 0), a `dataset.json` (1), and a BIDS `participants.tsv` (2), over files that are there."""
    rows = ["id,image,mask,label,patient,split", "a,a.nii.gz,b.nii.gz,1,p1,train", "c,c.nii.gz,b.nii.gz,0,p2,test"]
    manifests = ["\n".join(rows), "\ufeff" + "\r\n".join(rows).replace(",", ";"),
                 "id,image\na,a.nii.gz\nb,a.nii.gz|c.nii.gz",
                 'id,image,label,x\n"a",a.nii.gz,"one, two",\'=1\nb,c.nii.gz,n/a,2']
    decathlon = {"name": "x", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "lesion"}, "numTraining": 1,
                 "training": [{"image": "./a.nii.gz", "label": "./b.nii.gz"}], "test": ["./c.nii.gz"]}
    nnunet = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1, "whole": [1, 2]},
              "numTraining": 2, "file_ending": ".nii.gz"}
    listed = {**nnunet, "dataset": {"a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}}
    people = ["participant_id\tage\tsex", "sub-01\t30\tF", "sub-02\tn/a\tM"]
    return [*(b"\0" + text.encode() for text in manifests),
            *(b"\1" + json.dumps(each).encode() for each in (decathlon, nnunet, listed)),
            b"\2" + "\n".join(people).encode()]


def checkpoints() -> list[bytes]:
    """A run's `config.json` (flag 0) and safetensors (1)."""
    from safetensors.numpy import save

    from medgan.config import Config

    settings = Config.resolve("ct", "image").model_dump(mode="json")
    run = {"medgan": "1", "settings": settings, "interface": {"channels": 1, "size": [32, 32]},
           "dataset": {"name": "x", "path": "phantoms", "fingerprint": "ab"}}
    small = {"medgan": "1", "settings": {"modality": "ct", "task": "lesion"}, "interface": {}, "dataset": {}}
    weights = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    others = {"a": np.ones(4, np.float16), "b": np.arange(3, dtype=np.int64), "c": np.zeros((0, 2), np.float64)}
    return [b"\0" + json.dumps(each).encode() for each in (run, small)] \
        + [b"\1" + save(each, {"medgan": "{}", "numbers": "{}"}) for each in (weights, others)]


def config() -> list[bytes]:
    """A settings file (flag 0) and `--set` arguments, one a line (1)."""
    files = ["[training]\nbatch = 8\nobjective = 'hinge'\n[lesion.training]\nimages = 10\n",
             "seed = 1\n[data]\ncrop = 32\norgans = ['lung', 'liver']\nspacing_mm = 1.5\n[intensity]\n"
             "percentiles = [1, 99]\nknots = [[-1000, -1], [0, 0.5], [1000.0, 1]]\n",
             "data.max_gib = 1e3\nx = 1979-05-27T07:32:00Z\n"]
    settings = ["training.batch=8\nseed=3\ndata.dims=3", "intensity.knots=[[0, -1], [1, 1]]\ntraining.from=runs/x"]
    return [b"\0" + text.encode() for text in files] + [b"\1" + text.encode() for text in settings]


def grown(data: bytes) -> bytes:
    """A deflate stream's content, at most 1 MiB; empty where it is none."""
    try:
        return zlib.decompressobj(31 if data[:2] == b"\x1f\x8b" else 15).decompress(data, 2**20)
    except zlib.error:
        return b""


#: Reader -> maker of its seeds.
SEEDS = {"dicom": dicom, "nifti": nifti, "planar": planar, "npz": npz, "tables": tables, "checkpoints": checkpoints,
         "config": config}
