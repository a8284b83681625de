"""The rim probe finds bad borders and nothing else; variety and the sheet of makers compare like with like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.lesions.scans import Scan, open_scan
from medgan.lesions.shapes import find_lesions
from medgan.metrics.judges import logistic
from medgan.metrics.rims import (
    BEYOND,
    CALIPER,
    INNER,
    OUTER,
    Rim,
    matched,
    rim_probe,
    rims,
    unroll,
)
from medgan.metrics.variety import Patch, Variety, mean_variety, patches, variety
from medgan.reports.makers import PIXELS, Shown, makers_sheet, shown

EDGE = 40
PATIENTS = 4


def _lesion(rng: np.random.Generator, *, hard: bool) -> tuple[np.ndarray, np.ndarray]:
    """Textured tissue with a lumpy lesion: blended as real ones are, or cut out of another lesion and stuck on."""
    def texture() -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal((EDGE, EDGE, 3)), (1, 1, 0.5))
        return np.asarray(0.1 * noise / noise.std())

    x, y = np.meshgrid(*[np.arange(EDGE) - EDGE / 2] * 2, indexing="ij")
    lumps = ndimage.gaussian_filter(rng.standard_normal((EDGE, EDGE)), 4)
    inside = np.hypot(x, y) + 1.5 * lumps / lumps.std() < rng.uniform(7, 10)
    mask = np.repeat(inside[:, :, None], 3, axis=2)
    soft = mask.astype(float) if hard else ndimage.gaussian_filter(mask.astype(float), (1.2, 1.2, 0))
    image = texture() + soft * (0.5 + texture() - 0.5 * texture())
    return image[None].astype(np.float32), mask


def _rims(count: int, seed: int, kind: str, *, hard: bool = False) -> list[Rim]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        image, mask = _lesion(rng, hard=hard)
        found += unroll(image, mask, f"{kind}/{number}", f"patient{number % PATIENTS}")
    return found


def test_hard_edges_are_found() -> None:
    report = rim_probe(_rims(16, 1, "real"), _rims(16, 2, "made", hard=True))
    assert report.strongest is not None and report.strongest.auroc > 0.9
    assert report.verdict == "betrayed" and "betrayed" in str(report) and report.patients == PATIENTS


def test_rims_from_one_source_are_at_chance() -> None:
    report = rim_probe(_rims(24, 3, "real"), _rims(24, 4, "made"))
    assert report.sections >= 60 and report.statistics is not None and report.network is not None
    for probe in (report.statistics, report.network):
        assert probe.low < 0.5 < probe.high or abs(probe.auroc - 0.5) < 0.1
        assert probe.low <= probe.auroc <= probe.high
    assert report.strongest is not None and report.strongest.auroc < 0.7
    assert report.verdict != "betrayed"


def test_too_few_lesions_get_no_verdict() -> None:
    for real, made in ((_rims(2, 1, "real"), _rims(16, 2, "made")), ([], _rims(4, 2, "made")), ([], [])):
        report = rim_probe(real, made)
        assert report.verdict == "too few" and report.strongest is None and "too few" in str(report)


def test_one_patient_is_said() -> None:
    lone = [[replace(rim, patient="only") for rim in found] for found in (_rims(9, 1, "real"), _rims(9, 2, "made"))]
    report = rim_probe(*lone)
    assert "one patient" in report.note and report.patients == 1


def test_only_a_band_along_the_border_is_seen() -> None:
    x, y = np.meshgrid(*[np.arange(60) - 30.0] * 2, indexing="ij")
    radius = np.hypot(x, y)
    mask = np.repeat((radius < 14)[:, :, None], 2, axis=2)
    image = np.repeat(radius[None, :, :, None], 2, axis=3).astype(np.float32)
    [one, _] = unroll(image, mask, "a", "p")
    profile = one.strip[0].mean(axis=0)
    assert one.strip.shape[2] == INNER + OUTER + 1 and one.area == int((radius < 14).sum())
    # Values are the nearest voxels', so single steps may be off by half a voxel, but not the whole.
    assert np.allclose(np.diff(profile), 1, atol=0.5) and profile[-1] - profile[0] == pytest.approx(6, abs=0.6)
    assert np.allclose(one.across, 0)
    far = (radius < 14 - INNER - 2) | (radius > 14 + OUTER + BEYOND + 2)
    disturbed = np.where(far[None, :, :, None], np.float32(99), image)
    assert np.array_equal(unroll(disturbed, mask, "a", "p")[0].strip, one.strip)
    brighter = unroll(image + 5, mask, "a", "p")[0]
    assert np.allclose(brighter.strip, one.strip, atol=1e-4), "the tissue's level must not be seen"


def test_pairs_are_of_one_area_and_evenness_and_used_once() -> None:
    real, made = _rims(10, 1, "real"), _rims(20, 2, "made")
    huge = replace(made[0], area=10_000)
    one, other = matched(real, [huge, *made])
    assert len(one) == len(set(one)) == len(other) == len(set(other)) >= 20 and 0 not in other
    everyone = [huge, *made]
    for a, b in zip(one, other, strict=True):
        assert 1 / CALIPER <= real[a].area / everyone[b].area <= CALIPER
        assert real[a].unevenness / everyone[b].unevenness < CALIPER * 1.1
    assert matched(real, []) == ([], [])


def test_the_regression_finds_the_direction_that_matters() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 6))
    truth = rng.random(400) < 1 / (1 + np.exp(-3 * features[:, 2]))
    score = logistic(features[:300], truth[:300], 1.0)(features[300:])
    assert np.corrcoef(score, features[300:, 2])[0, 1] > 0.95
    shrunk = logistic(features[:300], truth[:300], 1e4)(features[300:])
    assert shrunk.std() < 0.2 * score.std()


@pytest.fixture(scope="module")
def scans(mr_set: Path, tiny: dict[str, object]) -> list[Scan]:
    dataset = open_dataset(mr_set)
    return [open_scan(dataset, case, Config.resolve("mr", settings=tiny)) for case in dataset.cases]


def test_a_scans_rims_are_those_of_its_lesions(scans: list[Scan]) -> None:
    scan = max(scans, key=lambda scan: len(find_lesions(scan)))
    lesions = find_lesions(scan)
    assert len(lesions) >= 2
    every = rims(scan)
    assert len({rim.lesion for rim in every}) <= len(lesions) and {rim.patient for rim in every} == {scan.case.patient}
    made = rims(scan, kind="made")
    assert made[0].lesion == f"made/{scan.case.id}/0" and np.array_equal(made[0].strip, every[0].strip)


def _patch(values: np.ndarray, size_mm: float = 10.0) -> Patch:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    return Patch(values[None].astype(np.float32), mask, size_mm)


def test_variety_is_nought_for_copies_and_tells_brightness_from_pattern() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((32, 32))
    assert variety([_patch(base)] * 3) == Variety(0.0, 0.0, 3)
    brighter = variety([_patch(base), _patch(base + 0.4)])
    assert brighter.raw == pytest.approx(0.4, abs=1e-6) and brighter.matched == pytest.approx(0, abs=1e-6)
    other = variety([_patch(base), _patch(rng.standard_normal((32, 32)))])
    half = variety([_patch(base / 2), _patch(base / 2 + (other.raw / 2))])
    assert half.over(other)[0] == pytest.approx(0.5, rel=1e-5) and half.over(other)[1] == pytest.approx(0, abs=1e-5)
    assert variety([_patch(base), _patch(base + 1, 20.0)]).pairs == 0, "sizes differ too much"
    assert np.isnan(variety([]).over(other)[0])
    assert mean_variety([brighter, variety([]), other]).raw == pytest.approx((brighter.raw + other.raw) / 2)


def test_real_lesions_are_laid_over_each_other_at_one_scale(scans: list[Scan]) -> None:
    cut = patches([lesion for scan in scans for lesion in find_lesions(scan)])
    assert all(patch.mask[16, 16] or patch.mask.any() for patch in cut)
    widest = [max(np.ptp(np.argwhere(patch.mask), axis=0)) + 1 for patch in cut if patch.size_mm > 6]
    assert widest and np.abs(np.array(widest) - 0.62 * 32).max() <= 4


def _shown(extent_mm: float, spacing: float = 1.0, level: float = 0.5) -> Shown:
    x, y = np.meshgrid(*[(np.arange(96) - 48) * spacing] * 2, indexing="ij")
    labels = (np.hypot(x, y) < extent_mm / 2).astype(np.uint8)
    image = np.where(labels > 0, level, 0.0)[None].astype(np.float32)
    return Shown(image, labels, np.array([spacing, spacing]), np.array([48.0, 48.0]), extent_mm)


def test_the_sheet_has_one_scale_and_one_window() -> None:
    alike = makers_sheet({"real": [_shown(20)], "paste": [_shown(20)], "gan": []})
    coarse = makers_sheet({"real": [_shown(20)], "paste": [_shown(20, spacing=0.8)]})
    bands = len(alike) // 4
    pictures = [alike[n * bands : (n + 1) * bands, :PIXELS] for n in range(4)]
    assert len(alike) % 4 == 0 and np.array_equal(pictures[0][-PIXELS:], pictures[2][-PIXELS:])
    bright = [int((sheet[2 * bands + 20 : 3 * bands, :PIXELS, 0] > 200).sum()) for sheet in (alike, coarse)]
    assert bright[0] == pytest.approx(bright[1], rel=0.1), "millimetres a pixel must not follow the spacing"
    dim = makers_sheet({"real": [_shown(20)], "paste": [_shown(20, level=0.25)]})
    assert (dim[bands + 20 : 2 * bands, :PIXELS, 0] > 200).any()
    assert not (dim[2 * bands + 20 : 3 * bands, :PIXELS, 0] > 200).any(), "each row had a window of its own"
    with pytest.raises(ValueError, match="no lesion"):
        makers_sheet({"real": []})


def test_columns_hold_lesions_of_about_one_size(scans: list[Scan]) -> None:
    views = [_shown(extent, level=0.2 + extent / 50) for extent in (30.0, 12.0, 24.0, 16.0, 20.0)]
    sheet = makers_sheet({"real": views, "paste": list(reversed(views))}, most=4)
    assert sheet.shape[1] >= 4 * PIXELS
    band = len(sheet) // 4
    # The same lesions in another order come into the same columns; the captions above them differ.
    assert np.array_equal(sheet[20:band], sheet[2 * band + 20 : 3 * band])
    found = [view for scan in scans for view in shown(scan)]
    assert len(found) == sum(len(find_lesions(scan)) for scan in scans)
    for view in found:
        away = (np.argwhere(view.labels > 0) - view.centre) * view.spacing_mm
        assert np.linalg.norm(away, axis=1).min() <= view.extent_mm / 2, "a picture would show no lesion in its middle"
