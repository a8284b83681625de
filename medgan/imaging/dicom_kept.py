"""What a derived DICOM series keeps of its source, as far as it is valid there.

The writer's objects are valid whatever was read: a value that breaks the rules of its element stays behind, and the
element is empty, absent, or what the writer would say without a source.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import re
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset

from medgan.imaging.dicom_header import text, texts

#: Elements of the patient, the study and the acquisition that a derived series keeps from its source.
KEPT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "FrameOfReferenceUID", "PositionReferenceIndicator", "BodyPartExamined", "PatientPosition",
    "Laterality", "KVP", "ConvolutionKernel", "ScanningSequence", "SequenceVariant", "ScanOptions",
    "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength", "InversionTime", "FlipAngle",
    "MagneticFieldStrength", "ImagingFrequency", "WindowCenter", "WindowWidth",
)
#: What the standard enumerates; other values are errors there.
_ENUMERATED = {
    "PatientSex": {"M", "F", "O"}, "Laterality": {"L", "R"}, "PatientIdentityRemoved": {"YES", "NO"},
    "MRAcquisitionType": {"2D", "3D"}, "ScanningSequence": {"SE", "IR", "GR", "EP", "RM"},
}
#: A UID as ISO 9834 has it: one of the arcs that exist (0.0 to 0.5, 0.9, 1.0 to 1.3, 2.x) and no leading zeros.
_UID = re.compile(r"(?=.{3,64}\Z)(0\.[0-59]|1\.[0-3]|2\.(0|[1-9][0-9]*))(\.(0|[1-9][0-9]*))*")
#: A date of one day; what is read may be a range, as a query has it.
_DATE = re.compile(r"[0-9]{8}")
#: A time of day of one moment.
_TIME = re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
#: Characters that no element kept here may hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffd]")
#: Names have at most three ways of writing (alphabetic, ideographic, phonetic) of five parts each.
_NAME = re.compile(r"(?!.*\\)[^=^]*(\^[^=^]*){0,4}(=[^=^]*(\^[^=^]*){0,4}){0,2}")
#: The standard's least width of a linear window.
_LEAST_WIDTH = 1.0


def keep(header: Any, common: Dataset) -> None:
    """Copies what a derived series keeps of its source; a value that breaks its own rules is left out.

    A UID that is none (anonymisers write such) is replaced by one hashed from it, so that all series derived from one
    study or frame of reference still share theirs.
    """
    for keyword in KEPT:
        values = texts(header, keyword)
        if keyword.endswith("UID"):
            if values and values[0]:
                setattr(common, keyword, usable_uid(values[0]))
        elif _is_valid(keyword, values):
            try:
                with warnings.catch_warnings(), _unlogged():
                    warnings.simplefilter("error", UserWarning)
                    setattr(common, keyword, values if len(values) > 1 else values[0])
            except (ValueError, TypeError, UserWarning, LookupError, OverflowError):
                continue
    _check_window(common)
    if "InversionTime" in common and "IR" not in texts(common, "ScanningSequence"):
        del common.InversionTime  # it belongs to an inversion
    if common.get("FrameOfReferenceUID") == common.StudyInstanceUID:
        common.FrameOfReferenceUID = _hashed(f"frame {common.StudyInstanceUID}")


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps pydicom from logging the values that it warns of: these are a patient's."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def is_uid(value: str) -> bool:
    """Whether a string is a UID that the standard allows."""
    return _UID.fullmatch(value) is not None


def usable_uid(value: str) -> str:
    """The UID itself, or one hashed from it where it is none."""
    return value if is_uid(value) else _hashed(value)


def reference(header: Any) -> tuple[str, str] | None:
    """SOP class and instance of a source image, or None where it cannot be named."""
    kind, instance = text(header, "SOPClassUID"), text(header, "SOPInstanceUID")
    return (kind, instance) if is_uid(kind) and is_uid(instance) else None


def modality_of(value: str, otherwise: str) -> str:
    """A source's modality where it is a code string, else `otherwise`."""
    return value if re.fullmatch(r"[A-Z0-9_]{1,16}", value) else otherwise


def _hashed(value: str) -> str:
    digest = hashlib.sha256(value.encode("utf-8", "replace")).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def _is_valid(keyword: str, values: list[str]) -> bool:
    """Whether values are as many and of such characters as their element may hold; pydicom checks the rest."""
    if not values or not all(values) or (dictionary_VM(keyword) == "1" and len(values) > 1):
        return False
    if any(_CONTROL.search(value) for value in values):
        return False
    representation = dictionary_VR(keyword)
    pattern = {"PN": _NAME, "DA": _DATE, "TM": _TIME}.get(representation)
    if pattern is not None and not pattern.fullmatch(values[0]):
        return False
    if representation in ("DS", "IS") and not all(_is_finite(value) for value in values):
        return False
    allowed = _ENUMERATED.get(keyword)
    return allowed is None or set(values) <= allowed


def _is_finite(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _check_window(common: Dataset) -> None:
    """Removes a window that no viewer could use: without its other half, of another count, or narrower than allowed."""
    pairs = [texts(common, "WindowCenter"), texts(common, "WindowWidth")]
    if len(pairs[0]) == len(pairs[1]) > 0 and min(map(float, pairs[1])) >= _LEAST_WIDTH:
        return
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in common:
            delattr(common, keyword)
