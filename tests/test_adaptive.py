"""Adaptive augmentation: what it does to images, that it can be differentiated, and how its probability moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medgan.learning.adaptive import Augmentation, _moved, kept_by_cutout, next_probability

SHAPES = [(16, 16), (12, 20), (8, 12, 10)]


def test_the_probability_rises_while_the_discriminator_is_too_sure_and_falls_otherwise() -> None:
    sure, unsure = torch.ones(16), torch.tensor([1.0, -1.0] * 8)
    now = torch.zeros(())
    assert next_probability(now, unsure, 0.6, 0.8) == 0
    for _ in range(100):
        now = next_probability(now, sure, 0.6, 0.8)
    assert float(now) == pytest.approx(0.2)
    assert float(next_probability(now, unsure, 0.6, 0.8)) < 0.2
    assert float(next_probability(torch.tensor(0.8), sure, 0.6, 0.8)) == pytest.approx(0.8)
    assert float(next_probability(torch.zeros(()), unsure, 0.6, 0.8, floor=torch.tensor(0.3))) == pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8)])
def test_a_cut_is_a_box_in_as_many_images_as_asked_for(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kept = kept_by_cutout(torch.zeros(400, 1, *shape), 0.3)
    cut = (kept == 0).flatten(1).sum(1)
    assert 0.2 < float((cut > 0).float().mean()) < 0.4
    assert int(cut.max()) <= np.prod([n // 2 for n in shape])
    assert (kept_by_cutout(torch.zeros(4, 1, *shape), 0.0) == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_images_keep_their_shape_and_change_as_often_as_asked_for(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images, augment = torch.randn(64, 2, *shape), Augmentation()
    assert augment(images, 0.0) is images
    few, many = (augment(images, p) for p in (0.05, 0.7))
    assert few.shape == many.shape == images.shape

    def changed(seen: torch.Tensor) -> float:
        return float((seen != images).flatten(1).any(dim=1).float().mean())

    assert 0.1 < changed(few) < 0.5 < 0.9 < changed(many)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_seed_gives_one_augmentation_and_gradients_pass(shape: tuple[int, ...]) -> None:
    augment, images = Augmentation(), torch.randn(8, 1, *shape, requires_grad=True)
    torch.manual_seed(3)
    first = augment(images, 0.8)
    torch.manual_seed(3)
    assert torch.equal(first, augment(images, 0.8))
    assert not torch.equal(first, augment(images, 0.8))
    (gradient,) = torch.autograd.grad(first.sum(), images)
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


def test_gradients_agree_with_finite_differences() -> None:
    images = torch.randn(3, 1, 6, 8, dtype=torch.double, requires_grad=True)

    def seen(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        # Resampled in single precision, whatever comes in.
        return Augmentation(flips=(0,), intensity=True)(x.float(), 0.9).double()

    assert torch.autograd.gradcheck(seen, images, eps=1e-2, atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (32, 24), (20, 24, 16)])
def test_an_image_is_moved_not_distorted(shape: tuple[int, ...]) -> None:
    """A ball in the middle stays a ball of one brightness, whatever the edges' ratio."""
    torch.manual_seed(0)
    places = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    ball = (sum(p.square() for p in places) <= 25).float().expand(64, 1, *shape).clone()
    moved = _moved(ball, 1.0)
    lengths = []
    for axis in range(len(shape)):
        others = tuple(2 + a for a in range(len(shape)) if a != axis)
        profile = moved.sum(dim=others)[:, 0]
        index = torch.arange(shape[axis])
        mean = (profile * index).sum(1) / profile.sum(1)
        lengths.append(((profile * (index - mean[:, None]).square()).sum(1) / profile.sum(1)).sqrt())
    # A few images are shrunk so far that the mirrored border brings in a part of a second ball.
    apart = (lengths[0] / lengths[1] - 1).abs().quantile(0.9)
    assert float(apart) < 0.03, "a turn or shift has changed the ball's shape"
    assert float(lengths[0].std() / lengths[0].mean()) > 0.05, "no image was scaled"


def test_intensities_stay_where_they_are_absolute() -> None:
    torch.manual_seed(0)
    images = torch.where(torch.rand(64, 1, 16, 16) < 0.5, -1.0, 0.5)
    kept = Augmentation(intensity=False, flips=(0, 1))._mirrored(images, 0.8)
    assert set(kept.unique().tolist()) == {-1.0, 0.5}
    flat = torch.full((64, 1, 16, 16), 0.5)
    still = Augmentation(intensity=False)(flat, 0.8)
    assert torch.allclose(still[still != 0], torch.tensor(0.5)), "only a cut may change a flat image"
    changed = Augmentation(intensity=True)(flat, 0.8)
    assert not torch.allclose(changed[changed != 0], torch.tensor(0.5), atol=0.01)


def test_maps_go_to_the_same_places_as_the_image() -> None:
    torch.manual_seed(0)
    maps = torch.zeros(32, 2, 16, 16)
    maps[:, 1, 4:9, 6:14] = 1
    maps[:, 0] = 1 - maps[:, 1]
    image = maps[:, 1:].clone()
    seen = Augmentation(intensity=False)(image, 0.8, maps)
    assert seen.shape == (32, 3, 16, 16)
    assert torch.allclose(seen[:, 0], seen[:, 2], atol=1e-6)
    bright = Augmentation(intensity=True)(image, 0.8, maps)
    assert float(bright[:, 1:].max()) <= 1 + 1e-6 and float(bright[:, :1].max()) > 1.05
