"""Writing DICOM: a synthetic series about nobody, or a derived series of a real patient.

Both are classic single-frame series of 16-bit images that say in five places that their voxels were generated. The
bytes depend on nothing but the arguments: UIDs are hashed from them, and no clock is read.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from medgan.errors import Refused
from medgan.imaging.dicom import find_series
from medgan.imaging.dicom_geometry import Stack, arrange
from medgan.imaging.dicom_header import integer, text
from medgan.imaging.dicom_kept import keep, modality_of, reference
from medgan.imaging.dicom_storage import Storage, number_of, storage_for, stored_as
from medgan.imaging.rules import Rules
from medgan.imaging.volume import Volume
from medgan.storage import atomic_folder, sync

#: What every generated series is called, so that no one reads it as a patient's scan.
SERIES_DESCRIPTION = "SYNTHETIC - medgan - NOT FOR DIAGNOSIS"
DERIVED_DESCRIPTION = "DERIVED - medgan - NOT FOR DIAGNOSIS"
#: Added to the series number of the source, so that the derived series does not hide it.
DERIVED_SERIES = 1000
#: The largest number that an integer string (IS) may hold.
LARGEST_NUMBER = 2**31 - 1
PATIENT_NAME = "SYNTHETIC^MEDGAN"
PATIENT_ID = "MEDGAN-SYNTHETIC"
#: A scalar product of unit directions above this is shear, which DICOM cannot write.
SHEAR_TOLERANCE = 2e-3
#: What the system says where a folder cannot be renamed because of what has its name.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)

_CT, _MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
_CR, _CAPTURE = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.7"


def write_synthetic(volume: Volume, folder: Path, *, model_hash: str, seed: int, derivation: str) -> list[Path]:
    """Writes a volume as a series about nobody: new UIDs, a fixed synthetic patient, nothing from any source.

    Whole numbers that span at most 16 bits come back exactly. Other values are quantised to 65,536 levels over
    their range: the error is at most half a level.

    Args:
        volume: One channel, (1, X, Y) or (1, X, Y, Z). `ct` becomes CT images, `mr` MR images, a 2D `xray` Computed
            Radiography, everything else Secondary Capture of its modality (Ultrasound objects hold 8 bits only).
            Slices are numbered along the third axis; a 2D `xray` or `us` image has spacing but no place.
        folder: Where to write; made whole or not at all. It may exist if it is empty.
        model_hash: Names the model that made the voxels.
        seed: The seed it was made with.
        derivation: How it was made, for people (Derivation Description).

    Returns:
        The files, in slice order.

    Raises:
        Refused: `OUT_EXISTS`, `INPUT_KIND` (more than one channel), `PIX_NONFINITE` or `GEOM_SHEAR`.
    """
    _check(volume, folder)
    uids = _Uids(volume, model_hash, seed, derivation)
    sop_class, modality = _kind(volume)
    common = _common(volume, uids, sop_class, modality, model_hash, derivation)
    _set(common, PatientName=PATIENT_NAME, PatientID=PATIENT_ID, PatientBirthDate="", PatientSex="",
         StudyInstanceUID=uids.of("study"), StudyDate="", StudyTime="", StudyID="", AccessionNumber="",
         ReferringPhysicianName="", SeriesDescription=SERIES_DESCRIPTION)
    return _write(_slices(volume, common, uids, storage_for(volume.array[0], modality)), folder)


def write_derived(volume: Volume, folder: Path, *, source: Path, derivation: str, model_hash: str, seed: int,
                  series: int | None = None) -> list[Path]:
    """Writes a volume made from a real scan: same patient, study and frame of reference, new series.

    Every slice names the source slices around it. Where the source had to be resampled (`data.irregular=resample`), the
    derivation says so first. Private elements, devices and institutions are not copied.

    Args:
        volume: One channel, as in `write_synthetic`; its affine gives the geometry.
        folder: Where to write; made whole or not at all.
        source: The DICOM file or folder it was made from.
        derivation: How it was made, for people.
        model_hash: Names the model that made the voxels.
        seed: The seed it was made with.
        series: Which of the volumes of `read_series(source)` it was made from. Default: the one whose field of view
            is nearest.

    Returns:
        The files, in slice order.

    Raises:
        Refused: As `write_synthetic` and `read_series`.
    """
    _check(volume, folder)
    # Whoever has a volume of a tilted or uneven series has asked for it; here only the places of its slices count.
    stacks = [stack for found in find_series(source) for stack in arrange(found, Rules(irregular="resample"))]
    stack = _nearest(stacks, volume) if series is None else stacks[series]
    origin = stack.frames[0].instance
    derivation = "; ".join([*(note.why for note in stack.notes if note.code == "GEOM_RESAMPLED"), derivation])
    uids = _Uids(volume, model_hash, seed, derivation, text(origin.header, "SOPInstanceUID"))
    sop_class, modality = _kind(volume)
    if sop_class == _CAPTURE:
        modality = modality_of(origin.modality, modality)
    common = _common(volume, uids, sop_class, modality, model_hash, derivation)
    _set(common, PatientName="", PatientID="", PatientBirthDate="", PatientSex="", StudyDate="", StudyTime="",
         StudyID="", AccessionNumber="", ReferringPhysicianName="", StudyInstanceUID=uids.of("study"))
    if "PatientPosition" in common:
        common.PatientPosition = ""  # not known unless the source says so
    keep(origin.header, common)
    number = integer(origin.header, "SeriesNumber", 0)
    _set(common, SeriesDescription=DERIVED_DESCRIPTION,
         SeriesNumber=DERIVED_SERIES + (number if 0 <= number <= LARGEST_NUMBER - DERIVED_SERIES else 0))
    storage = stored_as(volume.array[0], stack) or storage_for(volume.array[0], modality)
    slices = _slices(volume, common, uids, storage)
    for number, item in enumerate(slices):
        if named := _sources(stack, volume, number):
            item.SourceImageSequence = named
    return _write(slices, folder)


class _Uids:
    """UIDs of the form `2.25.`, hashed from content and seed, so that the same input gives the same ones."""

    def __init__(self, volume: Volume, *parts: str | int) -> None:
        digest = hashlib.sha256(repr((volume.modality, volume.array.shape, str(volume.array.dtype), parts)).encode())
        digest.update(np.ascontiguousarray(volume.affine).tobytes())
        # Plane by plane, so that no second copy of the volume is made.
        for plane in np.moveaxis(volume.array[0], -1, 0):
            digest.update(np.ascontiguousarray(plane).tobytes())
        self._seed = digest.digest()

    def of(self, purpose: str) -> str:
        """The UID of one purpose."""
        digest = hashlib.sha256(self._seed + purpose.encode()).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def _check(volume: Volume, folder: Path) -> None:
    where = volume.source or "array"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused("OUT_EXISTS", folder, "it exists and is not an empty folder", "Give another output folder")
    if volume.channels != 1:
        raise Refused("INPUT_KIND", where, f"{volume.channels} channels cannot be written as one DICOM series",
                      "Write each channel on its own")
    if not np.isfinite([volume.array.min(), volume.array.max()]).all():
        raise Refused("PIX_NONFINITE", where, "values that are not finite cannot be written", "Replace them first")
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if np.abs(directions.T @ directions - np.eye(3)).max() > SHEAR_TOLERANCE:
        raise Refused("GEOM_SHEAR", where, "DICOM cannot write a sheared affine", "Resample to a straight grid")


def _kind(volume: Volume) -> tuple[str, str]:
    """The SOP class and the DICOM modality of a volume."""
    if volume.modality == "ct":
        return _CT, "CT"
    if volume.modality == "mr":
        return _MR, "MR"
    if volume.modality == "xray":
        return (_CR, "CR") if volume.dims == 2 else (_CAPTURE, "DX")
    return _CAPTURE, "US" if volume.modality == "us" else "OT"


def _set(data_set: Dataset, **values: Any) -> None:
    for keyword, value in values.items():
        setattr(data_set, keyword, value)


def _version() -> str:
    try:
        return importlib.metadata.version("medgan")
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return "source"


def _common(volume: Volume, uids: _Uids, sop_class: str, modality: str, model_hash: str, derivation: str) -> Dataset:
    """What all slices of a series share, except patient and study."""
    common = Dataset()
    _set(common, SpecificCharacterSet="ISO_IR 192", SOPClassUID=sop_class, Modality=modality,
         SeriesInstanceUID=uids.of("series"), SeriesNumber=1, Manufacturer="medgan",
         ManufacturerModelName="medgan", SoftwareVersions=_version(),
         ImageType=_image_type(sop_class), SyntheticData="YES", DerivationDescription=derivation[:1024],
         ContentQualification="RESEARCH", BurnedInAnnotation="NO", LossyImageCompression="00", PatientOrientation="",
         Laterality="",
         ContributingEquipmentSequence=[_equipment(model_hash)], AcquisitionNumber=1,
         SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", Rows=volume.shape[1], Columns=volume.shape[0],
         BitsAllocated=16, BitsStored=16, HighBit=15)
    if sop_class != _CR:
        _set(common, FrameOfReferenceUID=uids.of("frame of reference"), PositionReferenceIndicator="")
    if sop_class == _CT:
        _set(common, KVP=None, PatientPosition="HFS")
    elif sop_class == _MR:
        _set(common, ScanningSequence="RM", SequenceVariant="NONE", ScanOptions="", MRAcquisitionType=f"{volume.dims}D",
             EchoTime=None, EchoTrainLength=None, RepetitionTime=None, PatientPosition="HFS")
    elif sop_class == _CR:
        _set(common, BodyPartExamined="", ViewPosition="")
    elif sop_class == _CAPTURE:
        _set(common, ConversionType="WSD")
    return common


def _image_type(sop_class: str) -> list[str]:
    third = {_CT: ["AXIAL"], _MR: ["OTHER"]}.get(sop_class, [])
    return ["DERIVED", "SECONDARY", *third]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    _set(code, CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    return code


def _equipment(model_hash: str) -> Dataset:
    item = Dataset()
    _set(item, Manufacturer="medgan", ManufacturerModelName="medgan", SoftwareVersions=_version(),
         ContributionDescription=f"Voxels generated by model {model_hash}"[:1024],
         PurposeOfReferenceCodeSequence=[_code("109100", "DCM", "Synthesizing Equipment")])
    return item


def _slices(volume: Volume, common: Dataset, uids: _Uids, storage: Storage) -> list[Dataset]:
    """One data set a slice, in order along the third axis."""
    array = volume.array[0] if volume.dims == 3 else volume.array[0][..., None]
    has_place = volume.dims == 3 or volume.modality not in ("xray", "us")
    slices = []
    for number in range(array.shape[2]):
        item = Dataset()
        item.update(common)
        _set(item, SOPInstanceUID=uids.of(f"instance {number}"), InstanceNumber=number + 1,
             PixelRepresentation=int(storage.signed))
        if has_place:
            _place(item, volume, number)
        elif common.SOPClassUID == _CR:
            spacing = [number_of(volume.spacing_mm[1]), number_of(volume.spacing_mm[0])]
            _set(item, ImagerPixelSpacing=spacing, PixelSpacing=spacing, PixelSpacingCalibrationType="FIDUCIAL",
                 PixelSpacingCalibrationDescription="spacing of the generated pixel grid")
        else:
            _set(item, PixelSpacing=[number_of(volume.spacing_mm[1]), number_of(volume.spacing_mm[0])])
        if common.Modality == "CT" or not storage.is_identity:
            _set(item, RescaleSlope=number_of(storage.slope), RescaleIntercept=number_of(storage.intercept),
                 RescaleType="HU" if common.Modality == "CT" else "US")
        item.add_new("PixelData", "OW", storage.encode(array[:, :, number].T).tobytes())
        slices.append(item)
    return slices


def _place(item: Dataset, volume: Volume, number: int) -> None:
    """Writes the geometry of slice `number`, from RAS+ to LPS."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    row = lps[:3, 0] / steps[0]
    column = lps[:3, 1] - (lps[:3, 1] @ row) * row
    column /= np.linalg.norm(column)
    position = lps[:3, 3] + number * lps[:3, 2]
    _set(item, ImagePositionPatient=[number_of(value) for value in position],
         ImageOrientationPatient=[number_of(value) for value in (*row, *column)],
         PixelSpacing=[number_of(steps[1]), number_of(steps[0])],
         SliceThickness=number_of(steps[2]) if volume.dims == 3 else None)
    if volume.dims == 3:
        item.SpacingBetweenSlices = number_of(steps[2])


def _corners(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(8, 3) corners of a field of view in mm, edges of voxels rather than their centres."""
    sizes = (*shape, 1)[:3]
    index = np.array(np.meshgrid(*[(-0.5, size - 0.5) for size in sizes], indexing="ij")).reshape(3, -1)
    corners: NDArray[np.float64] = (affine[:3, :3] @ index).T + affine[:3, 3]
    return corners


def _nearest(stacks: list[Stack], volume: Volume) -> Stack:
    """The stack whose field of view is nearest to that of the volume."""
    target = _corners(volume.affine, volume.shape)

    def distance(stack: Stack) -> float:
        own = _corners(stack.affine, stack.shape)
        return float(np.linalg.norm(own[:, None] - target[None], axis=2).min(axis=1).max())

    return min(stacks, key=distance)


def _sources(stack: Stack, volume: Volume, number: int) -> list[Dataset]:
    """References to the source slices within one source spacing of an output slice, at least the nearest.

    A source whose own UIDs are invalid cannot be referred to, and is left out.
    """
    centre = np.array([(volume.shape[0] - 1) / 2, (volume.shape[1] - 1) / 2, number, 1.0])
    along = stack.frame_at(float((np.linalg.inv(stack.affine) @ volume.affine @ centre)[2]))
    indices = [index for index in range(len(stack.frames)) if abs(index - along) < 1]
    items = []
    for index in indices or [int(np.clip(round(along), 0, len(stack.frames) - 1))]:
        frame, item = stack.frames[index], Dataset()
        named = reference(frame.instance.header)
        if named is None:
            continue
        _set(item, ReferencedSOPClassUID=named[0], ReferencedSOPInstanceUID=named[1],
             PurposeOfReferenceCodeSequence=[_code("121322", "DCM", "Source image for image processing operation")])
        if frame.instance.frames > 1:
            item.ReferencedFrameNumber = frame.index + 1
        items.append(item)
    return items


def _write(slices: list[Dataset], folder: Path) -> list[Path]:
    """Writes all slices into a temporary sibling, then renames it: the folder is whole or it is not there."""
    names = [f"{item.InstanceNumber:05d}.dcm" for item in slices]
    try:
        with atomic_folder(folder) as temporary:
            for name, item in zip(names, slices, strict=True):
                _save(item, temporary / name)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise Refused("OUT_EXISTS", folder, "something was written there in the meantime",
                      "Give another output folder") from None
    return [folder / name for name in names]


def _save(item: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    _set(meta, MediaStorageSOPClassUID=item.SOPClassUID, MediaStorageSOPInstanceUID=item.SOPInstanceUID,
         TransferSyntaxUID=pydicom.uid.ExplicitVRLittleEndian,
         ImplementationClassUID=f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'medgan').int}",
         ImplementationVersionName="MEDGAN")
    whole = FileDataset(str(path), item, file_meta=meta, preamble=b"\0" * 128)
    whole.save_as(path, enforce_file_format=True)
    sync(path)
