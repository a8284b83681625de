"""Every layout: read, written back, opened again; and what a stranger's data set may not do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dataset_makers as make
import numpy as np
import pytest
from layout_makers import add_one, codes

from medgan.datasets.layout_base import stored_dtype
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.errors import Refused
from medgan.imaging.convert import cast

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared/data is not there")

MAKERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nnunet": (make.nnunet, "nnunet"), "nnunet_png": (make.nnunet_png, "nnunet"),
    "decathlon": (make.decathlon, "decathlon"), "bids": (make.bids, "bids"),
    "manifest": (make.manifest, "manifest"), "npz": (make.npz, "npz"), "npz3d": (make.npz3d, "npz"),
    "pairs": (make.pairs, "pairs"), "pair": (make.pair, "pairs"), "classes": (make.classes, "classes"),
    "class_dicom": (make.class_dicom, "classes"),
    "class_volumes": (make.class_volumes, "classes"), "images": (make.images, "images"), "dicom": (make.dicom, "dicom"),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_a_layout_is_written_back_as_it_was_read_and_opens_equal(name: str, tmp_path: Path) -> None:
    maker, layout = MAKERS[name]
    root = maker(tmp_path / "data")
    before = make.tree(root)
    dataset = open_dataset(root)
    assert dataset.layout == layout
    originals, new = add_one(dataset, tmp_path / "out")
    assert make.tree(root) == before, "the data set itself must not change"

    again = open_dataset(tmp_path / "out")
    assert again.layout == layout
    assert (again.channels, again.labels, again.classes) == (dataset.channels, dataset.labels, dataset.classes)
    expected = {case.id: case for case in [*originals, new]}
    assert set(again.ids) == set(expected)
    for case in again.cases:
        assert replace(case, row=None) == replace(expected[case.id], row=None)
    assert [case.id for case in again.cases if case.synthetic] == [new.id]
    assert not list((tmp_path / "out").rglob(".medgan-partial*"))
    assert not list((tmp_path / "out").glob(".*-rows"))

    parent = dataset.split("train")[0]
    image, mask = dataset.load(parent)
    made, made_mask = again.load(next(case for case in again.cases if case.synthetic))
    assert made.array.dtype == image.array.dtype
    np.testing.assert_allclose(made.array, image.array.max() - image.array.astype(np.float32), atol=1e-6)
    np.testing.assert_allclose(made.affine, image.affine, atol=1e-5)
    assert (mask is None) == (made_mask is None)
    if mask is not None and made_mask is not None:
        np.testing.assert_array_equal(made_mask.array, mask.array)
    for case in dataset.cases:
        copied = again.load(next(c for c in again.cases if c.id == case.id))[0]
        np.testing.assert_array_equal(copied.array, dataset.load(case)[0].array)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_input_gives_the_same_bytes_and_originals_keep_theirs(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(MAKERS[name][0](tmp_path / "data"))
    for out in ("one", "two"):
        add_one(dataset, tmp_path / out)
    assert make.tree(tmp_path / "one") == make.tree(tmp_path / "two")
    layout = LAYOUTS[dataset.layout]
    if layout.name != "npz":
        for case in dataset.cases:
            there = layout.place(tmp_path / "one", dataset, case)
            for source, target in zip(case.images, there.images, strict=True):
                assert source.is_dir() or source.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "npz3d"])
def test_a_second_generation_carries_synthetic_cases_over(name: str, tmp_path: Path) -> None:
    add_one(open_dataset(MAKERS[name][0](tmp_path / "data")), tmp_path / "out")
    second = open_dataset(tmp_path / "out")
    layout = LAYOUTS[second.layout]
    placed = [layout.place(tmp_path / "third", second, case) for case in second.cases]
    for case, there in zip(second.cases, placed, strict=True):
        layout.copy(case, there)
    layout.finish(tmp_path / "third", second, placed)
    third = open_dataset(tmp_path / "third")
    assert third.cases == tuple(sorted(placed, key=lambda case: case.id))
    assert sum(case.synthetic for case in third.cases) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_a_synthetic_case_stays_with_its_parents_patient(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(MAKERS[name][0](tmp_path / "data"))
    _, new = add_one(dataset, tmp_path / "out")
    found = next(case for case in open_dataset(tmp_path / "out").cases if case.id == new.id)
    assert found.patient == dataset.split("train")[0].patient


def test_values_are_rounded_and_clipped_into_the_stored_type(tmp_path: Path) -> None:
    values = np.array([1.6, 2.4, 300.2, -7.0], np.float32)
    np.testing.assert_array_equal(cast(values, np.dtype(np.uint8)), [2, 2, 255, 0])
    np.testing.assert_array_equal(cast(values, np.dtype(np.float64)), values)
    path = make.nifti(tmp_path / "a.nii.gz", make.image(1, "uint8"))
    assert stored_dtype(path, np.dtype(np.float32)) == np.uint8
    for slope, intercept, expected in ((1, -1024, np.int16), (1000, 0, np.int32), (0.5, 0, np.float32)):
        raw = bytearray(gzip.decompress(path.read_bytes()))  # scl_slope and scl_inter stand at byte 112
        raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
        (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(raw)))
        assert stored_dtype(tmp_path / "c.nii.gz", np.dtype(np.int64)) == expected


def test_nnunet_reads_channels_splits_regions_and_test_images(tmp_path: Path) -> None:
    dataset = open_dataset(make.nnunet(tmp_path / "d"))
    assert [case.id for case in dataset.split("train")] == ["glioma_0003", "glioma_0004", "glioma_0005"]
    assert [case.id for case in dataset.split("test")] == ["glioma_0009"]
    assert dataset.channels == ("FLAIR", "T1c")
    assert dataset.labels == {0: "background", 1: "whole", 2: "core"}
    assert dataset.modality == "mr"
    image, mask = dataset.load(dataset.cases[0])
    assert image.array.shape == (2, *make.SHAPE) and mask is not None and mask.array.shape == (1, *make.SHAPE)
    np.testing.assert_array_equal(image.array[1], make.image(31))
    assert dataset.cases[-1].mask is None


def test_nnunet_files_named_by_the_dataset_entry(tmp_path: Path) -> None:
    root = make.nnunet(tmp_path / "d")
    info = json.loads((root / "dataset.json").read_text())
    info["dataset"] = {"x": {"images": [f"imagesTr/glioma_0004_000{c}.nii.gz" for c in (0, 1)],
                             "label": "labelsTr/glioma_0004.nii.gz"}}
    make.described(root, {**info, "numTraining": 1})
    dataset = open_dataset(root)
    assert [case.id for case in dataset.split("train")] == ["x"]
    add_one(dataset, tmp_path / "out")
    assert set(json.loads((tmp_path / "out/dataset.json").read_text())["dataset"]) == {"x", "x_syn0001"}
    info["dataset"]["x"]["label"] = "../../secret.nii.gz"
    make.described(root, info)
    with pytest.raises(Refused) as caught:
        open_dataset(root)
    assert codes(caught) == "TAB_PATH_ESCAPE"


def break_nnunet(root: Path, what: str) -> None:
    info = json.loads((root / "dataset.json").read_text())
    if what == "label":
        (root / "labelsTr/glioma_0004.nii.gz").unlink()
    elif what == "image":
        (root / "imagesTr/glioma_0004_0001.nii.gz").unlink()
    elif what == "orphan":
        make.nifti(root / "labelsTr/nobody.nii.gz", make.mask())
    elif what == "more":
        make.nifti(root / "imagesTr/glioma_0004_0002.nii.gz", make.image(1))
    elif what == "link":
        secret = make.nifti(root.parent / "secret.nii.gz", make.image(1))
        (root / "labelsTr/glioma_0004.nii.gz").unlink()
        (root / "labelsTr/glioma_0004.nii.gz").symlink_to(secret)
    else:
        key, value = {"values": ("labels", {"background": 0, "a": -1}), "ending": ("file_ending", ".mha"),
                      "background": ("labels", {"a": 1}), "names": ("channel_names", {"1": "FLAIR"}),
                      "code": ("name", "$__import__('os')"), "target": ("labels", {"_target_": "os.system"})}[what]
        make.described(root, {**info, key: value})


@pytest.mark.parametrize(("what", "code"), [
    ("label", "LABEL_MISSING"), ("image", "TAB_PATH_MISSING"), ("orphan", "TAB_UNMATCHED"), ("more", "DATASET_JSON"),
    ("link", "TAB_PATH_ESCAPE"), ("values", "DATASET_JSON"), ("ending", "DATASET_JSON"), ("background", "DATASET_JSON"),
    ("names", "DATASET_JSON"), ("code", "CFG_UNSAFE"), ("target", "CFG_UNSAFE"),
])  # fmt: skip
def test_a_wrong_nnunet_data_set_is_refused(what: str, code: str, tmp_path: Path) -> None:
    root = make.nnunet(tmp_path / "d")
    break_nnunet(root, what)
    with pytest.raises(Refused) as caught:
        open_dataset(root)
    assert codes(caught) == code
    if what in ("label", "image", "more"):
        assert "glioma_0004" in str(caught.value)


def test_a_wrong_number_of_cases_is_noted(tmp_path: Path) -> None:
    root = make.nnunet(tmp_path / "d")
    make.described(root, {**json.loads((root / "dataset.json").read_text()), "numTraining": 5})
    assert [note.code for note in open_dataset(root).notes] == ["TAB_UNMATCHED"]


def test_decathlon_reads_channels_lists_and_unlisted_images(tmp_path: Path) -> None:
    root = make.decathlon(tmp_path / "d")
    make.nifti(root / "imagesTr/extra.nii.gz", make.image(1))
    dataset = open_dataset(root)
    assert [(case.id, case.split) for case in dataset.cases] == [("ms_07", "train"), ("ms_26", "train"),
                                                                 ("ms_99", "test")]
    assert dataset.labels == {0: "background", 1: "lesion"}
    assert [note.code for note in dataset.notes] == ["TAB_UNMATCHED"]
    assert dataset.load(dataset.cases[0])[0].array.shape == (2, *make.SHAPE)
    assert open_dataset(root / "dataset.json").cases == dataset.cases


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.nii.gz", "imagesTr/../../x.nii.gz", "http://a/b", "file:///etc/x",
                                  "~/x.nii.gz", "C:\\x.nii.gz", "..\\x.nii.gz", "out/x.nii.gz"])
def test_no_listed_path_leaves_the_folder(path: str, tmp_path: Path) -> None:
    make.nifti(tmp_path / "elsewhere/x.nii.gz", make.image(0))
    root = make.decathlon(tmp_path / "d")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    make.described(root, {"modality": {"0": "CT"}, "labels": {"0": "background"}, "training": [{"image": path}]})
    with pytest.raises(Refused) as caught:
        open_dataset(root)
    assert codes(caught) == "TAB_PATH_ESCAPE"


def test_bids_reads_sessions_contrasts_and_lesion_masks(tmp_path: Path) -> None:
    dataset = open_dataset(make.bids(tmp_path / "d"))
    assert [case.id for case in dataset.cases] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert [case.patient for case in dataset.cases] == ["sub-01", "sub-01", "sub-02"]
    assert dataset.channels == ("FLAIR", "T1w") and dataset.labels == {0: "background", 1: "lesion"}
    masks = [case.mask for case in dataset.cases]
    assert all(mask is not None and "desc-lesion" in mask.name for mask in masks)


def test_bids_is_written_as_a_derivative(tmp_path: Path) -> None:
    add_one(open_dataset(make.bids(tmp_path / "d")), tmp_path / "out")
    description = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][-1]["Name"] == "medgan"
    assert description["License"] == "CC0"
    names = set(make.tree(tmp_path / "out"))
    assert "participants.tsv" in names and "derivatives/readers/dataset_description.json" in names
    assert "sub-01/ses-1/anat/sub-01_ses-1_desc-syn0001_FLAIR.nii.gz" in names
    assert ("derivatives/readers/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_desc-syn0001_mask.nii.gz") in names
    assert "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.json" in names


def test_bids_contrasts_on_other_grids_are_not_stacked(tmp_path: Path) -> None:
    root = make.bids(tmp_path / "d")
    make.nifti(root / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", make.image(1), np.diag([1.0, 1, 1, 1]))
    dataset = open_dataset(root)
    assert dataset.channels == ("FLAIR",) and len(dataset.cases) == 3
    assert [note.code for note in dataset.notes] == ["TAB_UNMATCHED"]


def test_manifest_keeps_channels_patients_splits_and_further_columns(tmp_path: Path) -> None:
    root = make.manifest(tmp_path / "d")
    dataset = open_dataset(root)
    assert dataset.cases == open_dataset(root / "manifest.csv").cases
    first = dataset.cases[0]
    assert (first.label, first.patient, first.split, dict(first.extra)) == ("ill", "p1", "train", {"age": "61"})
    assert dataset.labels == {0: "background", 1: "label1", 3: "label3"} and dataset.classes == ("ill", "well")
    add_one(dataset, tmp_path / "out")
    lines = (tmp_path / "out/manifest.csv").read_text().splitlines()
    assert lines[0] == "id,image,mask,label,patient,split,age,synthetic"
    assert lines[-1].startswith("c,") and lines[-1].endswith(",-5,")


def test_class_folders_have_splits_classes_and_patients_that_ids_name(tmp_path: Path) -> None:
    dataset = open_dataset(make.classes(tmp_path / "a"))
    assert [len(dataset.split(split)) for split in ("train", "test")] == [4, 4]
    assert dataset.classes == ("NORMAL", "PNEUMONIA") and not dataset.notes
    assert open_dataset(make.class_volumes(tmp_path / "b")).split("train")[0].patient == "person1"
    make.nifti(tmp_path / "c/train/ill/person1_a.nii.gz", make.image(1))
    make.nifti(tmp_path / "c/test/ill/person1_b.nii.gz", make.image(2))
    assert [note.code for note in open_dataset(tmp_path / "c").notes] == ["SPLIT_LEAK"]


def test_dicom_patients_are_pseudonyms_and_series_of_one_stay_together(tmp_path: Path) -> None:
    dataset = open_dataset(make.dicom(tmp_path / "d"))
    assert [case.id for case in dataset.cases] == ["s1", "s2", "s3"]
    first, second, third = (case.patient for case in dataset.cases)
    assert first == third != second and "CANARY" not in first
    image, mask = dataset.load(dataset.cases[0])
    assert image.modality == "ct" and mask is not None and mask.array.sum() == 3 * 2 * 2


def test_a_killed_run_can_write_the_case_again(tmp_path: Path) -> None:
    for name in ("dicom", "nnunet", "npz"):
        dataset = open_dataset(MAKERS[name][0](tmp_path / name / "data"))
        layout, parent = LAYOUTS[dataset.layout], dataset.split("train")[0]
        new = layout.place(tmp_path / name / "out", dataset, replace(parent, id=f"{parent.id}_syn0001"))
        image, _ = dataset.load(parent)
        layout.save(dataset, new, image, None, parent)
        add_one(dataset, tmp_path / name / "out")
        assert new.id in open_dataset(tmp_path / name / "out").ids


def test_no_identifying_element_reaches_a_synthetic_series(tmp_path: Path) -> None:
    _, new = add_one(open_dataset(make.dicom(tmp_path / "d")), tmp_path / "out")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "syn0001" in str(path)]
    assert len(written) == 6  # four slices, the mask, the record
    assert not any(b"CANARY" in path.read_bytes() or b"Canary" in path.read_bytes() for path in written)
    assert new.images[0].is_dir()


def test_dicom_in_class_folders_is_told_from_patients_with_studies(tmp_path: Path) -> None:
    for seed, (kind, series, patient) in enumerate((("ill", "a", "P1"), ("ill", "b", "P2"), ("well", "c", "P3"))):
        make.dicom_series(tmp_path / "classes" / kind / series, seed + 1, patient)
        make.dicom_series(tmp_path / "studies" / patient / series, seed + 1, patient)
    dataset = open_dataset(tmp_path / "classes")
    assert dataset.layout == "classes" and dataset.classes == ("ill", "well")
    assert [case.label for case in dataset.cases] == ["ill", "ill", "well"]
    assert open_dataset(tmp_path / "studies").layout == "dicom"


def test_an_unknown_folder_is_refused_naming_what_was_looked_for(tmp_path: Path) -> None:
    make.text(tmp_path / "notes.txt", "nothing")
    with pytest.raises(Refused) as caught:
        open_dataset(tmp_path)
    assert codes(caught) == "DATASET_UNKNOWN"
    assert all(layout.looked_for in str(caught.value) for layout in LAYOUTS.values())
    with pytest.raises(Refused) as caught:
        open_dataset(tmp_path / "missing")
    assert codes(caught) == "FILE_MISSING"
    make.described(tmp_path, {"name": "x"})
    with pytest.raises(Refused) as caught:
        open_dataset(tmp_path)
    assert codes(caught) == "DATASET_JSON"


def test_the_registry_names_its_layouts() -> None:
    assert all(name == layout.name for name, layout in LAYOUTS.items())


@needs_shared
@pytest.mark.parametrize(("name", "layout", "cases"), [
    ("brain-t1", "bids", 8), ("glioma", "nnunet", 4), ("glioma-other", "nnunet", 1), ("ms", "decathlon", 2),
    ("hippocampus", "decathlon", 60), ("ct", "images", 4), ("ct-dicom", "dicom", 1), ("lung-nodule", "decathlon", 1),
    ("pneumonia", "npz", 4406),
])  # fmt: skip
def test_real_data_sets_open(name: str, layout: str, cases: int) -> None:
    dataset = open_dataset(SHARED / "data" / name)
    assert (dataset.layout, len(dataset.cases), dataset.notes) == (layout, cases, ())
    assert len({case.patient for case in dataset.cases}) == cases


@needs_shared
@pytest.mark.parametrize("name", ["hippocampus", "pneumonia", "ct-dicom"])
def test_real_data_sets_are_written_back(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(SHARED / "data" / name)
    dataset = dataset.only(dataset.cases[:3]) if name == "hippocampus" else dataset
    originals, new = add_one(dataset, tmp_path / "out")
    again = open_dataset(tmp_path / "out")
    assert {case.id for case in again.cases} == {case.id for case in [*originals, new]}
    assert again.load(next(case for case in again.cases if case.synthetic))[0].array.dtype == \
        dataset.load(dataset.split("train")[0])[0].array.dtype
