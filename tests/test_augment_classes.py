"""Classes filled with whole images: the rarest first, in every layout with classes, in 2D and 3D, with label maps."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_makers as make
import numpy as np
import pytest
from class_makers import image_run

import medgan
from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.errors import Refused
from medgan.verbs import choose
from medgan.verbs.choose import plan_cases
from medgan.verbs.pool import Work

COUNTS = {"common": 5, "middle": 3, "rare": 1}


def _labels() -> list[str]:
    return [name for name, count in COUNTS.items() for _ in range(count)]


def folders(root: Path) -> Path:
    """Class folders of small images, with a test split."""
    for number, name in enumerate([*_labels(), *COUNTS]):
        split = "train" if number < 9 else "test"
        (root / split / name).mkdir(parents=True, exist_ok=True)
        np.save(root / split / name / f"im{number}.npy", make.image(number, "uint8", (10, 12)))
    return root


def volumes(root: Path) -> Path:
    """Class folders of NIfTI volumes that are not oriented as the network's are."""
    for number, name in enumerate(_labels()):
        make.nifti(root / name / f"scan{number}.nii.gz", make.image(number))
    return root


def npz(root: Path) -> Path:
    """A MedMNIST-style file."""
    root.mkdir(parents=True)
    classes = [list(COUNTS).index(name) for name in _labels()]
    np.savez(root / "chestmnist.npz", train_images=make.image(1, "uint8", (9, 10, 12)), train_labels=classes,
             test_images=make.image(2, "uint8", (2, 10, 12)), test_labels=[0, 2])
    return root


def npz3d(root: Path) -> Path:
    """The same of volumes."""
    root.mkdir(parents=True)
    classes = [list(COUNTS).index(name) for name in _labels()]
    np.savez(root / "organmnist3d.npz", train_images=make.image(1, "uint8", (9, 8, 9, 10)), train_labels=classes)
    return root


def manifest(root: Path) -> Path:
    """A CSV of volumes with two channels, classes and splits."""
    rows = ["id,image,label,patient,split"]
    for number, name in enumerate([*_labels(), "rare"]):
        for channel in range(2):
            make.nifti(root / f"scans/{number}_{channel}.nii.gz", make.image(2 * number + channel, "uint8"))
        rows.append(f"c{number},scans/{number}_0.nii.gz|scans/{number}_1.nii.gz,{name},p{number},"
                    f"{'train' if number < 9 else 'test'}")
    make.text(root / "manifest.csv", "\n".join([*rows, ""]))
    return root


def dicom(root: Path) -> Path:
    """Class folders of DICOM series, a patient each."""
    for number, name in enumerate(_labels()):
        make.dicom_series(root / name / f"series{number}", number + 1, f"CANARY{number}")
    return root


LAYOUTS_WITH_CLASSES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folders": (folders, "xray"), "volumes": (volumes, "mr"), "npz": (npz, "xray"), "npz3d": (npz3d, "ct"),
    "manifest": (manifest, "mr"), "dicom": (dicom, "ct"),
}  # fmt: skip


def _counts(dataset: Dataset, *, only_synthetic: bool = False) -> list[int]:
    found = Counter(case.label for case in dataset.split("train") if case.synthetic or not only_synthetic)
    return [found[name] for name in dataset.classes]


@pytest.mark.parametrize("name", LAYOUTS_WITH_CLASSES)
def test_rare_classes_are_filled_first_in_every_layout(name: str, tmp_path: Path) -> None:
    maker, modality = LAYOUTS_WITH_CLASSES[name]
    root = maker(tmp_path / "set")
    before, source = make.tree(root), open_dataset(root)
    assert _counts(source) == [5, 3, 1]
    run = image_run(root, tmp_path / "run", modality)
    made = medgan.augment(root, balance=True, model=run, modality=modality, out=tmp_path / "out", workers=1)
    assert make.tree(root) == before and not made.skipped and len(made.synthetic) == 9
    out = open_dataset(tmp_path / "out")
    # 6 make the classes even; the other 3 of factor 2 keep them so.
    assert out.layout == source.layout and out.classes == source.classes and _counts(out) == [6, 6, 6]
    layout, patients = LAYOUTS[out.layout], {case.patient for case in source.cases}
    for case in out.cases:
        if not case.synthetic:
            continue
        image, _ = out.load(case)
        record = json.loads(layout.sidecar(case).read_text())
        parent = next(each for each in source.cases if case.id.startswith(f"{each.id}syn"))
        template, _ = source.load(parent)
        assert case.split == "train" == parent.split and case.label == parent.label == record["label"]
        assert case.patient not in patients and record["parents"] == [] and record["settings"] == {"truncation": 1.0}
        assert image.array.shape == template.array.shape and image.array.dtype == template.array.dtype
        assert np.allclose(image.affine, template.affine) and not np.array_equal(image.array, template.array)
    rows = list(csv.DictReader((tmp_path / "out" / "augmentation.csv").read_text().splitlines()))
    assert Counter(row["label"] for row in rows if row["origin"] == "gan") == Counter(
        dict(zip(source.classes, (1, 3, 5), strict=True)))
    card = (tmp_path / "out" / "DATA_CARD.md").read_text()
    first, _, last = source.classes
    assert f"{first} 5 -> 6" in card.replace("&gt;", ">") and f"{last} 1 -> 6" in card.replace("&gt;", ">")


def test_without_balance_each_class_keeps_its_share(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    run = image_run(root, tmp_path / "run", "xray")
    medgan.augment(root, factor=3, model=run, modality="xray", out=tmp_path / "out")
    assert _counts(open_dataset(tmp_path / "out")) == [15, 9, 3]


def test_the_plan_goes_from_the_rarest_up_and_smaller_factors_are_its_beginning(tmp_path: Path) -> None:
    dataset = open_dataset(folders(tmp_path / "set"))
    whole = plan_cases(dataset, 3.0, even=True)
    order = [parent.label for parent, _ in whole]
    assert order[:2] == ["rare", "rare"] and Counter(order[2:6]) == {"rare": 2, "middle": 2}
    assert Counter(order) == {"common": 4, "middle": 6, "rare": 8}
    assert len({new.id for _, new in whole}) == len(whole) == 18
    for factor in (1.0, 1.3, 2.0):
        for even in (True, False):
            some = plan_cases(dataset, factor, even=even)
            assert some == plan_cases(dataset, 3.0, even=even)[:len(some)] and len(some) == round(9 * (factor - 1))
    # Shares without balance, whatever the factor: a class folder that comes first in the alphabet is not all there is.
    half = Counter(parent.label for parent, _ in plan_cases(dataset, 1.5))
    assert half["common"] in (2, 3) and half["middle"] in (1, 2)
    assert all(parent.split == "train" for parent, _ in whole)


def test_the_parents_of_a_class_take_turns(tmp_path: Path) -> None:
    planned = plan_cases(open_dataset(folders(tmp_path / "set")), 3.0, even=True)
    uses = Counter(parent.id for parent, _ in planned if parent.label == "middle")
    assert len(uses) == 3 and set(uses.values()) == {2}


def test_a_set_that_was_filled_before_is_filled_on(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    run = image_run(root, tmp_path / "run", "xray")
    medgan.augment(root, factor=1.5, balance=True, model=run, modality="xray", out=tmp_path / "one")
    first = open_dataset(tmp_path / "one")
    assert _counts(first) == [5, 4, 4]
    made = medgan.augment(tmp_path / "one", factor=1.3, balance=True, model=run, modality="xray", out=tmp_path / "two")
    second = open_dataset(tmp_path / "two")
    assert (len(made.synthetic) == 4 and _counts(second) == [5, 6, 6]) or _counts(second) == [6, 6, 5]
    assert not set(made.synthetic) & {case.id for case in first.cases}
    kept = {case.id: case for case in second.cases}
    for case in first.cases:
        assert np.array_equal(first.load(case)[0].array, second.load(kept[case.id])[0].array)


def test_a_factor_too_small_to_make_classes_even_says_so(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    run = image_run(root, tmp_path / "run", "xray")
    some = medgan.augment(root, factor=1.34, balance=True, model=run, modality="xray", out=tmp_path / "some")
    assert _counts(open_dataset(some.out)) == [5, 4, 3] or _counts(open_dataset(some.out)) == [5, 3, 4]
    said = " ".join(some.warnings)
    assert "too small to make the classes even" in said and "1.67 is enough" in said
    assert "too small" in (some.out / "DATA_CARD.md").read_text()
    enough = medgan.augment(root, factor=1.67, balance=True, model=run, modality="xray", out=tmp_path / "enough")
    assert _counts(open_dataset(enough.out)) == [5, 5, 5] and "too small" not in " ".join(enough.warnings)
    with pytest.raises(Refused) as refused:
        medgan.augment(root, factor=1.67, model=run, modality="xray", out=tmp_path / "enough")
    assert refused.value.code == "OUT_EXISTS" and "balance" in str(refused.value)


def test_a_trial_of_factors_fills_the_rare_class_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(folders(tmp_path / "set"))
    seen: list[str | None] = []

    def made(work: Work, todo: list[Any], workers: int) -> list[tuple[str, str]]:
        seen.extend(parent.label for _, parent, _ in todo)
        return [(new.id, "not made") for _, _, new in todo]

    monkeypatch.setattr(choose, "made", made)
    monkeypatch.setattr(choose, "_short_run", lambda work, progress: tmp_path)
    config = Config.resolve("xray", "image")
    for balance, first in ((True, ["rare", "rare"]), (False, ["common", "middle"])):
        seen.clear()
        choose._synthetic(Work(dataset, config, "gan", None, tmp_path, 0, balance), lambda *_: None, 1, lambda _: None)
        assert sorted(map(str, seen[:2])) == first


def test_no_factor_is_chosen_for_volumes_with_classes(tmp_path: Path) -> None:
    """The small classifier that would choose it looks at pictures."""
    root = volumes(tmp_path / "set")
    with pytest.raises(Refused) as refused:
        medgan.augment(root, factor="auto", balance=True, modality="mr", out=tmp_path / "out")
    assert refused.value.code == "DIM_UNSUPPORTED" and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_several_processes_give_the_same_bytes(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    run = image_run(root, tmp_path / "run", "xray")
    for workers in (1, 2):
        medgan.augment(root, factor=1.3, balance=True, model=run, modality="xray", out=tmp_path / str(workers),
                       workers=workers)
    assert make.tree(tmp_path / "1") == make.tree(tmp_path / "2")


def test_truncation_is_obeyed_and_recorded(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    run = image_run(root, tmp_path / "run", "xray")
    spreads = []
    for psi in (1.0, 0.2):
        out = tmp_path / str(psi)
        made = medgan.synthesize(run, 6, out=out, label="rare", settings={"augment.truncation": psi})
        assert {case.record["settings"]["truncation"] for case in made} == {psi}
        # All of one parent, so that they differ by their latent vectors alone.
        spreads.append(np.stack([case.image.array.astype(float) for case in made]).std(axis=0).mean())
        medgan.augment(root, factor=1.3, model=run, modality="xray", out=tmp_path / f"a{psi}",
                       settings={"augment.truncation": psi})
        records = [json.loads(path.read_text()) for path in (tmp_path / f"a{psi}").rglob("*.provenance.json")]
        assert records and {record["settings"]["truncation"] for record in records} == {psi}
    assert spreads[1] < 0.6 * spreads[0]


@pytest.mark.parametrize("name", ["folders", "volumes", "npz3d"])
def test_synthesize_makes_as_many_of_a_class_as_asked_for(name: str, tmp_path: Path) -> None:
    maker, modality = LAYOUTS_WITH_CLASSES[name]
    root = maker(tmp_path / "set")
    run, source = image_run(root, tmp_path / "run", modality), open_dataset(root)
    rare = source.classes[2]
    made = medgan.synthesize(run, 7, out=tmp_path / "new", label=rare)
    written = open_dataset(tmp_path / "new")
    assert len(made) == 7 and {case.record["label"] for case in made} == {rare}
    assert {case.label for case in written.cases if case.synthetic} == {rare}
    assert len({case.image.array.tobytes() for case in made}) == 7
    dims = source.load(source.cases[0])[0].dims
    assert all(case.image.dims == dims for case in made)
    # Without a label each class has its share from the first case on.
    several = medgan.synthesize(run, 3)
    assert {case.record["label"] for case in several} >= set(source.classes[:2])
    with pytest.raises(Refused) as refused:
        medgan.synthesize(run, 1, label="freckle")
    assert refused.value.code == "LABEL_UNKNOWN" and rare in str(refused.value)


def test_a_run_that_knows_other_classes_or_dimensions_is_refused(tmp_path: Path) -> None:
    root, other = folders(tmp_path / "set"), tmp_path / "other"
    for number, name in enumerate(("common", "rare", "new")):
        (other / name).mkdir(parents=True)
        np.save(other / name / "im.npy", make.image(number, "uint8", (10, 12)))
    run = image_run(root, tmp_path / "run", "xray")
    with pytest.raises(Refused) as refused:
        medgan.augment(other, model=run, modality="xray", out=tmp_path / "out")
    assert refused.value.code == "LABEL_UNKNOWN" and "new" in str(refused.value)
    solid = volumes(tmp_path / "solid")
    flat = image_run(solid, tmp_path / "flat", "mr", data__dims=2)
    with pytest.raises(Refused) as refused:
        medgan.augment(solid, model=flat, modality="mr", out=tmp_path / "out")
    assert refused.value.code == "RUN_TASK" and "2D" in str(refused.value) and not (tmp_path / "out").exists()
    with pytest.raises(Refused) as refused:
        medgan.augment(solid, modality="mr", out=tmp_path / "out", settings={"data.dims": 2})
    assert refused.value.code == "DIM_UNSUPPORTED" and not (tmp_path / "out").exists()


def test_without_a_run_one_of_the_datas_own_dimensions_is_trained(tmp_path: Path, tiny: dict[str, object],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    root = volumes(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    # A run of slices on the same data is no obstacle.
    image_run(root, tmp_path / "runs" / "slices", "mr", data__dims=2)
    settings = tiny | {"data.crop": 16, "training.images": 8}
    made = medgan.augment(root, balance=True, factor=1.67, modality="mr", settings=settings, out=tmp_path / "out")
    assert made.run == Path("runs/set-image") and _counts(open_dataset(tmp_path / "out")) == [5, 5, 5]
    again = medgan.augment(root, balance=True, factor=1.67, modality="mr", settings=settings, out=tmp_path / "out")
    assert again.run == made.run and again.synthetic == made.synthetic


def test_few_images_of_a_class_are_said_before_anything_is_made(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    made = medgan.augment(root, factor=1.2, model=image_run(root, tmp_path / "run", "xray"), modality="xray",
                          out=tmp_path / "out")
    assert any("rare (1)" in warning and "merge" in warning for warning in made.warnings)
    assert "rare (1)" in (tmp_path / "out" / "DATA_CARD.md").read_text()


# --- label maps: images that follow the parents' masks
