"""The objective and its penalties against values that can be computed by hand or by finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from medgan.learning import losses


def test_relativistic_losses_are_softplus_of_the_margin_and_mirror_each_other() -> None:
    real, made = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(1.0))) / 2
    assert losses.relativistic_discriminator(real, made).item() == pytest.approx(expected, rel=1e-6)
    assert losses.relativistic_generator(made, real).item() == pytest.approx(expected, rel=1e-6)


def test_generator_gradient_does_not_vanish_when_the_discriminator_wins() -> None:
    made = torch.tensor([-30.0], requires_grad=True)
    losses.relativistic_generator(torch.tensor([30.0]), made).backward()
    assert made.grad is not None and made.grad.item() == pytest.approx(-1.0, abs=1e-6)


def test_penalty_is_the_squared_gradient_norm_and_its_own_gradient_is_right() -> None:
    weight = torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64, requires_grad=True)

    def critic(x: torch.Tensor) -> torch.Tensor:
        return (x.to(weight.dtype) ** 2 * weight).sum(dim=1)

    images = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    expected = ((2 * images.double() * weight) ** 2).sum(dim=1).mean()
    penalty = losses.zero_centred_penalty(critic, images)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(penalty, weight)
    for index in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[index] = 1e-4
        values = []
        for sign in (1, -1):
            moved = weight.detach() + sign * step
            values.append(((2 * images.double() * moved) ** 2).sum(dim=1).mean().item())
        assert gradient[index].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


def test_penalty_is_computed_in_fp32_inside_autocast() -> None:
    seen = []

    def critic(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x, torch.ones(1, 3))
        seen.append(y.dtype)
        return y[:, 0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses.zero_centred_penalty(critic, torch.randn(2, 3))
    assert seen == [torch.float32]


def test_sorted_distance_ignores_order_and_what_lies_outside_the_mask() -> None:
    real = torch.arange(16.0).reshape(1, 1, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    made = real.clone()
    made[..., :2, :] = made[..., :2, :].flip(-1)
    made[..., 2:, :] = 99
    assert losses.sorted_distance(real, made, mask).item() == pytest.approx(0, abs=1e-6)
    assert losses.sorted_distance(real, made + 2, mask).item() == pytest.approx(2, abs=1e-5)
    assert losses.sorted_distance(real, made, torch.zeros_like(mask)).item() == 0


def test_description_distance_is_that_of_the_quantiles_over_the_surroundings() -> None:
    made = torch.stack([torch.linspace(0, 1, 101), torch.linspace(2, 4, 101)]).reshape(1, 2, 101)
    mask, quantiles = torch.ones(1, 1, 101), torch.tensor([0.25, 0.75])
    level = torch.tensor([[0.5, 1.0]])
    wanted = torch.tensor([[-0.25, 0.25, 1.5, 2.5]])
    assert losses.description_distance(made, mask, level, wanted, quantiles).item() == pytest.approx(0, abs=1e-6)
    assert losses.description_distance(made, mask, level, wanted + 0.3, quantiles).item() == pytest.approx(0.3)
    assert losses.description_distance(made, mask * 0, level, wanted, quantiles).item() == 0


def test_masked_l1_averages_under_the_mask_only() -> None:
    a, b = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4) * 3
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0] = 1
    assert losses.masked_l1(a, b, mask).item() == pytest.approx(3)
    assert losses.masked_l1(a, b, mask * 0).item() == 0


def test_diversity_is_bounded_for_each_image() -> None:
    first, second = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    second[0] += 0.1
    second[1] += 10.0
    ratio = losses.diversity_ratio(first, second, torch.ones(2, 1, 4, 4), bound=0.2)
    assert ratio.item() == pytest.approx((0.1 + 0.2) / 2)
