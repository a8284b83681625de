"""Tilted and unevenly spaced series: refused unless asked for, and then in their true place, size and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_makers import codes, enhanced, make_series, make_slice, refusal, save
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging import dicom
from medgan.imaging.dicom import read_series
from medgan.imaging.dicom_write import write_derived
from medgan.imaging.irregular import plan, straightened
from medgan.imaging.rules import Rules
from medgan.imaging.volume import Volume

REAL = Path(__file__).parents[2] / "shared" / "odd" / "real" / "dcm_qa_ct_Philips_S21610"
RESAMPLE = Rules(irregular="resample")
#: Rows and columns of the phantom's slices, and their spacing in mm.
ROWS, COLUMNS, PIXEL = 60, 52, (1.2, 0.9)
#: LPS centre in mm and radius of the ball, values outside and inside.
CENTRE, RADIUS, AIR, BALL = np.array([11.0, -7.0, 40.0]), 17.0, -1000, 400
EVEN = np.arange(0, 60, 2.5)
UNEVEN = np.concatenate([np.arange(0, 30, 2.5), np.arange(30, 61, 5.0)])
RAGGED = np.concatenate([np.arange(0, 30, 2.5), 29 + np.cumsum([2.9, 3.7, 4.1, 6.3, 3.3, 4.4, 3.5, 2.8])])
WAYS = {"tilted": (EVEN, 15.0), "tilted back": (EVEN, -22.0), "uneven": (UNEVEN, 0.0), "both": (UNEVEN, 18.0),
        "ragged": (RAGGED, 12.0)}
AXIAL = np.eye(3)
TURNED = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
TURNED[:, 2] = np.cross(TURNED[:, 0], TURNED[:, 1])


# --- phantoms that know where they are ------------------------------------------------------------------------------

def stack_of(way: str, axes: NDArray[Any] = AXIAL) -> NDArray[Any]:
    """(N, 3) LPS positions of slices so that the ball lies inside all of them; tilted sideways along both axes."""
    along, degrees = WAYS[way]
    shift = np.tan(np.radians(degrees)) * np.array([0.6, 0.8])
    local = np.column_stack([shift[0] * along, shift[1] * along, along])
    half = np.array([(COLUMNS - 1) / 2 * PIXEL[1], (ROWS - 1) / 2 * PIXEL[0], 0])
    return CENTRE + (local - local[len(local) // 2] - half) @ axes.T


def places(position: NDArray[Any], axes: NDArray[Any]) -> NDArray[Any]:
    """(ROWS, COLUMNS, 3) LPS places of the pixels of a slice."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    offsets = columns[..., None] * PIXEL[1] * axes[:, 0] + rows[..., None] * PIXEL[0] * axes[:, 1]
    return np.asarray(position + offsets)


def ball(points: NDArray[Any]) -> NDArray[Any]:
    """Values of the ball, with an edge 2 mm wide, so that its border is placed below a voxel."""
    depth = RADIUS - np.linalg.norm(points - CENTRE, axis=-1)
    return np.asarray(AIR + (BALL - AIR) * np.clip(depth / 2 + 0.5, 0, 1))


def ramp(points: NDArray[Any]) -> NDArray[Any]:
    """Values that are linear in space."""
    return np.asarray(points @ [3.0, -5.0, 4.0] + 100)


def scan(folder: Path, way: str, values: Any, axes: NDArray[Any] = AXIAL) -> Path:
    items = []
    for number, position in enumerate(stack_of(way, axes)):
        pixels = np.rint(values(places(position, axes))).astype(np.int16)
        item = make_slice(number, pixels, position, (*axes[:, 0], *axes[:, 1]))
        item.PixelSpacing = list(PIXEL)
        items.append(item)
    return save(items, folder)


def resampled(folder: Path) -> Volume:
    [volume] = read_series(folder, RESAMPLE)
    return volume


def lps(volume: Volume) -> NDArray[Any]:
    """(X, Y, Z, 3) LPS places of the voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    return (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]


# --- what comes out -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("axes", [AXIAL, TURNED], ids=["axial", "oblique"])
def test_a_ball_comes_out_in_its_place_and_size(tmp_path: Path, way: str, axes: NDArray[Any]) -> None:
    volume = resampled(scan(tmp_path, way, ball, axes))
    points, array = lps(volume), volume.array[0]
    assert array.dtype == np.int16 and array.min() == AIR and array.max() == BALL
    weight = array.astype(float) - AIR
    centroid = (points * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    # A voxel is 0.9 x 1.2 x 2.5 mm; an edge inside a gap of 6.3 mm cannot be placed better.
    assert np.linalg.norm(centroid - CENTRE) < (0.5 if way == "ragged" else 0.1)
    inside, truth = array > (AIR + BALL) / 2, np.linalg.norm(points - CENTRE, axis=-1) < RADIUS
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > (0.985 if way.startswith("tilted") else 0.97)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("axes", [AXIAL, TURNED], ids=["axial", "oblique"])
def test_what_is_linear_in_space_is_exact_inside(way: str, axes: NDArray[Any]) -> None:
    positions = stack_of(way, axes)
    grid = plan(positions, axes, (PIXEL[1], PIXEL[0]), (COLUMNS, ROWS), step=None)
    slices = np.stack([ramp(places(position, axes)).T for position in positions], axis=-1)
    array = straightened(slices, grid)
    assert array.shape == grid.shape and array.dtype == np.float64
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = array > slices.min()
    np.testing.assert_allclose(array[inside], ramp(points)[inside], atol=1e-3)
    # Every plane holds a whole slice, but for the row and the column that a shift by part of a voxel cuts off.
    assert (inside.sum(axis=(0, 1)) >= (COLUMNS - 1) * (ROWS - 1) - 1).all()


def test_values_read_from_files_are_linear_within_rounding(tmp_path: Path) -> None:
    volume = resampled(scan(tmp_path, "both", ramp))
    array, truth = volume.array[0], ramp(lps(volume))
    inside = array > array.min()
    assert np.abs(array - truth)[inside].max() <= 1.0 + 1e-3  # stored values and results are rounded, each by a half


def test_a_series_that_is_only_tilted_keeps_its_voxels(tmp_path: Path) -> None:
    items = make_series(5)
    for z, item in enumerate(items):  # two columns and one row a slice
        item.ImagePositionPatient = [-10 + 1.5 * z, -20 - 1.5 * z, -30 + 2.5 * z]
    stored = [pydicom.Dataset.pixel_array.fget(item) for item in items]  # type: ignore[attr-defined]
    volume = resampled(save(items, tmp_path))
    assert volume.shape == (32 + 8, 40 + 4, 5) and volume.slice_thickness_mm == 2.5
    for z, pixels in enumerate(stored):
        expected = np.full((44, 40), min(p.min() for p in stored))
        expected[4 - z:44 - z, 2 * z:2 * z + 32] = pixels
        np.testing.assert_array_equal(volume.array[0, :, :, z].T, expected)
    np.testing.assert_allclose(volume.affine[:3, 3], [10, 26, -30])


def test_uneven_slices_keep_those_that_the_new_grid_meets(tmp_path: Path) -> None:
    folder = scan(tmp_path, "uneven", ball)
    volume = resampled(folder)
    assert volume.spacing_mm[2] == pytest.approx(2.5) and volume.slice_thickness_mm is None
    files = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda f: f.ImagePositionPatient[2])
    at = np.rint((UNEVEN - UNEVEN[0]) / 2.5).astype(int)
    assert volume.shape == (COLUMNS, ROWS, at[-1] + 1)
    for number, data in zip(at, files, strict=True):
        np.testing.assert_array_equal(volume.array[0, :, :, number].T, data.pixel_array)


@pytest.mark.parametrize(("along", "step", "planes"), [
    ((0, 2.5, 5, 10, 15, 20), 2.5, 9),  # the smallest step
    ((0, 5, 10, 15, 15.2, 20, 25), 2.5, 11),  # not less than half of the median
    ((0, 3, 5.6, 9.4, 12), 2.4, 6),  # evened out to end where the slices do
])
def test_the_new_step_is_the_smallest_one_within_reason(along: Any, step: float, planes: int) -> None:
    positions = np.outer(along, [0, 0, 1.0])
    grid = plan(positions, np.eye(3), (1, 1), (8, 9), step=None)
    assert grid.step_mm == pytest.approx(step) and grid.shape == (8, 9, planes)
    assert grid.slice_at(planes - 1) == len(along) - 1


def test_a_mask_takes_the_nearest_value_and_nothing_outside(tmp_path: Path) -> None:
    def two_labels(points: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.linalg.norm(points - CENTRE, axis=-1) < RADIUS, 4, 1)

    folder = scan(tmp_path, "both", two_labels)
    [mask] = read_series(folder, RESAMPLE, labels=True)
    image = resampled(folder)
    assert set(np.unique(mask.array)) == {0, 1, 4} and {2, 3} & set(np.unique(image.array))
    np.testing.assert_allclose(mask.affine, image.affine)
    inside, truth = mask.array[0] == 4, np.linalg.norm(lps(mask) - CENTRE, axis=-1) < RADIUS
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > 0.95


def test_whole_numbers_stay_and_fractions_stay(tmp_path: Path) -> None:
    items = make_series(6)
    for item, z in zip(items, (0, 2.5, 5, 8.5, 12, 14.5), strict=True):
        item.ImagePositionPatient, item.RescaleSlope = [0, 0, z], 0.5
    volume = resampled(save(items, tmp_path))
    assert volume.array.dtype == np.float32
    slices = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    grid = plan(np.outer([0, 1, 1.7, 3], [0, 0, 1.0]), np.eye(3), (1, 1), (2, 3), step=None)
    assert straightened(slices, grid).dtype == np.uint8


def test_frames_of_an_enhanced_file_are_resampled_too(tmp_path: Path) -> None:
    item = enhanced([3, 0, 4, 1, 2])
    for frame, z in zip(item.PerFrameFunctionalGroupsSequence, (3, 0, 4, 1, 2), strict=True):
        frame.PlanePositionSequence[0].ImagePositionPatient = [-10 + 0.75 * z, -20, -30 + 2.5 * z]
    path = save([item], tmp_path) / "001.dcm"
    assert refusal(path) == "GEOM_GANTRY_TILT"
    assert resampled(path).shape == (36, 40, 5)


# --- what is said of it ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("way", "code", "said"), [
    ("tilted", "GEOM_GANTRY_TILT", "24 slices sheared by 15 degrees were moved within their planes; what no slice "
                                   "covers holds the lowest real value"),
    ("uneven", "GEOM_VARIABLE_SPACING", "19 slices 2.5 to 5 mm apart were interpolated to 25 planes 2.5 mm apart"),
    ("both", "GEOM_VARIABLE_SPACING", "19 slices sheared by 18 degrees and 2.5 to 5 mm apart were interpolated to 25 "
                                      "planes 2.5 mm apart; what no slice covers holds the lowest real value"),
])
def test_it_is_refused_by_default_and_noted_when_asked_for(tmp_path: Path, way: str, code: str, said: str) -> None:
    folder = scan(tmp_path, way, ball)
    with pytest.raises(Refused) as caught:
        read_series(folder)
    assert caught.value.code == code and "data.irregular=resample" in caught.value.fix
    assert {note.code: note.why for note in resampled(folder).notes} == {"GEOM_RESAMPLED": said}


@pytest.mark.parametrize(("way", "said"), [
    ("tilted", "24 slices sheared by 15 degrees were moved within their planes, to the nearest voxel; what no slice "
               "covers is 0"),
    ("uneven", "19 slices 2.5 to 5 mm apart were taken for 25 planes 2.5 mm apart, the nearest for each"),
])
def test_of_a_mask_it_is_said_in_words_of_masks(tmp_path: Path, way: str, said: str) -> None:
    [mask] = read_series(scan(tmp_path, way, ball), RESAMPLE, labels=True)
    assert {note.code: note.why for note in mask.notes} == {"GEOM_RESAMPLED": said}


def test_an_even_straight_series_is_left_alone(tmp_path: Path) -> None:
    folder = save(make_series(), tmp_path)
    [plain], asked = read_series(folder), resampled(folder)
    np.testing.assert_array_equal(plain.array, asked.array)
    assert asked.notes == () and (plain.affine == asked.affine).all()


def _at(*places: Any) -> list[Any]:
    items = make_series(len(places))
    for item, place in zip(items, places, strict=True):
        item.ImagePositionPatient = [float(x) for x in place]
    return items


def _turned() -> list[Any]:
    items = _at(*((0, z, 2.5 * z) for z in range(5)))
    items[2].ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
    return items


def _tiny_pixels() -> list[Any]:
    items = _at(*((0, z, 2.5 * z) for z in range(5)))
    for item in items:
        item.PixelSpacing = ["1e-307", "1e-307"]
    return items


@pytest.mark.parametrize(("code", "items"), [
    ("GEOM_MISSING_SLICE", _at(*((0, 0, z) for z in (0, 2, 4, 8, 10, 12)))),
    ("GEOM_MISSING_SLICE", _at(*((0, z / 4, z) for z in (0, 2, 4, 8, 10, 12)))),  # tilted as well
    ("GEOM_DUPLICATE_POSITION", _at(*((z, 0, z) for z in (0, 2, 2, 4, 6)))),
    ("GEOM_GANTRY_TILT", _at((0, 0, 0), (0, 0, 2), (3, 0, 4), (0, 0, 6), (0, 0, 8))),  # one slice aside
    ("GEOM_GANTRY_TILT", _at(*((30 * z, 0, 2 * z) for z in range(5)))),  # images side by side
    ("GEOM_MIXED_ORIENTATION", _turned()),
    ("GEOM_VARIABLE_SPACING", _at(*((0, 0, z) for z in (0, 2, 4, 6, 27.3, 29.3)))),  # too wide to make up
    ("GEOM_VARIABLE_SPACING", _at(*((0, 0, z) for z in (0, 2, 4, 6, 999998.7)))),
    ("GEOM_NO_POSITION", _at((0, 0, 0), (0, 0, 2), (0, 0, 1e12))),
    ("LIMIT", _tiny_pixels()),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_no_resampling_puts_right_stays_refused(tmp_path: Path, code: str, items: list[Any]) -> None:
    assert refusal(save(items, tmp_path), RESAMPLE) == code


@pytest.mark.parametrize(("steps", "code"), [
    ([2.5] * 8 + [5] * 3, "GEOM_VARIABLE_SPACING"),  # how a head was scanned
    ([5] * 3 + [2.5] * 8, "GEOM_VARIABLE_SPACING"),
    ([2.5] * 6 + [5] * 3 + [2.5] * 6, "GEOM_MISSING_SLICE"),
    ([2.5] * 8 + [5, 7.5, 5], "GEOM_MISSING_SLICE"),
    ([2.5] * 8 + [5] * 2, "GEOM_MISSING_SLICE"),
])
def test_wider_steps_at_an_end_are_no_lost_slices(tmp_path: Path, steps: list[float], code: str) -> None:
    items = _at(*((0, 0, z) for z in np.concatenate([[0], np.cumsum(steps)])))
    assert refusal(save(items, tmp_path)) == code


def test_the_size_of_both_copies_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scan(tmp_path, "both", ball)
    volume = resampled(folder)
    needed = 2 * (ROWS * COLUMNS * (len(UNEVEN) + 2) + volume.array.size)
    assert read_series(folder, Rules(needed, "resample"))
    monkeypatch.setattr(dicom, "load_frames", lambda *_: pytest.fail("decoded"))
    assert refusal(folder, Rules(needed - 1, "resample")) == "LIMIT"


# --- what is made of it ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("way", ["tilted", "uneven"])
def test_a_derived_series_lies_straight_and_says_what_was_done(tmp_path: Path, way: str) -> None:
    source = scan(tmp_path / "scan", way, ball)
    volume = resampled(source)
    write_derived(volume, tmp_path / "out", source=source, derivation="Made finer", model_hash="0", seed=1)
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)
    given = {float(f.ImagePositionPatient[2]): f.SOPInstanceUID for f in map(pydicom.dcmread, source.iterdir())}
    for data in map(pydicom.dcmread, (tmp_path / "out").iterdir()):
        assert "slices" in data.DerivationDescription and data.DerivationDescription.endswith("; Made finer")
        z = float(data.ImagePositionPatient[2])
        near = sorted(given, key=lambda place: abs(place - z))
        expected = near[:1] if abs(near[0] - z) < 1e-6 else near[:2]
        assert {item.ReferencedSOPInstanceUID for item in data.SourceImageSequence} == {given[p] for p in expected}


def test_a_real_tilted_head_is_resampled_when_asked_for() -> None:
    if not REAL.exists():
        pytest.skip(f"{REAL} is not there")
    assert refusal(REAL) == "GEOM_GANTRY_TILT"
    volume, other = read_series(REAL, RESAMPLE)
    assert "GEOM_RESAMPLED" in codes([volume]) and "GEOM_RESAMPLED" not in codes([other])
    # 16.5 degrees of tilt move each slice by 7.1 mm, 17.478 rows; nothing of a slice is lost.
    assert volume.shape == (512, 512 + 70, 5) and volume.spacing_mm[2] == pytest.approx(23.9705, abs=1e-4)
    for number, name in enumerate(("I160", "I260", "I360", "I460", "I560")):
        data = pydicom.dcmread(REAL / name)
        place = np.array([*data.ImagePositionPatient, 1.0]) * [-1, -1, 1, 1]
        column, row, plane = (np.linalg.inv(volume.affine) @ place)[:3]
        np.testing.assert_allclose([column, row, plane], [0, 17.478 * number, number], atol=2e-3)
        stored = data.pixel_array.astype(float) - 1024
        part = np.ceil(row - 1e-6) - row
        expected = (1 - part) * stored[:-1] + part * stored[1:]
        first = int(np.ceil(row - 1e-6))
        np.testing.assert_allclose(volume.array[0, :, first:first + 511, number].T, expected, atol=0.51)
        assert volume.array[0, :, :first, number].max(initial=-1024) == -1024
