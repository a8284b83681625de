"""Health: divergence and collapse are made to happen on purpose, and are seen, named and treated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import medgan
from medgan.config import Config
from medgan.errors import Refused
from medgan.learning import checkpoints, health, loop
from medgan.learning.health import Finding, Health, Variety, in_words, variety
from medgan.learning.objectives import OBJECTIVES, penalty, penalty_of
from medgan.learning.task import Batch, Probe, Task

#: Two classes of three modes each in the plane, as images of 1 x 1 x 2.
MODES = torch.tensor([[[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], [[2.0, 0.7], [-2.0, 0.7], [0.0, -2.0]]])
SPREAD = 0.3


def _real(classes: Tensor, noise: torch.Generator) -> Tensor:
    picked = torch.randint(3, (len(classes),), generator=noise)
    return MODES[classes, picked] + SPREAD * torch.randn(len(classes), 2, generator=noise)


class Points:
    """Points of the modes, a function of the step alone; one of them is not finite at the steps in `holes`."""

    interface: ClassVar[dict[str, Any]] = {}

    def __init__(self, *holes: int) -> None:
        self.holes = holes

    def batch(self, step: int) -> Batch:
        noise = torch.Generator().manual_seed(step)
        classes = torch.randint(2, (32,), generator=noise)
        x = _real(classes, noise)
        x[3, 1] = float("nan") if step in self.holes else x[3, 1]
        return {"x": x, "class": classes}


class Plane(Task):
    """A class-conditional game on points; `stuck` makes the generator forget its noise from a step on."""

    name: ClassVar[str] = "plane"

    def __init__(self, config: Config, *, stuck: range = range(0)) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(4, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        self.objective = OBJECTIVES[config.training.objective]
        self.kind, self.gamma = penalty_of(self.objective, config.training.penalty), config.training.gamma
        self.stuck, self.moves, self.poisoned = stuck, 0, -1

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.critic, "generator": self.generator}

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        told = nn.functional.one_hot(batch["class"], 2).float()
        made = self.generator(torch.cat([torch.randn(len(told), 2), told], dim=1))

        def critic(x: Tensor) -> Tensor:
            return self.critic(torch.cat([x, told], dim=1)).squeeze(1)  # type: ignore[no-any-return]

        if player == "discriminator":
            self.moves += 1
            if self.moves == self.poisoned:
                with torch.no_grad():
                    self.generator[0].weight[0, 0] = float("inf")
            real_logits, made_logits = critic(batch["x"]), critic(made.detach())
            paid, parts = penalty(self.kind, critic, batch["x"], made.detach(), gamma=self.gamma,
                                  scale=self.penalty_scale)
            return self.objective.discriminator(real_logits, made_logits) + paid, {
                **parts, "margin": (real_logits - made_logits).detach().mean()}
        game = self.objective.generator(critic(batch["x"]).detach(), critic(made))
        if self.moves in self.stuck:
            # The noise is listened to less and less.
            game = 2 * self.generator[0].weight[:, :2].square().sum()
        return game, {"adversarial": game}

    def probe(self, generator: nn.Module, source: Any, count: int) -> Probe:
        noise = torch.Generator().manual_seed(0)
        classes = torch.arange(count) % 2
        told = nn.functional.one_hot(classes, 2).float()
        with torch.no_grad():
            made = generator(torch.cat([torch.randn(count, 2, generator=noise), told], dim=1))
        real = _real(classes, noise)
        shape = (count, 1, 1, 2)
        return Probe(made.reshape(shape).numpy(), real.reshape(shape).numpy(), classes.numpy(), classes.numpy())

    @staticmethod
    def source(dataset: object, config: Config) -> Points:
        raise NotImplementedError

    def sheet(self, generator: nn.Module, source: object) -> NDArray[np.uint8]:
        raise NotImplementedError


def _config(steps: int = 500, **training: Any) -> Config:
    given = {"images": 32 * steps, "batch": 32, "report_images": 1600, "precision": "fp32", "rate": 5e-3,
             "rate_end": 5e-3, "gamma": 0.1, "penalty": "r1", "ema_images": 300} | training
    return Config.resolve("mr", settings={f"training.{name}": value for name, value in given.items()}, device="cpu")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variety is expected from the first hundred steps on: these games are quick."""
    monkeypatch.setattr(health, "EXPECTED_STEPS", 100)


def _fresh(config: Config, **how: Any) -> loop.State:
    torch.manual_seed(0)
    return loop.State.fresh(Plane(config, **how), config.training)


def _finite(state: loop.State) -> bool:
    return health.finite([*state.task.state_dict().values(), *state.average.state_dict().values()])


def test_a_healthy_run_is_left_alone_and_its_figures_are_logged() -> None:
    config = _config()
    state = _fresh(config)
    steps = list(loop.train(state, Points(), config))
    assert not state.health.findings and not any(step.note for step in steps) and state.health.varied
    last = steps[-1].parts
    assert 0.5 < last["health/diversity"] < 1.5 and last["health/apart"] > 0.2
    assert {"health/discriminator_margin", "health/discriminator_gradient", "health/generator_gradient",
            "health/nearest_real"} <= set(last)
    assert "made images vary" in in_words(last) and "health/diversity" not in steps[0].parts
    assert float(state.task.penalty_scale) == 1 and float(state.task.ada_floor) == 0


def test_going_back_after_a_divergence_keeps_the_remedies_against_a_collapse() -> None:
    config = _config(steps=120)
    state = _fresh(config)
    for step in loop.train(state, Points(70), config):
        if step.images == 32 * 60 and not state.health.findings:
            state.task.penalty_scale.fill_(4)
            state.task.ada_floor.fill_(0.4)
    assert [finding.kind for finding in state.health.findings] == ["divergence"]
    assert float(state.task.penalty_scale) == 4 and float(state.task.ada_floor) == pytest.approx(0.4)


def test_a_batch_that_is_not_finite_is_passed_over() -> None:
    config = _config(steps=200)
    state = _fresh(config)
    steps = list(loop.train(state, Points(70), config))
    (finding,) = state.health.findings
    assert finding.kind == "divergence" and "loss was not finite" in finding.why
    assert finding.remedy == "back to 1600 images at half the learning rate" and finding.images == 70 * 32
    assert [step.finding for step in steps if step.finding] == [finding] and state.rate_scale == 0.5
    assert _finite(state) and steps[-1].images == config.training.images


def test_a_weight_that_is_not_finite_reaches_no_checkpoint(tmp_path: Path) -> None:
    config = _config(steps=100)
    state = _fresh(config)
    state.task.poisoned = 70  # type: ignore[assignment]
    for _ in loop.train(state, Points(), config):
        assert _finite(state)
        checkpoints.save_state(state, tmp_path)
        assert checkpoints.load_state(_fresh(config), tmp_path)
    assert [finding.kind for finding in state.health.findings] == ["divergence"]


def test_a_weight_that_no_loss_feels_is_seen_too() -> None:
    config = _config(steps=100)
    state = _fresh(config)
    state.task.generator.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    state.average.register_parameter("idle", nn.Parameter(torch.zeros(3), requires_grad=False))
    steps = loop.train(state, Points(), config)
    for step in steps:
        if step.images == 1600 + 32:
            with torch.no_grad():
                state.task.generator.idle[1] = float("inf")
            break
    found = next(step.finding for step in steps if step.finding)
    assert "weight was not finite" in found.why and _finite(state)


def test_a_game_that_diverges_by_itself_is_seen() -> None:
    """A Wasserstein critic whose slope nothing bounds."""
    config = _config(objective="wasserstein", penalty="none", rate=2e-2, rate_end=2e-2, beta1=0.9)
    state = _fresh(config)
    with pytest.raises(Refused) as refused:
        list(loop.train(state, Points(), config))
    assert refused.value.code == "TRAINING_DIVERGED" and "margin" in str(refused.value)
    assert all("ran away" in finding.why for finding in state.health.findings)


def test_a_learning_rate_that_diverges_is_halved_and_then_given_up() -> None:
    config = _config(steps=1000, rate=30.0, rate_end=30.0)
    state = _fresh(config)
    with pytest.raises(Refused) as refused:
        list(loop.train(state, Points(), config))
    assert refused.value.code == "TRAINING_DIVERGED" and "3 times" in str(refused.value)
    assert [finding.kind for finding in state.health.findings] == ["divergence"] * 3
    assert state.rate_scale == 0.125 and _finite(state)


@pytest.mark.parametrize(("jolted", "back", "times"), [(405, 12800, 1), (400, 11200, 2)])
def test_a_run_that_explodes_late_is_brought_back_to_where_it_was_well(jolted: int, back: int, times: int) -> None:
    """At 400 the jolt is part of the last report's state, so that going back there does not help."""
    config = _config(steps=450)
    state = _fresh(config)
    found, done = None, False
    for step in loop.train(state, Points(), config):
        if step.images == 32 * jolted and not done:
            done = True
            # A jolt that leaves every number finite.
            with torch.no_grad():
                for parameter in state.task.critic.parameters():  # type: ignore[union-attr]
                    parameter.mul_(40)
        found = step.finding or found
    assert found is not None and found.kind == "divergence" and "ran away" in found.why
    assert found.remedy.startswith(f"back to {back} images") and len(state.health.findings) == times


def test_a_generator_that_forgets_its_noise_is_taken_back_and_recovers() -> None:
    config = _config(steps=700)
    state = _fresh(config, stuck=range(300, 520))
    steps = list(loop.train(state, Points(), config))
    found = [step.finding for step in steps if step.finding]
    assert [finding.kind for finding in found] == ["collapse"] and found == state.health.findings
    assert "hardly differed" in found[0].why
    assert "back to" in found[0].remedy and "2 times the penalty" in found[0].remedy
    assert "augmentation with at least 20% probability" in found[0].remedy
    assert float(state.task.penalty_scale) == 2 and float(state.task.ada_floor) == pytest.approx(0.2)
    assert steps[-1].parts["health/diversity"] > 0.5 and steps[-1].images == config.training.images


def test_remedies_against_a_collapse_that_lasts_end_and_say_so() -> None:
    config = _config(steps=1100)
    state = _fresh(config, stuck=range(200, 10_000))
    list(loop.train(state, Points(), config))
    found = state.health.findings
    assert [finding.kind for finding in found] == ["collapse"] * (health.REMEDIES + 1)
    assert "goes on as it is" in found[-1].remedy and float(state.task.penalty_scale) == 8
    assert state.images == config.training.images


def test_what_cannot_help_is_not_done() -> None:
    for training, margin, words in (
            ({"penalty": "none", "ada_cap": 0}, 2.0, "nothing could be done"),
            ({}, 0.01, "hardly tells"), ({"penalty": "none"}, 2.0, "augmentation with at least 20%")):
        config = _config(**training)
        state = _fresh(config)
        state.health.step({"discriminator/margin": margin})
        remedy = loop._treat(state, loop._snapshot(state), config.training, False)
        assert words in remedy and "times the penalty" not in remedy and float(state.task.penalty_scale) == 1
    assert loop._treat(state, {}, config.training, True) == "the run is over"


def test_a_resumed_run_meets_the_same_collapse_with_the_same_bits(tmp_path: Path) -> None:
    config = _config(steps=600)
    whole = _fresh(config, stuck=range(300, 2000))
    for step in loop.train(whole, Points(), config):
        if step.images == 32 * 375 and not (tmp_path / "state").exists():
            checkpoints.save_state(whole, tmp_path)
    resumed = _fresh(config, stuck=range(300, 2000))
    assert checkpoints.load_state(resumed, tmp_path)
    resumed.task.moves = 375  # type: ignore[assignment]
    assert resumed.health.past and resumed.health.recent and resumed.next_report == 32 * 400
    for _ in loop.train(resumed, Points(), config):
        pass
    assert [str(f).split("back to")[0] for f in resumed.health.findings] == [
        str(f).split("back to")[0] for f in whole.health.findings]


def test_health_survives_json() -> None:
    full = Health([Finding("collapse", 7, "a", "b")], {"x/margin": [0.1]}, {"x/margin": [1 / 3]}, True, 1, 2)
    assert Health.of(json.loads(json.dumps(full.numbers()))) == full


def test_a_slow_explosion_does_not_become_its_own_past() -> None:
    sick = Health()
    found = [sick.step({"generator/gradient": 0.5 * 1.01**step}) for step in range(2000)]
    first = next(step for step, why in enumerate(found) if why)
    assert 0.5 * 1.01**first < 3000 and "gradient norm ran away" in str(found[first])


def test_growth_below_the_floor_and_single_spikes_are_no_divergence() -> None:
    well = Health()
    rng = np.random.default_rng(0)
    for step in range(5000):
        norm = 0.01 + 20 * step / 5000 + abs(rng.normal()) + (1e4 if step % 50 == 7 else 0)
        assert well.step({"generator/gradient": norm, "discriminator/margin": rng.normal() * 5}) is None
    assert max(len(past) for past in well.past.values()) <= health.REMEMBERED


def _probe(made: NDArray[np.float64], real: NDArray[np.float64]) -> Probe:
    zeros = [np.zeros(len(values), np.int64) for values in (made, real)]
    return Probe(made.astype(np.float32), real.astype(np.float32), zeros[0], zeros[1])


def test_variety_of_known_answer() -> None:
    rng = np.random.default_rng(0)
    real, again = rng.normal(size=(2, 60, 1, 16, 16))
    found = variety(_probe(again, real))
    assert found is not None and all(0.9 < value < 1.1 for value in (found.diversity, found.apart, found.nearest_real))
    half = variety(_probe(0.5 * again, real))
    assert half is not None and half.diversity == pytest.approx(0.5, abs=0.03) and not half.below()
    one = variety(_probe(np.repeat(again[:1], 60, axis=0) + 1e-3 * again, real))
    assert one is not None and one.diversity < 0.01 and one.below()
    # Five images again and again: far from each other, and yet a collapse.
    few = variety(_probe(np.tile(again[:5], (12, 1, 1, 1)) + 1e-3 * again, real))
    assert few is not None and few.diversity > 0.7 and few.apart < 0.01 and few.below()
    copies = variety(_probe(real + 0.01 * again, real))
    assert copies is not None and copies.nearest_real < 0.05 and not copies.below()


def test_real_images_met_again_and_again_count_once() -> None:
    """A few real lesions stand for many requests: none of them is its own neighbour at no distance."""
    rng = np.random.default_rng(0)
    real, again = rng.normal(size=(2, 12, 1, 16, 16))
    found = variety(_probe(again, np.concatenate([real, real[:6]])))
    assert found == variety(_probe(again, real)) and found is not None and 0.9 < found.apart < 1.1
    one = variety(_probe(np.repeat(again[:1], 24, axis=0) + 1e-3 * again[0], np.tile(real, (2, 1, 1, 1))))
    assert one is not None and one.apart < 0.01 and one.below()


def test_the_least_varied_class_is_judged_and_tiny_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(2, 40, 1, 8, 8)).astype(np.float32)
    classes = np.repeat([0, 1], 20)
    made[20:] = made[20]
    found = variety(Probe(made, real, classes, classes))
    assert found is not None and found.diversity == 0
    assert variety(Probe(made[:3], real[:3], classes[:3], classes[:3])) is None


def test_large_images_are_compared_small() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(12, 2, 70, 60, 9))
    assert health._flat(real.astype(np.float32)).shape == (12, 2 * 23 * 20 * 3)
    assert variety(_probe(real, real)) == Variety(1.0, 1.0, 0.0)


@pytest.mark.slow
def test_a_collapsing_image_run_says_so_in_log_card_and_progress(xray_classes: Path, tmp_path: Path,
                                                                 tiny: dict[str, object],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    from medgan.learning.tasks.image import ImageTask
    from medgan.learning.tasks.image_source import sample
    from medgan.verbs.progress import Progress

    def probe(task: Any, generator: nn.Module, source: Any, count: int) -> Probe:
        made = np.concatenate([sample(generator, index, 12, 3) for index in (0, 1)])
        return Probe(made, source.images, np.repeat([0, 1], 12), source.labels)

    monkeypatch.setattr(ImageTask, "probe", probe)
    # Anything less varied than ten times the real images counts as collapsed: what is tested is what is then done.
    monkeypatch.setattr(health, "LEAST_DIVERSITY", 10.0)
    monkeypatch.setattr(health, "EXPECTED_STEPS", 1)
    told: list[Progress] = []
    run = medgan.train(xray_classes, modality="xray", out=tmp_path / "run", progress=told.append,
                       settings=tiny | {"training.images": 96})
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert any("collapse" in line["note"] for line in lines)
    assert "collapse at" in (run.path / "MODEL_CARD.md").read_text()
    assert any(progress.stage == "collapse" for progress in told)
    assert all("health/diversity" in line for line in lines)
