"""Learning that goes wrong: nothing that is not finite is kept, and what memory does not hold goes through in parts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import medgan
from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.learning import accumulation, checkpoints, health, loop
from medgan.learning.objectives import penalty, relativistic_discriminator, relativistic_generator
from medgan.learning.task import Batch, Probe, Task
from medgan.learning.tasks import TASKS
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.lesion import LesionTask, paint
from medgan.verbs.progress import Progress

NAN = float("nan")


class Game(Task):
    """A small game, and a hook that is called before and after each move's loss, to do harm."""

    name: ClassVar[str] = "game"
    generator: nn.Linear
    moved: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(1, 1)
        self.critic = nn.Sequential(nn.Linear(1, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        self.register_buffer("moved", torch.zeros(()))
        self.harm: Callable[[str, Batch, Tensor], Tensor] = lambda player, batch, loss: loss
        self.made = 0.0

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.critic, "generator": self.generator}

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

    @staticmethod
    def source(dataset: object, config: Config) -> Numbers:
        return Numbers()

    def sheet(self, generator: nn.Module, source: object) -> NDArray[np.uint8]:
        return np.zeros((1, 1, 3), np.uint8)


class Numbers:
    """Batches around 3, a function of the step alone; the steps that were asked for are noted."""

    interface: ClassVar[dict[str, Any]] = {}

    def batch(self, step: int) -> Batch:
        rows = 3 + torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return {"x": rows, "step": torch.full((8,), step)}


def _config(**training: Any) -> Config:
    given = {"images": 160, "batch": 8, "report_images": 40, "precision": "fp32", "rate": 1e-2} | training
    return Config.resolve("mr", settings={f"training.{name}": value for name, value in given.items()}, device="cpu")


def _fresh(config: Config) -> loop.State:
    torch.manual_seed(0)
    return loop.State.fresh(Game(), config.training)


def _harm(state: loop.State, harm: Callable[[str, Batch, Tensor], Tensor]) -> None:
    state.task.harm = harm  # type: ignore[assignment]


def _everything(state: loop.State) -> list[Tensor]:
    memories = [value for optimiser in state.optimisers.values() for memory in optimiser.state.values()
                for _, value in sorted(memory.items())]
    return [*state.task.state_dict().values(), *state.average.state_dict().values(), *memories]


def _saved_along(state: loop.State, config: Config, folder: Path) -> list[loop.Step]:
    """Trains, and saves and reads back after every step that is handed out: all of them must be good."""
    steps = []
    for step in loop.train(state, Numbers(), config):
        assert health.finite(_everything(state))
        checkpoints.save_state(state, folder)
        assert checkpoints.load_state(_fresh(config), folder)
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

    _harm(state, harm)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("player", ["discriminator", "generator"])
@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("at", [0, 4, 12])
def test_a_loss_or_gradient_that_is_not_finite_is_taken_back(how: str, player: str, precision: str, at: int,
                                                             tmp_path: Path) -> None:
    """At 0 nothing was kept yet but the start; 4 is the step that ends in a report."""
    config = _config(precision=precision)
    state = _fresh(config)
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
    assert isinstance(state.task, Game)
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
    config = _config()
    state, found = _fresh(config), []
    for step in loop.train(state, Numbers(), config):
        if step.finding:
            found.append(step.finding)
            state.task.made = 0.0  # type: ignore[assignment]
        if step.report:
            assert health.finite(_everything(state))
            checkpoints.save_state(state, tmp_path)
        if step.images == 72 and not found:
            _spoil(state, where)
    told = {"average": "averaged generator", "optimiser": "optimiser remembers", "buffer": "a weight",
            "made": "an image that the averaged generator made"}[where]
    assert [told in finding.why for finding in found] == [True] and "back to 40 images" in found[0].remedy
    assert state.images == 160 and health.finite(_everything(state))


def test_a_state_that_is_not_finite_is_never_written_and_the_one_before_stays(tmp_path: Path) -> None:
    config = _config()
    state = _fresh(config)
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
        next(loop.train(state, Numbers(), config))
    assert refused.value.code == "CKPT_NONFINITE"


def _always(player: str, batch: Batch, loss: Tensor) -> Tensor:
    return loss * NAN if int(batch["step"][0]) >= 7 else loss


def test_after_three_times_the_last_good_state_is_what_remains() -> None:
    config = _config()
    state, good = _fresh(config), []
    _harm(state, _always)
    with pytest.raises(Refused, match="3 times") as refused:
        for step in loop.train(state, Numbers(), config):
            if step.report:
                good = [tensor.clone() for tensor in _everything(state)]
    assert refused.value.code == "TRAINING_DIVERGED"
    assert state.rate_scale == 0.125 and state.rollbacks == 3 and len(state.health.findings) == 3
    # Of two good states the older one is gone back to when the newer one did not help; here there is the start.
    assert state.images == 0 and health.finite(_everything(state)) and good


def test_the_halved_rate_and_the_count_of_times_outlive_a_resume(tmp_path: Path) -> None:
    config = _config()
    state = _fresh(config)
    _harm(state, _always)
    for _ in range(2):
        for step in loop.train(state, Numbers(), config):
            if step.finding:
                checkpoints.save_state(state, tmp_path)
                break
        state = _fresh(config)
        _harm(state, _always)
        assert checkpoints.load_state(state, tmp_path)
    assert state.rate_scale == 0.25 and state.rollbacks == 2
    rates = []

    def harm(player: str, batch: Batch, loss: Tensor) -> Tensor:
        rates.append(state.optimisers[player].param_groups[0]["lr"])
        return _always(player, batch, loss)

    _harm(state, harm)
    with pytest.raises(Refused, match="3 times"):
        list(loop.train(state, Numbers(), config))
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


def test_a_run_short_of_memory_says_so_in_log_card_and_progress(
        mr_set: Path, tmp_path: Path, tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LesionTask.loss

    def loss(self: LesionTask, player: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if player == "generator" and len(batch["image"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return whole(self, player, batch)

    monkeypatch.setattr(LesionTask, "loss", loss)
    told: list[Progress] = []
    run = medgan.train(mr_set, modality="mr", out=tmp_path / "run", settings=tiny, device="cpu", progress=told.append)
    words = "each batch of 8 goes through in 4 parts of at most 2"
    assert sum(one.stage == "out of memory" for one in told) == 2 and any(words in one.text for one in told)
    assert words in (run.path / "log.jsonl").read_text() and words in (run.path / "MODEL_CARD.md").read_text()
    assert run.finished and not run.gave_up and health.finite(run.generator().parameters())


#: Trains in an address space that holds four 3D images at once but not 64.
STARVED = """
import resource, sys, torch
torch.set_num_threads(1)
import medgan
run, data = sys.argv[1:]
def tell(progress):
    if progress.stage == "out of memory":
        print(progress.text, flush=True)
from medgan.learning import loop
whole = loop.train
def train(state, source, config):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 900 * 2**20,) * 2)
    yield from whole(state, source, config)
loop.train = train
medgan.train(data, modality="mr", out=run, device="cpu", progress=tell, settings={
    "training.images": 64, "training.batch": 64, "training.report_images": 64, "data.dims": 3, "data.crop": 32,
    "network.width": 8, "data.crops_per_case": 4, "training.precision": "fp32"})
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space as Linux does")
def test_a_machine_with_little_memory_trains_in_parts(mr_set: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STARVED, str(tmp_path / "run"), str(mr_set)], capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "64 images at once did not fit" in done.stdout
    run = checkpoints.open_run(tmp_path / "run")
    assert run.finished and health.finite(run.generator().parameters())


# Memory.


def _short(most: int, player: str | None = None, error: type[BaseException] = torch.OutOfMemoryError, since: int = 0
           ) -> Callable[[str, Batch, Tensor], Tensor]:
    """Memory for so many images at once."""

    def harm(who: str, batch: Batch, loss: Tensor) -> Tensor:
        if player in (None, who) and len(batch["x"]) > most and int(batch["step"][0]) >= since:
            told = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
            raise error(told)
        return loss

    return harm


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("player", ["discriminator", "generator"])
@pytest.mark.parametrize("since", [0, 7])
def test_a_step_that_runs_out_of_memory_is_played_again_in_parts(player: str, error: type[BaseException], since: int
                                                                 ) -> None:
    """The weights end as those of a run that went through in parts from that step on, so nothing is left half-done."""
    config = _config()
    short, known = _fresh(config), _fresh(config)
    _harm(short, _short(3, player, error, since))
    steps = list(loop.train(short, Numbers(), config))
    found = [step.finding for step in steps if step.finding]
    assert [finding.kind for finding in found] == ["out of memory"] * 2 and short.at_once == 2
    assert "8 images at once did not fit" in str(found[0]) and "4 parts of at most 2" in str(found[1])
    assert short.rate_scale == 1 and short.rollbacks == 0 and len(steps) == 20 + 2
    known.at_once = 2 if since == 0 else None
    for step in loop.train(known, Numbers(), config):
        if step.images == 8 * since:
            known.at_once = 2
    assert all(torch.equal(a, b) for a, b in zip(_everything(short), _everything(known), strict=True))


def test_memory_that_fails_within_an_optimiser_leaves_nothing_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config()
    short, known = _fresh(config), _fresh(config)
    whole, left = torch.optim.Adam.step, [1]

    def step(self: torch.optim.Adam, *rest: Any) -> Any:
        result = whole(self, *rest)
        if left and len(self.param_groups[0]["params"]) == 2:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    list(loop.train(short, Numbers(), config))
    monkeypatch.undo()
    known.at_once = 4
    list(loop.train(known, Numbers(), config))
    assert short.at_once == 4
    assert all(torch.equal(a, b) for a, b in zip(_everything(short), _everything(known), strict=True))


def test_where_not_one_image_fits_the_run_is_refused() -> None:
    config = _config()
    state = _fresh(config)
    _harm(state, _short(0))
    with pytest.raises(Refused, match=r"data.crop or network.width \(they are \d+ and \d+\)") as refused:
        list(loop.train(state, Numbers(), config))
    assert refused.value.code == "OUT_OF_MEMORY" and state.at_once == 1 and state.step == 0


def test_other_errors_are_no_lack_of_memory() -> None:
    config = _config()
    state = _fresh(config)
    _harm(state, _short(3, error=ValueError))
    with pytest.raises(ValueError, match="can't allocate"):
        list(loop.train(state, Numbers(), config))
    assert not accumulation.out_of_memory(RuntimeError("shape mismatch"))
    assert not accumulation.out_of_memory(OSError(12, "Cannot allocate memory"))
    for told in ("std::bad_alloc", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "CUDA out of memory. Tried"):
        assert accumulation.out_of_memory(RuntimeError(told))


def test_a_run_in_parts_resumes_with_the_same_bits(tmp_path: Path) -> None:
    config = _config()
    whole = _fresh(config)
    _harm(whole, _short(3))
    for step in loop.train(whole, Numbers(), config):
        if step.images == 80:
            checkpoints.save_state(whole, tmp_path)
    resumed = _fresh(config)
    assert checkpoints.load_state(resumed, tmp_path) and resumed.at_once == 2
    assert not [step for step in loop.train(resumed, Numbers(), config) if step.finding]
    assert all(torch.equal(a, b) for a, b in zip(_everything(whole), _everything(resumed), strict=True))
    assert [str(one) for one in resumed.health.findings] == [str(one) for one in whole.health.findings]


def test_rows_are_drawn_in_parts_where_memory_is_short() -> None:
    rows = torch.arange(10.0)

    def draw(at: slice) -> Tensor:
        if len(rows[at]) > 3:
            raise MemoryError
        return rows[at] + 1

    assert torch.equal(accumulation.in_parts(draw, 10), rows + 1)
    with pytest.raises(Refused) as refused:
        accumulation.in_parts(lambda at: (_ for _ in ()).throw(MemoryError()), 10)
    assert refused.value.code == "OUT_OF_MEMORY"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_rows_of_parts_are_those_of_the_batch(size: int) -> None:
    task, whole = Game(), {"x": torch.arange(16.0)}
    for nth, most in ((4, 2), (8, 1), (5, 16)):
        every, first, weights = [], [], [0.0, 0.0]
        for share in accumulation.shares(whole, size):
            task.share, rows = share, share.part()["x"]
            kept, weight = task.every(nth, len(rows))
            count, of_first = task.first(most)
            every += rows[kept].tolist()
            first += rows[:count].tolist()
            weights = [weights[0] + weight * share.size, weights[1] + of_first * share.size]
        assert every == whole["x"][::nth].tolist() and first == whole["x"][:most].tolist()
        assert weights == pytest.approx([1, 1])


def _gradients(task: Task, batch: Batch, at_once: int | None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All players' gradients, none of whom moves, and what is logged."""
    found: dict[str, Tensor] = {}
    told: dict[str, float] = {}
    state = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    for name, player in task.players.items():
        for other in task.players.values():
            other.requires_grad_(other is player)
        task.zero_grad(set_to_none=True)
        loss, parts = accumulation.gradients(task, name, batch, at_once, torch.float32, 5)
        told |= {f"{name}/loss": float(loss), **{f"{name}/{part}": float(value) for part, value in parts.items()}}
        found |= {f"{name}/{key}": p.grad.clone() for key, p in player.named_parameters() if p.grad is not None}
    found |= {name: tensor.clone() for name, tensor in task.named_buffers()}
    task.forget()
    task.load_state_dict(state)
    return found, told


def _stirred(task: Task) -> Task:
    """Weights as after some training: layers that begin as nothing pass no gradient on."""
    noise = torch.Generator().manual_seed(3)
    for parameter in task.parameters():
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=noise))
    return task


def _task(name: str, mr_set: Path, xray_classes: Path, tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
          ) -> tuple[Task, Batch]:
    """A task and a batch whose noise comes with it, row by row, so that a part's noise is that of the batch."""
    kind, _, how = name.partition(" ")
    settings = tiny | {"training.batch": 16, "loss.features": 0, "loss.texture": 0}
    if how == "3d":
        settings |= {"data.dims": 3, "data.crop": 16}
    if how == "adversarial":
        settings |= {"loss.adversarial": 0.1}
    data, modality = (xray_classes, "xray") if kind == "image" else (mr_set, "mr")
    config = Config.resolve(modality, kind, settings=settings, device="cpu")
    source = TASKS[kind].source(open_dataset(data), config)
    torch.manual_seed(0)
    task = _stirred(TASKS[kind](config, source.interface))
    batch = source.batch(0)
    task.at(0.5)
    if isinstance(task, ImageTask):
        batch["latent"] = torch.randn(16, task.generator.latent)
        monkeypatch.setattr(task, "_make", lambda b: task.generator(b["latent"], b["class"]))
    if isinstance(task, LesionTask):
        shapes = task.generator.noise_shapes(batch["image"].shape[2:])
        batch |= {f"noise{k}": torch.randn(16, *shape) for k, shape in enumerate(shapes)}

        noise = [f"noise{k}" for k in range(len(shapes))]
        monkeypatch.setattr(task, "draw", lambda b: paint(task.generator, b, [b[name] for name in noise]))
    return task, batch


@pytest.mark.parametrize("name", ["upscale", "upscale adversarial", "image", "lesion", "lesion 3d"])
def test_gradients_added_up_are_those_of_the_whole_batch(name: str, mr_set: Path, xray_classes: Path,
                                                         tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
                                                         ) -> None:
    task, batch = _task(name, mr_set, xray_classes, tiny, monkeypatch)
    whole, told = _gradients(task, batch, None)
    scale = {player: max(float(g.abs().max()) for key, g in whole.items() if key.startswith(player))
             for player in task.players}
    assert all(value > 1e-6 for value in scale.values())
    # oneDNN's kernels for one image of this size round otherwise, by up to a tenth of a small gradient.
    for at_once in (8, 5, 2 if name == "image" else 1):
        parts, parts_told = _gradients(task, batch, at_once)
        assert parts.keys() == whole.keys()
        for key, gradient in whole.items():
            allowed = 2e-4 * scale.get(key.partition("/")[0], 1.0)
            assert torch.allclose(parts[key], gradient, rtol=0, atol=allowed), (at_once, key)
        for key, value in told.items():
            # The probabilities change with the last part, the gain is a ratio, features are compared in each part.
            if key.rpartition("/")[2] not in ("p", "cutout", "gain", "features"):
                assert parts_told.get(key, 0.0) == pytest.approx(value, rel=1e-3, abs=1e-4), (at_once, key)
