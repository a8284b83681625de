"""BIDS: `sub-01/[ses-1/]anat/sub-01_T1w.nii.gz`, masks under `derivatives/`; written back as a derivative."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.hashing import hashed_word
from medgan.datasets.layout_base import Layout, case_files, copy_path, finished, moved, with_provenance
from medgan.datasets.loading import found_labels
from medgan.datasets.paths import NIFTI_ENDINGS, ending, folders, image_files, stem
from medgan.datasets.tables import read_json, read_table
from medgan.errors import Note, Refused
from medgan.imaging.geometry import GRID_TOLERANCE_VOXELS
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.storage import write_json, write_text

#: Folders below a subject or session that hold volumes of anatomy; others hold series over time.
DATA_TYPES = ("anat", "ct", "pet", "swi")
#: The version of the standard that is written.
BIDS_VERSION = "1.9.0"
#: Of two contrasts that cannot be stacked, the one that shows lesions best is kept.
PREFERRED_SUFFIXES = ("FLAIR", "T1w", "T2w")

_MASKS = ("mask", "dseg")
_NO_IMAGES = (*_MASKS, "probseg", "defacemask")
#: Entities that say how a mask was made or what of; they need not be those of its image.
_MASK_OWN = ("desc", "label", "space", "res", "den", "seg", "atlas")
#: Masks of what every head has, not of a finding.
_BRAIN = ("brain", "head", "skull")
_NAME = re.compile(r"((?:[A-Za-z]+-[A-Za-z0-9]+_)+)([A-Za-z0-9]+)\.nii(?:\.gz)?")
_SYNTHETIC = re.compile(r"syn[A-Za-z0-9]*\d")


@dataclass(frozen=True)
class _File:
    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def key(self) -> str:
        """The entities as the case's id: `sub-01_ses-2`; `desc-syn0001` of a synthetic one ends it as `_syn0001`."""
        desc = self.entities.get("desc", "")
        parts = [f"{name}-{value}" for name, value in self.entities.items() if name != "desc"]
        if desc:
            parts.append(desc if _SYNTHETIC.fullmatch(desc) else f"desc-{desc}")
        return "_".join(parts)


class Bids(Layout):
    """BIDS: a case is a subject's session (and run); its channels are the contrasts that all sessions have."""

    name = "bids"
    looked_for = "sub-*/[ses-*/]anat/sub-*_*.nii.gz (BIDS)"

    def detect(self, root: Path) -> bool:
        return root.is_dir() and any(True for _ in _images(root, root))

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        description = root / "dataset_description.json"
        info = read_json(description) if description.is_file() else {}
        sessions: dict[str, dict[str, _File]] = defaultdict(dict)
        for file in _images(root, root):
            if file.suffix not in _NO_IMAGES:
                sessions[file.key][file.suffix] = file
        suffixes, notes = _channels(sessions, root)
        masks = [file for folder in (root, *_derivatives(root)) for file in _images(root, folder)
                 if file.suffix in _MASKS and file.entities.get("desc") not in _BRAIN
                 and file.entities.get("label") not in _BRAIN]
        cases = []
        for key, files in sessions.items():
            if all(suffix in files for suffix in suffixes):
                first = files[suffixes[0]]
                cases.append(Case(
                    key, tuple(files[suffix].path for suffix in suffixes), _mask_of(first, masks, notes),
                    patient=f"sub-{first.entities['sub']}",
                    synthetic=bool(_SYNTHETIC.fullmatch(first.entities.get("desc", ""))),
                ))
        # A real image's side-car is its acquisition; only a synthetic one's is a provenance record.
        cases = [case for case in cases if not case.synthetic] + with_provenance(
            self, [case for case in cases if case.synthetic]
        )
        ready, more = finished(cases, root, patients_known=True)
        named = info.get("Name")
        return Dataset(
            root, self.name, named if isinstance(named, str) else root.name, suffixes,
            _labels(root, ready, rules), (), ready,
            info, (*notes, *more),
        )

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        there = moved(out, dataset, case)
        if case.id in dataset.ids:
            return there
        if dataset.names:
            label = case.id[case.id.rindex("syn") :]
            images = tuple(_with_desc(_hashed(path, out), label) for path in there.images)
            mask = None if there.mask is None else _with_desc(_hashed(there.mask, out), label, is_mask=True)
            return replace(there, images=images, mask=mask, synthetic=True)
        first = _parse(case.images[0])
        label = re.sub(r"[^A-Za-z0-9]", "", case.id.removeprefix(first.key) if first else case.id)
        label = label if _SYNTHETIC.fullmatch(label) else f"syn{label}0"
        images = tuple(_with_desc(path, label) for path in there.images)
        mask = None if there.mask is None else _with_desc(there.mask, label, is_mask=True)
        return replace(there, images=images, mask=mask, synthetic=True)

    def copy(self, case: Case, placed: Case) -> None:
        for source, target in zip(case_files(case), case_files(placed), strict=True):
            copy_path(source, target)
            beside = source.with_name(stem(source.name) + ".json")
            if beside.is_file():
                copy_path(beside, target.with_name(beside.name))

    def sidecar(self, placed: Case) -> Path:
        first = placed.images[0]
        return first.with_name(stem(first.name) + ".json")

    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        for name in ("participants.tsv", "participants.json", "README", "README.md", "CHANGES", "LICENSE"):
            if (dataset.root / name).is_file():
                copy_path(dataset.root / name, out / name)
        for folder in _derivatives(dataset.root):
            for path in (folder / "dataset_description.json", *sorted(folder.rglob("*dseg.tsv"))):
                if path.is_file():
                    copy_path(path, out / path.relative_to(dataset.root))
        # What medgan adds at the top of the folder is no part of the standard.
        write_text(out / ".bidsignore", "augmentation.csv\nDATA_CARD.md\n")
        made_by = [entry for entry in _list(dataset.info.get("GeneratedBy")) if _named(entry) != "medgan"]
        write_json(out / "dataset_description.json", {
            "Name": dataset.name,
            **dataset.info,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [*made_by, {"Name": "medgan", "Description": "Originals and synthetic cases"}],
        })


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _named(entry: object) -> object:
    return entry.get("Name") if isinstance(entry, dict) else None


def _parse(path: Path) -> _File | None:
    match = _NAME.fullmatch(path.name)
    if match is None or not match[1].startswith("sub-"):
        return None
    pairs = (part.partition("-")[::2] for part in match[1].rstrip("_").split("_"))
    return _File(path, dict(pairs), match[2])


def _images(base: Path, root: Path) -> Iterable[_File]:
    """The volumes of all subjects below `root`, sorted; files whose names are not BIDS are passed over."""
    for subject in folders(root):
        if not subject.name.startswith("sub-"):
            continue
        for session in (subject, *(f for f in folders(subject) if f.name.startswith("ses-"))):
            for kind in folders(session):
                if kind.name in DATA_TYPES:
                    yield from filter(None, map(_parse, image_files(base, kind, NIFTI_ENDINGS)))


def _derivatives(root: Path) -> list[Path]:
    return folders(root / "derivatives")


def _channels(sessions: dict[str, dict[str, _File]], root: Path) -> tuple[tuple[str, ...], list[Note]]:
    """The contrasts that every session has on one grid; else the one that most have."""
    if not sessions:
        raise Refused("DATASET_EMPTY", root, "no subject has an image", f"Put images into {', '.join(DATA_TYPES)}")
    counts = Counter(suffix for files in sessions.values() for suffix in files)
    common = tuple(sorted(suffix for suffix, count in counts.items() if count == len(sessions)))
    if common and all(_one_grid([files[suffix].path for suffix in common]) for files in sessions.values()):
        kept = common
    else:
        order = {suffix: rank for rank, suffix in enumerate(PREFERRED_SUFFIXES)}
        kept = (min(counts, key=lambda suffix: (-counts[suffix], order.get(suffix, len(order)), suffix)),)
    left = sum(counts.values()) - sum(counts[suffix] for suffix in kept)
    if not left:
        return kept, []
    why = f"{left} images were left out; channels are the contrasts all sessions have on one grid: {', '.join(kept)}"
    return kept, [Note("TAB_UNMATCHED", str(root), why)]


def _one_grid(paths: Sequence[Path]) -> bool:
    """Whether headers agree on shape and place; a header that cannot be read is left for loading to refuse."""
    import nibabel
    import numpy as np
    from nibabel.filebasedimages import ImageFileError

    if len(paths) == 1:
        return True
    try:
        headers = [nibabel.load(path) for path in paths]
    except (OSError, ValueError, EOFError, ImageFileError):
        return False
    tolerance = GRID_TOLERANCE_VOXELS * float(min(headers[0].header.get_zooms()[:3]))
    return all(
        other.shape == headers[0].shape and np.allclose(other.affine, headers[0].affine, rtol=0, atol=tolerance)
        for other in headers[1:]
    )


def _mask_of(image: _File, masks: Sequence[_File], notes: list[Note]) -> Path | None:
    """The lesion mask of an image: same subject, session and run; a mask before a segmentation of all tissue."""
    desc = image.entities.get("desc", "")
    synthetic = desc if _SYNTHETIC.fullmatch(desc) else None
    fitting = []
    for mask in masks:
        own = mask.entities.get("desc", "")
        if (own if _SYNTHETIC.fullmatch(own) else None) != synthetic:
            continue
        same = all(image.entities.get(name) == value for name, value in mask.entities.items() if name not in _MASK_OWN)
        here = mask.entities.get("space") in (None, "orig", image.suffix, image.entities.get("space"))
        if same and here and mask.entities.get("ses") == image.entities.get("ses"):
            fitting.append(mask)
    if not fitting:
        return None
    fitting.sort(key=lambda mask: ("lesion" not in mask.path.name.lower(), _MASKS.index(mask.suffix), str(mask.path)))
    if len(fitting) > 1:
        why = f"of {len(fitting)} masks {fitting[0].path.name} was taken"
        notes.append(Note("TAB_UNMATCHED", str(image.path), why))
    return fitting[0].path


def _labels(root: Path, cases: Sequence[Case], rules: Rules) -> dict[int, str]:
    """Names of the mask values: of a binary mask from its name, of a segmentation from its `_dseg.tsv` or as found."""
    masks = [file for case in cases if case.mask is not None and not case.synthetic and (file := _parse(case.mask))]
    if not masks:
        return {}
    if all(mask.suffix == "mask" for mask in masks):
        named = masks[0].entities.get("label") or masks[0].entities.get("desc") or "lesion"
        return {0: "background", 1: "lesion" if named == "L" else named}
    tables = [path for folder in (root, *_derivatives(root)) for path in sorted(folder.rglob("*dseg.tsv"))]
    if not tables:
        return found_labels(cases, rules)
    _, rows, _ = read_table(tables[0], required=("index", "name"))
    labels = {int(row["index"]): row["name"] for row in rows if row["index"].isascii() and row["index"].isdigit()}
    return dict(sorted({0: "background", **labels}.items()))


def _hashed(path: Path, out: Path) -> Path:
    """The path with the labels of subject and session hashed, in folders and in the name; other entities stay."""
    label = re.compile(r"(?<![A-Za-z0-9])(sub|ses)-([A-Za-z0-9]+)")
    parts = (label.sub(lambda found: f"{found[1]}-{hashed_word(found[2])}", part)
             for part in path.relative_to(out).parts)
    return out.joinpath(*parts)


def _with_desc(path: Path, label: str, *, is_mask: bool = False) -> Path:
    """The name with `desc-<label>` as its last entity; what a mask is of moves from `desc` to `label`."""
    file = _parse(path)
    assert file is not None
    entities = dict(file.entities)
    was = entities.pop("desc", None)
    if is_mask and was and "label" not in entities:
        entities["label"] = was
    parts = [f"{name}-{value}" for name, value in entities.items()]
    return path.with_name("_".join([*parts, f"desc-{label}", file.suffix]) + ending(path.name))
