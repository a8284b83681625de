"""`medgan upsample` on a folder: every layout, resuming, skipped cases, and what must not be touched."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_makers as make
import numpy as np
import pytest

import medgan
from medgan.datasets.layouts import open_dataset
from medgan.errors import Interrupted, Refused
from medgan.imaging.geometry import same_grid
from medgan.imaging.labels import refine_labels
from medgan.imaging.restoration import acquisitions
from medgan.verbs.progress import Progress
from medgan.verbs.upsample_folder import PLAN, TABLE, is_folder_of_cases, upsample_folder

#: What most calls here ask for.
LINEAR: dict[str, Any] = {"factor": (1, 1, 2), "method": "linear", "profile": "rect"}


def table(out: Path) -> list[dict[str, str]]:
    with (out / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("maker", [make.nnunet, make.decathlon, make.bids, make.manifest, make.pairs, make.pair,
                                   make.class_volumes, make.dicom, make.images])
def test_every_layout_comes_back_as_itself(maker: Callable[[Path], Path], tmp_path: Path) -> None:
    source = maker(tmp_path / "in")
    before = make.tree(source)
    report = upsample_folder(source, tmp_path / "out", **LINEAR)
    old, new = open_dataset(source), open_dataset(tmp_path / "out")
    assert make.tree(source) == before
    assert report.done == tuple(case.id for case in old.cases) and not report.skipped
    assert new.layout == old.layout and new.ids == old.ids
    assert not any(case.synthetic for case in new.cases)
    for case, there in zip(old.cases, new.cases, strict=True):
        image, mask = old.load(case)
        fine, refined = new.load(there)
        assert fine.channels == image.channels and fine.shape == (*image.shape[:2], 2 * image.shape[2])
        assert (there.split, there.label) == (case.split, case.label)
        expected = medgan.upsample(image, **LINEAR)
        assert np.abs(fine.array.astype(float) - expected.array).max() < 1e-2
        if case.images[0].suffix != ".npy":  # which records no grid, as the table then says
            assert np.allclose(fine.affine, expected.affine, atol=1e-4)
        assert (mask is None) == (refined is None)
        if mask is not None and refined is not None:
            wanted = refine_labels(mask, acquisitions(image, (1, 1, 2), "rect", None))
            assert same_grid(fine, refined) and np.array_equal(refined.array, wanted.array)
        if case.images[0].is_file():
            assert fine.array.dtype == image.array.dtype
            names = [[path.relative_to(root) for path in each.images] for root, each in
                     ((source, case), (tmp_path / "out", there))]
            # A pair in the folder itself is called after the folder, and keeps that name in one of its own.
            assert names[0] == names[1] or (maker is make.pair and names[1] == [Path("in") / names[0][0]])
    rows = table(tmp_path / "out")
    assert [row["id"] for row in rows] == [case.id for case in old.cases]
    assert all(row["status"] == "done" and row["method"] == "linear" and row["profile"] == "rect"
               and row["factors"] == "1 x 1 x 2" and float(row["consistency"]) >= 0 for row in rows)


def test_a_dicom_series_stays_its_patients(tmp_path: Path) -> None:
    import pydicom

    upsample_folder(make.dicom(tmp_path / "in"), tmp_path / "out", **LINEAR)
    slices = sorted((tmp_path / "out/s1").glob("*.dcm"))
    header = pydicom.dcmread(slices[0])
    assert len(slices) == 8 and (tmp_path / "out/s1/mask.nii.gz").is_file()
    assert header.PatientID == "CANARY-A" and header.ImageType[0] == "DERIVED"
    assert "Upsampled to" in header.DerivationDescription


def test_called_again_it_makes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    source, out = make.nnunet(tmp_path / "in"), tmp_path / "out"
    upsample_folder(source, out, **LINEAR)
    whole, stamps = make.tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    upsample_folder(source, out, **LINEAR)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == stamps
    lost = out / "labelsTr/glioma_0004.nii.gz"
    lost.unlink()
    upsample_folder(source, out, **LINEAR)
    again = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.name for path in again} == {"glioma_0004.nii.gz", "glioma_0004_0000.nii.gz", "glioma_0004_0001.nii.gz"}
    assert make.tree(out) == whole
    make.nifti(source / "imagesTr/glioma_0003_0001.nii.gz", make.image(5, "float64"))
    upsample_folder(source, out, **LINEAR)
    changed = {name for name, digest in make.tree(out).items() if whole[name] != digest}
    assert changed == {"imagesTr/glioma_0003_0001.nii.gz", TABLE}


def test_interrupted_it_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    source = make.nnunet(tmp_path / "in")

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="goes on"):
        upsample_folder(source, tmp_path / "broken", progress=stop, **LINEAR)
    rows = table(tmp_path / "broken")
    assert len(rows) == 2 and not (tmp_path / "broken/dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").rglob("*.nii.gz")}
    upsample_folder(source, tmp_path / "broken", **LINEAR)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    upsample_folder(source, tmp_path / "whole", **LINEAR)
    assert make.tree(tmp_path / "broken") == make.tree(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_was_finished(mr_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "medgan.cli", "upsample", str(mr_set), str(out), "--method", "linear"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / TABLE).is_file() and process.poll() is None:
        assert time.monotonic() < deadline, "no case was finished"
        time.sleep(0.002)
    process.kill()
    process.wait()
    finished = [row["id"] for row in table(out)]
    kept = {path: path.stat().st_mtime_ns for name in finished for path in out.rglob(f"{name}*.nii.gz")}
    assert kept
    subprocess.run(command, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    upsample_folder(mr_set, tmp_path / "whole", method="linear", profile="auto")
    assert {**make.tree(out), PLAN: ""} == {**make.tree(tmp_path / "whole"), PLAN: ""}


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_bytes(tmp_path: Path) -> None:
    source = make.nnunet(tmp_path / "in")
    make.text(source / "labelsTr/glioma_0004.nii.gz", b"\x1f\x8b\x08")
    reports = [upsample_folder(source, tmp_path / str(workers), workers=workers, **LINEAR) for workers in (1, 2)]
    assert make.tree(tmp_path / "1") == make.tree(tmp_path / "2")
    assert all(list(report.skipped) == ["glioma_0004"] for report in reports)


def test_a_case_that_cannot_be_read_is_skipped_and_tried_again(tmp_path: Path) -> None:
    source, out = make.images(tmp_path / "in"), tmp_path / "out"
    whole = (source / "a.nii.gz").read_bytes()
    (source / "a.nii.gz").write_bytes(whole[:100])
    np.save(source / "flat.npy", np.zeros((4, 5), np.uint8))  # an image without slices
    with pytest.raises(Refused, match="LABEL_MISSING"):
        upsample_folder(source, out, **LINEAR)  # the layout wants a mask for all or none
    (source / "flat.npy").unlink()
    report = upsample_folder(source, out, **LINEAR)
    assert report.done == ("b",) and list(report.skipped) == ["a"] and "error[FILE_" in report.skipped["a"]
    assert [row["status"] for row in table(out)] == ["skipped", "done"]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["b.nii.gz", "b_mask.nii.gz"]
    (source / "a.nii.gz").write_bytes(whole)
    again = upsample_folder(source, out, **LINEAR)
    assert again.done == ("a", "b") and not again.skipped
    assert not list(out.glob(".*"))


def test_synthetic_cases_stay_known_as_such(mr_set: Path, tmp_path: Path) -> None:
    made = medgan.augment(mr_set, factor=1.34, out=tmp_path / "in", method="paste", modality="mr")
    report = upsample_folder(made.out, tmp_path / "out", **LINEAR)
    cases = open_dataset(tmp_path / "out").cases
    assert len(cases) == len(report.done) == 4
    assert [case.id for case in cases if case.synthetic] == list(made.synthetic)


def test_an_image_without_slices_is_skipped(tmp_path: Path) -> None:
    source = make.class_volumes(tmp_path / "in")
    np.save(source / "well/flat.npy", np.zeros((4, 5), np.uint8))
    report = upsample_folder(source, tmp_path / "out", **LINEAR)
    assert len(report.done) == 4 and len(report.skipped) == 1
    assert "DIM_UNSUPPORTED" in next(iter(report.skipped.values()))
    without = [row["id"] for row in table(tmp_path / "out") if "no spacing is recorded" in row["warnings"]]
    assert without == ["well_person3_a"]


@pytest.mark.parametrize(("change", "code"), [
    ({"workers": 0}, "CFG_VALUE"), ({"factor": 9}, "FACTOR_RANGE"), ({"factor": 0.5}, "FACTOR_RANGE"),
    ({"profile": "box"}, "CFG_VALUE"), ({"method": "cubic"}, "CFG_VALUE"), ({"factor": (2, 2)}, "CFG_VALUE"),
    ({"factor": None, "spacing": (1, -1, 1)}, "CFG_VALUE"), ({"thickness": -2.0}, "CFG_VALUE"),
    pytest.param({"method": "network", "model": "no/such/run"}, "RUN_NOT_FOUND", marks=pytest.mark.slow),
])
def test_wrong_options_are_refused_and_nothing_is_written(change: dict[str, Any], code: str, tmp_path: Path) -> None:
    source = make.images(tmp_path / "in")
    with pytest.raises(Refused) as refused:
        upsample_folder(source, tmp_path / "out", **(LINEAR | change))
    assert refused.value.code == code and not (tmp_path / "out").exists()


def test_an_output_that_is_something_else_is_refused(tmp_path: Path) -> None:
    source, out = make.images(tmp_path / "in"), tmp_path / "out"
    thesis = make.text(out / "thesis.txt", "years")
    for target, code in ((out, "OUT_EXISTS"), (source, "OUT_EXISTS"), (source / "fine", "OUT_EXISTS"),
                         (tmp_path / "fine.nii.gz", "FILE_FORMAT")):
        with pytest.raises(Refused) as refused:
            upsample_folder(source, target, **LINEAR)
        assert refused.value.code == code
    assert list(out.iterdir()) == [thesis] and len(list(source.iterdir())) == 4
    thesis.unlink()
    upsample_folder(source, out, **LINEAR)
    for other in ({"factor": 2}, {"thickness": 3.0}, {"profile": "sinc"}):
        with pytest.raises(Refused, match=next(iter(other))) as refused:
            upsample_folder(source, out, **(LINEAR | other))
        assert refused.value.code == "OUT_EXISTS"
    assert json.loads((out / PLAN).read_text())["options"]["profile"] == "rect"
    with pytest.raises(Refused, match="INPUT_KIND"):
        upsample_folder(make.npz(tmp_path / "arrays"), tmp_path / "other", **LINEAR)
    assert not (tmp_path / "other").exists()


def test_what_is_a_folder_of_cases(tmp_path: Path) -> None:
    for maker in (make.nnunet, make.bids, make.manifest, make.images, make.dicom, make.classes, make.class_dicom):
        assert is_folder_of_cases(maker(tmp_path / maker.__name__)), maker.__name__
    assert all(is_folder_of_cases(tmp_path / name) for name in ("nnunet/dataset.json", "manifest/manifest.csv"))
    series = make.dicom_series(tmp_path / "study/series", 1, "P1")
    bare = make.dicom_series(tmp_path / "bare", 2, "P2")
    for path in bare.iterdir():
        path.rename(path.with_suffix(""))
    for one in (series, tmp_path / "study", bare, series / "000.dcm", make.nifti(tmp_path / "a.nii.gz", make.image(1))):
        assert not is_folder_of_cases(one), one
    make.dicom_series(tmp_path / "study/other", 3, "P1")
    assert is_folder_of_cases(tmp_path / "study")
