"""The 93 radiomics features, held against pyradiomics with the same grey levels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.metrics import radiomics
from medgan.metrics.radiomics import BINS, NAMES, Radiomics

Oracle = Callable[..., NDArray[np.float64]]

FAMILIES = ("firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")
#: Relative: pyradiomics adds 2e-16 to products of probabilities, which in 3D is felt in the seventh place.
TOLERANCE = 1e-6


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """pyradiomics with our edges instead of its own, (X, Y[, Z]) with a mask -> 93 features in our order."""
    sitk = pytest.importorskip("SimpleITK")
    extractor = pytest.importorskip("radiomics.featureextractor")
    import radiomics as pyradiomics

    pyradiomics.setVerbosity(60)
    middles = np.linspace(-1, 1, BINS)
    edges = np.array([-np.inf, *(middles[1:] + middles[:-1]) / 2, np.inf])
    monkeypatch.setattr(pyradiomics.imageoperations, "getBinEdges", lambda *_, **__: edges)

    def features(image: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        mask = np.ones(image.shape, bool) if mask is None else mask
        flat = image.ndim == 2
        given = [array[None] if flat else array for array in (image.astype(np.float64), mask.astype(np.uint8))]
        made = extractor.RadiomicsFeatureExtractor(force2D=flat, force2Ddimension=0, minimumROIDimensions=1)
        made.disableAllFeatures()
        for family in FAMILIES:
            made.enableFeatureClassByName(family)
        found = made.execute(*(sitk.GetImageFromArray(array) for array in given))
        assert {name.removeprefix("original_") for name in found if name.startswith("original_")} == set(NAMES)
        return np.array([float(found[f"original_{name}"]) for name in NAMES])

    return features


def same(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> None:
    wrong = {name: (one, other) for name, one, other in zip(NAMES, found, wanted, strict=True)
             if not np.isclose(one, other, rtol=TOLERANCE, atol=1e-11)}
    assert not wrong


def scan(path: Path, step: int = 1) -> NDArray[np.float32]:
    values = np.asarray(nib.load(path).dataobj, np.float32)[::step, ::step, ::step]
    return np.clip(values / np.percentile(values, 99.5) * 2 - 1, -1, 1).astype(np.float32)


def test_radiographs(oracle: Oracle, shared_data: Path) -> None:
    with np.load(shared_data / "pneumonia" / "pneumonia.npz") as file:
        images = file["train_images"][[0, 7, 99]].astype(np.float32) / 127.5 - 1
    for image, found in zip(images, Radiomics()(images[:, None]), strict=True):
        same(found, oracle(image))


def test_brain_slices(oracle: Oracle, shared_data: Path) -> None:
    brain = scan(shared_data / "brain-t1/sub-01/anat/sub-01_T1w.nii.gz", 3)
    for plane in (brain[:, :, brain.shape[2] // 2], brain[:, brain.shape[1] // 2]):
        same(Radiomics()(plane[None, None])[0], oracle(plane))


def test_hippocampus_and_its_mask(oracle: Oracle, shared_data: Path) -> None:
    path = sorted((shared_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    crop = scan(path)[:32, :48, :32]
    same(Radiomics()(crop[None, None])[0], oracle(crop))
    labels = nib.load(path.parents[1] / "labelsTr" / path.name.replace("_0000.nii", ".nii"))
    mask = np.asarray(labels.dataobj)[:32, :48, :32] > 0
    assert mask.any()
    same(Radiomics()(crop[None, None], mask[None])[0], oracle(crop, mask))


def test_lesion(oracle: Oracle, shared_data: Path) -> None:
    path = sorted((shared_data / "glioma" / "labelsTr").glob("*.nii.gz"))[0]
    mask = np.asarray(nib.load(path).dataobj) > 0
    image = scan(shared_data / "glioma" / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
    at = int(np.argmax(mask.sum(axis=(0, 1))))
    same(Radiomics()(image[None, None, ..., at], mask[None, ..., at])[0], oracle(image[..., at], mask[..., at]))


@pytest.mark.parametrize("shape", [(17, 12), (9, 7, 5)])
@pytest.mark.parametrize("share", [0.08, 0.5, 1])
def test_noise_with_ragged_masks(shape: tuple[int, ...], share: float, oracle: Oracle) -> None:
    """Isolated voxels, holes, and values beyond the first and last level."""
    rng = np.random.default_rng(1)
    image = rng.normal(scale=0.6, size=shape).astype(np.float32)
    mask = rng.random(shape) < share
    same(Radiomics()(image[None, None], mask[None])[0], oracle(image, mask))


def test_masks_of_one_row_and_one_plane(oracle: Oracle) -> None:
    rng = np.random.default_rng(1)
    for shape, row in (((8, 9), np.s_[4, 2:8]), ((5, 8, 9), np.s_[2, 1:7, 2:8])):
        image, mask = rng.uniform(-1, 1, shape).astype(np.float32), np.zeros(shape, bool)
        mask[row] = True
        same(Radiomics()(image[None, None], mask[None])[0], oracle(image, mask))


def test_a_constant_image(oracle: Oracle) -> None:
    for value in (0.3, 0.0, -1.0):
        image = np.full((9, 8), value, np.float32)
        found = Radiomics()(image[None, None])[0]
        assert np.isfinite(found).all()
        same(found, oracle(image))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("voxels", [1, 2])
def test_masks_of_a_voxel_or_two_are_finite(shape: tuple[int, ...], voxels: int) -> None:
    rng = np.random.default_rng(2)
    image, mask = rng.uniform(-1, 1, shape).astype(np.float32), np.zeros(shape, bool)
    mask[(1,) * len(shape)] = mask[(1,) * (len(shape) - 1) + (voxels,)] = True
    assert mask.sum() == voxels
    found = dict(zip(NAMES, Radiomics()(image[None, None], mask[None])[0], strict=True))
    assert np.isfinite(list(found.values())).all()
    np.testing.assert_allclose(found["firstorder_Mean"], image[mask].mean(), rtol=1e-6)
    assert found["glszm_ZonePercentage"] == 1 and found["glrlm_ShortRunEmphasis"] == 1
    level = np.abs(np.linspace(-1, 1, BINS) - image[mask][:, None]).argmin(axis=1) + 1
    np.testing.assert_allclose(found["glcm_JointAverage"], level.mean())


def test_levels_are_fixed() -> None:
    """A darker image, and one of less contrast, have other textures: the image's own range decides nothing."""
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, 16, 16)).astype(np.float32)
    for other in (image / 2, image / 2 - 0.4):
        one, two = (dict(zip(NAMES, Radiomics()(of)[0], strict=True)) for of in (image, other))
        assert two["glcm_Contrast"] < 0.4 * one["glcm_Contrast"]
    assert (Radiomics()(np.clip(image * 9, -1, 1))[0, 18:] == Radiomics()(image * 9)[0, 18:]).all()


def test_a_hand_counted_image() -> None:
    """Two rows of two levels: what can be counted on paper."""
    image = np.array([[-1, -1, -1], [1, 1, 1]], np.float32)
    found = dict(zip(NAMES, Radiomics()(image[None, None])[0], strict=True))
    assert found["firstorder_Entropy"] == pytest.approx(1) and found["firstorder_Variance"] == pytest.approx(1)
    # Two zones of three; runs: two of three along the rows, six of one in each of the three other directions.
    assert found["glszm_ZonePercentage"] == pytest.approx(2 / 6)
    assert found["glrlm_LongRunEmphasis"] == pytest.approx((9 + 3 * 1) / 4)
    # Pairs along the rows are alike; in the three other directions each differs by 31 levels.
    assert found["glcm_Contrast"] == pytest.approx(3 * 31**2 / 4)
    assert found["gldm_LargeDependenceEmphasis"] == pytest.approx((2 * 4 + 9) * 2 / 6)
    assert found["glcm_JointAverage"] == pytest.approx(16.5)


def test_the_background_is_the_middle_of_a_level() -> None:
    """Small changes of what was clipped stay in its level, those of more than half a level's width do not."""
    image = np.full((1, 1, 6, 6), -1, np.float32)
    board = (np.indices((6, 6)).sum(axis=0) % 2).astype(np.float32)
    contrast = NAMES.index("glcm_Contrast")
    assert Radiomics()(image + 0.03 * board)[0, contrast] == 0 < Radiomics()(image + 0.04 * board)[0, contrast]


def test_channels_and_batches_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (7, 2, 10, 12)).astype(np.float32)
    masks = rng.random((7, 10, 12)) < 0.7
    whole = Radiomics()(images, masks)
    assert whole.shape == (7, 2 * len(NAMES)) and len(NAMES) == 93
    np.testing.assert_allclose(whole[:, 93:], Radiomics()(images[:, 1:], masks), rtol=1e-9)
    monkeypatch.setattr(radiomics, "VOXELS_AT_ONCE", 1)
    np.testing.assert_allclose(Radiomics()(images, masks), whole, rtol=1e-7, atol=1e-9)


def test_turning_changes_nothing() -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, 11, 11)).astype(np.float32)
    np.testing.assert_allclose(Radiomics()(np.rot90(image, axes=(2, 3))), Radiomics()(image), rtol=1e-9, atol=1e-9)


def test_wrong_masks_are_refused() -> None:
    images = np.zeros((2, 1, 5, 5), np.float32)
    with pytest.raises(Refused, match="LABEL_GRID"):
        Radiomics()(images, np.ones((2, 5, 4), bool))
    with pytest.raises(Refused, match="LABEL_EMPTY"):
        Radiomics()(images, np.stack([np.ones((5, 5), bool), np.zeros((5, 5), bool)]))
