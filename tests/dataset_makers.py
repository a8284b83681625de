"""Small data sets of every layout, made in code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

SHAPE = (9, 8, 6)
#: Oblique signs and unequal spacings, so that a mistaken axis shows.
AFFINE = np.array([[-0.8, 0, 0, 40], [0, -1.0, 0, 30], [0, 0, 2.5, -10], [0, 0, 0, 1]], dtype=np.float64)


def image(seed: int, dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> NDArray[np.generic]:
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def mask(values: tuple[int, ...] = (1,), dtype: str = "uint8") -> NDArray[np.generic]:
    array = np.zeros(SHAPE, dtype)
    for index, value in enumerate(values):
        array[2 + index : 5 + index, 2:5, 2:4] = value
    return array


def nifti(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
    made.header.set_xyzt_units("mm")
    nibabel.save(made, path)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def described(root: Path, description: object) -> Path:
    text(root / "dataset.json", json.dumps(description))
    return root


def nnunet(root: Path) -> Path:
    for number in (3, 4, 5):
        for channel in range(2):
            nifti(root / f"imagesTr/glioma_{number:04d}_{channel:04d}.nii.gz", image(10 * number + channel))
        nifti(root / f"labelsTr/glioma_{number:04d}.nii.gz", mask((1, 2)))
    for channel in range(2):
        nifti(root / f"imagesTs/glioma_0009_{channel:04d}.nii.gz", image(90 + channel))
    return described(root, {
        "channel_names": {"0": "FLAIR", "1": "T1c"}, "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2], "numTraining": 3, "file_ending": ".nii.gz", "name": "gliomas",
        "licence": "CC0", "reference": "made in code",
    })  # fmt: skip


def nnunet_png(root: Path) -> Path:
    from PIL import Image

    for number in range(2):
        pixels, marked = image(number, "uint8", (5, 7)), image(9, "uint8", (5, 7)) % np.uint8(2)
        for name, array in ((f"imagesTr/chest_{number}_0000.png", pixels), (f"labelsTr/chest_{number}.png", marked)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / name)
    return described(root, {"channel_names": {"0": "X-ray"}, "labels": {"background": 0, "nodule": 1}, "numTraining": 2,
                            "file_ending": ".png"})


def decathlon(root: Path) -> Path:
    pairs = []
    for number in (7, 26):
        nifti(root / f"imagesTr/ms_{number:02d}.nii.gz", image(number, "float32", (*SHAPE, 2)))
        nifti(root / f"labelsTr/ms_{number:02d}.nii.gz", mask())
        pairs.append({"image": f"./imagesTr/ms_{number:02d}.nii.gz", "label": f"./labelsTr/ms_{number:02d}.nii.gz"})
    nifti(root / "imagesTs/ms_99.nii.gz", image(99, "float32", (*SHAPE, 2)))
    return described(root, {
        "name": "ms", "modality": {"0": "FLAIR", "1": "T2"}, "labels": {"0": "background", "1": "lesion"},
        "tensorImageSize": "4D", "numTraining": 2, "numTest": 1, "training": pairs, "test": ["./imagesTs/ms_99.nii.gz"],
    })  # fmt: skip


def bids(root: Path) -> Path:
    for subject, session in (("01", "1"), ("01", "2"), ("02", "1")):
        front = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
        for number, suffix in enumerate(("FLAIR", "T1w")):
            nifti(root / f"{front}_{suffix}.nii.gz", image(int(subject + session) + 50 * number))
        text(root / f"{front}_FLAIR.json", '{"EchoTime": 0.1}')
        nifti(root / f"derivatives/readers/{front}_desc-lesion_mask.nii.gz", mask())
        nifti(root / f"derivatives/readers/{front}_desc-brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
    text(root / "participants.tsv", "participant_id\tage\nsub-01\t40\nsub-02\t50\n")
    text(root / "derivatives/readers/dataset_description.json", '{"Name": "readers", "BIDSVersion": "1.8.0"}')
    text(root / "dataset_description.json", '{"Name": "two", "BIDSVersion": "1.8.0", "License": "CC0"}')
    return root


def manifest(root: Path) -> Path:
    for name in "abc":
        for channel in range(2):
            nifti(root / f"scans/{name}{channel}.nii.gz", image(ord(name) + channel, "uint8"))
        nifti(root / f"masks/{name}.nii.gz", mask((1, 3)))
    rows = [f"{n},scans/{n}0.nii.gz|scans/{n}1.nii.gz,masks/{n}.nii.gz,{c},{p},{s},{a}"
            for n, c, p, s, a in (("a", "ill", "p1", "train", "61"), ("b", "well", "p2", "train", "47"),
                                  ("c", "ill", "p3", "test", "-5"))]
    text(root / "manifest.csv", "\n".join(["id,image,mask,label,patient,split,age", *rows, ""]))
    return root


def npz(root: Path) -> Path:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 5, 7), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    np.savez(root / "chestmnist.npz", **arrays)
    return root


def npz3d(root: Path) -> Path:
    root.mkdir(parents=True)
    rng = np.random.default_rng(1)
    np.savez_compressed(root / "organmnist3d.npz", train_images=rng.random((4, 5, 6, 7), dtype=np.float32),
                        train_labels=np.array([0, 1, 0, 11]))
    return root


def pairs(root: Path) -> Path:
    for name in ("one", "two"):
        nifti(root / name / "image.nii.gz", image(len(name) + ord(name[0])))
        nifti(root / name / "label.nii.gz", mask((2,)))
    return root


def pair(root: Path) -> Path:
    nifti(root / "image.nii.gz", image(1, "float64"))
    nifti(root / "mask.nii.gz", mask())
    return root


def classes(root: Path) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for kind in ("NORMAL", "PNEUMONIA"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = image(len(split) * 7 + len(kind) + number, "uint8", (5, 7))
                Image.fromarray(pixels).save(folder / f"im{number}.png")
    return root


def class_volumes(root: Path) -> Path:
    nifti(root / "ill" / "person1_a.nii.gz", image(1))
    nifti(root / "ill" / "person1_b.nii.gz", image(2))
    np.save(nifti(root / "well" / "person2_a.nii.gz", image(3)).with_name("person3_a.npy"), image(4, "float32"))
    return root


def class_dicom(root: Path) -> Path:
    for seed, name in enumerate(("ill/a", "ill/b", "well/c", "well/d"), start=1):
        folder = dicom_series(root / f".{seed}", seed, f"P{seed}", slices=1)
        (root / name).parent.mkdir(exist_ok=True)
        (folder / "000.dcm").rename(root / f"{name}.dcm")
        folder.rmdir()
    return root


def images(root: Path) -> Path:
    for name in ("a", "b"):
        nifti(root / f"{name}.nii.gz", image(ord(name)))
        nifti(root / f"{name}_mask.nii.gz", mask())
    return root


def dicom_series(folder: Path, seed: int, patient: str, *, slices: int = 4) -> Path:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    voxels = image(seed, "int16", (slices, 6, 8))
    root = f"1.2.826.0.1.3680043.8.498.{seed}"
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{root}.3.{index}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{root}.3.{index}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = f"{root}.1", f"{root}.2", f"{root}.4"
        data.PatientID, data.PatientName, data.Modality = patient, "Canary^Name", "CT"
        data.ImageType, data.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], index + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [-3.0, -2.0, 2.5 * index], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [0.7, 0.7], 2.5
        data.Rows, data.Columns, data.SamplesPerPixel = 6, 8, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = voxels[index].tobytes()
        pydicom.dcmwrite(folder / f"{index:03d}.dcm", data, enforce_file_format=True)
    return folder


def dicom(root: Path) -> Path:
    for seed, (series, patient) in enumerate((("s1", "CANARY-A"), ("s2", "CANARY-B"), ("s3", "CANARY-A")), start=1):
        folder = dicom_series(root / series, seed, patient)
        array = np.zeros((8, 6, 4), np.uint8)
        array[2:5, 2:4, 1:3] = 1
        nifti(folder / "mask.nii.gz", array,
              np.array([[-0.7, 0, 0, 3.0], [0, -0.7, 0, 2.0], [0, 0, 2.5, 0], [0, 0, 0, 1.0]]))
    return root


def tree(root: Path) -> dict[str, str]:
    """Relative path -> hash of every file below a folder."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}
