"""Lesions taken out: what fills their place is tissue, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.lesions.removal import MARGIN_MM, Tissue, fill_all, voids, without_lesions
from medgan.lesions.scans import Scan, open_scan
from medgan.lesions.shapes import RIM_NATIVE


@pytest.fixture(scope="module")
def scans(mr_set: Path) -> list[Scan]:
    dataset, config = open_dataset(mr_set), Config.resolve("mr")
    return [open_scan(dataset, case, config) for case in dataset.cases]


def test_voids_are_the_parts_of_a_mask_largest_first(scans: list[Scan]) -> None:
    mask = np.zeros(scans[0].labels.shape, bool)
    mask[20:24, 20:24, 10:13], mask[40:48, 30:38, 12:18] = True, True
    found = list(voids(scans[0], mask))
    assert [int(void.hard.sum()) for void in found] == [8 * 8 * 6, 4 * 4 * 3]
    for void in found:
        assert (void.weight[void.hard] == 1).all() and void.weight.max() == 1
        rim = (void.weight > 0) & ~void.hard
        assert rim.any() and (void.weight[rim] < 1).all()
        assert np.array_equal(void.avoid, mask[void.box])


def test_what_fills_a_lesion_is_closer_to_tissue_than_the_lesion_was(scans: list[Scan]) -> None:
    for scan in scans:
        emptied, changed = without_lesions(scan, Tissue(), seed=1)
        lesion = scan.labels > 0
        around = ndimage.binary_dilation(lesion, iterations=6) & ~changed & scan.tissue()
        level = scan.image[0][around].mean()
        was, now = (np.abs(image[0][lesion].mean() - level) for image in (scan.image, emptied.image))
        assert now < 0.3 * was
        assert not emptied.labels.any() and scan.labels.any()


def test_nothing_changes_outside_the_dilated_mask(scans: list[Scan]) -> None:
    for scan in scans:
        emptied, changed = without_lesions(scan, Tissue(), seed=1)
        assert np.array_equal(emptied.image[:, ~changed], scan.image[:, ~changed])
        reach = max(MARGIN_MM, float(scan.spacing_mm.max())) + RIM_NATIVE * float(scan.spacing_mm[:2].min())
        far = ndimage.distance_transform_edt(scan.labels == 0, sampling=scan.spacing_mm) > reach + 1e-6
        assert not changed[far].any()


def test_a_mirrored_scan_gets_its_other_half(scans: list[Scan]) -> None:
    """Where left and right are the same, what is missing is known exactly."""
    rng = np.random.default_rng(0)
    shape = (41, 40, 12)
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    half = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) * 2
    image = np.where(x**2 + y**2 < 0.8, half + half[::-1], -1).astype(np.float32)
    volume = replace(scans[0].volume, array=np.where(image == -1, 0, 100 + 50 * image)[None].astype(np.float32))
    scan = replace(scans[0], volume=volume, image=image[None], labels=np.zeros(shape, np.uint8),
                   spacing_mm=np.ones(3))
    mask = np.zeros(shape, bool)
    mask[8:14, 16:24, 4:8] = True
    broken = replace(scan, image=np.where(mask, np.float32(1), scan.image), labels=mask.astype(np.uint8))
    filled, _ = fill_all(broken, mask, Tissue(), seed=0)
    wrong = np.abs(filled - scan.image)[0][mask]
    assert wrong.mean() < 0.25 * np.abs(scan.image[0][mask] - scan.image[0][mask].mean()).mean()


def test_a_lesion_across_the_midline_leaves_no_bright_tissue(scans: list[Scan]) -> None:
    """No mirrored place can lend what lies in the middle, and the lesion's glow reaches beyond its mask."""
    shape = (48, 48, 16)
    rng = np.random.default_rng(1)
    x, y, _ = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    brain = x**2 + y**2 < 21**2
    from_middle = np.sqrt(x**2 + (y - 4)**2)
    tissue = 0.05 * ndimage.gaussian_filter(rng.standard_normal(shape), 1)
    image = np.where(brain, tissue + 0.9 * np.clip((17 - from_middle) / 4, 0, 1), -1).astype(np.float32)
    volume = replace(scans[0].volume, array=np.where(brain, 100 + 50 * image, 0)[None].astype(np.float32))
    scan = replace(scans[0], volume=volume, image=image[None], labels=(from_middle < 14).astype(np.uint8),
                   spacing_mm=np.ones(3))
    emptied, _ = without_lesions(scan, Tissue(), seed=1)
    lesion, level = scan.labels > 0, float(tissue[brain].mean())
    over = emptied.image[0][lesion] - level
    assert float(over.mean()) < 0.1 and float(image[lesion].mean()) - level > 0.6


def test_air_beside_the_tissue_stays_air(scans: list[Scan]) -> None:
    scan = scans[0]
    inside = scan.tissue()
    edge = inside & ~ndimage.binary_erosion(inside, iterations=3)
    at = np.argwhere(edge)[int(edge.sum()) // 2]
    labels = np.zeros_like(scan.labels)
    labels[tuple(slice(max(0, i - 3), i + 4) for i in at)] = 1
    scan = replace(scan, labels=np.where(inside, labels, 0).astype(np.uint8))
    emptied, changed = without_lesions(scan, Tissue(), seed=1)
    assert changed[scan.labels > 0].all() and not changed[~scan.tissue()].any()
    assert np.array_equal(emptied.image[:, ~scan.tissue()], scan.image[:, ~scan.tissue()])


def test_nothing_becomes_darker_than_air(scans: list[Scan]) -> None:
    scan = scans[0]
    everywhere = np.ones(scan.labels.shape, bool)
    changed = scan.with_change(scan.image - 1, everywhere)
    assert changed.array.min() == scan.volume.array.min() and (changed.array < scan.volume.array).any()


def test_the_same_seed_gives_the_same_tissue(scans: list[Scan]) -> None:
    once, again = (without_lesions(scans[0], Tissue(), seed=3)[0].image for _ in range(2))
    assert np.array_equal(once, again)


@pytest.fixture(scope="module")
def halves(scans: list[Scan]) -> Scan:
    """A light and a dark organ side by side, both with noise; a small lesion in the light one near the other."""
    shape = (48, 48, 16)
    noise = 0.05 * np.random.default_rng(2).standard_normal(shape)
    left = np.broadcast_to(np.arange(48)[:, None, None] < 25, shape)
    labels = np.zeros(shape, np.uint8)
    labels[21:24, 22:25, 7:10] = 1
    lesion = ndimage.gaussian_filter(labels.astype(float), 0.6)
    image = (np.where(left, 0, -1) + noise + 0.6 * lesion).astype(np.float32)
    volume = replace(scans[0].volume, array=(1000 + 500 * image)[None].astype(np.float32))
    return replace(scans[0], volume=volume, image=image[None], labels=labels, spacing_mm=np.full(3, 2.0),
                   organs=np.where(left, 1, 2).astype(np.uint16))


def test_an_organ_is_lent_its_own_tissue_with_its_noise(halves: Scan) -> None:
    lesion = halves.labels > 0
    for seed in range(8):
        filled = without_lesions(halves, Tissue(), seed)[0].image[0][lesion]
        assert abs(filled.mean()) < 0.06 and 0.03 < filled.std() < 0.07


def test_at_an_organs_border_the_change_fades_out(halves: Scan) -> None:
    """The tissue that is known as an organ's ends a voxel before its border; the rim goes on to where it would."""
    labels = np.roll(halves.labels, 1, axis=0)
    beside = np.roll(labels, 1, axis=0) > labels
    scan = replace(halves, labels=labels, organs=np.where(halves.organs == 1, 1, 0).astype(np.uint16))
    _, changed = without_lesions(scan, Tissue(), seed=1)
    assert not scan.tissue()[beside].any() and changed[beside].all()
