"""`--balance`: lesion-free places filled in the shapes of lesions, so that a seam says nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import medgan
from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.imaging.geometry import reorient
from medgan.imaging.volume import Volume
from medgan.lesions.compose import Made, compose
from medgan.lesions.controls import add_controls
from medgan.lesions.library import build_library
from medgan.lesions.makers import Paste
from medgan.lesions.placement import Ground
from medgan.lesions.removal import Tissue, Void
from medgan.lesions.scans import Scan, open_scan


class Flat:
    """Fills with one value, and remembers where and what it was told."""

    name = "flat"

    def __init__(self, value: float = 0.9) -> None:
        self.value = value
        self.voids: list[Void] = []
        self.marked: list[bool] = []

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """The value, everywhere."""
        self.voids.append(void)
        self.marked.append(bool((scan.labels[void.box][void.weight > 0] > 0).all()))
        return np.full((len(image), *void.hard.shape), self.value, np.float32)


@pytest.fixture(scope="module")
def made(mr_set: Path) -> tuple[Ground, Made]:
    """A pasted case, and what it was made on."""
    opened = open_dataset(mr_set)
    config = Config.resolve("mr", "lesion", settings={"augment.removed": 0.0})
    scan = open_scan(opened, opened.cases[0], config)
    ground = Ground(scan, build_library(opened, config), finest_mm=float(scan.spacing_mm[0]), crop=config.data.crop)
    case = compose(ground, Paste(), config.augment, 3, count=2)
    assert case is not None
    return ground, case


def test_controls_change_the_image_off_all_lesions_and_leave_the_mask(made: tuple[Ground, Made]) -> None:
    ground, case = made
    filler = Flat()
    after = add_controls(case, ground, filler, 7, 3)
    assert after.gates["controls"] == 3 == len(filler.voids) and all(filler.marked)
    assert after.mask is case.mask and after.lesions == case.lesions
    assert after.image.array.dtype == case.image.array.dtype
    assert np.array_equal(after.image.affine, case.image.affine)
    differs = (after.image.array != case.image.array).any(axis=0)
    assert differs.any() and not (differs & case.changed).any() and not (differs & (case.mask.array[0] > 0)).any()
    assert (after.changed >= case.changed).all() and not (differs & ~after.changed).any()
    tissue = reorient(Volume(ground.tissue[None].astype(np.uint8), ground.scan.volume.affine),
                      case.image.orientation).array[0] > 0
    assert tissue[differs].all(), "a control lies outside the tissue"


def test_the_rims_are_as_soft_and_as_wide_as_those_of_lesions(made: tuple[Ground, Made]) -> None:
    ground, case = made
    filler = Flat()
    add_controls(case, ground, filler, 7, 3)
    for void in filler.voids:
        assert void.weight[void.hard].min() > 0.99 and (void.avoid >= void.hard).all()
        rim = void.weight[(void.weight > 0) & ~void.hard]
        assert rim.size and 0 < rim.min() < 0.4 < rim.max() <= 1
    sizes = [lesion.size_mm for lesion in ground.library.lesions]
    voxel = float(np.prod(ground.scan.spacing_mm))
    for void in filler.voids:
        diameter = 2 * np.cbrt(void.hard.sum() * voxel * 3 / (4 * np.pi))
        assert 0.3 * min(sizes) < diameter < 2 * max(sizes)


def test_the_same_seed_gives_the_same_controls_and_another_gives_others(made: tuple[Ground, Made]) -> None:
    ground, case = made
    one, two, other = (add_controls(case, ground, Flat(), seed, 2).image.array for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_without_room_there_are_none_and_that_is_recorded(made: tuple[Ground, Made]) -> None:
    import copy

    ground, case = made
    full = copy.copy(ground)
    full.tissue = np.zeros_like(ground.tissue)
    after = add_controls(case, full, Flat(), 1, 2)
    assert after.gates["controls"] == 0 and after.image is case.image


def test_a_filler_that_fails_changes_nothing(made: tuple[Ground, Made]) -> None:
    ground, case = made
    after = add_controls(case, ground, Flat(float("nan")), 1, 1)
    assert after.gates["controls"] == 0 and np.array_equal(after.image.array, case.image.array)


def test_tissue_fills_look_like_the_tissue_they_replace(made: tuple[Ground, Made]) -> None:
    """A control that stood out would be a lesion that the mask denies."""
    ground, case = made
    flat, tissue = (add_controls(case, ground, filler, 5, 3).image.array for filler in (Flat(), Tissue()))
    where = (flat != case.image.array) | (tissue != case.image.array)
    before = case.image.array[where].astype(float)
    assert np.abs(tissue[where] - before).mean() < 0.5 * np.abs(flat[where] - before).mean()


@pytest.mark.parametrize("method", ["paste", "gan"])
def test_augment_counts_the_controls(mr_set: Path, lesion_run: Path, tmp_path: Path, method: str) -> None:
    model = lesion_run if method == "gan" else None
    plain = medgan.augment(mr_set, factor=1.67, method=method, modality="mr",  # type: ignore[arg-type]
                           out=tmp_path / "plain", model=model)
    balanced = medgan.augment(mr_set, factor=1.67, method=method, modality="mr",  # type: ignore[arg-type]
                              out=tmp_path / "balanced", model=model, balance=True)
    assert plain.synthetic == balanced.synthetic and plain.synthetic
    rows = [{row["id"]: row for row in csv.DictReader((out / "augmentation.csv").read_text().splitlines())}
            for out in (plain.out, balanced.out)]
    for name in plain.synthetic:
        assert rows[0][name]["controls"] == "" and 1 <= int(rows[1][name]["controls"]) <= int(rows[1][name]["lesions"])
        record = json.loads((balanced.out / "imagesTr" / f"{name}.provenance.json").read_text())
        assert record["gates"]["controls"] == int(rows[1][name]["controls"])
    sets = [{case.id: each.load(case) for case in each.cases if case.synthetic}
            for each in (open_dataset(plain.out), open_dataset(balanced.out))]
    for name in plain.synthetic:
        (image, mask), (other, same) = (each[name] for each in sets)
        assert mask is not None and same is not None and np.array_equal(mask.array, same.array)
        assert not np.array_equal(image.array, other.array)


def test_another_call_on_a_balanced_output_is_refused(mr_set: Path, tmp_path: Path) -> None:
    medgan.augment(mr_set, factor=1.34, method="paste", modality="mr", out=tmp_path / "out", balance=True)
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, factor=1.34, method="paste", modality="mr", out=tmp_path / "out")
    assert refused.value.code == "OUT_EXISTS" and "balance" in str(refused.value)


def test_for_whole_images_balance_means_classes(xray_classes: Path, image_run: Path, tmp_path: Path) -> None:
    made = medgan.augment(xray_classes, model=image_run, modality="xray", out=tmp_path / "out", balance=True)
    rows = list(csv.DictReader((tmp_path / "out" / "augmentation.csv").read_text().splitlines()))
    assert len(made.synthetic) == 8 and all(row["controls"] == "" for row in rows)
    assert sorted(row["label"] for row in rows) == ["normal"] * 8 + ["opacity"] * 8
