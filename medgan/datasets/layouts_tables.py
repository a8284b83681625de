"""The CSV manifest: a table that names each case's files, and its class, patient and split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medgan.datasets.cases import Case, Dataset, Split
from medgan.datasets.layout_base import Layout, finished, moved, unlisted, with_provenance, written_ending
from medgan.datasets.loading import found_labels
from medgan.datasets.paths import inside, patient_of, safe_name
from medgan.datasets.tables import read_table, write_table
from medgan.errors import Refused
from medgan.imaging.rules import DEFAULT_RULES, Rules

#: Between the files of the channels of one case.
CHANNEL_SEPARATOR = "|"
#: Columns with a meaning; all others are kept in `Case.extra`.
COLUMNS = ("id", "image", "mask", "label", "patient", "split", "synthetic")
#: What people write for a split.
SPLIT_WORDS: dict[str, Split] = {
    "": "train", "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip
#: No class number is larger; an overflow or a mistaken column is.
MAX_CLASS_NUMBER = 2**31 - 1


class Manifest(Layout):
    """A CSV with the columns `id,image[,mask][,label][,patient][,split]`; further columns are kept."""

    name = "manifest"
    looked_for = "manifest.csv, or a .csv file, with the columns id and image"

    def detect(self, root: Path) -> bool:
        return _table(root).suffix.lower() == ".csv" and _table(root).is_file()

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        path = _table(root)
        columns, rows, notes = read_table(path, required=("id", "image"))
        cases = [_case(row, columns, path, number) for number, row in enumerate(rows, start=2)]
        counts = {len(case.images) for case in cases}
        if len(counts) > 1:
            raise Refused("TAB_UNMATCHED", path, f"cases have different numbers of channels ({sorted(counts)})",
                          f"Give every case the same channels, separated by {CHANNEL_SEPARATOR!r}")
        ready, more = finished(with_provenance(self, cases), path, patients_known="patient" in columns)
        kinds = {case.extra.get("modality", "") for case in ready}
        channels = ("image",) if counts == {1} else tuple(f"channel{c}" for c in range(counts.pop()))
        return Dataset(
            root, self.name, path.parent.name if path.stem == "manifest" else path.stem, channels,
            found_labels(ready, rules),
            tuple(sorted({case.label for case in ready if case.label is not None})), ready,
            {"columns": columns, **({"modality": kinds.pop()} if len(kinds) == 1 else {})},
            (*notes, *more, *unlisted(path.parent, ready, path)),
        )

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        there = moved(out, dataset, case)
        if case.id in dataset.ids:
            return there
        folder, name = out / "synthetic", safe_name(case.id)
        numbers = [""] if len(case.images) == 1 else [f"_{c:04d}" for c in range(len(case.images))]
        images = tuple(folder / f"{name}{n}{written_ending(p)}" for n, p in zip(numbers, case.images, strict=True))
        mask = None if case.mask is None else folder / f"{name}_mask{written_ending(case.mask)}"
        # Further columns of the parent's row may name it.
        extra = {} if dataset.names else there.extra
        return replace(there, images=images, mask=mask, extra=extra, synthetic=True)

    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        columns = dataset.info["columns"]
        assert isinstance(columns, list)
        if any(case.synthetic for case in cases) and "synthetic" not in columns:
            columns = [*columns, "synthetic"]
        rows = [
            {
                **case.extra,
                "id": case.id,
                "image": CHANNEL_SEPARATOR.join(str(path.relative_to(out)) for path in case.images),
                "mask": "" if case.mask is None else str(case.mask.relative_to(out)),
                "label": case.label,
                "patient": case.patient,
                "split": case.split,
                "synthetic": "yes" if case.synthetic else "",
            }
            for case in sorted(cases, key=lambda case: case.id)
        ]
        write_table(out / "manifest.csv", columns, rows)


def _table(root: Path) -> Path:
    return root / "manifest.csv" if root.is_dir() else root


def _case(row: dict[str, str], columns: Sequence[str], path: Path, number: int) -> Case:
    where = f"{path} row {number}"
    if not row["id"]:
        raise Refused("TAB_COLUMNS", where, "it has no id", "Give every row an id")
    images = tuple(inside(path.parent, text, where) for text in row["image"].split(CHANNEL_SEPARATOR))
    mask = inside(path.parent, row["mask"], where) if row.get("mask") else None
    for image in images:
        if image.suffix.lower() in (".hdr", ".img"):
            raise Refused("FILE_FORMAT", where, f"{image.name} is half of a pair", "Convert it to .nii.gz")
    split = SPLIT_WORDS.get(row.get("split", "").lower())
    if split is None:
        raise Refused("TAB_BAD_SPLIT", where, f"{row['split']!r} is not a split", "Write train, val or test")
    return Case(
        id=row["id"],
        images=images,
        mask=mask,
        label=_label(row["label"], where) if "label" in columns else None,
        patient=row.get("patient") or patient_of(row["id"]),
        split=split,
        extra={name: row[name] for name in columns if name not in COLUMNS},
        synthetic=row.get("synthetic", "").lower() in ("yes", "true", "1"),
    )


def _label(text: str, where: str) -> str:
    if not text or text.lower() == "n/a":
        raise Refused("TAB_MISSING_LABEL", where, "its label is empty", "Fill in the label or remove the row")
    try:
        number = float(text)
    except ValueError:
        return text  # a name
    if not math.isfinite(number) or abs(number) > MAX_CLASS_NUMBER:
        raise Refused("TAB_BAD_LABEL", where, f"the label {text!r} is no class", "Write a class name or number")
    return text
