"""The phantoms: deterministic, different from each other, anatomically right, and written as a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medgan.datasets.phantoms import (
    IMAGE_CLASSES,
    LESION_CLASSES,
    ORGANS,
    Phantom,
    build,
    organs,
    phantom,
    write_class_phantoms,
    write_phantoms,
)
from medgan.errors import Refused
from medgan.imaging.volume import Modality

CT, MR = ORGANS["ct"], ORGANS["mr"]
SMALL: dict[Modality, tuple[int, ...]] = {"ct": (64, 64, 32), "mr": (48, 56, 40), "xray": (96, 96)}


@pytest.fixture(scope="module")
def ct_cases() -> list[tuple[Phantom, Phantom]]:
    """Ill and healthy bodies of the same anatomy: lesions are drawn after it."""
    return [(build("ct", [3, i], lesions=4), build("ct", [3, i], lesions=0)) for i in range(3)]


@pytest.fixture(scope="module")
def mr_cases() -> list[tuple[Phantom, Phantom]]:
    return [(build("mr", [3, i], lesions=4), build("mr", [3, i], lesions=0)) for i in range(4)]


@pytest.fixture(scope="module")
def xray_cases() -> list[tuple[Phantom, Phantom]]:
    return [
        (build("xray", [3, i], lesions=3, shape=(128, 128)), build("xray", [3, i], lesions=0, shape=(128, 128)))
        for i in range(2)
    ]


def inner(where: NDArray[np.bool_], steps: int = 1) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_erosion(where, iterations=steps))


def centre_mm(case: Phantom, label: int) -> NDArray[np.float64]:
    voxels = np.argwhere(case.organs.array[0] == label).mean(axis=0)
    return np.asarray((case.organs.affine @ [*voxels, 1])[:3])


@pytest.mark.parametrize("modality", ["ct", "mr", "xray"])
def test_same_seed_same_bytes_and_another_seed_another_patient(modality: Modality) -> None:
    dims: Literal[2, 3] = 2 if modality == "xray" else 3
    one, again, other = (build(modality, seed, dims=dims, shape=SMALL[modality]) for seed in (5, 5, 6))
    assert one.image.array.tobytes() == again.image.array.tobytes()
    assert one.mask.array.tobytes() == again.mask.array.tobytes()
    assert one.organs.array.tobytes() == again.organs.array.tobytes()
    # Not only the noise differs: many voxels belong to another organ.
    assert (one.organs.array != other.organs.array).mean() > 0.08
    assert one.mask.array.any()
    image, mask = phantom(modality, 5, dims=dims, shape=SMALL[modality])
    assert image.array.tobytes() == one.image.array.tobytes() and mask.array.tobytes() == one.mask.array.tobytes()
    assert (organs(modality, 5, dims=dims, shape=SMALL[modality]).array == one.organs.array).all()


def test_dtypes_geometry_and_values(
    ct_cases: list[tuple[Phantom, Phantom]], mr_cases: list[tuple[Phantom, Phantom]]
) -> None:
    for modality, case, shape, spacing in (
        ("ct", ct_cases[0][0], (128, 128, 64), (2.8, 2.8, 4.0)),
        ("mr", mr_cases[0][0], (96, 112, 80), (2.0, 2.0, 2.0)),
    ):
        for volume in (case.image, case.mask, case.organs):
            assert volume.shape == shape and volume.channels == 1 and volume.modality == modality
            assert volume.spacing_mm == pytest.approx(spacing) and volume.orientation == "RAS"
            middle = volume.affine @ [*((n - 1) / 2 for n in shape), 1]
            assert middle[:3] == pytest.approx(0, abs=1e-9)
        assert case.image.array.dtype == np.int16 and case.mask.array.dtype == np.uint8
    assert ct_cases[0][0].image.array.min() >= -1024
    assert mr_cases[0][0].image.array.min() >= 0


def test_tissues_have_their_hounsfield_units(ct_cases: list[tuple[Phantom, Phantom]]) -> None:
    ranges = {"air": (-1010, -990), "lung": (-880, -700), "fat": (-115, -85), "muscle": (40, 65), "heart": (95, 165),
              "liver": (96, 116), "spleen": (100, 130), "kidney": (125, 205), "bone": (200, 700)}  # fmt: skip
    for ill, _ in ct_cases:
        hu, tissue, mask = ill.image.array[0], ill.organs.array[0], ill.mask.array[0]
        for name, (low, high) in ranges.items():
            where = inner(tissue == CT[name]) & (mask == 0)
            assert where.sum() > 100, name
            assert low <= np.median(hu[where]) <= high, name


def test_scanner_noise_is_neither_missing_nor_drowning(ct_cases: list[tuple[Phantom, Phantom]]) -> None:
    for _, healthy in ct_cases:
        hu = healthy.image.array[0].astype(np.float64)
        deep = inner(healthy.organs.array[0] == CT["liver"], 2)
        pairs = deep[:, :, 1:] & deep[:, :, :-1]
        # Neighbouring slices share anatomy but hardly any noise.
        sigma = np.diff(hu, axis=2)[pairs].std() / np.sqrt(2)
        assert 6 < sigma < 26
        # Within a slice the noise is correlated, as reconstruction leaves it.
        noise = hu - ndimage.gaussian_filter(hu, (2, 2, 0))
        side = deep[1:] & deep[:-1]
        assert np.corrcoef(noise[1:][side], noise[:-1][side])[0, 1] > 0.15


def test_torso_is_laid_out_like_one(ct_cases: list[tuple[Phantom, Phantom]]) -> None:
    for _, healthy in ct_cases:
        tissue = healthy.organs.array[0]
        parts, _ = ndimage.label(tissue == CT["lung"])
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        assert sizes[:2].sum() > 0.97 * sizes.sum()
        assert sizes[1] > 0.5 * sizes[0]
        lung_ml = (tissue == CT["lung"]).sum() * 2.8 * 2.8 * 4 / 1000
        assert 1500 < lung_ml < 6000
        body = ~np.isin(tissue, [CT["air"], CT["table"]])
        assert 0.3 < body.mean() < 0.75
        # x grows to the right: the liver is on the right, spleen, stomach and heart are on the left.
        assert centre_mm(healthy, CT["liver"])[0] > 25
        assert centre_mm(healthy, CT["spleen"])[0] < -50
        assert centre_mm(healthy, CT["heart"])[0] < -5
        assert centre_mm(healthy, CT["lung"])[2] > centre_mm(healthy, CT["liver"])[2] + 50
        assert centre_mm(healthy, CT["bone"])[1] < centre_mm(healthy, CT["heart"])[1]


def test_ct_lesions_lie_in_their_organs(ct_cases: list[tuple[Phantom, Phantom]]) -> None:
    seen = set()
    for ill, healthy in ct_cases:
        tissue, mask = healthy.organs.array[0], ill.mask.array[0]
        assert set(np.unique(mask)) <= set(LESION_CLASSES["ct"])
        for value, homes in ((1, ("lung", "vessel", "airway")), (2, ("liver", "vessel"))):
            where = mask == value
            if where.any():
                seen.add(value)
                assert np.isin(tissue[where], [CT[home] for home in homes]).mean() > 0.93
        assert not healthy.mask.array.any()
    assert seen == {1, 2}


def test_nodules_are_denser_and_liver_lesions_darker(ct_cases: list[tuple[Phantom, Phantom]]) -> None:
    checked = set()
    for ill, _ in ct_cases:
        hu, tissue, mask = ill.image.array[0].astype(float), ill.organs.array[0], ill.mask.array[0]
        liver = np.median(hu[inner(tissue == CT["liver"]) & ~ndimage.binary_dilation(mask > 0)])
        for value in (1, 2):
            parts, count = ndimage.label(mask == value)
            for part in range(1, count + 1):
                core = inner(parts == part)
                if core.sum() < 4:
                    continue
                checked.add(value)
                mean = hu[core].mean()
                if value == 1:
                    assert -60 < mean < 60
                else:
                    assert 25 < liver - mean < 70
    assert checked == {1, 2}


def test_edges_carry_partial_volumes(ct_cases: list[tuple[Phantom, Phantom]]) -> None:
    for ill, healthy in ct_cases:
        lung = healthy.organs.array[0] == CT["lung"]
        border = ndimage.binary_dilation(lung) & ~inner(lung)
        values = healthy.image.array[0][border]
        assert ((values > -700) & (values < -100)).mean() > 0.4
        nodule = ill.mask.array[0] == 1
        if nodule.any():
            rim = ndimage.binary_dilation(nodule) & ~nodule & lung
            assert -800 < ill.image.array[0][rim].mean() < -200


def test_head_is_laid_out_like_one(mr_cases: list[tuple[Phantom, Phantom]]) -> None:
    for _, healthy in mr_cases:
        tissue, signal = healthy.organs.array[0], healthy.image.array[0].astype(float)
        litres = np.isin(tissue, [MR[name] for name in ("grey", "white", "deep_grey")]).sum() * 8 / 1e6
        assert 0.7 < litres < 1.4
        share = (tissue == MR["white"]).sum() / np.isin(tissue, [MR["grey"], MR["white"]]).sum()
        assert 0.3 < share < 0.75
        ventricles = np.median(signal[inner(tissue == MR["csf"])])
        white, scalp = np.median(signal[inner(tissue == MR["white"], 2)]), np.median(signal[tissue == MR["scalp"]])
        grey, air = np.median(signal[inner(tissue == MR["deep_grey"])]), np.median(signal[tissue == MR["air"]])
        assert air < 0.15 * white and ventricles < 0.6 * white < white < grey
        assert scalp > white
        assert centre_mm(healthy, MR["eye"])[1] > 40 > -20 > centre_mm(healthy, MR["cerebellum"])[1]
        # A folded ribbon has far more border than a smooth shell of the same volume.
        brain = np.isin(tissue, [MR["grey"], MR["white"]])
        surface = (ndimage.binary_dilation(brain) & ~brain).sum()
        assert surface > 2.0 * brain.sum() ** (2 / 3) * 4.84 / 2


def test_mr_lesions_are_bright_and_lie_in_the_brain(mr_cases: list[tuple[Phantom, Phantom]]) -> None:
    seen = set()
    for ill, healthy in mr_cases:
        tissue, mask, signal = healthy.organs.array[0], ill.mask.array[0], ill.image.array[0].astype(float)
        white = np.median(signal[inner(tissue == MR["white"], 2) & (mask == 0)])
        brain = [MR[name] for name in ("grey", "white", "deep_grey", "csf")]
        for value in (1, 2):
            where = mask == value
            if not where.any():
                continue
            seen.add(value)
            assert np.isin(tissue[where], brain).mean() > 0.99
            assert np.median(signal[where]) > 1.25 * white
            if value == 1:
                assert np.isin(tissue[where], [MR["white"], MR["grey"]]).mean() > 0.9
            else:
                # The core is darker than the oedema around it.
                assert np.percentile(signal[where], 2) < 0.95 * white
    assert seen == {1, 2}


def test_magnitude_noise_is_rician(mr_cases: list[tuple[Phantom, Phantom]]) -> None:
    for _, healthy in mr_cases:
        air = healthy.image.array[0][:6].astype(float).ravel()
        # Pure noise has a Rayleigh distribution: mean / deviation = 1.91, where Gaussian noise has 0.
        assert 1.7 < air.mean() / air.std() < 2.1


def test_radiograph_shows_lungs_dark_and_lesions_bright(xray_cases: list[tuple[Phantom, Phantom]]) -> None:
    for ill, healthy in xray_cases:
        assert ill.image.array.dtype == np.uint8 and ill.image.shape == (128, 128)
        film, organ = healthy.image.array[0].astype(float), healthy.organs.array[0]
        lung, bone = film[organ == CT["lung"]], film[:, -24:]
        assert np.median(lung) < np.median(bone[organ[:, -24:] > 0]) - 40
        # Columns run to the patient's left: the liver's columns come first.
        assert np.argwhere(organ == CT["liver"])[:, 0].mean() < 64
        assert ill.image.affine[0, 0] < 0 and ill.image.affine[2, 1] < 0
        mask = ill.mask.array[0]
        assert 0 < (mask > 0).mean() < 0.4
        ring = ndimage.binary_dilation(mask > 0, iterations=6) & (mask == 0)
        change = ill.image.array[0].astype(float) - film
        assert change[mask > 0].mean() > change[ring].mean() + 4


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_2d_is_a_slice_through_a_lesion(modality: Modality) -> None:
    for seed in range(6):
        case = build(modality, seed, dims=2)
        assert case.image.dims == 2 and case.image.shape == case.mask.shape == case.organs.shape
        assert set(np.unique(case.mask.array)) - {0}
        assert (case.organs.array > 0).mean() > 0.25


def test_shape_and_spacing_keep_the_field_of_view() -> None:
    assert build("mr", 1, shape=(48, 56, 40)).image.spacing_mm == pytest.approx((4, 4, 4))
    assert build("ct", 1, dims=2, spacing_mm=(5.6, 5.6)).image.shape == (64, 64)
    crop = build("mr", 1, shape=(20, 22, 24), spacing_mm=(3, 3, 3), lesions=1).image
    assert crop.shape == (20, 22, 24) and crop.spacing_mm == pytest.approx((3, 3, 3))


def test_lesions_keep_their_size_on_every_grid() -> None:
    volumes = []
    for spacing in (2.0, 3.0):
        mask = build("mr", [9, 9], spacing_mm=(spacing,) * 3, lesions=4).mask.array
        volumes.append(mask.astype(bool).sum() * spacing**3)
    assert 0.3 < volumes[0] / volumes[1] < 3


def test_what_there_is_no_phantom_of_is_refused() -> None:
    with pytest.raises(Refused, match="INPUT_KIND"):
        build("us", 0)
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        build("ct", 0, shape=(64, 64))
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        build("mr", 0, dims=2, spacing_mm=(0, 1))


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_data_set_is_written_in_the_nnunet_layout(tmp_path: Path, modality: Modality) -> None:
    dims: Literal[2, 3] = 2 if modality == "ct" else 3
    shape = SMALL[modality][:dims]
    folder = write_phantoms(tmp_path / "set", modality, count=2, seed=4, dims=dims, shape=shape)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 2 and description["file_ending"] == ".nii.gz"
    assert description["licence"] == "CC0" and description["name"] and description["reference"]
    assert description["channel_names"] == {"0": {"ct": "CT", "mr": "FLAIR"}[modality]}
    assert {value: name for name, value in description["labels"].items()} == LESION_CLASSES[modality]
    for index in range(2):
        image, mask = phantom(modality, [4, index], dims=dims, shape=shape)
        read = nibabel.load(folder / "imagesTr" / f"{modality}phantom_{index:04d}_0000.nii.gz")
        label = nibabel.load(folder / "labelsTr" / f"{modality}phantom_{index:04d}.nii.gz")
        assert np.allclose(read.affine, image.affine, atol=1e-4) and np.allclose(read.affine, label.affine)
        assert (np.asarray(read.dataobj).reshape(image.array.shape) == image.array).all()
        assert (np.asarray(label.dataobj).reshape(mask.array.shape) == mask.array).all()


def test_masks_can_label_organs_around_the_lesions(tmp_path: Path) -> None:
    plain = write_phantoms(tmp_path / "plain", "ct", count=2, seed=4, shape=SMALL["ct"])
    folder = write_phantoms(tmp_path / "set", "ct", count=2, seed=4, shape=SMALL["ct"], organs=("liver", "lung"))
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {
        "background": 0, "nodule": 1, "liver-lesion": 2, "liver": 3, "lung": 4}
    for index in range(2):
        name = f"labelsTr/ctphantom_{index:04d}.nii.gz"
        mask, lesions = (np.asarray(nibabel.load(each / name).dataobj) for each in (folder, plain))
        organs = build("ct", [4, index], shape=SMALL["ct"]).organs.array[0]
        assert (np.where(mask > 2, 0, mask) == lesions).all() and (lesions > 0).any()
        for value, organ in ((3, "liver"), (4, "lung")):
            assert (mask == value).any() and (organs[mask == value] == ORGANS["ct"][organ]).all()
            assert ((mask == value) | (lesions > 0))[organs == ORGANS["ct"][organ]].all()
    with pytest.raises(Refused, match="LABEL_UNKNOWN"):
        write_phantoms(tmp_path / "none", "ct", count=1, seed=4, organs=("brain",))
    assert not (tmp_path / "none").exists()


def test_radiographs_are_written_as_png(tmp_path: Path) -> None:
    folder = write_phantoms(tmp_path / "set", "xray", count=1, seed=4, shape=(96, 96))
    assert json.loads((folder / "dataset.json").read_text())["file_ending"] == ".png"
    image, mask = phantom("xray", [4, 0], shape=(96, 96))
    rows = np.asarray(Image.open(folder / "imagesTr" / "xrayphantom_0000_0000.png"))
    labels = np.asarray(Image.open(folder / "labelsTr" / "xrayphantom_0000.png"))
    assert (rows == image.array[0].T).all() and (labels == mask.array[0].T).all()
    with pytest.raises(Refused, match="OUT_EXISTS"):
        write_phantoms(folder, "ct", count=1, seed=4)


def test_radiographs_are_written_in_class_folders(tmp_path: Path) -> None:
    folder = write_class_phantoms(tmp_path / "classes", count=3, seed=1, shape=(64, 64))
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    normal, opacity = IMAGE_CLASSES
    assert found == [f"{normal}/xrayphantom_0000.png", f"{normal}/xrayphantom_0002.png",
                     f"{opacity}/xrayphantom_0001.png"]  # fmt: skip
