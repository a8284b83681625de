"""Bad input of lesion work: each named, nothing half-written; what is odd but usable is allowed with a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.errors import Refused


def _edited(source: Path, out: Path, change: Callable[[int, NDArray[Any], NDArray[Any]], None],
            labels: dict[str, int] | None = None) -> Path:
    """A copy of an nnU-Net set whose images and masks were changed in place by `change(number, image, mask)`."""
    import shutil

    import nibabel

    shutil.copytree(source, out)
    for number, path in enumerate(sorted((out / "labelsTr").iterdir())):
        beside = out / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")
        files = [nibabel.load(name) for name in (beside, path)]
        image, mask = (np.asarray(file.dataobj).copy() for file in files)
        change(number, image, mask)
        for file, array, name in zip(files, (image, mask), (beside, path), strict=True):
            nibabel.save(nibabel.Nifti1Image(array, file.affine), name)
    if labels:
        description = json.loads((out / "dataset.json").read_text())
        description["labels"] |= labels
        (out / "dataset.json").write_text(json.dumps(description))
    return out


def test_a_data_set_without_masks_is_named(mr_set: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(mr_set, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "labelsTr")
    for call in (lambda: medgan.augment(tmp_path / "set", method="paste", modality="mr", out=tmp_path / "out"),
                 lambda: medgan.augment(tmp_path / "set", factor="auto", modality="mr", out=tmp_path / "out"),
                 lambda: medgan.train(tmp_path / "set", task="lesion", modality="mr", out=tmp_path / "out")):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.code == "LABEL_MISSING" and "masks" in str(refused.value)
        assert not (tmp_path / "out").exists()


def test_masks_that_mark_nothing_are_named(mr_set: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    def emptied(number: int, image: NDArray[Any], mask: NDArray[Any]) -> None:
        mask[:] = 0

    empty = _edited(mr_set, tmp_path / "empty", emptied)
    for call in (lambda: medgan.augment(empty, method="paste", modality="mr", out=tmp_path / "out"),
                 lambda: medgan.augment(empty, factor="auto", method="paste", modality="mr", out=tmp_path / "out"),
                 lambda: medgan.train(empty, modality="mr", settings=tiny, out=tmp_path / "out")):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.code == "DATASET_EMPTY" and "no training case has a lesion" in str(refused.value)
        assert not (tmp_path / "out").exists()

    def first_emptied(number: int, image: NDArray[Any], mask: NDArray[Any]) -> None:
        mask[:] = 0 if number == 0 else mask

    made = medgan.augment(_edited(mr_set, tmp_path / "one", first_emptied), factor=1.34, method="paste", modality="mr",
                          out=tmp_path / "some")
    assert any("1 of 3 training cases mark no lesion (mrphantom_0000)" in text for text in made.warnings)


def test_a_mask_that_touches_nothing_is_named(mr_set: Path, tmp_path: Path) -> None:
    def beside(number: int, image: NDArray[Any], mask: NDArray[Any]) -> None:
        if number == 1:
            image[:6, :6] = 0
            mask[:] = 0
            mask[:4, :4, :4] = 1

    with pytest.raises(Refused) as refused:
        medgan.augment(_edited(mr_set, tmp_path / "set", beside), method="paste", modality="mr", out=tmp_path / "out")
    assert refused.value.code == "LABEL_GRID" and "touches nothing" in str(refused.value)
    assert "mrphantom_0001" in str(refused.value) and not (tmp_path / "out").exists()

    def in_noise(number: int, image: NDArray[Any], mask: NDArray[Any]) -> None:
        if number == 1:
            mask[:] = 0
            mask[:4, :4, :4] = 1

    made = medgan.augment(_edited(mr_set, tmp_path / "noise", in_noise), factor=1.34, method="paste", modality="mr",
                          out=tmp_path / "some")
    assert any("touch no tissue" in text and "mrphantom_0001" in text for text in made.warnings)


def test_one_patient_and_a_single_lesion_are_allowed_and_named(mr_set: Path, tmp_path: Path) -> None:
    def single(number: int, image: NDArray[Any], mask: NDArray[Any]) -> None:
        if number:
            mask[:] = np.where(mask > 0, 1, 0)
            return
        parts, _ = ndimage.label(mask > 0)
        largest = 1 + np.bincount(parts.ravel())[1:].argmax()
        mask[:] = np.where(parts == largest, 9, np.where(parts > 0, 1, 0))

    named = medgan.augment(_edited(mr_set, tmp_path / "set", single, {"cyst": 9}), factor=2, method="paste",
                           modality="mr", out=tmp_path / "out", settings={"augment.removed": 0.0})
    assert [text for text in named.warnings if "the label cyst" in text] and named.synthetic
    assert not any("one training patient" in text for text in named.warnings)
    alone = _edited(mr_set, tmp_path / "alone", single, {"cyst": 9})
    for path in [*alone.glob("imagesTr/*"), *alone.glob("labelsTr/*")]:
        if "phantom_0000" not in path.name:
            path.unlink()
    made = medgan.augment(alone, factor=3, method="procedural", modality="mr", out=tmp_path / "one")
    assert any("one training patient" in text and "nothing is claimed" in text for text in made.warnings)
    assert made.synthetic and "nothing is claimed" in (tmp_path / "one" / "DATA_CARD.md").read_text()


def test_a_generator_of_another_modality_is_named(mr_set: Path, lesion_run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(mr_set, tmp_path / "ct")
    description = json.loads((tmp_path / "ct" / "dataset.json").read_text())
    description["channel_names"] = {"0": "CT"}
    (tmp_path / "ct" / "dataset.json").write_text(json.dumps(description))
    for factor in (2.0, "auto"):
        with pytest.raises(Refused) as refused:
            medgan.augment(tmp_path / "ct", factor=factor, model=lesion_run,  # type: ignore[arg-type]
                           out=tmp_path / "out")
        assert refused.value.code == "RUN_TASK" and "trained on mr, not ct" in str(refused.value)
        assert not (tmp_path / "out").exists()
