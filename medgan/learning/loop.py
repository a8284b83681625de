"""The one training loop: a generator of steps. The caller's `for` is the hook system."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medgan.config import Config, Training
from medgan.errors import Refused
from medgan.learning import health
from medgan.learning.accumulation import LESS, Undo, gradients, halve, memory_named, out_of_memory, release
from medgan.learning.health import Finding, Health
from medgan.learning.objectives import OBJECTIVES, penalty_of
from medgan.learning.task import Batch, Probe, Source, Task

#: Steps after which the speed is trusted enough to turn minutes into a number of images.
CALIBRATION_STEPS = 12
#: How often a run that diverged is taken back before it is given up.
ROLLBACKS = 3
#: The largest gradient norm a player may follow, relative to nothing: it stops one bad batch, not the game.
GRADIENT_LIMIT = 100.0
#: Made images, and real ones, by which the variety of a run is judged at each report.
PROBED = 64


@dataclass
class State:
    """Everything that a run is at one moment; what `checkpoints` saves and brings back.

    Args:
        task: The players.
        average: Exponential moving average of `task.generator`.
        optimisers: One for each player.
        step: Steps done.
        images: Images seen by the first player.
        total: Length of the run in images; None until it is known (a run given in minutes).
        rate_scale: What rollbacks have left of the learning rate.
        rollbacks: How often the run was taken back because it diverged.
        health: What is known of the run's health.
        next_report: Images at which the next report is due; None before the first step.
        at_once: Images of a batch that go through together, where memory does not hold more; None: all of them.
    """

    task: Task
    average: nn.Module
    optimisers: dict[str, torch.optim.Adam]
    step: int = 0
    images: int = 0
    total: int | None = None
    rate_scale: float = 1.0
    rollbacks: int = 0
    health: Health = field(default_factory=Health)
    next_report: int | None = None
    at_once: int | None = None

    @classmethod
    def fresh(cls, task: Task, config: Training) -> State:
        """The state before the first step."""
        average = copy.deepcopy(task.generator).eval().requires_grad_(False)
        optimisers = {
            name: torch.optim.Adam(player.parameters(), lr=config.rate, betas=(config.beta1, config.beta2[0]))
            for name, player in task.players.items()
        }
        return cls(task, average, optimisers, total=None if config.minutes else config.images)

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, self.images / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Step:
    """What the caller sees after each step.

    Args:
        images: Images seen so far.
        total: Length of the run in images, where known.
        parts: Named losses of this step, of all players; at a report also figures of health.
        images_per_second: Speed since the last report.
        waiting: Share of the time since the last report that was spent waiting for data, 0 to 1.
        report: True where a checkpoint and a contact sheet are due.
        done: True at the last step.
        note: What is odd about this step, if anything.
        finding: What went wrong with the run at this step, and what was done.
    """

    images: int
    total: int | None
    parts: Mapping[str, float]
    images_per_second: float
    waiting: float
    report: bool
    done: bool
    note: str = ""
    finding: Finding | None = None


@dataclass
class _Clock:
    """Time since the last report: busy, and waiting for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0

    def speed(self) -> float:
        return self.images / max(1e-9, time.perf_counter() - self.started)

    def waiting(self) -> float:
        return self.waited / max(1e-9, time.perf_counter() - self.started)


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Refused("CFG_VALUE", "device", "there is no CUDA device here", "Use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """bf16 where the machine computes in it, fp32 elsewhere."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def train(state: State, source: Source, config: Config) -> Iterator[Step]:
    """Plays the game until its end, one `Step` at a time.

    Each step seeds torch from the run's seed and the step's number, and `source.batch` is a pure function of the
    step, so that a resumed run goes on bit for bit (on one CPU thread).

    Args:
        state: Where to start; changed in place, and consistent whenever a step is handed out.
        source: Where batches come from.
        config: The run's settings.

    Yields:
        A `Step` after each step; the caller saves, draws and logs when `report` is set, and may stop at any time.

    Raises:
        Refused: `TRAINING_DIVERGED` when rolling back did not help: the state is the last good one then, and may be
            saved. `OUT_OF_MEMORY` when not even one image at a time fits. `CKPT_NONFINITE` when the first state is no
            good one.
    """
    with memory_named("training", LESS):
        yield from _steps(state, source, config)


def _steps(state: State, source: Source, config: Config) -> Iterator[Step]:
    settings = config.training
    device = pick_device(config.device)
    precision = pick_precision(settings.precision, device)
    state.task.to(device).train()
    state.average.to(device)
    if (odd := _not_finite(state)) is not None:
        raise Refused("CKPT_NONFINITE", "training", f"{odd} before the first step", "Train again")
    # Two: a run may have been on its way off, not yet noticed, when the last one was taken.
    safe = deque([_snapshot(state)], maxlen=2)
    clock, started, seconds_at_start, undo = _Clock(), state.step, time.perf_counter(), Undo()
    state.next_report = state.next_report or state.images + settings.report_images
    with ThreadPoolExecutor(1, thread_name_prefix="medgan-batches") as pool, torch.random.fork_rng():
        ahead: Future[Batch] = pool.submit(source.batch, state.step)
        while state.total is None or state.images < state.total:
            before = time.perf_counter()
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in ahead.result().items()}
            clock.waited += time.perf_counter() - before
            ahead = pool.submit(source.batch, state.step + 1)
            count = len(next(iter(batch.values())))
            parts = _play(state, batch, config, precision, undo)
            if parts is None:
                finding = halve(state, count, config)
                ahead = pool.submit(source.batch, state.step)
                yield Step(state.images, state.total, {}, clock.speed(), clock.waiting(), False, False, str(finding),
                           finding)
                continue
            why = state.health.step(parts) or _not_finite(state, everything=False)
            elapsed = time.perf_counter() - seconds_at_start
            late = settings.limit_minutes is not None and elapsed > settings.limit_minutes * 60
            probe: Probe | None = None
            if why is None:
                _average(state, count, settings.ema_images)
                state.step += 1
                state.images += count
                clock.images += count
                if state.total is None and settings.minutes and state.step - started >= CALIBRATION_STEPS:
                    left = settings.minutes * 60 - elapsed
                    state.total = state.images + max(1, round(clock.speed() * left))
                done = late or (state.total is not None and state.images >= state.total)
                report = done or state.images >= state.next_report
                if report:
                    why, probe = _look(state, source)
            if why is not None:
                finding = _take_back(state, safe, settings, why)
                ahead = pool.submit(source.batch, state.step)
                yield Step(state.images, state.total, parts, clock.speed(), clock.waiting(), False, False,
                           str(finding), finding)
                continue
            notes = ["stopped at the time limit"] if late else []
            found: Finding | None = None
            if report:
                found, figures = _examine(state, probe, safe[-1], settings, done)
                parts |= figures
                notes += [str(found)] if found else []
                if found:
                    ahead = pool.submit(source.batch, state.step)
                state.next_report = state.images + settings.report_images
            yield Step(state.images, state.total, parts, clock.speed(), clock.waiting(), report, done,
                       "; ".join(notes), found)
            if report:
                clock = _Clock()
                # A state that looks like a collapse is not one to come back to.
                if state.health.low == 0:
                    safe.append(_snapshot(state))
            if done:
                break
        ahead.cancel()


def step_seed(seed: int, step: int) -> int:
    """A well-mixed seed for one step (the 64-bit finaliser of MurmurHash3)."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = ((x ^ (x >> 33)) * multiplier) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 33)) >> 1


def _play(state: State, batch: Batch, config: Config, precision: torch.dtype, undo: Undo) -> dict[str, float] | None:
    """One move of each player; None if memory did not suffice: everything is as before the step then."""
    undo.begin(state.task)
    try:
        return _moves(state, batch, config, precision, undo)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or not undo.possible:
            raise
    # Outside the handler: the error holds on to all that was computed.
    undo.restore(state.task)
    state.task.forget()
    release()
    return None


def _moves(state: State, batch: Batch, config: Config, precision: torch.dtype, undo: Undo) -> dict[str, float]:
    """One move of each player; nobody moves once a loss or gradient is not finite."""
    progress, settings, seed = state.progress, config.training, step_seed(config.seed, state.step)
    torch.manual_seed(seed)
    state.task.at(progress)
    # Cosine from the first to the last rate, and from the first to the last beta2.
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    rate = (settings.rate_end + (settings.rate - settings.rate_end) * fall) * state.rate_scale
    beta2 = settings.beta2[1] + (settings.beta2[0] - settings.beta2[1]) * fall
    players = state.task.players
    logged: dict[str, Tensor] = {}
    for name, player in players.items():
        for other in players.values():
            other.requires_grad_(other is player)
        optimiser = state.optimisers[name]
        for group in optimiser.param_groups:
            group["lr"], group["betas"] = rate, (settings.beta1, beta2)
        optimiser.zero_grad(set_to_none=True)
        loss, parts = gradients(state.task, name, batch, state.at_once, precision, seed)
        norm = nn.utils.clip_grad_norm_(player.parameters(), GRADIENT_LIMIT)
        logged |= {f"{name}/{part}": value for part, value in parts.items()}
        logged[f"{name}/loss"], logged[f"{name}/gradient"] = loss, norm
        if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            break
        undo.keep(name, optimiser, last=player is list(players.values())[-1])
        optimiser.step()
    return {name: float(value) for name, value in logged.items()}


@torch.no_grad()
def _average(state: State, count: int, half_life: float) -> None:
    """Moves the average towards the generator; early on the memory is short, so that the start is forgotten."""
    keep = 0.5 ** (count / max(1.0, min(half_life, 0.1 * (state.images + count))))
    for mean, now in zip(state.average.parameters(), state.task.generator.parameters(), strict=True):
        mean.lerp_(now.detach(), 1 - keep)
    for kept, fresh in zip(state.average.buffers(), state.task.generator.buffers(), strict=True):
        kept.copy_(fresh)


def _not_finite(state: State, *, everything: bool = True) -> str | None:
    """Says what of a state is not finite, if anything.

    Averages of what is finite, and what optimisers remember of finite gradients, are finite too: these are looked at
    where a state is kept, not at each step.
    """
    looked_at = {"a weight": [*state.task.parameters(), *state.task.buffers()]}
    if everything:
        looked_at |= {
            "a weight of the averaged generator": [*state.average.parameters(), *state.average.buffers()],
            "what an optimiser remembers": [
                value for optimiser in state.optimisers.values() for memory in optimiser.state.values()
                for name, value in memory.items() if name != "step"]}
    return next((f"{what} was not finite" for what, tensors in looked_at.items() if not health.finite(tensors)), None)


def _snapshot(state: State) -> dict[str, Any]:
    return copy.deepcopy({
        "task": state.task.state_dict(), "average": state.average.state_dict(),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in state.optimisers.items()},
        "images": state.images, "health": state.health.numbers(),
    })


def _restore(state: State, safe: dict[str, Any], step: int) -> None:
    """Takes the run back; its steps' numbers go on with `step`: the same batches and noise are not met again.

    Remedies against collapse stay: they count as tried.
    """
    kept = copy.deepcopy(safe)
    remedies = {name: getattr(state.task, name).clone() for name in ("penalty_scale", "ada_floor")}
    state.task.load_state_dict(kept["task"] | remedies)
    state.average.load_state_dict(kept["average"])
    for name, optimiser in state.optimisers.items():
        optimiser.load_state_dict(kept["optimisers"][name])
    state.health.back_to(kept["health"])
    state.images, state.step = kept["images"], step


def _take_back(state: State, safe: deque[dict[str, Any]], settings: Training, why: str) -> Finding:
    """Takes a run that diverged back to the last good report, or the one before if that did not help; at half the rate.

    Raises:
        Refused: `TRAINING_DIVERGED` when that was done often enough.
    """
    images = state.images
    if safe[-1].get("tried") and len(safe) > 1:
        safe.pop()
    safe[-1]["tried"] = True
    _restore(state, safe[-1], state.step + 1)
    state.next_report = state.images + settings.report_images
    if state.rollbacks >= ROLLBACKS:
        raise Refused("TRAINING_DIVERGED", "training", f"{why}, at {images} images, and going back at half the "
                      f"learning rate did not help {ROLLBACKS} times",
                      "Lower training.rate, raise training.gamma, or look for damaged cases with medgan inspect")
    state.rollbacks += 1
    state.rate_scale *= 0.5
    finding = Finding("divergence", images, why, f"back to {state.images} images at half the learning rate")
    state.health.findings.append(finding)
    return finding


def _look(state: State, source: Source) -> tuple[str | None, Probe | None]:
    """What of a state that is due to be kept is not finite, if anything, and images by which it can be judged."""
    why = _not_finite(state)
    if why is not None:
        return why, None
    probe = state.task.probe(state.average, source, PROBED)
    if probe is None or np.isfinite(probe.made).all():
        return None, probe
    return "an image that the averaged generator made was not finite", probe


def _examine(state: State, probe: Probe | None, safe: dict[str, Any], settings: Training, done: bool
             ) -> tuple[Finding | None, dict[str, float]]:
    """Judges the run at a report and acts on a collapse, so far as there is something left to do."""
    figures, why = state.health.report(probe, state.progress, state.step)
    if why is None:
        return None, figures
    images = state.images
    remedy = _treat(state, safe, settings, done)
    state.health.remedies, state.health.low = state.health.remedies + 1, 0
    finding = Finding("collapse", images, why, remedy)
    state.health.findings.append(finding)
    return finding, figures


def _treat(state: State, safe: dict[str, Any], settings: Training, done: bool) -> str:
    """Does what may help against a collapse, and says what that was."""
    number = state.health.remedies + 1
    if done:
        return "the run is over"
    if number > health.REMEDIES:
        return f"{health.REMEDIES} remedies did not help, so the run goes on as it is"
    if state.health.blind():
        return ("nothing was done: the discriminator hardly tells real from made images, so that holding it back would "
                "not help")
    done_what = []
    if state.health.varied:
        _restore(state, safe, state.step)
        done_what.append(f"back to {state.images} images")
    if penalty_of(OBJECTIVES[settings.objective], settings.penalty) != "none":
        state.task.penalty_scale.fill_(health.STRONGER**number)
        done_what.append(f"{health.STRONGER**number:g} times the penalty")
    if settings.ada_cap > 0:
        floor = min(settings.ada_cap, health.MORE_AUGMENTATION * number)
        state.task.ada_floor.fill_(floor)
        done_what.append(f"augmentation with at least {floor:.0%} probability")
    return ", ".join(done_what) or "nothing could be done: the settings have neither a penalty nor augmentation"
