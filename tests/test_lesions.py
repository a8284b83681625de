"""Lesions: found, deformed, placed in tissue, drawn by each maker, and nothing else touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.lesions.compose import Made, compose
from medgan.lesions.crops import Grid, encode, working_spacing
from medgan.lesions.gates import judge
from medgan.lesions.library import Library, build_library, main_label
from medgan.lesions.makers import Maker, Paste, Procedural, levelled, surroundings
from medgan.lesions.placement import Ground
from medgan.lesions.scans import Scan, open_scan
from medgan.lesions.shapes import deform, equivalent_diameter, find_lesions, signed_distance, soft_mask


@pytest.fixture(scope="module")
def config(tiny: dict[str, object]) -> Config:
    return Config.resolve("mr", settings=tiny)


@pytest.fixture(scope="module")
def scans(mr_set: Path, config: Config) -> list[Scan]:
    dataset = open_dataset(mr_set)
    return [open_scan(dataset, case, config) for case in dataset.cases]


@pytest.fixture(scope="module")
def library(mr_set: Path, config: Config) -> Library:
    return build_library(open_dataset(mr_set), config)


def _ground(scan: Scan, library: Library) -> Ground:
    return Ground(scan, library, finest_mm=float(scan.spacing_mm[:2].min()), crop=32)


def test_a_scan_is_in_ras_with_invertible_values(scans: list[Scan]) -> None:
    for scan in scans:
        assert scan.volume.orientation == "RAS" and scan.image.dtype == np.float32
        assert scan.image.min() >= -1 and scan.image.max() <= 1
        inside = (scan.image > -1) & (scan.image < 1)
        back = np.stack([m.inverse(c, np.int16) for m, c in zip(scan.maps, scan.image, strict=True)])
        assert (np.abs(back.astype(int) - scan.volume.array)[inside] <= 1).all()


def test_tissue_is_one_body_without_air(scans: list[Scan]) -> None:
    for scan in scans:
        tissue = scan.tissue()
        assert ndimage.label(tissue)[1] >= 1 and 0.05 < tissue.mean() < 0.9
        # Lesions lie in tissue, so a mask that left them out would be wrong.
        assert tissue[scan.labels > 0].mean() > 0.95


def test_found_lesions_are_the_components_of_the_mask(scans: list[Scan]) -> None:
    for scan in scans:
        parts, _ = ndimage.label(scan.labels > 0, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        lesions = find_lesions(scan)
        assert sorted(int((x.labels > 0).sum()) for x in lesions) == sorted(int(s) for s in sizes if s >= 8)
        for lesion in lesions:
            box = tuple(slice(c, c + n) for c, n in zip(lesion.corner, lesion.labels.shape, strict=True))
            own = lesion.labels > 0
            assert np.array_equal(scan.labels[box][own], lesion.labels[own])
            assert np.array_equal(scan.image[(slice(None), *box)], lesion.image)


def test_deforming_keeps_labels_size_and_follows_the_seed(library: Library) -> None:
    lesion = max(library.lesions, key=lambda x: int((x.labels > 0).sum()))
    spacing = np.array([1.0, 1.0, 1.0])
    sizes = []
    for seed in range(6):
        shape = deform(lesion, spacing, np.random.default_rng(seed))
        assert set(np.unique(shape.labels)) <= lesion.present() | {0}
        sizes.append(equivalent_diameter(int((shape.labels > 0).sum()), spacing, False))
    assert np.mean(sizes) == pytest.approx(lesion.size_mm, rel=0.25)
    again = deform(lesion, spacing, np.random.default_rng(0))
    assert np.array_equal(again.labels, deform(lesion, spacing, np.random.default_rng(0)).labels)
    doubled = deform(lesion, spacing, np.random.default_rng(0), scale=2.0)
    ratio = (doubled.labels > 0).sum() / (again.labels > 0).sum()
    assert 5 < ratio < 12


def test_soft_masks_are_one_inside_and_exactly_zero_beyond_the_rim() -> None:
    labels = np.zeros((21, 21), np.uint8)
    labels[8:13, 8:13] = 2
    soft = soft_mask(labels, np.ones(2), 3.0)
    distance = ndimage.distance_transform_edt(labels == 0)
    assert (soft[labels > 0] == 1).all() and (soft[distance >= 3] == 0).all()
    assert ((soft > 0) & (soft < 1)).any()
    assert not soft_mask(labels * 0, np.ones(2), 3.0).any()
    signed = signed_distance(labels, 4.0)
    assert (signed[labels > 0] > 0).all() and (signed[labels == 0] < 0).all()


def test_the_working_grid_and_back_is_the_identity_on_a_smooth_change() -> None:
    x, y, z = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in (40, 44, 12)], indexing="ij")
    field = (0.5 * x - 0.25 * y + 0.1 * z).astype(np.float32)
    grid = Grid(np.array([20.0, 22.0, 6.0]), np.array([1.5, 1.5, 1.0]), (16, 16, 6))
    cut = grid.cut(field, order=1)
    box = (slice(12, 28), slice(14, 30), slice(4, 8))
    assert np.allclose(grid.back(cut, box), field[box], atol=1e-3)


def test_encoding_says_size_labels_and_presence() -> None:
    labels = np.zeros((32, 32), np.uint8)
    labels[4:14, 4:14] = 1
    labels[4:14, 4:9] = 2
    told = encode(labels, 3, 1.5)
    diameter = 2 * np.sqrt(100 * 1.5**2 / np.pi)
    assert told.condition == pytest.approx([np.log(diameter / 10), 0.5, 0.5, 0, 1], abs=1e-5)
    assert told.labels.sum() == 100
    assert not encode(labels * 0, 3, 1.5).condition.any()
    assert working_spacing(10, 1.0, 64) == 1.0 and working_spacing(100, 1.0, 64) > 2.4


@pytest.mark.parametrize("kind", ["paste", "procedural"])
def test_made_cases_change_only_the_dilated_mask_and_keep_the_type(
        scans: list[Scan], library: Library, config: Config, mr_set: Path, kind: str) -> None:
    maker: Maker = Paste() if kind == "paste" else Procedural(library)
    dataset = open_dataset(mr_set)
    made_any = 0
    for scan in scans:
        made = compose(_ground(scan, library), maker, config.augment, 3)
        if made is None:
            continue
        made_any += 1
        parent, mask = dataset.load(scan.case)
        assert mask is not None
        _holds(made, parent.array, mask.array, scan)
    assert made_any >= 2


def _holds(made: Made, parent: np.ndarray, mask: np.ndarray, scan: Scan) -> None:
    assert made.image.array.dtype == parent.dtype and made.image.orientation == scan.orientation
    assert np.array_equal(made.image.array[:, ~made.changed], parent[:, ~made.changed])
    assert not np.array_equal(made.image.array, parent)
    new = (made.mask.array != mask.astype(made.mask.array.dtype))[0]
    assert new.any() and not (new & (mask[0] > 0)).any(), "an old lesion was written over"
    assert (made.changed[new]).all(), "a new label lies where nothing changed"
    tissue = scan.tissue()
    assert tissue.shape == new.shape
    assert not (new & ~_as_file(tissue, scan)).any(), "a lesion outside tissue"
    assert sum(lesion.voxels for lesion in made.lesions) == int(new.sum())


def _as_file(mask: np.ndarray, scan: Scan) -> np.ndarray:
    from medgan.imaging.geometry import reorient

    back = reorient(replace(scan.volume, array=mask[None].astype(np.uint8)), scan.orientation)
    return back.array[0] > 0


@pytest.mark.parametrize("edge", [1, 2, 3, 8])
def test_a_procedural_lesion_has_the_contrast_of_real_ones_however_small_it_is(
        scans: list[Scan], library: Library, config: Config, edge: int) -> None:
    index, known = next(iter(library.statistics.items()))
    contrast = np.full_like(known.contrast, -0.2)
    known = replace(known, contrast=contrast, contrast_deviation=0 * contrast, texture=0 * contrast)
    labels = np.zeros((20, 20, 12), np.uint8)
    labels[6 : 6 + edge, 6 : 6 + edge, 2 : 2 + edge] = index
    site = _ground(scans[0], library).site(library.lesions[0], np.random.default_rng(0))
    assert site is not None
    box = tuple(slice(s.start, s.start + n) for s, n in zip(site.box, labels.shape, strict=True))
    values = scans[0].image[:, *box]
    assert values.shape[1:] == labels.shape
    site = replace(site, box=box, labels=labels, weight=(labels > 0).astype(np.float32), values=values)
    drawn = Procedural(replace(library, statistics={index: known})).draw(scans[0], site, 1)
    np.testing.assert_allclose(drawn[:, labels > 0].mean(axis=1) - surroundings(scans[0], site), contrast, rtol=1e-3)


def test_a_faint_drawing_gets_the_contrast_of_its_donor(scans: list[Scan], library: Library) -> None:
    rng = np.random.default_rng(0)
    site = _ground(scans[0], library).site(library.lesions[0], rng)
    assert site is not None
    lesion, base = site.labels > 0, surroundings(scans[0], site)
    faint = base[:, None, None, None] + 0.01 * rng.standard_normal(site.values.shape).astype(np.float32)
    drawn = levelled(faint.astype(np.float32), scans[0], site)
    for index in np.unique(site.labels[lesion]):
        inside = site.labels == index
        np.testing.assert_allclose(drawn[:, inside].mean(axis=1) - base,
                                   site.values[:, inside].mean(axis=1) - site.donor.surroundings, atol=1e-4)
    striking = base[:, None, None, None] + 4 * (site.values - site.donor.surroundings[:, None, None, None])
    np.testing.assert_array_equal(levelled(striking.astype(np.float32), scans[0], site), striking.astype(np.float32))


def test_another_organ_nearby_does_not_move_what_a_lesion_is_compared_with(scans: list[Scan], library: Library) -> None:
    site = _ground(scans[0], library).site(library.lesions[0], np.random.default_rng(0))
    assert site is not None
    image = np.full_like(scans[0].image, 0.25)
    rim = np.argwhere((site.weight > 0) & (site.labels == 0)) + [s.start for s in site.box]
    other = rim[np.argsort(rim[:, 0], kind="stable")[: 2 * len(rim) // 5]]  # One side, two fifths of the rim, is air.
    image[:, *other.T] = -1
    np.testing.assert_allclose(surroundings(replace(scans[0], image=image), site), 0.25)


def test_the_same_seed_gives_the_same_case_and_another_seed_another(scans: list[Scan], library: Library,
                                                                    config: Config) -> None:
    made = [compose(_ground(scans[0], library), Procedural(library), config.augment, seed) for seed in (1, 1, 2)]
    assert all(m is not None for m in made)
    arrays = [m.image.array for m in made if m is not None]
    assert np.array_equal(arrays[0], arrays[1]) and not np.array_equal(arrays[0], arrays[2])


def test_label_and_size_are_honoured(scans: list[Scan], library: Library, config: Config) -> None:
    index = max(library.statistics)
    name = library.labels[index][1]
    made = compose(_ground(scans[0], library), Paste(), config.augment, 4, count=1, label=name, size_mm=12.0)
    assert made is not None and len(made.lesions) == 1
    assert made.lesions[0].size_mm == pytest.approx(12.0, rel=0.3)
    new = made.mask.array[0][made.changed]
    assert library.labels[index][0] in new
    with pytest.raises(Refused) as refused:
        library.with_label("no such thing")
    assert refused.value.code == "LABEL_UNKNOWN" and name in str(refused.value)


def test_pasted_lesions_keep_the_donors_contrast(scans: list[Scan], library: Library) -> None:
    ground = _ground(scans[0], library)
    donor = max(library.lesions, key=lambda x: int((x.labels > 0).sum()))
    site = next(s for seed in range(9) if (s := ground.site(donor, np.random.default_rng(seed))) is not None)
    drawn = Paste().draw(scans[0], site, 0)
    inside = site.labels > 0
    contrast = drawn[0][inside].mean() - surroundings(scans[0], site)[0]
    own = donor.image[0][donor.labels > 0].mean() - donor.surroundings[0]
    assert contrast == pytest.approx(own, abs=0.12)


def test_gates_reject_what_no_real_lesion_looks_like_and_what_cannot_be_seen(
        scans: list[Scan], library: Library) -> None:
    ground = _ground(scans[0], library)
    site = next(s for seed in range(9) for donor in library.lesions
                if (s := ground.site(donor, np.random.default_rng(seed))) is not None)
    before = scans[0].image[(slice(None), *site.box)]
    fitting = np.where(site.labels > 0, library.statistics[main_label(site.donor)].mean[0], before).astype(np.float32)
    gates = Config.resolve("mr").augment
    assert judge(before, fitting, site, library, gates).passed
    assert not judge(before, before + 50 * (site.labels > 0), site, library, gates).passed
    assert not judge(before, before * np.float32("nan"), site, library, gates).passed
    unchanged = judge(before, before, site, library, gates)
    assert not unchanged.passed and unchanged.visibility < 0.25 and unchanged.contrast == 0


def test_an_occupied_place_is_not_given_twice(scans: list[Scan], library: Library) -> None:
    ground = _ground(scans[0], library)
    rng = np.random.default_rng(0)
    taken = scans[0].labels > 0
    for _ in range(6):
        site = ground.site(library.lesions[0], rng)
        if site is not None:
            assert not (taken[site.box] & (site.weight > 0)).any()
            taken[site.box] |= site.weight > 0
            ground.occupy(site)
