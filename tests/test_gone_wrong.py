"""Learning that goes wrong: nothing that is not finite is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import game_makers as make
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import medgan
from medgan.config import Config
from medgan.errors import Refused
from medgan.learning import checkpoints, health, loop
from medgan.learning.task import Batch
from medgan.learning.tasks.lesion import LesionTask

NAN = float("nan")


def _saved_along(state: loop.State, config: Config, folder: Path) -> list[loop.Step]:
    """Trains, and saves and reads back after every step that is handed out: all of them must be good."""
    steps = []
    for step in loop.train(state, make.Numbers(), config):
        assert health.finite(make.everything(state))
        checkpoints.save_state(state, folder)
        assert checkpoints.load_state(make.fresh(config), folder)
        steps.append(step)
    return steps


def _of_loss(state: loop.State, at: int, player: str, how: str) -> None:
    def harm(who: str, batch: Batch, loss: Tensor) -> Tensor:
        if who != player or int(batch["step"][0]) != at:
            return loss
        if how == "gradient":
            # Finite itself, its slope is not.
            first = next(state.task.players[who].parameters()).flatten()[0]
            return loss + (first - first.detach()).abs().sqrt()
        return loss * float(how)

    make.do_harm(state, harm)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("player", ["discriminator", "generator"])
@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("at", [0, 4, 12])
def test_a_loss_or_gradient_that_is_not_finite_is_taken_back(how: str, player: str, precision: str, at: int,
                                                             tmp_path: Path) -> None:
    """At 0 nothing was kept yet but the start; 4 is the step that ends in a report."""
    config = make.config(precision=precision)
    state = make.fresh(config)
    _of_loss(state, at, player, how)
    steps = _saved_along(state, config, tmp_path)
    (found,) = [step.finding for step in steps if step.finding]
    what = "gradient norm" if how == "gradient" else "loss"
    assert found.kind == "divergence" and f"the {player}'s {what} was not finite" in found.why
    assert f"back to {at // 5 * 40} images at half" in found.remedy
    assert state.rate_scale == 0.5 and state.rollbacks == 1 and state.images == 160
    assert state.optimisers["generator"].param_groups[0]["lr"] < 0.51 * config.training.rate
    # The batch that did it is not met again.
    assert state.step == 160 // 8 + (at - at // 5 * 5) + 1


def _spoil(state: loop.State, where: str) -> None:
    assert isinstance(state.task, make.Game)
    with torch.no_grad():
        if where == "average":
            next(state.average.parameters()).view(-1)[0] = math.inf
        elif where == "optimiser":
            state.optimisers["generator"].state[state.task.generator.weight]["exp_avg_sq"].fill_(math.inf)
        elif where == "buffer":
            state.task.moved.fill_(NAN)
        else:
            state.task.made = NAN


@pytest.mark.parametrize("where", ["average", "optimiser", "buffer", "made"])
def test_what_no_loss_tells_is_seen_before_it_is_kept(where: str, tmp_path: Path) -> None:
    config = make.config()
    state, found = make.fresh(config), []
    for step in loop.train(state, make.Numbers(), config):
        if step.finding:
            found.append(step.finding)
            assert isinstance(state.task, make.Game)
            state.task.made = 0.0
        if step.report:
            assert health.finite(make.everything(state))
            checkpoints.save_state(state, tmp_path)
        if step.images == 72 and not found:
            _spoil(state, where)
    told = {"average": "averaged generator", "optimiser": "optimiser remembers", "buffer": "a weight",
            "made": "an image that the averaged generator made"}[where]
    assert [told in finding.why for finding in found] == [True] and "back to 40 images" in found[0].remedy
    assert state.images == 160 and health.finite(make.everything(state))


def test_a_state_that_is_not_finite_is_never_written_and_the_one_before_stays(tmp_path: Path) -> None:
    config = make.config()
    state = make.fresh(config)
    checkpoints.save_state(state, tmp_path)
    before = (tmp_path / "state" / "state.safetensors").read_bytes()
    _spoil(state, "average")
    with pytest.raises(Refused) as refused:
        checkpoints.save_state(state, tmp_path)
    assert refused.value.code == "CKPT_NONFINITE"
    with pytest.raises(Refused) as refused:
        checkpoints.save_weights(state.average, tmp_path / "weights.safetensors", {})
    assert refused.value.code == "CKPT_NONFINITE"
    assert (tmp_path / "state" / "state.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    with pytest.raises(Refused, match="before the first step") as refused:
        next(loop.train(state, make.Numbers(), config))
    assert refused.value.code == "CKPT_NONFINITE"


def _always(player: str, batch: Batch, loss: Tensor) -> Tensor:
    return loss * NAN if int(batch["step"][0]) >= 7 else loss


def test_after_three_times_the_last_good_state_is_what_remains() -> None:
    config = make.config()
    state, good = make.fresh(config), []
    make.do_harm(state, _always)
    with pytest.raises(Refused, match="3 times") as refused:
        for step in loop.train(state, make.Numbers(), config):
            if step.report:
                good = [tensor.clone() for tensor in make.everything(state)]
    assert refused.value.code == "TRAINING_DIVERGED"
    assert state.rate_scale == 0.125 and state.rollbacks == 3 and len(state.health.findings) == 3
    # Of two good states the older one is gone back to when the newer one did not help; here there is the start.
    assert state.images == 0 and health.finite(make.everything(state)) and good


def test_the_halved_rate_and_the_count_of_times_outlive_a_resume(tmp_path: Path) -> None:
    config = make.config()
    state = make.fresh(config)
    make.do_harm(state, _always)
    for _ in range(2):
        for step in loop.train(state, make.Numbers(), config):
            if step.finding:
                checkpoints.save_state(state, tmp_path)
                break
        state = make.fresh(config)
        make.do_harm(state, _always)
        assert checkpoints.load_state(state, tmp_path)
    assert state.rate_scale == 0.25 and state.rollbacks == 2
    rates = []

    def harm(player: str, batch: Batch, loss: Tensor) -> Tensor:
        rates.append(state.optimisers[player].param_groups[0]["lr"])
        return _always(player, batch, loss)

    make.do_harm(state, harm)
    with pytest.raises(Refused, match="3 times"):
        list(loop.train(state, make.Numbers(), config))
    assert len(state.health.findings) == 3 and max(rates) < 0.26 * config.training.rate and len(rates) == 2


def test_a_run_that_is_given_up_keeps_what_it_had_learned_and_says_where(
        mr_set: Path, tmp_path: Path, tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, moves = LesionTask.loss, [0]

    def loss(self: LesionTask, player: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        moves[0] += player == "generator"
        value, parts = whole(self, player, batch)
        return value * (NAN if moves[0] > 5 else 1), parts

    monkeypatch.setattr(LesionTask, "loss", loss)
    # The start, two reports, and three ways back: the first report is what remains.
    with pytest.raises(Refused) as refused:
        medgan.train(mr_set, modality="mr", out=tmp_path / "runs" / "one", device="cpu",
                     settings=tiny | {"training.images": 64})
    assert refused.value.code == "TRAINING_DIVERGED"
    told, run = str(refused.value), checkpoints.open_run(tmp_path / "runs" / "one")
    assert "at 16 images, are kept" in told and f"--model {run.path}" in told
    assert run.finished and run.gave_up and "given up" in (run.path / "MODEL_CARD.md").read_text()
    kept, state = (load_file(run.path / name) for name in ("weights.safetensors", "state/state.safetensors"))
    assert all(torch.equal(tensor, state[f"average.{name}"]) for name, tensor in kept.items())
    notes = [json.loads(line)["note"] for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert sum("half the learning rate" in note for note in notes) == 3
    assert checkpoints.newest_run(tmp_path / "runs", str(run.dataset["fingerprint"]), "lesion") is None
    monkeypatch.undo()
    assert health.finite(run.generator().parameters())
    assert medgan.train(out=run.path, resume=True).gave_up
