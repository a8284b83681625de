"""What a DICOM file may tell of its patient: filled elements, text in its pixels, texts that cannot be read for sure.

No value that may identify a patient goes into a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom.charset import python_encoding

from medgan.errors import Note
from medgan.imaging.dicom_header import text, texts

#: What names a patient beyond the usual name, ID and dates; filled only where a file was never de-identified.
_IDENTIFYING = (
    "PatientAddress", "PatientTelephoneNumbers", "OtherPatientIDs", "OtherPatientNames", "PatientMotherBirthName",
    "PatientComments",
)
#: Secondary Capture and its multi-frame kin.
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
#: Conversion types of images that were pictures of something else: video, film, paper, drawing, workstation.
_CONVERTED = ("DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN")


def identity_notes(path: Path, header: Any) -> Iterator[Note]:
    """Says what a header has of the patient, without saying what that is."""
    if any(value and value not in python_encoding for value in texts(header, "SpecificCharacterSet")):
        yield Note("CHARSET_FALLBACK", str(path), "the named character set is unknown; texts are read as Latin-1")
    if text(header, "BurnedInAnnotation").upper() == "YES":
        yield Note("BURNED_IN_ANNOTATION", str(path), "the header says that text is burned into the pixels")
    elif not text(header, "BurnedInAnnotation") and _is_capture(header):
        yield Note("BURNED_IN_ANNOTATION", str(path), "a screen capture, scan or ultrasound image, whose header does "
                   "not say that no text is burned into the pixels")
    present = sum(1 for keyword in _IDENTIFYING if keyword in header and text(header, keyword))
    if present and text(header, "PatientIdentityRemoved").upper() != "YES":
        yield Note("PHI_NOT_COPIED", str(path), f"{present} identifying elements are filled; what is made of the file "
                   "has none of them, a copy of the file has all")


def _is_capture(header: Any) -> bool:
    """Whether an image is of a kind that mostly has text in its pixels: captured, digitised, or ultrasound."""
    return (text(header, "SOPClassUID").startswith(_CAPTURES) or text(header, "Modality").upper() == "US"
            or text(header, "ConversionType").upper() in _CONVERTED)
