"""Hashed ids: what every layout writes of a synthetic case names no one, and still belongs to its patient."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dataset_makers as make
import numpy as np
import pytest

from medgan.datasets import hashing
from medgan.datasets.cards import ids_remark, notes_remarks
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.hashing import hashed_case, hashed_patient, hashed_record, with_hashed_ids
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.provenance import Lesion, Provenance, handed_on
from medgan.errors import Note, Refused
from medgan.imaging import files
from medgan.imaging.dicom_write import DERIVED_DESCRIPTION, SERIES_DESCRIPTION
from medgan.imaging.volume import Volume
from medgan.verbs.augment import table
from medgan.verbs.cases import synthetic_case


def nested(root: Path) -> Path:
    """Series below patients and studies, without masks."""
    for seed, name in enumerate(("DOE_JOHN", "ROE_JANE"), start=1):
        make.dicom_series(root / name / "study" / "series", seed, "")
    return root


def deep_decathlon(root: Path) -> Path:
    """A Decathlon set of which a case lies in a folder called after the patient."""
    make.decathlon(root)
    info = json.loads((root / "dataset.json").read_text())
    for entry in info["training"]:
        for key in ("image", "label"):
            old = root / entry[key]
            new = old.parent / "DOE_JOHN" / old.name
            new.parent.mkdir(exist_ok=True)
            shutil.move(old, new)
            entry[key] = f"./{new.relative_to(root)}"
    (root / "dataset.json").write_text(json.dumps(info))
    return root


SETS: dict[str, Callable[[Path], Path]] = {
    "nnunet": make.nnunet, "decathlon": make.decathlon, "deep decathlon": deep_decathlon, "bids": make.bids,
    "manifest": make.manifest, "npz": make.npz, "pairs": make.pairs, "dicom": make.dicom, "nested dicom": nested,
    "classes": make.classes, "images": make.images, "class dicom": make.class_dicom,
}


def added(dataset: Dataset, out: Path) -> Case:
    """Writes the originals and one synthetic case as `augment` does; the latter as it lies there."""
    layout = LAYOUTS[dataset.layout]
    placed = [layout.place(out, dataset, case) for case in dataset.cases]
    for case, there in zip(dataset.cases, placed, strict=True):
        layout.copy(case, there)
    parent = dataset.split("train")[0]
    new = synthetic_case(parent, 1)
    there = layout.place(out, dataset, new)
    image, mask = dataset.load(parent)
    made = image.with_array(image.array.max() - image.array.astype(np.float32))
    record = Provenance(new.id, (parent.id,), new.patient, parent.label, 7, "model", "abc", "gan")
    layout.save(dataset, there, made, mask, parent, provenance=record)
    record.write(layout.sidecar(there))
    layout.finish(out, dataset, [*placed, there])
    return there


@pytest.mark.parametrize("name", SETS)
def test_no_layout_names_the_parent_of_a_synthetic_case(name: str, tmp_path: Path) -> None:
    plain = open_dataset(SETS[name](tmp_path / "data"))
    dataset = with_hashed_ids(plain)
    parent = plain.split("train")[0]
    assert dataset.fingerprint() == plain.fingerprint()
    assert [case.images for case in dataset.cases] == [case.images for case in plain.cases]
    out = tmp_path / "out"
    there = added(dataset, out)
    sidecar = LAYOUTS[dataset.layout].sidecar(there)
    # Labels of BIDS and folders of the parent are its names too; what all cases share, and the class, is not.
    own = {parent.id, parent.patient, *re.findall(r"(?:sub|ses)-[A-Za-z0-9]+", parent.id), "DOE_JOHN", "study"}
    if plain.layout != "npz":
        shared = {part for case in plain.cases if case.id != parent.id for image in case.images for part in image.parts}
        own |= {part for part in parent.images[0].relative_to(plain.root).parts if part not in shared}
    own -= {"", parent.label, "image.nii.gz", "series"} | {each for each in own if each.startswith("p-")}
    written = (*there.images, *([there.mask] if there.mask else []), sidecar)
    told = "\n".join([*(path.relative_to(out).as_posix() for path in written), sidecar.read_text()])
    for text in own:
        assert not re.search(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])", told), (text, told)
    again = open_dataset(out)
    [made] = [case for case in again.cases if case.synthetic]
    assert made.id == f"{hashed_case(parent.id)}syn0001"
    assert len(again.cases) == len(plain.cases) + 1 and again.layout == plain.layout
    if made.mask is not None:
        assert made.patient in {case.patient for case in again.cases if not case.synthetic}
    assert again.load(made)[0].shape == plain.load(parent)[0].shape
    copied = {file.read_bytes() for file in out.rglob("*") if file.is_file()}
    if plain.layout != "npz":
        assert all(path.read_bytes() in copied for path in parent.images if path.is_file())


def test_the_patient_of_a_synthetic_case_is_known_again_by_name(tmp_path: Path) -> None:
    for number, (maker, patients) in enumerate(((make.nnunet, True), (make.bids, True), (make.pairs, True))):
        plain = open_dataset(maker(tmp_path / f"data{number}"))
        added(with_hashed_ids(plain), tmp_path / f"out{number}")
        again = open_dataset(tmp_path / f"out{number}")
        [made] = [case for case in again.cases if case.synthetic]
        assert (made.patient == plain.split("train")[0].patient) is patients


def test_hashes_are_stable_and_not_hashed_again(tmp_path: Path) -> None:
    assert hashed_case("Doe^John") == f"case-{hashlib.sha256(b'Doe^John').hexdigest()[:12]}"
    assert hashed_case(hashed_case("a")) == hashed_case("a") != hashed_case("b")
    assert hashed_case("asyn0001", synthetic=True) == hashed_case("a") + "syn0001" != hashed_case("asyn0001")
    assert hashed_case(hashed_case("asyn0001", synthetic=True)) == hashed_case("a") + "syn0001"
    assert hashed_patient("") == "" and hashed_patient(hashed_patient("P1")) == hashed_patient("P1") != "P1"
    assert hashed_patient("p-0123456789") == "p-0123456789"  # a pseudonym of DICOM's own
    assert hashed_case("b\udcff") != hashed_case("b")
    dataset = with_hashed_ids(open_dataset(make.manifest(tmp_path / "data")))
    assert with_hashed_ids(dataset) is dataset


def test_two_ids_with_one_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(make.manifest(tmp_path / "data"))
    monkeypatch.setattr(hashing, "_digits", lambda text: "0" * hashing.DIGITS)
    with pytest.raises(Refused, match="TAB_DUPLICATE_ID"):
        with_hashed_ids(dataset)


def test_columns_that_a_manifest_keeps_are_not_given_to_synthetic_rows(tmp_path: Path) -> None:
    plain = open_dataset(make.manifest(tmp_path / "data"))
    for dataset, age in ((plain, "61"), (with_hashed_ids(plain), "")):
        out = tmp_path / f"out{bool(age)}"
        added(dataset, out)
        rows = (out / "manifest.csv").read_text().splitlines()
        [made] = [row.split(",") for row in rows if row.endswith(",yes")]
        assert made[rows[0].split(",").index("age")] == age
        assert ("p1" in "\n".join(rows)) is bool(age)


def test_a_record_is_hashed_in_all_its_parts_and_hands_on_what_was_odd() -> None:
    record = Provenance("asyn0001", ("a", "b"), "P1", "ill", 7, "m", "0", "paste",
                        (Lesion("x", (1.0,), 2.0, 3, "b"), Lesion("x", (1.0,), 2.0, 3)))
    text = json.dumps(hashed_record(record).as_json())
    assert hashed_case("a") in text and hashed_case("b") in text and hashed_patient("P1") in text
    assert '"a"' not in text and '"b"' not in text and "P1" not in text
    notes = (Note("SINGLE_SLICE", "x", "y"), Note("GEOM_RESAMPLED", "x", "y"), Note("BURNED_IN_ANNOTATION", "x", "y"))
    assert handed_on(notes) == ("GEOM_RESAMPLED", "BURNED_IN_ANNOTATION")
    told = replace(record, parent_notes=handed_on(notes))
    assert told.as_json()["parent_notes"] == ["GEOM_RESAMPLED", "BURNED_IN_ANNOTATION"]
    assert "parent_notes" not in record.as_json()
    assert [line.split(": ")[0] for line in notes_remarks([told, record])] == ["1 of 2 synthetic cases"] * 2


def test_tables_and_cards_say_which_ids_they_show(tmp_path: Path) -> None:
    plain = open_dataset(make.manifest(tmp_path / "data"))
    assert "kept" in ids_remark(plain)[0] and "hashed" in ids_remark(with_hashed_ids(plain))[0]
    assert "\na,real" in table(plain, []) and "\na,real" not in table(with_hashed_ids(plain), [])


def test_files_say_that_they_are_synthetic(tmp_path: Path) -> None:
    import nibabel
    from PIL import Image

    assert (files.SYNTHETIC, files.DERIVED) == (SERIES_DESCRIPTION, DERIVED_DESCRIPTION)
    image = Volume(np.arange(12 * 9, dtype=np.uint8).reshape(1, 12, 9))
    for name in ("a.nii.gz", "a.nii", "a.png", "a.npz", "a.npy"):
        files.write(image, tmp_path / name, says=files.SYNTHETIC)
        assert np.array_equal(files.read(tmp_path / name).array.reshape(12, 9), image.array[0])
    for name in ("a.nii.gz", "a.nii"):
        assert bytes(nibabel.load(tmp_path / name).header["descrip"]).rstrip(b"\0") == files.SYNTHETIC.encode()
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.info["Description"] == files.SYNTHETIC
    with np.load(tmp_path / "a.npz", allow_pickle=False) as held:
        assert str(held["notice"]) == files.SYNTHETIC
    files.write(image, tmp_path / "plain.png")
    with Image.open(tmp_path / "plain.png") as opened:
        assert "Description" not in opened.info


@pytest.mark.parametrize("name", ["nnunet", "images", "classes", "npz", "pairs"])
def test_synthetic_cases_of_every_layout_say_so_and_originals_do_not(name: str, tmp_path: Path) -> None:
    import nibabel
    from PIL import Image

    there = added(open_dataset(SETS[name](tmp_path / "data")), tmp_path / "out")
    path = there.images[0]
    if path.name.endswith((".nii", ".nii.gz")):
        for each in (path, *([there.mask] if there.mask else [])):
            assert files.SYNTHETIC in bytes(nibabel.load(each).header["descrip"]).decode()
    elif path.suffix == ".png":
        with Image.open(path) as opened:
            assert opened.info["Description"] == files.SYNTHETIC
    else:
        with np.load(path, allow_pickle=False) as held:
            assert held["train_synthetic"].tolist() == [False] * (len(held["train_images"]) - 1) + [True]
