"""Where voxels are: reorienting, comparing grids, resampling."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medgan.errors import Refused
from medgan.imaging.geometry import (
    FWHM_PER_SIGMA,
    align_mask,
    axis_directions,
    rearranged,
    reorient,
    resample,
    resample_to,
    same_grid,
    zoomed_affine,
)
from medgan.imaging.volume import Volume

ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]
C, S = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[0.8 * C, -S, 0, -31.5], [0.8 * S, C, 0, 12.25], [0, 0, 2.5, -70], [0, 0, 0, 1]])


def image(affine: np.ndarray = OBLIQUE, shape: tuple[int, ...] = (1, 7, 9, 5), dtype: str = "int16") -> Volume:
    values = np.random.default_rng(3).integers(-1000, 1000, shape)
    return Volume(values.astype(dtype), affine)


def test_all_48_orientations_come_back_the_same() -> None:
    original = image()
    assert original.orientation == "RAS" and len(set(ORIENTATIONS)) == 48
    for codes in ORIENTATIONS:
        turned = reorient(original, codes)
        assert turned.orientation == codes
        assert sorted(turned.shape) == sorted(original.shape)
        # One and the same world point holds one and the same value.
        index = np.array([1, 2, 3])
        world = turned.affine[:3, :3] @ index + turned.affine[:3, 3]
        there = np.linalg.solve(original.affine[:3, :3], world - original.affine[:3, 3])
        assert np.abs(there - np.rint(there)).max() < 1e-9
        assert turned.array[(0, *index)] == original.array[(0, *np.rint(there).astype(int))]
        back = reorient(turned)
        assert np.array_equal(back.array, original.array)
        assert np.abs(back.affine - original.affine).max() < 1e-12


def test_reorienting_agrees_with_nibabel() -> None:
    original = image()
    for codes in ("LPS", "SAR", "PIL", "IRP"):
        start = nibabel.orientations.io_orientation(original.affine)
        end = nibabel.orientations.axcodes2ornt(codes)
        expected = nibabel.Nifti1Image(original.array[0], original.affine).as_reoriented(
            nibabel.orientations.ornt_transform(start, end)
        )
        ours = reorient(original, codes)
        assert np.array_equal(ours.array[0], np.asarray(expected.dataobj))
        assert np.allclose(ours.affine, expected.affine, atol=1e-12)


def test_reorienting_a_2d_image_keeps_its_plane() -> None:
    # A coronal slice: columns towards the left, rows towards the feet.
    affine = np.array([[-0.5, 0, 0, 10], [0, 0, 3, 20], [0, -0.7, 0, 30], [0, 0, 0, 1.0]])
    values = np.arange(12).reshape(1, 4, 3)
    turned = reorient(Volume(values, affine))
    assert turned.orientation == "RS"
    assert np.array_equal(turned.array[0], values[0, ::-1, ::-1])
    assert np.array_equal(turned.affine[:, 2], affine[:, 2])
    assert np.allclose(turned.affine[:3, 3], [10 - 1.5, 20, 30 - 1.4])
    assert np.array_equal(reorient(Volume(values, affine), "SPL").array[0], values[0, :, ::-1].T)


def test_reoriented_arrays_have_no_negative_strides() -> None:
    assert min(reorient(image(), "LPI").array.strides) > 0


def test_impossible_codes() -> None:
    for codes in ("RAX", "RLS", "RA", "RASS"):
        with pytest.raises(ValueError, match="axis codes"):
            reorient(image(), codes)


def test_every_world_axis_is_given_out_once_at_45_degrees() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.sqrt(0.5), np.sqrt(0.5)], [np.sqrt(0.5), -np.sqrt(0.5)]]
    assert sorted(world for world, _ in axis_directions(turn)) == [0, 1, 2]


def test_same_grid_takes_rounding_and_nothing_else() -> None:
    a = image()
    near, far = a.affine.copy(), a.affine.copy()
    near[:3] += 1e-5
    far[0, 3] += 0.2
    assert same_grid(a, Volume(a.array, near))
    assert not same_grid(a, Volume(a.array, far))
    assert same_grid(a, Volume(a.array, far), tolerance_mm=0.21)
    assert not same_grid(a, Volume(a.array[:, :-1], a.affine))
    # A small turn about the first voxel moves the far corners.
    turned = a.affine.copy()
    turned[:3, :3] = a.affine[:3, :3] @ np.array([[1, -0.1, 0], [0.1, 1, 0], [0, 0, 1]])
    assert not same_grid(a, Volume(a.array, turned))


def test_a_mask_in_any_orientation_lands_on_its_image() -> None:
    scan = image()
    labels = image(dtype="uint8")
    for codes in ORIENTATIONS:
        aligned = align_mask(reorient(labels, codes), scan)
        assert np.array_equal(aligned.array, labels.array)
        assert np.array_equal(aligned.affine, scan.affine)
    # The image may be turned as well, and 2D works alike.
    assert np.array_equal(align_mask(labels, reorient(scan, "SPL")).array, reorient(labels, "SPL").array)
    flat, flat_mask = (Volume(volume.array[..., 2], volume.affine) for volume in (scan, labels))
    assert np.array_equal(align_mask(reorient(flat_mask, "PLS"), flat).array, flat_mask.array)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR"])
def test_a_mask_elsewhere_is_refused(codes: str) -> None:
    scan = image()
    shifted = scan.affine.copy()
    shifted[0, 3] += 10
    coarse = resample(image(dtype="uint8"), (1.6, 2, 2.5), order=0)
    for mask in (Volume(scan.array, shifted), coarse):
        with pytest.raises(Refused) as refused:
            align_mask(reorient(mask, codes), scan)
        assert refused.value.code == "LABEL_GRID"


def test_a_mask_of_other_dimensions_is_refused() -> None:
    scan = image()
    for mask in (image(shape=(2, 7, 9, 5)), Volume(scan.array[..., 0], scan.affine)):
        with pytest.raises(Refused) as refused:
            align_mask(mask, scan)
        assert refused.value.code == "LABEL_DIM"


@pytest.mark.parametrize("dims", [2, 3])
def test_zooming_keeps_the_field_of_view(dims: int) -> None:
    factors = (2.0, 0.5, 3.0)[:dims]
    zoomed = zoomed_affine(OBLIQUE, factors)
    # The first output centre in input voxels is (1/f - 1)/2 ...
    first = np.linalg.solve(OBLIQUE, zoomed[:, 3])[:dims]
    assert np.allclose(first, [(1 / f - 1) / 2 for f in factors])
    # ... so that the outer edges, at index -1/2, coincide.
    edge = np.array([*[-0.5] * dims, *[0.0] * (3 - dims), 1])
    assert np.allclose(zoomed @ edge, OBLIQUE @ edge)
    far = [n - 0.5 for n in (6, 8, 4)[:dims]] + [0.0] * (3 - dims)
    far_zoomed = [n * f - 0.5 for n, f in zip((6, 8, 4), factors, strict=False)] + [0.0] * (3 - dims)
    assert np.allclose(zoomed @ [*far_zoomed, 1], OBLIQUE @ [*far, 1])
    assert np.allclose(zoomed_affine(zoomed, [1 / f for f in factors]), OBLIQUE)


def test_resampling_labels_repeats_and_picks_voxels() -> None:
    labels = image(dtype="uint8")
    fine = resample(labels, [s / 2 for s in labels.spacing_mm], order=0)
    assert fine.array.dtype == np.uint8
    assert np.array_equal(fine.array, labels.array.repeat(2, 1).repeat(2, 2).repeat(2, 3))
    back = resample(fine, labels.spacing_mm, order=0, shape=labels.shape)
    assert np.array_equal(back.array, labels.array) and same_grid(back, labels, 1e-9)
    mask = Volume(labels.array > 100, labels.affine)
    assert resample(mask, (1, 1, 1), order=0).array.dtype == bool


@pytest.mark.parametrize("order", [1, 3])
def test_resampling_a_ramp_gives_the_ramp(order: int) -> None:
    # Values that are a linear function of the world are the same function on any grid, away from the edges.
    def ramp(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        world = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3].reshape(3, 1, 1, 1)
        return np.tensordot([0.3, -0.2, 0.1], world, 1)[None]

    scan = Volume(ramp(OBLIQUE, (24, 24, 24)), OBLIQUE)
    for spacing in ((0.5, 0.7, 1.0), (1.1, 1.3, 3.1)):
        out = resample(scan, spacing, order=order)
        assert np.allclose(out.spacing_mm, spacing)
        inner = (0, *(slice(n // 3, -(n // 3)) for n in out.shape))
        assert np.abs(out.array - ramp(out.affine, out.shape))[inner].max() < 1e-2
        straight = np.diag([0.8, 0.8, 1.5, 1])
        straight[:3, 3] = (OBLIQUE @ [11.5, 11.5, 11.5, 1])[:3] - [4.4, 4.4, 8.25]  # centred on the scan
        onto = resample_to(scan, straight, (12, 12, 12), order=order)
        assert np.abs(onto.array - ramp(straight, (12, 12, 12))).max() < 1e-2


@pytest.mark.parametrize("order", [0, 1, 3])
def test_separable_resampling_agrees_with_scipy(order: int) -> None:
    scan = image(dtype="float64", shape=(2, 11, 13, 9))
    spacing = np.array([0.5, 0.75, 2.6])
    out = resample(scan, spacing, order=order)
    step = spacing / scan.spacing_mm
    position = [
        np.clip(np.arange(count) * s + (s - 1) / 2, 0, n - 1)
        for count, s, n in zip(out.shape, step, scan.shape, strict=True)
    ]
    for channel in range(2):
        smooth = scan.array[channel]
        if order:
            sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / FWHM_PER_SIGMA
            smooth = ndimage.gaussian_filter(smooth, sigma, mode="nearest")
        expected = ndimage.map_coordinates(smooth, np.meshgrid(*position, indexing="ij"), order=order, mode="mirror")
        assert np.abs(out.array[channel] - expected).max() < 1e-9
    assert np.abs(resample_to(scan, out.affine, out.shape, order=order).array - out.array).max() < 1e-6


def test_downsampling_does_not_alias() -> None:
    stripes = np.tile([0.0, 1.0], 32)[None, :, None].repeat(8, 2).astype(np.float32)
    coarse = resample(Volume(stripes), (3, 1), order=1)
    assert np.abs(coarse.array - 0.5).max() < 0.2
    assert set(np.unique(resample(Volume(stripes), (3, 1), order=0).array)) == {0.0, 1.0}


def test_resampling_edges_and_single_voxels() -> None:
    scan = Volume(np.array([[[10.0], [20.0]]]), np.eye(4))
    out = resample(scan, (0.25, 0.25), order=1)
    assert out.shape == (8, 4)
    assert np.allclose(out.array[0, :, 0], [10, 10, 11.25, 13.75, 16.25, 18.75, 20, 20])
    assert resample(scan, (0.5, 0.5), order=3).array.shape == (1, 4, 2)
    assert resample(scan, (100, 100), order=1).shape == (1, 1)
    assert resample(image(), (1, 1, 1)).array.dtype == np.float32
    assert np.array_equal(resample(image(), image().spacing_mm, order=3).array, image().array)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, 1), (np.nan, 1, 1), (-1, 1, 1)])
def test_impossible_spacings_are_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(Refused) as refused:
        resample(image(), spacing)
    assert refused.value.code == "GEOM_BAD_SPACING"


def test_resampling_beyond_the_field_of_view() -> None:
    scan = Volume(np.full((1, 4, 4, 4), 7, np.int16), np.eye(4))
    wide = np.eye(4)
    wide[:3, 3] = -2
    assert (resample_to(scan, wide, (8, 8, 8), order=0).array == 7).all()
    padded = resample_to(scan, wide, (8, 8, 8), order=0, outside=-1).array[0]
    assert (padded[2:6, 2:6, 2:6] == 7).all() and (padded == 7).sum() == 64 and (padded == -1).sum() == 448


def test_resampling_a_2d_image_stays_in_its_plane() -> None:
    flat = Volume(np.arange(16.0).reshape(1, 4, 4), np.eye(4))
    onto = resample_to(flat, rearranged(flat, [1, 0], [True, False]).affine, (4, 4), order=1)
    assert np.allclose(onto.array[0], flat.array[0].T[::-1])
    away = np.eye(4)
    away[2, 3] = 5
    with pytest.raises(ValueError, match="plane"):
        resample_to(flat, away, (4, 4), order=1)
