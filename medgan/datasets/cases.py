"""What a data set is: cases with images, a mask or a class, a patient and a split.

A `Dataset` only describes: no voxel is read until `load`. Layouts (`layouts.py`) make one from a folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medgan.errors import Note
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Modality, Volume
from medgan.notices import tell

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Case:
    """One labelled (or unlabelled) image of one patient.

    Args:
        id: Unique within the data set.
        images: One file or series folder per channel, or a single one that holds all channels.
        mask: The label map on the image's grid, if there is one.
        label: The class of the whole image, if there is one.
        patient: Cases of one patient never fall into different splits.
        split: Only `train` cases are ever parents of synthetic ones.
        row: The row within an `.npz` file whose path stands in `images`; None elsewhere.
        array: The name of the array of that row, whatever split the case is counted in; empty elsewhere.
        extra: Further columns of a manifest, kept as they are.
        synthetic: Made by medgan, never to be a parent or a held-out case.
    """

    id: str
    images: tuple[Path, ...]
    mask: Path | None = None
    label: str | None = None
    patient: str = ""
    split: Split = "train"
    row: int | None = None
    array: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = False


@dataclass(frozen=True)
class Dataset:
    """Cases under one root, and what their values mean.

    Args:
        root: The folder or file.
        layout: A key of `medgan.datasets.layouts.LAYOUTS`.
        name: Short name, for file names and reports.
        channels: Channel names, in the order of the image's channel axis.
        labels: Mask value -> name, background (0) included; empty when there are no masks.
        classes: Names of the image classes; empty when there are none.
        cases: All cases of all splits, sorted by id.
        info: Further entries of the data set's own description, kept for writing it back.
        notes: What was odd about the data set and taken all the same.
        rules: How its images are read: the most memory, and what becomes of irregular series.
        names: Where ids are hashed (`medgan.datasets.hashing`), hash -> id; empty where they are not.
    """

    root: Path
    layout: str
    name: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    info: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    rules: Rules = DEFAULT_RULES
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def modality(self) -> Modality | None:
        """The modality, where the data set's own description names it."""
        text = " ".join((*self.channels, str(self.info.get("modality", "")))).lower()
        words = re.findall(r"[a-z0-9]+", text)
        for modality, marks in _MODALITY_MARKS.items():
            if any(mark in words for mark in marks):
                return modality
        return None

    @functools.cached_property
    def ids(self) -> frozenset[str]:
        """The ids of all cases."""
        return frozenset(case.id for case in self.cases)

    def split(self, name: Split) -> tuple[Case, ...]:
        """The cases of one split."""
        return tuple(case for case in self.cases if case.split == name)

    def only(self, cases: tuple[Case, ...]) -> Dataset:
        """The same data set with fewer cases."""
        return replace(self, cases=cases)

    def load(self, case: Case) -> tuple[Volume, Volume | None]:
        """Reads a case's image (C, X, Y[, Z]) and its mask (1, X, Y[, Z], integers) on the same grid.

        Raises:
            Refused: Whatever is wrong with the files, or `LABEL_*` when the mask does not fit the image.
        """
        from medgan.datasets.loading import load_case

        image, mask = load_case(self, case)
        tell((*image.notes, *(mask.notes if mask is not None else ())))
        return image, mask

    def fingerprint(self) -> str:
        """A hash of what the data set's training cases are: ids, file sizes, labels, channels; not of where it lies."""
        rows = [
            [self.names.get(case.id, case.id), case.split, case.label, [_size(path) for path in case.images],
             _size(case.mask)]
            for case in self.cases
        ]
        text = json.dumps([rows, list(self.channels), sorted(self.labels.items())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_MODALITY_MARKS: dict[Modality, tuple[str, ...]] = {
    "ct": ("ct", "cta", "cbct", "hu", "organamnist", "organcmnist", "organsmnist", "organmnist3d", "nodulemnist3d",
           "adrenalmnist3d", "fracturemnist3d"),
    "mr": ("mr", "mri", "mra", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2star", "pdw", "flair", "dwi", "adc",
           "swi", "vesselmnist3d"),
    "xray": ("xray", "x", "cr", "dx", "radiograph", "pneumoniamnist", "chestmnist"),
    "us": ("us", "ultrasound", "sonography", "breastmnist"),
}


def _size(path: Path | None) -> int:
    if path is None:
        return 0
    if path.is_dir():
        return sum(p.stat().st_size for p in sorted(path.iterdir()) if p.is_file())
    return path.stat().st_size
