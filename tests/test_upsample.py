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
from upsample_makers import AFFINE, head, small

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


def psnr(image: NDArray[Any], truth: NDArray[Any]) -> float:
    mask = truth > 0.1 * np.percentile(truth, 99.9)
    return float(10 * np.log10(np.percentile(truth, 99.9) ** 2 / np.square(image - truth)[mask].mean()))


def cubic(thick: Volume) -> NDArray[np.float32]:
    shape = (*thick.shape[:2], 3 * thick.shape[2])
    return ndimage.affine_transform(thick.array[0], (1, 1, 1 / 3), (0, 0, -1 / 3), shape, order=3, mode="nearest")


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
    ("LIMIT", lambda: Volume(np.zeros((1, 400, 400, 100), np.uint8)),
     {"factor": 8, "settings": ["data.max_gib=1"]}),
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
