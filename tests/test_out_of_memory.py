"""Learning where memory is short: what it does not hold goes through in parts, to the same end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import game_makers as make
import pytest
import torch
from torch import Tensor

import medgan
from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.learning import accumulation, checkpoints, health, loop
from medgan.learning.task import Batch, Task
from medgan.learning.tasks import TASKS
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.lesion import LesionTask, paint
from medgan.verbs.progress import Progress


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
    config = make.config()
    short, known = make.fresh(config), make.fresh(config)
    make.do_harm(short, _short(3, player, error, since))
    steps = list(loop.train(short, make.Numbers(), config))
    found = [step.finding for step in steps if step.finding]
    assert [finding.kind for finding in found] == ["out of memory"] * 2 and short.at_once == 2
    assert "8 images at once did not fit" in str(found[0]) and "4 parts of at most 2" in str(found[1])
    assert short.rate_scale == 1 and short.rollbacks == 0 and len(steps) == 20 + 2
    known.at_once = 2 if since == 0 else None
    for step in loop.train(known, make.Numbers(), config):
        if step.images == 8 * since:
            known.at_once = 2
    assert all(torch.equal(a, b) for a, b in zip(make.everything(short), make.everything(known), strict=True))


def test_memory_that_fails_within_an_optimiser_leaves_nothing_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make.config()
    short, known = make.fresh(config), make.fresh(config)
    whole, left = torch.optim.Adam.step, [1]

    def step(self: torch.optim.Adam, *rest: Any) -> Any:
        result = whole(self, *rest)
        if left and len(self.param_groups[0]["params"]) == 2:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    list(loop.train(short, make.Numbers(), config))
    monkeypatch.undo()
    known.at_once = 4
    list(loop.train(known, make.Numbers(), config))
    assert short.at_once == 4
    assert all(torch.equal(a, b) for a, b in zip(make.everything(short), make.everything(known), strict=True))


def test_where_not_one_image_fits_the_run_is_refused() -> None:
    config = make.config()
    state = make.fresh(config)
    make.do_harm(state, _short(0))
    with pytest.raises(Refused, match=r"data.crop or network.width \(they are \d+ and \d+\)") as refused:
        list(loop.train(state, make.Numbers(), config))
    assert refused.value.code == "OUT_OF_MEMORY" and state.at_once == 1 and state.step == 0


def test_other_errors_are_no_lack_of_memory() -> None:
    config = make.config()
    state = make.fresh(config)
    make.do_harm(state, _short(3, error=ValueError))
    with pytest.raises(ValueError, match="can't allocate"):
        list(loop.train(state, make.Numbers(), config))
    assert not accumulation.out_of_memory(RuntimeError("shape mismatch"))
    assert not accumulation.out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not accumulation.out_of_memory(OSError(12, "Cannot allocate memory"))
    for told in ("std::bad_alloc", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "CUDA out of memory. Tried",
                 "could not create a primitive"):
        assert accumulation.out_of_memory(RuntimeError(told))


def test_a_run_in_parts_resumes_with_the_same_bits(tmp_path: Path) -> None:
    config = make.config()
    whole = make.fresh(config)
    make.do_harm(whole, _short(3))
    for step in loop.train(whole, make.Numbers(), config):
        if step.images == 80:
            checkpoints.save_state(whole, tmp_path)
    resumed = make.fresh(config)
    assert checkpoints.load_state(resumed, tmp_path) and resumed.at_once == 2
    assert not [step for step in loop.train(resumed, make.Numbers(), config) if step.finding]
    assert all(torch.equal(a, b) for a, b in zip(make.everything(whole), make.everything(resumed), strict=True))
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
    task, whole = make.Game(), {"x": torch.arange(16.0)}
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


#: Trains in an address space that holds some 3D images at once but not 64: with 900 to 1600 MiB it does, with 500 none.
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
    resource.setrlimit(resource.RLIMIT_AS, (size + 1300 * 2**20,) * 2)
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
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "64 images at once did not fit" in done.stdout
    run = checkpoints.open_run(tmp_path / "run")
    assert run.finished and health.finite(run.generator().parameters())
