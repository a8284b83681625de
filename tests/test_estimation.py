"""What a scan tells about its noise and slice profile."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import medgan
from medgan.imaging.acquisition import simulate
from medgan.imaging.estimation import contrasts, estimate_noise, estimate_profile
from medgan.imaging.slices import Profile
from medgan.imaging.volume import Volume

FACTOR = 3


@cache
def texture(seed: int, shape: tuple[int, int, int] = (72, 72, 72)) -> Volume:
    """Random blobs with sharp edges, the same along every axis: noise filtered to 1/f^2.6, cut at three levels."""
    noise = np.random.default_rng(seed).normal(size=shape)
    radius = np.sqrt(sum(np.square(k) for k in np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")))
    radius[0, 0, 0] = np.inf
    field = np.real(np.fft.ifftn(np.fft.fftn(noise) / radius**2.6))
    levels = np.digitize(field, np.quantile(field, (0.3, 0.6, 0.8))).astype(np.float32)
    return Volume(100 * levels[None])


def thick(volume: Volume, kind: Profile, thickness: float, axis: int = 2, factor: float = FACTOR,
          noise: float = 0.0) -> Volume:
    """`volume` with slices `factor` voxels apart and a profile of `thickness` spacings."""
    spacing = factor * volume.spacing_mm[axis]
    return simulate(volume, axis=axis, spacing_mm=spacing, thickness_mm=thickness * spacing, profile=kind, noise=noise,
                    seed=4)


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize(("kind", "thickness", "strength"),
                         [("gaussian", 1.0, 1.0), ("rect", 1.0, 0.68), ("gaussian", 0.67, 0.67)])
def test_strength_of_the_blur_is_found(kind: Profile, thickness: float, strength: float, axis: int) -> None:
    errors = []
    for seed in range(5):
        scan = thick(texture(seed), kind, thickness, axis)
        found = estimate_profile(scan.array[0], scan.spacing_mm, axis)
        assert found is not None
        assert found.profile == "gaussian"
        errors.append(np.log(found.thickness / strength))
        assert abs(errors[-1]) < 3 * found.deviation
    # Whoever always answers 0.8, the middle of the prior, is off by 0.16 at least.
    assert abs(np.mean(errors)) < 0.13


def test_thicker_slices_are_told_from_thinner_ones_under_noise() -> None:
    sharp = texture(1)
    found = []
    for width in (0.6, 0.8, 1.0, 1.2):
        scan = thick(sharp, "gaussian", width, noise=9.0)
        estimate = estimate_profile(scan.array[0], scan.spacing_mm, 2)
        assert estimate is not None
        found.append(estimate.thickness)
    assert found == sorted(found)
    assert found[-1] / found[0] > 1.4


def test_the_error_of_the_estimate_is_as_large_as_it_says() -> None:
    scaled = []
    for seed in range(6):
        width = (0.67, 1.0)[seed % 2]
        scan = thick(texture(seed, (60, 60, 60)), "gaussian", width)
        found = estimate_profile(scan.array[0], scan.spacing_mm, 2)
        assert found is not None
        assert 0 < found.confidence <= 1
        scaled.append(np.log(found.thickness / width) / found.deviation)
    assert np.sqrt(np.mean(np.square(scaled))) < 1.5


def test_less_to_see_is_less_sure() -> None:
    scan = thick(texture(2), "gaussian", 1.0)
    whole = contrasts(scan.array[0], scan.spacing_mm, 2, 0.0)
    assert whole is not None
    parts = [contrasts(scan.array[0, x : x + 30, y : y + 12], scan.spacing_mm, 2, 0.0)
             for x in (0, 21, 42) for y in (10, 30, 50)]
    assert np.mean([part[1].mean() for part in parts if part is not None]) > 1.3 * whole[1].mean()


def test_one_sharp_axis_is_enough() -> None:
    found = []
    for width in (0.6, 1.2):
        scan = thick(thick(texture(3), "gaussian", width, axis=1), "gaussian", width, axis=2)
        estimate = estimate_profile(scan.array[0], scan.spacing_mm, 2)
        assert estimate is not None
        assert abs(np.log(estimate.thickness / width)) < 2 * estimate.deviation
        found.append(estimate.thickness)
    assert found[1] > 1.3 * found[0]


def test_spacing_need_not_be_a_whole_number_of_pixels() -> None:
    scan = thick(texture(5), "gaussian", 1.0, factor=2.7)
    found = estimate_profile(scan.array[0], scan.spacing_mm, 2)
    assert found is not None
    assert abs(np.log(found.thickness)) < 0.2


def test_slices_more_than_eight_pixels_apart() -> None:
    scan = thick(thick(texture(6, (120, 60, 120)), "rect", 1.0, factor=8.0), "rect", 1.0, factor=1.25)
    assert estimate_profile(scan.array[0], scan.spacing_mm, 2) is not None


def test_values_in_another_unit_give_the_same_estimate() -> None:
    scan = thick(texture(7), "gaussian", 0.8)
    first = estimate_profile(scan.array[0], scan.spacing_mm, 2, noise=2.0)
    second = estimate_profile(1e-12 * scan.array[0] - 3e-11, [2 * mm for mm in scan.spacing_mm], 2, noise=2e-12)
    assert first is not None
    assert second is not None
    assert second.thickness == pytest.approx(first.thickness, rel=1e-3)


@pytest.mark.parametrize(("array", "spacing"), [
    (np.random.default_rng(0).normal(size=(30, 30, 30)), (1.0, 1.0, 1.0)),
    (np.random.default_rng(0).normal(size=(30, 30, 30)), (3.0, 3.0, 1.0)),
    (np.random.default_rng(0).normal(size=(60, 60, 5)), (1.0, 1.0, 3.0)),
    (np.random.default_rng(0).normal(size=(12, 12, 30)), (1.0, 1.0, 3.0)),
    (np.zeros((60, 60, 30)), (1.0, 1.0, 3.0)),
    (np.full((60, 60, 30), 7, dtype=np.int16), (1.0, 1.0, 3.0)),
    (np.random.default_rng(0).normal(size=(60, 60, 30)), (1.0, 1.0, 3.0)),
], ids=["isotropic", "in-plane coarser", "few slices", "few pixels", "zeros", "constant", "noise alone"])
def test_none_where_the_volume_cannot_tell(array: NDArray[Any], spacing: tuple[float, float, float]) -> None:
    assert estimate_profile(array, spacing, 2) is None


@pytest.mark.parametrize("sigma", [3.0, 9.0])
@pytest.mark.parametrize("axis", [None, 2])
def test_noise_is_found_on_sharp_structure(sigma: float, axis: int | None) -> None:
    volume = texture(8).array[0]
    noisy = volume + np.random.default_rng(1).normal(0, sigma, volume.shape)
    assert estimate_noise(noisy, axis) == pytest.approx(sigma, rel=0.12)


def test_noise_is_found_among_integers() -> None:
    volume = texture(8).array[0]
    noisy = np.rint(volume + np.random.default_rng(1).normal(0, 3.0, volume.shape)).astype(np.int16)
    assert estimate_noise(noisy, 2) == pytest.approx(3.0, rel=0.15)


def test_noise_is_found_beside_stripped_background() -> None:
    volume = texture(9).array[0]
    noisy = volume + np.random.default_rng(1).normal(0, 6.0, volume.shape)
    noisy[:, :36] = 0
    noisy[:, :, 56:] = 0
    assert estimate_noise(noisy, 2) == pytest.approx(6.0, rel=0.15)


def test_noise_of_a_volume_larger_than_what_is_looked_at() -> None:
    noisy = np.random.default_rng(1).normal(0, 2.0, (160, 160, 100)).astype(np.float32)
    for axis in (None, 0, 2):
        assert estimate_noise(noisy, axis) == pytest.approx(2.0, rel=0.05)


def test_no_noise_where_nothing_varies() -> None:
    assert estimate_noise(np.full((20, 20, 20), 5.0)) == 0.0
    assert estimate_noise(np.ones((1, 2, 2)), 0) == 0.0


@pytest.mark.parametrize("scan", ["ct/lungfcp_native.nii.gz", "ms/imagesTr/ms_07.nii.gz"])
def test_real_anatomy_tells_a_gap_from_none(shared_data: Path, scan: str) -> None:
    if not (shared_data / scan).is_file():
        pytest.skip(f"no {scan}")
    volume = medgan.read(shared_data / scan)
    found = []
    for width in (0.67, 1.0):
        coarse = thick(volume, "gaussian", width)
        estimate = estimate_profile(coarse.array[0], coarse.spacing_mm, 2)
        assert estimate is not None
        assert abs(np.log(estimate.thickness / width)) < 0.3
        found.append(estimate.thickness)
    assert found[1] > 1.2 * found[0]


def test_noise_is_found_where_few_integers_are_in_use() -> None:
    volume = texture(8).array[0] / 10
    noisy = np.rint(40 + volume + np.random.default_rng(1).normal(0, 1.5, volume.shape)).astype(np.uint8)
    assert estimate_noise(noisy, 2) == pytest.approx(1.5, rel=0.15)
