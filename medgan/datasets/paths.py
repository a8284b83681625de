"""Paths and ids of a data set's files: nothing outside its folder is ever read, and whose image it is."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from medgan.errors import Refused
from medgan.imaging.planar import RASTERS

#: Image endings, longest first, so that `.nii.gz` is taken whole.
NIFTI_ENDINGS = (".nii.gz", ".nii")
PLANAR_ENDINGS = (*RASTERS, ".npy", ".npz")
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
IMAGE_ENDINGS = NIFTI_ENDINGS + PLANAR_ENDINGS + DICOM_ENDINGS

#: Beside a synthetic case's first image lies a JSON with this ending.
PROVENANCE_ENDING = ".provenance.json"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

#: Marks of a repeat of one patient at the end of an id: a word with or without a number, or one letter with one.
_WORDS = ("ses|session|visit|timepoint|time|tp|scan|frame|fu|followup|follow-up|baseline|bl|week|month|year|run|acq|"
          "slice")
_REPEAT = re.compile(rf"(?:[_-](?:(?:{_WORDS})[-_]?\d*|[tv]\d{{1,3}}|left|right|l|r))+$", re.IGNORECASE)
_SYNTHETIC = re.compile(r"[_-]syn\d+$")
_PERSON = re.compile(r"^((?:sub|subject|subj|patient|pat|person)[-_]?[A-Za-z]{0,3}\d+)(?=[_-]|$)", re.IGNORECASE)
_BIDS_SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)(?=_|$)")
_BRATS = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d{3}$")


def ending(name: str) -> str:
    """The image ending of a file name in lower case, or an empty string when it is no image's."""
    return next((e for e in IMAGE_ENDINGS if name.lower().endswith(e)), "")


def stem(name: str) -> str:
    """The file name without its image ending (`a.nii.gz` -> `a`); a folder's name is left whole."""
    cut = len(ending(name))
    return name[:-cut] if cut else name


def patient_of(case_id: str) -> str:
    """Whose image it is, guessed from an id, for layouts that do not record the patient.

    Conservative: two ids are one patient only when they say so, by a subject label in front (`sub-01_...`,
    `patient7_...`, `person12_...`), by a BraTS time point (`BraTS-GLI-00005-101`), or by a mark of a repeat at the
    end (`_ses-2`, `_visit1`, `_t0`, `_frame12`, `_slice7`, `_left`) of something with a number in it. `glioma_0003`
    and `glioma_0004` stay two patients, and so do `brain_scan_1` and `brain_scan_2`. `X_syn0001` is made from `X`.
    """
    case_id = _SYNTHETIC.sub("", case_id) or case_id
    for pattern in (_BIDS_SUBJECT, _BRATS, _PERSON):
        match = pattern.match(case_id)
        if match:
            return match.group(1)
    front = _REPEAT.sub("", case_id)
    return front if re.search(r"\d", front) else case_id


def inside(base: Path, text: str, where: str | Path) -> Path:
    """The existing file or folder that `text` names below `base`.

    Raises:
        Refused: `TAB_BAD_PATH`, `TAB_PATH_ESCAPE` or `TAB_PATH_MISSING`.
    """
    if not text.strip():
        raise Refused("TAB_PATH_MISSING", where, "an empty path stands where a file is expected",
                      "Fill in the path or remove the entry")
    if _CONTROL.search(text):
        raise Refused("TAB_BAD_PATH", where, f"the path {text!r} holds a control character", "Correct the path")
    parts = text.replace("\\", "/").split("/")
    if _SCHEME.match(text) or parts[0] in ("", "~") or text.startswith("~") or ".." in parts:
        raise Refused("TAB_PATH_ESCAPE", where, f"the path {text!r} leaves the data set's folder",
                      "Give a path relative to the data set's folder, without '..'")
    path = base.joinpath(*(part for part in parts if part not in ("", ".")))
    try:
        found = path.is_file() or path.is_dir()
        there = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:
        raise Refused("TAB_BAD_PATH", where, f"the path {text[:80]!r} cannot be one ({error})",
                      "Correct the path") from None
    if there:
        stay_inside(base, path, where)
    if not there or (path.is_symlink() and not path.exists()):
        raise Refused("TAB_PATH_MISSING", where, f"{text!r} does not exist", "Correct the path or remove the entry")
    if not found:
        raise Refused("TAB_BAD_PATH", where, f"{text!r} is neither a file nor a folder", "Correct the path")
    return path


def stay_inside(base: Path, path: Path, where: str | Path) -> None:
    """Refuses a path that a link takes out of `base`."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # a link that points to itself
        raise Refused("TAB_BAD_PATH", where, f"{path} cannot be followed ({error})", "Correct the link") from None
    if not target.is_relative_to(base.resolve()):
        raise Refused("TAB_PATH_ESCAPE", where, f"{path} is a link to {target}, outside the data set's folder",
                      "Put the file itself there")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without hidden files and what systems leave behind."""
    if not folder.is_dir():
        return []
    left_behind = ("thumbs.db", "desktop.ini", "__macosx", "dicomdir")
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in left_behind)


def image_files(base: Path, folder: Path, endings: tuple[str, ...] = IMAGE_ENDINGS) -> list[Path]:
    """The image files directly in a folder, by their endings; links out of `base` are refused."""
    files = [p for p in visible(folder) if p.name.lower().endswith(endings) and (p.is_symlink() or p.is_file())]
    for path in files:
        if path.is_symlink():
            stay_inside(base, path, folder)
    return [p for p in files if p.is_file()]


def folders(folder: Path) -> list[Path]:
    """The visible sub-folders of a folder; links to folders are not followed."""
    return [p for p in visible(folder) if p.is_dir() and not p.is_symlink()]


def safe_name(case_id: str) -> str:
    """A file name for an id: letters, digits, `.`, `_`, `-`; a short hash is added where something was replaced."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", case_id).lstrip(".-")[:120]
    if name and name == case_id:
        return name
    return f"{name or 'case'}-{hashlib.sha256(case_id.encode()).hexdigest()[:8]}"
