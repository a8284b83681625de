"""The 2D segmenter, its augmentation, the volumes it reads, and what it is judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.layers import AffineTransform
from monai.transforms import AdjustContrast
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.metrics import augmentation
from medgan.metrics import segmentation as seg
from medgan.metrics.detection import FOUND_SHARE, detected, lesion_count
from medgan.metrics.examples import OUTSIDE
from medgan.metrics.labelled import Labelled, read_labelled

STEPS, CROP, BATCH = 50, 32, 4


def blob(seed: int, channels: int = 1) -> Labelled:
    """Noise in a disc of tissue, and a bright ball in it."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((37, 41, 12))
    tissue = (x - 18) ** 2 + (y - 20) ** 2 < 17**2
    middle = [18 + rng.integers(-6, 7), 20 + rng.integers(-6, 7), rng.integers(3, 9)]
    ball = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + 4 * (z - middle[2]) ** 2 < 25
    image = np.where(tissue, rng.normal(-0.2, 0.1, (channels, 37, 41, 12)) + 0.8 * ball, OUTSIDE).astype(np.float32)
    return Labelled(image, ball.astype(np.uint8), patient=f"p{seed}",
                    tissue=tuple(int(n) for n in tissue.sum(axis=(0, 1))))


def trained(volumes: list[Labelled], seed: int = 1, steps: int = STEPS, **more: object) -> seg.SmallUNet:
    return seg.train_segmenter(volumes, 1, steps=steps, seed=seed, dims=2, crop=CROP, batch=BATCH,
                               **{"augmentation": "geometric", **more})  # type: ignore[arg-type]


def weights(model: seg.SmallUNet) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_the_2d_network_learns_a_ball_in_other_patients() -> None:
    model = trained([blob(n, 2) for n in range(3)])
    for test in (blob(100 + n, 2) for n in range(2)):
        found, chances = seg.segment(model, test.image), seg.foreground(model, test.image)
        assert found.shape == chances.shape == test.labels.shape
        assert ((chances >= 0.5) == (found == 1)).mean() > 0.999, "one label is found from a half on"
        assert seg.dice(found, test.labels, 1)[0] > 0.5


def test_slices_are_segmented_each_by_itself() -> None:
    model, test = trained([blob(0)], steps=3), blob(1)
    alone = np.stack([seg.foreground(model, test.image[..., k : k + 1])[..., 0] for k in range(12)], axis=-1)
    assert np.allclose(alone, seg.foreground(model, test.image), atol=1e-2)


def test_the_same_seed_learns_the_same_and_arms_start_alike() -> None:
    training = [blob(0), blob(1)]
    first, again, other = (weights(trained(training, seed, 2)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    plain = weights(trained(training, 3, 2, augmentation="none"))
    assert not torch.equal(first, plain), "augmentation does something"


def test_the_edge_of_2d_patches_halves_three_times() -> None:
    with pytest.raises(Refused, match="not a multiple of 8"):
        seg.train_segmenter([blob(0)], 1, steps=1, seed=0, dims=2, crop=36)


def test_half_of_the_patches_lie_around_a_lesion_and_all_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = seg._patch

    def spy(*given: object) -> object:
        made = real(*given)  # type: ignore[arg-type]
        seen.append(made)
        return made

    monkeypatch.setattr(seg, "_patch", spy)
    volume = blob(0)
    sparse = Labelled(np.tile(volume.image, (1, 1, 1, 8)), np.concatenate([volume.labels, *[volume.labels * 0] * 7], 2))
    seg.train_segmenter([sparse], 1, steps=25, seed=0, dims=2, crop=CROP, batch=BATCH, augmentation="geometric")
    assert len(seen) == 100 and all(image.shape == (1, CROP, CROP) for image, _ in seen)
    share = np.mean([bool(labels.any()) for _, labels in seen])
    assert 0.35 < share < 0.75, "of the others one in sixteen"


def test_augmentation_moves_image_and_labels_alike_and_leaves_the_outside() -> None:
    rng = np.random.default_rng(0)
    volume = blob(0)
    middle = int(np.argmax(volume.areas_mm2))
    lesion = volume.labels[..., middle]
    image = np.where(lesion > 0, 0.9, np.where(volume.image[0, ..., middle] > OUTSIDE, -0.4, OUTSIDE))
    images = torch.from_numpy(image.astype(np.float32))[None, None].repeat(16, 1, 1, 1)
    labels = torch.from_numpy(lesion)[None, None].repeat(16, 1, 1, 1)
    moved, masks = augmentation.disturbed(images, labels, rng)
    assert masks.dtype == labels.dtype and len({mask.numpy().tobytes() for mask in masks}) == 16, "each by itself"
    for one, mask in zip(moved[:, 0].numpy(), masks[:, 0].numpy(), strict=True):
        bright = one > (one.max() + np.median(one[one > OUTSIDE])) / 2
        assert 2 * (bright & (mask > 0)).sum() / (bright.sum() + mask.sum()) > 0.85
        assert (one[:2, :2] == OUTSIDE).all(), "what lies outside stays so"
    again, _ = augmentation.disturbed(images, labels, np.random.default_rng(0))
    assert torch.equal(moved, again)


def test_augmentation_is_what_monai_does(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(np.random.default_rng(1).uniform(0.2, 1.8, (1, 1, 20, 20)).astype(np.float32))
    image[..., 0, 0] = 0
    for name in ("SCALE", "SHIFT"):
        monkeypatch.setattr(augmentation, name, 0.0)
    monkeypatch.setattr(augmentation, "OFTEN", 1.0)
    monkeypatch.setattr(augmentation, "GAMMA", (1.4, 1.4))
    expected = torch.as_tensor(AdjustContrast(1.4)(image[0]))
    assert torch.allclose(augmentation.contrasted(image, np.random.default_rng(0))[0], expected, atol=1e-4)
    # A quarter turn and no more: the picture is turned by just that.
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    turned = AffineTransform(normalized=True, align_corners=False, padding_mode="zeros")(image, quarter)
    assert any(torch.allclose(turned[0, 0], torch.rot90(image[0, 0], k), atol=1e-3) for k in (1, 3))


def test_lesions_are_counted_one_by_one() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[1:6, 1:6, 1:5] = 1  # 100 voxels
    labels[10:14, 10:15, 10:15] = 1  # 100 voxels
    labels[17, 17, 17] = 1  # too small to count
    labels[14, 15, 15] = 1  # touches the second at a corner: part of it
    truth = Labelled(np.zeros((1, 20, 20, 20), np.float32), labels, tissue=(400,) * 20)
    assert lesion_count(truth) == 2
    chances = np.zeros(labels.shape)
    chances[1:6, 1, 1:3] = 0.5  # 10 of the first's 100: just enough
    chances[10, 10:15, 10] = chances[11, 10:15, 10] = 0.9  # 10 of the second's 101: not enough
    chances[0, 15:19, 0] = 1.0  # none at all
    chances[19, 0, 19] = 1.0  # less than counts
    found = detected(chances, truth)
    assert FOUND_SHARE == 0.1
    assert (found.lesions, found.found, found.false_positives) == (2, 1, 1) and found.sensitivity == 0.5
    assert found.dice == pytest.approx(2 * 20 / (20 + 5 + 202))
    # Slices 15 and 17 have one voxel of lesion and are neither with nor without.
    assert len(found.slices) == 18 and found.slices[10] == pytest.approx(0.9) and found.slices[5] == 0


def test_nothing_to_find_has_no_dice_but_false_positives() -> None:
    truth = Labelled(np.zeros((1, 8, 8, 4), np.float32), np.zeros((8, 8, 4), np.uint8), spacing_mm=(2.0, 2.0, 2.0))
    chances = np.zeros((8, 8, 4))
    chances[2, 2, 2] = 1
    found = detected(chances, truth)
    assert np.isnan(found.dice) and np.isnan(found.sensitivity) and found.false_positives == 1
    perfect = blob(3)
    found = detected(perfect.labels.astype(float), perfect)
    assert (found.dice, found.sensitivity, found.false_positives) == (1.0, 1.0, 0)


def test_volumes_are_read_on_the_working_grid(mr_set: Path) -> None:
    whole = open_dataset(mr_set)
    config = Config.resolve("mr", "lesion")
    fine, coarse = (read_labelled(whole, whole.cases, config, spacing) for spacing in (None, 3.0))
    for case, one, other in zip(whole.cases, fine, coarse, strict=True):
        image, mask = whole.load(case)
        assert mask is not None and one.patient == case.patient and one.case == case.id
        assert one.image.dtype == np.float32 and one.image.shape[1:] == one.labels.shape
        assert one.labels.max() == 1 and one.labels.sum() == (mask.array > 0).sum(), "all lesions, whole"
        assert one.spacing_mm == pytest.approx(image.spacing_mm) and other.spacing_mm == (3.0, 3.0, 3.0)
        assert (one.image[:, 0] == OUTSIDE).all() and (one.image[:, :, -1] == OUTSIDE).all()
        volumes = [labelled.labels.sum() * np.prod(labelled.spacing_mm) for labelled in (one, other)]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.3)
        middles = [np.array(ndimage.center_of_mass(each.image[0] > OUTSIDE)) * each.spacing_mm for each in (one, other)]
        assert middles[1] == pytest.approx(middles[0], abs=4)
        assert len(one.tissue) == one.labels.shape[2] and min(one.tissue) > 0
    with pytest.raises(ValueError):
        read_labelled(whole, whole.cases, config, channels=["CT"])


def test_organs_are_no_lesions_and_do_not_say_where_to_look(mr_set: Path) -> None:
    whole = open_dataset(mr_set)
    organ, name = next((value, name) for value, name in whole.labels.items() if value)
    every, fewer = (read_labelled(whole, whole.cases, Config.resolve("mr", "lesion", settings=settings))
                    for settings in ({}, {"data.organs": (name,)}))
    for case, one, other in zip(whole.cases, every, fewer, strict=True):
        mask = whole.load(case)[1]
        assert mask is not None
        assert int(one.labels.sum()) - int(other.labels.sum()) == (mask.array == organ).sum()
        assert (one.image == other.image).all()
