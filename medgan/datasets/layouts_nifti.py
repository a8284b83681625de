"""The segmentation layouts that a `dataset.json` describes: nnU-Net v2 and Medical Segmentation Decathlon."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgan.datasets.cases import Case, Dataset, Split
from medgan.datasets.layout_base import (
    Layout,
    base_of,
    beside,
    finished,
    moved,
    number_of_files,
    unlisted,
    with_provenance,
)
from medgan.datasets.paths import (
    NIFTI_ENDINGS,
    PROVENANCE_ENDING,
    image_files,
    inside,
    patient_of,
    safe_name,
    stem,
)
from medgan.datasets.tables import read_json
from medgan.errors import Note, Refused
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.storage import write_json

#: The values of nnU-Net's `file_ending` that are read and written.
ENDINGS = (*NIFTI_ENDINGS, ".png")


class NnUNet(Layout):
    """nnU-Net v2: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, `dataset.json` with `channel_names`."""

    name = "nnunet"
    looked_for = "dataset.json with channel_names, and imagesTr/ (nnU-Net v2)"

    def detect(self, root: Path) -> bool:
        return _has(root, "channel_names")

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        path, base = _description(root)
        info = read_json(path)
        channels = in_order(strings(info.get("channel_names"), path, "channel_names"), path, "channel_names")
        ending = info.get("file_ending")
        if ending not in ENDINGS:
            raise Refused("DATASET_JSON", path, f"file_ending is {ending!r}", f"Use one of {', '.join(ENDINGS)}")
        notes: list[Note] = []
        if "dataset" in info:
            cases = _listed_cases(info["dataset"], base, path, len(channels))
        else:
            cases = _folder_cases(base, "Tr", "train", ending, len(channels), notes)
        notes += number_of_files("numTraining", info.get("numTraining"), len(cases), path)
        cases += _folder_cases(base, "Ts", "test", ending, len(channels), notes)
        ready, more = finished(with_provenance(self, cases), path)
        masked = any(case.mask is not None for case in ready)
        labels = nnunet_labels(info.get("labels"), path) if masked else {}
        named = info.get("name")
        return Dataset(
            base, self.name, named if isinstance(named, str) else base.name, channels, labels, (), ready, info,
            (*notes, *more),
        )

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        there = moved(out, dataset, case)
        if case.id in dataset.ids:
            return there
        ending, name = str(dataset.info["file_ending"]), safe_name(case.id)
        images = tuple(path.with_name(f"{name}_{c:04d}{ending}") for c, path in enumerate(there.images))
        mask = None if there.mask is None else there.mask.with_name(name + ending)
        return replace(there, images=images, mask=mask, synthetic=True)

    def sidecar(self, placed: Case) -> Path:
        first = placed.images[0]
        return first.with_name(re.sub(r"_\d{4}$", "", stem(first.name)) + PROVENANCE_ENDING)

    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        train = [case for case in cases if case.split == "train"]
        info = {**dataset.info, "numTraining": len(train)}
        if "dataset" in info:
            info["dataset"] = {
                case.id: {
                    "images": [str(path.relative_to(out)) for path in case.images],
                    **({"label": str(case.mask.relative_to(out))} if case.mask else {}),
                }
                for case in train
            }
        write_json(out / "dataset.json", info)


class Decathlon(Layout):
    """Medical Segmentation Decathlon: `dataset.json` lists `training` pairs; channels are the images' fourth axis."""

    name = "decathlon"
    looked_for = "dataset.json with a training list (Decathlon)"

    def detect(self, root: Path) -> bool:
        return _has(root, "training")

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        path, base = _description(root)
        info = read_json(path)
        cases: list[Case] = []
        for key, split in _DECATHLON_LISTS.items():
            entries = info.get(key, [])
            if not isinstance(entries, list):
                raise Refused("DATASET_JSON", path, f"{key} is not a list", "Correct it")
            cases += [_entry(entry, base, f"{path} {key}[{i}]", split) for i, entry in enumerate(entries)]
        ready, notes = finished(with_provenance(self, cases), path)
        notes += number_of_files("numTraining", info.get("numTraining"), _count(ready, "train"), path)
        notes += unlisted(base, ready, path)
        channels = in_order(strings(info.get("modality"), path, "modality"), path, "modality")
        labels = {}
        if any(case.mask is not None for case in ready):
            for key, label in strings(info.get("labels"), path, "labels").items():
                value = _int_key(key)
                if value is None:
                    raise Refused("DATASET_JSON", path, f"the label key {key!r} is not a mask value",
                                  'Write labels as {"0": "background", "1": ...}')
                labels[value] = label
        named = info.get("name")
        return Dataset(
            base if path.name == "dataset.json" else path, self.name, named if isinstance(named, str) else base.name,
            channels, labels, (), ready, info, tuple(notes),
        )

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        if case.id in dataset.ids:
            return moved(out, dataset, case)
        if dataset.names:  # folders below the first may be called after the patient
            base = base_of(dataset)
            case = replace(case, images=tuple(_in_first_folder(base, path) for path in case.images),
                           mask=None if case.mask is None else _in_first_folder(base, case.mask))
        return beside(out, dataset, case)

    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        info = {**dataset.info, "numTraining": _count(cases, "train"), "numTest": _count(cases, "test")}
        for key, split in _DECATHLON_LISTS.items():
            listed: list[Any] = []
            for case in sorted((c for c in cases if c.split == split), key=lambda c: c.id):
                image = f"./{case.images[0].relative_to(out)}"
                label = {} if case.mask is None else {"label": f"./{case.mask.relative_to(out)}"}
                # The Decathlon lists unlabelled test images as bare paths.
                listed.append(image if split == "test" and not label else {"image": image, **label})
            if listed or key in info:
                info[key] = listed
        write_json(out / "dataset.json", info)


_DECATHLON_LISTS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}


def _in_first_folder(base: Path, path: Path) -> Path:
    parts = path.relative_to(base).parts
    return base.joinpath(*parts[:1], path.name) if len(parts) > 1 else path


def nnunet_labels(labels: object, where: Path) -> dict[int, str]:
    """Mask value -> name from nnU-Net's `labels`, whose entries are a value or, for regions, a list of values.

    A value that only regions name is called after the smallest region that holds it.

    Raises:
        Refused: `DATASET_JSON`.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise Refused("DATASET_JSON", where, "labels is missing or not an object", "Add the names of the mask values")
    regions: list[tuple[int, str, list[int]]] = []
    for name, entry in labels.items():
        values = entry if isinstance(entry, list) else [entry]
        if not values or not all(type(v) is int and 0 <= v <= 65535 for v in values):
            raise Refused("DATASET_JSON", where, f"the label {name!r} has the value {entry!r}",
                          "Give each label a whole number, or a list of them for a region")
        regions.append((len(values), str(name), values))
    found: dict[int, str] = {}
    for _, name, values in sorted(regions, key=lambda region: region[0]):
        new = [value for value in values if value not in found]
        for value in new:
            found[value] = name if len(new) == 1 else f"{name}-{value}"
    if 0 not in found:
        raise Refused("DATASET_JSON", where, "no label has the value 0", 'Add "background": 0')
    return dict(sorted(found.items()))


def strings(value: object, where: Path, what: str) -> dict[str, str]:
    """A JSON object of names as strings, such as `channel_names`.

    Raises:
        Refused: `DATASET_JSON` when it is none.
    """
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, str | int) for v in value.values()):
        raise Refused("DATASET_JSON", where, f"{what} is missing or not an object of names", f"Correct {what}")
    return {str(key): str(inner) for key, inner in value.items()}


def in_order(names: Mapping[str, str], where: Path, what: str) -> tuple[str, ...]:
    """Values of {"0": a, "1": b, ...} in the order of their numbers, which must run from 0 without a gap."""
    if sorted(names) != sorted(str(i) for i in range(len(names))):
        raise Refused("DATASET_JSON", where, f"{what} is not numbered 0, 1, 2, ...", f"Correct {what}")
    return tuple(names[str(i)] for i in range(len(names)))


def _int_key(text: str) -> int | None:
    """The number of a label key, or None when it is no number from 0 to 65535."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535 else None


def _description(root: Path) -> tuple[Path, Path]:
    """The JSON and the folder its paths are relative to."""
    return (root, root.parent) if root.is_file() else (root / "dataset.json", root)


def _has(root: Path, key: str) -> bool:
    path, _ = _description(root)
    return path.suffix == ".json" and path.is_file() and key in read_json(path)


def _count(cases: Sequence[Case], split: Split) -> int:
    return sum(case.split == split for case in cases)


def _folder_cases(
    base: Path, suffix: str, split: Split, ending: str, channels: int, notes: list[Note]
) -> list[Case]:
    folder, label_folder = base / f"images{suffix}", base / f"labels{suffix}"
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}", re.DOTALL)
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in image_files(base, folder, (ending,)):
        match = pattern.fullmatch(path.name)
        if match is None:
            notes.append(Note("TAB_UNMATCHED", str(path), "its name has no channel number (_0000); it was left out"))
        else:
            found[match[1]][int(match[2])] = path
    masks = {path.name[: -len(ending)]: path for path in image_files(base, label_folder, (ending,))}
    orphans = sorted(set(masks) - set(found))
    if orphans:
        raise Refused("TAB_UNMATCHED", masks[orphans[0]], f"no image in images{suffix} belongs to this mask",
                      "Add the image or remove the mask")
    cases = []
    for case_id, files in found.items():
        _check_channels(sorted(files), channels, folder, case_id)
        images = tuple(files[c] for c in range(channels))
        cases.append(Case(case_id, images, masks.get(case_id), patient=patient_of(case_id), split=split))
    return cases


def _check_channels(there: Sequence[int], channels: int, where: Path, case_id: str) -> None:
    missing = [c for c in range(channels) if c not in there]
    if missing:
        raise Refused("TAB_PATH_MISSING", where, f"channel {missing[0]:04d} of case {case_id!r} is missing",
                      "Add the file or remove the case")
    if len(there) > channels:
        raise Refused("DATASET_JSON", where, f"case {case_id!r} has {len(there)} channels, channel_names {channels}",
                      "Name every channel in channel_names")


def _listed_cases(listed: object, base: Path, where: Path, channels: int) -> list[Case]:
    """Cases of the optional `dataset` entry, which names every file itself."""
    if not isinstance(listed, Mapping):
        raise Refused("DATASET_JSON", where, "dataset is not an object", "Correct it")
    cases = []
    for case_id, entry in listed.items():
        at = f"{where} dataset[{case_id!r}]"
        if not case_id.strip():
            raise Refused("DATASET_JSON", at, "a case has no name", "Give every case its own name")
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise Refused("DATASET_JSON", at, "it has no list of images", "Correct it")
        label = entry.get("label")
        if label is not None and not isinstance(label, str):
            raise Refused("DATASET_JSON", at, "its label is not a path", "Correct it")
        paths = tuple(inside(base, image, at) for image in images)
        _check_channels(range(len(paths)), channels, where, case_id)
        mask = None if label is None else inside(base, label, at)
        cases.append(Case(case_id, paths, mask, patient=patient_of(case_id)))
    return cases


def _entry(entry: object, base: Path, where: str, split: Split) -> Case:
    pair = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(pair, Mapping) or not isinstance(pair.get("image"), str):
        raise Refused("DATASET_JSON", where, "it names no image", 'Write {"image": path, "label": path}')
    image = inside(base, pair["image"], where)
    label = pair.get("label")
    if label is not None and not isinstance(label, str):
        raise Refused("DATASET_JSON", where, "its label is not a path", 'Write {"image": path, "label": path}')
    case_id = stem(image.name)
    if not case_id:
        raise Refused("DATASET_JSON", where, f"{image.name} has no name before its ending", "Rename the file")
    mask = None if label is None else inside(base, label, where)
    return Case(case_id, (image,), mask, patient=patient_of(case_id), split=split)
