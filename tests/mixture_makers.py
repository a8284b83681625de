"""The game on a grid of 25 Gaussians in the plane: the usual toy on which modes are counted.

Several games with seeds of their own are played side by side in one run of the project's loop: on networks this small
that takes a fraction of the time. They share the gradient limit, and a run that is taken back is so for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.errors import Refused
from medgan.learning import loop
from medgan.learning.objectives import OBJECTIVES, penalty, penalty_of
from medgan.learning.task import Batch, Parts, Task

#: Five by five modes two apart with a standard deviation of .05 (VEEGAN, Srivastava et al. 2017; PacGAN, Lin et al.
#: 2018), all divided by the spread of the grid, so that coordinates are of the order of one.
GRID = torch.cartesian_prod(torch.arange(-4.0, 5.0, 2.0), torch.arange(-4.0, 5.0, 2.0)) / math.sqrt(8)
SPREAD = 0.05 / math.sqrt(8)
#: Samples that modes are counted on: 100 a mode if all are drawn evenly.
SAMPLES = 2_500
#: A mode is kept from a tenth of its fair share on. (The literature counts it from one sample on: `touched`.)
LEAST = 10
#: Numbers that a sample is made from, and neurons of each of the three hidden layers.
LATENT, WIDTH = 2, 64
#: One in so many points has its penalties taken, as in the project's tasks.
PENALISED = 4
#: Octaves of waves that the discriminator sees beside the coordinates (Tancik et al. 2020): the modes are narrow, and
#: a plain network of this size takes tens of thousands of steps to see them.
OCTAVES = 5
#: What R1 and R2 have fallen to at the end, over what they were at the start.
END = 0.01


@dataclass(frozen=True)
class Kept:
    """What a generator draws of the mixture.

    Args:
        modes: Modes with at least `LEAST` samples within three standard deviations.
        touched: Modes with at least one.
        quality: Share of samples within three standard deviations of a mode.
        diverged: The loop took the run back or gave it up, or most samples lie outside the grid.
    """

    modes: int
    touched: int
    quality: float
    diverged: bool


class Layers(nn.Module):
    """One network for each seed, without normalisation; their batches lie one after the other."""

    def __init__(self, seeds: tuple[int, ...], inputs: int, outputs: int) -> None:
        super().__init__()
        self.games = len(seeds)
        sizes = [inputs, WIDTH, WIDTH, WIDTH, outputs]
        drawn = [torch.Generator().manual_seed(1_000 * inputs + seed) for seed in seeds]
        self.weights = nn.ParameterList(
            torch.stack([torch.randn(a, b, generator=g) for g in drawn]) * math.sqrt((2 if b == WIDTH else 1) / a)
            for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(len(seeds), 1, b) for b in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(games * B, inputs) -> (games * B, outputs)."""
        h = x.unflatten(0, (self.games, -1))
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, F.leaky_relu(h, 0.2) if number else h, weight)
        return h.flatten(0, 1)


class Critic(Layers):
    """Points to logits."""

    def __init__(self, seeds: tuple[int, ...]) -> None:
        super().__init__(seeds, 2 + 4 * OCTAVES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(games * B, 2) -> (games * B,)."""
        scale = 2.0 ** torch.arange(OCTAVES)
        waves = x[..., None] * (scale * math.pi / 2)
        seen = torch.cat([x, (waves.sin() / scale).flatten(1), (waves.cos() / scale).flatten(1)], dim=1)
        return super().forward(seen).squeeze(1)


class Mixture(Task):
    """Points in the plane from noise, a game for each seed."""

    name: ClassVar[str] = "mixture"
    generator: Layers

    def __init__(self, config: Config, seeds: tuple[int, ...]) -> None:
        super().__init__()
        self.generator, self.critic = Layers(seeds, LATENT, 2), Critic(seeds)
        self.objective = OBJECTIVES[config.training.objective]
        self.penalty = penalty_of(self.objective, config.training.penalty)
        self.gamma_start = self.gamma = config.training.gamma

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.critic, "generator": self.generator}

    def at(self, progress: float) -> None:
        """Lets R1 and R2 fall: under strong ones a discriminator is too smooth to see how narrow the modes are."""
        self.gamma = self.gamma_start * END**progress

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        real = batch["x"].flatten(0, 1)
        latent = noise(len(real))
        if player == "discriminator":
            with torch.no_grad():
                made = self.generator(latent)
            game = self.objective.discriminator(self.critic(real), self.critic(made))
            few = (x.unflatten(0, (self.critic.games, -1))[:, ::PENALISED].flatten(0, 1) for x in (real, made))
            paid, parts = penalty(self.penalty, self.critic, *few, gamma=self.gamma, scale=self.penalty_scale)
            return game + paid, {"game": game, **parts}
        with torch.no_grad():
            real_logits = self.critic(real)
        game = self.objective.generator(real_logits, self.critic(self.generator(latent)))
        return game, {"adversarial": game}

    @staticmethod
    def source(dataset: object, config: Config) -> Points:
        raise NotImplementedError

    def sheet(self, generator: nn.Module, source: object) -> NDArray[np.uint8]:
        raise NotImplementedError


def noise(count: int, generator: torch.Generator | None = None) -> Tensor:
    """(count, LATENT), even over a square of unit variance."""
    return math.sqrt(3) * (2 * torch.rand(count, LATENT, generator=generator) - 1)


class Points:
    """Points of the mixture (games, B, 2), a function of the step alone."""

    interface: ClassVar[dict[str, Any]] = {}

    def __init__(self, seeds: tuple[int, ...], count: int) -> None:
        self.seeds, self.count = seeds, count

    def batch(self, step: int) -> Batch:
        drawn = torch.Generator().manual_seed(loop.step_seed(sum(self.seeds) + 1_000, step))
        centres = GRID[torch.randint(len(GRID), (len(self.seeds), self.count), generator=drawn)]
        return {"x": centres + SPREAD * torch.randn(centres.shape, generator=drawn)}


def play(objective: str, seeds: tuple[int, ...], steps: int, *, batch: int = 128, **training: Any) -> list[Kept]:
    """Plays a game for each seed through the project's own loop, with the same settings for every objective.

    Args:
        objective: As `training.objective`.
        seeds: Of initial weights and of what is drawn.
        steps: Moves of each player.
        batch: Points a move.
        training: Other settings of `training`.
    """
    # The loop counts a batch by its first axis, so that an image is here a game's whole batch.
    games = len(seeds)
    given = {"objective": objective, "batch": games, "images": steps * games, "report_images": 200 * games,
             "rate": 5e-3, "rate_end": 5e-4, "beta1": 0.5, "gamma": 0.3, "ema_images": 40 * games,
             "precision": "fp32"} | training
    config = Config.resolve("mr", settings={f"training.{name}": value for name, value in given.items()}, device="cpu",
                            seed=sum(seeds))
    state = loop.State.fresh(Mixture(config, seeds), config.training)
    try:
        for _ in loop.train(state, Points(seeds, batch), config):
            pass
    except Refused as refused:
        if refused.code != "TRAINING_DIVERGED":
            raise
        return [Kept(0, 0, 0.0, True)] * games
    with torch.no_grad():
        drawn = state.average(noise(games * SAMPLES, torch.Generator().manual_seed(0))).unflatten(0, (games, -1))
    return [count(points, diverged=state.rollbacks > 0) for points in drawn]


def count(points: Tensor, *, diverged: bool = False) -> Kept:
    """Counts the modes that points (N, 2) keep."""
    distance, nearest = torch.cdist(points, GRID).min(dim=1)
    good = distance < 3 * SPREAD
    each = torch.bincount(nearest[good], minlength=len(GRID))
    outside = (points.abs().amax(dim=1) > GRID.abs().max() + 1).float().mean()
    return Kept(int((each >= LEAST).sum()), int((each > 0).sum()), float(good.float().mean()),
                diverged or bool(outside > 0.5))
