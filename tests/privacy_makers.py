"""DICOM series full of things that must not get out, and a search for them in whatever was written."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_makers import save
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

#: Who it is, what study it is of: a derived series keeps these, a synthetic one does not.
OF_THE_PATIENT = {
    "PatientName": "CanaryName^Given", "PatientID": "CANARYID", "PatientBirthDate": "19010203", "PatientAge": "C99Y",
    "AccessionNumber": "CANARYACC", "ReferringPhysicianName": "CanaryReferrer", "StudyDescription": "CanaryStudy",
    "StudyID": "CANARYSTUDYID", "StudyDate": "19020304", "IssuerOfPatientID": "CanaryIssuer",
}
#: Where, by whom and with what: nothing that medgan writes holds any of these.
NOBODYS = {
    "InstitutionName": "CanaryInstitution", "InstitutionAddress": "CanaryStreet", "DeviceSerialNumber": "CANARYSERIAL",
    "StationName": "CANARYSTATION", "OperatorsName": "CanaryOperator", "PatientComments": "CanaryComment",
    "InstitutionalDepartmentName": "CanaryDepartment", "PerformingPhysicianName": "CanaryPerformer",
    "SeriesDescription": "CanarySeries", "ProtocolName": "CanaryProtocol", "ImageComments": "CanaryImageComment",
    "OtherPatientNames": "CanaryOther", "PatientAddress": "CanaryAddress", "PatientTelephoneNumbers": "CANARYPHONE",
    "RequestingPhysician": "CanaryRequester", "Manufacturer": "CanaryMaker", "SoftwareVersions": "CanarySoftware",
    "AcquisitionDate": "19030405", "ContentDate": "19040506", "SeriesDate": "19050607",
    "DeidentificationMethod": "CanaryCleaner", "PerformedProcedureStepDescription": "CanaryStep",
}
PRIVATE, NESTED, DEEP = "CanaryPrivate", "CanaryNested", "CanaryDeep"
#: A derived series names the instances, the study and the frame of reference that it was made from.
UID = "1.2.826.0.1.3680043.10.77777777"
#: What no output about nobody may hold.
CANARIES = (*(text.split("^")[0] for text in OF_THE_PATIENT.values()), *NOBODYS.values(), PRIVATE, NESTED, DEEP,
            "3680043.10.77777777")
#: What not even a derived series may hold.
NEVER = (*(text for keyword, text in NOBODYS.items() if keyword != "DeidentificationMethod"), PRIVATE, NESTED, DEEP)

SHAPE = (40, 36, 10)


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) int16 values of a head-like ball with a bright lesion, and its mask."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    head = (grid**2).sum(axis=0) < 1.1
    values = np.where(head, 400 + 60 * np.sin(5 * grid[0] + seed) + generator.normal(0, 15, SHAPE), 5)
    centre = generator.uniform(-0.3, 0.3, 3)
    away = (grid - centre[:, None, None, None]) / np.array([0.22, 0.24, 0.4])[:, None, None, None]
    lesion = (away**2).sum(axis=0) < 1
    values[lesion] += 260
    return values.astype(np.int16), lesion.astype(np.uint8)


def instances(seed: int, values: np.ndarray, **over: Any) -> list[Any]:
    """An MR series of these values, with canaries in every kind of element."""
    items = []
    for z in range(values.shape[2]):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        fields: dict[str, Any] = {
            **OF_THE_PATIENT, **NOBODYS, "PatientID": f"CANARYID{seed}", "SpecificCharacterSet": "ISO_IR 192",
            "ImageType": ["ORIGINAL", "PRIMARY"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR",
            "SOPInstanceUID": f"{UID}.{seed}.1.{z + 1}", "StudyInstanceUID": f"{UID}.{seed}.2",
            "SeriesInstanceUID": f"{UID}.{seed}.3", "FrameOfReferenceUID": f"{UID}.{seed}.4", "SeriesNumber": 1,
            "InstanceNumber": z + 1, "ImagePositionPatient": [-20.0, -18.0, -15.0 + 3 * z],
            "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], "PixelSpacing": [1.0, 1.0],
            "SliceThickness": 3.0, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
            "Rows": values.shape[1], "Columns": values.shape[0], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "PixelRepresentation": 1,
            "BurnedInAnnotation": "YES", **over,
        }
        with pydicom.config.disable_value_validation():
            for keyword, value in fields.items():
                setattr(item, keyword, value)
            block = item.private_block(0x0009, "CanaryPrivate creator", create=True)
            block.add_new(0x01, "LO", PRIVATE)
            inner = Dataset()
            inner.RequestedProcedureDescription = NESTED
            inner.private_block(0x0011, "CanaryDeep creator", create=True).add_new(0x02, "UN", DEEP.encode())
            item.RequestAttributesSequence = [inner]
            item.add_new("PixelData", "OW", np.ascontiguousarray(values[:, :, z].T).tobytes())
        items.append(item)
    return items


def masked_series(root: Path, names: tuple[str, ...]) -> Path:
    """A data set of DICOM series, each with its mask in a folder of this name."""
    from medgan.imaging.dicom import read_series
    from medgan.imaging.nifti import write_nifti

    for seed, name in enumerate(names, 1):
        values, lesion = scan(seed)
        folder = save(instances(seed, values), root / name / "series")
        [volume] = read_series(folder)
        # The reader's own axes: find the mask in them by reading it as an image.
        marked = save(instances(seed, lesion.astype(np.int16), SeriesInstanceUID=f"{UID}.9.{seed}"), root / "mask")
        [mask] = read_series(marked)
        write_nifti(volume.with_array(mask.array.astype(np.uint8)), root / name / "label.nii.gz")
        for file in marked.iterdir():
            file.unlink()
        marked.rmdir()
    return root


def classed_series(root: Path, names: tuple[str, ...]) -> Path:
    """Class folders of single-slice DICOM series."""
    for seed, name in enumerate(names, 1):
        values, _ = scan(seed)
        save(instances(seed, values[:, :, 4:5]), root / ("odd" if seed % 2 else "even") / name)
    return root


def digests(*folders: Path) -> set[str]:
    """What files of a data set hold, so that copies of them are known again."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts(path: Path) -> Iterator[bytes]:
    """Everything a file holds that could be read as text, decompressed."""
    content = path.read_bytes()
    yield content
    if path.name.endswith(".gz"):
        yield gzip.decompress(content)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                held = archive.read(info)
                # numpy's own texts take four bytes a letter.
                yield from (info.filename.encode(), held, held.replace(b"\0", b""))
    elif path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            image.load()
            yield repr(image.info).encode()
    elif path.suffix == ".dcm":
        with pydicom.config.disable_value_validation():
            yield str(pydicom.dcmread(path)).encode()


def leaks(folder: Path, canaries: tuple[str, ...], originals: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """`file: canary` for all that is found in names and content of files below a folder; copies of originals aside."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in originals:
            continue
        if path.is_dir() and any(each.is_file() for each in path.rglob("*")):
            continue  # judged by its files: an original's folder has the original's name
        held = b"\n".join([str(path.relative_to(folder)).encode(), *(texts(path) if path.is_file() else ())]).lower()
        found += [f"{path.relative_to(folder)}: {canary}" for canary in canaries if canary.lower().encode() in held]
    return found
