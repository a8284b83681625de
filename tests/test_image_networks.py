"""The networks of whole images: one depth rule from 28² to 256² and 32³ to 64³, classes, label maps."""

from __future__ import annotations

import math

import pytest
import torch

from medgan.learning.image_networks import ImageDiscriminator, ImageGenerator, image_levels, shrunk

#: Spatial sizes and the coarsest grid that the depth rule gives.
SIZES = [((28, 28), (7, 7)), ((32, 32), (4, 4)), ((48, 40), (6, 5)), ((64, 64), (4, 4)), ((128, 128), (4, 4)),
         ((256, 256), (4, 4)), ((32, 32, 32), (4, 4, 4)), ((32, 48, 32), (4, 6, 4)), ((64, 64, 64), (4, 4, 4)),
         ((35, 51, 36), (5, 7, 5))]


@pytest.mark.parametrize(("size", "start"), SIZES)
def test_one_depth_rule_serves_all_sizes(size: tuple[int, ...], start: tuple[int, ...]) -> None:
    with torch.device("meta"):
        generator = ImageGenerator(len(size), 2, 3, size=size, width=16, latent=8)
        critic = ImageDiscriminator(len(size), 2, 3, size=size, width=16, placed=True)
        classes = torch.zeros(2, dtype=torch.long)
        images = generator(torch.zeros(2, 8), classes)
        logits, (pooled,) = critic(images, classes)
    assert images.shape == (2, 2, *size) and generator.start == start
    assert logits.shape == (2,) and pooled.shape[0] == 2
    assert len(generator.blocks) == len(critic.blocks) == image_levels(size)
    assert not any("norm" in type(m).__name__.lower() for net in (generator, critic) for m in net.modules())


@pytest.mark.parametrize("size", [(28, 28), (13, 18), (8, 12, 10)])
def test_a_real_pass_gives_finite_images_of_unit_spread(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    generator = ImageGenerator(len(size), 1, 2, size=size, width=8, latent=16)
    with torch.no_grad():
        images = generator(torch.randn(64, 16), torch.zeros(64, dtype=torch.long))
    assert images.shape == (64, 1, *size) and images.isfinite().all()
    # Heard from the first step: images differ by their latent vectors about as much as by anything else.
    assert 0.3 < float(images.std(dim=0).mean()) < 3
    assert float(images.std(dim=0).mean()) > 0.3 * float(images.mean(dim=0).std())


def test_classes_are_told_apart_by_both_players() -> None:
    torch.manual_seed(0)
    generator = ImageGenerator(2, 1, 3, size=(16, 16), width=8, latent=8)
    critic = ImageDiscriminator(2, 1, 3, size=(16, 16), width=8, placed=True)
    latent = torch.randn(1, 8).expand(3, -1)
    images = generator(latent, torch.arange(3))
    assert float((images[0] - images[1]).detach().std()) > 0.1
    logits, _ = critic(images[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert len(set(logits.tolist())) == 3


def test_blocks_start_as_the_identity() -> None:
    critic = ImageDiscriminator(2, 1, 1, size=(16, 16), width=8)
    generator = ImageGenerator(2, 1, 1, size=(16, 16), width=8, latent=8)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(critic.blocks[0](x), x)
    h = torch.randn(2, 32, 4, 4)
    assert torch.equal(generator.blocks[0](h, torch.randn(2, 16)), h)


def test_only_a_placed_discriminator_knows_where_things_are() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 32, 32)
    image[:, :, 6:10, 6:10] = 1
    moved, classes = image.roll((16, 16), (2, 3)), torch.zeros(1, dtype=torch.long)
    for placed in (False, True):
        critic = ImageDiscriminator(2, 1, 1, size=(32, 32), width=8, placed=placed)
        one, other = (critic(x, classes)[0].detach() for x in (image, moved))
        assert (abs(float(one - other)) > 1e-3 * abs(float(one))) == placed
    any_size = ImageDiscriminator(2, 1, 1, size=(32, 32), width=8)
    assert any_size(torch.randn(2, 1, 20, 44), torch.zeros(2, dtype=torch.long))[0].shape == (2,)


@pytest.mark.parametrize("size", [(28, 28), (16, 24), (13, 18), (8, 12, 10)])
def test_label_maps_reach_every_level_in_place(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    generator = ImageGenerator(len(size), 1, 1, size=size, width=4, latent=8, maps=2)
    for block in generator.blocks:
        torch.nn.init.normal_(block.second.weight, std=0.2)
    maps = torch.zeros(1, 2, *size)
    maps[:, 0] = 1
    corner = maps.clone()
    corner[(0, slice(None), *[slice(0, 3)] * len(size))] = torch.tensor([0.0, 1.0]).reshape(2, *[1] * len(size))
    latent, classes = torch.randn(1, 8), torch.zeros(1, dtype=torch.long)
    change = (generator(latent, classes, corner) - generator(latent, classes, maps)).abs()[0, 0].detach()
    near, far = change[tuple([slice(0, 3)] * len(size))], change[tuple([slice(-2, None)] * len(size))]
    assert float(near.mean()) > 3 * float(far.mean()) and float(near.mean()) > 0
    with pytest.raises(ValueError, match="label maps"):
        generator(latent, classes)
    with pytest.raises(ValueError, match="no label maps"):
        ImageGenerator(len(size), 1, 1, size=size, width=4, latent=8)(latent, classes, maps)


@pytest.mark.parametrize("size", [(28, 28), (13, 18), (35, 51, 36)])
def test_a_label_map_at_a_coarser_level_holds_shares_that_lie_where_the_image_does(size: tuple[int, ...]) -> None:
    maps = torch.rand(1, 1, *size).round()
    maps = torch.cat([maps, 1 - maps], dim=1)
    levels = image_levels(size)
    for level in range(levels):
        grid = [-(-n // 2 ** (levels - 1)) * 2 ** (levels - 1 - level) for n in size]
        small = shrunk(maps, grid)
        assert list(small.shape[2:]) == grid
        assert torch.allclose(small.sum(dim=1), torch.ones(()), atol=1e-5)
    whole = [-(-n // 2 ** (levels - 1)) * 2 ** (levels - 1) for n in size]
    wide = shrunk(maps, whole)
    for axis, n in enumerate(size, start=2):
        wide = wide.narrow(axis, (wide.shape[axis] - n) // 2, n)
    assert torch.equal(wide, maps)


def test_sizes_of_the_networks_follow_the_width() -> None:
    def count(width: int) -> int:
        return sum(p.numel() for p in ImageDiscriminator(2, 1, 2, size=(28, 28), width=width).parameters())

    assert math.isclose(count(16) / count(8), 4, rel_tol=0.2)
