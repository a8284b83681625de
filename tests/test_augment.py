"""`augment` and `synthesize`: same layout out, labels right, resumable, the same bytes for the same seed."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import medgan
from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.errors import Interrupted, Refused
from medgan.verbs.progress import Progress


def _hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def _sound(source: Dataset, out: Path, synthetic: int) -> None:
    """What holds for every augmented data set with masks."""
    made = open_dataset(out)
    assert made.layout == source.layout and made.labels == source.labels and made.channels == source.channels
    assert len(made.cases) == len(source.cases) + synthetic
    assert sum(case.synthetic for case in made.cases) == synthetic
    originals = {case.id: case for case in source.cases}
    layout = LAYOUTS[made.layout]
    for case in made.cases:
        image, mask = made.load(case)
        if not case.synthetic:
            for a, b in zip(originals[case.id].images, case.images, strict=True):
                assert (_hashes(a) == _hashes(b)) if a.is_dir() else (a.read_bytes() == b.read_bytes())
            continue
        record = json.loads(layout.sidecar(case).read_text())
        parent, old = source.load(originals[record["parents"][0]])
        assert case.split == "train" and record["synthetic"] is True and record["lesions"]
        assert image.array.dtype == parent.array.dtype and np.allclose(image.affine, parent.affine)
        assert mask is not None and old is not None
        voxels = sum(lesion["voxels"] for lesion in record["lesions"])
        if int((mask.array > 0).sum()) == voxels:
            # Its own lesions were taken out first, with what they looked like.
            new = mask.array > 0
            assert (image.array != parent.array).any(axis=0)[old.array[0] > 0].mean() > 0.8
        else:
            new = (mask.array != old.array) & (mask.array > 0)
            assert not ((old.array > 0) & (mask.array != old.array)).any() and int(new.sum()) == voxels
        assert new.any() and set(np.unique(mask.array[new])) <= set(source.labels)
        assert not np.array_equal(image.array, parent.array)
        # Most of the scan is the parent's own, to the bit.
        assert (image.array == parent.array).mean() > 0.5
    rows = list(csv.DictReader((out / "augmentation.csv").read_text().splitlines()))
    assert [row["origin"] for row in rows].count("real") == len(source.cases)
    assert {row["id"] for row in rows} == {case.id for case in made.cases}
    card = (out / "DATA_CARD.md").read_text()
    assert f"{synthetic} of {len(made.cases)} cases are synthetic" in card


@pytest.mark.parametrize("method", ["gan", "paste", "procedural"])
def test_a_factor_of_two_doubles_the_training_cases(mr_set: Path, lesion_run: Path, tmp_path: Path,
                                                    method: str) -> None:
    before = _hashes(mr_set)
    made = medgan.augment(mr_set, factor=2, out=tmp_path / "x2", method=method,  # type: ignore[arg-type]
                          model=lesion_run if method == "gan" else None)
    assert not made.skipped and len(made.synthetic) == 3
    _sound(open_dataset(mr_set), tmp_path / "x2", 3)
    assert _hashes(mr_set) == before, "the data set itself was changed"
    assert (tmp_path / "x2" / "examples.png").is_file()


def test_interrupted_and_started_again_it_ends_with_the_same_files(mr_set: Path, lesion_run: Path,
                                                                  tmp_path: Path) -> None:
    medgan.augment(mr_set, factor=2, out=tmp_path / "whole", model=lesion_run, seed=4)

    def stop(progress: Progress) -> None:
        if progress.stage == "synthesizing" and progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="goes on"):
        medgan.augment(mr_set, factor=2, out=tmp_path / "broken", model=lesion_run, seed=4, progress=stop)
    assert not (tmp_path / "broken" / "dataset.json").exists()
    medgan.augment(mr_set, factor=2, out=tmp_path / "broken", model=lesion_run, seed=4)
    assert _hashes(tmp_path / "broken") == _hashes(tmp_path / "whole")
    other = medgan.augment(mr_set, factor=2, out=tmp_path / "other", model=lesion_run, seed=5)
    changed = _hashes(other.out)
    assert any(changed[name] != digest for name, digest in _hashes(tmp_path / "whole").items() if "syn" in name)


def test_the_number_of_workers_does_not_change_the_bytes(mr_set: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        medgan.augment(mr_set, factor=1.67, out=tmp_path / str(workers), method="paste", workers=workers)
    assert _hashes(tmp_path / "1") == _hashes(tmp_path / "2")


def test_without_a_model_one_is_trained_and_found_again(mr_set: Path, tmp_path: Path, tiny: dict[str, object],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[Progress] = []
    made = medgan.augment(mr_set, factor=1.34, modality="mr", settings=tiny, progress=told.append)
    assert made.run == Path("runs/mr-lesion") and made.out == mr_set.with_name("mr-x1.34")
    assert any("training one first" in p.text for p in told)
    again = medgan.augment(mr_set, factor=1.34, modality="mr", settings=tiny, out=tmp_path / "again")
    assert again.run == Path("runs/mr-lesion") and not Path("runs/mr-lesion-2").exists()
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, factor=1.34, settings=tiny | {"network.width": 4}, out=tmp_path / "third")
    assert refused.value.code == "CFG_VALUE" and "network" in str(refused.value)
    # A run that was only begun is finished, not left behind.
    Path("runs/mr-lesion/weights.safetensors").unlink()
    medgan.augment(mr_set, factor=1.34, settings=tiny, out=tmp_path / "fourth")
    assert Path("runs/mr-lesion/weights.safetensors").is_file() and not Path("runs/mr-lesion-2").exists()


def test_held_out_cases_are_never_parents(mr_set: Path, tmp_path: Path) -> None:
    rows = ["id,image,mask,patient,split"]
    for index, split in enumerate(("train", "val", "test")):
        name = f"mrphantom_{index:04d}"
        for kind, file in (("imagesTr", f"{name}_0000.nii.gz"), ("labelsTr", f"{name}.nii.gz")):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / kind / file).write_bytes((mr_set / kind / file).read_bytes())
        rows.append(f"{name},imagesTr/{name}_0000.nii.gz,labelsTr/{name}.nii.gz,p{index},{split}")
    (tmp_path / "set" / "manifest.csv").write_text("\n".join(rows) + "\n")
    made = medgan.augment(tmp_path / "set", factor=3, out=tmp_path / "out", method="paste", modality="mr")
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset.split("train")) == 3 and len(dataset.split("val")) == len(dataset.split("test")) == 1
    layout = LAYOUTS[dataset.layout]
    for case in dataset.cases:
        if case.synthetic:
            record = json.loads(layout.sidecar(case).read_text())
            assert record["parents"] == ["mrphantom_0000"]
            assert {lesion["donor"] for lesion in record["lesions"]} == {"mrphantom_0000"}
    assert len(made.synthetic) == 2


def test_classes_are_augmented_with_whole_images(xray_classes: Path, image_run: Path, tmp_path: Path) -> None:
    made = medgan.augment(xray_classes, factor=1.5, out=tmp_path / "out", model=image_run, modality="xray")
    dataset = open_dataset(tmp_path / "out")
    assert len(made.synthetic) == 4 and len(dataset.cases) == 12 and dataset.classes == ("normal", "opacity")
    for case in dataset.cases:
        image, _ = dataset.load(case)
        assert image.shape == (32, 32) and image.array.dtype == np.uint8
    assert len({case.patient for case in dataset.cases if case.synthetic}
               & {case.patient for case in dataset.cases if not case.synthetic}) == 0


@pytest.mark.parametrize(("change", "code"), [
    ({"factor": 0.5}, "FACTOR_RANGE"), ({"factor": float("nan")}, "FACTOR_RANGE"), ({"factor": 1e6}, "FACTOR_RANGE"),
    ({"workers": 0}, "CFG_VALUE"), ({"settings": ["augment.nothing=1"]}, "CFG_UNKNOWN"),
    ({"model": "nowhere"}, "RUN_NOT_FOUND"), ({"modality": "ct"}, "RUN_TASK"),
])
def test_wrong_arguments_are_refused_and_nothing_is_written(mr_set: Path, lesion_run: Path, tmp_path: Path,
                                                           change: dict[str, object], code: str) -> None:
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, **({"out": tmp_path / "out", "model": lesion_run} | change))  # type: ignore[arg-type]
    assert refused.value.code == code and not (tmp_path / "out").exists()


def test_a_run_of_another_task_or_other_channels_is_refused(mr_set: Path, image_run: Path, lesion_run: Path,
                                                           tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, out=tmp_path / "out", model=image_run)
    assert refused.value.code == "RUN_TASK"
    two = tmp_path / "two"
    for kind in ("imagesTr", "labelsTr"):
        (two / kind).mkdir(parents=True)
    for path in sorted((mr_set / "imagesTr").glob("*.nii.gz")):
        for channel in (0, 1):
            (two / "imagesTr" / path.name.replace("_0000.nii", f"_000{channel}.nii")).write_bytes(path.read_bytes())
    for path in (mr_set / "labelsTr").glob("*.nii.gz"):
        (two / "labelsTr" / path.name).write_bytes(path.read_bytes())
    description = json.loads((mr_set / "dataset.json").read_text())
    description["channel_names"] = {"0": "FLAIR", "1": "T1"}
    (two / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(Refused) as refused:
        medgan.augment(two, out=tmp_path / "out", model=lesion_run)
    assert refused.value.code == "RUN_CHANNELS" and not (tmp_path / "out").exists()


def test_an_output_that_holds_something_else_is_refused(mr_set: Path, lesion_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, out=out, model=lesion_run)
    assert refused.value.code == "OUT_EXISTS" and [p.name for p in out.iterdir()] == ["thesis.txt"]
    medgan.augment(mr_set, factor=1.34, out=tmp_path / "begun", method="paste")
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, factor=2, out=tmp_path / "begun", method="paste")
    assert refused.value.code == "OUT_EXISTS" and "factor" in str(refused.value)
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, out=mr_set / "inside", model=lesion_run)
    assert refused.value.code == "OUT_EXISTS" and not (mr_set / "inside").exists()


def test_synthesize_honours_label_and_size_and_writes_the_layout(lesion_run: Path, tmp_path: Path) -> None:
    made = medgan.synthesize(lesion_run, 2, out=tmp_path / "new", label="lesion", size_mm=11)
    assert len(made) == 2 and len(open_dataset(tmp_path / "new").cases) == 2
    for case in made:
        assert case.record["label"] == "lesion" and len(case.record["lesions"]) == 1
        assert case.record["lesions"][0]["size_mm"] == pytest.approx(11, rel=0.35)
        assert case.mask is not None and case.mask.array.any()
    returned = medgan.synthesize(lesion_run, count=2, label="lesion", size_mm=11)
    assert all(np.array_equal(a.image.array, b.image.array) for a, b in zip(made, returned, strict=True))
    with pytest.raises(Refused) as refused:
        medgan.synthesize(lesion_run, count=1, label="freckle")
    assert refused.value.code == "LABEL_UNKNOWN" and "tumour" in str(refused.value)
    with pytest.raises(Refused) as refused:
        medgan.synthesize(lesion_run, count=1, out=tmp_path / "new")
    assert refused.value.code == "OUT_EXISTS"


def test_synthesize_makes_images_of_a_class(image_run: Path, tmp_path: Path) -> None:
    made = medgan.synthesize(image_run, 3, out=tmp_path / "new", label="opacity")
    assert len(made) == 3 and {p.parent.name for p in (tmp_path / "new").rglob("*.png")} == {"opacity"}
    assert not np.array_equal(made[0].image.array, made[1].image.array)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glioma", "ms"])
def test_real_data_sets_are_doubled(shared_data: Path, tmp_path: Path, name: str, tiny: dict[str, object]) -> None:
    source = open_dataset(shared_data / name)
    made = medgan.augment(shared_data / name, factor=2, out=tmp_path / "x2",
                          model=medgan.train(shared_data / name, out=tmp_path / "run", settings=tiny).path)
    assert len(made.synthetic) == len(source.cases)
    _sound(source, tmp_path / "x2", len(source.cases))


def test_dicom_series_come_back_as_valid_dicom_series_about_nobody(tmp_path: Path) -> None:
    import subprocess
    import sys

    import pydicom

    from medgan.datasets.phantoms import phantom
    from medgan.imaging.dicom_write import write_synthetic
    from medgan.imaging.files import write

    for index in range(2):
        image, mask = phantom("ct", index, shape=(48, 48, 16))
        folder = tmp_path / "set" / f"patient{index}"
        write_synthetic(image, folder, model_hash="", seed=index, derivation="phantom")
        for file in folder.iterdir():
            header = pydicom.dcmread(file)
            header.PatientName, header.PatientID = "Canary^Tweety", f"CANARY{index}"
            header.InstitutionName = "Canary Hospital"
            header.save_as(file)
        write(mask, folder / "mask.nii.gz")
    made = medgan.augment(tmp_path / "set", factor=2, out=tmp_path / "out", method="paste", modality="ct")
    assert len(made.synthetic) == 2
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset.cases) == 4 and dataset.layout == "dicom"
    checker = Path(sys.executable).parent / "dciodvfy"
    for case in dataset.cases:
        if not case.synthetic:
            continue
        files = sorted(p for p in case.images[0].iterdir() if p.suffix == ".dcm")
        assert len(files) == 16
        header = pydicom.dcmread(files[0])
        assert header[0x0008001C].value == "YES" and b"anary" not in files[0].read_bytes()
        assert list(header.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert header.SeriesDescription == "SYNTHETIC - medgan - NOT FOR DIAGNOSIS"
        if checker.is_file():
            told = subprocess.run([checker, files[0]], capture_output=True, text=True, check=False)
            assert "Error" not in told.stdout + told.stderr
    _sound(open_dataset(tmp_path / "set"), tmp_path / "out", 2)


def test_a_killed_process_loses_nothing_that_was_finished(mr_set: Path, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys
    import time

    out = tmp_path / "out"
    command = [sys.executable, "-m", "medgan.cli", "augment", str(mr_set), "--factor", "3", "--method", "paste",
               "--modality", "mr", "--set", "augment.seen=0", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("imagesTr/mr*.provenance.json")) and process.poll() is None:
        assert time.monotonic() < deadline, "no case was made"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {p: p.read_bytes() for p in out.glob("imagesTr/mr*.provenance.json")}
    assert finished
    subprocess.run(command, check=True, capture_output=True)
    assert all(path.read_bytes() == content for path, content in finished.items())
    medgan.augment(mr_set, factor=3, out=tmp_path / "whole", method="paste", modality="mr",
                   settings={"augment.seen": 0})
    assert _hashes(out) == _hashes(tmp_path / "whole")


@pytest.mark.parametrize("dims", [2, 3])
def test_whole_images_of_a_set_with_masks_go_into_class_folders(mr_set: Path, tmp_path: Path, dims: int,
                                                                tiny: dict[str, object]) -> None:
    run = medgan.train(mr_set, task="image", modality="mr", out=tmp_path / "run",
                       settings=tiny | {"data.dims": dims, "data.crop": 16, "training.images": 8})
    made = medgan.synthesize(run, 2, out=tmp_path / "new")
    assert len(made) == 2 and all(case.image.dims == dims and case.mask is None for case in made)
    images = sorted((tmp_path / "new" / "image").glob("*.nii.gz"))
    assert len(images) == 2 and len(list((tmp_path / "new" / "image").glob("*.json"))) == 2
    assert medgan.read(images[0]).array.dtype == np.int16


def test_refusals_of_synthesize_leave_nothing_behind(lesion_run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[data]\ncrop = 16\n")
    for change in ({"settings": ["augment.colour=1"]}, {"settings": ["data.crop=16"]}, {"device": "tpu"},
                   {"config": tmp_path / "other.toml"}):
        with pytest.raises(Refused):
            medgan.synthesize(lesion_run, 1, out=tmp_path / "new", **change)  # type: ignore[arg-type]
        assert not (tmp_path / "new").exists()


def test_default_names_and_guards(mr_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.copytree(mr_set, tmp_path / "v1.0")
    monkeypatch.chdir(tmp_path / "v1.0")
    made = medgan.augment(".", factor=1.34, method="paste", modality="mr")
    assert made.out == tmp_path / "v1.0-x1.34"
    # An empty folder is as good as none, and what is wrong with a mask is still said before anything is written.
    label = next((tmp_path / "v1.0" / "labelsTr").iterdir())
    import nibabel

    image = nibabel.load(label)
    affine = image.affine.copy()
    affine[0, 3] += 50
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), label)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused) as refused:
        medgan.augment(tmp_path / "v1.0", method="paste", out=tmp_path / "empty")
    assert refused.value.code == "LABEL_GRID" and not list((tmp_path / "empty").iterdir())


def test_a_run_folder_is_no_data_set(lesion_run: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        medgan.augment(lesion_run, out=tmp_path / "out", method="paste")
    assert refused.value.code == "DATASET_UNKNOWN" and "--model" in str(refused.value)
