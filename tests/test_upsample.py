"""`medgan.upsample`: geometry, units, kinds of image, refusals, and that the shipped model is worth its weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.config import Config
from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.acquisition import simulate
from medgan.imaging.dicom_write import write_synthetic
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.refine import refine
from medgan.imaging.restoration import acquisitions
from medgan.imaging.slices import Profile
from medgan.imaging.volume import Volume
from medgan.learning import checkpoints
from medgan.learning.sharpening import Sharpener
from medgan.verbs.upsample import upsample_file

SHARED = Path(__file__).parents[2] / "shared" / "data"
T1 = SHARED / "brain-t1" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
#: Oblique: turned by 0.2 about x, with spacings of 0.9, 1 and 3 mm.
AFFINE = np.array([[-0.9, 0, 0, 40], [0, np.cos(0.2), -3 * np.sin(0.2), -30], [0, np.sin(0.2), 3 * np.cos(0.2), 7.5],
                   [0, 0, 0, 1]])


def small(dtype: Any = np.int16, channels: int = 1) -> Volume:
    array = np.random.default_rng(0).normal(0, 300, (channels, 12, 14, 6))
    return Volume(ndimage.gaussian_filter(array, (0, 2, 2, 1)).astype(dtype), AFFINE, modality="mr")


def psnr(image: NDArray[Any], truth: NDArray[Any]) -> float:
    mask = truth > 0.1 * np.percentile(truth, 99.9)
    return float(10 * np.log10(np.percentile(truth, 99.9) ** 2 / np.square(image - truth)[mask].mean()))


def cubic(thick: Volume) -> NDArray[np.float32]:
    shape = (*thick.shape[:2], 3 * thick.shape[2])
    return ndimage.affine_transform(thick.array[0], (1, 1, 1 / 3), (0, 0, -1 / 3), shape, order=3, mode="nearest")


def head() -> Volume:
    image, _ = phantom("mr", 77, shape=(60, 72, 48), spacing_mm=(1.2, 1.2, 1.2))
    return replace(image, array=image.array.astype(np.float32))


def real() -> Volume:
    if not T1.is_file():
        pytest.skip("the shared brain-t1 data are not here")
    volume = medgan.read(T1)
    return Volume(volume.array[:, 90:150, 80:200, 60:120].astype(np.float32), volume.affine, "mr")


@pytest.mark.parametrize("make", [head, real])
@pytest.mark.parametrize(("profile", "gain"), [("gaussian", 1.0), ("rect", 0.5)])
def test_the_shipped_model_beats_cubic_and_linear(make: Any, profile: Profile, gain: float) -> None:
    truth = make()
    thick = simulate(truth, spacing_mm=3 * truth.spacing_mm[2], profile=profile)
    sharp, report = medgan.upsample(thick, spacing=truth.spacing_mm, profile=profile, report=True)
    linear = medgan.upsample(thick, spacing=truth.spacing_mm, profile=profile, method="linear")
    assert report.method == "network" and report.model and report.warnings == ()
    assert psnr(sharp.array[0], truth.array[0]) > psnr(cubic(thick), truth.array[0]) + gain
    assert psnr(sharp.array[0], truth.array[0]) > psnr(linear.array[0], truth.array[0]) + 0.3
    np.testing.assert_allclose(sharp.affine, truth.affine, atol=1e-6)
    assert report.consistency < 0.02


def test_the_default_is_isotropic_at_the_finest_spacing_with_the_same_field_of_view() -> None:
    thick = small()
    fine, report = medgan.upsample(thick, report=True, method="linear")
    finest = min(thick.spacing_mm)
    np.testing.assert_allclose(fine.spacing_mm, finest, rtol=1e-9)
    np.testing.assert_allclose(report.factors, np.array(thick.spacing_mm) / finest, rtol=1e-6)
    outer = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(fine.affine @ outer, thick.affine @ outer, atol=1e-9)
    even = replace(thick, affine=np.diag([1.0, 1.1, 1.0, 1.0]))
    assert medgan.upsample(even, method="linear").shape == (24, 28, 12)
    very = replace(thick, affine=np.diag([0.4, 0.4, 5.0, 1.0]))
    with pytest.warns(UserWarning, match="8 times thinner"):
        assert medgan.upsample(very, method="linear").shape == (12, 14, 48)


@pytest.mark.parametrize("method", ["linear", "network"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_type_and_unit_are_kept(dtype: Any, method: Any) -> None:
    volume = small(dtype)
    volume = replace(volume, array=np.maximum(volume.array, 0) if dtype == np.uint8 else volume.array - 1000)
    fine = medgan.upsample(volume, factor=(1, 1, 3), method=method)
    assert fine.array.dtype == dtype
    assert float(fine.array.mean()) == pytest.approx(float(volume.array.mean()), abs=3)


def kinds() -> dict[str, Any]:
    volume = small()
    array = volume.array[0]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((1.0, 1.0, 3.0))
    return {
        "volume": volume, "numpy": array, "tensor": torch.from_numpy(array.copy()),
        "metatensor": MetaTensor(torch.from_numpy(volume.array.astype(np.float32)), affine=torch.tensor(AFFINE)),
        "nibabel": nibabel.Nifti1Image(array, AFFINE), "sitk": image,
    }


@pytest.mark.parametrize("kind", ["volume", "numpy", "tensor", "metatensor", "nibabel", "sitk"])
def test_the_same_kind_comes_back(kind: str) -> None:
    image = kinds()[kind]
    options = {"input_spacing": (1.0, 1.0, 3.0)} if kind in ("numpy", "tensor") else {}
    fine = medgan.upsample(image, factor=(1, 1, 3), **options)
    assert type(fine) is type(image)
    if kind == "sitk":
        assert fine.GetSize() == (12, 14, 18) and fine.GetSpacing() == pytest.approx((1, 1, 1))
        assert fine.GetOrigin() == pytest.approx((0, 0, -1)) and fine.GetPixelID() == image.GetPixelID()
    else:
        shape = fine.array.shape if kind == "volume" else tuple(fine.shape)
        assert shape[-3:] == (12, 14, 18)
    if kind in ("metatensor", "nibabel"):
        expected = AFFINE @ np.array([0, 0, -1 / 3, 1])
        np.testing.assert_allclose(np.asarray(fine.affine)[:, 3], expected, atol=1e-9)


def test_a_path_gives_a_volume_and_channels_are_kept(tmp_path: Path) -> None:
    medgan.write(small(), tmp_path / "scan.nii.gz")
    assert isinstance(medgan.upsample(tmp_path / "scan.nii.gz", factor=2), Volume)
    two = small(np.float32, channels=2)
    both = medgan.upsample(two, factor=(1, 1, 2)).array
    one = medgan.upsample(replace(two, array=two.array[1:]), factor=(1, 1, 2)).array
    np.testing.assert_allclose(both[1:], one, atol=1e-2)


@pytest.mark.parametrize("factors", [(1, 1, 3), (1.5, 2, 2.3)])
def test_slabs_do_not_show(factors: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # bfloat16 rounds differently in blocks of other sizes, by about its own noise; fp32 shows what slabs do.
    monkeypatch.setattr("medgan.learning.sharpening.pick_precision", lambda *_: torch.float32)
    image = ndimage.zoom(head().array[0, :, 16:56, 8:40], (1.2, 1, 0.5), order=1)
    volume = Volume(image[None], np.diag([1.0, 1.0, 2.0, 1.0]))
    scans = acquisitions(volume, factors, "gaussian", None)
    sharpener = Sharpener.open(None, "cpu")
    maps = intensity_maps(volume.array, sharpener.config.intensity)
    whole = refine(volume, scans, maps, sharpen=sharpener.add).array
    cut = refine(volume, scans, maps, sharpen=sharpener.add, slab_voxels=whole.size // 3).array
    span = maps[0].raw[-1] - maps[0].raw[0]
    linear = refine(volume, scans, maps).array
    assert np.abs(whole - linear).max() > 0.05 * span  # the network does something here
    assert np.abs(whole - cut).max() < 1e-3 * span


def test_what_the_model_does_not_cover_falls_back_and_says_so() -> None:
    with pytest.warns(UserWarning, match="linear method was used"):
        wide = medgan.upsample(small(), factor=(1, 1, 2), thickness=9.0)
    np.testing.assert_array_equal(wide.array,
                                  medgan.upsample(small(), factor=(1, 1, 2), thickness=9.0, method="linear").array)
    _, report = medgan.upsample(small(), factor=(1, 1, 2), thickness=9.0, report=True)
    assert report.method == "linear" and report.model is None and len(report.warnings) == 1
    assert report.thickness_mm[2] == pytest.approx(9.0)


def nan() -> Volume:
    volume = small(np.float32)
    volume.array[0, 3, 3, 3] = np.nan
    return volume


def flat() -> MetaTensor:
    return MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])))


@pytest.mark.parametrize(("code", "image", "options"), [
    ("DIM_UNSUPPORTED", lambda: np.zeros((8, 8), np.float32), {"input_spacing": (1, 1)}),
    ("DIM_UNSUPPORTED", lambda: Volume(np.zeros((1, 8, 8), np.float32)), {}),
    ("GEOM_NO_SPACING", lambda: np.zeros((8, 8, 8), np.float32), {}),
    ("GEOM_NO_SPACING", lambda: torch.zeros(8, 8, 8), {}),
    ("PIX_NONFINITE", nan, {}),
    ("PIX_COMPLEX", lambda: np.zeros((8, 8, 8), np.complex64), {"input_spacing": (1, 1, 2)}),
    ("GEOM_SINGULAR_AFFINE", flat, {}),
    ("SINGLE_SLICE", lambda: Volume(np.zeros((1, 8, 8, 1), np.float32)), {"factor": 2}),
    ("FACTOR_RANGE", small, {"factor": 0.5}),
    ("FACTOR_RANGE", small, {"factor": 9}),
    ("FACTOR_RANGE", small, {"spacing": (0.9, 1.0, 4.0)}),
    ("FACTOR_RANGE", small, {"spacing": 0.05}),
    ("CFG_VALUE", small, {"spacing": 1.0, "factor": 2}),
    ("CFG_VALUE", small, {"spacing": (1.0, 1.0)}),
    ("CFG_VALUE", small, {"spacing": (0.9, -1.0, 1.0)}),
    ("CFG_VALUE", small, {"factor": (2, 2)}),
    ("CFG_VALUE", small, {"profile": "box"}),
    ("CFG_VALUE", small, {"method": "cubic"}),
    ("CFG_VALUE", small, {"thickness": -1.0, "factor": 2}),
    ("CFG_VALUE", small, {"method": "linear", "model": "run"}),
    ("LIMIT", lambda: Volume(np.zeros((1, 400, 400, 100), np.uint8)), {"factor": 8}),
    ("RUN_NOT_FOUND", small, {"model": "no/such/run"}),
    ("FILE_MISSING", lambda: "no/such/file.nii.gz", {}),
    ("INPUT_KIND", lambda: {"image": 1}, {}),
])
def test_bad_input_is_refused(code: str, image: Any, options: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        medgan.upsample(image(), **options)
    assert refused.value.code == code


def test_a_run_of_another_task_is_refused(tmp_path: Path) -> None:
    checkpoints.create_run(tmp_path / "run", Config.resolve("mr", "image"), {}, {})
    with pytest.raises(Refused, match="RUN_TASK"):
        medgan.upsample(small(), model=tmp_path / "run")


def test_files_in_and_out(tmp_path: Path) -> None:
    source, target = tmp_path / "in.nii.gz", tmp_path / "out.nii.gz"
    medgan.write(small(), source)
    report = upsample_file(source, target, factor=(1, 1, 3), method="linear")
    written = medgan.read(target)
    assert written.shape == (12, 14, 18) and written.spacing_mm == pytest.approx(report.spacing_mm, rel=1e-5)
    np.testing.assert_array_equal(written.array, medgan.upsample(small(), factor=(1, 1, 3), method="linear").array)
    before = target.read_bytes()
    for wrong, code in ((target, "OUT_EXISTS"), (tmp_path / "out.mha", "FILE_FORMAT"), (tmp_path / "o", "FILE_FORMAT")):
        with pytest.raises(Refused, match=code):
            upsample_file(source, wrong)
    assert target.read_bytes() == before


def test_dicom_in_and_out(tmp_path: Path) -> None:
    image, _ = phantom("ct", 2, shape=(40, 40, 12), spacing_mm=(8.0, 8.0, 20.0))
    write_synthetic(image, tmp_path / "in", model_hash="none", seed=0, derivation="a phantom")
    report = upsample_file(tmp_path / "in", tmp_path / "out", spacing=(8, 8, 10), method="linear")
    fine = medgan.read(tmp_path / "out")
    assert report.factors == pytest.approx((1, 1, 2)) and fine.shape == (40, 40, 24)
    expected = medgan.upsample(tmp_path / "in", spacing=(8, 8, 10), method="linear")
    assert sorted(fine.spacing_mm) == pytest.approx(sorted(expected.spacing_mm))
    np.testing.assert_array_equal(np.sort(fine.array, axis=None), np.sort(expected.array, axis=None))


def test_the_linear_method_needs_no_torch() -> None:
    code = ("import sys, numpy, medgan; medgan.upsample(numpy.ones((6, 6, 6)), input_spacing=(1, 1, 3), "
            "method='linear'); print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_only_spacing_named_for_a_bare_array_is_its_own() -> None:
    array = np.random.default_rng(0).normal(100, 20, (12, 12, 6)).astype(np.float32)
    one = medgan.upsample(array, spacing=(1, 1, 3), method="linear")
    two = medgan.upsample(array, input_spacing=(1, 1, 3), spacing=(1, 1, 1), method="linear")
    assert one.shape == (12, 12, 18) and np.array_equal(one, two)
    with pytest.raises(Refused) as refused:
        medgan.upsample(array, method="linear")
    assert refused.value.code == "GEOM_NO_SPACING" and "spacing=" in str(refused.value)


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

    def failing(volume: Volume, path: Path) -> None:
        if path == mask:
            raise OSError("no space left")
        write(volume, path)

    monkeypatch.setattr("medgan.imaging.files.write", failing)
    with pytest.raises(OSError, match="no space"):
        upsample_file(tmp_path / "in.nii.gz", out, labels_target=mask, **options)
    assert not out.exists() and not mask.exists()
    monkeypatch.undo()
    upsample_file(tmp_path / "in.nii.gz", out, labels_target=mask, **options)
    assert medgan.read(out).shape == medgan.read(mask).shape == (12, 14, 12)
