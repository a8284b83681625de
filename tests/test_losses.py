"""What a generator minimises beside the game, against values that can be computed by hand."""

from __future__ import annotations

import pytest
import torch

from medgan.learning import losses


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
