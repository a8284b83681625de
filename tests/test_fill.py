"""`medgan.fill`: what is put into voids, what stays as it was, kinds of image, refusals."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dataset_makers as make
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.geometry import reorient
from medgan.imaging.volume import Volume
from medgan.lesions.filling import smooth
from medgan.lesions.gaps import slices_between
from medgan.verbs.fill import fill_file

METHODS = ("smooth", "tissue")


@pytest.fixture(scope="module")
def head() -> Volume:
    image, _ = phantom("mr", 77, shape=(48, 56, 32), spacing_mm=(2.0, 2.0, 3.0))
    return replace(image, array=image.array.astype(np.int16))


@pytest.fixture(scope="module")
def hole(head: Volume) -> Volume:
    """A ball off the middle of the head."""
    at = np.stack(np.meshgrid(*map(np.arange, head.shape), indexing="ij")) - np.array([30, 30, 16])[:, None, None, None]
    inside = ((at * np.array(head.spacing_mm)[:, None, None, None]) ** 2).sum(axis=0) <= 9**2
    return head.with_array(inside[None].astype(np.uint8))


def real(shared_data: Path) -> Volume:
    volume = medgan.read(shared_data / "brain-t1/sub-01/anat/sub-01_T1w.nii.gz")
    return Volume(volume.array[:, 90:170, 80:180, 60:110].astype(np.float32), volume.affine, "mr")


def reached(mask: NDArray[Any], voxels: int = 2) -> NDArray[np.bool_]:
    """The mask and so many voxels around it."""
    return ndimage.distance_transform_edt(mask == 0) <= voxels


def error(made: Volume, truth: Volume, where: NDArray[np.bool_]) -> float:
    return float(np.sqrt(np.square(made.array[0].astype(float) - truth.array[0])[where].mean()))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_beyond_the_rim_and_a_lesion_leaves_no_trace(head: Volume, hole: Volume, method: Any) -> None:
    inside = hole.array[0] > 0
    marked = head.with_array(np.where(inside, 30_000, head.array).astype(np.int16))
    made, told = medgan.fill(marked, hole, method=method, report=True)
    far = ~reached(inside)
    assert np.array_equal(made.array[0][far], head.array[0][far]) and made.array.dtype == head.array.dtype
    assert told.voxels == inside.sum() <= told.changed <= reached(inside).sum()
    assert (told.voids, told.missing_slices, told.run, told.method) == (1, 0, None, method)
    # What lay in the hole tells nothing: the same comes out whatever it was.
    assert np.array_equal(made.array, medgan.fill(head, hole, method=method, report=True)[0].array)
    spread = float(head.array[0][far & (head.array[0] > 0)].std())
    assert error(made, head, inside) < spread


def test_on_real_tissue_it_beats_the_mean_of_what_is_around(shared_data: Path) -> None:
    truth = real(shared_data)
    mask = np.zeros(truth.shape, np.uint8)
    flat = truth.array.copy()
    for x in range(10, 80, 20):
        for y in range(10, 90, 20):
            mask[x : x + 7, y : y + 6, 22:27] = 1
            box = (0, slice(x - 3, x + 10), slice(y - 3, y + 9), slice(19, 30))
            flat[box] = np.where(mask[box[1:]], truth.array[box][mask[box[1:]] == 0].mean(), flat[box])
    made = medgan.fill(truth, truth.with_array(mask[None]), method="smooth", report=True)[0]
    assert error(made, truth, mask > 0) < 0.8 * error(truth.with_array(flat), truth, mask > 0)


@pytest.fixture(scope="module")
def volume_run(mr_set: Path, tiny: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, tiny lesion run in 3D."""
    return medgan.train(mr_set, modality="mr", out=tmp_path_factory.mktemp("runs") / "lesion3d",
                        settings=tiny | {"data.dims": 3, "data.crop": 16, "training.images": 16}).path


@pytest.mark.parametrize("dims", [2, 3])
def test_the_generator_fills_and_the_seed_decides(mr_set: Path, dims: int, request: pytest.FixtureRequest) -> None:
    lesion_run: Path = request.getfixturevalue("lesion_run" if dims == 2 else "volume_run")
    image = medgan.read(next((mr_set / "imagesTr").glob("*.nii.gz")))
    mask = np.zeros(image.shape, np.uint8)
    mask[24:32, 28:37, 10:15] = 1
    label = image.with_array(mask[None])
    first, told = medgan.fill(image, label, model=lesion_run, seed=3, report=True)
    again, other = (medgan.fill(image, label, model=lesion_run, seed=seed, report=True)[0] for seed in (3, 4))
    assert told.method == "gan" and told.run == lesion_run.name and told.model == medgan.load(lesion_run).hash()
    assert np.array_equal(first.array, again.array) and not np.array_equal(first.array, other.array)
    far = ~reached(mask)
    assert np.array_equal(first.array[0][far], image.array[0][far])
    plain = medgan.fill(image, label, method="smooth", seed=3, report=True)[0]
    assert not np.array_equal(plain.array, first.array), "the generator drew nothing"


def test_the_newest_run_of_the_same_kind_is_taken(lesion_run: Path, head: Volume, hole: Volume, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="RUN_NOT_FOUND"):
        medgan.fill(head, hole, method="gan")
    for name, age in (("older", 100), ("newer", 50), ("unfinished", 0)):
        shutil.copytree(lesion_run, Path("runs") / name)
        file = Path("runs") / name / "weights.safetensors"
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    (Path("runs/unfinished") / "weights.safetensors").unlink()
    assert medgan.fill(head, hole, method="gan", report=True)[1].run == "newer"
    assert medgan.fill(head, hole, report=True)[1].method == "smooth", "a run has to be asked for"
    with pytest.raises(Refused, match="no finished lesion run on ct"):
        medgan.fill(replace(head, modality="ct"), hole, method="gan")
    unknown = replace(head, modality=None)
    with pytest.raises(Refused, match="which modality"):
        medgan.fill(unknown, hole, method="gan")
    assert medgan.fill(unknown, hole, method="gan", modality="mr", report=True)[1].run == "newer"
    two = head.with_array(np.concatenate([head.array, head.array]))
    with pytest.raises(Refused, match="of 2 channels"):
        medgan.fill(two, hole, method="gan")


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("gap", [1, 3])
def test_missing_slices_come_from_their_neighbours(shared_data: Path, axis: int, gap: int) -> None:
    truth = real(shared_data)
    start = truth.shape[axis] // 2
    lost = tuple(slice(start, start + gap) if a == axis else slice(None) for a in range(3))
    mask = np.zeros(truth.shape, np.uint8)
    mask[lost] = 1
    broken = truth.with_array(np.where(mask, 0, truth.array).astype(np.float32))
    made, told = medgan.fill(broken, truth.with_array(mask[None]), report=True)
    assert (told.missing_slices, told.voids) == (gap, 0)
    assert np.array_equal(made.array[0][mask == 0], truth.array[0][mask == 0]), "slices that were measured stay"
    stack = np.moveaxis(truth.array[0], axis, 2)
    share = (np.arange(gap) + 1) / (gap + 1)
    straight = (1 - share) * stack[..., start - 1, None] + share * stack[..., start + gap, None]
    linear = truth.with_array(truth.array.copy())
    linear.array[0][lost] = np.moveaxis(straight, 2, axis)
    assert error(made, truth, mask > 0) < 0.96 * error(linear, truth, mask > 0)


def test_slices_at_the_end_and_in_short_stacks() -> None:
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32), (6, 6, 5)).copy()
    broken = np.array([False, False, True, True, False])
    np.testing.assert_allclose(slices_between(ramp, broken, 2, 4)[0, 0], [2, 3], atol=1e-5)
    end = np.array([False, False, False, True, True])
    np.testing.assert_array_equal(slices_between(ramp, end, 3, 5)[0, 0], [2, 2])
    np.testing.assert_array_equal(slices_between(ramp, end[::-1], 0, 2)[0, 0], [2, 2])


@pytest.mark.parametrize("radius", [4, 15])
def test_the_smooth_fill_bends_as_its_surroundings_do(radius: int) -> None:
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 40)] * 3, indexing="ij")).astype(np.float32)
    field = (at[0] + 0.5 * at[1] * at[2])[None]
    unknown = (at**2).sum(axis=0) < (radius / 20) ** 2
    made = smooth(np.where(unknown, 99, field).astype(np.float32), unknown, np.ones(3))
    assert np.array_equal(made[0][~unknown], field[0][~unknown])
    assert np.abs(made - field)[0][unknown].max() < 0.05


def test_channels_borrow_from_one_place(head: Volume, hole: Volume) -> None:
    values = head.array[0].astype(np.float32)
    two = head.with_array(np.stack([values, 3 * values + 100]))
    for method in METHODS:
        made = medgan.fill(two, hole, method=method, report=True)[0].array
        np.testing.assert_allclose(made[1], 3 * made[0] + 100, rtol=1e-2, atol=0.02 * float(np.ptp(values)))


def test_a_margin_grows_the_mask(head: Volume, hole: Volume) -> None:
    told = [medgan.fill(head, hole, method="smooth", margin=margin, report=True)[1] for margin in (0.0, 3.0)]
    grown = ndimage.distance_transform_edt(hole.array[0] == 0, sampling=head.spacing_mm) <= 3
    assert told[1].voxels == grown.sum() > told[0].voxels


def kinds(head: Volume) -> dict[str, Any]:
    array = head.array[0]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((2.0, 2.0, 3.0))
    return {"volume": head, "numpy": array, "tensor": torch.from_numpy(array.copy()),
            "metatensor": MetaTensor(torch.from_numpy(head.array.copy()), affine=torch.tensor(head.affine.copy())),
            "nibabel": nibabel.Nifti1Image(array, head.affine), "sitk": image}


@pytest.mark.parametrize("kind", ["volume", "numpy", "tensor", "metatensor", "nibabel", "sitk"])
def test_the_same_kind_comes_back(head: Volume, hole: Volume, kind: str) -> None:
    image, mask = kinds(head)[kind], kinds(hole)[kind]
    made = medgan.fill(image, mask, method="smooth", report=True)[0]
    assert type(made) is type(image)
    plain = {"volume": lambda x: x.array[0], "metatensor": lambda x: x.numpy()[0], "tensor": lambda x: x.numpy(),
             "nibabel": lambda x: np.asarray(x.dataobj), "sitk": lambda x: sitk.GetArrayFromImage(x).T,
             "numpy": lambda x: x}[kind]
    before, after = plain(image), plain(made)
    far = ~reached(hole.array[0])
    assert before.dtype == after.dtype and np.array_equal(before[far], after[far])
    assert not np.array_equal(before, after)


def test_the_voxel_order_of_file_and_mask_do_not_matter(head: Volume, hole: Volume) -> None:
    made = medgan.fill(head, hole, method="smooth", report=True)[0]
    turned = medgan.fill(reorient(head, "PIL"), reorient(hole, "SRA"), method="smooth", report=True)[0]
    assert turned.orientation == "PIL"
    np.testing.assert_array_equal(reorient(turned, made.orientation).array, made.array)


def test_a_flat_image_is_filled() -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 900, (40, 40)), 3) + 500
    mask = np.zeros((40, 40), np.uint8)
    mask[15:22, 18:25] = 1
    made = medgan.fill(image, mask, method="smooth", modality="xray", report=True)[0]
    far = ~reached(mask)
    assert np.array_equal(made[far], image[far]) and not np.array_equal(made, image)


def test_warnings_are_given_where_no_report_is_asked_for(head: Volume, hole: Volume, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    last = np.zeros_like(hole.array)
    last[..., -2:] = 1
    with pytest.warns(UserWarning, match="one side only"):
        medgan.fill(head, hole.with_array(last))


def shifted(volume: Volume) -> Volume:
    affine = volume.affine.copy()
    affine[0, 3] += 5
    return replace(volume, affine=affine)


@pytest.mark.parametrize(("change", "code"), [
    (lambda v: v.with_array(np.zeros_like(v.array)), "LABEL_EMPTY"),
    (lambda v: v.with_array(np.ones_like(v.array)), "LABEL_FULL"),
    (shifted, "LABEL_GRID"),
    (lambda v: replace(v, array=v.array[:, :-1]), "LABEL_GRID"),
    (lambda v: replace(v, array=v.array[..., 0]), "LABEL_DIM"),
    (lambda v: v.with_array(np.concatenate([v.array, v.array])), "LABEL_DIM"),
    (lambda v: v.with_array(v.array * np.float32(np.nan)), "PIX_NONFINITE"),
])
def test_masks_that_mean_nothing_are_refused(head: Volume, hole: Volume, change: Any, code: str) -> None:
    with pytest.raises(Refused) as refused:
        medgan.fill(head, change(hole), method="smooth")
    assert refused.value.code == code


def test_a_mask_that_leaves_no_tissue_is_refused() -> None:
    image = np.zeros((24, 24, 16), np.float32)
    image[6:18, 6:18, 4:12] = 100 + np.random.default_rng(0).normal(0, 5, (12, 12, 8))
    with pytest.raises(Refused) as refused:
        medgan.fill(image, image > 0, method="tissue", modality="mr")
    assert refused.value.code == "LABEL_FULL"


@pytest.mark.parametrize(("options", "code"), [
    ({"method": "magic"}, "CFG_VALUE"), ({"device": "abacus"}, "CFG_VALUE"), ({"modality": "ct"}, "CFG_VALUE"),
    ({"margin": -1.0}, "CFG_VALUE"), ({"method": "smooth", "settings": {"augment.tries": 2}}, "CFG_VALUE"),
    ({"method": "smooth", "model": "x"}, "CFG_VALUE"), ({"model": "nowhere"}, "RUN_NOT_FOUND"),
])
def test_options_that_mean_nothing_are_refused(head: Volume, hole: Volume, options: Any, code: str) -> None:
    with pytest.raises(Refused) as refused:
        medgan.fill(head, hole, **options)
    assert refused.value.code == code


def test_runs_that_do_not_fit_are_refused(head: Volume, hole: Volume, lesion_run: Path, image_run: Path,
                                          tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(lesion_run, unfinished)
    (unfinished / "weights.safetensors").unlink()
    deep = tmp_path / "deep"
    shutil.copytree(lesion_run, deep)
    told = json.loads((deep / "config.json").read_text())
    told["settings"]["data"]["dims"] = 3
    (deep / "config.json").write_text(json.dumps(told))
    two = head.with_array(np.concatenate([head.array, head.array]))
    flat = (head.with_array(head.array)).array[0, :, :, 16]
    for image, mask, run, code in (
            (head, hole, image_run, "RUN_TASK"), (replace(head, modality="ct"), hole, lesion_run, "RUN_TASK"),
            (two, hole, lesion_run, "RUN_CHANNELS"), (head, hole, unfinished, "RUN_UNFINISHED"),
            (flat, hole.array[0, :, :, 16], deep, "DIM_UNSUPPORTED")):
        with pytest.raises(Refused) as refused:
            medgan.fill(image, mask, model=run)
        assert refused.value.code == code
    with pytest.raises(Refused) as refused:
        medgan.fill(head, hole, model=lesion_run, settings={"network.width": 64})
    assert refused.value.code == "CFG_VALUE"


def test_files_are_written_whole_or_not_at_all(head: Volume, hole: Volume, tmp_path: Path) -> None:
    source, mask, target = tmp_path / "a.nii.gz", tmp_path / "m.nii.gz", tmp_path / "b.nii.gz"
    medgan.write(head, source)
    medgan.write(hole, mask)
    told = fill_file(source, mask, target, method="smooth")
    assert told.voids == 1
    expected = medgan.fill(head, hole, method="smooth", report=True)[0]
    np.testing.assert_array_equal(medgan.read(target).array, expected.array)
    before = sorted(tmp_path.iterdir())
    medgan.write(shifted(hole), tmp_path / "off.nii.gz")
    for path, label, code in ((target, mask, "OUT_EXISTS"), (tmp_path / "b.png", mask, "FILE_FORMAT"),
                              (tmp_path / "series", mask, "FILE_FORMAT"),
                              (tmp_path / "none" / "b.nii.gz", mask, "FILE_MISSING"),
                              (tmp_path / "c.nii.gz", tmp_path / "off.nii.gz", "LABEL_GRID"),
                              (tmp_path / "c.nii.gz", tmp_path / "nothing.nii.gz", "FILE_MISSING")):
        with pytest.raises(Refused) as refused:
            fill_file(source, label, path, method="smooth")
        assert refused.value.code == code
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "off.nii.gz"])


def test_a_nifti_of_several_channels_is_filled(head: Volume, hole: Volume, tmp_path: Path) -> None:
    two = head.with_array(np.concatenate([head.array, 2 * head.array]))
    medgan.write(two, tmp_path / "a.nii.gz")
    medgan.write(hole, tmp_path / "m.nii.gz")
    fill_file(tmp_path / "a.nii.gz", tmp_path / "m.nii.gz", tmp_path / "b.nii.gz", method="smooth")
    assert nibabel.load(tmp_path / "b.nii.gz").shape == (*head.shape, 2)


def test_a_dicom_series_stays_its_patients(tmp_path: Path) -> None:
    import pydicom

    source = make.dicom_series(tmp_path / "in", 3, "P1", slices=12)
    image = medgan.read(source)
    mask = np.zeros(image.shape, np.uint8)
    mask[..., 5] = 1
    medgan.write(Volume(mask[None], image.affine), tmp_path / "m.nii.gz")
    told = fill_file(source, tmp_path / "m.nii.gz", tmp_path / "out")
    made = medgan.read(tmp_path / "out")
    far = ~reached(mask)
    assert told.changed and np.array_equal(made.array[0][far], image.array[0][far])
    header = pydicom.dcmread(next((tmp_path / "out").glob("*.dcm")))
    assert header.PatientID == "P1" and "filled" in header.DerivationDescription
    assert header[0x0008, 0x001C].value == "YES" and len(list((tmp_path / "out").glob("*.dcm"))) == 12


def test_the_command_fills_and_says_how(head: Volume, hole: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    from medgan import cli

    monkeypatch.chdir(tmp_path)
    medgan.write(head, "a.nii.gz")
    medgan.write(hole, "m.nii.gz")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["medgan", "fill", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    status, out, _ = call("a.nii.gz", "m.nii.gz", "b.nii.gz", "--modality", "mr")
    assert status == 0 and out.startswith("b.nii.gz: ") and "method smooth" in out
    status, out, _ = call("a.nii.gz", "m.nii.gz", "c.nii.gz", "--method", "smooth", "--margin", "2", "--json")
    assert status == 0 and json.loads(out)["method"] == "smooth" and Path("c.nii.gz").is_file()
    status, _, err = call("a.nii.gz", "m.nii.gz", "d.nii.gz", "--method", "magic")
    assert status == 3 and "CFG_VALUE" in err and not Path("d.nii.gz").exists()


def test_a_scan_of_large_voxels_is_filled() -> None:
    image = np.random.default_rng(1).random((48, 48, 24)).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[20:26, 20:26, 9:15] = True
    made = medgan.fill(image, mask, method="smooth", input_spacing=(8, 8, 8))
    assert np.isfinite(made).all() and (made[mask] != image[mask]).all()
