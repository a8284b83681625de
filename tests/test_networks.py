"""The networks in 2D and 3D: shapes, what they start as, and what they depend on."""

from __future__ import annotations

import pytest
import torch

from medgan.learning.networks import (
    LesionDiscriminator,
    LesionGenerator,
    LesionReader,
)


def _lesion_inputs(dims: int, channels: int = 2, labels: int = 3) -> dict[str, torch.Tensor]:
    size = (16,) * dims
    return {"filled": torch.randn(2, channels, *size), "void": torch.ones(2, 1, *size),
            "distance": torch.zeros(2, 1, *size), "labels": torch.zeros(2, labels, *size),
            "condition": torch.zeros(2, labels + 2)}


@pytest.mark.parametrize("dims", [2, 3])
def test_lesion_generator_starts_as_the_smooth_fill_and_then_follows_noise_and_condition(dims: int) -> None:
    torch.manual_seed(0)
    generator = LesionGenerator(dims, 2, 3, width=8, levels=3, noise=4)
    inputs = _lesion_inputs(dims)

    def noise() -> list[torch.Tensor]:
        return [torch.randn(2, *shape) for shape in generator.noise_shapes((16,) * dims)]

    drawn = noise()
    assert torch.equal(generator(**inputs, noise=drawn), inputs["filled"])
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    one = generator(**inputs, noise=drawn)
    assert one.shape == inputs["filled"].shape
    assert (one - inputs["filled"]).abs().max() <= LesionGenerator.reach
    assert not torch.equal(one, generator(**inputs, noise=noise()))
    assert not torch.equal(one, generator(**{**inputs, "condition": torch.ones(2, 5)}, noise=drawn))


@pytest.mark.parametrize("dims", [2, 3])
def test_lesion_discriminator_gives_a_logit_an_image_and_features_a_level(dims: int) -> None:
    inputs = _lesion_inputs(dims)
    critic = LesionDiscriminator(dims, 2, 3, width=8, levels=3)
    logits, features = critic(inputs["filled"], inputs["void"], inputs["labels"], inputs["condition"])
    assert logits.shape == (2,) and [f.shape[1] for f in features] == [8, 16, 32]
    assert not any(isinstance(m, torch.nn.GroupNorm | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)
                   for m in critic.modules())


@pytest.mark.parametrize("dims", [2, 3])
def test_lesion_networks_hear_the_texture_cluster(dims: int) -> None:
    torch.manual_seed(0)
    inputs = _lesion_inputs(dims) | {"condition": torch.zeros(2, 3 + 4 + 2)}
    other = inputs["condition"].clone()
    other[:, 5] = 1
    generator = LesionGenerator(dims, 2, 3, width=8, levels=3, noise=4, textures=4)
    critic = LesionDiscriminator(dims, 2, 3, width=8, levels=3, textures=4)
    for parameter in [*generator.parameters(), *critic.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    noise = [torch.randn(2, *shape) for shape in generator.noise_shapes((16,) * dims)]
    one = generator(**inputs, noise=noise)
    assert not torch.equal(one, generator(**inputs | {"condition": other}, noise=noise))
    logits, _ = critic(one, inputs["void"], inputs["labels"], inputs["condition"])
    assert not torch.equal(logits, critic(one, inputs["void"], inputs["labels"], other)[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_the_latent_of_a_lesion_is_drawn_first_and_changes_it_as_a_whole(dims: int) -> None:
    torch.manual_seed(0)
    generator = LesionGenerator(dims, 2, 3, width=8, levels=3, noise=4, latent=5)
    shapes = generator.noise_shapes((16,) * dims)
    assert shapes[0] == (5, *(1,) * dims)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = _lesion_inputs(dims)
    noise = [torch.randn(2, *shape) for shape in shapes]
    one, other = (generator(**inputs, noise=[latent, *noise[1:]]) for latent in (noise[0], -noise[0]))
    assert (one != other).float().mean() > 0.9


@pytest.mark.parametrize("dims", [2, 3])
def test_lesion_reader_learns_where_a_bright_blob_is(dims: int) -> None:
    torch.manual_seed(0)
    reader = LesionReader(dims, 1, 2, width=8)
    image = 0.1 * torch.randn(2, 1, *(16,) * dims)
    image[(..., *[slice(4, 12)] * dims)] += 1
    wanted = torch.zeros(2, 2, *(8,) * dims)
    wanted[(slice(None), 1, *[slice(2, 6)] * dims)] = 1
    optimiser = torch.optim.Adam(reader.parameters(), lr=1e-2)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(reader(image), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    read = reader(image).sigmoid()
    assert read.shape == wanted.shape and read[wanted > 0].mean() > 0.8 and read[wanted == 0].mean() < 0.2
