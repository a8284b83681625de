"""The games and their penalties against finite differences and values that can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from medgan.config import Config, Penalty
from medgan.config import Objective as ObjectiveName
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import phantom
from medgan.learning import objectives
from medgan.learning.objectives import OBJECTIVES, penalty, penalty_of
from medgan.learning.task import Batch, Task
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.lesion import LesionTask
from medgan.learning.tasks.upscale import UpscaleTask
from medgan.learning.tasks.upscale_source import UpscaleSource

#: Logits away from the hinge's corners at -1 and 1.
REAL = torch.tensor([-2.3, -0.4, 0.6, 1.7, 4.0], dtype=torch.float64)
MADE = torch.tensor([3.1, -1.6, 0.2, -0.7, 1.4], dtype=torch.float64)


def test_every_name_of_the_settings_is_a_game_and_every_game_has_a_setting() -> None:
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))
    assert all(name == objective.name for name, objective in OBJECTIVES.items())


def test_own_penalties_are_those_of_the_papers() -> None:
    own = {name: penalty_of(objective, "own") for name, objective in OBJECTIVES.items()}
    assert own == {"relativistic": "r1r2", "wasserstein": "gradient-norm", "minimax": "none", "non-saturating": "none",
                   "least-squares": "none", "hinge": "none"}
    assert penalty_of(OBJECTIVES["hinge"], "r1") == "r1" and penalty_of(OBJECTIVES["wasserstein"], "none") == "none"


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("side", ["discriminator", "generator"])
def test_gradients_agree_with_finite_differences(name: str, side: str) -> None:
    play: Callable[[Tensor, Tensor], Tensor] = getattr(OBJECTIVES[name], side)
    together = torch.stack([REAL, MADE]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(play(*together), together, allow_unused=True)
    step = 1e-6
    for row in range(2):
        for column in range(len(REAL)):
            moved = torch.zeros_like(together)
            moved[row, column] = step
            with torch.no_grad():
                slope = (play(*(together + moved)) - play(*(together - moved))) / (2 * step)
            assert gradient[row, column].item() == pytest.approx(slope.item(), abs=1e-8)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("name", "slope"), [
    ("minimax", lambda real, made: -torch.sigmoid(made)), ("non-saturating", lambda real, made: -torch.sigmoid(-made)),
    ("relativistic", lambda real, made: -torch.sigmoid(real - made)), ("least-squares", lambda real, made: made - 1),
    ("hinge", lambda real, made: -torch.ones_like(made)), ("wasserstein", lambda real, made: -torch.ones_like(made))])
def test_generators_follow_the_known_slopes(name: str, slope: Callable[[Tensor, Tensor], Tensor]) -> None:
    made = MADE.clone().requires_grad_(True)
    OBJECTIVES[name].generator(REAL, made).backward()  # type: ignore[no-untyped-call]
    assert made.grad is not None
    torch.testing.assert_close(made.grad, slope(REAL, MADE) / len(MADE))


def test_only_the_minimax_generator_is_left_without_a_slope_when_the_discriminator_wins() -> None:
    slopes = {}
    for name, objective in OBJECTIVES.items():
        made = torch.tensor([-30.0], requires_grad=True)
        objective.generator(torch.tensor([30.0]), made).backward()  # type: ignore[no-untyped-call]
        assert made.grad is not None
        slopes[name] = made.grad.item()
    assert abs(slopes.pop("minimax")) < 1e-12
    assert slopes == pytest.approx({"relativistic": -1, "non-saturating": -1, "hinge": -1, "wasserstein": -1,
                                    "least-squares": -31})


def test_minimax_is_one_number_that_two_players_pull_at() -> None:
    minimax, other = OBJECTIVES["minimax"], OBJECTIVES["non-saturating"]
    value = minimax.discriminator(REAL, MADE)
    cross_entropy = -(torch.sigmoid(REAL).log().mean() + (1 - torch.sigmoid(MADE)).log().mean())
    assert value.item() == pytest.approx(cross_entropy.item()) == other.discriminator(REAL, MADE).item()
    # What the generator minimises is the part of the same number that it can move, negated.
    moved = MADE + 0.3
    assert (minimax.generator(REAL, moved) - minimax.generator(REAL, MADE)).item() == pytest.approx(
        (value - minimax.discriminator(REAL, moved)).item())
    nothing = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    even = minimax.discriminator(nothing, nothing)
    even.backward()  # type: ignore[no-untyped-call]
    assert even.item() == pytest.approx(2 * math.log(2)) and nothing.grad is not None
    assert torch.allclose(nothing.grad, torch.zeros_like(nothing.grad))


def test_least_squares_rests_at_its_targets() -> None:
    game = OBJECTIVES["least-squares"]
    real = torch.ones(3, requires_grad=True)
    made = torch.zeros(3, requires_grad=True)
    loss = game.discriminator(real, made)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and real.grad is not None and made.grad is not None
    assert not real.grad.any() and not made.grad.any()
    assert game.discriminator(real + 0.1, made).item() > 0 < game.discriminator(real, made - 0.1).item()
    assert game.generator(real, torch.ones(3)).item() == 0 < game.generator(real, torch.full((3,), 1.1)).item()


def test_the_hinge_rests_beyond_its_margins() -> None:
    game = OBJECTIVES["hinge"].discriminator
    assert game(torch.tensor([1.0, 9.0]), torch.tensor([-1.0, -9.0])).item() == 0
    assert game(torch.tensor([0.5, 9.0]), torch.tensor([-1.0, -0.5])).item() == pytest.approx(0.25 + 0.25)


def test_only_differences_count_in_the_relativistic_and_the_wasserstein_game() -> None:
    for name, objective in OBJECTIVES.items():
        moved = (objective.discriminator(REAL + 5, MADE + 5) - objective.discriminator(REAL, MADE)).abs().item()
        assert (moved < 1e-12) == (name in ("relativistic", "wasserstein"))
    relativistic = OBJECTIVES["relativistic"]
    assert relativistic.discriminator(REAL, MADE).item() == pytest.approx(relativistic.generator(MADE, REAL).item())
    assert OBJECTIVES["wasserstein"].discriminator(REAL, MADE).item() == pytest.approx(float(MADE.mean() - REAL.mean()))


def _linear(*weights: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    weight = torch.tensor(weights, requires_grad=True)
    return weight, lambda x: x @ weight + 7


def test_r1_and_r2_of_a_linear_critic_are_its_squared_slope() -> None:
    weight, critic = _linear(3.0, -4.0)
    real, made = torch.randn(6, 2), torch.randn(6, 2)
    for kind, times in (("r1", 1), ("r1r2", 2)):
        paid, parts = penalty(kind, critic, real, made, gamma=0.1)  # type: ignore[arg-type]
        assert set(parts) == ({"r1"} if kind == "r1" else {"r1", "r2"})
        assert all(part.item() == pytest.approx(25) for part in parts.values())
        assert paid.item() == pytest.approx(0.5 * 0.1 * 25 * times)
        (slope,) = torch.autograd.grad(paid, weight)
        torch.testing.assert_close(slope, 0.1 * times * weight.detach())


def test_r1_is_taken_on_real_and_r2_on_made_images() -> None:
    real, made = torch.full((4, 1, 3, 3), 2.0), torch.full((4, 1, 3, 3), 5.0)
    _, parts = penalty("r1r2", lambda x: 0.5 * x.square().sum(dim=(1, 2, 3)), real, made, gamma=1.0)
    assert parts["r1"].item() == pytest.approx(9 * 4) and parts["r2"].item() == pytest.approx(9 * 25)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 3.0])
def test_the_gradient_norm_penalty_pulls_the_slope_to_one(slope: float) -> None:
    weight, critic = _linear(0.6 * slope, 0.8 * slope)
    paid, parts = penalty("gradient-norm", critic, torch.randn(5, 2), torch.randn(5, 2), gamma=123.0)
    assert parts["slope"].item() == pytest.approx((slope - 1) ** 2, abs=1e-5)
    assert paid.item() == pytest.approx(10 * (slope - 1) ** 2, abs=1e-4)
    (pull,) = torch.autograd.grad(paid, weight)
    assert pull.isfinite().all()
    expected = 20 * (slope - 1) * torch.tensor([0.6, 0.8]) if slope else torch.zeros(2)
    torch.testing.assert_close(pull, expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_norm_is_taken_between_the_pairs() -> None:
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(dim=1)

    real, made = torch.zeros(200, 2), torch.tensor([[1.0, 10.0]]).repeat(200, 1)
    torch.manual_seed(0)
    penalty("gradient-norm", critic, real, made, gamma=1.0)
    share = seen[0][:, 0]
    torch.testing.assert_close(seen[0][:, 1], 10 * share)
    assert 0 <= share.min() < 0.1 and 0.9 < share.max() <= 1 and 0.4 < share.mean() < 0.6


def test_no_penalty_costs_nothing_and_asks_nothing() -> None:
    def critic(x: Tensor) -> Tensor:
        raise AssertionError("asked")

    paid, parts = penalty("none", critic, torch.randn(2, 2), torch.randn(2, 2), gamma=1.0)
    assert paid.item() == 0 and parts == {}


@pytest.mark.parametrize("kind", ["r1", "r1r2", "gradient-norm"])
def test_the_remedy_multiplies_every_penalty(kind: Penalty) -> None:
    _, critic = _linear(3.0, -4.0)
    real, made = torch.randn(6, 2), torch.randn(6, 2)
    once, _ = penalty(kind, critic, real, made, gamma=0.1)
    twice, parts = penalty(kind, critic, real, made, gamma=0.1, scale=torch.tensor(2.0))
    assert twice.item() == pytest.approx(2 * once.item()) and once.item() > 0
    assert all(part.item() == pytest.approx(16 if name == "slope" else 25) for name, part in parts.items())


@pytest.mark.parametrize("kind", ["r1r2", "gradient-norm"])
def test_penalties_are_computed_in_fp32_inside_autocast(kind: Penalty) -> None:
    seen = set()

    def critic(x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, torch.ones(1, 3))
        seen.add(y.dtype)
        return y[:, 0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty(kind, critic, torch.randn(2, 3).bfloat16(), torch.randn(2, 3), gamma=1.0)
    assert seen == {torch.float32}


def test_a_penaltys_own_gradient_agrees_with_finite_differences() -> None:
    weight = torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    images = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])

    def expected(w: Tensor) -> Tensor:
        return (2 * images.double() * w).square().sum(dim=1).mean()

    paid = objectives.zero_centred_penalty(lambda x: (x.double().square() * weight).sum(dim=1), images)
    assert paid.item() == pytest.approx(expected(weight).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(paid, weight)
    for index in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[index] = 1e-4
        slope = (expected(weight + step) - expected(weight - step)) / 2e-4
        assert gradient[index].item() == pytest.approx(slope.item(), rel=1e-5)


def _played(task: Task, batch: Batch, name: str, paid: Penalty) -> None:
    """Both players move by this objective, and the discriminator's weights feel game and penalty."""
    task.train()
    for player, network in task.players.items():
        for other in task.players.values():
            other.requires_grad_(other is network)
        loss, parts = task.loss(player, batch)
        assert loss.isfinite() and all(part.isfinite().all() for part in parts.values())
        loss.backward()  # type: ignore[no-untyped-call]
        if player == "discriminator":
            penalties = {"r1", "r2", "slope"} & set(parts)
            own = {"relativistic": {"r1", "r2"}, "wasserstein": {"slope"}}.get(name, set())
            assert penalties == ({"r1"} if paid == "r1" else own)
            assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("paid", ["own", "r1"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_lesion_task_plays_every_game(name: str, paid: Penalty, lesion_source: object) -> None:
    config = lesion_source.config.over(settings={"training.objective": name, "training.penalty": paid})  # type: ignore[attr-defined]
    torch.manual_seed(0)
    task = LesionTask(config, lesion_source.interface)  # type: ignore[attr-defined]
    _played(task, lesion_source.batch(0), name, paid)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def lesion_source(mr_set: Path, tiny: dict[str, object]) -> object:
    config = Config.resolve("mr", settings=tiny | {"data.dims": 2, "data.crop": 32})
    return LesionTask.source(open_dataset(mr_set), config)


@pytest.mark.parametrize("paid", ["own", "r1"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_image_task_plays_every_game(name: str, paid: Penalty, xray_classes: Path,
                                         tiny: dict[str, object]) -> None:
    config = Config.resolve("xray", "image", settings=tiny | {"training.objective": name, "training.penalty": paid})
    source = ImageTask.source(open_dataset(xray_classes), config)
    torch.manual_seed(0)
    _played(ImageTask(config, source.interface), source.batch(0), name, paid)


@pytest.mark.parametrize("paid", ["own", "r1"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_sharp_end_of_upscaling_plays_every_game(name: str, paid: Penalty) -> None:
    config = Config.resolve("mr", "upscale", settings={
        "network.width": 8, "training.batch": 4, "data.crop": 24, "training.precision": "fp32", "device": "cpu",
        "loss.adversarial": 1, "training.objective": name, "training.penalty": paid})
    source = UpscaleSource.from_volumes([phantom("mr", 3, shape=(48, 48, 40), spacing_mm=(1.6, 1.6, 1.6))[0]], config)
    torch.manual_seed(0)
    _played(UpscaleTask(config, source.interface), source.batch(0), name, paid)
