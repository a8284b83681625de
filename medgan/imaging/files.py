"""One way in and one way out for every file: the reader is chosen by suffix, or by what a suffixless file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medgan.errors import Refused
from medgan.imaging.archives import refuse_unsafe
from medgan.imaging.checks import first_bytes, refuse_nonfinite
from medgan.imaging.nifti import read_nifti, write_nifti
from medgan.imaging.planar import RASTERS, read_planar, write_planar
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume


@dataclass(frozen=True)
class Asked:
    """How a file is to be read.

    Args:
        channels: Take the fourth axis of a NIfTI file as channels.
        labels: It is a mask: where it must be resampled, no value comes up that was not there.
        rules: How much memory reading may take, and what becomes of irregular series.
    """

    channels: bool = False
    labels: bool = False
    rules: Rules = DEFAULT_RULES


#: Takes a path and how it is to be read.
Reader = Callable[[Path, Asked], list[Volume]]


def _nifti(path: Path, asked: Asked) -> list[Volume]:
    return read_nifti(path, channels=asked.channels, rules=asked.rules)


def _planar(path: Path, asked: Asked) -> list[Volume]:
    return read_planar(path, rules=asked.rules)


def _dicom(path: Path, asked: Asked) -> list[Volume]:
    from medgan.imaging.dicom import read_series

    return read_series(path, rules=asked.rules, labels=asked.labels)


#: Lower-case suffix -> reader; the longest suffix that fits wins.
READERS: dict[str, Reader] = {
    ".nii": _nifti,
    ".nii.gz": _nifti,
    ".hdr": _nifti,
    ".hdr.gz": _nifti,
    ".img": _nifti,
    ".img.gz": _nifti,
    **dict.fromkeys((*RASTERS, ".npy", ".npz"), _planar),
    ".dcm": _dicom,
    ".dcm.gz": _dicom,
    ".dicom": _dicom,
    ".ima": _dicom,
}

#: What files say of themselves that hold made or altered voxels; DICOM series say the same in their description.
SYNTHETIC, DERIVED = "SYNTHETIC - medgan - NOT FOR DIAGNOSIS", "DERIVED - medgan - NOT FOR DIAGNOSIS"

#: Where a DICOM file says that it is one, after its preamble.
_DICOM_MARK = (128, b"DICM")


def read(path: str | Path, *, channels: bool = False, labels: bool = False, rules: Rules = DEFAULT_RULES) -> Volume:
    """Reads exactly one image: a NIfTI, raster or array file, a DICOM file, or a folder with one DICOM series.

    Args:
        path: A file or folder.
        channels: Take the fourth axis of a NIfTI file as channels.
        labels: It is a mask: where it must be resampled, no value comes up that was not there.
        rules: How much memory reading may take, and what becomes of irregular series. `Rules.of(config.data)` is as
            the settings say.

    Returns:
        The image, with whatever was odd about it in `notes`.

    Raises:
        Refused: `SERIES_SPLIT` where there are several series; else whatever is wrong with the file.
    """
    volumes = read_all(path, channels=channels, labels=labels, rules=rules)
    if len(volumes) > 1:
        raise Refused(
            "SERIES_SPLIT", path, f"it holds {len(volumes)} images where one is expected",
            "Give a folder with one series, or read them all with medgan.imaging.files.read_all",
        )
    return volumes[0]


def read_all(path: str | Path, *, channels: bool = False, labels: bool = False,
             rules: Rules = DEFAULT_RULES) -> list[Volume]:
    """Reads every image under a path: one for most files, one for each series of a DICOM folder; arguments as `read`.

    Raises:
        Refused: `FILE_MISSING`, `FILE_FORMAT`, `NO_IMAGES`, or whatever is wrong with the file.
    """
    path = Path(path)
    volumes = _reader(path)(path, Asked(channels, labels, rules))
    if not volumes:
        raise Refused("NO_IMAGES", path, "no image was found", "Give a folder with a DICOM series, or an image file")
    for volume in volumes:
        refuse_nonfinite(volume.array, path)  # the last word, whichever reader it was
    return volumes


def write(volume: Volume, path: str | Path, *, says: str = "") -> None:
    """Writes a volume by suffix: `.nii`, `.nii.gz`, `.png`, `.npy` or `.npz`, whole or not at all.

    Args:
        volume: The image.
        path: The file.
        says: What the file says of itself, such as `SYNTHETIC`: in the header of a NIfTI file, a text chunk of a PNG
            and an array `notice` of an `.npz`. `.npy` has no place for it.

    Raises:
        Refused: `FILE_FORMAT`, or whatever the format cannot hold.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        write_nifti(volume, path, description=says)
    elif name.endswith((".png", ".npy", ".npz")):
        write_planar(volume, path, says=says)
    elif not path.suffix or READERS.get(path.suffix.lower()) is _dicom:
        raise Refused("FILE_FORMAT", path, "a DICOM series must say what it was made from, which a volume does not",
                      "Use medgan.imaging.dicom_write, or write .nii.gz")
    else:
        raise Refused("FILE_FORMAT", path, f"{path.suffix} is not written", "Use .nii.gz, .nii, .png, .npy or .npz")


def suffix_of(path: str | Path) -> str:
    """The longest suffix of the name that has a reader, in lower case, or an empty string."""
    name = Path(path).name.lower()
    return max((suffix for suffix in READERS if name.endswith(suffix)), key=len, default="")


def _reader(path: Path) -> Reader:
    if path.is_dir():
        return _dicom
    suffix = suffix_of(path)
    if suffix:
        return READERS[suffix]
    start = first_bytes(path)
    if start[_DICOM_MARK[0] :].startswith(_DICOM_MARK[1]):
        return _dicom
    refuse_unsafe(path, start)
    raise Refused("FILE_FORMAT", path, "no reader knows this kind of file", f"Use one of {', '.join(READERS)} or DICOM")
