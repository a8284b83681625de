"""Walks, truncation, projection and attention, on generators and discriminators whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medgan.learning.image_networks import ImageDiscriminator
from medgan.learning.understanding import attention, between, project, truncated, variety


def test_a_walk_begins_and_ends_where_it_should_and_keeps_the_variance_of_noise() -> None:
    chance = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(4, 5_000, generator=chance), torch.randn(4, 2, 50, 50, generator=chance)]
                     for _ in range(2))
    walk = between(first, second, 7)
    assert len(walk) == 7
    for at, ends in ((0, first), (-1, second)):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(walk[at], ends, strict=True))
    assert all(float(tensor.std()) == pytest.approx(1, abs=0.03) for noise in walk for tensor in noise)


def test_truncation_draws_samples_together() -> None:
    noise = [torch.randn(16, 8, generator=torch.Generator().manual_seed(1))]
    spreads = [variety(truncated(noise, psi)[0]) for psi in (1.0, 0.5, 0.0)]
    assert spreads[1] == pytest.approx(0.5 * spreads[0], rel=1e-5) and spreads[2] == 0


def test_variety_is_the_mean_difference_of_pairs() -> None:
    images = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None].expand(3, 1, 4, 4)
    assert variety(images) == pytest.approx((1 + 3 + 2) / 3)
    assert variety(images[:1]) == 0


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_what_a_generator_can_make_is_found_and_what_it_cannot_is_not(shape: tuple[int, ...]) -> None:
    chance = torch.Generator().manual_seed(2)
    basis = torch.randn(int(np.prod(shape)), 6, generator=chance) / 6**0.5

    def draw(noise: list[Tensor]) -> Tensor:
        return torch.tanh(noise[0] @ basis.T).reshape(len(noise[0]), 1, *shape)

    latent = torch.randn(3, 6, generator=chance)
    wanted = draw([latent])
    found = project(draw, wanted, 6, seed=0)
    assert found.made.shape == tuple(wanted.shape) and found.latent.shape == (3, 6)
    assert (found.error < 0.06).all()
    assert np.abs(found.made - wanted.numpy()).max() < 0.2
    strange = torch.randn(3, 1, *shape, generator=chance)
    assert (project(draw, strange, 6, seed=0).error > 0.3).all()


class _Looks(nn.Module):
    """A discriminator that looks at one corner: bright there is real."""

    def __init__(self, corner: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity()])
        self.corner = corner

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.blocks[0](images)
        part = features[..., :8] if self.corner == 0 else features[..., -8:]
        return part.square().flatten(1).mean(dim=1) * (1 + classes), []


def test_attention_lies_where_the_discriminator_looks() -> None:
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    images[0, 0, :, 8:] = 0
    seen = attention(_Looks(0).requires_grad_(True), images, [torch.zeros(2)])
    assert seen.shape == (2, 16, 16) and seen.min() >= 0 and seen.max() <= 1
    assert seen[0, :, :8].mean() > 5 * seen[0, :, 8:].mean()


@pytest.mark.parametrize("size", [(28, 28), (32, 24, 16)])
def test_attention_of_the_image_discriminator_fits_its_images(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic = ImageDiscriminator(len(size), 1, 2, size=size, width=8)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(3, 1, *size)
    for made in (False, True):
        seen = attention(critic, images, [torch.tensor([0, 1, 1])], made=made)
        assert seen.shape == (3, *size) and np.isfinite(seen).all() and seen.min() >= 0 and seen.max() <= 1
    real, against = (attention(critic, images, [torch.tensor([0, 1, 1])], made=made) for made in (False, True))
    assert not np.allclose(real, against)
