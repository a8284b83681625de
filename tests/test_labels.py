"""Label maps on a finer grid: no new value, the image's grid, smoother outlines than the nearest voxel gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import medgan
from medgan.errors import Refused
from medgan.imaging.geometry import zoomed_affine
from medgan.imaging.labels import refine_labels
from medgan.imaging.restoration import acquisitions
from medgan.imaging.volume import Volume

AFFINE = np.array([[-0.9, 0, 0, 40], [0, np.cos(0.2), -3 * np.sin(0.2), -30], [0, np.sin(0.2), 3 * np.cos(0.2), 7.5],
                   [0, 0, 0, 1]])


def dice(a: NDArray[Any], b: NDArray[Any], value: int) -> float:
    return float(2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum()))


def by_majority(labels: NDArray[Any], factor: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Thick slices that take the most common of their thin ones' labels, and the thin ones that they cover."""
    labels = labels[..., : labels.shape[2] // factor * factor]
    thin = labels.reshape(*labels.shape[:2], -1, factor)
    values = np.unique(labels)
    counts = np.stack([(thin == value).sum(axis=-1) for value in values])
    return values[counts.argmax(axis=0)], labels


def refined(labels: NDArray[Any], factors: tuple[float, ...], affine: NDArray[np.float64] = AFFINE) -> Volume:
    volume = Volume(labels if labels.ndim == 4 else labels[None], affine)
    return refine_labels(volume, acquisitions(volume, factors, "gaussian", None))


def cones() -> NDArray[Any]:
    """A tilted cone within another, which thick slices cut into steps."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in (40, 44, 30)), indexing="ij")
    far = np.hypot(x - 12 - 0.5 * z, y - 20 - 0.1 * z)
    return np.where(far < 4 + 0.1 * z, 7, np.where(far < 11 - 0.2 * z, 3, 0)).astype(np.int16)


def test_outlines_are_nearer_to_the_truth_than_the_nearest_voxel() -> None:
    thick, truth = by_majority(cones(), 3)
    fine = refined(thick, (1, 1, 3), np.diag([1.0, 1.0, 3.0, 1.0]))
    nearest = np.repeat(thick, 3, axis=2)
    for value in (0, 3, 7):
        assert 1 - dice(fine.array[0], truth, value) < 0.8 * (1 - dice(nearest, truth, value))


@pytest.mark.parametrize("name", ["hippocampus", "glioma"])
def test_real_masks_gain(shared_data: Path, name: str) -> None:
    gains = []
    for path in sorted((shared_data / name / "labelsTr").glob("*.nii.gz"))[:3]:
        labels = medgan.read(path).array[0].astype(np.uint8)
        inside = np.argwhere(labels)
        low, high = np.maximum(inside.min(axis=0) - 4, 0), inside.max(axis=0) + 5
        thick, truth = by_majority(labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], 3)
        fine = refined(thick, (1, 1, 3), np.diag([1.0, 1.0, 3.0, 1.0])).array[0]
        nearest = np.repeat(thick, 3, axis=2)
        gains += [np.mean([dice(made, truth, value) for value in np.unique(truth)[1:]]) for made in (fine, nearest)]
    each = np.subtract(gains[::2], gains[1::2])
    assert each.min() > 0 and each.mean() > (0.04 if name == "hippocampus" else 0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32, np.bool_])
@pytest.mark.parametrize("factors", [(1, 1, 3), (2, 2, 2), (1.3, 1, 2.7)])
def test_type_values_and_grid(dtype: Any, factors: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 5, 200]), (2, 11, 9, 6)).astype(dtype)
    fine = refined(labels, factors)
    assert fine.array.dtype == dtype and fine.channels == 2
    for channel in range(2):
        assert set(np.unique(fine.array[channel])) == set(np.unique(labels[channel]))
    assert fine.shape == tuple(round(n * f) for n, f in zip(labels.shape[1:], factors, strict=True))
    np.testing.assert_allclose(fine.affine, zoomed_affine(AFFINE, factors))
    again = refined(labels, factors)
    assert np.array_equal(again.array, fine.array)


def test_it_lies_on_the_grid_of_the_image() -> None:
    image = Volume(np.random.default_rng(0).normal(size=(1, 12, 10, 6)).astype(np.float32), AFFINE)
    fine, report = medgan.upsample(image, factor=(1.25, 1, 3), method="linear", report=True)
    labels = image.with_array((image.array > 0).astype(np.uint8))
    made = refine_labels(labels, acquisitions(image, report.factors, report.profile, None))
    assert made.shape == fine.shape
    np.testing.assert_array_equal(made.affine, fine.affine)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 1.0, 5.0)])
@pytest.mark.parametrize("factors", [(1, 1, 2), (2, 2, 2), (1.5, 3, 4.2), (8, 8, 8)])
def test_a_lesion_of_one_voxel_does_not_vanish(factors: tuple[float, ...], spacing_mm: tuple[float, ...]) -> None:
    labels = np.zeros((8, 9, 7), np.uint8)
    labels[1:4, 1:5, 1:4] = 1
    labels[6, 7, 5] = 1  # another one of the same class
    labels[6, 2, 5] = labels[0, 8, 0] = 2
    fine = refined(labels, factors, np.diag([*spacing_mm, 1.0])).array[0]
    for voxel, value in (((6, 7, 5), 1), ((6, 2, 5), 2), ((0, 8, 0), 2)):
        own = tuple(slice(int(np.ceil(n * f - 0.5)), int(np.ceil((n + 1) * f - 0.5)))
                    for n, f in zip(voxel, factors, strict=True))
        assert (fine[own] == value).any()


def test_every_class_is_treated_alike_and_ties_are_settled() -> None:
    labels = np.zeros((12, 4, 4), np.uint8)
    labels[6:] = 1
    straight = refined(labels, (3, 2, 2), np.eye(4)).array[0]
    assert np.array_equal(straight, np.repeat(np.repeat(np.repeat(labels, 3, 0), 2, 1), 2, 2))
    swapped = refined(1 - labels, (3, 2, 2), np.eye(4)).array[0]
    assert np.array_equal(swapped, 1 - straight)


@pytest.mark.parametrize("factors", [(1, 1, 3), (1.5, 2, 2.3)])
def test_slabs_do_not_show(factors: tuple[float, ...]) -> None:
    volume = Volume(cones()[None, ..., ::2], AFFINE)
    scans = acquisitions(volume, factors, "gaussian", None)
    whole = refine_labels(volume, scans)
    cut = refine_labels(volume, scans, slab_voxels=whole.array.size // 5)
    assert np.mean(whole.array != cut.array) < 1e-4


def test_nothing_to_refine_and_flat_maps() -> None:
    labels = cones()
    assert refined(labels, (1, 1, 1)).array is not None
    assert np.array_equal(refined(labels, (1, 1, 1)).array[0], labels)
    assert np.array_equal(refined(np.full((4, 5, 6), 9, np.uint8), (1, 2, 3)).array, np.full((1, 4, 10, 18), 9))
    one_slice = refined(labels[:, :, :1], (2, 2, 1)).array
    assert one_slice.shape == (1, 80, 88, 1) and set(np.unique(one_slice)) == {0, 3, 7}


def test_two_axes() -> None:
    image = Volume(np.eye(7, dtype=np.uint8)[None])
    fine = refine_labels(image, acquisitions(image, (2, 3), "rect", None))
    assert fine.shape == (14, 21) and set(np.unique(fine.array)) == {0, 1}


@pytest.mark.parametrize(("code", "labels"), [
    ("LABEL_NON_INTEGER", np.full((1, 6, 6, 4), 0.5)),
    ("LABEL_NON_INTEGER", np.full((1, 6, 6, 4), np.nan, np.float32)),
    ("LABEL_NON_INTEGER", np.zeros((1, 6, 6, 4), np.complex64)),
    ("LABEL_GRID", np.zeros((1, 6, 6, 5), np.uint8)),
    ("LABEL_GRID", np.zeros((1, 6, 4, 6), np.uint8)),
    ("LABEL_DIM", np.zeros((1, 6, 6), np.uint8)),
])
def test_what_is_no_label_map_of_the_image_is_refused(code: str, labels: NDArray[Any]) -> None:
    image = Volume(np.zeros((1, 6, 6, 4), np.float32))
    with pytest.raises(Refused) as refused:
        refine_labels(Volume(labels), acquisitions(image, (1, 1, 3), "gaussian", None))
    assert refused.value.code == code and refused.value.fix
