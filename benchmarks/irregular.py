"""Where readers put a ball of known place that was scanned by tilted and unevenly spaced slices.

    python benchmarks/irregular.py [--seeds 5]

A ball of 17 mm radius lies at a random place in series of CT slices (0.9 x 1.2 mm pixels) that are sheared against
their normal, unevenly spaced, or both. Told are, over the seeds, the mean distance in mm from the ball's centre to the
centroid of its image, the mean Dice of what lies above half of its contrast, and whether the reader said a word. Each
reader is used as its documentation shows; medgan with `data.irregular=resample`, since it refuses otherwise.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset

ROWS, COLUMNS, PIXEL, RADIUS, AIR, BALL = 64, 72, (1.2, 0.9), 17.0, -1000, 400
UNEVEN = np.concatenate([np.arange(0, 35, 2.5), np.arange(35, 71, 5.0)])
EVEN = np.arange(0, 71, 2.5)
WAYS = {"tilted by 10 degrees": (EVEN, 10.0), "tilted by 20 degrees": (EVEN, 20.0), "2.5, then 5 mm": (UNEVEN, 0.0),
        "2.5, then 5 mm, tilted by 15 degrees": (UNEVEN, 15.0)}

#: Values (X, Y, Z) and affine to LPS mm.
Seen = tuple[NDArray[Any], NDArray[np.float64]]


def write(folder: Path, along: NDArray[np.float64], degrees: float, centre: NDArray[np.float64]) -> None:
    """Writes the series; the slices are axial and slide along y."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    for number, z in enumerate(along):
        place = np.array([0.0, np.tan(np.radians(degrees)) * (z - along[-1] / 2), z])
        points = place + np.stack([columns * PIXEL[1], rows * PIXEL[0], np.zeros(rows.shape)], axis=-1)
        depth = RADIUS - np.linalg.norm(points - centre, axis=-1)
        pixels = np.rint(AIR + (BALL - AIR) * np.clip(depth / 2 + 0.5, 0, 1)).astype(np.int16)
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = f"1.2.826.0.1.3680043.10.54321.1.{number + 1}"
        for keyword, value in {
            "Modality": "CT", "PatientID": "ball", "StudyInstanceUID": "1.2.826.0.1.3680043.10.54321.2",
            "SeriesInstanceUID": "1.2.826.0.1.3680043.10.54321.3", "InstanceNumber": number + 1,
            "FrameOfReferenceUID": "1.2.826.0.1.3680043.10.54321.4", "ImagePositionPatient": [float(x) for x in place],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": list(PIXEL), "SliceThickness": 2.5,
            "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": ROWS, "Columns": COLUMNS,
            "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1,
            "RescaleIntercept": 0,
        }.items():
            setattr(item, keyword, value)
        item.add_new("PixelData", "OW", pixels.tobytes())
        item.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


def medgan(folder: Path) -> Seen:
    from medgan.imaging.dicom import read_series
    from medgan.imaging.rules import Rules

    [volume] = read_series(folder, Rules(irregular="resample"))
    assert any(note.code == "GEOM_RESAMPLED" for note in volume.notes)
    return volume.array[0], np.diag([-1.0, -1, 1, 1]) @ volume.affine


def simpleitk(folder: Path) -> Seen:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, affine


def monai(folder: Path) -> Seen:
    from monai.transforms import LoadImage

    image = LoadImage(reader="PydicomReader", image_only=True)(str(folder))
    return image.numpy(), np.diag([-1.0, -1, 1, 1]) @ image.affine.numpy()


def highdicom(folder: Path) -> Seen:
    from highdicom import get_volume_from_series

    volume = get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    return np.asarray(volume.array), np.asarray(volume.affine)


READERS: dict[str, Callable[[Path], Seen]] = {"medgan": medgan, "SimpleITK": simpleitk, "MONAI PydicomReader": monai,
                                              "highdicom": highdicom}


def measured(seen: Seen, centre: NDArray[np.float64]) -> tuple[float, float]:
    """Distance of the ball's centroid from its centre in mm, and Dice."""
    array, affine = seen
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    weight = array.astype(float) - AIR
    centroid = (points * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    found, truth = array > (AIR + BALL) / 2, np.linalg.norm(points - centre, axis=-1) < RADIUS
    return float(np.linalg.norm(centroid - centre)), float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def said(read: Callable[[Path], Seen], folder: Path) -> tuple[Seen | None, str]:
    """What a reader sees, and what it says on stderr meanwhile, natively or as a warning; its refusal, if any."""
    with tempfile.TemporaryFile() as heard:
        kept = os.dup(2)
        os.dup2(heard.fileno(), 2)
        seen, refusal = None, ""
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                seen = read(folder)
        except Exception as error:
            refusal = f"refused: {error}"
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        heard.seek(0)
        words = [refusal, heard.read().decode(errors="replace"), *(str(warning.message) for warning in warned)]
    return seen, " ".join(word.strip() for word in words if "niform" in word or "spac" in word or "refused" in word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    logging.disable()
    print("| series | reader | centre off by, mm | Dice | said |\n|---|---|---|---|---|")
    for way, (along, degrees) in WAYS.items():
        for name, read in READERS.items():
            found, words = [], ""
            for seed in range(seeds):
                random = np.random.default_rng(seed)
                centre = np.array([COLUMNS * PIXEL[1] / 2, ROWS * PIXEL[0] / 2, 35]) + random.uniform(-8, 8, 3)
                with tempfile.TemporaryDirectory() as folder:
                    write(Path(folder), along, degrees, centre)
                    seen, words = said(read, Path(folder))
                if seen is not None:
                    found.append(measured(seen, centre))
            off, dice = (f"{value:.2f}" for value in np.mean(found, axis=0)) if found else ("", "")
            print(f"| {way} | {name} | {off} | {dice} | {' '.join(words.split())[-90:]} |")


if __name__ == "__main__":
    main()
