"""Thick slices and the linear way back: the operator, the geometry, and that it beats interpolation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.acquisition import simulate
from medgan.imaging.refine import refine
from medgan.imaging.restoration import acquisitions, restore
from medgan.imaging.slices import PROFILES, Acquisition, slice_profile
from medgan.imaging.volume import Volume

AFFINE = np.array([[0.0, -0.9, 0.0, 12.0], [0.8, 0.0, 0.1, -30.0], [0.0, 0.05, 1.1, 7.5], [0.0, 0.0, 0.0, 1.0]])


def psnr(image: NDArray[Any], truth: NDArray[Any], mask: NDArray[np.bool_], span: float) -> float:
    return float(10 * np.log10(span**2 / np.square(image - truth)[mask].mean()))


def cubic(volume: Volume, factor: float, axis: int, fine: int) -> NDArray[np.float32]:
    positions = [np.arange(n, dtype=float) for n in volume.shape]
    positions[axis] = (np.arange(fine) + 0.5) / factor - 0.5
    grid = np.meshgrid(*positions, indexing="ij")
    return ndimage.map_coordinates(volume.array[0], grid, order=3, mode="nearest")


@pytest.fixture(scope="module")
def head() -> Volume:
    image, _ = phantom("mr", 5, shape=(48, 80, 78), spacing_mm=(1.3, 1.3, 1.3))
    return replace(image, array=image.array.astype(np.float32))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_integrates_to_one_and_is_half_as_high_at_half_its_width(profile: Any) -> None:
    x = np.linspace(-20, 20, 400_001)
    density = slice_profile(profile, 4.0, x)
    assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=2e-3)
    near = slice_profile(profile, 4.0, np.array([0.0, 1.99, 2.01]))
    assert near[1] >= near[0] / 2 * 0.98
    assert near[2] <= near[0] / 2 * 1.02


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("factor", "thickness"), [(3.0, 1.0), (2.5, 0.6), (6.0, 1.4), (1.0, 1.0)])
def test_rows_sum_to_one_and_the_adjoint_is_the_transpose(profile: Any, factor: float, thickness: float) -> None:
    scan = Acquisition(17, factor, thickness, profile)
    assert scan.matrix.shape == (17, round(17 * factor))
    np.testing.assert_allclose(scan.matrix.sum(axis=1), 1, atol=1e-12)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=scan.fine), rng.normal(size=17)
    assert scan.matrix @ x @ y == pytest.approx(x @ (scan.matrix.T @ y))


def test_a_rectangle_of_the_spacing_is_a_plain_mean() -> None:
    scan = Acquisition(5, 3.0, 1.0, "rect")
    np.testing.assert_allclose(scan.matrix, np.kron(np.eye(5), np.full((1, 3), 1 / 3)), atol=1e-12)


def test_a_gap_leaves_voxels_unseen() -> None:
    volume = Volume(np.zeros((1, 4, 4, 12), np.float32))
    volume.array[..., 2] = 1  # lies in the gap between slices at 0 to 2 and 3 to 5 mm
    assert simulate(volume, spacing_mm=3, gap_mm=1, profile="rect").array[0, 0, 0, 0] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="do not add up"):
        simulate(volume, spacing_mm=3, thickness_mm=3, gap_mm=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_fine_grid_comes_back_where_it_was(axis: int, factor: int) -> None:
    volume = Volume(np.zeros((2, 24, 24, 24), np.int16), AFFINE)
    thick = simulate(volume, axis=axis, spacing_mm=factor * volume.spacing_mm[axis])
    back = restore(thick, factor=[factor if a == axis else 1 for a in range(3)])
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)
    assert back.array.shape == volume.array.shape
    # The first thick centre lies (factor - 1) / 2 fine voxels in; the outer edges coincide.
    index = np.zeros(4)
    index[3], index[axis] = 1, (factor - 1) / 2
    np.testing.assert_allclose(thick.affine[:3, 3], (volume.affine @ index)[:3], atol=1e-9)


def test_a_ramp_lands_at_its_own_place_in_millimetres() -> None:
    z = np.arange(60, dtype=np.float32)
    volume = Volume(np.broadcast_to(z, (1, 3, 3, 60)).copy(), np.diag([1.0, 1.0, 0.5, 1.0]))
    thick = simulate(volume, spacing_mm=1.25)
    assert thick.shape[2] == 24
    fine = restore(thick, spacing_mm=(1, 1, 0.4))
    world = fine.affine[2, 2] * np.arange(fine.shape[2]) + fine.affine[2, 3]
    inner = slice(10, -10)
    np.testing.assert_allclose(fine.array[0, 1, 1][inner], world[inner] / 0.5, atol=0.02)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_constant_stays_and_the_result_scans_to_the_input(head: Volume, profile: Any) -> None:
    constant = replace(head, array=np.full((1, 4, 4, 20), 700.0, np.float32))
    np.testing.assert_allclose(restore(constant, factor=(1, 1, 2.5), profile=profile).array, 700, rtol=1e-5)
    thick = simulate(head, spacing_mm=3.9, profile=profile)
    again = simulate(restore(thick, factor=(1, 1, 3), profile=profile), spacing_mm=3.9, profile=profile)
    span = float(head.array.max() - head.array.min())
    assert np.sqrt(np.square(again.array - thick.array).mean()) < 0.005 * span


@pytest.mark.parametrize(("profile", "thickness", "gain"),
                         [("gaussian", 1.0, 0.3), ("gaussian", 1.3, 0.8), ("rect", 1.0, 0.0)])
def test_the_known_profile_beats_cubic_interpolation(head: Volume, profile: Any, thickness: float,
                                                     gain: float) -> None:
    thick = simulate(head, spacing_mm=3.9, thickness_mm=3.9 * thickness, profile=profile)
    fine = restore(thick, factor=(1, 1, 3), profile=profile, thickness_mm=3.9 * thickness)
    mask, span = head.array[0] > 100, float(np.percentile(head.array, 99.9))
    ours = psnr(fine.array[0], head.array[0], mask, span)
    assert ours > psnr(cubic(thick, 3, 2, 78), head.array[0], mask, span) + gain


def test_told_noise_smooths(head: Volume) -> None:
    spread = float(head.array[head.array > 100].std())
    noisy = simulate(head, spacing_mm=3.9, noise=0.4 * spread, seed=3)
    assert not np.array_equal(noisy.array, simulate(head, spacing_mm=3.9, noise=0.4 * spread, seed=4).array)
    mask, span = head.array[0] > 100, float(np.percentile(head.array, 99.9))
    plain, told = (restore(noisy, factor=(1, 1, 3), noise=noise).array[0] for noise in (0.0, 0.4))
    assert psnr(told, head.array[0], mask, span) > psnr(plain, head.array[0], mask, span) + 0.2


def test_slabs_do_not_show(head: Volume) -> None:
    thick = simulate(simulate(head, spacing_mm=2.6), axis=1, spacing_mm=2.6)
    for factors in [(1, 2, 2), (1.5, 2, 2.3)]:
        scans = acquisitions(thick, factors, "gaussian", None)
        whole, residual = refine(thick, scans)
        cut, same = refine(thick, scans, slab_voxels=60_000)
        assert np.abs(whole - cut).max() < 1e-3 * np.ptp(thick.array)
        assert same == pytest.approx(residual, rel=1e-3)
        np.testing.assert_allclose(whole, restore(thick, factor=factors).array, atol=1e-3)


def test_nothing_undershoots_a_floor_that_many_voxels_share() -> None:
    line = np.array([-1000.0] * 6 + [50.0, 900.0, 40.0, 30.0] * 3 + [-1000.0] * 6, np.float32)
    volume = Volume(np.broadcast_to(line, (1, 3, 3, 24)).copy())
    scans = acquisitions(volume, (1, 1, 3), "gaussian", None)
    assert restore(volume, factor=(1, 1, 3)).array.min() < -1050
    assert refine(volume, scans)[0].min() == -1000
    free = replace(volume, array=volume.array + np.arange(216, dtype=np.float32).reshape(1, 3, 3, 24) * 1e-3)
    assert refine(free, scans)[0].min() < -1050


def test_integers_are_rounded_and_clipped_to_their_type() -> None:
    steps = np.repeat([0, 255, 0, 255], 5).astype(np.uint8)
    volume = Volume(np.broadcast_to(steps, (1, 2, 2, 20)).copy())
    array, _ = refine(volume, acquisitions(volume, (1, 1, 3), "gaussian", None))
    exact = restore(volume, factor=(1, 1, 3)).array
    assert array.dtype == np.uint8
    assert exact.max() > 255 and exact.min() < 0  # it overshoots, so clipping is put to the test
    np.testing.assert_array_equal(array, np.clip(np.rint(exact), 0, 255))


@pytest.mark.parametrize("factor", [0.5, 9, float("nan")])
def test_impossible_factors_are_refused(head: Volume, factor: float) -> None:
    with pytest.raises(Refused) as refused:
        restore(head, factor=factor)
    assert refused.value.code in ("FACTOR_RANGE", "CFG_VALUE")


def test_a_coarser_spacing_is_refused(head: Volume) -> None:
    with pytest.raises(Refused, match="FACTOR_RANGE"):
        restore(head, spacing_mm=(1.3, 1.3, 2.0))
