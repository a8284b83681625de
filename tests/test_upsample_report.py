"""What `medgan.upsample` reports, the ends of sharpness, labels, and options that mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from upsample_makers import AFFINE, head, small

import medgan
from medgan.config import Config
from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.acquisition import simulate
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.refine import refine
from medgan.imaging.restoration import acquisitions
from medgan.imaging.volume import Volume
from medgan.learning.sharpening import Sharpener
from medgan.verbs.upsample import upsample_file


def test_sharpness_mixes_the_two_shipped_ends() -> None:
    thick = simulate(head(), spacing_mm=3.6)
    results = {s: medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", sharpness=s, report=True, maps=False)
               for s in (0.0, 0.5, 1.0)}
    hashes = {report.model for _, report in results.values()}
    assert len(hashes) == 3
    low = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian")
    np.testing.assert_array_equal(results[0.0][0].array, low.array)

    def steepness(image: Volume) -> float:
        return float(np.square(np.diff(image.array[0], axis=2)).mean())

    assert steepness(results[0.0][0]) < steepness(results[1.0][0])
    first, last = (Sharpener.open(None, "cpu", s).generator.state_dict() for s in (0.0, 1.0))
    middle = Sharpener.open(None, "cpu", 0.5).generator.state_dict()
    torch.testing.assert_close(middle["stem.weight"], (first["stem.weight"] + last["stem.weight"]) / 2)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(Refused, match="CFG_VALUE"):
            medgan.upsample(thick, sharpness=wrong)


def test_the_report_tells_where_the_profile_comes_from() -> None:
    thick = simulate(head(), spacing_mm=4.8)
    _, told = medgan.upsample(thick, profile="rect", thickness=4.0, report=True, method="linear")
    assert (told.profile, told.profile_from, told.confidence) == ("rect", "told", None)
    assert told.thickness_mm[2] == pytest.approx(4.0)
    _, found = medgan.upsample(thick, report=True, method="linear")
    assert found.profile_from == "estimated" and 0 < found.confidence <= 1
    assert found.thickness_mm[2] == pytest.approx(4.8, rel=0.35)
    _, header = medgan.upsample(replace(thick, slice_thickness_mm=4.0), report=True, method="linear")
    assert header.profile_from == "header" and header.thickness_mm[2] == pytest.approx(4.0)
    _, even = medgan.upsample(head(), report=True, method="linear")
    assert even.profile_from == "assumed" and even.thickness_mm == pytest.approx((1.2, 1.2, 1.2))


def test_maps_and_result_do_not_depend_on_the_report() -> None:
    thick = simulate(head(), spacing_mm=3.6)
    plain = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian")
    image, report = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", report=True)
    np.testing.assert_allclose(image.array, plain.array, rtol=0, atol=1e-4 * np.ptp(plain.array))
    linear = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", method="linear")
    assert report.deviation.shape == report.spread.shape == image.array.shape
    assert report.spread.min() >= 0 and report.spread.max() > 0
    # The network's own linear start is not smoothed by the noise as the linear method's is.
    assert np.corrcoef(report.deviation.ravel(), (image.array - linear.array).ravel())[0, 1] > 0.95
    numbers = report.scalars()
    assert numbers["deviation"]["rms"] == pytest.approx(float(np.sqrt(np.square(report.deviation).mean())), rel=1e-3)
    assert numbers["spread"]["p99"] > numbers["spread"]["rms"] > 0
    _, few = medgan.upsample(thick, factor=(1, 1, 3), report=True, maps=False)
    assert few.deviation is None and few.spread is None and few.scalars()["spread"] is None


def test_consistency_is_about_the_noise() -> None:
    clean = simulate(head(), spacing_mm=3.6)
    span = float(np.percentile(clean.array, 99.9) - np.percentile(clean.array, 0.1))
    noisy = replace(clean, array=clean.array + np.random.default_rng(0).normal(0, 0.02 * span, clean.array.shape)
                    .astype(np.float32))
    found = [medgan.upsample(image, factor=(1, 1, 3), profile="gaussian", report=True, maps=False)[1]
             for image in (clean, noisy)]
    assert found[0].consistency < 0.01  # the phantom has some noise of its own
    assert 0.01 < found[1].consistency < 0.03
    assert found[1].noise[0] == pytest.approx(0.02, rel=0.3) and found[0].noise[0] < 0.012


@pytest.mark.parametrize("kind", ["volume", "nibabel", "numpy"])
def test_labels_come_along(kind: str) -> None:
    image, mask = phantom("mr", 77, shape=(60, 72, 48), spacing_mm=(1.2, 1.2, 1.2))
    thick = simulate(replace(image, array=image.array.astype(np.float32)), spacing_mm=3.6)
    coarse = Volume(mask.array[..., 1::3], thick.affine)
    labels: Any = {"volume": coarse, "numpy": coarse.array[0],
                   "nibabel": nibabel.Nifti1Image(coarse.array[0].astype(np.int16), coarse.affine)}[kind]
    sharp, fine = medgan.upsample(thick, factor=(1, 1, 3), method="linear", labels=labels)
    array = fine.array if kind == "volume" else np.asarray(fine.dataobj if kind == "nibabel" else fine)
    assert array.shape[-3:] == sharp.shape and set(np.unique(array)) <= set(np.unique(coarse.array))
    overlap = 2 * np.sum((array.squeeze() > 0) & (mask.array[0] > 0)) / (np.sum(array > 0) + np.sum(mask.array > 0))
    assert overlap > 0.6
    with pytest.raises(Refused, match="LABEL_GRID"):
        medgan.upsample(thick, factor=(1, 1, 3), method="linear", labels=replace(coarse, array=coarse.array[:, 1:]))


def test_a_factor_of_one_changes_no_bit_and_a_small_one_is_linear() -> None:
    array = np.random.default_rng(0).integers(-(2**31), 2**31, (1, 9, 8, 7), dtype=np.int64).astype(np.int32)
    image = Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    np.testing.assert_array_equal(medgan.upsample(image, factor=1, method="linear").array, array)
    thick = small(np.float32)
    with pytest.warns(UserWarning, match="adds nothing below"):
        near = medgan.upsample(thick, factor=(1, 1, 1.1))
    np.testing.assert_array_equal(near.array, medgan.upsample(thick, factor=(1, 1, 1.1), method="linear").array)
    # 3.6 mm to 3.0 mm is a factor of 1.2 whatever a header's single precision makes of it.
    rounded = replace(thick, affine=np.diag([3.0, 3.0, float(np.float32(3.6)), 1.0]))
    _, report = medgan.upsample(rounded, spacing=float(np.float32(3.0)), profile="gaussian", report=True)
    assert report.method == "network" and np.abs(report.deviation).max() > 0


def test_the_maps_and_the_consistency_are_those_of_what_is_returned() -> None:
    """Where air is a floor, what is cut off there is not booked as drawn by the network."""
    truth = head()
    truth = replace(truth, array=np.where(truth.array < 100, 0, truth.array).astype(np.float32))
    thick = simulate(truth, spacing_mm=3.6)
    image, report = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", report=True)
    scans = acquisitions(thick, (1, 1, 3), "gaussian", None)
    maps = intensity_maps(thick.array, Config.resolve("mr", "upscale").intensity)
    linear = refine(thick, scans, maps, noises=[2 * report.noise[0]], sharpen=lambda *_, **__: None).array
    np.testing.assert_allclose(report.deviation, image.array - linear, atol=0.02)
    again = simulate(image, spacing_mm=3.6).array
    span = maps[0].raw[1] - maps[0].raw[0]
    assert report.consistency == pytest.approx(float(np.sqrt(np.square(again - thick.array).mean())) / span, rel=0.01)


def test_a_header_wider_than_is_known_is_taken_as_wide_as_is() -> None:
    thick = replace(simulate(head(), spacing_mm=3.6), slice_thickness_mm=7.2)
    _, report = medgan.upsample(thick, factor=(1, 1, 3), report=True, maps=False)
    assert report.method == "network" and report.profile_from == "header"
    assert report.thickness_mm[2] == pytest.approx(5.4) and "7.2 mm" in report.warnings[0]
    _, told = medgan.upsample(thick, factor=(1, 1, 3), profile="rect", report=True, method="linear")
    assert told.thickness_mm[2] == pytest.approx(7.2)


@pytest.mark.parametrize(("code", "options"), [
    ("CFG_VALUE", {"thickness": 100.0}), ("CFG_VALUE", {"thickness": 0.01}), ("CFG_VALUE", {"thickness": "5"}),
    ("CFG_VALUE", {"sharpness": "x"}), ("CFG_VALUE", {"factor": "a"}), ("CFG_VALUE", {"device": "foo"}),
    ("CFG_VALUE", {"device": "foo", "method": "linear"}),
])
def test_options_without_a_meaning_are_refused(code: str, options: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        medgan.upsample(small(), **options)
    assert refused.value.code == code


def test_values_and_grids_that_cannot_be_computed_with_are_refused() -> None:
    huge = replace(small(np.float64), array=np.full((1, 8, 8, 8), 1e300))
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    for image, code in ((huge, "PIX_PRECISION_LOSS"), (Volume(np.ones((1, 8, 8, 8)), sheared), "GEOM_SHEAR")):
        with pytest.raises(Refused) as refused:
            medgan.upsample(image, factor=2, method="linear")
        assert refused.value.code == code


def test_labels_stored_the_other_way_round_are_turned() -> None:
    thick = small(np.float32)
    mask = Volume((np.indices((12, 14, 6)).sum(axis=0) > 20).astype(np.uint8)[None], AFFINE)
    flipped = Volume(mask.array[:, ::-1].copy(), AFFINE @ np.array(
        [[-1, 0, 0, 11], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    results = [medgan.upsample(thick, factor=(1, 1, 3), method="linear", labels=each)[1] for each in (mask, flipped)]
    np.testing.assert_array_equal(results[0].array, results[1].array)


def test_image_and_labels_are_written_both_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    medgan.write(small(), tmp_path / "in.nii.gz")
    medgan.write(Volume((small().array > 0).astype(np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    out, mask = tmp_path / "out.nii.gz", tmp_path / "out-mask.nii.gz"
    options: dict[str, Any] = {"labels": tmp_path / "mask.nii.gz", "factor": (1, 1, 2), "method": "linear"}
    with pytest.raises(Refused, match="CFG_VALUE"):
        upsample_file(tmp_path / "in.nii.gz", out, labels_target=out, **options)
    with pytest.raises(Refused, match="FILE_MISSING"):
        upsample_file(tmp_path / "in.nii.gz", out, labels_target=tmp_path / "no" / "mask.nii.gz", **options)
    write = medgan.write

    def failing(volume: Volume, path: Path, **options: Any) -> None:
        if path == mask:
            raise OSError("no space left")
        write(volume, path, **options)

    monkeypatch.setattr("medgan.imaging.files.write", failing)
    with pytest.raises(OSError, match="no space"):
        upsample_file(tmp_path / "in.nii.gz", out, labels_target=mask, **options)
    assert not out.exists() and not mask.exists()
    monkeypatch.undo()
    upsample_file(tmp_path / "in.nii.gz", out, labels_target=mask, **options)
    assert medgan.read(out).shape == medgan.read(mask).shape == (12, 14, 12)
