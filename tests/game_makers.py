"""A small game that the loop plays in tests: it learns to shift numbers, and what befalls it can be chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.learning import loop
from medgan.learning.objectives import penalty, relativistic_discriminator, relativistic_generator
from medgan.learning.task import Batch, Probe, Task


class Shift(Task):
    """A generator that shifts noise and a critic that sees one number; how they are played is the test's."""

    name: ClassVar[str] = "shift"
    generator: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(1, 1)
        self.critic = nn.Sequential(nn.Linear(1, 8), nn.LeakyReLU(), nn.Linear(8, 1))

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.critic, "generator": self.generator}

    @staticmethod
    def source(dataset: object, config: Config) -> Numbers:
        return Numbers()

    def sheet(self, generator: nn.Module, source: object) -> NDArray[np.uint8]:
        return np.zeros((1, 1, 3), np.uint8)


class Game(Shift):
    """A small game, and a hook that is called before and after each move's loss, to do harm."""

    name: ClassVar[str] = "game"
    moved: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moved", torch.zeros(()))
        self.harm: Callable[[str, Batch, Tensor], Tensor] = lambda player, batch, loss: loss
        self.made = 0.0

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        made = self.generator(torch.randn_like(batch["x"]))
        if player == "discriminator":
            self.moved.add_(1)
            game = relativistic_discriminator(self.critic(batch["x"]), self.critic(made.detach()))
            paid, parts = penalty("r1r2", lambda x: self.critic(x).squeeze(1), batch["x"], made.detach(), gamma=0.1)
            loss = game + paid
        else:
            loss, parts = relativistic_generator(self.critic(batch["x"]).detach(), self.critic(made)), {}
        return self.harm(player, batch, loss), parts

    def probe(self, generator: nn.Module, source: Any, count: int) -> Probe:
        with torch.no_grad():
            x = generator(torch.linspace(-2, 2, 8)[:, None]).reshape(8, 1, 1, 1).numpy() + np.float32(self.made)
        zeros = np.zeros(8, np.int64)
        return Probe(x, x, zeros, zeros)


class Numbers:
    """Batches around 3, a function of the step alone, which comes with them."""

    interface: ClassVar[dict[str, Any]] = {}

    def batch(self, step: int) -> Batch:
        rows = 3 + torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return {"x": rows, "step": torch.full((8,), step)}


def config(**training: Any) -> Config:
    given = {"images": 160, "batch": 8, "report_images": 40, "precision": "fp32", "rate": 1e-2} | training
    return Config.resolve("mr", settings={f"training.{name}": value for name, value in given.items()}, device="cpu")


def fresh(config: Config, game: type[Shift] = Game) -> loop.State:
    torch.manual_seed(0)
    return loop.State.fresh(game(), config.training)


def do_harm(state: loop.State, harm: Callable[[str, Batch, Tensor], Tensor]) -> None:
    assert isinstance(state.task, Game)
    state.task.harm = harm


def everything(state: loop.State) -> list[Tensor]:
    """All tensors that a state holds: weights, averages, and what optimisers remember."""
    memories = [value for optimiser in state.optimisers.values() for memory in optimiser.state.values()
                for _, value in sorted(memory.items())]
    return [*state.task.state_dict().values(), *state.average.state_dict().values(), *memories]
