"""Scanning, thick slices and the linear way back: the operators, the geometry, and that it beats interpolation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from acquisition_makers import density
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Intensity
from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.acquisition import Scanner, simulate
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.refine import Refined, refine
from medgan.imaging.restoration import CHOICES, acquisitions, regularised, restore
from medgan.imaging.slices import PROFILES, Acquisition, along
from medgan.imaging.volume import Volume

AFFINE = np.array([[0.0, -0.9, 0.0, 12.0], [0.8, 0.0, 0.1, -30.0], [0.0, 0.05, 1.1, 7.5], [0.0, 0.0, 0.0, 1.0]])


def psnr(image: NDArray[Any], truth: NDArray[Any], mask: NDArray[np.bool_], span: float) -> float:
    return float(10 * np.log10(span**2 / np.square(image - truth)[mask].mean()))


def cubic(volume: Volume, factor: float, axis: int, fine: int) -> NDArray[np.float32]:
    positions = [np.arange(n, dtype=float) for n in volume.shape]
    positions[axis] = (np.arange(fine) + 0.5) / factor - 0.5
    grid = np.meshgrid(*positions, indexing="ij")
    return ndimage.map_coordinates(volume.array[0], grid, order=3, mode="nearest")


def refined(volume: Volume, scans: tuple[Acquisition, ...], **options: Any) -> Refined:
    """`refine` with the intensity range that it would be given for an MR volume."""
    return refine(volume, scans, intensity_maps(volume.array, Intensity()), **options)


@pytest.fixture(scope="module")
def head() -> Volume:
    image, _ = phantom("mr", 5, shape=(48, 80, 78), spacing_mm=(1.3, 1.3, 1.3))
    return replace(image, array=image.array.astype(np.float32))


# --- the scanner ----------------------------------------------------------------------------------------------------

def turned(*shape: int, mm: float = 1.0, dtype: Any = np.float32) -> Volume:
    """Zeros on an oblique grid of `mm` each way."""
    affine = np.eye(4)
    affine[:3, :3] = mm * np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    affine[:3, 3] = (5, -7, 11)
    return Volume(np.zeros((1, *shape), dtype), affine)


@st.composite
def scanners(draw: st.DrawFn) -> Scanner:
    shape = tuple(draw(st.lists(st.integers(1, 17), min_size=2, max_size=3)))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    in_plane = len(shape) - len(axes) or len(shape)

    def each(count: int, low: float, high: float) -> tuple[float, ...]:
        return tuple(draw(st.lists(st.floats(low, high), min_size=count, max_size=count)))

    return Scanner.of(
        turned(*shape, mm=0.8), axis=axes, spacing_mm=each(len(axes), 0.8, 6.4),
        thickness_mm=each(len(axes), 0.1, 9), profile=draw(st.sampled_from(PROFILES)),
        truncation=each(in_plane, 0.05, 1), blur_mm=each(in_plane, 0, 3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scanners(), st.integers(1, 2))
def test_the_adjoint_is_the_scanners_transpose(scanner: Scanner, channels: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(channels, *scanner.shape)), rng.normal(size=(channels, *scanner.thick_shape))
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-4)):
        there, back = scanner.forward(x.astype(dtype)), scanner.adjoint(y.astype(dtype))
        assert there.dtype == back.dtype == dtype
        assert there.shape == y.shape and back.shape == x.shape
        scale = np.linalg.norm(x) * np.linalg.norm(y)
        assert abs(np.vdot(there, y) - np.vdot(x, back)) <= tolerance * scale


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scanners())
def test_a_scan_keeps_a_constant(scanner: Scanner) -> None:
    constant = np.full((1, *scanner.shape), -321, np.int16)
    np.testing.assert_allclose(scanner.forward(constant), -321, rtol=1e-5)
    np.testing.assert_allclose(scanner.forward(constant.astype(float)), -321, rtol=1e-12)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("period_mm", [30.0, 12.0, 9.0])
def test_a_wave_is_weakened_by_the_profiles_transfer_function(profile: Any, period_mm: float) -> None:
    step, thickness, spacing = 0.25, 5.0, 1.9  # no whole number of voxels
    volume = turned(2, 2, 800, mm=step)
    volume.array[:] = np.cos(2 * np.pi * (np.arange(800) + 0.5) * step / period_mm)
    thick = simulate(volume, spacing_mm=spacing, thickness_mm=thickness, profile=profile).array[0, 0, 0]
    if profile == "gaussian":
        transfer = np.exp(-2 * (np.pi * thickness / np.sqrt(8 * np.log(2)) / period_mm) ** 2)
    elif profile == "rect":
        transfer = np.sinc(thickness / period_mm)
    else:
        x = np.linspace(-30, 30, 60_001)
        transfer = (density("sinc", thickness, x) * np.cos(2 * np.pi * x / period_mm)).sum() * 1e-3
    centres = (np.arange(len(thick)) + 0.5) * spacing
    inner = slice(12, -12)
    np.testing.assert_allclose(thick[inner], (transfer * np.cos(2 * np.pi * centres / period_mm))[inner], atol=3e-3)


@pytest.mark.parametrize("n", [24, 25])
def test_truncation_ends_k_space_and_keeps_what_lies_below(n: int) -> None:
    volume = turned(n, n, 6)
    noise = np.random.default_rng(2).normal(size=(1, n, n, 6))
    scanner = Scanner.of(volume, spacing_mm=1.0, thickness_mm=1e-6, truncation=(0.5, 1.0))  # slices see one voxel each
    before, after = np.fft.fft(noise, axis=1), np.fft.fft(scanner.forward(noise), axis=1)
    kept = np.abs(np.fft.fftfreq(n)) <= 0.25
    assert kept.sum() == 13
    np.testing.assert_allclose(after[:, kept], before[:, kept], atol=1e-12)
    np.testing.assert_allclose(after[:, ~kept], 0, atol=1e-12)
    again = scanner.forward(scanner.forward(noise))
    np.testing.assert_allclose(again, scanner.forward(noise), atol=1e-12)
    np.testing.assert_allclose(scanner.adjoint(noise), scanner.forward(noise), atol=1e-12)


def test_the_point_spread_is_as_wide_as_told_and_in_plane_only() -> None:
    volume = turned(41, 41, 9, mm=0.5)
    volume.array[0, 20, 20] = 1
    seen = simulate(volume, spacing_mm=1.5, blur_mm=(2.0, 0.0)).array[0]
    assert seen[:, 20].sum(axis=0) == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.abs(np.delete(seen, 20, axis=1)).max() == 0
    variance = (seen[:, 20, 1] * (np.arange(41) - 20) ** 2).sum() * 0.25
    # A voxel is as wide as it is: it adds the variance of a rectangle.
    assert variance == pytest.approx((2 / np.sqrt(8 * np.log(2))) ** 2 + 0.25 / 12, rel=1e-3)


def test_thickness_and_gap_add_up_to_the_spacing(head: Volume) -> None:
    gap = simulate(head, thickness_mm=5, gap_mm=1)
    assert gap.spacing_mm[2] == pytest.approx(6)
    assert gap.array.tobytes() == simulate(head, spacing_mm=6, thickness_mm=5).array.tobytes()
    assert gap.array.tobytes() == simulate(head, spacing_mm=6, gap_mm=1).array.tobytes()
    none = simulate(head, thickness_mm=6)
    np.testing.assert_allclose(none.affine, gap.affine)
    # Thinner slices are sharper: their neighbours differ more.
    assert np.abs(np.diff(gap.array)).mean() > 1.02 * np.abs(np.diff(none.array)).mean()


def test_several_axes_at_once_are_one_after_the_other(head: Volume) -> None:
    both = simulate(head, axis=(0, 2), spacing_mm=(2.6, 3.25), thickness_mm=(2.6, 4.0), profile="sinc")
    first = simulate(head, axis=2, spacing_mm=3.25, thickness_mm=4.0, profile="sinc")
    second = simulate(first, axis=0, spacing_mm=2.6, profile="sinc")
    np.testing.assert_allclose(both.array, second.array, atol=1e-4 * np.ptp(head.array))
    np.testing.assert_allclose(both.affine, second.affine, atol=1e-12)


def test_outer_edges_coincide_on_every_axis() -> None:
    volume = turned(12, 20, 30, mm=0.7)
    twice = simulate(volume, axis=(0, 1, 2), spacing_mm=1.4)
    assert twice.shape == (6, 10, 15)
    assert twice.spacing_mm == pytest.approx((1.4, 1.4, 1.4))
    for fine, thick in ((np.full(3, -0.5),) * 2, (np.array([12, 20, 30]) - 0.5, np.array([6, 10, 15]) - 0.5)):
        np.testing.assert_allclose(volume.affine @ [*fine, 1], twice.affine @ [*thick, 1], atol=1e-9)


def test_rician_noise_is_the_magnitude_of_complex_noise() -> None:
    volume = turned(60, 60, 30)
    sigma = 7.0
    air = simulate(volume, spacing_mm=1, noise=sigma, noise_kind="rician").array
    assert air.min() >= 0
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.01)
    bright = simulate(volume.with_array(volume.array + 200), spacing_mm=1, noise=sigma, noise_kind="rician").array
    assert np.square(bright).mean() == pytest.approx(200**2 + 2 * sigma**2, rel=1e-3)
    assert bright.std() == pytest.approx(sigma, rel=0.01)


def test_noise_is_as_strong_as_told_and_depends_on_the_seed_alone() -> None:
    volume = turned(60, 50, 30)
    one = simulate(volume, spacing_mm=2, noise=3, seed=5).array
    assert one.tobytes() == simulate(volume, spacing_mm=2, noise=3, seed=5).array.tobytes()
    drawn = np.random.default_rng(5).normal(0, 3, one.shape).astype(np.float32)
    np.testing.assert_array_equal(one, drawn)
    cut = simulate(volume, spacing_mm=2, noise=3, truncation=(0.5, 0.8)).array
    assert cut.std() == pytest.approx(3, rel=0.02)
    spectrum = np.abs(np.fft.fft(cut.astype(float), axis=1))
    assert spectrum[:, np.abs(np.fft.fftfreq(60)) > 0.25].max() < 1e-5 * spectrum.max()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_the_result_is_float32_and_the_input_untouched(dtype: Any) -> None:
    volume = turned(6, 6, 12, dtype=dtype)
    volume.array[..., 6:] = 100
    before = volume.array.copy()
    thick = simulate(volume, spacing_mm=2, profile="rect", noise=0)
    np.testing.assert_array_equal(volume.array, before)
    assert thick.array.dtype == np.float32
    np.testing.assert_allclose(thick.array[0, 0, 0], [0, 0, 0, 100, 100, 100], atol=1e-4)


def test_an_old_slice_thickness_does_not_outlive_a_new_one() -> None:
    volume = replace(turned(8, 8, 12), slice_thickness_mm=1.0)
    assert simulate(volume, spacing_mm=3).slice_thickness_mm is None
    assert simulate(volume, axis=0, spacing_mm=3).slice_thickness_mm == 1.0


def test_a_spacing_that_only_rounding_makes_finer_is_the_same() -> None:
    volume = turned(8, 8, 8, mm=1.3)
    for mm in volume.spacing_mm[2] * np.array([1 - 1e-9, 1 + 1e-9]):
        assert simulate(volume, spacing_mm=mm).shape == volume.shape
    assert simulate(volume, spacing_mm=volume.spacing_mm[2] * 8 * (1 + 1e-9)).shape == (8, 8, 1)


@pytest.mark.parametrize(("wrong", "message"), [
    ({}, "give spacing_mm"),
    ({"spacing_mm": 3, "thickness_mm": 3, "gap_mm": 1}, "do not add up"),
    ({"spacing_mm": 0.5}, "FACTOR_RANGE"),
    ({"spacing_mm": 99}, "FACTOR_RANGE.*no finer"),
    ({"spacing_mm": float("nan")}, "CFG_VALUE"),
    ({"spacing_mm": 3, "thickness_mm": -1}, "CFG_VALUE"),
    ({"spacing_mm": 3, "gap_mm": 3}, "CFG_VALUE"),
    ({"spacing_mm": 3, "profile": "box"}, "not one of gaussian"),
    ({"spacing_mm": 3, "axis": 3}, "does not name"),
    ({"spacing_mm": 3, "axis": -1}, "does not name"),
    ({"spacing_mm": 3, "axis": (1, 1)}, "does not name"),
    ({"spacing_mm": 3, "axis": ()}, "does not name"),
    ({"spacing_mm": (3, 3), "axis": 2}, "not one number"),
    ({"spacing_mm": 3, "truncation": 0}, "share of k-space"),
    ({"spacing_mm": 3, "truncation": 1.1}, "share of k-space"),
    ({"spacing_mm": 3, "truncation": (1, 1, 1)}, "not one number"),
    ({"spacing_mm": 3, "blur_mm": -1}, "a blur of"),
    ({"spacing_mm": 3, "noise": -1}, "standard deviation"),
    ({"spacing_mm": 3, "noise": float("nan")}, "standard deviation"),
    ({"spacing_mm": 3, "noise_kind": "poisson"}, "not one of gaussian, rician"),
])
def test_impossible_scans_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, Refused), match=message):
        simulate(turned(8, 8, 8), **wrong)


def test_what_is_no_scan_of_this_grid_is_refused() -> None:
    scanner = Scanner.of(turned(8, 8, 8), spacing_mm=2)
    for array in (np.zeros((1, 8, 8, 7)), np.zeros((8, 8, 8)), np.zeros((1, 8, 8, 8), complex)):
        with pytest.raises(ValueError, match="is not a real"):
            scanner.forward(array)
    with pytest.raises(ValueError, match="slices of shape"):
        scanner.with_noise(np.zeros((1, 8, 8, 8)), 1)
    with pytest.raises(ValueError, match="fine voxels"):
        Scanner((8, 8, 9), (1.0, 1.0, 1.0), (None, None, scanner.scans[2]))
    with pytest.raises(ValueError, match="every one of"):
        Scanner((8, 8), (1.0, 1.0), scanner.scans)
    with pytest.raises(ValueError, match="no magnitudes"):
        simulate(replace(turned(8, 8, 8), modality="ct"), spacing_mm=2, noise=1, noise_kind="rician")


def test_a_flat_image_can_be_scanned() -> None:
    flat = Volume(np.arange(24, dtype=np.uint8).reshape(1, 4, 6))
    thick = simulate(flat, axis=1, spacing_mm=2, profile="rect")
    np.testing.assert_allclose(thick.array[0, 0], [0.5, 2.5, 4.5])
    with pytest.raises(ValueError, match="does not name"):
        simulate(flat, spacing_mm=2)


# --- the way back ---------------------------------------------------------------------------------------------------

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
        whole, cut = refined(thick, scans), refined(thick, scans, slab_voxels=60_000)
        assert np.abs(whole.array - cut.array).max() < 1e-3 * np.ptp(thick.array)
        assert cut.consistency == pytest.approx(whole.consistency, rel=1e-3)
        np.testing.assert_allclose(whole.array, restore(thick, factor=factors).array, atol=1e-3)


def test_nothing_undershoots_a_floor_that_many_voxels_share() -> None:
    line = np.array([-1000.0] * 6 + [50.0, 900.0, 40.0, 30.0] * 3 + [-1000.0] * 6, np.float32)
    volume = Volume(np.broadcast_to(line, (1, 3, 3, 24)).copy())
    scans = acquisitions(volume, (1, 1, 3), "gaussian", None)
    assert restore(volume, factor=(1, 1, 3)).array.min() < -1050
    assert refined(volume, scans).array.min() == -1000
    free = replace(volume, array=volume.array + np.arange(216, dtype=np.float32).reshape(1, 3, 3, 24) * 1e-3)
    assert refined(free, scans).array.min() < -1050


def test_integers_are_rounded_and_clipped_to_their_type() -> None:
    steps = np.repeat([0, 255, 0, 255], 5).astype(np.uint8)
    volume = Volume(np.broadcast_to(steps, (1, 2, 2, 20)).copy())
    array = refined(volume, acquisitions(volume, (1, 1, 3), "gaussian", None)).array
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


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_smoothness_is_chosen_near_the_best_by_the_noise(factor: float) -> None:
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.normal(size=(40, 40, 96)), 2.0)
    truth *= 100 / np.abs(truth).max()
    scan = Acquisition(int(96 / factor), factor)
    errors = {}
    for noise in (0.0, 5.0, 20.0):
        thick = along(scan.matrix, truth, 2) + rng.normal(0, noise, (40, 40, scan.slices)).astype(np.float32)
        span = (float(thick.min()), float(thick.max()))
        known = replace(scan, noise=2 * noise / (span[1] - span[0]))
        chosen = regularised(known, thick, 2, span)
        assert (chosen.smoothness > 0) == (noise > 0)
        tried = [np.square(along(replace(scan, smoothness=s).inverse, thick, 2) - truth).mean() for s in CHOICES]
        errors[noise] = np.square(along(chosen.inverse, thick, 2) - truth).mean() / min(tried)
        if noise == 20.0:
            assert tried[0] > 1.5 * min(tried)  # the choice matters here
    assert max(errors.values()) < 1.25
