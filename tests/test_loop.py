"""The one loop on a toy game: exact resume, averaging, rollback, budgets."""

from __future__ import annotations

from pathlib import Path

import game_makers as make
import pytest
import torch
from torch import Tensor, nn

from medgan.config import Config
from medgan.errors import Refused
from medgan.learning import checkpoints, loop
from medgan.learning.objectives import relativistic_discriminator, relativistic_generator
from medgan.learning.task import Batch


class Toy(make.Shift):
    """Notes its progress and how often it is asked for a loss, and gives none that is finite where it is poisoned."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.poison: set[int] = set()
        self.calls = 0

    def at(self, progress: float) -> None:
        self.seen.append(progress)

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        made = self.generator(torch.randn_like(batch["x"]))
        if player == "discriminator":
            game = relativistic_discriminator(self.critic(batch["x"]), self.critic(made))
        else:
            game = relativistic_generator(self.critic(batch["x"]).detach(), self.critic(made))
        if self.calls in self.poison:
            game = game * float("nan")
        return game, {"game": game}


def _fresh(config: Config) -> loop.State:
    return make.fresh(config, Toy)


def _weights(module: nn.Module) -> list[Tensor]:
    return [t.clone() for t in module.state_dict().values()]


def test_a_run_reports_ends_and_moves_towards_the_data() -> None:
    config = make.config(images=4000)
    state = _fresh(config)
    steps = list(loop.train(state, make.Numbers(), config))
    assert steps[-1].done and steps[-1].images == 4000 and sum(s.done for s in steps) == 1
    assert sum(s.report for s in steps) == 100
    with torch.no_grad():
        assert abs(float(state.average(torch.zeros(1, 1))) - 3) < 1.5
    assert state.task.seen[0] == 0 and state.task.seen[-1] > 0.99  # type: ignore[union-attr,operator,index]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = make.config()
    whole = _fresh(config)
    for _ in loop.train(whole, make.Numbers(), config):
        pass
    begun = _fresh(config)
    for step in loop.train(begun, make.Numbers(), config):
        if step.images == 80:
            checkpoints.save_state(begun, tmp_path)
            break
    torch.manual_seed(99)
    resumed = _fresh(config)
    assert checkpoints.load_state(resumed, tmp_path)
    assert resumed.images == 80 and resumed.step == 10
    for _ in loop.train(resumed, make.Numbers(), config):
        pass
    for a, b in ((whole.task, resumed.task), (whole.average, resumed.average)):
        assert all(torch.equal(x, y) for x, y in zip(_weights(a), _weights(b), strict=True))


def test_training_leaves_the_callers_random_state_alone_once_it_is_over() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    config = make.config()
    state = loop.State.fresh(Toy(), config.training)
    torch.manual_seed(7)
    for _ in loop.train(state, make.Numbers(), config):
        pass
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_not_finite_is_taken_back_and_never_kept() -> None:
    config = make.config()
    state = _fresh(config)
    state.task.poison = {25}  # type: ignore[assignment]
    steps = list(loop.train(state, make.Numbers(), config))
    assert state.rollbacks == 1 and state.rate_scale == 0.5
    assert [s for s in steps if "not finite" in s.note] and steps[-1].images == 160
    assert all(torch.isfinite(w).all() for w in _weights(state.task))


def test_a_run_that_cannot_be_saved_is_refused() -> None:
    config = make.config()
    state = _fresh(config)
    state.task.poison = set(range(1, 1000))  # type: ignore[assignment]
    with pytest.raises(Refused) as refused:
        list(loop.train(state, make.Numbers(), config))
    assert refused.value.code == "TRAINING_DIVERGED"


def test_a_run_given_in_minutes_fixes_its_length_and_stops() -> None:
    config = make.config(minutes=0.02, limit_minutes=0.02, images=10**9)
    state = _fresh(config)
    assert state.total is None
    steps = list(loop.train(state, make.Numbers(), config))
    assert steps[-1].done and state.total is not None and steps[-1].images < 10**7


def test_every_player_moves_alone() -> None:
    config = make.config(images=8)
    state = _fresh(config)
    before = _weights(state.task.generator)
    task = state.task
    original = Toy.loss

    def only_discriminator(self: Toy, player: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = original(self, player, batch)
        return (loss, parts) if player == "discriminator" else (loss * 0, parts)

    task.loss = only_discriminator.__get__(task)  # type: ignore[method-assign]
    for _ in loop.train(state, make.Numbers(), config):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(state.task.generator), strict=True))


def test_step_seeds_differ_between_steps_and_runs() -> None:
    seeds = {loop.step_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000 and all(0 <= s < 2**63 for s in seeds)
