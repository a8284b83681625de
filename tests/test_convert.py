"""Every kind of image in, and the same kind back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data.meta_tensor import MetaTensor

from medgan.errors import Refused
from medgan.imaging.convert import cast, to_volume
from medgan.imaging.geometry import resample, same_grid
from medgan.imaging.nifti import write_nifti
from medgan.imaging.planar import write_planar
from medgan.imaging.volume import Volume

TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([0.5, 1, -2])
AFFINE[:3, 3] = (10, -20, 30)


def values(shape: tuple[int, ...] = (6, 5, 4), dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 100, shape).astype(dtype)


def code_of(image: Any, **options: Any) -> str:
    with pytest.raises(Refused) as refused:
        to_volume(image, **options)
    return refused.value.code


def sitk_of(array: np.ndarray, affine: np.ndarray = AFFINE, vector: bool = False) -> sitk.Image:
    """An image whose voxel [i, j, k] is array[i, j, k], at the place `affine` says, told in LPS."""
    n = array.ndim - vector
    image = sitk.GetImageFromArray(array.transpose(*range(n - 1, -1, -1), *([n] if vector else [])), isVector=vector)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:n, :n], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:n, 3].tolist())
    image.SetDirection((lps[:n, :n] / spacing).ravel().tolist())
    return image


def kinds() -> dict[str, tuple[Any, dict[str, Any]]]:
    array = values()
    return {
        "volume": (Volume(array[None], AFFINE), {}),
        "numpy": (array, {"spacing_mm": (0.5, 1, 2)}),
        "numpy channels": (values((3, 6, 5, 4)), {"spacing_mm": (0.5, 1, 2)}),
        "tensor": (torch.from_numpy(array).float(), {"spacing_mm": (0.5, 1, 2)}),
        "tensor channels": (torch.from_numpy(values((3, 6, 5, 4))).half(), {"spacing_mm": (0.5, 1, 2)}),
        "metatensor": (MetaTensor(torch.from_numpy(values((3, 6, 5, 4))), affine=torch.from_numpy(AFFINE)), {}),
        "nibabel": (nibabel.Nifti1Image(array, AFFINE), {}),
        "nibabel 2": (nibabel.Nifti2Image(array.astype(np.int64), AFFINE, dtype=np.int64), {}),
        "nibabel 4-D": (nibabel.Nifti1Image(array[..., None], AFFINE), {}),
        "sitk": (sitk_of(array), {}),
        "sitk vector": (sitk_of(values((6, 5, 4, 3)), vector=True), {}),
        "numpy 2D": (values((6, 5)), {"spacing_mm": (0.5, 1)}),
        "numpy 2D channels": (values((3, 6, 5)), {"spacing_mm": (0.5, 1)}),
        "tensor 2D": (torch.from_numpy(values((1, 6, 5))), {"spacing_mm": (0.5, 1)}),
        "metatensor 2D": (MetaTensor(torch.from_numpy(values((1, 6, 5))), affine=torch.eye(3) * 2), {}),
        "nibabel 2D": (nibabel.Nifti1Image(values((6, 5)), AFFINE), {}),
        "nibabel one slice": (nibabel.Nifti1Image(values((6, 5, 1)), AFFINE), {}),
        "sitk 2D": (sitk_of(values((6, 5)), np.diag([0.5, 2, 1, 1]) @ np.diag([-1, 1, 1, 1])), {}),
        "sitk one slice": (sitk_of(values((6, 5, 1))), {}),
    }


def numbers(image: Any) -> np.ndarray:
    """The values of any kind of image, in its own order of axes."""
    if isinstance(image, Volume):
        return image.array
    if isinstance(image, torch.Tensor):
        return image.detach().numpy()
    if isinstance(image, nibabel.spatialimages.SpatialImage):
        return np.asarray(image.dataobj)
    return sitk.GetArrayFromImage(image) if isinstance(image, sitk.Image) else image


@pytest.mark.parametrize("kind", kinds())
def test_there_and_back_is_the_same(kind: str) -> None:
    image, options = kinds()[kind]
    volume, back = to_volume(image, **options)
    assert volume.dims == (2 if "2D" in kind or "slice" in kind else 3)
    assert volume.channels == (3 if "channels" in kind or "vector" in kind or kind == "metatensor" else 1)
    again = back(volume)
    assert type(again) is type(image)
    assert numbers(again).dtype == numbers(image).dtype and np.array_equal(numbers(again), numbers(image))
    # Geometry is the same as well, for those kinds that have one.
    other = to_volume(again, **options)[0]
    assert np.abs(other.affine - volume.affine).max() < 1e-6
    if isinstance(image, sitk.Image):
        for of in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
            assert np.allclose(getattr(again, of)(), getattr(image, of)(), atol=1e-9), of


@pytest.mark.parametrize("kind", kinds())
def test_a_finer_result_comes_back_as_the_same_kind(kind: str) -> None:
    image, options = kinds()[kind]
    volume, back = to_volume(image, **options)
    fine = resample(volume, [s / 2 for s in volume.spacing_mm], order=1)
    assert fine.array.dtype == np.float32
    again = back(fine)
    if isinstance(image, Volume):
        assert again is fine
        return
    assert type(again) is type(image) and numbers(again).dtype == numbers(image).dtype
    spacing = {"spacing_mm": fine.spacing_mm} if options else {}
    other = to_volume(again, **spacing)[0]
    assert other.array.shape == fine.array.shape
    assert np.abs(other.array.astype(float) - fine.array).max() <= 0.5
    if not options:  # bare arrays have spacing only
        assert same_grid(other, fine, 1e-5) and np.abs(other.affine - fine.affine).max() < 1e-5


def test_all_kinds_of_one_image_lie_at_one_place(tmp_path: Path) -> None:
    array = values()
    write_nifti(Volume(array[None], AFFINE), tmp_path / "a.nii.gz")
    images = [
        tmp_path / "a.nii.gz", str(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "a.nii.gz"),
        sitk.ReadImage(tmp_path / "a.nii.gz"), sitk_of(array),
        MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(AFFINE)),
    ]
    for image in images:
        volume = to_volume(image)[0]
        assert np.array_equal(volume.array[0], array)
        assert np.abs(volume.affine - AFFINE).max() < 1e-5


def test_a_path_comes_back_as_a_volume(tmp_path: Path) -> None:
    write_planar(Volume(values((1, 6, 5), np.uint8)), tmp_path / "a.png")
    volume, back = to_volume(tmp_path / "a.png")
    assert volume.dims == 2 and back(volume) is volume
    assert code_of(tmp_path / "none.nii") == "FILE_MISSING"


def test_integers_are_rounded_and_clipped() -> None:
    volume, back = to_volume(values(dtype=np.uint8), spacing_mm=(1, 1, 1))
    result = volume.with_array(np.linspace(-5, 300, volume.array.size, dtype=np.float32).reshape(volume.array.shape))
    again = back(result)
    assert again.dtype == np.uint8 and again.min() == 0 and again.max() == 255
    assert np.array_equal(again, np.clip(np.rint(result.array[0]), 0, 255))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_casting_never_wraps(dtype: str) -> None:
    limits = np.iinfo(dtype)
    out = cast(np.array([-1e30, -0.6, 0.6, 1e30]), np.dtype(dtype))
    assert out.dtype == np.dtype(dtype)
    assert out[0] == limits.min and out[1] == max(-1, limits.min) and out[2] == 1
    assert out[3] > 0.99 * limits.max
    assert cast(np.array([-1e30, 1e30], np.float32), np.dtype(dtype))[1] > 0.99 * limits.max
    for source in ("i8", "u8", "i2", "u1"):
        ends = np.iinfo(source)
        expected = [max(ends.min, limits.min), min(ends.max, limits.max)]
        assert cast(np.array([ends.min, ends.max], source), np.dtype(dtype)).tolist() == expected
    assert cast(np.array([True, False]), np.dtype(dtype)).tolist() == [1, 0]
    assert cast(np.array([0, 1, 7], dtype), np.dtype(bool)).tolist() == [False, True, True]


def test_masks_and_floats_keep_their_type() -> None:
    volume, back = to_volume(values() > 50, spacing_mm=(1, 1, 1))
    assert volume.array.dtype == bool
    assert back(volume.with_array(np.full(volume.array.shape, 0.7, np.float32))).all()
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool):
        tensor = torch.from_numpy(values((1, 6, 5), np.uint8)).to(dtype)
        volume, back = to_volume(tensor, spacing_mm=(1, 1))
        assert back(volume.with_array(volume.array.astype(np.float32))).dtype == dtype
    swapped = values(dtype=">i2")
    volume, back = to_volume(swapped, spacing_mm=(1, 1, 1))
    assert volume.array.dtype.isnative and back(volume).dtype == swapped.dtype
    assert np.array_equal(back(volume), swapped)


def test_a_tensor_that_is_being_trained_on() -> None:
    tensor = torch.ones(1, 4, 4, requires_grad=True)
    volume, back = to_volume(tensor, spacing_mm=(1, 1))
    assert not back(volume).requires_grad
    volume.array[:] = 5  # shares memory with the tensor; the result does not
    kept = back(volume)
    volume.array[:] = 6
    assert (kept == 5).all()


def test_metatensors_keep_what_they_know() -> None:
    image = MetaTensor(torch.from_numpy(values((1, 6, 5, 4))), affine=torch.from_numpy(AFFINE),
                       meta={"filename_or_obj": "a.nii", "spatial_shape": np.array([6, 5, 4])})
    volume, back = to_volume(image)
    fine = resample(volume, (0.25, 0.5, 1))
    again = back(fine)
    assert again.meta["filename_or_obj"] == "a.nii" and again.meta["spatial_shape"].tolist() == [12, 10, 8]
    assert np.allclose(again.affine, fine.affine) and np.allclose(image.affine, AFFINE)
    assert image.meta["spatial_shape"].tolist() == [6, 5, 4]
    batch = MetaTensor(torch.zeros(2, 1, 4, 4, 4))
    assert code_of(batch) == "DIM_UNSUPPORTED"


def test_metatensors_in_lps() -> None:
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    image = MetaTensor(torch.from_numpy(values((1, 6, 5, 4))), affine=torch.from_numpy(lps), meta={"space": "LPS"})
    volume, back = to_volume(image)
    assert np.allclose(volume.affine, AFFINE) and np.allclose(back(volume).affine, lps)


def test_nibabel_files_with_scaling_and_other_formats(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    volume, back = to_volume(stored)
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array[0], stored.get_fdata())
    nibabel.save(back(volume), tmp_path / "b.nii")
    assert np.allclose(nibabel.load(tmp_path / "b.nii").get_fdata(), stored.get_fdata())
    mgh = nibabel.MGHImage(values(dtype=np.float32), AFFINE)
    volume, back = to_volume(mgh)
    assert np.allclose(volume.affine, AFFINE, atol=1e-5) and np.allclose(back(volume).affine, AFFINE, atol=1e-5)
    # What comes back can be saved and read again, whatever the header said before.
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.set_qform(AFFINE, code=1)
    fine = resample(to_volume(image)[0], (0.25, 0.5, 1))
    made = to_volume(image)[1](fine)
    assert made.header.get_xyzt_units()[0] == "mm"
    nibabel.save(made, tmp_path / "c.nii.gz")
    again, _ = to_volume(tmp_path / "c.nii.gz")
    assert np.abs(again.affine - fine.affine).max() < 1e-5 and again.notes == ()


def test_what_is_refused() -> None:
    array = values()
    assert code_of(array) == "GEOM_NO_SPACING"
    assert code_of(torch.from_numpy(array)) == "GEOM_NO_SPACING"
    with pytest.raises(Refused) as refused:
        to_volume(array)
    assert "spacing=" in refused.value.fix
    for spacing in ((0, 1, 1), (1, 1, np.nan), (1,), (1, 1, 1, 1), (-1, 1, 1)):
        assert code_of(array, spacing_mm=spacing) == "GEOM_BAD_SPACING"
    assert code_of(array[0, 0], spacing_mm=(1, 1)) == "DIM_UNSUPPORTED"
    assert code_of(array[None, None], spacing_mm=(1, 1, 1)) == "DIM_UNSUPPORTED"
    assert code_of(array.astype(complex), spacing_mm=(1, 1, 1)) == "PIX_COMPLEX"
    assert code_of(np.full((3, 3), None), spacing_mm=(1, 1)) == "INPUT_KIND"
    assert code_of(np.full((3, 3), np.nan), spacing_mm=(1, 1)) == "PIX_NONFINITE"
    assert code_of(torch.full((3, 3), torch.inf), spacing_mm=(1, 1)) == "PIX_NONFINITE"
    for nothing in (None, 3, [[1, 2]], object(), {"image": array}):
        assert code_of(nothing) == "INPUT_KIND"


def test_what_is_refused_of_images_with_a_place() -> None:
    array = values()
    sheared = AFFINE.copy()
    sheared[:3, :3] = AFFINE[:3, :3] @ np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 1]])
    assert code_of(nibabel.Nifti1Image(array, sheared)) == "GEOM_SHEAR"
    assert code_of(MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(sheared))) == "GEOM_SHEAR"
    assert code_of(nibabel.Nifti1Image(values((6, 5, 4, 3)), AFFINE)) == "DIM_4D"
    assert code_of(nibabel.Nifti1Image(values((6, 5, 4, 1, 3)), AFFINE)) == "DIM_UNSUPPORTED"
    assert code_of(nibabel.Nifti1Image(array, None)) == "GEOM_NO_ORIENTATION"
    assert code_of(nibabel.Nifti1Image(array.astype(np.complex64), AFFINE)) == "PIX_COMPLEX"
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert code_of(nibabel.Nifti1Image(colour, AFFINE)) == "PIX_COLOUR"
    micron = nibabel.Nifti1Image(array, AFFINE)
    micron.header.set_xyzt_units("micron")
    assert code_of(micron) == "GEOM_UNITS"
    assert code_of(sitk.Image([2, 2, 2, 2], sitk.sitkInt16)) == "DIM_4D"
    assert code_of(sitk.Image([2, 2, 2], sitk.sitkComplexFloat32)) == "PIX_COMPLEX"


def test_no_library_is_imported_for_a_numpy_array() -> None:
    script = (
        "import sys, numpy\n"
        "from medgan.imaging.convert import to_volume\n"
        "to_volume(numpy.ones((3, 3)), spacing_mm=(1, 1))\n"
        "assert not {'torch', 'monai', 'SimpleITK', 'nibabel'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
