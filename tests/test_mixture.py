"""The game on 25 Gaussians, through the project's own loop: who keeps all modes, and who loses which."""

from __future__ import annotations

import math

import pytest
import torch
from mixture_makers import GRID, SAMPLES, SPREAD, Mixture, Points, count, play

from medgan.config import Config
from medgan.learning.objectives import OBJECTIVES

#: Moves of each player after which the default has found all modes, and the classic games have long lost most.
STEPS = 3_500


def test_modes_are_counted_as_the_literature_does_and_more_strictly() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = SPREAD * torch.randn(SAMPLES, 2, generator=generator)
    even = count(GRID.repeat(SAMPLES // 25, 1) + noise)
    # Within three standard deviations in two dimensions: 1 - exp(-9 / 2).
    assert even.modes == even.touched == 25 and even.quality == pytest.approx(1 - math.exp(-4.5), abs=0.005)
    assert not even.diverged
    points = GRID.repeat(SAMPLES // 25, 1)
    points[: 25 * 91 : 25] += SPREAD * 4  # the first mode keeps 9 of its 100 samples, the second 10
    points[1 : 25 * 90 : 25] += SPREAD * 4
    rare = count(points)
    assert rare.modes == 24 and rare.touched == 25
    assert count(GRID[:1].repeat(100, 1)).modes == 1 and count(torch.zeros(100, 2) + 0.3).touched == 0
    assert count(torch.full((100, 2), 9.0)).diverged


def test_the_mixture_is_the_usual_one() -> None:
    x = Points((0, 1), 4_000).batch(0)["x"]
    assert x.shape == (2, 4_000, 2) and not torch.equal(x[0], x[1])
    distance, nearest = torch.cdist(x[0], GRID).min(dim=1)
    assert len(GRID) == 25 and torch.cdist(GRID, GRID).fill_diagonal_(9).min().item() == pytest.approx(40 * SPREAD)
    assert distance.square().mean().item() == pytest.approx(2 * SPREAD**2, rel=0.05)
    assert torch.bincount(nearest).min() > 100
    assert torch.equal(x, Points((0, 1), 4_000).batch(0)["x"])


def test_games_side_by_side_are_the_games_alone() -> None:
    """No game of a run feels another: neither its weights nor its losses."""
    config = Config.resolve("mr", device="cpu")
    pair, alone = Mixture(config, (3, 8)), Mixture(config, (8,))
    x = torch.randn(2, 6, 2)
    for one, other in ((pair.generator, alone.generator), (pair.critic, alone.critic)):
        torch.testing.assert_close(one(x.flatten(0, 1)).unflatten(0, (2, 6))[1], other(x[1]))
    logits = pair.critic(x.flatten(0, 1))
    logits[:6].sum().backward()  # type: ignore[no-untyped-call]
    assert all(not weight.grad[1].any() and weight.grad[0].any() for weight in pair.critic.weights)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_game_moves_towards_the_mixture(name: str) -> None:
    """A short game: nothing is lost to infinity, and made points lie about where the modes do."""
    kept = play(name, (0,), 30)
    assert len(kept) == 1 and not kept[0].diverged


@pytest.mark.slow
def test_the_default_keeps_all_modes_with_every_seed() -> None:
    kept = play("relativistic", (0, 1, 2, 3, 4), STEPS)
    assert [run.modes for run in kept] == [25] * 5, kept
    assert not any(run.diverged for run in kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minimax", "non-saturating"])
def test_the_classic_games_lose_modes(name: str) -> None:
    kept = play(name, (0, 1, 2), STEPS)
    assert all(run.modes < 13 and run.touched < 20 for run in kept), kept
